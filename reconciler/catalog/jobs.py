"""Jobs as rows: what was attempted, by whom, how far it came. The engine that runs them is ``reconciler.jobs``.

An address is unique among live jobs (Queued or Running), so two processes cannot do the same work at once: ``enqueue``
decides within one writing transaction, and a partial unique index stands behind it. Rows are never deleted. A job's
id is its row number, ``j-000123``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from reconciler.base import errors, meters
from reconciler.catalog import audits, database, fences, servers, tables, workers
from reconciler.planning import sightings, worktypes

#: Silence after which a worker on another host counts as dead.
SILENCE: Final = dt.timedelta(seconds=60)

#: States of attempts that did not succeed.
FAILED: Final = ("Failed", "Partial", "Cancelled", "Lost")
_FINISHED: Final = ("Succeeded", *FAILED)
_READERS: Final = frozenset({worktypes.Type.DUPLICATE, worktypes.Type.VERIFY, worktypes.Type.RESTORE, worktypes.MOUNT})
#: Of those, what goes on with another copy where the one it would begin with leaves.
_PASSING: Final = frozenset({worktypes.Type.RESTORE, worktypes.MOUNT})
_GOING: Final = frozenset({"Expiring", "Expired"})


class AddressTaken(errors.CatalogError):
    """A live job has the address already."""


class MachineBusy(AddressTaken):
    """A machine is written over while it is backed up, or the other way round."""


class CopyLeaving(errors.CatalogError):
    """The copy that the job would read is being expired."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JobRow:
    """One attempt at one action."""

    #: ``j-000123``.
    id: str
    address: str
    #: Backup, Duplicate, Expire, Reclaim, Verify, Restore, RemoveSnapshot or Mount.
    type: str
    #: Queued, Running, Succeeded, Partial, Failed, Cancelled or Lost.
    state: str
    #: From 1.
    attempt: int
    #: ``workers.this()`` of the process that runs it.
    worker: str
    client_id: str | None
    #: Slug of the client.
    client: str | None
    policy: str | None
    image: str | None
    copy: int | None
    unit: str | None
    source_unit: str | None
    media_server: str | None
    #: Image whose changes are asked for.
    parent: str | None
    #: What it was expected to add to ``unit``.
    expected_bytes: int | None
    #: What jobs that follow one another in one slot have in common.
    batch: str | None
    queued_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    #: Seconds from start to end.
    wall_seconds: float | None
    reading: meters.Reading
    error_code: str | None
    error_message: str | None
    cancel_requested: bool
    heartbeat: dt.datetime


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """One line of a job's log."""

    at: dt.datetime
    line: str


def enqueue(
    db: database.Database,
    *,
    address: str,
    type: str,
    attempt: int,
    worker: str,
    now: dt.datetime,
    client_id: str | None = None,
    policy: str | None = None,
    image: str | None = None,
    copy: int | None = None,
    unit: str | None = None,
    source_unit: str | None = None,
    media_server: str | None = None,
    parent: str | None = None,
    expected_bytes: int | None = None,
    batch: str | None = None,
    fence: int | None = None,
) -> str:
    """Record a new Queued job; its id.

    Raises ``AddressTaken`` while a live job has the address, ``MachineBusy`` where the machine would be backed up while
    a command restores it in place, or the other way round, ``CopyLeaving`` where the copy to be read, or the base to
    build on, is being expired, ``Superseded`` for a stale fence.
    """
    row = {
        "address": address, "type": str(type), "state": "Queued", "attempt": attempt, "worker": worker,
        "client_id": client_id, "policy": policy, "image": image, "copy_number": copy, "unit": unit,
        "source_unit": source_unit, "media_server": media_server, "parent": parent, "queued_at": now,
        "expected_bytes": expected_bytes, "batch": batch,
        "reading": {}, "cancel_requested": False,
    }  # fmt: skip
    with db.writing() as connection:
        fences.check(connection, fence)
        live = sa.select(tables.JOBS.c.number).where(
            tables.JOBS.c.address == address, tables.JOBS.c.state.in_(tables.LIVE)
        )
        taken = connection.scalar(live)
        if taken is not None:
            raise AddressTaken(f"{address}: job {job_id(taken)} is at it already", hint="wait for it, or cancel it")
        if client_id is not None:
            _require_alone(connection, str(type), address, client_id)
        if type in _READERS and image is not None:
            one = None if copy is None or type in _PASSING else tables.COPIES.c.number == copy
            _require_staying(connection, image, one)
        if parent is not None and unit is not None:
            _require_staying(connection, parent, tables.COPIES.c.unit == unit)
        beat = _beat(db, connection, now)
        created = connection.execute(tables.JOBS.insert().values(**row, heartbeat=beat)).inserted_primary_key
    if created is None:
        raise errors.CatalogError(f"{address}: the catalog gave no number to a new job")
    return job_id(created[0])


def start(db: database.Database, id: str, now: dt.datetime) -> bool:
    """Queued becomes Running. False if the job is no longer Queued, such as after it was cancelled or lost."""
    with db.writing() as connection:
        beat = _beat(db, connection, now)
        return _change(connection, id, ("Queued",), state="Running", started_at=now, heartbeat=beat)


class Beat(NamedTuple):
    """What a heartbeat heard of its jobs; ids."""

    #: Somebody asked them to stop.
    cancelled: frozenset[str]
    #: Their rows have ended: somebody took the process for dead.
    ended: frozenset[str]


def progress(db: database.Database, rows: Iterable[tuple[str, meters.Reading]], now: dt.datetime) -> Beat:
    """Write counters and heartbeat of live jobs in one transaction; what was heard of them."""
    wanted, ended = [], set()
    with db.writing() as connection:
        beat = _beat(db, connection, now)
        for id, reading in rows:
            if not _change(connection, id, tables.LIVE, reading=dataclasses.asdict(reading), heartbeat=beat):
                ended.add(id)
            wanted.append(job_number(id))
        flagged = sa.select(tables.JOBS.c.number).where(
            tables.JOBS.c.cancel_requested.is_(True), tables.JOBS.c.state.in_(tables.LIVE)
        )
        cancelled = frozenset(job_id(number) for number in connection.scalars(flagged) if number in wanted)
    return Beat(cancelled, frozenset(ended))


def has_ended(connection: sa.Connection, id: str) -> bool:
    """Whether a job's row has its last state, within the caller's transaction."""
    state = connection.scalar(sa.select(tables.JOBS.c.state).where(tables.JOBS.c.number == job_number(id)))
    return state is not None and state not in tables.LIVE


def annotate(
    db: database.Database, id: str, *, image: str | None = None, copy: int | None = None, unit: str | None = None
) -> None:
    """Add what became known while the job ran; None leaves a field as it is."""
    known = {"image": image, "copy_number": copy, "unit": unit}
    values = {name: value for name, value in known.items() if value is not None}
    if values:
        with db.writing() as connection:
            _change(connection, id, (*tables.LIVE, *_FINISHED), **values)


def finish(
    db: database.Database,
    id: str,
    *,
    state: str,
    error: tuple[str, str] | None,
    reading: meters.Reading,
    wall_seconds: float,
    now: dt.datetime,
) -> bool:
    """A live job ends as Succeeded, Partial, Failed, Cancelled or Lost, with code and message of its error.

    False if it had ended already: the first end stands. Raises ``ValueError`` for another state.
    """
    if state not in _FINISHED:
        raise ValueError(f"{state} is not the end of a job")
    code, message = error or (None, None)
    with db.writing() as connection:
        return _change(
            connection, id, tables.LIVE, state=state, error_code=code, error_message=message, finished_at=now,
            reading=dataclasses.asdict(reading), wall_seconds=wall_seconds, heartbeat=now,
        )  # fmt: skip


def request_cancel(db: database.Database, id: str, now: dt.datetime, actor: str) -> JobRow:
    """Ask a live job to stop; its worker sees it at its next heartbeat. The row as it is then. Raises ``NotFound``."""
    with db.writing() as connection:
        if _change(connection, id, tables.LIVE, cancel_requested=True):
            audits.record(connection, now=now, actor=actor, event="CancelRequested", object=f"job/{id}")
        return _one(connection, id)


def get(db: database.Database, id: str) -> JobRow:
    """One job. Raises ``NotFound``."""
    with db.reading() as connection:
        return _one(connection, id)


def list_jobs(
    db: database.Database,
    *,
    state: str | Iterable[str] | None = None,
    address: str | None = None,
    type: str | None = None,
    client_id: str | None = None,
    policy: str | None = None,
    limit: int | None = None,
) -> tuple[JobRow, ...]:
    """Jobs that match all that is given, oldest first; with ``limit``, the newest of them."""
    query = _select().order_by(tables.JOBS.c.number.desc()).limit(limit)
    if state is not None:
        query = query.where(tables.JOBS.c.state.in_([state] if isinstance(state, str) else list(state)))
    given = {"address": address, "type": type, "client_id": client_id, "policy": policy}
    for name, value in given.items():
        if value is not None:
            query = query.where(tables.JOBS.c[name] == value)
    with db.reading() as connection:
        rows = connection.execute(query).all()
    return tuple(_row(row._mapping) for row in reversed(rows))


def last_used(db: database.Database) -> dict[str, dt.datetime]:
    """By unit: when a job that writes a copy onto it was last given its place. Looks at every job."""
    job = tables.JOBS.c
    writing = (job.unit.is_not(None), job.type.in_(("Backup", "Duplicate")))
    with db.reading() as connection:
        rows = connection.execute(sa.select(job.unit, sa.func.max(job.queued_at)).where(*writing).group_by(job.unit))
        return {row[0]: row[1] for row in rows}


def live(db: database.Database) -> tuple[sightings.Job, ...]:
    """Jobs that are Queued or Running, oldest first, as decisions see them (``client`` is the client's id)."""
    query = sa.select(tables.JOBS).where(tables.JOBS.c.state.in_(tables.LIVE)).order_by(tables.JOBS.c.number)
    with db.reading() as connection:
        rows = connection.execute(query).all()
    return tuple(
        sightings.Job(
            id=job_id(row.number),
            address=row.address,
            type=row.type,
            state=row.state,
            policy=row.policy,
            client=row.client_id,
            image=row.image,
            unit=row.unit,
            source_unit=row.source_unit,
            media_server=row.media_server,
            since=row.started_at or row.queued_at,
            expected_bytes=row.expected_bytes,
            stored_bytes=row.reading.get("stored", 0),
            batch=row.batch,
        )
        for row in rows
    )


def lose_dead(
    db: database.Database, *, now: dt.datetime, alive: Callable[[str], bool] = workers.alive
) -> tuple[JobRow, ...]:
    """Live jobs whose worker is dead become Lost, and are returned so.

    On this host ``alive`` says whether the worker's process lives; on another host, silence for ``SILENCE`` does.
    """
    query = sa.select(tables.JOBS).where(tables.JOBS.c.state.in_(tables.LIVE)).order_by(tables.JOBS.c.number)
    with db.writing() as connection:
        beat = _beat(db, connection, now)
        dead = [
            job_id(row.number)
            for row in connection.execute(query).all()
            if (not alive(row.worker) if workers.local(row.worker) else beat - row.heartbeat > SILENCE)
        ]
        for id in dead:
            _change(
                connection, id, tables.LIVE, state="Lost", finished_at=now, error_code="Lost",
                error_message="the process that ran it ended without a word",
            )  # fmt: skip
        return tuple(_one(connection, id) for id in dead)


def _beat(db: database.Database, connection: sa.Connection, now: dt.datetime) -> dt.datetime:
    """Now, as heartbeats tell it: by the clock of the server, where hosts share it and their own clocks differ."""
    return servers.clock(connection) if db.shared else now


def log(db: database.Database, id: str, line: str, now: dt.datetime) -> None:
    """Add one line to the job's log. Raises ``NotFound``."""
    with db.writing() as connection:
        number = _one_number(connection, id)
        connection.execute(tables.JOB_LINES.insert().values(job=number, at=now, line=line))


def logs(db: database.Database, id: str) -> tuple[LogLine, ...]:
    """The job's log in order. Raises ``NotFound``."""
    lines = tables.JOB_LINES
    with db.reading() as connection:
        number = _one_number(connection, id)
        query = sa.select(lines.c.at, lines.c.line).where(lines.c.job == number).order_by(lines.c.number)
        return tuple(LogLine(at=at, line=line) for at, line in connection.execute(query))


def job_id(number: int) -> str:
    """The id of a row number."""
    return f"j-{number:06d}"


def job_number(id: str) -> int:
    """The row number of an id. Raises ``NotFound`` for a text that is none."""
    prefix, _, digits = id.partition("-")
    if prefix != "j" or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise errors.NotFound(f"there is no job {id}", hint="holdfast get jobs lists them")
    return int(digits)


def _change(connection: sa.Connection, id: str, states: Iterable[str], **values: Any) -> bool:
    statement = (
        tables.JOBS.update()
        .where(tables.JOBS.c.number == job_number(id), tables.JOBS.c.state.in_(list(states)))
        .values(**values)
    )
    return connection.execute(statement).rowcount > 0


def _require_alone(connection: sa.Connection, type: str, address: str, client_id: str) -> None:
    """What the loop starts itself it keeps apart; it does not know when a command begins."""
    job = tables.JOBS.c
    other = sa.and_(job.type == worktypes.Type.RESTORE, job.address.endswith(worktypes.IN_PLACE))
    if type == worktypes.Type.RESTORE and address.endswith(worktypes.IN_PLACE):
        other = sa.or_(job.type == worktypes.Type.BACKUP, other)
    elif type != worktypes.Type.BACKUP:
        return
    row = connection.execute(
        sa.select(job.number, job.address).where(job.client_id == client_id, job.state.in_(tables.LIVE), other)
    ).first()
    if row is not None:
        raise MachineBusy(
            f"{address}: job {job_id(row.number)} ({row.address}) is at the machine",
            hint=f"wait for it, or: holdfast cancel {job_id(row.number)}",
        )


def _require_staying(connection: sa.Connection, image: str, which: sa.ColumnElement[bool] | None) -> None:
    query = sa.select(tables.COPIES.c.state).where(tables.COPIES.c.image_id == image)
    if which is not None:
        query = query.where(which)
    states = set(connection.scalars(query))
    if states and states <= _GOING:
        raise CopyLeaving(f"image {image}: the copy that would be read is being expired", hint="use another copy")


def _select() -> sa.Select[Any]:
    slug = tables.CLIENTS.c.slug.label("client")
    return sa.select(tables.JOBS, slug).join_from(
        tables.JOBS, tables.CLIENTS, tables.JOBS.c.client_id == tables.CLIENTS.c.id, isouter=True
    )


def _one_number(connection: sa.Connection, id: str) -> int:
    number = connection.scalar(sa.select(tables.JOBS.c.number).where(tables.JOBS.c.number == job_number(id)))
    if number is None:
        raise errors.NotFound(f"there is no job {id}", hint="holdfast get jobs lists them")
    return int(number)


def _one(connection: sa.Connection, id: str) -> JobRow:
    row = connection.execute(_select().where(tables.JOBS.c.number == job_number(id))).first()
    if row is None:
        raise errors.NotFound(f"there is no job {id}", hint="holdfast get jobs lists them")
    return _row(row._mapping)


def _row(found: Mapping[Any, Any]) -> JobRow:
    values = dict(found)
    return JobRow(
        id=job_id(values.pop("number")),
        copy=values.pop("copy_number"),
        reading=meters.Reading(**values.pop("reading")),
        **values,
    )
