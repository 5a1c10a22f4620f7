"""Proving what a restore wrote: its map is compared whole, and its bytes are read back from the device and digested.

Every block was proven in the memory that it was written from, so what is left to prove is the way to the device.
By default every sixteenth block is read back at the end; whoever asks for more gets every block, a stretch behind the
writer, which takes as much from the device again as the writing. Nothing is proven from the page cache: what is read
was made durable before, and comes from the device where the system allows it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from collections.abc import Iterable
from typing import Final, Protocol

from reconciler.base import digests, disks, extents, meters
from reconciler.sources import targets

#: Of so many blocks in a row one is read back.
_EVERY: Final = 16

#: Bytes proven at once; more of a large disk, as each stretch begins with a look at the whole file's holes.
_STRETCH: Final = 64 << 20
_STRETCHES: Final = 64
#: Stretches that wait to be proven before the writer does.
_BEHIND: Final = 2
#: Stretches proven at once when nothing is written any more.
_AT_END: Final = 2


class Proof(Protocol):
    """The digest of one disk as its target has it. Close it before the target is given up."""

    def follow(self, written: int) -> None:
        """Nothing below ``written`` will be written any more. Raises what proving raised."""

    def finish(self) -> str:
        """Flush the target and prove the rest; the ``blake3-1m`` digest. Raises ``TargetError``, ``SourceError`` or
        ``Cancelled``."""

    @property
    def read(self) -> int:
        """Bytes that were read back by ``finish``; holes count where all of it was."""

    def close(self) -> None:
        """Stop. Idempotent."""


def proof(
    target: targets.Target, size: int, block_digests: bytes | bytearray, meter: meters.Meter, *, whole: bool
) -> Proof:
    """The proof of a disk of ``size`` bytes that should have these digests; ``whole``: every block is read back, as it
    always is of a disk that was packed."""
    if whole or isinstance(target, targets.Filled):
        return _Whole(target, size, meter)
    return _Sampled(target, size, block_digests, meter)


class _Sampled:
    """Zeros where the target has a hole, what is read back of the sample, and of other blocks what was written."""

    def __init__(
        self, target: targets.Target, size: int, block_digests: bytes | bytearray, meter: meters.Meter
    ) -> None:
        self._target, self._size, self._digests, self._meter = target, size, block_digests, meter
        self.read = 0

    def follow(self, written: int) -> None:
        """Nothing: what is read back was not written a moment ago."""

    def finish(self) -> str:
        """See ``Proof``."""
        self._target.flush()
        listed = digests.zero_list(self._size)
        with contextlib.closing(self._target.read_back()) as disk:
            data = extents.align(extents.clip(disk.extents(), self._size), digests.BLOCK, self._size)
            for offset, length in data:
                first, end = (-(-at // digests.BLOCK) * digests.DIGEST_SIZE for at in (offset, offset + length))
                listed[first:end] = self._digests[first:end]
            sample = self._sample(data)
            self.read = extents.total(sample)
            _digest_all(disk, sample, listed, self._meter)
        return digests.disk_digest(listed)

    def close(self) -> None:
        """Nothing."""

    def _sample(self, data: extents.Extents) -> extents.Extents:
        """The first and the last block, and one of every ``_EVERY``, others in other disks."""
        blocks = enumerate(extents.pieces(data, digests.BLOCK))
        # A disk of no bytes has no blocks.
        turn = self._digests[-1] % _EVERY if self._digests else 0
        ends = (0, sum(digests.block_count(length) for _, length in data) - 1)
        return tuple(block for number, block in blocks if number % _EVERY == turn or number in ends)


class _Whole:
    """Every byte read back, while the disk is written in ascending order."""

    def __init__(self, target: targets.Target, size: int, meter: meters.Meter) -> None:
        """``size``: bytes of the disk."""
        self._target, self._size, self._meter = target, size, meter
        self.read = size
        self._listed = digests.zero_list(size)
        self._stretch = max(_STRETCH, -(-size // _STRETCHES // digests.BLOCK) * digests.BLOCK)
        self._workers = concurrent.futures.ThreadPoolExecutor(_AT_END, "proof")
        self._running: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._begun = 0
        #: Begins of stretches that could not be proven while others were written.
        self._owed: list[int] = []

    def follow(self, written: int) -> None:
        """See ``Proof``."""
        while written - self._begun >= self._stretch:
            if len(self._running) >= _BEHIND:
                self._running.popleft().result()
            self._running.append(self._workers.submit(self._prove, self._begun))
            self._begun += self._stretch

    def finish(self) -> str:
        """See ``Proof``."""
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
        """See ``Proof``."""
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
    _digest_all(disk, extents.pieces(stretch, digests.BLOCK), listed, meter)


def _digest_all(disk: disks.Disk, blocks: Iterable[extents.Extent], listed: bytearray, meter: meters.Meter) -> None:
    """Put the digests of blocks where they belong in the list."""
    read = disk.look if isinstance(disk, disks.Lending) else disk.pread
    for offset, length in blocks:
        meter.check()
        index = offset // digests.BLOCK
        found = digests.digest(memoryview(read(offset, length)))
        listed[index * digests.DIGEST_SIZE : (index + 1) * digests.DIGEST_SIZE] = found
