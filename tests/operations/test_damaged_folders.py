"""Files of an image whose disk lacks a block: what lies elsewhere is restored, what lacks it is told."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from reconciler.base import disks, errors, meters
from reconciler.operations import browsedtrees, filecontents, fileplaces, filerestores, foldersinks

MIB = 1 << 20


class Rotten(disks.MemoryDisk):
    """A disk of which one block is on no copy."""

    def __init__(self, data: bytes, block: int) -> None:
        super().__init__("d", data)
        self._begin, self._end = block * MIB, (block + 1) * MIB

    def pread(self, offset: int, length: int) -> disks.Buffer:
        if offset < self._end and offset + length > self._begin:
            raise errors.ImageDamaged(f"block at {self._begin} is damaged")
        return super().pread(offset, length)


@dataclasses.dataclass
class Stored:
    """An image of that disk."""

    rotten: Rotten

    @property
    def label(self) -> Any:
        return dataclasses.make_dataclass("Label", ["disks"])([self.rotten])

    def disk(self, _name: str) -> disks.Disk:
        return self.rotten


def test_a_folder_that_lacks_a_block_is_told_and_what_lies_elsewhere_goes_on(tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "disk"
    for folder in ("docs", "last"):
        (tree / folder).mkdir(parents=True)
    for number in range(4):
        (tree / "docs" / f"{number}").write_bytes(bytes([number + 1]) * (MIB // 2))
    (tree / "last" / "one").write_text("one")
    with image.open("wb") as file:
        file.truncate(12 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-d", tree, image], check=True)
    asked = subprocess.run(["debugfs", "-R", "blocks /last", image], capture_output=True, text=True, check=True)
    block = int(asked.stdout.split()[0]) * 1024 // MIB
    report, meter = filecontents.Report(), meters.Meter()
    with browsedtrees.Browsers(cast("Any", Stored(Rotten(image.read_bytes(), block))), meter) as browsers:
        found = browsedtrees.BrowsedTree(browsers)
        picked = filerestores.picks(found.volumes, fileplaces.expand(found, "/"), paths=False)
        with foldersinks.FolderSink(tmp_path / "out", report, force=False) as sink:
            filerestores.restore(browsers, picked, sink, report, meter)
    failed = {one.path: one.code for one in report.failures}
    assert failed["/last"] == "ImageDamaged" and len(failed) < 4
    whole = [path for path in sorted((tree / "docs").iterdir()) if f"/docs/{path.name}" not in failed]
    assert whole and all((tmp_path / "out" / "docs" / path.name).read_bytes() == path.read_bytes() for path in whole)


def test_a_disk_that_is_encrypted_as_a_whole_says_so() -> None:
    rotten = Rotten(b"LUKS\xba\xbe\0\2".ljust(2 * MIB, b"\xa5"), 9)
    with browsedtrees.Browsers(cast("Any", Stored(rotten)), meters.Meter()) as browsers:
        found = browsedtrees.BrowsedTree(browsers)
        with pytest.raises(errors.NotFound, match="d: volume at byte 0 holds an encrypted LUKS volume"):
            fileplaces.resolve(found, "/")
