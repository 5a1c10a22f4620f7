"""Snapshots at sources: noted before they are made, forgotten once they are gone, so that none is left behind.

``operations`` gives a backup's source a ledger that writes here; ``planning`` finds those whose job is dead.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

import sqlalchemy as sa

from reconciler.catalog import audits, database, jobs, tables, workers
from reconciler.planning import sightings, worktypes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """One snapshot with what reads it."""

    snapshot: sightings.Snapshot
    #: Workers, as ``workers.of`` names them.
    readers: tuple[str, ...]


def intend(db: database.Database, snapshot: sightings.Snapshot, now: dt.datetime) -> None:
    """A snapshot is about to be made; repeating it changes nothing."""
    row: dict[str, object] = {
        "id": snapshot.id, "vcenter": snapshot.vcenter, "client_id": snapshot.client, "machine": snapshot.machine,
        "place": snapshot.place, "job": snapshot.job, "reference": snapshot.reference, "readers": [], "since": now,
    }  # fmt: skip
    with db.writing() as connection:
        known = connection.scalar(sa.select(tables.SNAPSHOTS.c.id).where(tables.SNAPSHOTS.c.id == snapshot.id))
        if known is None:
            connection.execute(tables.SNAPSHOTS.insert().values(**row))


def made(db: database.Database, id: str, reference: str) -> None:
    """The snapshot exists, and this is the vCenter's name of it."""
    with db.writing() as connection:
        connection.execute(tables.SNAPSHOTS.update().where(tables.SNAPSHOTS.c.id == id).values(reference=reference))


def read_by(db: database.Database, id: str, process: int) -> None:
    """A process of this host reads it from now on."""
    with db.writing() as connection:
        readers = connection.scalar(sa.select(tables.SNAPSHOTS.c.readers).where(tables.SNAPSHOTS.c.id == id))
        if readers is not None:
            more = [*readers, workers.of(process)]
            connection.execute(tables.SNAPSHOTS.update().where(tables.SNAPSHOTS.c.id == id).values(readers=more))


def gone(db: database.Database, id: str) -> None:
    """It was removed, or never made."""
    with db.writing() as connection:
        connection.execute(tables.SNAPSHOTS.delete().where(tables.SNAPSHOTS.c.id == id))


def removed(db: database.Database, snapshot: sightings.Snapshot, now: dt.datetime, actor: str) -> None:
    """A snapshot that was left over was removed: forget it, and say so in the audit."""
    details = {
        "machine": snapshot.machine, "clientId": snapshot.client, "vcenter": snapshot.vcenter,
        "snapshot": snapshot.reference, "job": snapshot.job,
    }  # fmt: skip
    with db.writing() as connection:
        connection.execute(tables.SNAPSHOTS.delete().where(tables.SNAPSHOTS.c.id == snapshot.id))
        audits.record(
            connection, now=now, actor=actor, event="SnapshotRemoved", object=f"snapshot/{snapshot.id}", details=details
        )


def over(db: database.Database, shown: Iterable[sightings.Snapshot], since: dt.datetime) -> frozenset[str]:
    """Ids among ``shown`` whose job ended, or that were removed, at ``since`` or later: what was seen may be gone."""
    job = tables.JOBS.c
    query = sa.select(job.number, job.type, job.state, job.address).where(job.finished_at >= since)
    with db.reading() as connection:
        rows = connection.execute(query).all()
    ended = {jobs.job_id(row.number) for row in rows}
    gone = {
        row.address.rpartition("/")[2]
        for row in rows
        if row.type == worktypes.Type.REMOVE_SNAPSHOT and row.state == "Succeeded"
    }
    return frozenset(one.id for one in shown if one.job in ended or one.id in gone)


def noted(db: database.Database) -> tuple[sightings.Snapshot, ...]:
    """Every snapshot that is not known to be gone, by time."""
    return tuple(one.snapshot for one in _read(db, None))


def find(db: database.Database, id: str) -> Noted | None:
    """One of them with its readers, None where it is gone."""
    return next(iter(_read(db, id)), None)


def _read(db: database.Database, id: str | None) -> list[Noted]:
    row = tables.SNAPSHOTS.c
    query = sa.select(tables.SNAPSHOTS).order_by(row.since, row.id)
    if id is not None:
        query = query.where(row.id == id)
    with db.reading() as connection:
        rows = connection.execute(query).all()
    return [
        Noted(
            snapshot=sightings.Snapshot(
                id=one.id,
                vcenter=one.vcenter,
                client=one.client_id,
                machine=one.machine,
                job=one.job,
                place=one.place,
                reference=one.reference,
                since=one.since,
            ),
            readers=tuple(one.readers),
        )
        for one in rows
    ]
