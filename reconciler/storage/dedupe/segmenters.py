"""Where a disk is cut into segments: here at multiples of the segment size of the disk's own offsets.

The one place that knows how cutting is done. Whatever the cut, a recipe covers every byte of the disk exactly once and
names parts of segments, so cutting along the files of a guest (a ``Layout``) needs another function here and no other
format. Fingerprints of zeros are known beforehand, and segments of zeros are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from reconciler.base import disks
from reconciler.storage import blocks
from reconciler.storage.dedupe import recipes

#: Index of a block, and what its bytes consist of; no pieces for zeros.
CutBlock = tuple[int, list[recipes.Piece]]


class OffsetSegmenter:
    """Cuts by disk offset. Stateless but for its parameters, so any thread may use it."""

    def __init__(self, size: int, key: bytes) -> None:
        """``size``: bytes per segment, which divides 1 MiB; ``key``: 32 bytes."""
        self._size = size
        self._key = key
        self._zero = blake3(bytes(size), key=key).digest()

    def cut(self, group: Sequence[blocks.Block]) -> tuple[list[CutBlock], dict[bytes, disks.Buffer]]:
        """The pieces of each block, and the segments they refer to by fingerprint."""
        size, key, zero = self._size, self._key, self._zero
        segments: dict[bytes, disks.Buffer] = {}
        result: list[CutBlock] = []
        for block in group:
            pieces: list[recipes.Piece] = []
            if block.data is not None:
                view = memoryview(block.data)
                for start in range(0, block.length, size):
                    part = view[start : start + size]
                    fingerprint = blake3(part, key=key).digest()
                    if fingerprint == zero or (len(part) < size and blocks.is_zero(part)):
                        continue
                    segments[fingerprint] = part
                    pieces.append(recipes.Piece(block.offset + start, len(part), fingerprint, 0))
            result.append((block.index, pieces))
        return result, segments
