"""A lost catalog made again: a dump of it, where there is one, brought up to date with what its units hold.

``operations.rebuilds`` reads the units and calls ``rebuild``, which does everything in one transaction: one that is
killed has left nothing, and is simply run again. What a unit holds is believed over what the dump says of it; units
that were not given stay as the dump knows them. Afterwards every copy is marked as one that came back, so that no
expiry flows until somebody has approved it once.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import crashes, errors
from reconciler.catalog import (
    audits,
    configurations,
    contents,
    counters,
    database,
    discoveries,
    histories,
    leases,
    restores,
    servers,
    tables,
)
from reconciler.planning import promises

Held = discoveries.Held
Unit = discoveries.Unit
Tally = discoveries.Tally

#: How many sequence numbers are passed over: images that lie on no unit that was given may have had them.
_GAP: Final = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a catalog is made from."""

    #: UUID of the catalog, which owns the units.
    catalog: str
    #: The newest dump, parsed; None where no dump can be read.
    lines: Iterator[Any] | None
    units: tuple[discoveries.Unit, ...]
    #: The highest mark of any dump of this catalog that was seen: this one's trail goes on after it.
    mark: int
    #: Why, and what is written into the audit log beside the counts.
    details: Mapping[str, Any]
    #: Restores that must not be made twice.
    restores: tuple[restores.Overwriting, ...] = ()
    #: Whether this catalog's controller may live: what is made is thrown away.
    rehearsal: bool = False


def require_empty(db: database.Database) -> None:
    """Raise ``TargetExists`` for a catalog that holds anything."""
    with db.reading() as connection:
        _require_empty(connection, db.location)


def rebuild(db: database.Database, order: Order, now: dt.datetime, actor: str) -> discoveries.Tally:
    """Fill an empty catalog, all of it or nothing. The units are only read.

    Raises ``TargetExists`` for a catalog that holds anything, ``LeaseHeld`` where the controller that the dump names
    lives, ``CatalogError`` for a damaged dump, ``NotFound`` for a unit without a name, ``UsageError`` for one that has
    two.
    """
    tally = discoveries.Tally()
    with db.writing() as connection:
        _require_empty(connection, db.location)
        if order.lines is not None:
            tally.rows = contents.load(connection, order.lines)
            _require_ended(connection, order, tally)
        else:
            configurations.set_fact(connection, "catalog", order.catalog)
        crashes.passing("rebuild.loaded")
        known = counters.current(connection, counters.IMAGE_SEQUENCE)
        labels = discoveries.Labels(connection, now, known, tally)
        for unit in order.units:
            labels.compare(unit, _named(connection, unit, now))
        labels.settle()
        if order.lines is None:
            _begin_schedules(connection)
        _end_work(connection, now, tally)
        _end_restores(connection, order.restores, now, actor, tally)
        _wait(connection)
        counters.raise_to(
            connection, counters.IMAGE_SEQUENCE, counters.current(connection, counters.IMAGE_SEQUENCE) + _GAP
        )
        _count(connection, tally)
        _record(connection, order, tally, now, actor)
        crashes.passing("rebuild.compared")
    db.forget_id()
    return tally


def _require_empty(connection: sa.Connection, location: str) -> None:
    for table in (tables.IMAGES, tables.OBJECTS, tables.CLIENTS, tables.JOBS, tables.AUDIT):
        count = connection.scalar(sa.select(sa.func.count()).select_from(table))
        if count:
            what = f"{count} images" if table is tables.IMAGES else "no images, but a history of its own"
            raise errors.TargetExists(
                f"{location}: there is a catalog here, with {what}; nothing was changed",
                hint="move the state folder aside, or name an empty one with --state or --catalog",
            )


def _require_ended(connection: sa.Connection, order: Order, tally: discoveries.Tally) -> None:
    """Two controllers would delete on the same units, each by a half of what is known."""
    found = leases.left_behind(connection)
    if found is None:
        return
    tally.led, lives = found
    if lives and not order.rehearsal:
        raise errors.LeaseHeld(
            f"the controller of catalog {order.catalog} lives: {tally.led.describe()}, and keeps {tally.led.estate}",
            hint="its catalog is not lost; if it is, stop the controller first; --dry-run only looks",
        )


def _named(connection: sa.Connection, unit: discoveries.Unit, now: dt.datetime) -> str:
    """The unit's name: the one that the dump knows it by, else the manifests'; and its row."""
    table = tables.UNITS
    known = connection.execute(sa.select(table).where(table.c.id == unit.id)).first()
    if known is not None:
        connection.execute(table.update().where(table.c.id == unit.id).values(path=unit.path, type=unit.type))
        return str(known.name)
    if unit.name is None:
        raise errors.NotFound(
            f"{unit.path} holds unit {unit.id}, and nobody knows its name",
            hint="stand in the estate whose manifests declare it, or name that with --estate",
        )
    other = connection.execute(sa.select(table).where(table.c.name == unit.name)).first()
    if other is not None:
        raise errors.UsageError(
            f"{unit.path} holds unit {unit.id}, and the catalog knew {unit.name} as unit {other.id}",
            hint="give the folder of the right unit, or declare this one under a name of its own",
        )
    connection.execute(table.insert().values(name=unit.name, id=unit.id, type=unit.type, path=unit.path, learned=now))
    return unit.name


def _begin_schedules(connection: sa.Connection) -> None:
    """Let the slots of each schedule count from its first image: else ``apply`` would pass over those missed since."""
    image = tables.IMAGES.c
    first = sa.select(image.policy, image.schedule, sa.func.min(image.slot)).where(image.schedule != "")
    columns = ["policy", "schedule", "at"]
    connection.execute(tables.ANCHORS.insert().from_select(columns, first.group_by(image.policy, image.schedule)))


def _end_work(connection: sa.Connection, now: dt.datetime, tally: discoveries.Tally) -> None:
    """Nothing that was under way is any more."""
    job, request, copy, image = tables.JOBS, tables.REQUESTS, tables.COPIES, tables.IMAGES
    words = "the catalog was lost while it ran, and was made again from its storage units"
    lost = job.update().where(job.c.state.in_(tables.LIVE))
    tally.jobs_lost = connection.execute(
        lost.values(state="Lost", finished_at=now, error_code="Lost", error_message=words)
    ).rowcount
    dropped = {"message": "dropped: the catalog was lost and made again; ask once more"}
    pending = request.update().where(request.c.finished_at.is_(None))
    tally.requests_dropped = connection.execute(pending.values(finished_at=now, outcome=dropped)).rowcount
    connection.execute(tables.LEASES.update().values(worker=""))
    # On units that were not given. A deletion may not have begun, and must not without an approval.
    expiring = copy.update().where(copy.c.state == "Expiring")
    connection.execute(expiring.values(state="Complete", grace_until=None, changed_at=now, message="it was to expire"))
    # A further copy may have been committed since, and may be the only one that is left: nobody must sweep it away.
    committed = sa.select(image.c.id).where(image.c.state.in_(histories.COMMITTED))
    writing = copy.update().where(copy.c.state == "Writing", copy.c.image_id.in_(committed))
    connection.execute(
        writing.values(
            state=sa.func.coalesce(copy.c.fallback, "Lost"), fallback=None, changed_at=now,
            message="it was being written when the catalog was lost",
        )
    )  # fmt: skip


def _end_restores(
    connection: sa.Connection,
    overwriting: Iterable[restores.Overwriting],
    now: dt.datetime,
    actor: str,
    tally: discoveries.Tally,
) -> None:
    """A restore that ran failed. Of one that overwrites and has no record nobody knows whether it was made."""
    restore = tables.RESTORES
    words = "the catalog was lost while it ran"
    running = restore.update().where(restore.c.state == "Running")
    connection.execute(running.values(state="Failed", finished_at=now, message=words))
    words = "taken as made: the catalog was lost, and with it whether it was"
    tally.restores_kept += restores.take_as_made(connection, overwriting, words, now, actor)


def _wait(connection: sa.Connection) -> None:
    """Let all expiry wait for one approval: nobody knows what became of the world meanwhile.

    Digests have this rebuild in them from now on, so no approval from before it, wherever it is kept, is the one.
    """
    copy, release = tables.COPIES, tables.RELEASES
    configurations.set_fact(connection, configurations.REBUILT, str(uuid.uuid4()))
    connection.execute(copy.update().where(copy.c.state != "Expired").values(imported=True))
    spent = set()
    for row in connection.execute(sa.select(release.c.number, release.c.before, release.c.digest)).all():
        if row.before == promises.NONE or "order" in json.loads(row.before):
            connection.execute(release.delete().where(release.c.number == row.number))
            spent.add(row.digest)
    # An approval that let copies go which had come back before was given for that time.
    connection.execute(tables.APPROVALS.delete().where(tables.APPROVALS.c.digest.in_(sorted(spent))))


def _count(connection: sa.Connection, tally: discoveries.Tally) -> None:
    copy, image = tables.COPIES.c, tables.IMAGES.c

    def count(table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(table).where(*where)) or 0)

    tally.clients = count(tables.CLIENTS)
    tally.images = count(tables.IMAGES, image.state.in_(histories.COMMITTED))
    tally.copies = count(tables.COPIES, copy.state.in_(("Complete", "Damaged")))
    away = sa.select(copy.unit, sa.func.count()).where(
        copy.state.in_(("Complete", "Damaged")), copy.unit.not_in(tally.units)
    )
    found = connection.execute(away.group_by(copy.unit).order_by(copy.unit)).all()
    tally.unreachable = {str(unit): int(number) for unit, number in found}


def _record(connection: sa.Connection, order: Order, tally: discoveries.Tally, now: dt.datetime, actor: str) -> None:
    """Who did it and why, under a number that no dump of this catalog has reached: those are old news now."""
    details = {
        **order.details, "clients": tally.clients, "images": tally.images, "copies": tally.copies, "lost": tally.lost,
        "units": tally.units,
    }  # fmt: skip
    number = max(audits.newest(connection), order.mark) + 1
    connection.execute(
        tables.AUDIT.insert().values(
            number=number, at=now, actor=actor, event="CatalogRebuilt", object=f"catalog/{order.catalog}",
            details=details,
        )
    )  # fmt: skip
    if connection.dialect.name != "sqlite":
        servers.count_on(connection)
