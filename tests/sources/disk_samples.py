"""Disks for the tests of sources and targets: real files made by qemu-img from bytes that are known."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from reconciler.base import disks
from reconciler.sources import hooks
from reconciler.sources import machines as port
from reconciler.sources.diskimages import machines
from reconciler.sources.nbd import bindings

MIB = 1 << 20

needs_qemu = pytest.mark.skipif(bindings.missing() is not None, reason=str(bindings.missing()))


def qemu(*command: str | Path, given: str | None = None) -> str:
    """Run a qemu tool; its output."""
    done = subprocess.run([str(word) for word in command], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def content(size: int, seed: int = 1) -> bytes:
    """``size`` bytes: data at both ends and in the middle, holes between."""
    rng = random.Random(seed)
    data = bytearray(size)
    for start, length in ((0, size // 8), (size // 3, size // 10 + 7), (size - size // 9, size // 9)):
        data[start : start + length] = rng.randbytes(length)
    return bytes(data)


def write_raw(path: Path, data: bytes) -> Path:
    """A sparse raw file."""
    with path.open("wb") as file:
        file.truncate(len(data))
        for start in range(0, len(data), 65536):
            piece = data[start : start + 65536]
            if piece.strip(b"\0"):
                file.seek(start)
                file.write(piece)
    return path


def write_image(path: Path, data: bytes, format: str, options: str = "") -> Path:
    """An image file with ``data`` as its virtual disk."""
    raw = write_raw(path.with_name("." + path.name + ".raw"), data)
    qemu("qemu-img", "convert", "-f", "raw", "-O", format, *(["-o", options] if options else []), raw, path)
    raw.unlink()
    return path


def source(
    root: Path,
    *,
    disks: Sequence[str] = ("*.img", "*.raw", "*.qcow2", "*.vmdk", "*.vhdx"),
    pattern: str = "*",
    allow_live: bool = False,
    commands: hooks.Hooks | None = None,
    bitmap: str | None = None,
) -> machines.DiskImages:
    """A source over every sub-folder of ``root``."""
    return machines.DiskImages(
        path=root, machines=pattern, disks=disks, hooks=commands, allow_live=allow_live, changed_blocks_bitmap=bitmap
    )


def freeze(source: machines.DiskImages) -> port.Reading:
    """A reading of the only machine there is."""
    (machine,) = source.inventory().machines
    return source.freeze(machine.id)


def whole(disk: disks.Disk, step: int = MIB + 4096) -> bytes:
    """All bytes of a disk, read through its extents."""
    data = bytearray(disk.size)
    for offset, length in disk.extents():
        for start in range(offset, offset + length, step):
            size = min(step, offset + length - start)
            data[start : start + size] = disk.pread(start, size)
    return bytes(data)


def children(program: str = "qemu-nbd") -> set[int]:
    """Process ids of that program below this process, however they are doing."""
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if name.startswith(program) and parent == os.getpid():
            found.add(int(folder.name))
    return found


def copied(path: Path, name: str) -> Path:
    """A copy beside ``path``."""
    return Path(shutil.copy(path, path.with_name(name)))
