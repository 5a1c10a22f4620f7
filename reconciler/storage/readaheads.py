"""The next blocks of a stored disk, loaded while the last ones are used, for a reader that goes forward.

``blocks.ProvenDisk`` asks it first for every whole block. Separate because it knows nothing of digests and disks: it
gives work to workers and remembers what is under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent import futures

from reconciler.base import disks

#: Blocks that a worker loads in one go, and stretches of them that are under way.
_STRETCH = 8
_STRETCHES = 3


class ReadAhead:
    """Blocks for a reader that goes forward: workers get the next stretches meanwhile. Thread-safe."""

    def __init__(
        self,
        get: Callable[[Sequence[int]], dict[int, disks.Buffer]],
        workers: futures.Executor,
        following: Callable[[int], int | None],
    ) -> None:
        """``following``: the first block from a number on that is asked for if the reader goes on."""
        self._get, self._workers, self._following = get, workers, following
        self._lock = threading.Lock()
        self._expected: int | None = None
        #: Blocks under way, ascending, each with its stretch.
        self._coming: dict[int, futures.Future[dict[int, disks.Buffer]]] = {}

    def take(self, index: int) -> disks.Buffer | None:
        """A block that was read ahead; None where it was not, or could not be."""
        with self._lock:
            stretch = self._coming.pop(index, None)
            forward = stretch is not None or index == self._expected
            for passed in [number for number in self._coming if not forward or number < index]:
                self._coming.pop(passed).cancel()
            self._expected = self._following(index + 1)
            if forward:
                self._advance()
        try:
            return None if stretch is None else stretch.result().pop(index, None)
        except futures.CancelledError:
            # Somebody who reads elsewhere on the disk gave the stretch up meanwhile.
            return None

    def _advance(self) -> None:
        last = max(self._coming, default=None)
        coming = self._expected if last is None else self._following(last + 1)
        while coming is not None and len(self._coming) <= (_STRETCHES - 1) * _STRETCH:
            indices: list[int] = []
            while coming is not None and len(indices) < _STRETCH:
                indices.append(coming)
                coming = self._following(coming + 1)
            self._coming |= dict.fromkeys(indices, self._workers.submit(self._get, indices))
