"""What of a stretch of a disk is worth writing where zeros need no place: all but its aligned runs of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from reconciler.base import disks

#: Runs of zeros of this size and alignment become holes.
_GRANULE: Final = 1 << 16
_ZEROS: Final = bytearray(_GRANULE)


def data_runs(data: disks.Buffer, offset: int) -> Iterator[tuple[int, memoryview]]:
    """The parts of ``data``, which lies at ``offset``, that are not aligned runs of zeros: (offset, bytes) each."""
    view = memoryview(data).cast("B")
    begin = -1
    position = 0
    while position < len(view):
        step = min(_GRANULE - (offset + position) % _GRANULE, len(view) - position)
        # A bytearray compares with any buffer by memcmp; a memoryview would compare byte by byte.
        zero = (_ZEROS if step == _GRANULE else bytearray(step)) == view[position : position + step]
        if zero and begin >= 0:
            yield offset + begin, view[begin:position]
            begin = -1
        elif not zero and begin < 0:
            begin = position
        position += step
    if begin >= 0:
        yield offset + begin, view[begin:]
