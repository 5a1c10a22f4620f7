"""Sweeping: removing what writers that died left unfinished. Only the pool's owner does it, before it writes itself.

Nothing that a commit finished is touched here; space of deleted images is what ``reclaims`` gives back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection
from pathlib import Path

from reconciler.base import files
from reconciler.storage.dedupe import condemnations, registrations, stores


def sweep(store: stores.Store, alive: Collection[str]) -> int:
    """Remove what no commit finished, of images not in ``alive``; the bytes freed."""
    root = store.settings.root
    with store.journal.locked():
        freed = 0
        own = condemnations.own(store)
        for entry in registrations.entries(root / "writers"):
            # A writer that another process holds is no leftover, whoever forgot to name it.
            if entry.image not in alive and (not entry.alive or entry.folder.name in own):
                freed += registrations.remove(entry.folder)
        for folder in root.glob(f"writers/{files.TEMPORARY_PREFIX}*"):
            freed += registrations.remove(folder)
        for pattern in ("", "manifests/"):
            for leftover in root.glob(f"{pattern}{files.TEMPORARY_PREFIX}*"):
                freed += leftover.stat().st_size
                leftover.unlink()
    for claims in store.users():
        if claims.registration is not None and not claims.registration.stands:
            store.leave(claims)
    with store.journal.locked():
        for leftover in root.glob(f"containers/*/{files.TEMPORARY_PREFIX}*"):
            freed += _remove_unlocked(leftover)
    return freed


def _remove_unlocked(path: Path) -> int:
    """Remove a file unless a process holds its flock; the bytes freed."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        size = os.fstat(file.fileno()).st_size
        path.unlink()
        return size
    return 0
