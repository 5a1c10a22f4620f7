"""Which image and which copy a restore reads: the newest good one at or before a time, from the fastest unit first."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

from reconciler.base import errors, times
from reconciler.catalog import database, images, inventories
from reconciler.planning import observed
from reconciler.storage import opening, units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One copy of one image to restore from."""

    client: observed.Client
    policy: str | None
    image: str
    time: dt.datetime
    copy: int
    unit: str
    path: Path

    def open(self, cache: Path) -> units.StoredImage:
        """Open the copy for reading; ``cache`` is the folder of the estate's caches.

        Raises ``UnitOffline``, ``ImageMissing`` or ``ImageDamaged``.
        """
        return opening.open_folder(self.path, cache).open(self.image)


def choose(
    db: database.Database, client: str, *, image: str | None, as_of: dt.datetime | None, copy: int | None
) -> Choice:
    """The copy to restore. Raises ``NotFound`` with what there is instead."""
    known = inventories.find_client(db, client)
    rows = [row for row in images.list_images(db, client_id=known.id) if image is None or row.id == image]
    if image is not None and not rows:
        raise errors.NotFound(f"client {known.name} has no image {image}", hint="holdfast get images lists them")
    if image is None:
        rows = [row for row in rows if row.state == "Complete" and (as_of is None or row.time <= as_of)]
    # One that somebody declared wrong is the last choice, as long as nobody asks for it by name.
    wrong = {one.object for one in inventories.standing(db).rulings if one.kind == "Expire"}
    rows.sort(key=lambda row: (row.id not in wrong, row.time, row.sequence), reverse=True)
    units_known = inventories.known_units(db)
    refused: list[str] = []
    for row in rows:
        copies = [one for one in images.list_copies(db, image_id=row.id) if copy is None or one.number == copy]
        for one in sorted(copies, key=lambda one: (_speed(units_known, one.unit), one.number)):
            why = _refusal(units_known, one)
            if why is None:
                path = Path(units_known[one.unit].path)
                return Choice(
                    client=known,
                    policy=row.policy,
                    image=row.id,
                    time=row.time,
                    copy=one.number,
                    unit=one.unit,
                    path=path,
                )
            refused.append(f"copy {one.number} of {row.id}: {why}")
    moment = f" at or before {times.show(as_of)}" if as_of else ""
    raise errors.NotFound(
        f"client {known.name} has no complete image with a good copy{moment}",
        hint="; ".join(refused[:5]) or "holdfast get images lists what there is",
    )


def _speed(known: dict[str, inventories.KnownUnit], name: str) -> int:
    return 0 if name in known and known[name].type == "Directory" else 1


def _refusal(known: dict[str, inventories.KnownUnit], copy: images.CopyRow) -> str | None:
    if copy.state not in observed.GOOD:
        way = f"; until its deletion begins holdfast hold {copy.image} brings it back"
        return f"is {copy.state}{way if copy.state == 'Expiring' else ''}"
    if copy.unit not in known:
        return f"its unit {copy.unit} is not known"
    unit = known[copy.unit]
    declared = opening.declared(unit.name, unit.type, unit.path, None, None)
    look = opening.look(declared, known_id=unit.id, owner=None)
    return look.message if look.state == "Offline" else None


def of_folder(label: units.ImageLabel, folder: Path) -> Choice:
    """The choice that a unit's folder alone offers."""
    client = observed.Client(
        id=label.client_id, slug=label.client_slug, name=label.client_name, source=label.source, first_seen=label.time
    )
    return Choice(
        client=client,
        policy=label.policy,
        image=label.id,
        time=label.time,
        copy=label.copy,
        unit=folder.name,
        path=folder,
    )
