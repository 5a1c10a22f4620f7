"""Proof of a few bytes of a block without reading the block again: digests of its pieces, made when it was proven.

A unit of plain files knows one digest per 1 MiB block, so the first small read of a block reads and proves all of it.
Meanwhile each 32 KiB piece gets a digest of its own, and the next small read there reads and proves its pieces alone.
The digests are as strong as the block's and cost 1 KiB of memory per block. Separate from ``blocks``: only units that
store nothing finer than blocks need it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from reconciler.base import digests, disks
from reconciler.storage import memories

#: Bytes of a piece.
PIECE: Final = 32 << 10
#: Bytes of digests kept: those of 64 GiB of blocks.
_KEPT: Final = 64 << 20

#: Bytes of the disk as they lie there, not proven: offset, length -> bytes. Raises ``OSError``.
Peek = Callable[[int, int], disks.Buffer]


class Pieces:
    """The pieces of one disk. Thread-safe."""

    def __init__(self, peek: Peek, whole: Callable[[int], disks.Buffer], size: int) -> None:
        """``whole`` gives a block by its index, proven, and raises what is told of a damaged one; ``size``: of the
        disk, in bytes."""
        self._peek, self._whole, self._size = peek, whole, size
        self._known: memories.Memory[int] = memories.Memory(_KEPT)

    def part(self, offset: int, length: int) -> disks.Buffer:
        """Bytes within one block, proven. Raises what ``whole`` raises, or ``OSError``."""
        index, start = divmod(offset, digests.BLOCK)
        known = self._known.get(index)
        if known is None:
            block = memoryview(self._whole(index))
            cuts = range(0, len(block), PIECE)
            self._known.put(index, b"".join(digests.digest(block[cut : cut + PIECE]) for cut in cuts))
            return block[start : start + length]
        first, last = start // PIECE, (start + length - 1) // PIECE
        begin = index * digests.BLOCK + first * PIECE
        end = index * digests.BLOCK + min((last + 1) * PIECE, digests.block_length(index, self._size))
        data = memoryview(self._peek(begin, end - begin))
        if len(data) == end - begin:
            for number in range(first, last + 1):
                cut = (number - first) * PIECE
                expected = known[number * digests.DIGEST_SIZE : (number + 1) * digests.DIGEST_SIZE]
                if digests.digest(data[cut : cut + PIECE]) != expected:
                    break
            else:
                return data[offset - begin : offset - begin + length]
        # It changed since it was proven. Whether that is damage, the block's own digest tells.
        return memoryview(self._whole(index))[start : start + length]
