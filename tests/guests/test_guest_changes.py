"""A look at what changed alone: files that are new or grew are in it, and what did not change costs nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import guest_builders as builders
import pytest

from reconciler.base import disks, extents, layouts
from reconciler.guests import scanning

pytestmark = builders.needs_root

MAKE = {
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4"],
    "ntfs": ["mkntfs", "-q", "-F", "-f"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
PIECE = 4096


class Counted(disks.MemoryDisk):
    """A disk that counts what is read of it."""

    read = 0

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """As the disk does."""
        self.read += length
        return super().pread(offset, length)


def _changed(before: bytes, after: bytes) -> extents.Extents:
    pieces = [(at, PIECE) for at in range(0, len(after), PIECE) if before[at : at + PIECE] != after[at : at + PIECE]]
    return extents.clip(extents.normalise(pieces), len(after))


def _runs(layout: layouts.Layout) -> set[tuple[int, int, int]]:
    return set(zip(layout.file_offset, layout.disk_offset, layout.length, strict=True))


@pytest.mark.parametrize("kind", MAKE)
def test_files_that_changed_are_seen_among_many_that_did_not(kind: str, tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "volume.raw", 400 * builders.MIB)
    builders.run(*MAKE[kind], image)
    rng = random.Random(kind)
    with builders.mounted(image, kind=kind) as root:
        for number in range(60):
            folder = root / f"{number}"
            folder.mkdir()
            for name in range(100):
                (folder / f"{name}").write_bytes(rng.randbytes(5000))
    before = image.read_bytes()
    shutil.copy(image, tmp_path / "before.raw")
    with builders.mounted(image, kind=kind) as root:
        (root / "new.bin").write_bytes(rng.randbytes(3 << 20))
        with (root / "7" / "50").open("ab") as file:
            file.write(rng.randbytes(1 << 20))
    after = image.read_bytes()
    changed = _changed(before, after)
    whole, partly = Counted("d", after), Counted("d", after)
    everything, found = scanning.scan(whole), scanning.scan(partly, within=changed)
    assert found.warnings == everything.warnings == ()
    runs = _runs(found.layout)
    assert runs <= _runs(everything.layout)
    # Everything that a file was given since is in it.
    new = extents.intersect(extents.normalise((disk, length) for _, disk, length in _runs(everything.layout)), changed)
    seen = extents.intersect(extents.normalise((disk, length) for _, disk, length in runs), changed)
    assert extents.total(seen) >= 4 << 20
    assert extents.total(extents.subtract(new, seen)) <= 64 << 10
    assert len(found.layout.file) < len(everything.layout.file) / 4
    assert partly.read < whole.read / 2


def test_more_ranges_than_a_command_line_holds_are_made_coarse(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "volume.raw", 64 * builders.MIB)
    builders.run(*MAKE["ext4"], image)
    with builders.mounted(image, kind="ext4") as root:
        (root / "one").write_bytes(b"1" * 100_000)
    disk = disks.MemoryDisk("d", image.read_bytes())
    within = tuple((at, 512) for at in range(0, disk.size, 1024))
    assert _runs(scanning.scan(disk, within=within).layout) == _runs(scanning.scan(disk).layout)


def test_space_is_not_asked_of_a_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="space"):
        scanning.scan(disks.MemoryDisk("d", bytes(1 << 20)), want_space=True, within=())
