"""Decoded bytes kept in memory for who reads them again, the least recently used ones dropped first.

Blocks of a Directory and segments of a pool are kept by the same rule: bounded in bytes, whatever their sizes. Separate
because both unit types use it, and so that what a process keeps is decided by who opens a unit.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from reconciler.base import disks

_Key = TypeVar("_Key", bound=Hashable)


class Memory(Generic[_Key]):
    """Buffers by key. Thread-safe. What is kept must never be changed by those who got it."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes; a buffer longer than that is not kept."""
        self.limit = limit
        self._kept: collections.OrderedDict[_Key, disks.Buffer] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: _Key) -> disks.Buffer | None:
        """What is kept under ``key``."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: _Key, data: disks.Buffer) -> None:
        """Keep ``data``, unless something is kept under ``key`` already."""
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = data
            self._bytes += len(data)
            while self._bytes > self.limit:
                self._bytes -= len(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
