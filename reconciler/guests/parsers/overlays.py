"""A volume with newer copies of some of its blocks: what a log makes of it.

``Patched`` reads through to them, wherever they are kept: in an ``Overlay``, which whoever replays a log writes into,
in memory; ``ext_journals`` knows where they lie on the volume. All who read names and files do not know. Files' own
bytes are never in the log of an ``Overlay``, so its ``places`` are those of the bare volume.
"""

from __future__ import annotations

import abc
import weakref
from collections.abc import Collection
from typing import ClassVar

from reconciler.guests.parsers import outputs, stretches

_SECTOR = 512
#: Sectors that are kept for all volumes that are open at once: 256 MiB.
_MOST = 512 << 10


class Patched(stretches.Stretch, abc.ABC):
    """A stretch of which some blocks are read from newer copies."""

    def __init__(self, stretch: stretches.Stretch, block: int, newer: Collection[int]) -> None:
        """``block``: bytes of a block; ``newer``: the numbers of those that have a copy, as they are at each read."""
        super().__init__(stretch.disk, stretch.pieces)
        self._plain, self._block, self._numbers = stretch, block, newer

    @abc.abstractmethod
    def _copy(self, number: int) -> bytes:
        """The newer copy of a block, whole."""

    def _within(self, offset: int, length: int) -> list[int]:
        """The blocks of a range that have newer copies, ascending."""
        blocks = range(offset // self._block, (offset + max(length, 1) - 1) // self._block + 1)
        if len(blocks) > len(self._numbers):
            return sorted(number for number in self._numbers if number in blocks)
        return [number for number in blocks if number in self._numbers]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer where the volume ends."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        found, block = self._within(offset, length), self._block
        skipped = offset % block
        if len(found) * block >= skipped + length:
            return b"".join(map(self._copy, found))[skipped : skipped + length]
        data = self._plain.read(offset, length)
        if not found:
            return data
        patched = bytearray(data)
        for number in found:
            start, end = max(number * block, offset), min((number + 1) * block, offset + len(data))
            patched[start - offset : end - offset] = self._copy(number)[start - number * block : end - number * block]
        return bytes(patched)


class Overlay(Patched):
    """A stretch whose bytes can be changed; the disk is not."""

    #: By overlay how many sectors it keeps: a browser has several open.
    _all: ClassVar[weakref.WeakKeyDictionary[Overlay, int]] = weakref.WeakKeyDictionary()

    def __init__(self, stretch: stretches.Stretch) -> None:
        self._newer: dict[int, bytes] = {}
        super().__init__(stretch, _SECTOR, self._newer)

    def _copy(self, number: int) -> bytes:
        return self._newer[number]

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
