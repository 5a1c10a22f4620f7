"""Reading the disk from inside the child: requests over a socket, a bounded cache, volumes as stretches of the disk.

Every parser reads through a ``Stretch``, whose offsets start at the volume's first byte, and turns its finds into
ranges of the disk with ``Stretch.places``: a partition is one piece, a logical volume may be many.
"""

from __future__ import annotations

import bisect
import collections
import socket
from collections.abc import Iterable, Iterator

from reconciler.guests import wires

#: Bytes of a table of inodes or records that are looked at together where only what changed is of interest.
GRAIN = 64 << 10
#: Bytes per cached block, and how many are kept: 12 MiB in all.
BLOCK = 128 << 10
BLOCKS = 96


class Truncated(Exception):
    """A structure points outside its volume, or ends too early."""


class Line:
    """The child's end of the socket: asks for bytes, hands back frames."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, frame: bytes) -> None:
        """Hand one frame to the parent."""
        self._connection.sendall(frame)

    def receive(self, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises ``EOFError`` when the parent went away."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self._connection.recv_into(view)
            if not count:
                raise EOFError("the parent closed the line")
            view = view[count:]
        return bytes(data)


class Disk:
    """The whole disk, behind a cache of its blocks."""

    def __init__(self, line: Line, size: int, within: list[tuple[int, int]] | None = None) -> None:
        """``within``: ordered, disjoint ranges outside which nothing changed; None where all of it may have."""
        self._line = line
        self.size = size
        self._within = within
        self._starts = [offset for offset, _ in within or ()]
        self._cache: collections.OrderedDict[int, bytes] = collections.OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer where the disk ends."""
        length = min(length, self.size - offset)
        if offset < 0 or length <= 0:
            return b""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        if first == last:
            start = offset - first * BLOCK
            return self._block(first)[start : start + length]
        if last - first > 4:
            return b"".join(
                self._ask(at, min(wires.MOST_READ, offset + length - at)) for at in self._steps(offset, length)
            )
        whole = b"".join(self._block(number) for number in range(first, last + 1))
        return whole[offset - first * BLOCK : offset - first * BLOCK + length]

    @property
    def partly(self) -> bool:
        """Whether only what changed is of interest."""
        return self._within is not None

    def touched(self, offset: int, length: int) -> bool:
        """Whether anything of a range may have changed."""
        if self._within is None:
            return True
        number = bisect.bisect_left(self._starts, offset + length) - 1
        return number >= 0 and sum(self._within[number]) > offset

    @staticmethod
    def _steps(offset: int, length: int) -> range:
        return range(offset, offset + length, wires.MOST_READ)

    def _block(self, number: int) -> bytes:
        data = self._cache.get(number)
        if data is not None:
            self._cache.move_to_end(number)
            return data
        data = self._ask(number * BLOCK, min(BLOCK, self.size - number * BLOCK))
        self._cache[number] = data
        if len(self._cache) > BLOCKS:
            self._cache.popitem(last=False)
        return data

    def _ask(self, offset: int, length: int) -> bytes:
        self._line.send(wires.ask(offset, length))
        return self._line.receive(length)


class Stretch:
    """A volume: pieces of the disk, one after the other. Offsets are bytes from the volume's start."""

    def __init__(self, disk: Disk, pieces: Iterable[tuple[int, int]]) -> None:
        self._disk = disk
        self._starts: list[int] = []
        self._pieces: list[tuple[int, int]] = []
        self.size = 0
        for offset, length in pieces:
            length = min(length, disk.size - offset)
            if offset < 0 or length <= 0:
                raise Truncated(f"a piece at {offset} lies outside the disk of {disk.size} bytes")
            self._starts.append(self.size)
            self._pieces.append((offset, length))
            self.size += length

    @property
    def disk(self) -> Disk:
        """The disk it is a part of."""
        return self._disk

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Disk offset and length of every piece, in the volume's order."""
        return self._pieces

    def places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Disk ranges of a range of the volume, in order, clipped to the volume."""
        end = min(offset + length, self.size)
        if offset < 0 or offset >= end:
            return
        number = bisect.bisect_right(self._starts, offset) - 1
        while offset < end:
            start, (place, size) = self._starts[number], self._pieces[number]
            step = min(start + size, end) - offset
            yield place + offset - start, step
            offset += step
            number += 1

    @property
    def partly(self) -> bool:
        """Whether only what changed is of interest."""
        return self._disk.partly

    def touched(self, offset: int, length: int) -> bool:
        """Whether anything of a range of the volume may have changed."""
        return any(self._disk.touched(place, count) for place, count in self.places(offset, length))

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer where the volume ends."""
        if len(self._pieces) == 1:
            place, size = self._pieces[0]
            return self._disk.read(place + offset, min(length, size - offset)) if 0 <= offset < size else b""
        return b"".join(self._disk.read(place, count) for place, count in self.places(offset, length))

    def exactly(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``. Raises ``Truncated`` where the volume ends before them."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Truncated(f"{length} bytes at {offset} reach beyond the volume of {self.size} bytes")
        return self.read(offset, length)

    def part(self, offset: int, length: int) -> Stretch:
        """A stretch of this stretch, clipped to it. Raises ``Truncated`` when nothing is left."""
        return Stretch(self._disk, list(self.places(offset, length)) or [(-1, 0)])
