"""The alarms that stand and which channel was told of them, so that a restart does not tell them again.

``controller.notifications`` reads and writes them around each telling; ``planning.tellings`` decides. Neither the
records nor the trail hold a channel's URL: a channel is its scheme and its place in the settings, such as ``mailto#1``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from reconciler.base import times
from reconciler.catalog import audits, database, tables
from reconciler.planning import alarms, tellings


def records(db: database.Database) -> dict[str, tellings.Record]:
    """Every record, by key."""
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.ALARMS).order_by(tables.ALARMS.c.key)).all()
    return {
        row.key: tellings.Record(
            alarm=alarms.Alarm(key=row.key, severity=row.severity, title=row.title, message=row.message),
            since=row.since,
            over_at=row.over_at,
            ears={channel: _ear(**ear) for channel, ear in row.ears.items()},
        )
        for row in rows
    }


def keep(db: database.Database, before: tellings.Records, after: tellings.Records) -> None:
    """Write what differs between two states of the records; nothing where nothing does."""
    gone = [key for key in before if after.get(key) != before[key]]
    new = [_row(after[key]) for key in after if before.get(key) != after[key]]
    if not gone and not new:
        return
    with db.writing() as connection:
        for key in gone:
            connection.execute(tables.ALARMS.delete().where(tables.ALARMS.c.key == key))
        if new:
            connection.execute(tables.ALARMS.insert(), new)


def audit(
    db: database.Database, *, channel: str, told: bool, keys: Mapping[str, str], now: dt.datetime, actor: str
) -> None:
    """Note in the trail that a channel took, or did not take, these alarms: key -> Begun, Standing or Over."""
    event = "AlarmTold" if told else "AlarmNotTold"
    with db.writing() as connection:
        audits.record(
            connection, now=now, actor=actor, event=event, object=f"channel/{channel}", details={"alarms": dict(keys)}
        )


def _ear(toldAt: int | None, failures: int, triedAt: int | None) -> tellings.Ear:  # noqa: N803 - as they are kept
    return tellings.Ear(
        told_at=times.to_moment(toldAt) if toldAt is not None else None,
        failures=failures,
        tried_at=times.to_moment(triedAt) if triedAt is not None else None,
    )


def _row(record: tellings.Record) -> dict[str, Any]:
    alarm = record.alarm
    return {
        "key": alarm.key, "severity": alarm.severity, "title": alarm.title, "message": alarm.message,
        "since": record.since, "told_at": record.told_at, "over_at": record.over_at,
        "ears": {
            channel: {
                "toldAt": times.to_number(ear.told_at) if ear.told_at is not None else None,
                "failures": ear.failures,
                "triedAt": times.to_number(ear.tried_at) if ear.tried_at is not None else None,
            }
            for channel, ear in record.ears.items()
        },
    }  # fmt: skip
