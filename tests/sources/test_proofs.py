"""A restore proves what it wrote a stretch behind the writer; each stretch is read from the file, not from memory."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from reconciler.base import digests, errors, meters
from reconciler.operations import proofs
from reconciler.sources import targets

MIB = 1 << 20
SIZE = 200 * MIB + 512
#: Two in the first stretches, one across a boundary between them, one in the short block at the end.
WRITES = ((0, 3 * MIB), (63 * MIB, 2 * MIB), (130 * MIB, 4 * MIB), (200 * MIB, 512))


def content() -> dict[int, bytes]:
    noise = random.Random(11)
    return {offset: noise.randbytes(length) for offset, length in WRITES}


def expected() -> str:
    listed = digests.zero_list(SIZE)
    for offset, data in content().items():
        for start in range(0, len(data), MIB):
            index = (offset + start) // MIB
            listed[index * 32 : index * 32 + 32] = digests.digest(data[start : start + MIB])
    return digests.disk_digest(listed)


def write(path: Path, format: str, *, spoil: int | None = None) -> str:
    target = targets.open_target(format, path, SIZE)
    try:
        with contextlib.closing(proofs.Proof(target, SIZE, meters.Meter())) as proof:
            for offset, data in content().items():
                target.pwrite(offset, data)
                if offset == spoil:
                    (temporary,) = [one for one in path.parent.iterdir() if one.name.startswith(".")]
                    with temporary.open("r+b") as file:
                        file.seek(offset + 100)
                        file.write(b"not this")
                proof.follow(offset + len(data))
            found = proof.finish()
        target.finish()
    finally:
        target.abort()
    return found


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_the_digest_is_that_of_the_disk(tmp_path: Path, format: str) -> None:
    assert write(tmp_path / "disk", format) == expected()


@pytest.mark.parametrize("spoil", [offset for offset, _ in WRITES])
def test_what_the_file_holds_is_proven_and_not_what_was_given(tmp_path: Path, spoil: int) -> None:
    assert write(tmp_path / "disk", "raw", spoil=spoil) != expected()


def test_a_writer_hears_that_an_earlier_stretch_cannot_be_read(tmp_path: Path) -> None:
    target = targets.open_target("raw", tmp_path / "disk", SIZE)
    with contextlib.closing(proofs.Proof(target, SIZE, meters.Meter())) as proof:
        target.pwrite(0, b"x" * MIB)
        (temporary,) = list(tmp_path.iterdir())
        os.truncate(temporary, MIB // 2)
        with pytest.raises(errors.SourceError):
            for end in range(64, 193, 64):
                proof.follow(end * MIB)
            proof.finish()
    target.abort()
    assert list(tmp_path.iterdir()) == []
