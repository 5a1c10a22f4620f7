"""Salvage: a container whose footer cannot be proven is read record by record, and what proves true moves.

A footer says where each record lies; without it a file is walked from its front, as each record also says what it is.
Apart from ``scrubs``, which finds such containers, since this is the one place where a container goes that is not
known to the last record: nothing in it that could be proven is left behind.
"""

from __future__ import annotations

from reconciler.base import crashes
from reconciler.storage.dedupe import appenders, condemnations, containers, stores

_STEP = 4 << 20


def salvage(store: stores.Store, container: int, kind: int) -> int:
    """Move every record that proves true into a new container and take the broken one out of use; records moved.

    A container of which nothing can be proven, or that the device did not give whole, is set aside, not deleted: what
    could not be read once may be read another time. Raises ``OSError``, ``UnitError``.
    """
    target = appenders.OpenContainer(store.folder, store.header.id, kind)
    try:
        moved, whole = _copy(store, target, container, kind)
        if moved:
            footer = target.seal()
            crashes.passing("pool.rewrite-sealed")
    finally:
        target.drop()
    with store.journal.locked():
        store.follow(thorough=True)
        with store.mutex:
            if not containers.path(store.folder, container, kind).exists():
                return 0
            suffix = containers.CONDEMNED if moved and whole else containers.BROKEN
            condemnations.rename(store, {container: kind}, suffix)
            crashes.passing("pool.rewrite-condemned")
            if moved:
                store.index.add(footer, set(store.present) - {footer.container})
                store.present[footer.container] = footer.kind
    crashes.passing("pool.rewrite-indexed")
    store.index.forget(container, kind, ())
    store.distrust()
    store.follow()
    return moved


def _copy(store: stores.Store, target: appenders.OpenContainer, container: int, kind: int) -> tuple[int, bool]:
    """The records moved, a count, and whether all of the container could be read."""
    try:
        data, whole = containers.content(containers.path(store.folder, container, kind))
    except containers.Damaged:
        return 0, False
    batch: list[appenders.NewRecord] = []
    size = moved = 0
    for record in containers.walk(data, store.header.key):
        batch.append(record)
        moved += 1
        size += len(record[2])
        if size >= _STEP:
            target.append(batch)
            batch, size = [], 0
    if batch:
        target.append(batch)
    return moved, whole
