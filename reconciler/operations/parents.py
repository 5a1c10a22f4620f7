"""Which stored image an image is written against on its unit: its parent, or one that it merely resembles.

Where images stand alone, a full names the newest image of the same client as its reference: the whole disk is read and
proven by digest, and what has not changed keeps the cut it had, so that it costs no look-up and no new recipe. A
reference vouches for nothing and is never recorded as a parent.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

from reconciler.base import errors
from reconciler.catalog import database, images
from reconciler.sources import machines
from reconciler.storage import units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """An image on the unit that is written to."""

    #: None where there is none to lean on.
    id: str | None = None
    #: Disk sizes by name, in bytes.
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: Whether changes relative to it may be asked for; False for a mere reference.
    vouches: bool = False

    def of(self, name: str, size: int) -> str | None:
        """The image that a disk is written against."""
        return self.id if self.id is not None and self.sizes.get(name) == size else None


NONE = Parent()


def unlike(parent: Parent, name: str, size: int) -> tuple[machines.Found, ...]:
    """Why a disk of an incremental cannot lean on the parent that vouches for changes; none where it can."""
    before = parent.sizes.get(name)
    if not parent.vouches or before == size:
        return ()
    if before is None:
        told = f"{name} is not in the parent: it was read as a whole"
        return (machines.Found(code="DiskNew", message=told),)
    told = f"{name} had {before} bytes in the parent and has {size} now: it was read as a whole"
    return (machines.Found(code="DiskResized", message=told),)


def find(db: database.Database, unit: units.StorageUnit, client_id: str, asked: str | None) -> Parent:
    """The parent that was ``asked`` for, where the unit holds it whole; else a reference, else none.

    A copy that the catalog calls damaged is neither: what is written against it would share its damage.
    """
    if asked is not None and images.is_complete_on(db, asked, unit.name) and (sizes := _sizes(unit, asked)) is not None:
        return Parent(id=asked, sizes=sizes, vouches=True)
    if unit.standalone:
        newest = images.newest_on(db, client_id, unit.name)
        if newest is not None and (sizes := _sizes(unit, newest)) is not None:
            return Parent(id=newest, sizes=sizes)
    return NONE


def _sizes(unit: units.StorageUnit, image: str) -> dict[str, int] | None:
    try:
        with contextlib.closing(unit.open(image)) as stored:
            whole = stored.label.state == "Complete"
            return {disk.name: disk.size for disk in stored.label.disks} if whole else None
    except (errors.ImageMissing, errors.ImageDamaged):
        return None
