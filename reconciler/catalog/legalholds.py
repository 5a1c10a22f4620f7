"""Legal holds as the catalog keeps them: resolved when they are applied, and standing until they are released.

``configurations`` calls ``apply`` in the transaction that puts a revision in force; the controller calls ``settle``
for words that matched nothing then, such as a machine that is only now known. What a hold covers is never narrowed
here, and no row goes away: a removed manifest leaves the hold standing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import sqlalchemy as sa

from reconciler.api import exceptions
from reconciler.base import times
from reconciler.catalog import audits, database, departures, standings, tables
from reconciler.planning import holds, sightings


def apply(connection: sa.Connection, hold: exceptions.LegalHold, now: dt.datetime, actor: str) -> bool:
    """Resolve a hold, widen it, or release it, as its manifest says; whether that changed it. May be repeated."""
    row = connection.execute(sa.select(tables.HOLDS).where(tables.HOLDS.c.name == hold.name)).first()
    if hold.spec.released is not None:
        standing = row is not None and row.released is None
        if standing:
            _release(connection, hold.name, hold.spec.released, now, actor)
        return standing
    before = standings.hold(row) if row is not None and row.released is None else None
    if holds.changes(hold, before):
        found = holds.resolve(hold, before, _facts(connection, hold, before))
        if found != before:
            _store(connection, found, known=row is not None, again=before is not None, now=now, actor=actor)
            return True
    return False


def settle(db: database.Database, manifests: Mapping[str, exceptions.LegalHold], now: dt.datetime, actor: str) -> bool:
    """Look again for what words of holds in force did not match so far; whether any does now."""
    standing = {one.name: one for one in standings.read(db).holds}
    open_ones = [
        hold
        for name, hold in manifests.items()
        if hold.spec.released is None and holds.changes(hold, standing.get(name))
    ]
    if not open_ones:
        return False
    with db.writing() as connection:
        changed = [apply(connection, hold, now, actor) for hold in open_ones]
    return any(changed)


def _release(connection: sa.Connection, name: str, released: exceptions.Released, now: dt.datetime, actor: str) -> None:
    document = {"by": released.by, "at": times.show(released.at), "reason": released.reason}
    connection.execute(tables.HOLDS.update().where(tables.HOLDS.c.name == name).values(released=document))
    audits.record(
        connection, now=now, actor=actor, event="LegalHoldReleased", object=f"LegalHold/{name}", details=document
    )


def _store(
    connection: sa.Connection, hold: sightings.Hold, *, known: bool, again: bool, now: dt.datetime, actor: str
) -> None:
    values = {
        "clients": sorted(hold.clients), "images": sorted(hold.images), "since": hold.since, "until": hold.until,
        "reason": hold.reason, "words": sorted(hold.words), "released": None,
    }  # fmt: skip
    if not again:
        values |= {"by": actor, "at": now}
    if known:
        connection.execute(tables.HOLDS.update().where(tables.HOLDS.c.name == hold.name).values(**values))
    else:
        connection.execute(tables.HOLDS.insert().values(name=hold.name, **values))
    details = {"clients": sorted(hold.clients), "images": sorted(hold.images), "reason": hold.reason}
    details["takenBack"] = _take_back(connection, hold, now, actor)
    event = "LegalHoldWidened" if again else "LegalHoldApplied"
    audits.record(connection, now=now, actor=actor, event=event, object=f"LegalHold/{hold.name}", details=details)


def _take_back(connection: sa.Connection, hold: sightings.Hold, now: dt.datetime, actor: str) -> list[str]:
    """Copies of held images that were decided to go and whose deletion has not begun come back."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    query = (
        sa.select(image.id, image.client_id, image.time)
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .where(copy.state == "Expiring", copy.grace_until.is_not(None))
        .distinct()
    )
    taken: list[str] = []
    for id, client, at in connection.execute(query).all():
        if id in hold.images or (client in hold.clients and holds.covers(hold, at)):
            taken += departures.take_back(connection, id, now, actor, f"under LegalHold {hold.name}: {hold.reason}")
    return taken


def _facts(connection: sa.Connection, hold: exceptions.LegalHold, before: sightings.Hold | None) -> holds.Facts:
    image, client = tables.IMAGES.c, tables.CLIENTS.c
    known = connection.execute(sa.select(client.id, client.name, client.slug)).all()
    owners: dict[str, frozenset[str]] = {}
    for policy in hold.spec.policies:
        if before is None or f"policies/{policy}" not in before.words:
            query = sa.select(image.client_id).where(image.policy == policy, image.spent == sa.false()).distinct()
            owners[policy] = frozenset(connection.scalars(query))
    there = sa.select(image.id).where(image.id.in_(hold.spec.images), image.spent == sa.false())
    return holds.Facts(
        clients={row.id: (row.name, row.slug) for row in known},
        owners={policy: clients for policy, clients in owners.items() if clients},
        images=frozenset(connection.scalars(there)) if hold.spec.images else frozenset(),
    )
