"""The tables of a stream-optimised VMDK held against the grains that came, in memory that does not grow with the disk.

A table is forgotten as soon as it has come and fits. Only a writer that keeps all its tables for the end makes this
remember more: four bytes a grain, up to a limit.
"""

from __future__ import annotations

import array
import bisect
import sys
from collections.abc import Sequence
from typing import Final

#: Entries of one table, and its sectors.
ENTRIES: Final = 512
SECTORS: Final = 4
_SECTOR: Final = 512
#: Tables that may be outstanding: those of a disk of 2 TiB in grains of 64 KiB, 128 MiB of memory.
_MOST: Final = 1 << 16
#: Tables without a grain that may come: those of a disk of 64 TiB.
_MOST_EMPTY: Final = 1 << 21
#: An entry for a grain that reads as zero and does not come.
_ZERO_GRAIN: Final = 1
_NOTHING: Final = array.array("I", bytes(4 * ENTRIES))


def packed(entries: Sequence[int]) -> bytes:
    """Entries as the file has them, little-endian words."""
    words = array.array("I", entries)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def parsed(data: bytes) -> Sequence[int]:
    """Entries out of whole sectors."""
    words = array.array("I", data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


class Seen:
    """Grains and tables so far. Sectors are counted from the start of the stream."""

    def __init__(self) -> None:
        self._pending: dict[int, array.array[int]] = {}
        #: Sector of each table that came and fits.
        self._placed: dict[int, int] = {}
        #: Sectors of tables that name nothing, in order.
        self._empty: array.array[int] = array.array("I")

    def grain(self, number: int, sector: int) -> bool:
        """Note a grain of the disk; false if it came before, or too many tables are owed."""
        table = number // ENTRIES
        if table in self._placed or (table not in self._pending and len(self._pending) >= _MOST):
            return False
        entries = self._pending.setdefault(table, array.array("I", bytes(4 * ENTRIES)))
        if entries[number % ENTRIES] or sector >= 1 << 32:
            return False
        entries[number % ENTRIES] = sector
        return True

    def table(self, sector: int, entries: Sequence[int]) -> bool:
        """Note a table; false if it fits no grains that came and have none yet."""
        named = _named(entries)
        if sector >= 1 << 32 or len(named) != ENTRIES:
            return False
        if named == _NOTHING:
            self._empty.append(sector)
            return len(self._empty) <= _MOST_EMPTY
        for table, came in self._pending.items():
            if came == named:
                self._placed[table] = sector
                del self._pending[table]
                return True
        return False

    def fit(self, directory: Sequence[int], count: int) -> bool:
        """Whether a directory of ``count`` tables names those that came, each at its place, and no grain is left."""
        if self._pending or len(directory) < count:
            return False
        for table, sector in enumerate(directory[:count]):
            placed = self._placed.get(table)
            if placed is None and (sector == 0 or self._is_empty(sector)):
                continue
            if placed != sector:
                return False
        return not any(directory[count:]) and all(table < count for table in self._placed)

    def _is_empty(self, sector: int) -> bool:
        place = bisect.bisect_left(self._empty, sector)
        return place < len(self._empty) and self._empty[place] == sector

    def fit_front(self, front: bytes, directory: int, count: int) -> bool:
        """Whether directory and tables in ``front``, the beginning of the file, name exactly the grains that came."""
        names = parsed(_cut(front, directory, -(-count * 4 // _SECTOR)))[:count]
        if len(names) < count or any(table >= count for table in self._pending):
            return False
        for table, sector in enumerate(names):
            content = _cut(front, sector, SECTORS) if sector else b""
            if sector and len(content) != SECTORS * _SECTOR:
                return False
            named = _named(parsed(content)) if sector else _NOTHING
            if self._pending.get(table, _NOTHING) != named:
                return False
        return True


def _cut(front: bytes, sector: int, count: int) -> bytes:
    return front[sector * _SECTOR : (sector + count) * _SECTOR]


def _named(entries: Sequence[int]) -> array.array[int]:
    return array.array("I", (0 if entry == _ZERO_GRAIN else entry for entry in entries))
