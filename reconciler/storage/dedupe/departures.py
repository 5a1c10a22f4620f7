"""What a pool would give back if some of its images went: the bytes of segments that nothing else needs.

``pools`` asks for ``freed_by`` of a plan, before anything is deleted. Counted is what ``PoolStatistics.dead_bytes``
would grow by: records with their index entries that no other image and no running writer's parent needs, and the frame
of each container of which nothing is left. A collection gives that back at once where whole containers die; what lies
in containers that stay mostly alive comes back once they are rewritten. Only recipes are read, never data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from reconciler.base import errors, meters
from reconciler.storage.dedupe import containers, marks, stores

#: A pool of more images, or of more containers (of 64 MiB each: 256 GiB), or one whose recipes take longer to read, is
#: estimated.
IMAGES: Final = 2_000
CONTAINERS: Final = 4_096
SECONDS: Final = 20.0


class _Budget(meters.Meter):
    """Cancels the work once its time is up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise ``Cancelled`` when the time is up."""
        if time.monotonic() > self._end:
            self.cancel()
        super().check()


def countable(root: Path, images: int) -> bool:
    """Whether a pool is small enough for ``freed``; looks at folders alone. Raises ``OSError``."""
    if images > IMAGES:
        return False
    count = 0
    with os.scandir(root / "containers") as shards:
        for shard in shards:
            if count <= CONTAINERS and shard.is_dir(follow_symlinks=False):
                count += len(os.listdir(shard.path))  # noqa: PTH208  names alone
    return count <= CONTAINERS


def freed(store: stores.Store, images: Collection[str], seconds: float = SECONDS) -> int | None:
    """Bytes that the pool would no longer need without ``images``; None where that takes too long, or where an image
    cannot be followed to its segments. Raises ``OSError``, ``UnitError`` and ``FormatTooNew``."""
    going = set(images)
    listed = marks.every(store)
    store.distrust()
    store.follow(thorough=True)
    mark = marks.Mark(store, _Budget(seconds))
    try:
        mark.add_all(one for one in listed if one[2] or one[0] not in going)
        kept = dict(mark.live_bytes)
        mark.add_all(one for one in listed if not one[2] and one[0] in going)
    except errors.Cancelled:
        return None
    if mark.problems:
        return None
    grown = sum(size - kept.get(container, 0) for container, size in mark.live_bytes.items())
    return grown + containers.FRAME * sum(1 for container in mark.live_bytes if container not in kept)
