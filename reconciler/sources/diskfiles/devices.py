"""Block devices as targets: written in place, all of the disk with its zeros, and never one that somebody uses.

The device is opened exclusively, which the kernel refuses for one that is mounted, swapped on, or part of a volume or
array. What lies behind the end of the disk is left as it was. A device has no name to be given at the end: one whose
restore failed holds part of a disk, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from reconciler.base import crashes, disks, errors, extents, quantities
from reconciler.sources.diskfiles import directs, rawfiles, temporaries

_ZERO_OUT: Final = 0x127F
_READ_TABLE: Final = 0x125F
_SECTOR: Final = 512
#: Bytes cleared by one call, so that a request to stop is heard.
_LARGEST_CLEARED: Final = 256 << 20


def is_device(path: Path) -> bool:
    """Whether ``path`` is a block device."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def check(path: Path, size: int, units: tuple[Path, ...]) -> int:
    """Bytes of the device. Raises ``TargetError`` where it is too small, in use, not writable, or under one of the
    folders ``units``; ``NotFound`` where there is none."""
    handle = _opened(path)
    try:
        whole = os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)
    if whole < size:
        raise errors.TargetError(
            f"{path}: it has {quantities.show_size(whole)}, the disk has {quantities.show_size(size)}",
            hint=f"{size - whole} bytes are missing; choose a larger device",
        )
    for unit in units:
        if _under(path.stat().st_rdev, unit):
            raise errors.TargetError(
                f"{path}: the storage unit {unit}, which is read, lies on it", hint="choose another device"
            )
    return whole


def _opened(path: Path) -> int:
    """The device, ours alone. Raises ``TargetError`` or ``NotFound``."""
    if not is_device(path):
        raise errors.NotFound(f"{path} is not a block device", hint="name a device, or a folder for the disks")
    try:
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise errors.TargetError(
                f"{path}: it is in use: mounted, swapped on, or part of a volume",
                hint="unmount it, or stop what uses it",
            ) from error
        raise errors.TargetError(f"{path}: {error.strerror}", hint="check its permissions") from error


def _under(device: int, unit: Path) -> bool:
    """Whether a unit lies on a device, or the device is a loop over a file of the unit."""
    root = os.path.realpath(unit)
    with contextlib.suppress(OSError):
        backing = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file").read_text().strip()
        if os.path.commonpath([root, os.path.realpath(backing)]) == root:
            return True
    with contextlib.suppress(OSError):
        return device in _below(Path(root).stat().st_dev)
    return False


def _below(device: int) -> set[int]:
    """A device and all that it is made of, by what the kernel says."""
    found, waiting = {device}, [device]
    while waiting:
        one = waiting.pop()
        folder = Path(f"/sys/dev/block/{os.major(one)}:{os.minor(one)}").resolve()
        # The disk of a partition, and the members of a volume.
        parts = [folder.parent / "dev", *(slave / "dev" for slave in folder.glob("slaves/*"))]
        for part in parts:
            with contextlib.suppress(OSError, ValueError):
                major, _, minor = part.read_text().strip().partition(":")
                number = os.makedev(int(major), int(minor))
                if number not in found:
                    found.add(number)
                    waiting.append(number)
    return found


class Device:
    """A block device being written."""

    #: What was there before shows where nothing is written.
    covers = True
    #: It may hold the same disk in part, or anything else.
    doubtful = True

    def __init__(self, path: Path, size: int) -> None:
        """Take the device. Raises ``TargetError`` or ``NotFound``."""
        self.path = path
        self.notes: list[str] = []
        self._size = size
        self._handle = _opened(path)
        self._direct = directs.Direct(self._handle)
        self._whole = os.lseek(self._handle, 0, os.SEEK_END)
        if self._whole > size:
            left = quantities.show_size(self._whole - size)
            self.notes.append(f"{path} is larger than the disk: the last {left} are as they were")

    def held(self) -> extents.Extents:
        """All of it: it may hold a part of this disk already."""
        return ((0, self._size),)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """What lies there now."""
        with temporaries.translated(self.path):
            return os.pread(self._handle, length, offset)

    def pwrite(self, offset: int, data: disks.Buffer, *, over: bool = True) -> None:  # noqa: ARG002 - the port's
        """Write all of it, zeros too: something lies there in any case."""
        with temporaries.translated(self.path):
            self._direct.write(data, offset)

    def zero(self, offset: int, length: int) -> None:
        """Let the device clear it, or write zeros."""
        with temporaries.translated(self.path):
            for start in range(offset, offset + length, _LARGEST_CLEARED):
                self._clear(start, min(_LARGEST_CLEARED, offset + length - start))

    def _clear(self, offset: int, length: int) -> None:
        if not (offset % _SECTOR or length % _SECTOR):
            if rawfiles.punch(self._handle, offset, length):
                return
            with contextlib.suppress(OSError):  # not every device can: then zeros are written as anything else is
                fcntl.ioctl(self._handle, _ZERO_OUT, struct.pack("QQ", offset, length))
                return
        rawfiles.write_zeros(self._handle, offset, length)

    def settle(self) -> disks.Disk:
        """What was written so far."""
        return directs.WrittenDisk(self.path, self._size) if self._direct.works else self.read_back()

    def flush(self) -> None:
        """Make it durable. Idempotent."""
        with temporaries.translated(self.path):
            os.fsync(self._handle)

    def read_back(self) -> disks.Disk:
        """What the device holds, not what is still in memory."""
        self.flush()
        return directs.WrittenDisk(self.path, self._size)

    def finish(self) -> None:
        """Let the kernel look at it anew, and let go."""
        self.flush()
        crashes.passing("restore.before-rename")
        with contextlib.suppress(OSError):  # not every device has partitions
            fcntl.ioctl(self._handle, _READ_TABLE)
        self.abort()

    def abort(self) -> None:
        """Let go; what was written stays. Idempotent."""
        self._direct.close()
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
