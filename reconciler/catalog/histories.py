"""Images one series at a time, as decisions read them: all of a large catalog in one walk of two joined tables.

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
            yield from _walk(connection, _query())


def series(db: database.Database) -> Iterable[observed.Series]:
    """Every series with its committed images and their copies that are not Expired; may be walked any number of times.

    A walk reads one moment of the catalog and holds one series in memory. Raises ``CatalogError`` while walked.
    """
    return _Histories(db)


def one_series(db: database.Database, client_id: str, policy: str) -> observed.Series:
    """One series as it is now, without images if there are none."""
    with db.reading() as connection:
        return load(connection, client_id, policy)


def load(connection: sa.Connection, client_id: str, policy: str) -> observed.Series:
    """One series as the caller's transaction sees it."""
    wanted = _query().where(tables.IMAGES.c.client_id == client_id, tables.IMAGES.c.policy == policy)
    found = next(_walk(connection, wanted), None)
    return found or observed.Series(client=client_id, policy=policy, images=())


def _query() -> sa.Select[Any]:
    image, copy = tables.IMAGES.c, tables.COPIES.c
    present = sa.and_(copy.image_id == image.id, copy.state != "Expired")
    return (
        sa.select(
            image.client_id, image.policy, image.id, image.schedule, image.type, image.state,
            _number(image.time), image.sequence, _number(image.slot), image.lifecycle, image.owed, image.parent,
            image.size_bytes, _text(image.disk_names), copy.number, copy.operation, copy.unit, copy.state,
            _number(copy.created_at), copy.stored_bytes, copy.base, copy.imported,
        )
        .join_from(tables.IMAGES, tables.COPIES, present, isouter=True)
        .where(image.spent == sa.false(), image.state.in_(COMMITTED))
        .order_by(image.client_id, image.policy, image.sequence, image.id, copy.number)
    )  # fmt: skip


def _number(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.type_coerce(column, sa.BigInteger)


def _text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    return sa.type_coerce(column, sa.Text)


def _walk(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[observed.Series]:
    uses = _uses(connection)
    # The same few names stand in every row; keeping one of each spares most of the memory of a series.
    words: dict[str, str] = {}
    names: dict[str, tuple[str, ...]] = {}
    key: tuple[str, str] | None = None
    images: list[observed.Image] = []
    copies: list[observed.Copy] = []
    last: Any = None
    rows = connection.execute(query, execution_options={"yield_per": _BATCH})
    try:
        for row in rows:
            if last is not None and row[2] != last[2]:
                images.append(_image(last, copies, words, names))
                copies = []
            if key != (row[0], row[1]):
                if key is not None:
                    yield observed.Series(client=key[0], policy=key[1], images=tuple(images))
                key, images = (row[0], row[1]), []
            if row[14] is not None:
                copies.append(_copy(row, uses, words))
            last = row
        if key is not None:
            images.append(_image(last, copies, words, names))
            yield observed.Series(client=key[0], policy=key[1], images=tuple(images))
    finally:
        rows.close()


def _image(
    row: Any, copies: list[observed.Copy], words: dict[str, str], names: dict[str, tuple[str, ...]]
) -> observed.Image:
    disks = names.get(row[13])
    if disks is None:
        disks = names[row[13]] = tuple(json.loads(row[13]))
    word = words.setdefault
    return observed.Image(
        row[2], word(row[3], row[3]), word(row[4], row[4]), word(row[5], row[5]), tables.to_moment(row[6]), row[7],
        tables.to_moment(row[8]), word(row[9], row[9]), word(row[10], row[10]), row[11], row[12], tuple(copies), disks,
    )  # fmt: skip


def _copy(row: Any, uses: dict[str, list[_Use]], words: dict[str, str]) -> observed.Copy:
    number, unit = row[14], row[16]
    used = uses.get(row[2])
    busy = used is not None and any(
        copy == number or place == unit or (copy is None and place is None) for copy, place in used
    )
    word = words.setdefault
    return observed.Copy(
        number, word(row[15], row[15]), word(unit, unit), word(row[17], row[17]), tables.to_moment(row[18]), row[19],
        row[20], busy, bool(row[21]),
    )  # fmt: skip


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
