"""Real volumes for the tests of ``guests``: made by the tools of each file system, filled through a mount, remembered.

What a test compares with is what the kernel or ntfs-3g gave back while the volume was mounted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import pytest

from reconciler.base import disks
from reconciler.guests import scans

MIB = 1 << 20
#: 1970 as NTFS counts, in 100 nanoseconds.
NTFS_EPOCH = 116_444_736_000_000_000
SIZES = (0, 1, 200, 700, 4095, 4096, 4097, 30_000, 200_000, 1_500_000)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def run(*command: str | Path, **options: object) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return str(done.stdout)


def blank(path: Path, size: int) -> Path:
    """A sparse file of ``size`` bytes."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@contextlib.contextmanager
def mounted(image: Path, *, kind: str, options: str = "") -> Iterator[Path]:
    """``image`` mounted read-write; synced and unmounted at the end."""
    where = image.with_suffix(".mnt")
    where.mkdir(exist_ok=True)
    if kind == "ntfs":
        run("ntfs-3g", "-o", options or "streams_interface=windows", image, where)
    elif kind == "exfat":
        # FUSE wants a block device here; the loop device goes when it is unmounted.
        device = run("losetup", "--show", "-f", image).strip()
        run("mount.exfat-fuse", *(("-o", options) if options else ()), device, where)
        run("losetup", "-d", device)
    else:
        run("mount", "-t", kind, "-o", ",".join(filter(None, ("loop", options))), image, where)
    try:
        yield where
    finally:
        run("sync", "-f", where)
        run("umount", where)
        for _ in range(100):
            held = subprocess.run(["fuser", "-s", str(image)], check=False, capture_output=True)
            if kind not in ("ntfs", "exfat") or held.returncode:
                break


@contextlib.contextmanager
def copied(image: Path, *, write: bool) -> Iterator[Path]:
    """A FAT volume as a folder, for kernels that cannot mount it: read out at the start, written back at the end."""
    where = image.with_suffix(".out")
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    about = {**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
    if write:
        yield where
        for name in sorted(where.iterdir()):
            run("mcopy", "-s", "-m", "-Q", "-i", image, name, "::/", env=about)
    else:
        run("sh", "-c", f"mcopy -s -m -n -i {image} '::/*' {where}", env=about)
        yield where


def fill(root: Path, seed: int, *, count: int = 120, links: bool = True, odd: bool = True) -> None:
    """Folders and files of many sizes, with holes in the order in which they were laid down."""
    chosen = random.Random(seed)
    doomed: list[Path] = []
    for number in range(count):
        folder = root / f"dir{number % 7}" / f"sub{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file-{number}.bin"
        path.write_bytes(chosen.randbytes(chosen.choice(SIZES)))
        if number % 5 == 0:
            extra = folder / f"gone-{number}.bin"
            extra.write_bytes(chosen.randbytes(60_000))
            doomed.append(extra)
    for path in doomed:
        path.unlink()
    grown = [root / "dir0" / "grown-a.bin", root / "dir0" / "grown-b.bin"]
    with grown[0].open("ab") as one, grown[1].open("ab") as other:
        for _ in range(40):
            for file in (one, other):
                file.write(chosen.randbytes(chosen.randrange(20_000)))
                file.flush()
                os.fsync(file.fileno())
    if odd:
        (root / "dir1" / ("long " * 40 + "name.txt")).write_bytes(b"long")
        (root / "dir1" / "Grüße – 日本語 🙂.txt").write_bytes(b"odd" * 3000)
    if links:
        os.link(root / "dir0" / "grown-a.bin", root / "dir1" / "linked.bin")
        (root / "symbolic").symlink_to("dir0/grown-a.bin")
        with (root / "sparse.bin").open("wb") as file:
            file.truncate(9_000_000)
            file.seek(4_000_001)
            file.write(chosen.randbytes(100_000))


@dataclasses.dataclass(frozen=True)
class Known:
    """What a mount says of one path."""

    kind: str
    size: int
    digest: str
    modified: int
    links: int


def digest(data: bytes | memoryview) -> str:
    """BLAKE3 in hex."""
    return blake3.blake3(data).hexdigest()


def known(root: Path) -> dict[str, Known]:
    """Every path below ``root``."""
    found: dict[str, Known] = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = Path(folder) / name
            about = path.lstat()
            where = str(path.relative_to(root))
            if stat.S_ISREG(about.st_mode):
                content = digest(path.read_bytes())
                found[where] = Known("file", about.st_size, content, about.st_mtime_ns, about.st_nlink)
            elif stat.S_ISDIR(about.st_mode):
                found[where] = Known("directory", 0, "", about.st_mtime_ns, 0)
            else:
                kind = "symlink" if stat.S_ISLNK(about.st_mode) else "other"
                found[where] = Known(kind, 0, "", about.st_mtime_ns, about.st_nlink)
    return found


@contextlib.contextmanager
def opened(image: Path, *, sector: int = 512, change: Callable[[mmap.mmap], None] | None = None) -> Iterator[Mapped]:
    """``image`` as a Disk, mapped; what ``change`` writes into it stays in this process's memory."""
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        if change is not None:
            change(view)
        yield Mapped(image.name, view, sector)


class Mapped(disks.MemoryDisk):
    """A file seen as a disk; hands out bytes, so that the map can be closed."""

    def __init__(self, name: str, view: mmap.mmap, sector: int) -> None:
        super().__init__(name, b"", sector=sector)
        self.size = len(view)
        self._view = view

    def pread(self, offset: int, length: int) -> bytes:
        """A copy of the bytes."""
        assert offset >= 0 and offset + length <= self.size
        return self._view[offset : offset + length]


def content(disk: disks.Disk, file: scans.File) -> bytes:
    """A file's bytes by its extents; what they leave out is zero."""
    data = bytearray(file.size)
    for offset, place, length in file.extents:
        length = min(length, file.size - offset)
        if length > 0:
            data[offset : offset + length] = disk.pread(place, length)
    return bytes(data)


def wipe(image: Path, ranges: tuple[tuple[int, int], ...]) -> Path:
    """A copy of ``image`` with junk in ``ranges``: whatever still reads well does not need them."""
    copy = image.with_suffix(".wiped")
    run("cp", "--sparse=always", image, copy)
    with copy.open("r+b") as file:
        for offset, length in ranges:
            file.seek(offset)
            file.write(b"\xa5" * length)
    return copy
