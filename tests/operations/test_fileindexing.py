"""What is read of a disk to index its files: what changed, from where it lies nearest, and nothing where nothing did."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import export_samples as samples
import pytest
from export_samples import MIB

from reconciler.base import disks, errors, extents, meters
from reconciler.catalog.fileindexes import entries, pages
from reconciler.operations import fileindexing, holding
from reconciler.storage import opening, units

DISK = "system.img"


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def volume(folder: Path) -> bytearray:
    """An ext4 volume with a few hundred files."""
    tree = folder / "tree"
    for number in range(300):
        (tree / f"dir{number % 9}").mkdir(parents=True, exist_ok=True)
        (tree / f"dir{number % 9}" / f"file-{number}").write_bytes(bytes(number))
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, folder / "volume", "24M")
    return bytearray((folder / "volume").read_bytes())


class Source(disks.MemoryDisk):
    """A disk that counts what is read of it, and holds some ranges alone."""

    def __init__(self, content: bytes | bytearray, held: extents.Extents | None = None) -> None:
        super().__init__(DISK, bytes(content))
        self.read = 0
        self._held = held

    def pread(self, offset: int, length: int) -> disks.Buffer:
        if self._held is not None and extents.intersect(((offset, length),), self._held) != ((offset, length),):
            raise holding.NotHeld(f"{length} bytes at {offset}")
        self.read += length
        return super().pread(offset, length)


@pytest.fixture(params=samples.TYPES)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[units.StorageUnit]:
    made = samples.Unit.make(tmp_path / "unit", request.param)
    declared = opening.Declared(name="unit", type=request.param, path=made.folder)
    with contextlib.closing(opening.open_unit(declared, owner=samples.OWNER)) as opened:
        yield opened


def store(
    unit: units.StorageUnit,
    image: str,
    disk: Source,
    *,
    parent: str | None = None,
    changed: extents.Extents | None = None,
) -> tuple[fileindexing.Looked, int]:
    """An image with its index; what was looked at, and the bytes that the index read of the source."""
    writer = unit.begin(samples.label(image, parent), [DISK])
    written = writer.write(disk, meter=meters.Meter(), parent=parent, changed=changed)
    disk.read = 0
    with fileindexing.Indexing(unit, parent, meters.Meter(), wanted=True) as index:
        found = index.look(disk, written.changed, known=changed is not None, quiesced=False)
        assert found is not None
        assert index.attach(writer, [found]) == found.warnings
    writer.commit(samples.label(image, parent))
    return found, disk.read


def rows(unit: units.StorageUnit, image: str) -> list[entries.Entry]:
    with contextlib.closing(unit.open(image)) as stored:
        index = fileindexing.index_of(stored)
        assert index is not None
        return list(index)


def direct(content: bytes | bytearray) -> list[entries.Entry]:
    """The files of a disk, listed alone."""
    with fileindexing.Indexing(None, None, meters.Meter(), wanted=True) as index:  # type: ignore[arg-type]
        found = index.look(Source(content), None, known=False, quiesced=False)
    assert found is not None
    return list(found.rows)


def test_an_incremental_reads_the_source_where_it_changed_alone(unit: units.StorageUnit, tmp_path: Path) -> None:
    content = volume(tmp_path)
    first, read = store(unit, "i1", Source(content))
    assert len(first.rows) == 310
    assert read > 0

    # What changed is free space: the listing would read nothing of it, and reads nothing at all.
    place = content.rindex(bytes(2 * MIB)) // MIB * MIB
    content[place : place + 4096] = b"\xaa" * 4096
    same, read = store(unit, "i2", Source(content), parent="i1", changed=((place, 4096),))
    assert read == 0
    assert same.rows == first.rows

    # A size in an inode: the source holds that block and no more, and the rest comes from the unit.
    run("debugfs", "-w", "-R", "set_inode_field /dir3/file-3 size 77", tmp_path / "volume")
    fresh = bytearray((tmp_path / "volume").read_bytes())
    fresh[place : place + 4096] = b"\xaa" * 4096
    changed = extents.normalise(
        (at, MIB) for at in range(0, len(fresh), MIB) if fresh[at : at + MIB] != content[at : at + MIB]
    )
    held = Source(fresh, held=changed)
    third, read = store(unit, "i3", held, parent="i2", changed=changed)
    assert 0 < read <= extents.total(changed) * 4
    assert list(third.rows) == direct(fresh) == rows(unit, "i3")
    assert [row.size for row in third.rows if row.path == "dir3/file-3"] == [77]
    assert rows(unit, "i1") == rows(unit, "i2") == list(first.rows)


def test_what_cannot_be_read_is_a_warning_and_the_rest_goes_on(unit: units.StorageUnit, tmp_path: Path) -> None:
    content = volume(tmp_path)
    disk = Source(content)
    writer = unit.begin(samples.label("i1"), [DISK])
    written = writer.write(disk, meter=meters.Meter())
    with fileindexing.Indexing(unit, None, meters.Meter(), wanted=True) as index:
        short = index.look(Source(content, held=((0, 65536),)), written.changed, known=False, quiesced=False)
        assert short is not None
        assert [(one.code, "not in the holding area" in one.message) for one in short.warnings] == [
            ("FilesNotIndexed", True)
        ]
        assert index.attach(writer, [short]) == short.warnings
    writer.commit(samples.label("i1"))
    with contextlib.closing(unit.open("i1")) as stored:
        assert fileindexing.index_of(stored) is None
    # A parent without an index is no obstacle to the next one's.
    found, _ = store(unit, "i2", Source(content), parent="i1")
    assert list(found.rows) == direct(content) == rows(unit, "i2")


def test_more_volumes_than_an_index_can_tell_of_are_a_warning(unit: units.StorageUnit) -> None:
    """Nobody has so many of such names; a guest that means harm may."""
    dice = random.Random(1)
    names = ("".join(chr(dice.randrange(0x10000, 0x110000)) for _ in range(128)) for _ in range(4_000))
    volumes = [pages.Volume(filesystem="ntfs", label=name, offset=0, length=1) for name in names]
    writer = unit.begin(samples.label("i1"), [DISK])
    writer.write(Source(bytes(MIB)), meter=meters.Meter())
    with fileindexing.Indexing(unit, None, meters.Meter(), wanted=True) as index:
        looked = [
            fileindexing.Looked(disk=pages.Disk(name=f"d{at}", volumes=tuple(volumes[at : at + 1_000])), rows=())
            for at in range(0, 4_000, 1_000)
        ]
        assert [one.code for one in index.attach(writer, looked)] == ["FilesNotIndexed"]
    writer.commit(samples.label("i1"))
    with contextlib.closing(unit.open("i1")) as stored:
        assert stored.attachments() == ()


def test_a_cancel_is_no_warning(unit: units.StorageUnit, tmp_path: Path) -> None:
    meter = meters.Meter()
    meter.cancel()
    with (
        fileindexing.Indexing(unit, None, meter, wanted=True) as index,
        pytest.raises(errors.Cancelled),
    ):
        index.look(Source(volume(tmp_path)), None, known=False, quiesced=False)


def test_nothing_is_read_of_a_disk_without_any_mark_of_a_file_system(unit: units.StorageUnit) -> None:
    disk = Source(bytes(8 * MIB))
    with fileindexing.Indexing(unit, None, meters.Meter(), wanted=True) as index:
        found = index.look(disk, None, known=False, quiesced=False)
    assert found is not None
    assert (found.rows, found.warnings, disk.read) == ((), (), (16 << 10) + 5 + 8)
