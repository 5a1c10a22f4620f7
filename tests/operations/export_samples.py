"""Units with images of known disks, of either type, for what serves or mounts them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Mapping
from pathlib import Path

from reconciler.base import disks, meters
from reconciler.storage import opening, units

MIB = 1 << 20
OWNER = "11111111-1111-4111-8111-111111111111"
TYPES = ("Directory", "DedupePool")


def content(size: int, seed: int) -> bytes:
    """A disk: text that compresses, noise, and a hole of whole blocks in its middle third."""
    rng = random.Random(seed)
    third = size // 3 // MIB * MIB
    text = b" ".join(b"line %d of many" % rng.randrange(10_000) for _ in range(third // 8))[:third]
    return text + bytes(third) + rng.randbytes(size - 2 * third)


def label(image: str, parent: str | None = None) -> units.ImageLabel:
    """An image's label."""
    time = dt.datetime(2026, 11, 23, 21, 0, tzinfo=dt.UTC)
    return units.ImageLabel(
        id=image, client_id="c", client_name="alpha", client_slug="alpha", source="diskimages:/alpha", policy="p",
        schedule="s", lifecycle="l", operation="o", copy=1, type="Incremental" if parent else "Full",
        state="Complete", time=time, sequence=1, slot=time, revision="r", parent=parent, changes="FullRead",
        consistency="Offline",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit's folder."""

    folder: Path
    type: str

    @staticmethod
    def make(folder: Path, type: str) -> Unit:
        """A new, empty unit."""
        folder.mkdir(parents=True)
        opening.prepare(opening.Declared(name="unit", type=type, path=folder), OWNER)
        return Unit(folder=folder, type=type)

    def store(self, image: str, contents: Mapping[str, bytes], *, parent: str | None = None) -> units.ImageLabel:
        """Write an image of these disks."""
        declared = opening.Declared(name="unit", type=self.type, path=self.folder)
        unit = opening.open_unit(declared, owner=OWNER)
        writer = unit.begin(label(image, parent), list(contents))
        for name, data in contents.items():
            writer.write(disks.MemoryDisk(name, data), meter=meters.Meter(), parent=parent)
        found = writer.commit(label(image, parent)).label
        unit.close()
        return found

    def verify(self, image: str) -> tuple[units.Damage, ...]:
        """Every block of an image, proven."""
        unit = opening.open_folder(self.folder)
        found = unit.verify(image, meter=meters.Meter())
        unit.close()
        return found

    def damage(self) -> None:
        """Overwrite bytes in the last third of the largest file, where noise lies."""
        path = max(self.folder.rglob("*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size * 3 // 4)
            file.write(b"damage" * 100)
