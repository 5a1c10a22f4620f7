"""Memory for buffers of megabytes that come and go by the thousand: kept by the process instead of asked for each time.

By itself glibc gives each such buffer back to the kernel, which clears every page of the next one: half of the time of
a restore from memory. ``restores`` asks for this while it runs; what is kept is given back at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
#: Bytes: glibc takes no more for the second.
_KEPT: Final = 64 << 20
_LARGEST: Final = 32 << 20

_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory until the last block of this ends. Where the C library has no such switch, nothing happens."""
    global _users  # noqa: PLW0603 - the switch is the process's
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    with _lock:
        _users += 1
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                library.malloc_trim(0)
