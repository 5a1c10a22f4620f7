"""What the labels on storage units tell a catalog that is made again: images that it lacks, copies that are gone.

``rebuilds`` shows every unit that was given to ``Labels``, within its transaction. What a unit holds is believed over
what the dump says of it; names of clients are believed of the newest image alone.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from reconciler.catalog import counters, histories, imports, leases, machines, readings, rows, tables, verifications


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
    #: The controller that the dump names, unless it is known to have ended.
    led: leases.Holder | None = None
    #: Names of the units that were given.
    units: list[str] = dataclasses.field(default_factory=list)


class Labels:
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
        #: Digests of the lifecycle specs that are kept, and the highest sequence number so far.
        self._owed = set(connection.scalars(sa.select(tables.LIFECYCLE_VERSIONS.c.digest)))
        self._highest = known

    def compare(self, unit: Unit, name: str) -> None:
        """Bring the copies of one unit up to date with its labels."""
        self._tally.units.append(name)
        copy = tables.COPIES.c
        query: sa.Select[Any] = sa.select(copy.image_id, copy.number, copy.state, copy.fallback).where(
            copy.unit == name, copy.state != "Expired"
        )
        known: dict[str, list[sa.Row[Any]]] = {}
        for row in self._connection.execute(query):
            known.setdefault(row.image_id, []).append(row)
        for held in unit.images:
            mine = known.pop(held.image.id, [])
            # A unit holds an image once: that is a copy that was whole, if there was one, and no second try.
            mine.sort(key=lambda row: row.state == "Writing")
            self._hold(held, mine[0] if mine else None, name)
            for row in mine[1:]:
                self._miss(row, name, False)
        unreadable = frozenset(unit.unreadable()) if known else frozenset()
        for image, missing in known.items():
            for row in missing:
                self._miss(row, name, image in unreadable)

    def _hold(self, held: Held, row: sa.Row[Any] | None, unit: str) -> None:
        """An image that a unit holds, and what the dump says of its copy there."""
        if row is None or row.state == "Lost":
            self._take(held, unit)
        elif row.state == "Writing" and row.fallback == "Damaged":
            # It may still be the one that was to be written again.
            self._set(row, "Damaged", "")
        elif row.state == "Writing":
            self._finish(held, row.number)
        elif row.state == "Expiring":
            # Whatever was decided then waits for an approval again, and the order to let it go still stands.
            self._set(row, "Complete", "found on its unit")

    def _take(self, held: Held, unit: str) -> None:
        image = held.image
        self._highest = max(self._highest, image.sequence)
        state = self._connection.scalar(sa.select(tables.IMAGES.c.state).where(tables.IMAGES.c.id == image.id))
        if state is None:
            self._meet(image)
            imports.take_image(self._connection, image, self._owed, self._highest)
            self._tally.images_taken += 1
        elif state not in histories.COMMITTED:
            self._commit(image)
        if imports.take_copy(self._connection, image, unit, held.stored_bytes, held.base, self._now) is not None:
            self._tally.copies_taken += 1
            if state is None:
                self._series.add((image.client_id, image.policy))
            else:
                self._touch(image.id, image.client_id, image.policy)

    def _finish(self, held: Held, number: int) -> None:
        """A copy that was being written when the dump was made: its unit committed it since."""
        self._commit(held.image)
        rows.update_copy(
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
        rows.update_copy(
            self._connection, row.image_id, row.number, state=state, changed_at=self._now, message=message,
            grace_until=None, fallback=None,
        )  # fmt: skip
        if state in ("Complete", "Expired"):
            found = rows.require_image(self._connection, row.image_id)
            if state == "Expired":
                verifications.outlive(self._connection, row.image_id, row.number, found.client_id, self._now)
            self._touch(row.image_id, found.client_id, found.policy)

    def _touch(self, image: str, client: str, policy: str) -> None:
        # Decisions must see it again; ``settle`` tells whether they need to.
        self._connection.execute(tables.IMAGES.update().where(tables.IMAGES.c.id == image).values(spent=False))
        self._series.add((client, policy))

    def settle(self) -> None:
        """Once all units were compared: what is known of clients, and which images decisions need."""
        client = tables.CLIENTS
        counters.raise_to(self._connection, counters.IMAGE_SEQUENCE, self._highest)
        for id, (_, name) in self._newest.items():
            self._connection.execute(client.update().where(client.c.id == id).values(name=name))
        for id, first in self._first.items():
            self._connection.execute(client.update().where(client.c.id == id).values(first_seen=first))
        for id, policy in sorted(self._series):
            imports.settle(self._connection, id, policy)
            readings.forget(self._connection, id, policy)
