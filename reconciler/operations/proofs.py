"""Proving what a restore writes: it is read back from the device and digested, a stretch behind the writer.

So proving a restore costs little time of its own, and none of it is proven from memory alone: a stretch is made
durable, dropped from the cache where the system allows it, and only then read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from typing import Final

from reconciler.base import digests, disks, extents, meters
from reconciler.sources import targets

#: Bytes proven at once; more of a large disk, as each stretch begins with a look at the whole file's holes.
_STRETCH: Final = 64 << 20
_STRETCHES: Final = 64
#: Stretches that wait to be proven before the writer does.
_BEHIND: Final = 2
#: Stretches proven at once when nothing is written any more.
_AT_END: Final = 2


class Proof:
    """The digest of one disk while it is written in ascending order. Close it before the target is given up."""

    def __init__(self, target: targets.Target, size: int, meter: meters.Meter) -> None:
        """``size``: bytes of the disk."""
        self._target, self._size, self._meter = target, size, meter
        self._listed = digests.zero_list(size)
        self._stretch = max(_STRETCH, -(-size // _STRETCHES // digests.BLOCK) * digests.BLOCK)
        self._workers = concurrent.futures.ThreadPoolExecutor(_AT_END, "proof")
        self._running: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._begun = 0
        #: Begins of stretches that could not be proven while others were written.
        self._owed: list[int] = []

    def follow(self, written: int) -> None:
        """Nothing below ``written`` will be written any more. Raises what proving an earlier stretch raised."""
        while written - self._begun >= self._stretch:
            if len(self._running) >= _BEHIND:
                self._running.popleft().result()
            self._running.append(self._workers.submit(self._prove, self._begun))
            self._begun += self._stretch

    def finish(self) -> str:
        """Flush the target and prove the rest; the ``blake3-1m`` digest. Raises ``TargetError``, ``SourceError`` or
        ``Cancelled``."""
        self._wait()
        self._target.flush()
        with contextlib.closing(self._target.read_back()) as disk:
            for start in (*self._owed, *range(self._begun, self._size, self._stretch)):
                self._running.append(self._workers.submit(self._digest, disk, start))
            try:
                self._wait()
            finally:
                self.close()
        return digests.disk_digest(self._listed)

    def close(self) -> None:
        """Stop. Idempotent."""
        self._workers.shutdown(cancel_futures=True)

    def _wait(self) -> None:
        while self._running:
            self._running.popleft().result()

    def _prove(self, start: int) -> None:
        disk = self._target.settle()
        if disk is None:
            self._owed.append(start)
            return
        with contextlib.closing(disk):
            self._digest(disk, start)

    def _digest(self, disk: disks.Disk, start: int) -> None:
        end = min(start + self._stretch, self._size)
        _digest(disk, self._size, start, end, self._listed, self._meter)


def of_disk(disk: disks.Disk, size: int, meter: meters.Meter) -> str:
    """The ``blake3-1m`` digest of the first ``size`` bytes of a disk. Raises ``SourceError`` or ``Cancelled``."""
    listed = digests.zero_list(size)
    _digest(disk, size, 0, size, listed, meter)
    return digests.disk_digest(listed)


def _digest(disk: disks.Disk, size: int, start: int, end: int, listed: bytearray, meter: meters.Meter) -> None:
    """Digest a stretch; holes of the disk are known to be zero and not read."""
    data = extents.align(extents.clip(disk.extents(), size), digests.BLOCK, size)
    stretch = extents.intersect(((start, end - start),), data)
    read = disk.look if isinstance(disk, disks.Lending) else disk.pread
    for offset, length in extents.pieces(stretch, digests.BLOCK):
        meter.check()
        index = offset // digests.BLOCK
        found = digests.digest(memoryview(read(offset, length)))
        listed[index * digests.DIGEST_SIZE : (index + 1) * digests.DIGEST_SIZE] = found
