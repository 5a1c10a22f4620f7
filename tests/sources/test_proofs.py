"""A restore proves what it wrote, all of it or a sample; what is proven is read from the file, not from memory."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from reconciler.base import digests, disks, errors, meters
from reconciler.operations import proofs
from reconciler.sources import targets
from reconciler.sources.diskfiles import rawfiles

MIB = 1 << 20
SIZE = 200 * MIB + 512
#: Two in the first stretches, one across a boundary between them, one in the short block at the end.
WRITES = ((0, 3 * MIB), (63 * MIB, 2 * MIB), (130 * MIB, 4 * MIB), (200 * MIB, 512))


def content() -> dict[int, bytes]:
    noise = random.Random(11)
    return {offset: noise.randbytes(length) for offset, length in WRITES}


def listed() -> bytes:
    listed = digests.zero_list(SIZE)
    for offset, data in content().items():
        for start in range(0, len(data), MIB):
            index = (offset + start) // MIB
            listed[index * 32 : index * 32 + 32] = digests.digest(data[start : start + MIB])
    return bytes(listed)


def expected() -> str:
    return digests.disk_digest(listed())


def write(path: Path, format: str, *, whole: bool, spoil: int | None = None, hole: int | None = None) -> str:
    target = targets.open_target(format, path, SIZE)
    try:
        with contextlib.closing(proofs.proof(target, SIZE, listed(), meters.Meter(), whole=whole)) as proof:
            for offset, data in content().items():
                target.pwrite(offset, data)
                if offset == spoil:
                    (temporary,) = [one for one in path.parent.iterdir() if one.name.startswith(".")]
                    with temporary.open("r+b") as file:
                        file.seek(offset + 100)
                        file.write(b"not this")
                if offset == hole:
                    (temporary,) = [one for one in path.parent.iterdir() if one.name.startswith(".")]
                    with temporary.open("r+b") as file:
                        assert rawfiles.punch(file.fileno(), offset + MIB, MIB)
                proof.follow(offset + len(data))
            found = proof.finish()
        target.finish()
    finally:
        target.abort()
    return found


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_the_digest_is_that_of_the_disk(tmp_path: Path, format: str, whole: bool) -> None:
    assert write(tmp_path / "disk", format, whole=whole) == expected()


@pytest.mark.parametrize("spoil", [offset for offset, _ in WRITES])
def test_what_the_file_holds_is_proven_and_not_what_was_given(tmp_path: Path, spoil: int) -> None:
    assert write(tmp_path / "disk", "raw", whole=True, spoil=spoil) != expected()


@pytest.mark.parametrize("spoil", [WRITES[0][0], WRITES[-1][0]])
def test_a_sample_has_the_first_and_the_last_block(tmp_path: Path, spoil: int) -> None:
    assert write(tmp_path / "disk", "raw", whole=False, spoil=spoil) != expected()


def test_a_sample_shows_every_block_that_did_not_arrive(tmp_path: Path) -> None:
    assert write(tmp_path / "disk", "raw", whole=False, hole=130 * MIB) != expected()


def test_a_sample_has_one_block_of_sixteen(tmp_path: Path) -> None:
    """Of 64 blocks in a row that are all false, four and the first and the last are found."""
    size = 64 * MIB
    data = random.Random(5).randbytes(MIB)
    target = targets.open_target("raw", tmp_path / "disk", size)
    for offset in range(0, size, MIB):
        target.pwrite(offset, data)
    wanted = digests.digest(bytes(MIB // 2)) * 64
    target.flush()
    for turn in (0, 5, 63):
        marked = wanted[:-1] + bytes([turn])
        with contextlib.closing(proofs.proof(target, size, marked, meters.Meter(), whole=False)) as proof:
            found = bytearray(marked)
            for index in {0, 63, *range(turn % 16, 64, 16)}:
                found[index * 32 : index * 32 + 32] = digests.digest(data)
            assert proof.finish() == digests.disk_digest(found)
    target.abort()


def test_a_writer_hears_that_an_earlier_stretch_cannot_be_read(tmp_path: Path) -> None:
    target = targets.open_target("raw", tmp_path / "disk", SIZE)
    with contextlib.closing(proofs.proof(target, SIZE, listed(), meters.Meter(), whole=True)) as proof:
        target.pwrite(0, b"x" * MIB)
        (temporary,) = list(tmp_path.iterdir())
        os.truncate(temporary, MIB // 2)
        with pytest.raises(errors.SourceError):
            for end in range(64, 193, 64):
                proof.follow(end * MIB)
            proof.finish()
    target.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "subformat"),
    [("raw", None), ("qcow2", None), ("vmdk", "sparse"), ("vmdk", "flat"), ("vmdk", "streamOptimized")],
)
def test_a_disk_of_no_bytes_is_one_too(tmp_path: Path, format: str, subformat: str | None) -> None:
    target = targets.open_target(format, tmp_path / "disk.vmdk", 0, subformat=subformat)
    with contextlib.closing(proofs.proof(target, 0, b"", meters.Meter(), whole=False)) as proof:
        if isinstance(target, targets.Filled):
            target.fill(disks.MemoryDisk("disk", b""), meters.Meter())
        assert proof.finish() == digests.disk_digest(b"")
    target.finish()
    if subformat is not None:
        # No VMDK has less than a sector.
        with contextlib.closing(targets.read_back("vmdk", tmp_path / "disk.vmdk", 512)) as found:
            assert found.pread(0, 512) == bytes(512)
