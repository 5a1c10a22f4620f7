"""Where the files of a guest say a disk should be cut: ranges of the disk that belong together as one segment.

Two guests that hold the same file hold it at other offsets, so a file is cut at multiples of the segment size of its
own offsets. ``plan`` turns the runs of a ``Layout`` into parts in disk order; whatever the layout says, no byte lies in
two parts, and what lies in none is cut by disk offset. Correctness never depends on it: ``segmenters`` cuts the bytes
it is given, a plan only says where. The same layout always gives the same plan.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from reconciler.base import layouts

#: Bytes of disk within which all parts of one segment must lie; what is read waits no longer than that.
WINDOW: Final = 32 << 20
#: A file of several runs that are shorter than this on average is cut by disk offset: its recipe would be too long.
_SHORT: Final = 32 << 10
#: From so many runs on a file counts as one of several.
_SEVERAL: Final = 4


class Part(NamedTuple):
    """A range of the disk."""

    #: Bytes from the start of the disk.
    offset: int
    length: int
    #: The segment that it is a part of; -1 where it consists of whole segments, one after the other.
    segment: int
    #: Bytes from the start of the segment; 0 where ``segment`` is -1.
    within: int


_BEYOND: Final = Part(1 << 63, 0, -1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The parts of a disk in disk order, as parallel arrays, and its segments of several parts."""

    offset: array[int]
    length: array[int]
    segment: array[int]
    within: array[int]
    #: Segment -> bytes of all its parts.
    sizes: array[int]
    #: Segment -> where on the disk its last part ends.
    ends: array[int]

    def __len__(self) -> int:
        return len(self.offset)

    def part(self, index: int) -> Part:
        """Part ``index`` in disk order; after the last one a part that lies beyond any disk."""
        if index >= len(self.offset):
            return _BEYOND
        return Part(self.offset[index], self.length[index], self.segment[index], self.within[index])

    def first_after(self, position: int) -> int:
        """Index of the first part that ends after ``position``."""
        index = bisect.bisect_right(self.offset, position)
        return index - 1 if index and self.offset[index - 1] + self.length[index - 1] > position else index


EMPTY: Final = Plan(
    offset=array("q"), length=array("q"), segment=array("q"), within=array("q"), sizes=array("q"), ends=array("q")
)


class _Run(NamedTuple):
    disk: int
    length: int
    #: Bytes from the start of the file.
    file: int


def plan(layout: layouts.Layout, size: int, segment_size: int) -> Plan:
    """The plan for a disk of ``size`` bytes, from runs that may overlap, lie outside it or contradict each other."""
    builder = _Builder(segment_size)
    for runs in _files(layout, size):
        if len(runs) < _SEVERAL or sum(run.length for run in runs) >= _SHORT * len(runs):
            builder.add(runs)
    return builder.finish()


def _files(layout: layouts.Layout, size: int) -> Iterator[list[_Run]]:
    """The runs of each file in the order of its bytes, no byte of the disk twice."""
    owned = _exclusive(layout, size)
    runs: list[_Run] = []
    current = -1
    for index, file in enumerate(layout.file):
        if file != current:
            if runs:
                yield runs
            runs, current = [], file
        start = layout.disk_offset[index]
        pieces = [(start, layout.length[index])] if owned is None else owned.get(index, ())
        runs += [_Run(disk, length, layout.file_offset[index] + disk - start) for disk, length in pieces]
    if runs:
        yield runs


def _exclusive(layout: layouts.Layout, size: int) -> dict[int, list[tuple[int, int]]] | None:
    """Run -> what it keeps once each byte went to the first claimant; None where no two runs meet, as is usual."""
    starts, lengths = layout.disk_offset, layout.length
    order = sorted(range(len(starts)), key=starts.__getitem__)
    position = 0
    for index in order:
        if starts[index] < position or lengths[index] <= 0:
            break
        position = starts[index] + lengths[index]
    else:
        if position <= size:
            return None
    return _shared_out(layout, order, size)


def _shared_out(layout: layouts.Layout, order: list[int], size: int) -> dict[int, list[tuple[int, int]]]:
    kept: dict[int, list[tuple[int, int]]] = {}
    waiting: list[tuple[int, int]] = []  # (run, its end), lowest run first
    position = 0

    def settle(until: int) -> None:
        nonlocal position
        while waiting and position < until:
            run, end = waiting[0]
            if end <= position:
                heapq.heappop(waiting)
                continue
            stop = min(end, until)
            pieces = kept.setdefault(run, [])
            if pieces and sum(pieces[-1]) == position:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + stop - position)
            else:
                pieces.append((position, stop - position))
            position = stop
        position = max(position, until)

    for run in order:
        start, end = max(layout.disk_offset[run], 0), min(layout.disk_offset[run] + layout.length[run], size)
        if start < end:
            settle(start)
            heapq.heappush(waiting, (run, end))
    settle(size)
    return kept


class _Builder:
    """Parts in the order of files, sorted at the end."""

    def __init__(self, segment_size: int) -> None:
        self._segment_size = segment_size
        self._columns = (array("q"), array("q"), array("q"), array("q"))
        self._sizes = array("q")
        self._ends = array("q")

    def add(self, runs: list[_Run]) -> None:
        """One file. Whole segments stay together; those of several runs are gathered."""
        size = self._segment_size
        open_parts: list[_Run] = []
        slot = -1
        for disk, length, file in runs:
            while length > 0:
                if file // size != slot:
                    self._gather(open_parts)
                    open_parts, slot = [], file // size
                if not open_parts and file % size == 0 and length >= size:
                    step = length // size * size
                    self._append(Part(disk, step, -1, 0))
                    slot = -1
                else:
                    step = min(size - file % size, length)
                    open_parts.append(_Run(disk, step, file))
                disk, length, file = disk + step, length - step, file + step
        self._gather(open_parts)

    def _gather(self, runs: list[_Run]) -> None:
        """One segment, of its runs in file order; of each run by itself where they lie too far apart."""
        if not runs:
            return
        end = max(run.disk + run.length for run in runs)
        if len(runs) == 1 or end - min(run.disk for run in runs) > WINDOW:
            for run in runs:
                self._append(Part(run.disk, run.length, -1, 0))
            return
        within = 0
        for run in runs:
            self._append(Part(run.disk, run.length, len(self._sizes), within))
            within += run.length
        self._sizes.append(within)
        self._ends.append(end)

    def _append(self, part: Part) -> None:
        for column, value in zip(self._columns, part, strict=True):
            column.append(value)

    def finish(self) -> Plan:
        """All parts in disk order."""
        order = sorted(range(len(self._columns[0])), key=self._columns[0].__getitem__)
        offset, length, segment, within = (array("q", (column[i] for i in order)) for column in self._columns)
        return Plan(offset=offset, length=length, segment=segment, within=within, sizes=self._sizes, ends=self._ends)
