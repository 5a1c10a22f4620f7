"""Changed areas by a qcow2 bitmap: complete when they are named, and not named in any doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import extents
from reconciler.sources import machines as port
from reconciler.sources.diskimages import machines

pytestmark = samples.needs_qemu
MIB = samples.MIB
SIZE = 16 * MIB


@pytest.fixture
def disk(machine: Path) -> Path:
    return samples.write_image(machine / "a.qcow2", samples.content(SIZE), "qcow2")


@pytest.fixture
def source(machine: Path) -> machines.DiskImages:
    return samples.source(machine.parent, bitmap="cbt")


def bitmap(disk: Path, *action: str) -> None:
    samples.qemu("qemu-img", "bitmap", *action, "-f", "qcow2", disk, "cbt")


def write(disk: Path, *places: tuple[int, int]) -> None:
    for offset, length in places:
        samples.qemu("qemu-io", "-f", "qcow2", "-c", f"write -P 0x5a {offset} {length}", disk)


def read(source: machines.DiskImages) -> tuple[bytes, Mapping[str, str]]:
    reading = samples.freeze(source)
    try:
        return samples.whole(reading.disks[0]), dict(reading.state())
    finally:
        reading.close()


def changes(source: machines.DiskImages, parent: Mapping[str, str]) -> port.DiskChanges:
    reading = samples.freeze(source)
    try:
        assert reading.missing == ()
        return reading.changes("a.qcow2", parent)
    finally:
        reading.close()


def test_changed_areas_rebuild_the_disk_from_its_parent(disk: Path, source: machines.DiskImages) -> None:
    bitmap(disk, "--add")
    before, state = read(source)
    write(disk, (5 * MIB, 4096), (9 * MIB + 512, 70_000))
    before_reading = disk.read_bytes()
    found = changes(source, state)
    assert found.reason.code == "Bitmap"
    assert found.changed is not None
    assert 0 < extents.total(found.changed) < MIB
    after, second = read(source)
    rebuilt = bytearray(before)
    for offset, length in found.changed:
        rebuilt[offset : offset + length] = after[offset : offset + length]
    assert rebuilt == after != before
    assert disk.read_bytes() == before_reading, "the bitmap is read and never altered"
    write(disk, (0, 512))
    third = changes(source, second)
    assert third.changed is not None and extents.intersect(third.changed, found.changed) == found.changed


def test_without_a_bitmap_all_is_read(disk: Path, machine: Path, source: machines.DiskImages) -> None:
    plain = samples.source(machine.parent)
    _, state = read(plain)
    assert changes(plain, state).changed is None
    assert changes(plain, state).reason.code == "FullRead"
    assert changes(source, state).reason.code == "BitmapMissing"


def test_a_bitmap_made_after_the_parent_is_not_believed(disk: Path, source: machines.DiskImages) -> None:
    _, state = read(source)
    write(disk, (MIB, 4096))
    bitmap(disk, "--add")
    found = changes(source, state)
    assert (found.changed, found.reason.code) == (None, "BitmapNew")


def _cleared(disk: Path) -> None:
    bitmap(disk, "--clear")


def _made_anew(disk: Path) -> None:
    bitmap(disk, "--remove")
    bitmap(disk, "--add")


def _coarser(disk: Path) -> None:
    bitmap(disk, "--remove")
    bitmap(disk, "--add", "-g", "1M")


def _disabled(disk: Path) -> None:
    bitmap(disk, "--disable")


def _resized(disk: Path) -> None:
    samples.qemu("qemu-img", "resize", "-f", "qcow2", disk, "+1M")


def _replaced(disk: Path) -> None:
    samples.copied(disk, ".new").replace(disk)


def _reverted(disk: Path) -> None:
    samples.qemu("qemu-img", "snapshot", "-c", "s", disk)


def _rebased(disk: Path) -> None:
    samples.qemu("qemu-img", "create", "-f", "qcow2", disk.with_name("base"), str(SIZE))
    samples.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", disk)


@pytest.mark.parametrize(
    ("doubt", "code"),
    [
        (_cleared, "BitmapReplaced"),
        (_made_anew, "BitmapReplaced"),
        (_coarser, "BitmapReplaced"),
        (_disabled, "BitmapUnusable"),
        (_resized, "DiskResized"),
        (_replaced, "DiskReplaced"),
        (_reverted, "BitmapUnusable"),
        (_rebased, "BitmapUnusable"),
    ],
)
def test_any_doubt_means_a_full_read(
    disk: Path, source: machines.DiskImages, doubt: Callable[[Path], None], code: str
) -> None:
    bitmap(disk, "--add")
    write(disk, (3 * MIB, 4096))
    _, state = read(source)
    assert changes(source, state).changed is not None
    doubt(disk)
    found = changes(source, state)
    assert (found.changed, found.reason.code) == (None, code)
    assert "a.qcow2" in found.reason.message


@pytest.mark.parametrize("state", [{}, {"disk:a.qcow2": "garbage"}, {"disk:a.qcow2": "{}"}, {"disk:a.qcow2": "[1]"}])
def test_a_parent_that_recorded_nothing_usable_means_a_full_read(
    disk: Path, source: machines.DiskImages, state: Mapping[str, str]
) -> None:
    bitmap(disk, "--add")
    found = changes(source, state)
    assert (found.changed, found.reason.code) == (None, "ParentUnknown")


def test_raw_disks_beside_it_say_why_they_are_read_whole(
    disk: Path, machine: Path, source: machines.DiskImages
) -> None:
    samples.write_raw(machine / "b.img", b"content")
    reading = samples.freeze(source)
    found = reading.changes("b.img", reading.state())
    reading.close()
    assert (found.changed, found.reason.code) == (None, "BitmapMissing")
    assert "only qcow2" in found.reason.message
