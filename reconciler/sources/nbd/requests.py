"""What is asked of a server over one connection: allocated areas, and bytes in whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from reconciler.base import disks, extents

#: Bytes that one question for areas covers; the protocol ends at 4 GiB.
_STATUS_RANGE: Final = 1 << 30
#: Flags of ``base:allocation``: what reads as zero.
READS_AS_ZERO: Final = 2


class NoAnswer(Exception):
    """The server knows nothing of an area that it was asked about."""


def areas(handle: Any, context: str, size: int, wanted: Callable[[int], bool]) -> extents.Extents:
    """Where the flags of a meta context are ``wanted``. Raises ``NoAnswer`` and libnbd's own error."""
    found: list[extents.Extent] = []
    position = 0

    def collect(name: str, offset: int, entries: list[int], _error: int) -> int:
        nonlocal position
        if name != context:
            return 0
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if wanted(flags):
                found.append((offset, length))
            offset += length
        position = max(position, offset)
        return 0

    while position < size:
        start = position
        handle.block_status(min(_STATUS_RANGE, size - start), start, collect)
        if position <= start:
            raise NoAnswer(f"no allocation known at {start}")
    return extents.clip(found, size)


def read(handle: Any, offset: int, length: int, *, block: int, size: int, largest: int) -> disks.Buffer:
    """Exactly ``length`` bytes, asked for in whole blocks, of ``largest`` bytes at most. Raises libnbd's own error.

    ``size``: of what is served, whose last block may be a short one.
    """
    start = offset // block * block
    end = min(-(-(offset + length) // block) * block, size)
    if end - start <= largest:
        data = handle.pread(end - start, start)
    else:
        data = bytearray()
        for position in range(start, end, largest):
            data += handle.pread(min(largest, end - position), position)
    if end - start == length:
        return bytes(data) if not isinstance(data, (bytes, bytearray)) else data
    return memoryview(data)[offset - start : offset - start + length]
