"""Whether a file stood still while it was read: what it was at the freeze, what it is now, and who may write to it.

A file that another process holds open for writing may be inconsistent even if its times do not move, and one whose
times moved was written even if nobody holds it now. Both are looked for at the beginning and at the end. Only what
this user may see in /proc is seen: run Holdfast as root, or as the user that runs the machines.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Nanoseconds within which two writes may leave the same time on a file (a tick of the slowest kernel clock, doubled).
_TICK = 20_000_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One file as it was at the freeze."""

    path: Path
    #: (device, inode), or for a block device (0, its number): what another process would have to hold open.
    key: tuple[int, int]
    #: Bytes.
    size: int
    mtime_ns: int
    ctime_ns: int
    block_device: bool


def mark(path: Path) -> Mark:
    """What ``path`` is now. Raises ``OSError`` if it is gone."""
    found = path.stat()
    if stat.S_ISBLK(found.st_mode):
        # The times of a device node say nothing about its content.
        return Mark(
            path=path, key=(0, found.st_rdev), size=_device_size(path), mtime_ns=0, ctime_ns=0, block_device=True
        )
    return Mark(
        path=path,
        key=(found.st_dev, found.st_ino),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        block_device=False,
    )


def _device_size(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)


def mark_settled(paths: Iterable[Path]) -> tuple[Mark, ...]:
    """Marks of files whose next write is certain to change their times. Raises ``OSError`` if one is gone."""
    paths = list(paths)
    marks = tuple(mark(path) for path in paths)
    newest = max((max(item.mtime_ns, item.ctime_ns) for item in marks), default=0)
    now = time.time_ns()
    if now - _TICK < newest <= now:
        time.sleep(_TICK / 1e9)
        marks = tuple(mark(path) for path in paths)
    return marks


def moved(before: Mark) -> tuple[str, str] | None:
    """What happened to a file since its mark, as a code and a sentence; None if nothing did."""
    name = before.path.name
    try:
        after = mark(before.path)
    except OSError as error:
        return "DiskVanished", f"{name} vanished while it was read: {error.strerror}"
    if after.key != before.key:
        return "DiskVanished", f"{name} was replaced by another file while it was read"
    if after.size != before.size:
        return "DiskResized", f"{name} went from {before.size} to {after.size} bytes while it was read"
    if after.mtime_ns != before.mtime_ns:
        return "DiskChanged", f"{name} was written while it was read"
    if after.ctime_ns != before.ctime_ns:
        return "DiskChanged", f"the inode of {name} changed while it was read"
    return None


def writers(marks: Iterable[Mark]) -> dict[Path, str]:
    """Who holds which of these files open for writing: a process, or the kernel by a loop device or a mount."""
    marks = list(marks)
    wanted = {item.key: item.path for item in marks}
    # The node of a block device may have any inode; its number is all there is to compare.
    inodes = None if any(item.block_device for item in marks) else {item.key[1] for item in marks}
    found: dict[Path, str] = {}
    for key, who in (*_open_files(inodes), *_loop_devices()):
        if key in wanted:
            found.setdefault(wanted[key], who)
    for item in marks:
        if item.block_device and item.path not in found and _claimed(item.path):
            found[item.path] = "the kernel: it is mounted, or part of another device"
    return found


def _open_files(inodes: set[int] | None) -> Iterator[tuple[tuple[int, int], str]]:
    """Every (key, process) with write access that this user may see; one that ends meanwhile counts as gone."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            handles = list((process / "fdinfo").iterdir())
        except OSError:
            continue
        for handle in handles:
            try:
                if not _may_write(handle, inodes):
                    continue
                found = (process / "fd" / handle.name).stat()
                name = (process / "comm").read_text(errors="replace").strip()
            except OSError:
                continue
            key = (0, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)
            yield key, f"process {process.name} ({name})"


def _may_write(information: Path, inodes: set[int] | None) -> bool:
    """Whether a handle has write access, and may be one of ``inodes``: asked of the kernel, not of a file system."""
    fields = dict(line.split(":", 1) for line in information.read_text(errors="replace").splitlines() if ":" in line)
    if int(fields.get("flags", "0"), 8) & os.O_ACCMODE == os.O_RDONLY:
        return False
    return inodes is None or "ino" not in fields or int(fields["ino"]) in inodes


def _loop_devices() -> Iterator[tuple[tuple[int, int], str]]:
    """Files behind writable loop devices, which the kernel holds without any process."""
    for device in Path("/sys/block").glob("loop*"):
        try:
            backing = (device / "loop/backing_file").read_text().rstrip("\n")
            if (device / "ro").read_text().strip() != "0":
                continue
            found = Path(backing).stat()
        except OSError:
            continue
        yield (found.st_dev, found.st_ino), f"loop device {device.name}"


def _claimed(path: Path) -> bool:
    """Whether the kernel uses a block device exclusively."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY  # any other reason is reported by whoever reads the disk
    return False
