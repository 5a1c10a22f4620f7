"""One disk on its way from a stored image to a target: several stretches at once, each written in place, proof behind.

A stretch of 4 MiB is read, unpacked and proven by a worker, which writes it where it belongs; what the target holds of
it already is compared with the image's digests first and left as it is where it is equal. All disks of a restore share
the workers, and each has at most ``_AHEAD`` stretches under way, so a restore holds about 100 MiB however large its
disks are. ``proofs`` reads behind what is written. Called by ``restores``, which opens and names targets.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import heapq
import threading
from collections.abc import Iterator
from typing import Final

from reconciler.base import crashes, digests, disks, extents, meters
from reconciler.operations import proofs
from reconciler.sources import targets

#: Bytes that a worker moves at once, whole blocks.
STRETCH: Final = 4 << 20
#: Workers of a restore, and stretches of one disk that are under way.
WORKERS: Final = 3
_AHEAD: Final = 5
#: Stretches in a row without anything equal after which a doubtful target is no longer compared.
_PATIENCE: Final = 2 * _AHEAD


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What moving came to, in bytes."""

    written: int = 0
    #: What was there already, and equal.
    resumed: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(written=self.written + other.written, resumed=self.resumed + other.resumed)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """One stretch."""

    offset: int
    length: int
    #: Whether the image has data there; else zeros are put.
    data: bool


class Transfer:
    """One disk. ``run`` it once."""

    def __init__(
        self,
        disk: disks.Disk,
        block_digests: bytes | bytearray,
        target: targets.Target,
        proof: proofs.Proof,
        meter: meters.Meter,
        workers: concurrent.futures.Executor,
    ) -> None:
        """``block_digests``: the list that the disk must have; ``workers`` are shared by the disks of a restore."""
        self._disk, self._digests, self._target = disk, block_digests, target
        self._proof, self._meter, self._workers = proof, meter, workers
        self._held = extents.align(target.held(), digests.BLOCK, disk.size)
        self._starts = [offset for offset, _ in self._held]
        self._lock = threading.Lock()
        self._unlike = 0

    def run(self) -> Moved:
        """Move it. Raises ``Cancelled``, ``TargetError``, and what reading raises; then nothing is on its way."""
        if isinstance(self._target, targets.Filled):
            crashes.passing("restore.reading")
            return Moved(written=self._target.fill(self._disk, self._meter))
        total, position = Moved(), 0
        running: collections.deque[tuple[_Step, concurrent.futures.Future[Moved]]] = collections.deque()
        steps = self._steps()
        try:
            while True:
                step = next(steps, None)
                if step is not None:
                    running.append((step, self._workers.submit(self._move, step)))
                if len(running) >= _AHEAD or (step is None and running):
                    done, future = running.popleft()
                    total += future.result()
                    position = self._passed(done, position)
                if step is None and not running:
                    break
        finally:
            for _, future in running:
                future.cancel()
            concurrent.futures.wait([future for _, future in running])
        self._meter.add(scanned=self._disk.size - position)
        return total

    def _passed(self, step: _Step, position: int) -> int:
        """Everything up to the end of ``step`` is in its place."""
        end = step.offset + step.length
        self._proof.follow(end)
        self._meter.add(scanned=end - position)
        crashes.passing("restore.reading")
        return end

    def _steps(self) -> Iterator[_Step]:
        """What is looked at, in order: data, and zeros where something else may lie."""
        data = self._disk.extents()
        zeros = extents.subtract(self._held, data)
        written = ((offset, length, True) for offset, length in extents.pieces(data, STRETCH))
        cleared = ((offset, length, False) for offset, length in zeros)
        for offset, length, is_data in heapq.merge(written, cleared):
            yield _Step(offset=offset, length=length, data=is_data)

    def _move(self, step: _Step) -> Moved:
        self._meter.check()
        if not step.data:
            self._target.zero(step.offset, step.length)
            return Moved()
        wanted = ((step.offset, step.length),)
        held = extents.within(self._held, self._starts, step.offset, step.length)
        equal = self._equal(held) if held else ()
        written = 0
        for offset, length in extents.subtract(wanted, equal):
            self._meter.check()
            for start, data in self._read(offset, length):
                # What is held is whole blocks, as are the parts, so its first byte tells of all of it.
                self._target.pwrite(start, data, over=bool(extents.within(self._held, self._starts, start, 1)))
            written += length
        self._meter.add(non_zero=step.length, sent=written, stored=written)
        return Moved(written=written, resumed=step.length - written)

    def _read(self, offset: int, length: int) -> Iterator[tuple[int, disks.Buffer]]:
        """What the image holds there, in parts of at most a block each, all of it that is not zero."""
        if isinstance(self._disk, disks.Parted):
            yield from self._disk.parts(offset, length)
            return
        data = memoryview(self._disk.pread(offset, length))
        for start, size in extents.pieces(((offset, length),), digests.BLOCK):
            yield start, data[start - offset : start - offset + size]

    def _equal(self, held: extents.Extents) -> extents.Extents:
        """The blocks of what is held that are the image's already."""
        if self._target.doubtful:
            with self._lock:
                if self._unlike >= _PATIENCE:
                    return ()
        found = []
        for offset, length in held:
            data = memoryview(self._target.pread(offset, length))
            for start, size in extents.pieces(((offset, len(data)),), digests.BLOCK):
                if self._is(start, data[start - offset : start - offset + size]):
                    found.append((start, size))
        with self._lock:
            self._unlike = 0 if found else self._unlike + 1
        return extents.normalise(found)

    def _is(self, offset: int, data: memoryview) -> bool:
        index = offset // digests.BLOCK
        known = self._digests[index * digests.DIGEST_SIZE : (index + 1) * digests.DIGEST_SIZE]
        return len(data) == digests.block_length(index, self._disk.size) and digests.digest(data) == known
