"""Named points at which a process may be made to die, so that every crash point has a test.

Obeyed only with ``HOLDFAST_TEST=1``: ``HOLDFAST_CRASH=POINT[:N]`` sends SIGKILL to the process itself at the N-th
passage of the point. ``holdfast version -o json`` lists the points.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from typing import Final

#: Every point in the order in which a run of the loop meets it. ``passing`` refuses other names.
POINTS: Final = (
    "catalog.migrated",
    "unit.identity-written",
    "configuration.recorded",
    "approval.recorded",
    "snapshot.noted",
    "snapshot.made",
    "backup.frozen",
    "holding.copied",
    "holding.released",
    "backup.reading",
    "backup.before-commit",
    "backup.after-commit",
    "backup.recorded",
    "snapshot.removed",
    "directory.disk-synced",
    "directory.attachment-synced",
    "directory.reattached",
    "directory.before-rename",
    "directory.after-rename",
    "directory.delete-renamed",
    "pool.registered",
    "pool.attachment-placed",
    "pool.container-written",
    "pool.container-renamed",
    "pool.container-indexed",
    "pool.before-manifest",
    "pool.after-manifest",
    "pool.reattached",
    "pool.manifest-removed",
    "pool.condemned",
    "pool.container-deleted",
    "pool.rewrite-copied",
    "pool.rewrite-sealed",
    "pool.rewrite-condemned",
    "pool.rewrite-indexed",
    "pool.scrub-found",
    "pool.damage-listed",
    "pool.scrub-healed",
    "pool.scrub-placed",
    "duplicate.reading",
    "duplicate.before-commit",
    "duplicate.after-commit",
    "duplicate.recorded",
    "expire.marked",
    "expire.begun",
    "expire.deleted",
    "expire.recorded",
    "reclaim.started",
    "reclaim.done",
    "restore.begun",
    "restore.reading",
    "restore.before-rename",
    "files.before-name",
    "restore.extent-named",
    "restore.proven",
    "verify.found",
    "machine.made",
    "machine.disk-written",
    "machine.proven",
    "machine.old-renamed",
    "dump.written",
    "rebuild.loaded",
    "rebuild.compared",
)

_counter = itertools.count(1)
_lock = threading.Lock()


def _armed() -> tuple[str, int] | None:
    if os.environ.get("HOLDFAST_TEST") != "1":
        return None
    name, _, count = os.environ.get("HOLDFAST_CRASH", "").partition(":")
    return (name, int(count or "1")) if name else None


_target = _armed()


def passing(point: str) -> None:
    """Say that the process passes ``point``: it dies here if told to. Raises ``ValueError`` for an unknown name."""
    if point not in POINTS:
        raise ValueError(f"{point} is not a named crash point")
    if _target is None or point != _target[0]:
        return
    with _lock:
        if next(_counter) == _target[1]:
            os.kill(os.getpid(), signal.SIGKILL)
