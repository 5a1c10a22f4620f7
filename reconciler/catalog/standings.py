"""What people ruled and what still stands of it: legal holds and rulings, as decisions read them.

``rulings`` and ``legalholds`` write them; plans read them through ``holds`` and ``rulings``, and a deleting transaction
through ``standing``, so that a hold recorded after the plan was made still stops the deletion.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

from reconciler.catalog import database, tables
from reconciler.planning import sightings


def standing(connection: sa.Connection) -> sightings.Standing:
    """Everything that stands, as the caller's transaction sees it."""
    holds = sa.select(tables.HOLDS).where(tables.HOLDS.c.released.is_(None)).order_by(tables.HOLDS.c.name)
    ruling = tables.RULINGS.c
    ruled = sa.select(tables.RULINGS).where(ruling.ended_at.is_(None)).order_by(ruling.number)
    return sightings.Standing(
        holds=tuple(hold(row) for row in connection.execute(holds)),
        rulings=tuple(_ruling(row) for row in connection.execute(ruled)),
    )


def read(db: database.Database) -> sightings.Standing:
    """Everything that stands now."""
    with db.reading() as connection:
        return standing(connection)


def hold(row: sa.Row[Any]) -> sightings.Hold:
    """A legal hold of its row."""
    return sightings.Hold(
        name=row.name,
        clients=frozenset(row.clients),
        images=frozenset(row.images),
        since=row.since,
        until=row.until,
        reason=row.reason,
        words=frozenset(row.words),
        by=row.by,
        at=row.at,
    )


def _ruling(row: sa.Row[Any]) -> sightings.Ruling:
    grace = dt.timedelta(seconds=row.grace) if row.grace is not None else None
    return sightings.Ruling(kind=row.kind, object=row.object, by=row.by, at=row.at, reason=row.reason, grace=grace)


def carried_out(connection: sa.Connection, image_id: str, now: dt.datetime) -> None:
    """A copy is gone: if it was the image's last, what was ruled about the image and its copies stands no longer."""
    copy, ruling = tables.COPIES.c, tables.RULINGS.c
    left = sa.select(copy.number).where(copy.image_id == image_id, copy.state != "Expired").limit(1)
    if connection.scalar(left) is not None:
        return
    of_image = sa.or_(
        sa.and_(ruling.kind.in_(("Expire", "Hold")), ruling.object == image_id),
        sa.and_(ruling.kind == "Waive", ruling.object.startswith(f"{image_id}/", autoescape=True)),
    )
    connection.execute(
        tables.RULINGS.update()
        .where(of_image, ruling.ended_at.is_(None))
        .values(ended_at=now, ended_by="holdfast", ended_reason="no copy is left")
    )
