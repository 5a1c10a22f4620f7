"""Images one series at a time, as decisions read them: all of a large catalog in one walk.

``series`` is what ``planning.observed.Observed`` holds: walked again and again, never in memory at once. ``load`` is
the same for one series inside a transaction of the caller, so that a deletion is judged by what it would delete.
Core statements with plain numbers and texts: objects of the ORM, or a typed time per row, would cost several times as
much. Images that are ``spent`` (no copy left, and a newer one remembers their slot) are no longer read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa

from reconciler.catalog import database, tables
from reconciler.planning import actions, observed

#: Image states that exist for everybody; Writing ones were never committed.
COMMITTED: Final = ("Complete", "Partial")
_BATCH: Final = 2000

#: What keeps copies of an image busy: a copy number, a unit, or (both None) every copy.
_Use = tuple[int | None, str | None]


class _Histories(Iterable[observed.Series]):
    """Every series, ordered by client and policy; each walk is one consistent reading."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def __iter__(self) -> Iterator[observed.Series]:
        with self._db.reading() as connection:
            yield from _walk(connection)


def series(db: database.Database) -> Iterable[observed.Series]:
    """Every series with its committed images and all their copies; may be walked any number of times.

    Expired copies are among them: what was paid once is not owed again. A walk reads one moment of the catalog and
    holds one series in memory. Raises ``CatalogError`` while walked.
    """
    return _Histories(db)


def one_series(db: database.Database, client_id: str, policy: str) -> observed.Series:
    """One series as it is now, without images if there are none."""
    with db.reading() as connection:
        return load(connection, client_id, policy)


def load(connection: sa.Connection, client_id: str, policy: str) -> observed.Series:
    """One series as the caller's transaction sees it."""
    chosen = (tables.IMAGES.c.client_id == client_id, tables.IMAGES.c.policy == policy)
    found = next(_walk(connection, *chosen), None)
    return found or observed.Series(client=client_id, policy=policy, images=())


def _walk(connection: sa.Connection, *chosen: sa.ColumnElement[bool]) -> Iterator[observed.Series]:
    """Two results in the same order, walked side by side: joined, each image would be read once for every copy."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    order = (image.client_id, image.policy, image.sequence, image.id)
    visible = sa.and_(image.spent == sa.false(), image.state.in_(COMMITTED), *chosen)
    images = sa.select(
        image.client_id, image.policy, image.id, image.schedule, image.type, image.state, _number(image.time),
        image.sequence, _number(image.slot), image.lifecycle, image.owed, image.parent, image.size_bytes,
        _text(image.disk_names),
    )  # fmt: skip
    copies = sa.select(
        image.id, copy.number, copy.operation, copy.unit, copy.state, _number(copy.created_at), copy.stored_bytes,
        copy.base, copy.imported, _number(copy.grace_until),
    ).join_from(tables.IMAGES, tables.COPIES, copy.image_id == image.id)  # fmt: skip
    streamed = {"yield_per": _BATCH}
    made = _Values(_uses(connection))
    with (
        connection.execute(copies.where(visible).order_by(*order, copy.number), execution_options=streamed) as beside,
        connection.execute(images.where(visible).order_by(*order), execution_options=streamed) as rows,
    ):
        waiting = beside.fetchone()
        key: tuple[str, str] | None = None
        gathered: list[observed.Image] = []
        for row in rows:
            held = []
            while waiting is not None and waiting[0] == row[2]:
                held.append(made.copy(waiting))
                waiting = beside.fetchone()
            if key != (row[0], row[1]):
                if key is not None:
                    yield observed.Series(client=key[0], policy=key[1], images=tuple(gathered))
                key, gathered = (row[0], row[1]), []
            gathered.append(made.image(row, tuple(held)))
        if key is not None:
            yield observed.Series(client=key[0], policy=key[1], images=tuple(gathered))


class _Values:
    """Makes values of rows. The same few words stand in every row; keeping one of each spares most of the memory."""

    def __init__(self, uses: dict[str, list[_Use]]) -> None:
        self._uses = uses
        self._words: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def image(self, row: Any, copies: tuple[observed.Copy, ...]) -> observed.Image:
        """One image of a row of the walk."""
        _, _, id, schedule, type, state, at, sequence, slot, lifecycle, owed, parent, size, names = row
        disks = self._names.get(names)
        if disks is None:
            disks = self._names[names] = tuple(json.loads(names))
        word = self._words.setdefault
        return observed.Image(
            id, word(schedule, schedule), word(type, type), word(state, state), tables.to_moment(at), sequence,
            tables.to_moment(slot), word(lifecycle, lifecycle), word(owed, owed), parent, size, copies, disks,
        )  # fmt: skip

    def copy(self, row: Any) -> observed.Copy:
        """One copy of a row of the walk."""
        image, number, operation, unit, state, at, stored, base, imported, grace = row
        busy = image in self._uses and any(
            used == number or place == unit or (used is None and place is None) for used, place in self._uses[image]
        )
        word = self._words.setdefault
        return observed.Copy(
            number, word(operation, operation), word(unit, unit), word(state, state), tables.to_moment(at), stored,
            base, busy, bool(imported), tables.to_moment(grace) if grace is not None else None,
        )  # fmt: skip


def _number(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.type_coerce(column, sa.BigInteger)


def _text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    return sa.type_coerce(column, sa.Text)


def _uses(connection: sa.Connection) -> dict[str, list[_Use]]:
    """By image, what live jobs read or build on. The job that expires a copy does not keep it."""
    job = tables.JOBS.c
    query = sa.select(job.type, job.image, job.copy_number, job.source_unit, job.parent).where(
        job.state.in_(tables.LIVE)
    )
    uses: dict[str, list[_Use]] = {}
    for type, image, copy, source_unit, parent in connection.execute(query):
        if image is not None and type != actions.Type.EXPIRE:
            uses.setdefault(image, []).append((copy, source_unit))
        if parent is not None:
            uses.setdefault(parent, []).append((None, None))
    return uses
