"""A volume with newer copies of some of its sectors, which are kept in memory: what a log makes of it.

Whoever replays a log writes into an ``Overlay``; all who read names and files read through it and do not know. Files'
own bytes are never in a log, so ``places`` are those of the bare volume.
"""

from __future__ import annotations

import weakref
from typing import ClassVar

from reconciler.guests.parsers import outputs, stretches

_SECTOR = 512
#: Sectors that are kept for all volumes that are open at once: 256 MiB.
_MOST = 512 << 10


class Overlay(stretches.Stretch):
    """A stretch whose bytes can be changed; the disk is not."""

    #: By overlay how many sectors it keeps: a browser has several open.
    _all: ClassVar[weakref.WeakKeyDictionary[Overlay, int]] = weakref.WeakKeyDictionary()

    def __init__(self, stretch: stretches.Stretch) -> None:
        super().__init__(stretch.disk, stretch.pieces)
        self._plain = stretch
        self._newer: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer where the volume ends."""
        first, last = offset // _SECTOR, (offset + max(length, 1) - 1) // _SECTOR
        newer = self._newer
        if last - first > len(newer):
            found = sorted(number for number in newer if first <= number <= last)
        else:
            found = [number for number in range(first, last + 1) if number in newer]
        if len(found) == last + 1 - first:
            whole = b"".join([newer[number] for number in found])
            return whole[offset - first * _SECTOR : offset - first * _SECTOR + length]
        data = self._plain.read(offset, length)
        if not found:
            return data
        patched = bytearray(data)
        for number in found:
            start, end = max(number * _SECTOR, offset), min((number + 1) * _SECTOR, offset + len(data))
            patched[start - offset : end - offset] = newer[number][start - number * _SECTOR : end - number * _SECTOR]
        return bytes(patched)

    def write(self, offset: int, data: bytes) -> None:
        """Lay bytes over the volume. Raises ``Truncated`` where they do not fit on it, and ``TooMuch``."""
        start, end = offset // _SECTOR * _SECTOR, offset + len(data)
        whole = -(-end // _SECTOR) * _SECTOR
        if start != offset:
            data = self.exactly(start, offset - start) + data
        if whole != end:
            data += self.exactly(end, whole - end)
        if offset < 0 or whole > self.size:
            raise stretches.Truncated(f"{len(data)} bytes at {offset} do not fit on a volume of {self.size} bytes")
        before = len(self._newer)
        for at in range(0, len(data), _SECTOR):
            self._newer[(start + at) // _SECTOR] = data[at : at + _SECTOR]
        if len(self._newer) > before:
            self._all[self] = len(self._newer)
            if sum(self._all.values()) > _MOST:
                raise outputs.TooMuch(f"newer copies of more than {_MOST * _SECTOR >> 20} MiB")
