"""The records of restores: what was restored, from where, where to, by whom and why, and whether it is done.

A ``Restore`` of the manifests has one record per digest of its spec, so that it is done once; a restore by command has
one each. Both are made before the first byte is written and ended after the last one is proven.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from reconciler.catalog import audits, database, jobs, tables
from reconciler.planning import sightings

_EVENTS: Final = {"Verified": "Restored", "Partial": "Salvaged", "Failed": "RestoreFailed"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A restore that is about to begin."""

    #: Of the manifest; None for a command.
    name: str | None
    #: Of what was asked.
    digest: str
    client_id: str
    image: str
    copy: int
    unit: str
    target: str
    format: str
    by: str
    reason: str
    job: str | None
    at: dt.datetime


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Overwriting:
    """A ``Restore`` of the manifests that replaces what lies at its target, or makes a machine."""

    name: str
    #: Of what it says: it is done once for each.
    digest: str
    client: str
    image: str | None
    target: str
    format: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RestoreRow:
    """One record."""

    number: int
    name: str | None
    digest: str
    #: Running, Verified, Partial (of an image that was salvaged, with bytes missing) or Failed.
    state: str
    client_id: str
    image: str
    copy: int
    unit: str
    target: str
    format: str
    by: str
    reason: str
    job: str | None
    started_at: dt.datetime
    finished_at: dt.datetime | None
    message: str
    disks: Sequence[Mapping[str, Any]]


def begin(db: database.Database, begun: Begun) -> int:
    """Record that a restore begins; its number. Of a manifest's, an earlier attempt's record is taken over."""
    restore = tables.RESTORES
    values: dict[str, Any] = {
        "name": begun.name, "digest": begun.digest, "state": "Running", "client_id": begun.client_id,
        "image": begun.image, "copy_number": begun.copy, "unit": begun.unit, "target": begun.target,
        "format": begun.format, "by": begun.by, "reason": begun.reason, "job": begun.job, "started_at": begun.at,
        "finished_at": None, "message": "", "disks": [],
    }  # fmt: skip
    with db.writing() as connection:
        if begun.name is not None:
            chosen = sa.and_(restore.c.name == begun.name, restore.c.digest == begun.digest)
            known = connection.scalar(sa.select(restore.c.number).where(chosen))
            if known is not None:
                connection.execute(restore.update().where(restore.c.number == known).values(**values))
                return int(known)
        done = connection.execute(restore.insert().values(**values).returning(restore.c.number))
        return int(done.scalar_one())


def end(
    db: database.Database,
    number: int,
    *,
    state: str,
    now: dt.datetime,
    message: str = "",
    copy: int | None = None,
    unit: str | None = None,
    disks: Sequence[Mapping[str, Any]] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record how a restore ended, Verified, Partial or Failed, and say so in the audit.

    ``copy`` and ``unit``: what it was read from in the end; ``details`` go into the audit as well.
    """
    restore = tables.RESTORES
    read = {key: value for key, value in (("copy_number", copy), ("unit", unit)) if value is not None}
    with db.writing() as connection:
        connection.execute(
            restore.update()
            .where(restore.c.number == number)
            .values(state=state, finished_at=now, message=message, disks=[dict(disk) for disk in disks], **read)
        )
        row = connection.execute(sa.select(restore).where(restore.c.number == number)).one()
        known = {"copy": row.copy_number, "target": row.target, "reason": row.reason, "restore": row.name}
        if message:
            known["message"] = message
        audits.record(
            connection, now=now, actor=row.by, event=_EVENTS[state],
            object=row.image, details={**known, **(details or {})},
        )  # fmt: skip


def take_as_made(
    connection: sa.Connection, overwriting: Iterable[Overwriting], words: str, now: dt.datetime, actor: str
) -> list[str]:
    """Record restores that have no record as done, because nobody knows whether they were; their names."""
    restore = tables.RESTORES
    taken = []
    for one in overwriting:
        known = sa.select(restore.c.number).where(restore.c.name == one.name, restore.c.digest == one.digest)
        if connection.scalar(known) is None:
            connection.execute(
                restore.insert().values(
                    name=one.name, digest=one.digest, state="Verified", client_id=one.client, image=one.image or "",
                    copy_number=0, unit="", target=one.target, format=one.format, by=actor, reason="", job=None,
                    started_at=now, finished_at=now, disks=[], message=words,
                )
            )  # fmt: skip
            taken.append(one.name)
    return taken


def restores(db: database.Database) -> tuple[sightings.Restoring, ...]:
    """The records of manifests' restores, as decisions read them."""
    restore = tables.RESTORES
    with db.reading() as connection:
        rows = connection.execute(
            sa.select(restore).where(restore.c.name.is_not(None)).order_by(restore.c.number)
        ).all()
    return tuple(
        sightings.Restoring(
            name=row.name,
            digest=row.digest,
            state=row.state,
            at=row.finished_at or row.started_at,
            message=row.message,
            image=row.image,
        )
        for row in rows
    )


def list_restores(db: database.Database) -> tuple[RestoreRow, ...]:
    """Every record, oldest first. One whose worker is gone has failed, whatever it says."""
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.RESTORES).order_by(tables.RESTORES.c.number)).all()
        live = connection.scalars(sa.select(tables.JOBS.c.number).where(tables.JOBS.c.state.in_(tables.LIVE)))
        known = {jobs.job_id(number) for number in live} | {None}
    return tuple(_row(row, dead=row.state == "Running" and row.job not in known) for row in rows)


def _row(row: sa.Row[Any], *, dead: bool) -> RestoreRow:
    return RestoreRow(
        number=row.number, name=row.name, digest=row.digest, state="Failed" if dead else row.state,
        client_id=row.client_id, image=row.image, copy=row.copy_number, unit=row.unit, target=row.target,
        format=row.format, by=row.by, reason=row.reason, job=row.job, started_at=row.started_at,
        finished_at=row.finished_at, message="its worker is gone" if dead else row.message, disks=row.disks,
    )  # fmt: skip
