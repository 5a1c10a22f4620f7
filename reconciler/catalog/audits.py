"""Who did what, when: an append-only trail, written in the transaction that did it.

Every module that changes a fact worth asking about calls ``record`` with its own connection, so that the trail and the
facts cannot disagree. Triggers in the database refuse to change or delete a line. The number of the newest line also
tells whether anything worth a dump has happened (``dumps.mark``).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from reconciler.catalog import database, tables

#: Events of whoever keeps the estate; commands may come from hosts with other clocks.
_CONTROLLERS: Final = ("LeaseTaken", "ImageCommitted", "CopyCommitted", "CopyExpired")
#: Lines that are read at once.
_PORTION: Final = 500


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the trail."""

    #: Counts up from 1.
    number: int
    at: dt.datetime
    #: Who: a user, or the name of a part of Holdfast.
    actor: str
    #: What, in CamelCase.
    event: str
    #: To what, such as ``StorageUnit/emprise-a`` or ``copy/img-1/2``.
    object: str
    details: Mapping[str, Any]


def record(
    connection: sa.Connection,
    *,
    now: dt.datetime,
    actor: str,
    event: str,
    object: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add one line within the caller's writing transaction."""
    connection.execute(
        tables.AUDIT.insert().values(at=now, actor=actor, event=event, object=object, details=dict(details or {}))
    )


def entries(db: database.Database, limit: int | None = None) -> tuple[Entry, ...]:
    """The trail in order; with ``limit``, its newest lines only."""
    newest = sa.select(tables.AUDIT).order_by(tables.AUDIT.c.number.desc()).limit(limit)
    with db.reading() as connection:
        rows = connection.execute(newest).all()
    return tuple(Entry(**row._mapping) for row in reversed(rows))


def times_back(db: database.Database) -> Iterator[dt.datetime]:
    """When controllers did what they did, the newest line first; read in portions, as who asks seldom asks far."""
    line = tables.AUDIT.c
    last: int | None = None
    while True:
        query = sa.select(line.number, line.at).where(line.event.in_(_CONTROLLERS)).order_by(line.number.desc())
        if last is not None:
            query = query.where(line.number < last)
        with db.reading() as connection:
            rows = connection.execute(query.limit(_PORTION)).all()
        yield from (row.at for row in rows)
        if len(rows) < _PORTION:
            return
        last = rows[-1].number


def newest(connection: sa.Connection, *, beside: Collection[str] = ()) -> int:
    """Number of the newest line, those of the events in ``beside`` left out; 0 where there is none."""
    chosen = sa.select(sa.func.max(tables.AUDIT.c.number)).where(tables.AUDIT.c.event.not_in(list(beside)))
    return int(connection.scalar(chosen) or 0)
