"""What an image carries beside its disks goes along with every copy, and is made anew when it rots."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import estate_samples
from estate_samples import MIB, Estate

from reconciler.base import disks, meters
from reconciler.storage import identities, opening, units
from reconciler.storage.dedupe import containers

PAGES = [b"page %d " % number * 4000 for number in range(30)]


@contextlib.contextmanager
def opened(estate: Estate, name: str, kind: str) -> Iterator[units.StorageUnit]:
    """A unit of the estate, for its owner."""
    root = estate.folder / "storage" / name
    declared = opening.Declared(name=name, type=kind, path=root)
    unit = opening.open_unit(declared, owner=identities.read(root, name).owner)
    try:
        yield unit
    finally:
        unit.close()


def attach(unit: units.StorageUnit) -> str:
    """Give the unit's only image an attachment, by writing it once more; its id."""
    (held,) = unit.list()
    image = unit.open(held.label.id)
    contents = {disk.name: bytes(image.disk(disk.name).pread(0, disk.size)) for disk in held.label.disks}
    image.close()
    unit.delete(held.label.id)
    writer = unit.begin(dataclasses.replace(held.label, disks=()), list(contents))
    for name, data in contents.items():
        writer.write(disks.MemoryDisk(name, data), meter=meters.Meter())
    writer.attach("files", PAGES)
    writer.commit(held.label)
    return held.label.id


def load(unit: units.StorageUnit, image: str) -> list[bytes]:
    with contextlib.closing(unit.open(image)) as stored:
        found = stored.attachment("files")
        return [found.read(number) for number in range(len(found.pages))]


def flip(path: Path) -> None:
    """Damage the last record of a container."""
    data = bytearray(path.read_bytes())
    data[data.rindex(containers.RECORD_MAGIC) + containers.RECORD.size + 20] ^= 1
    path.write_bytes(data)


def test_a_copy_has_what_its_source_carries_and_is_made_anew_when_that_rots(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", duplicate="yes")
    estate.machine("alpha", content=b"text" * (MIB // 4))
    pool = estate.folder / "storage" / "pool"
    pool.rename(estate.folder / "away")
    estate.apply(code=None)
    with opened(estate, "fast", "Directory") as unit:
        image = attach(unit)
    (estate.folder / "away").rename(pool)
    estate.apply()
    with opened(estate, "pool", "DedupePool") as unit:
        assert load(unit, image) == PAGES
        assert unit.verify(image, meter=meters.Meter()) == ()
    stats = estate.command.json("pool", "stats", "pool")
    assert 0 < stats["attachmentBytes"] < stats["storedBytes"]
    (data,) = pool.glob("containers/*/*.data")
    flip(data)
    found = estate.command.run("pool", "scrub", "pool", code=3).stdout
    assert f"{image}, attachment files: " in found
    (copy,) = (one for one in estate.get("copies") if one["unit"] == "pool")
    assert copy["state"] == "Complete"
    with opened(estate, "pool", "DedupePool") as unit:
        assert load(unit, image) == PAGES
    assert {one["state"] for one in estate.get("copies")} == {"Complete"}
