"""Disks as the index of files reads them: over what lies on the unit already, and remembering what was read.

Used by ``fileindexing`` alone. A listing reads little of a disk, but reads it from a source that may be far away, or
that holds only what changed; the parent image on the unit has the rest.
"""

from __future__ import annotations

import threading
from array import array
from typing import Final

from reconciler.base import disks, extents

#: Bytes: reads are remembered in pieces of this size at first, in larger ones where they are many.
_PIECE: Final = 64 << 10
_PIECES: Final = 1_000

#: The disks have a method of the module's name.
_Ranges = extents.Extents


class OverlaidDisk(disks.Closing):
    """What changed from a source, the rest from an older image of the same disk. Closes neither."""

    def __init__(self, source: disks.Disk, below: disks.Disk, changed: extents.Extents) -> None:
        """``changed``: ordered, disjoint; outside of it both hold the same."""
        self.name = source.name
        self.size = source.size
        self.sector = source.sector
        self._source = source
        self._below = below
        self._changed = changed
        self._starts = array("q", (offset for offset, _ in changed))

    def extents(self) -> extents.Extents:
        """The whole disk: nobody copies it."""
        return ((0, self.size),)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """The bytes. Raises what either raises."""
        changed = extents.within(self._changed, self._starts, offset, length)
        if changed == ((offset, length),):
            return self._source.pread(offset, length)
        if not changed:
            return self._below.pread(offset, length)
        data = bytearray(self._below.pread(offset, length))
        for start, count in changed:
            data[start - offset : start - offset + count] = self._source.pread(start, count)
        return data

    def close(self) -> None:
        """Nothing: both belong to others."""


class WatchedDisk(disks.Closing):
    """A disk that remembers what was read of it. Does not close it."""

    def __init__(self, disk: disks.Disk) -> None:
        self.name = disk.name
        self.size = disk.size
        self.sector = disk.sector
        self._disk = disk
        self._lock = threading.Lock()
        self._read: set[int] = set()

    def extents(self) -> extents.Extents:
        """Those of the disk."""
        return self._disk.extents()

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """The bytes."""
        with self._lock:
            self._read.update(range(offset // _PIECE, -(-(offset + length) // _PIECE)))
        return self._disk.pread(offset, length)

    def close(self) -> None:
        """Nothing: the disk belongs to others."""

    def reads(self) -> _Ranges:
        """Ranges that hold all that was read; few enough to be kept beside an image."""
        piece, numbers = _PIECE, self._read
        while True:
            found = extents.clip(((number * piece, piece) for number in numbers), self.size)
            if len(found) <= _PIECES:
                return found
            piece *= 2
            numbers = {number // 2 for number in numbers}
