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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import crashes, errors
from reconciler.catalog import (
    audits,
    contents,
    counters,
    database,
    histories,
    imports,
    machines,
    readings,
    servers,
    tables,
)
from reconciler.catalog import rows as found_rows
from reconciler.planning import promises

#: How many sequence numbers are passed over: images that lie on no unit that was given may have had them.
_GAP: Final = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One image on a unit."""

    image: imports.ImportedImage
    stored_bytes: int
    base: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A unit that was given."""

    #: The UUID in its ``unit.json``.
    id: str
    #: Its name in the manifests, None where they do not declare it: then the dump must know it.
    name: str | None
    #: Directory or DedupePool.
    type: str
    #: Absolute path of its root folder.
    path: str
    #: What it holds, read once.
    images: Iterable[Held]
    #: Ids of images whose label cannot be read.
    unreadable: Callable[[], Iterable[str]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Overwriting:
    """A ``Restore`` of the manifests that replaces what lies at its target."""

    name: str
    #: Of what it says: it is done once for each.
    digest: str
    client: str
    image: str | None
    target: str
    format: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a catalog is made from."""

    #: UUID of the catalog, which owns the units.
    catalog: str
    #: The newest dump, parsed; None where no dump can be read.
    lines: Iterator[Any] | None
    units: tuple[Unit, ...]
    #: The highest mark of any dump of this catalog that was seen: this one's trail goes on after it.
    mark: int
    #: Why, and what is written into the audit log beside the counts.
    details: Mapping[str, Any]
    #: Restores that must not be made twice.
    restores: tuple[Overwriting, ...] = ()


@dataclasses.dataclass(slots=True)
class Tally:
    """What it came to."""

    #: Rows that the dump gave.
    rows: int = 0
    clients: int = 0
    images: int = 0
    copies: int = 0
    #: Images and copies that only labels told of.
    images_taken: int = 0
    copies_taken: int = 0
    #: Copies that their units do not hold any more.
    lost: int = 0
    #: Copies whose labels cannot be read.
    damaged: int = 0
    #: Copies on units that were not given, by unit.
    unreachable: dict[str, int] = dataclasses.field(default_factory=dict)
    jobs_lost: int = 0
    requests_dropped: int = 0
    #: Names of restores that are taken as made.
    restores_kept: list[str] = dataclasses.field(default_factory=list)
    #: Names of the units that were given.
    units: list[str] = dataclasses.field(default_factory=list)


def require_empty(db: database.Database) -> None:
    """Raise ``TargetExists`` for a catalog that holds anything."""
    with db.reading() as connection:
        _require_empty(connection, db.location)


def rebuild(db: database.Database, order: Order, now: dt.datetime, actor: str) -> Tally:
    """Fill an empty catalog, all of it or nothing. The units are only read.

    Raises ``TargetExists`` for a catalog that holds anything, ``CatalogError`` for a damaged dump, ``NotFound`` for a
    unit without a name, ``UsageError`` for one that has two.
    """
    tally = Tally()
    with db.writing() as connection:
        _require_empty(connection, db.location)
        if order.lines is not None:
            tally.rows = contents.load(connection, order.lines)
        else:
            _name(connection, order.catalog)
        crashes.passing("rebuild.loaded")
        known = counters.current(connection, counters.IMAGE_SEQUENCE)
        labels = _Labels(connection, now, known, tally)
        for unit in order.units:
            labels.compare(unit, _named(connection, unit, now))
        labels.settle()
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


def _name(connection: sa.Connection, catalog: str) -> None:
    facts = tables.FACTS
    connection.execute(facts.delete().where(facts.c.key == "catalog"))
    connection.execute(facts.insert().values(key="catalog", value=catalog))


def _named(connection: sa.Connection, unit: Unit, now: dt.datetime) -> str:
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


class _Labels:
    """What the labels on the units add to the catalog, and what they contradict."""

    def __init__(self, connection: sa.Connection, now: dt.datetime, known: int, tally: Tally) -> None:
        self._connection = connection
        self._now = now
        #: Sequence number up to which the dump knows names better than labels do.
        self._known = known
        self._tally = tally
        self._clients = set(connection.scalars(sa.select(tables.CLIENTS.c.id)))
        #: By client: the newest image after the dump, and when the first one was made.
        self._newest: dict[str, tuple[int, str]] = {}
        self._first: dict[str, dt.datetime] = {}
        self._series: set[tuple[str, str]] = set()

    def compare(self, unit: Unit, name: str) -> None:
        """Bring the copies of one unit up to date with its labels."""
        self._tally.units.append(name)
        copy = tables.COPIES.c
        query: sa.Select[Any] = sa.select(copy.image_id, copy.number, copy.state, copy.fallback).where(
            copy.unit == name, copy.state != "Expired"
        )
        rows: dict[str, sa.Row[Any]] = {row.image_id: row for row in self._connection.execute(query)}
        for held in unit.images:
            row = rows.pop(held.image.id, None)
            if row is None or row.state == "Lost":
                self._take(held, name)
            elif row.state == "Writing" and row.fallback == "Damaged":
                # It may still be the one that was to be written again.
                self._set(row, "Damaged", "")
            elif row.state == "Writing":
                self._finish(held, row.number)
            elif row.state == "Expiring":
                # Whatever was decided then waits for an approval again, and the order to let it go still stands.
                self._set(row, "Complete", "found on its unit")
        unreadable = frozenset(unit.unreadable()) if rows else frozenset()
        for row in rows.values():
            self._miss(row, name, row.image_id in unreadable)

    def _take(self, held: Held, unit: str) -> None:
        image = held.image
        state = self._connection.scalar(sa.select(tables.IMAGES.c.state).where(tables.IMAGES.c.id == image.id))
        if state is None:
            self._meet(image)
            imports.take_image(self._connection, image)
            self._tally.images_taken += 1
        elif state not in histories.COMMITTED:
            self._commit(image)
        if imports.take_copy(self._connection, image, unit, held.stored_bytes, held.base, self._now) is not None:
            self._tally.copies_taken += 1
            self._touch(image.id, image.client_id, image.policy)

    def _finish(self, held: Held, number: int) -> None:
        """A copy that was being written when the dump was made: its unit committed it since."""
        self._commit(held.image)
        found_rows.update_copy(
            self._connection, held.image.id, number, state="Complete", changed_at=self._now, fallback=None,
            message="found on its unit", stored_bytes=held.stored_bytes, base=held.base,
        )  # fmt: skip
        self._tally.copies_taken += 1
        self._touch(held.image.id, held.image.client_id, held.image.policy)

    def _commit(self, image: imports.ImportedImage) -> None:
        """Let an image that the dump saw in its making be what its label says."""
        row = tables.IMAGES.c
        done = self._connection.execute(
            tables.IMAGES.update().where(row.id == image.id, row.state.not_in(histories.COMMITTED)).values(
                state=image.state, changes=image.changes, consistency=image.consistency,
                warnings=[dict(one) for one in image.warnings], disks=[dataclasses.asdict(one) for one in image.disks],
                disk_names=[one.name for one in image.disks], size_bytes=sum(one.size for one in image.disks),
                source_state=dict(image.source_state),
            )
        )  # fmt: skip
        self._tally.images_taken += done.rowcount

    def _meet(self, image: imports.ImportedImage) -> None:
        """The image's client: made if it is new, named as its newest image names it."""
        client = image.client_id
        if client not in self._clients:
            machines.know(
                self._connection, id=client, name=image.client_name, source=image.source, slug=image.client_slug,
                now=self._now,
            )  # fmt: skip
            self._clients.add(client)
            self._first[client] = image.time
        if client in self._first:
            self._first[client] = min(self._first[client], image.time)
        if image.sequence > self._newest.get(client, (self._known, ""))[0]:
            self._newest[client] = (image.sequence, image.client_name)

    def _miss(self, row: sa.Row[Any], unit: str, unreadable: bool) -> None:
        """A copy that its unit does not hold."""
        if unreadable and row.state == "Complete":
            self._tally.damaged += 1
            self._set(row, "Damaged", f"its label on {unit} cannot be read")
        elif not unreadable and row.state in ("Complete", "Damaged"):
            self._tally.lost += 1
            self._set(row, "Lost", f"{unit} was read and does not hold it")
        elif row.state == "Expiring":
            self._set(row, "Expired", f"{unit} was read and does not hold it")
        elif row.state == "Writing":
            self._give_up(row)

    def _give_up(self, row: sa.Row[Any]) -> None:
        if row.fallback is not None:
            self._set(row, row.fallback, "")
            return
        copy, image = tables.COPIES, tables.IMAGES
        mine = (copy.c.image_id == row.image_id, copy.c.number == row.number)
        self._connection.execute(copy.delete().where(*mine))
        others = sa.exists().where(copy.c.image_id == image.c.id).correlate(image)
        self._connection.execute(image.delete().where(image.c.id == row.image_id, image.c.state == "Writing", ~others))

    def _set(self, row: sa.Row[Any], state: str, message: str) -> None:
        found_rows.update_copy(
            self._connection, row.image_id, row.number, state=state, changed_at=self._now, message=message,
            grace_until=None, fallback=None,
        )  # fmt: skip
        if state in ("Complete", "Expired"):
            found = found_rows.require_image(self._connection, row.image_id)
            self._touch(row.image_id, found.client_id, found.policy)

    def _touch(self, image: str, client: str, policy: str) -> None:
        # Decisions must see it again; ``settle`` tells whether they need to.
        self._connection.execute(tables.IMAGES.update().where(tables.IMAGES.c.id == image).values(spent=False))
        self._series.add((client, policy))

    def settle(self) -> None:
        """Once all units were compared: what is known of clients, and which images decisions need."""
        client = tables.CLIENTS
        for id, (_, name) in self._newest.items():
            self._connection.execute(client.update().where(client.c.id == id).values(name=name))
        for id, first in self._first.items():
            self._connection.execute(client.update().where(client.c.id == id).values(first_seen=first))
        for id, policy in sorted(self._series):
            imports.settle(self._connection, id, policy)
            readings.forget(self._connection, id, policy)


def _end_work(connection: sa.Connection, now: dt.datetime, tally: Tally) -> None:
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
    connection: sa.Connection, overwriting: Iterable[Overwriting], now: dt.datetime, actor: str, tally: Tally
) -> None:
    """A restore that ran failed. One that overwrites, and of which nothing is known, may have been made long ago."""
    restore = tables.RESTORES
    words = "the catalog was lost while it ran"
    running = restore.update().where(restore.c.state == "Running")
    connection.execute(running.values(state="Failed", finished_at=now, message=words))
    for one in overwriting:
        known = sa.select(restore.c.number).where(restore.c.name == one.name, restore.c.digest == one.digest)
        if connection.scalar(known) is None:
            connection.execute(
                restore.insert().values(
                    name=one.name, digest=one.digest, state="Verified", client_id=one.client, image=one.image or "",
                    copy_number=0, unit="", target=one.target, format=one.format, by=actor, reason="", job=None,
                    started_at=now, finished_at=now, disks=[],
                    message="taken as made: the catalog was lost, and with it whether it was",
                )
            )  # fmt: skip
            tally.restores_kept.append(one.name)


def _wait(connection: sa.Connection) -> None:
    """Let all expiry wait for one approval: nobody knows what became of the world meanwhile."""
    copy, release = tables.COPIES, tables.RELEASES
    connection.execute(copy.update().where(copy.c.state != "Expired").values(imported=True))
    spent = set()
    for row in connection.execute(sa.select(release.c.number, release.c.before, release.c.digest)).all():
        if row.before == promises.NONE or "order" in json.loads(row.before):
            connection.execute(release.delete().where(release.c.number == row.number))
            spent.add(row.digest)
    # An approval that let copies go which had come back before was given for that time.
    connection.execute(tables.APPROVALS.delete().where(tables.APPROVALS.c.digest.in_(sorted(spent))))


def _count(connection: sa.Connection, tally: Tally) -> None:
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


def _record(connection: sa.Connection, order: Order, tally: Tally, now: dt.datetime, actor: str) -> None:
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
