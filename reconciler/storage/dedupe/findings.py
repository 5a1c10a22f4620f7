"""Noting damage: the step from a proof that failed to a pool in which nobody finds that segment again.

Called by scrubs and by rewriting. First the list is written, then the log's line raises the generation, so that every
process lets its index go of the records; another container that holds the same segment is found from then on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from reconciler.base import crashes
from reconciler.storage.dedupe import containers, damages, stores


def note(store: stores.Store, records: Iterable[damages.Record], lost: Iterable[bytes] = ()) -> None:
    """Put false records, and data segments that no container holds, on the list of damage, durably.

    Raises ``UnitError`` kinds or ``OSError``.
    """
    found = frozenset(records)
    # A listed segment that is found elsewhere is found: the list of the lost is asked only where nothing is.
    missing = frozenset(lost) | {record.fingerprint for record in found if record.kind == containers.DATA}
    crashes.passing("pool.scrub-found")
    with store.journal.locked():
        store.heed_damages()
        if not _replace(store, records=store.damages.records | found, lost=store.damages.lost | missing):
            return
    store.follow()


def clear(store: stores.Store, records: Iterable[damages.Record], lost: Iterable[bytes]) -> None:
    """Take from the list what turned out to be good, or is needed by nobody. Raises as ``note`` does."""
    with store.journal.locked():
        store.heed_damages()
        left = dataclasses.replace(
            store.damages, records=store.damages.records - set(records), lost=store.damages.lost - set(lost)
        )
        if not _replace(store, records=left.records, lost=left.lost):
            return
    store.follow()


def _replace(store: stores.Store, *, records: frozenset[damages.Record], lost: frozenset[bytes]) -> bool:
    changed = damages.Damages(records=records, lost=lost)
    if changed == store.damages:
        return False
    damages.write(store.settings.root, changed)
    store.journal.append("damage", records=len(records), lost=len(lost))
    return True
