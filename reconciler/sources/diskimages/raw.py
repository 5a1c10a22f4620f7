"""Raw disks, read directly: plain files with holes, and block devices.

The file is opened once and only that inode is read, so a file renamed over it in the meantime cannot mix into the
bytes. A read that comes back short means that the file shrank: ``SourceChanged``.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

from reconciler.base import disks, errors, extents

#: Bytes per logical sector of a disk that does not say.
SECTOR = 512
#: Bytes that leave the page cache together once a reader is past them.
_STRETCH = 8 << 20


def data_ranges(handle: int, size: int) -> extents.Extents:
    """Where a file may hold data, by its holes; the whole of it where the file system knows none (block devices)."""
    found: list[extents.Extent] = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(handle, offset, os.SEEK_DATA)
            end = os.lseek(handle, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO and not stat.S_ISBLK(os.fstat(handle).st_mode):
                break
            return ((0, size),)
        found.append((start, end - start))
        offset = end
    return extents.clip(found, size)


class RawDisk(disks.Closing):
    """A raw file or block device as a Disk. Thread-safe."""

    def __init__(self, name: str, path: Path, *, size: int | None = None) -> None:
        """Open ``path``; ``size`` bytes of it where only its beginning is the disk. Raises ``SourceError``."""
        self.name = name
        self.sector = SECTOR
        self._path = path
        self._lock = threading.Lock()
        self._ranges: extents.Extents | None = None
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            whole = os.lseek(self._handle, 0, os.SEEK_END)
        except OSError as error:
            raise errors.SourceError(f"{path}: {error.strerror}", hint="check the path, and its permissions") from error
        self.size = whole if size is None else size

    def extents(self) -> extents.Extents:
        """Data by the file's holes, found at the first call."""
        with self._lock:
            if self._ranges is None:
                self._ranges = data_ranges(self._handle, self.size)
            return self._ranges

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``SourceChanged`` where the file has become too short for them."""
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        try:
            data = os.pread(self._handle, length, offset)
            while len(data) < length:
                more = os.pread(self._handle, length - len(data), offset + len(data))
                if not more:
                    raise errors.SourceChanged(
                        f"{self._path}: ends at {offset + len(data)}, and had {self.size} bytes when it was opened",
                        hint="back the machine up while nothing writes to its disks, or freeze it with hooks",
                    )
                data += more
        except OSError as error:
            raise errors.SourceError(f"{self._path}: reading {length} bytes at {offset}: {error.strerror}") from error
        self._leave((offset + length) // _STRETCH, offset // _STRETCH)
        return data

    def _leave(self, now: int, before: int) -> None:
        """A disk is read once: it must not push what the host works with out of memory, nor wait for room there."""
        if now > before > 0:
            os.posix_fadvise(self._handle, (before - 1) * _STRETCH, (now - before) * _STRETCH, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1
