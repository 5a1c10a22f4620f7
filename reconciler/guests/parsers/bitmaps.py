"""Which clusters of a volume are in use: one bit each, as its file system says, plus whatever anything claims.

NTFS, ext and exFAT store such bitmaps; for FAT and XFS one is made from what they store instead. A claim sets bits
whatever the file system said, so that what an entry points at is never called free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Bytes without a used bit, bytes without a free bit, and the few mixed ones between.
_KINDS = re.compile(rb"\x00+|\xff+|[^\x00\xff]+", re.DOTALL)


def _gaps(byte: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for bit in range(8):
        if byte >> bit & 1:
            continue
        if found and sum(found[-1]) == bit:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((bit, 1))
    return tuple(found)


#: For every byte its runs of clear bits, lowest first, as (bit, count).
_GAPS = tuple(_gaps(byte) for byte in range(256))


class Bitmap:
    """Bits of ``count`` clusters of ``unit`` bytes each; cluster 0 starts at byte ``base`` of the volume."""

    def __init__(self, bits: bytearray, *, count: int, unit: int, base: int) -> None:
        if len(bits) * 8 < count:
            raise ValueError(f"{len(bits)} bytes cannot hold {count} bits")
        self._bits = bits
        self._count = count
        self._unit = unit
        self._base = base

    def mark(self, first: int, count: int, used: bool) -> None:
        """Set or clear the bits of ``count`` clusters from ``first``; what lies outside is ignored."""
        last = min(first + count, self._count)
        first = max(first, 0)
        if first >= last:
            return
        bits, low, high = self._bits, first >> 3, (last - 1) >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last - 1 & 7))
        if low == high:
            head &= tail
        else:
            bits[high] = bits[high] | tail if used else bits[high] & ~tail & 0xFF
        bits[low] = bits[low] | head if used else bits[low] & ~head & 0xFF
        if high - low > 1:
            bits[low + 1 : high] = (b"\xff" if used else b"\x00") * (high - low - 1)

    def claim(self, offset: int, length: int) -> None:
        """Mark every cluster used that holds a byte of this range of the volume."""
        first = (offset - self._base) // self._unit
        self.mark(first, -(-(offset + length - self._base) // self._unit) - first, True)

    def release(self, offset: int, length: int) -> None:
        """Mark every cluster free that lies wholly in this range of the volume."""
        first = -(-(offset - self._base) // self._unit)
        self.mark(first, (offset + length - self._base) // self._unit - first, False)

    def _runs(self) -> Iterator[tuple[int, int]]:
        for match in _KINDS.finditer(self._bits):
            start, end = match.span()
            byte = self._bits[start]
            if byte == 0:
                yield start * 8, (end - start) * 8
            elif byte != 0xFF:
                for at in range(start, end):
                    for bit, count in _GAPS[self._bits[at]]:
                        yield at * 8 + bit, count

    def free(self, least: int = 1) -> Iterator[tuple[int, int]]:
        """Free ranges of the volume as (offset, length), ordered and apart, none under ``least`` clusters."""
        start, end = 0, 0
        for first, count in self._runs():
            if first == end:
                end += count
                continue
            if end - start >= least:
                yield self._range(start, end)
            start, end = first, first + count
        if min(end, self._count) - start >= least:
            yield self._range(start, min(end, self._count))

    def _range(self, start: int, end: int) -> tuple[int, int]:
        end = min(end, self._count)
        return self._base + start * self._unit, (end - start) * self._unit
