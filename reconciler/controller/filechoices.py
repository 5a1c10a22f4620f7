"""Which image a look at files is about, from the catalog alone: its storage units may be away.

``holdfast files ls`` asks here what ``--image`` and ``--as-of`` mean; where bytes are read, ``choices`` finds copies.
Separate from that one so that a listing loads no storage unit.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from reconciler.base import errors, times

# Not through images and inventories, which know how to write and so load what decides.
from reconciler.catalog import database, listings, machines, standings
from reconciler.planning import doubts, preferences, sightings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One image of a client."""

    client: sightings.Client
    id: str
    time: dt.datetime
    #: What whoever looks at it must know; a sentence each.
    notes: tuple[str, ...] = ()


def choose(
    db: database.Database, client: str, *, image: str | None, as_of: dt.datetime | None, now: dt.datetime
) -> Image:
    """The image that is meant: the newest with a good copy, else the newest with a damaged one, as ``choices.choose``,
    but whether or not its units are there. Raises ``NotFound``."""
    known = machines.find_client(db, client)
    every = listings.list_images(db, client_id=known.id)
    misdated = doubts.doubtful(every, now)
    rows = [row for row in every if image is None or row.id == image]
    copies = listings.list_copies(db, client_id=known.id)
    good = {one.image for one in copies if one.state in sightings.GOOD}
    if image is None:
        there = {one.image for one in copies if one.state in sightings.READABLE}
        rows = [row for row in rows if row.state == "Complete" and row.id in there]
        rows = [row for row in rows if as_of is None or row.time <= as_of]
    wrong = {one.object for one in standings.read(db).rulings if one.kind == "Expire"}
    rows.sort(
        key=lambda row: (row.id not in wrong, row.id in good, row.id not in misdated, row.time, row.sequence),
        reverse=True,
    )
    if rows:
        passed = [row for row in rows if row.time > rows[0].time and row.id not in wrong]
        notes = tuple(
            preferences.misdated(row.id, row.time, f"--image {row.id}")
            if row.id in misdated and row.id in good
            else f"image {row.id} of {times.show(row.time)} is newer and has damaged copies alone; "
            f"--image {row.id} shows it"
            for row in passed
        )
        return Image(client=known, id=rows[0].id, time=rows[0].time, notes=notes)
    if image is not None:
        raise errors.NotFound(f"client {known.name} has no image {image}", hint="holdfast get images lists them")
    moment = f" at or before {times.show(as_of)}" if as_of else ""
    raise errors.NotFound(
        f"client {known.name} has no complete image with a copy that can be read{moment}",
        hint="holdfast get images lists what there is",
    )


def good(db: database.Database, client: str) -> frozenset[str]:
    """Images of a client that have a good copy, on whatever unit. Raises ``NotFound``."""
    client_id = machines.find_client(db, client).id
    return frozenset(one.image for one in listings.list_copies(db, client_id=client_id) if one.state in sightings.GOOD)


def clients(db: database.Database, names: list[str] | None) -> dict[str, str]:
    """Slugs by id, of these clients or of all. Raises ``NotFound``."""
    if names:
        return {one.id: one.slug for one in (machines.find_client(db, name) for name in names)}
    return {one.id: one.slug for one in machines.clients(db).values()}


def moments(db: database.Database, client_id: str | None = None) -> dict[str, dt.datetime]:
    """When each image that has a copy was taken, by id; of one client or of all."""
    return {row.id: row.time for row in listings.list_images(db, client_id=client_id)}
