"""Asking the living controller to do something, and reading what came of it.

Commands ``add`` a request and watch ``outcome``; the loop takes what is ``pending`` and ``finish``es it. A request
that nobody has answered survives the controller's death: the next one finds it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
import sqlmodel

from reconciler.base import errors
from reconciler.catalog import audits, counters, database, tables


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RequestRow:
    """One request that waits for its answer."""

    #: ``r-000123``.
    id: str
    #: Backup, Apply or Reload.
    kind: str
    payload: Mapping[str, Any]
    at: dt.datetime
    #: Who asked.
    actor: str


def add(db: database.Database, kind: str, payload: Mapping[str, Any], now: dt.datetime, actor: str) -> str:
    """Record a request; its id. ``payload`` is JSON."""
    with db.writing() as connection:
        return _add(connection, kind, payload, now, actor)


def ask_backup(db: database.Database, policy: str, client: str, now: dt.datetime, actor: str) -> str:
    """Record a request for a backup of one client (its id); the request's id.

    It notes the newest image and the newest job there are: what comes after them serves it, whatever the clocks say.
    """
    with db.writing() as connection:
        image = counters.current(connection, counters.IMAGE_SEQUENCE)
        job = int(connection.scalar(sa.select(sa.func.max(tables.JOBS.c.number))) or 0)
        payload = {"policy": policy, "client": client, "afterImage": image, "afterJob": job}
        return _add(connection, "Backup", payload, now, actor)


def _add(connection: sa.Connection, kind: str, payload: Mapping[str, Any], now: dt.datetime, actor: str) -> str:
    with sqlmodel.Session(connection) as session:
        row = tables.RequestRecord(kind=kind, payload=dict(payload), at=now, actor=actor)
        session.add(row)
        session.flush()
        id = _id(row)
        audits.record(connection, now=now, actor=actor, event="Requested", object=f"{kind}/{id}", details=payload)
    return id


def pending(db: database.Database, kind: str | None = None) -> tuple[RequestRow, ...]:
    """Requests without an answer, oldest first."""
    row = tables.RequestRecord
    query = sqlmodel.select(row).where(sqlmodel.col(row.finished_at).is_(None)).order_by(sqlmodel.col(row.number))
    if kind is not None:
        query = query.where(row.kind == kind)
    with db.reading() as connection, sqlmodel.Session(connection) as session:
        return tuple(
            RequestRow(id=_id(one), kind=one.kind, payload=one.payload, at=one.at, actor=one.actor)
            for one in session.exec(query)
        )


def finish(db: database.Database, id: str, outcome: Mapping[str, Any], now: dt.datetime) -> None:
    """Answer a request; ``outcome`` is JSON. The first answer stands. Raises ``NotFound``."""
    with db.writing() as connection, sqlmodel.Session(connection) as session:
        row = _get(session, id)
        if row.finished_at is None:
            row.finished_at, row.outcome = now, dict(outcome)
            session.add(row)
            session.flush()


def outcome(db: database.Database, id: str) -> dict[str, Any] | None:
    """What came of a request, None while nobody has answered. Raises ``NotFound``."""
    with db.reading() as connection, sqlmodel.Session(connection) as session:
        row = _get(session, id)
        return None if row.finished_at is None else dict(row.outcome)


def _id(row: tables.RequestRecord) -> str:
    return f"r-{row.number:06d}"


def _get(session: sqlmodel.Session, id: str) -> tables.RequestRecord:
    prefix, _, digits = id.partition("-")
    known = digits.isascii() and digits.isdigit() and len(digits) <= 18 and prefix == "r"
    row = session.get(tables.RequestRecord, int(digits)) if known else None
    if row is None:
        raise errors.NotFound(f"there is no request {id}")
    return row
