"""Approvals given by command, and the promises that approvals have ended.

``holdfast approve`` records the first; the controller records the second in one transaction before any copy that an
approval lets go is touched, so that a process that dies in between leaves each copy either held or let go. A release
is void once its rule is promised anew (``configurations``), or once more copies come back with a unit (``imports``).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

import sqlalchemy as sa

from reconciler.catalog import audits, database, fences, tables
from reconciler.planning import promises, sightings


def record(db: database.Database, approval: sightings.Approval, now: dt.datetime, actor: str) -> None:
    """Keep an approval given by command, and who gave it."""
    values = dataclasses.asdict(approval)
    with db.writing() as connection:
        connection.execute(tables.APPROVALS.insert().values(**values, at=now))
        details = {"copies": approval.copies, "by": approval.by, "until": approval.until.isoformat(),
                   "reason": approval.reason}  # fmt: skip
        audits.record(connection, now=now, actor=actor, event="Approved", object=approval.digest, details=details)


def approvals(db: database.Database) -> tuple[sightings.Approval, ...]:
    """Every approval given by command, oldest first, those that have run out included."""
    columns = tables.APPROVALS.c
    query = sa.select(columns.digest, columns.copies, columns.by, columns.until, columns.reason)
    with db.reading() as connection:
        rows = connection.execute(query.order_by(columns.number)).all()
    return tuple(sightings.Approval(**row._mapping) for row in rows)


def spend(db: database.Database, digest: str, now: dt.datetime, actor: str) -> None:
    """A guarded change that was approved by command is in force: the same omission once more asks once more."""
    with db.writing() as connection:
        gone = connection.execute(tables.APPROVALS.delete().where(tables.APPROVALS.c.digest == digest)).rowcount
        if gone:
            audits.record(connection, now=now, actor=actor, event="ApprovalSpent", object=digest)


def release(
    db: database.Database,
    releases: Iterable[sightings.Release],
    now: dt.datetime,
    actor: str,
    fence: int | None = None,
) -> None:
    """End promises as approved, all of them or none; those that are known already stay as they are.

    Raises ``Superseded`` for a stale fence.
    """
    table = tables.RELEASES
    with db.writing() as connection:
        fences.check(connection, fence)
        known = set(releases_in(connection))
        fresh = [one for one in releases if one not in known]
        for one in fresh:
            same = sa.and_(
                table.c.lifecycle == one.lifecycle, table.c.operation == one.operation, table.c.before == one.before,
                table.c.client_id == one.client, table.c.up_to == one.up_to,
            )  # fmt: skip
            connection.execute(table.delete().where(same))
            connection.execute(
                table.insert().values(
                    lifecycle=one.lifecycle, operation=one.operation, before=one.before, client_id=one.client,
                    up_to=one.up_to, digest=one.digest, by=one.by, at=now,
                )
            )  # fmt: skip
        for digest in sorted({one.digest for one in fresh}):
            mine = [one for one in fresh if one.digest == digest]
            details = {"by": mine[0].by, "clients": sorted({one.client for one in mine})}
            audits.record(connection, now=now, actor=actor, event="PromisesReleased", object=digest, details=details)


def releases(db: database.Database) -> tuple[sightings.Release, ...]:
    """The promises that approvals have ended, oldest first."""
    with db.reading() as connection:
        return releases_in(connection)


def releases_in(connection: sa.Connection) -> tuple[sightings.Release, ...]:
    """The same within the caller's transaction."""
    table = tables.RELEASES.c
    rows = connection.execute(sa.select(tables.RELEASES).order_by(table.number)).all()
    return tuple(
        sightings.Release(
            lifecycle=row.lifecycle, operation=row.operation, before=row.before, client=row.client_id,
            up_to=row.up_to, digest=row.digest, by=row.by,
        )
        for row in rows
    )  # fmt: skip


def promised_anew(connection: sa.Connection, lifecycle: str, operation: str, before: str) -> None:
    """A rule is in force again: what was let go of its promise is promised it anew, whatever was approved once."""
    table = tables.RELEASES
    again = (table.c.lifecycle == lifecycle, table.c.operation == operation, table.c.before == before)
    connection.execute(table.delete().where(*again))


def come_back(connection: sa.Connection, client_id: str) -> None:
    """A copy of a client is about to come back with a unit: nobody has approved its expiry yet.

    What came back earlier and was approved since is a copy like others, and must not wait again with it.
    """
    table, copy = tables.RELEASES, tables.COPIES
    every = table.delete().where(table.c.before == promises.NONE, table.c.client_id == promises.ANY)
    if connection.execute(every).rowcount:
        connection.execute(copy.update().where(copy.c.imported.is_(True)).values(imported=False))
    connection.execute(table.delete().where(table.c.before == promises.NONE, table.c.client_id == client_id))
