"""One disk on its way into a pool: read, compare with the parent, cut, then hash, look up, compress and store.

The calling thread reads, and cuts what is new; batches of segments go to the pool's worker threads, at most ``_AHEAD``
of about 2 MiB at once, and their pieces reach the recipe in the order of the disk. What waits for a later part of its
segment lies within ``cuts.WINDOW`` of the disk, so a disk being written holds 20 MiB, and 50 MiB at worst.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Final

from reconciler.base import extents, layouts
from reconciler.storage import blocks
from reconciler.storage.dedupe import builders, comparisons, cuts, recipes, segmenters

#: Bytes of segments handed to a worker at once, and how many segments or ranges at most.
_BATCH: Final = 2 << 20
_MANY: Final = 1024
#: Batches on their way.
_AHEAD: Final = 5
#: New bytes of a disk with a parent below which its file system is not worth reading.
_WORTH_READING: Final = 4 << 20

#: Stores segments; the pieces of disk they give.
Place = Callable[[list[segmenters.Segment]], list[recipes.Piece]]


@dataclasses.dataclass(kw_only=True, slots=True)
class _Batch:
    """What goes to a worker together."""

    segments: list[segmenters.Segment] = dataclasses.field(default_factory=list)
    replaced: list[extents.Extent] = dataclasses.field(default_factory=list)
    bytes: int = 0
    #: Nothing below this offset of the disk comes after this batch.
    settled: int = 0

    def full(self) -> bool:
        return self.bytes >= _BATCH or len(self.segments) >= _MANY or len(self.replaced) >= _MANY


class DiskStream:
    """One disk. ``run`` it once; then ask for ``kept``."""

    def __init__(
        self,
        *,
        walk: blocks.BlockWalk,
        size: int,
        segment_size: int,
        builder: builders.RecipeBuilder,
        comparison: comparisons.Comparison | None,
        layout: Callable[[], layouts.Layout] | None,
        place: Place,
        workers: concurrent.futures.Executor,
        beat: Callable[[], None],
    ) -> None:
        """``size``: bytes of the disk; ``comparison`` where there is a parent; ``beat`` says that the writer lives."""
        self._walk, self._size, self._segment_size = walk, size, segment_size
        self._builder, self._comparison, self._layout = builder, comparison, layout
        self._submit_to, self._place, self._beat = workers, place, beat
        self._segmenter = segmenters.Segmenter(segment_size)
        self._batch = _Batch()
        self._running: collections.deque[tuple[_Batch, concurrent.futures.Future[list[recipes.Piece]]]] = (
            collections.deque()
        )
        self._new = 0
        self._walked = 0

    def run(self) -> None:
        """Store the disk. Raises ``Cancelled``, ``SourceError``, ``UnitError``; then nothing of it is on its way."""
        try:
            for block in self._walk:
                self._take(block)
            self._add(self._segmenter.end())
            self._batch.settled = self._size
            self._send()
            while self._running:
                self._receive()
        finally:
            for _, future in self._running:
                future.cancel()
            concurrent.futures.wait([future for _, future in self._running])

    @property
    def kept(self) -> int:
        """Segments' worth of data that was read and is the parent's, a count. After ``run``."""
        data = extents.total(blocks.data_extents(self._walk.digests, self._size))
        return max(data - self._walked, 0) // self._segment_size

    def _take(self, block: blocks.Block) -> None:
        new = ((block.offset, block.length),) if self._comparison is None else self._comparison.new(block)
        self._batch.replaced += new
        if block.data is not None:
            self._walked += block.length
            total = extents.total(new)
            self._read_layout(total)
            view = memoryview(block.data)
            for offset, length in new:
                part = view[offset - block.offset : offset - block.offset + length]
                # A few bytes that wait for their batch must not hold a whole block in memory.
                self._add(self._segmenter.feed(offset, part if 2 * total > block.length else bytes(part)))
        if self._batch.full():
            self._batch.settled = self._segmenter.settled
            self._send()

    def _read_layout(self, new: int) -> None:
        """Ask for the guest's files as soon as there is enough to cut."""
        self._new += new
        if self._layout is not None and (self._comparison is None or self._new > _WORTH_READING):
            self._segmenter.follow(cuts.plan(self._layout(), self._size, self._segment_size))
            self._layout = None

    def _add(self, segments: list[segmenters.Segment]) -> None:
        self._batch.segments += segments
        self._batch.bytes += sum(len(segment.data) for segment in segments)

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._running.append((batch, self._submit_to.submit(self._place, batch.segments)))
        if len(self._running) >= _AHEAD:
            self._receive()

    def _receive(self) -> None:
        batch, future = self._running[0]
        pieces = future.result()
        self._running.popleft()
        self._builder.add(batch.replaced, pieces, batch.settled)
        self._beat()
