"""Memory for blocks of a disk that begins where a page does, so that a device takes it as it is, without another copy.

Readers of stored disks fill such memory, and ``sources.diskfiles.directs`` writes it past the page cache. It is freed
like any object once nobody refers to it; within ``allocations.kept`` the process uses it again. Separate because those
who read and those who write do not know each other.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: What every device takes, in bytes.
PAGE: Final = 4096


def aligned(length: int) -> memoryview:
    """``length`` zero bytes that begin at a multiple of ``PAGE``."""
    whole = bytearray(length + PAGE)
    start = -_address(memoryview(whole)) % PAGE
    return memoryview(whole)[start : start + length]


def is_aligned(view: memoryview) -> bool:
    """Whether these bytes begin at a multiple of ``PAGE``. False where they can only be read, and that is not told."""
    return not view.readonly and view.nbytes > 0 and _address(view) % PAGE == 0


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
