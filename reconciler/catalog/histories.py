"""Images one series at a time, as decisions read them: all of a large catalog in one walk.

``series`` is what ``planning.observed.Observed`` holds: walked again and again, never in memory at once. ``load`` is
the same for one series inside a transaction of the caller, so that a deletion is judged by what it would delete.
Core statements with plain numbers and texts: objects of the ORM, or a typed time per row, would cost several times as
much. Images that are ``spent`` (no copy left, and a newer one remembers their slot) are no longer read.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import times
from reconciler.catalog import database, tables
from reconciler.planning import columns, sightings, worktypes

#: Image states that exist for everybody; Writing ones were never committed.
COMMITTED: Final = ("Complete", "Partial")
_BATCH: Final = 2000
_SERIES: Final = operator.itemgetter(0, 1)
#: Stands in no name and no JSON.
_BETWEEN: Final = "\x1f"
_SERIES_AT_ONCE: Final = 20
#: Place of the sequence numbers among the columns of a series.
_SEQUENCE: Final = 2

#: What keeps copies of an image busy: a copy number, a unit, or (both None) every copy.
_Use = tuple[int | None, str | None]
#: Client, policy, and the columns of a series in the order of ``_query``.
_Read = tuple[str, str, tuple[tuple[Any, ...], ...]]


class _Histories(Iterable[sightings.Series]):
    """Every series, ordered by client and policy; each walk is one consistent reading."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def __iter__(self) -> Iterator[sightings.Series]:
        with self._db.reading() as connection:
            yield from _walk(connection)


def series(db: database.Database) -> Iterable[sightings.Series]:
    """Every series with its committed images and all their copies; may be walked any number of times.

    Expired copies are among them: what was paid once is not owed again. A walk reads one moment of the catalog and
    holds one series in memory. Raises ``CatalogError`` while walked.
    """
    return _Histories(db)


def one_series(db: database.Database, client_id: str, policy: str) -> sightings.Series:
    """One series as it is now, without images if there are none."""
    with db.reading() as connection:
        return load(connection, client_id, policy)


def load(connection: sa.Connection, client_id: str, policy: str) -> sightings.Series:
    """One series as the caller's transaction sees it."""
    chosen = (tables.IMAGES.c.client_id == client_id, tables.IMAGES.c.policy == policy)
    found = next(_walk(connection, *chosen), None)
    return found or sightings.Series(client=client_id, policy=policy, images=())


def _walk(connection: sa.Connection, *chosen: sa.ColumnElement[bool]) -> Iterator[sightings.Series]:
    """One row an image, its copies folded into one text by the database, the rows of a series turned into columns."""
    values = _Values(_uses(connection))
    read = _rows if connection.dialect.name == "sqlite" else _texts
    for client, policy, found in read(connection, _query(*chosen)):
        yield sightings.Series(client=client, policy=policy, images=values.series(found))


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[_Read]:
    """The columns of each series from the rows of its images."""
    with connection.execute(query) as result:
        # The rows are plain numbers and texts: what SQLAlchemy does to a row would cost more than reading it.
        batches = iter(lambda: result.cursor.fetchmany(_BATCH) if result.cursor is not None else (), [])
        rows = itertools.chain.from_iterable(batches)
        for (client, policy), group in itertools.groupby(rows, key=_SERIES):
            yield client, policy, tuple(zip(*group, strict=True))[2:]


def _texts(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[_Read]:
    """The same from a server, which folds each column of a series into one text: its driver pays for every value."""
    inner = query.subquery()
    client, policy, *rest = inner.columns
    folded = [sa.func.string_agg(sa.func.coalesce(sa.cast(one, sa.Text), ""), _BETWEEN) for one in rest]
    whole = sa.select(client, policy, *folded).group_by(client, policy).order_by(client, policy)
    with connection.execute(whole, execution_options={"yield_per": _SERIES_AT_ONCE}) as result:
        for found_client, found_policy, *texts in result:
            ids, stamps, sequences, slots, parents, sizes, *heads = (text.split(_BETWEEN) for text in texts)
            read = [
                ids, *(list(map(int, one)) for one in (stamps, sequences, slots)), [one or None for one in parents],
                list(map(int, sizes)), *heads,
            ]  # fmt: skip
            # Nothing but the order of the inner query promises the order of what is folded.
            order = sorted(range(len(ids)), key=read[_SEQUENCE].__getitem__)
            if order != list(range(len(ids))):
                read = [[one[place] for place in order] for one in read]
            yield found_client, found_policy, tuple(map(tuple, read))


def _query(*chosen: sa.ColumnElement[bool]) -> sa.Select[Any]:
    image, copy = tables.IMAGES.c, tables.COPIES.c
    folded = sa.func.aggregate_strings(copy.fold, ";") + "#" + sa.func.aggregate_strings(copy.facts, ";")
    copies = sa.select(folded).where(copy.image_id == image.id).correlate(tables.IMAGES).scalar_subquery()
    return (
        sa.select(
            image.client_id, image.policy, image.id, _number(image.time), image.sequence, _number(image.slot),
            image.parent, image.size_bytes, image.schedule, image.type, image.state, image.lifecycle, image.owed,
            _text(image.disk_names), copies,
        )
        .where(image.spent == sa.false(), image.state.in_(COMMITTED), *chosen)
        # Sequence numbers are unique in a series.
        .order_by(image.client_id, image.policy, image.sequence)
    )  # fmt: skip


class _Values:
    """Makes columns of rows, and values of columns. One of each shape is kept for the whole walk."""

    def __init__(self, uses: dict[str, list[_Use]]) -> None:
        self._uses = uses
        self._shapes: dict[tuple[Any, ...], columns.Shape] = {}

    def series(self, rows: tuple[tuple[Any, ...], ...]) -> columns.Columns:
        """The images of one series, from the columns of its rows."""
        ids, stamps, sequences, slots, parents, sizes, *heads, copies = rows
        # Without any copy, which a crash between two versions could leave, there is nothing to fold.
        folds, _, facts = zip(*((text or "#").partition("#") for text in copies), strict=True)
        # The image's own parent goes by a name that all images share.
        relative = [
            fold.replace(f"|{parent}|", f"|{columns.PARENT}|") if parent is not None else fold
            for fold, parent in zip(folds, parents, strict=True)
        ]
        keys = zip(*heads, relative, strict=True)
        shapes = [self._shapes.get(key) or self._shape(key) for key in keys]

        def make(index: int) -> sightings.Image:
            shape = shapes[index]
            return sightings.Image(
                ids[index], shape.schedule, shape.type, shape.state, times.to_moment(stamps[index]), sequences[index],
                times.to_moment(slots[index]), shape.lifecycle, shape.owed, parents[index], sizes[index],
                self._copies(ids[index], parents[index], shape, facts[index]), shape.disks,
            )  # fmt: skip

        return columns.Columns(ids=ids, stamps=stamps, slots=slots, parents=parents, shapes=shapes, make=make)

    def _shape(self, key: tuple[Any, ...]) -> columns.Shape:
        schedule, type, state, lifecycle, owed, disks, fold = key
        made = columns.Shape(
            schedule=schedule, type=type, state=state, lifecycle=lifecycle, owed=owed,
            disks=tuple(json.loads(disks)), parts=tuple(map(_part, fold.split(";"))) if fold else (),
        )  # fmt: skip
        self._shapes[key] = made
        return made

    def _copies(self, image: str, parent: str | None, shape: columns.Shape, facts: str) -> tuple[sightings.Copy, ...]:
        found = []
        for part, fact in zip(shape.parts, facts.split(";") if facts else (), strict=True):
            created, stored, until = fact.split("|")
            found.append(
                sightings.Copy(
                    part.number, part.operation, part.unit, part.state, times.to_moment(int(created)), int(stored),
                    parent if part.base == columns.PARENT else part.base, self._busy(image, part), part.imported,
                    times.to_moment(int(until)) if until else None,
                )
            )  # fmt: skip
        return tuple(sorted(found))

    def _busy(self, image: str, part: columns.Part) -> bool:
        return any(
            used == part.number or place == part.unit or (used is None and place is None)
            for used, place in self._uses.get(image, ())
        )


def _part(text: str) -> columns.Part:
    number, operation, unit, state, base, imported = text.split("|")
    return columns.Part(int(number), operation, unit, state, base or None, imported == "1")


def _number(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.type_coerce(column, sa.BigInteger)


def _text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    return sa.type_coerce(column, sa.Text)


def _uses(connection: sa.Connection) -> dict[str, list[_Use]]:
    """By image, what live jobs read or build on. The job that expires a copy does not keep it."""
    job = tables.JOBS.c
    query = sa.select(job.type, job.image, job.copy_number, job.source_unit, job.unit, job.parent).where(
        job.state.in_(tables.LIVE)
    )
    uses: dict[str, list[_Use]] = {}
    for type, image, copy, source_unit, unit, parent in connection.execute(query):
        if image is not None and type in (worktypes.Type.RESTORE, worktypes.MOUNT):
            # Where the copy that it began with fails it reads any other.
            uses.setdefault(image, []).append((None, None))
        elif image is not None and type == worktypes.Type.DUPLICATE and copy is None:
            # No copy is good, and it reads them all.
            uses.setdefault(image, []).append((None, None))
        elif image is not None and type != worktypes.Type.EXPIRE:
            uses.setdefault(image, []).append((copy, source_unit))
        if parent is not None:
            # It is read where the job writes; elsewhere nobody reads it.
            uses.setdefault(parent, []).append((None, unit))
    return uses
