"""Taking containers out of use and deleting them: the two acts that both collecting and rewriting end with.

``Users`` says who may rely on a container just now. ``rename`` writes the log line and renames; from then on every
lookup that leads there is a miss. ``delete`` removes what is condemned, whoever condemned it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from os import DirEntry, scandir
from pathlib import Path
from typing import Final

from reconciler.base import crashes, files
from reconciler.storage.dedupe import containers, damages, registrations, stores

#: When the first writer of another process began, where there is none.
NEVER: Final = float("inf")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Users:
    """Who writes into the pool at one moment."""

    #: Containers that writers of this process rely on.
    used: frozenset[int]
    #: Nanoseconds of the file system's clock at which the first writer of another process began, or ``NEVER``.
    #: Containers younger than that may be its own, on their way to its commit.
    foreign: float


def users(store: stores.Store) -> Users:
    """Who writes now; certain only while the pool's lock and the store's mutex are held. Raises ``OSError``."""
    with store.mutex:
        used = frozenset(container for claims in store.users() for container in claims.all())
        ids = own(store)
    began = [e.began for e in registrations.entries(store.settings.root / "writers") if e.folder.name not in ids]
    return Users(used=used, foreign=min(began, default=NEVER))


def own(store: stores.Store) -> set[str]:
    """The registrations of this process."""
    return {claims.registration.id for claims in store.users() if claims.registration is not None}


def younger(store: stores.Store, container: int, kind: int, moment: float) -> bool:
    """Whether a container came into place at ``moment`` or later, or is gone."""
    try:
        return containers.path(store.folder, container, kind).stat().st_mtime_ns >= moment
    except FileNotFoundError:
        return True


def rename(store: stores.Store, doomed: Mapping[int, int], suffix: str = containers.CONDEMNED) -> None:
    """Take containers (id -> kind) out of use, durably, with the pool's lock and the store's mutex held.

    With the suffix ``containers.BROKEN`` they are not deleted later.
    Raises ``OSError``; the store looks at the folder anew then.
    """
    try:
        for container in doomed:
            store.present.pop(container, None)
        names = [containers.file_name(container, kind) for container, kind in doomed.items()]
        store.journal.append("condemn", containers=names)
        paths = [store.folder / name[:2] / name for name in names]
        for path in paths:
            path.rename(path.with_name(path.name + suffix))
        _sync(path.parent for path in paths)
    except OSError:
        store.distrust()
        raise


def waiting(store: stores.Store) -> Iterator[DirEntry[str]]:
    """Files of condemned containers. Raises ``OSError``."""
    for shard in scandir(store.folder):
        for entry in scandir(shard.path) if shard.is_dir() else ():
            if entry.name.endswith(containers.CONDEMNED):
                yield entry


def waiting_bytes(store: stores.Store) -> int:
    """Bytes of condemned containers that are still there. Raises ``OSError``."""
    return sum(entry.stat().st_size for entry in waiting(store))


def delete(store: stores.Store) -> int:
    """Delete every condemned container, those of an interrupted collection too; the bytes freed."""
    with store.journal.locked():
        doomed = [(Path(entry.path), entry.stat().st_size) for entry in waiting(store)]
        if not doomed:
            return 0
        names = [path.name.removesuffix(containers.CONDEMNED) for path, _ in doomed]
        store.journal.append("remove", containers=names)
        for path, _ in doomed:
            path.unlink()
            crashes.passing("pool.container-deleted")
        _sync(path.parent for path, _ in doomed)
        _unlist(store, names)
    store.follow()
    return sum(size for _, size in doomed)


def _unlist(store: stores.Store, names: Iterable[str]) -> None:
    """What is gone is not damaged any more."""
    store.heed_damages()
    parsed = [containers.parse_name(name) for name in names]
    left = damages.without_containers(store.damages, [one[0] for one in parsed if one is not None])
    if left != store.damages:
        damages.write(store.settings.root, left)
        store.damages = left


def _sync(folders: Iterable[Path]) -> None:
    for folder in set(folders):
        files.sync_folder(folder)
