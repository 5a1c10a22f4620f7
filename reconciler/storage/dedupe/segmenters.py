"""Cutting bytes of a disk, which come in disk order, into segments.

``Segmenter`` follows a plan: along the files of the guest where it has parts, at multiples of the segment size of the
disk's own offsets elsewhere. A segment whose parts come one after the other waits until its last one is there; if the
walk passes that without bringing it (it did not change, say), what is there is cut part by part. So the segments it
gives cover what it was fed exactly once, whatever the plan says. ``fingerprint`` leaves out segments of zeros.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from reconciler.base import disks
from reconciler.storage import blocks
from reconciler.storage.dedupe import cuts, recipes


class Segment(NamedTuple):
    """Bytes that are stored as one; a tuple, as there are millions of them."""

    data: disks.Buffer
    #: Where its bytes lie on the disk, in the order of the segment: (offset, length).
    parts: tuple[tuple[int, int], ...]


class _Waiting:
    """A segment of which some parts have come."""

    __slots__ = ("arrived", "parts", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrived = 0
        #: (within the segment, offset on the disk, bytes)
        self.parts: list[tuple[int, int, bytes]] = []


class Segmenter:
    """Cuts one disk. Used by one thread."""

    def __init__(self, segment_size: int, plan: cuts.Plan = cuts.EMPTY) -> None:
        self._size = segment_size
        self._plan = plan
        self._index = 0
        self._position = 0
        self._waiting: dict[int, _Waiting] = {}
        #: (where on the disk a waiting segment ends, its key), so that those that were passed are found at once.
        self._ends: list[tuple[int, int]] = []

    @property
    def settled(self) -> int:
        """Nothing that was fed below this offset of the disk waits any more."""
        return max(self._position - cuts.WINDOW, 0) if self._waiting else self._position

    def follow(self, plan: cuts.Plan) -> None:
        """Use a plan from the next bytes on."""
        self._plan = plan
        self._index = plan.first_after(self._position)

    def feed(self, offset: int, data: disks.Buffer) -> list[Segment]:
        """Bytes at ``offset``, which is not below the end of what was fed before; the segments that are whole now."""
        found = self._pass(offset)
        view = memoryview(data)
        end = offset + len(view)
        if offset != self._position:
            self._index = self._plan.first_after(offset)
        position = offset
        while position < end:
            part = self._plan.part(self._index)
            if position < part.offset:
                stop = min(end, part.offset)
                self._by_offset(position, view[position - offset : stop - offset], found)
            else:
                stop = min(end, part.offset + part.length)
                taken = view[position - offset : stop - offset]
                if part.segment < 0:
                    self._by_whole(part, position, taken, found)
                else:
                    within = part.within + position - part.offset
                    self._wait(part.segment, self._plan.sizes[part.segment], self._plan.ends[part.segment],
                               (within, position, bytes(taken)), found)  # fmt: skip
                if stop == part.offset + part.length:
                    self._index += 1
            position = stop
        self._position = end
        return found

    def end(self) -> list[Segment]:
        """What still waits, part by part."""
        found: list[Segment] = []
        for key in list(self._waiting):
            self._give_up(key, found)
        self._ends.clear()
        return found

    def _by_offset(self, position: int, view: memoryview, found: list[Segment]) -> None:
        start, size = 0, self._size
        while start < len(view):
            step = min(size - (position + start) % size, len(view) - start)
            found.append(Segment(view[start : start + step], ((position + start, step),)))
            start += step

    def _by_whole(self, part: cuts.Part, position: int, view: memoryview, found: list[Segment]) -> None:
        """Whole segments that lie back to back; one that reaches beyond the bytes at hand waits for the rest."""
        start, size = 0, self._size
        while start < len(view):
            passed = (position + start - part.offset) % size
            first = position + start - passed
            whole = min(size, part.offset + part.length - first)
            step = min(whole - passed, len(view) - start)
            taken = view[start : start + step]
            if step == whole:
                found.append(Segment(taken, ((first, whole),)))
            else:
                # Negative keys are free: segments of several parts are counted from 0.
                self._wait(-1 - first, whole, first + whole, (passed, position + start, bytes(taken)), found)
            start += step

    def _wait(self, key: int, size: int, end: int, part: tuple[int, int, bytes], found: list[Segment]) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(size)
            heapq.heappush(self._ends, (end, key))
        waiting.parts.append(part)
        waiting.arrived += len(part[2])
        if waiting.arrived == waiting.size:
            del self._waiting[key]
            found.append(_together(sorted(waiting.parts)))

    def _pass(self, offset: int) -> list[Segment]:
        """Give up what the walk has passed."""
        found: list[Segment] = []
        while self._ends and self._ends[0][0] <= offset:
            self._give_up(heapq.heappop(self._ends)[1], found)
        return found

    def _give_up(self, key: int, found: list[Segment]) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return  # it became whole
        run: list[tuple[int, int, bytes]] = []
        for part in sorted(waiting.parts):
            if run and (run[-1][0] + len(run[-1][2]), run[-1][1] + len(run[-1][2])) != part[:2]:
                found.append(_together(run))
                run = []
            run.append(part)
        found.append(_together(run))


def _together(parts: Sequence[tuple[int, int, bytes]]) -> Segment:
    """One segment of parts in its order; neighbours on the disk count as one part."""
    places: list[tuple[int, int]] = []
    for _, offset, data in parts:
        if places and sum(places[-1]) == offset:
            places[-1] = (places[-1][0], places[-1][1] + len(data))
        else:
            places.append((offset, len(data)))
    return Segment(b"".join(part[2] for part in parts), tuple(places))


class Fingerprints:
    """Names segments by keyed BLAKE3. Stateless but for its parameters, so any thread may use it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, data: disks.Buffer) -> bytes:
        """The fingerprint of a segment."""
        return blake3(data, key=self._key).digest()

    def name(self, segments: Sequence[Segment]) -> tuple[list[recipes.Piece], dict[bytes, disks.Buffer], int]:
        """The pieces of disk that the segments give, the segments by fingerprint, and how many were not zeros."""
        pieces: list[recipes.Piece] = []
        count = 0
        named: dict[bytes, disks.Buffer] = {}
        for data, parts in segments:
            if blocks.is_zero(data):
                continue
            fingerprint = self.of(data)
            named[fingerprint] = data
            count += 1
            within = 0
            for offset, length in parts:
                pieces.append(recipes.Piece(offset, length, fingerprint, within))
                within += length
        return pieces, named, count
