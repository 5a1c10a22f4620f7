"""Snapshots at sources: noted before they are made, known until they are gone."""

from __future__ import annotations

import os

import catalog_samples as samples

from reconciler.catalog import database, snapshots, workers
from reconciler.planning import observed


def test_a_snapshot_is_known_until_it_is_gone(db: database.Database) -> None:
    one = observed.Snapshot(
        id="a", vcenter="lab", client="vsphere:1", machine="vm1", job="j-000001", place="vm-1", reference=None
    )
    snapshots.intend(db, one, samples.NOW)
    snapshots.intend(db, one, samples.NOW)
    (noted,) = snapshots.noted(db)
    assert (noted.id, noted.reference, noted.since) == ("a", None, samples.NOW)
    snapshots.made(db, "a", "snapshot-7")
    snapshots.read_by(db, "a", os.getpid())
    found = snapshots.find(db, "a")
    assert found is not None and found.snapshot.reference == "snapshot-7"
    assert [workers.alive(reader) for reader in found.readers] == [True]
    snapshots.gone(db, "a")
    snapshots.gone(db, "a")
    assert snapshots.noted(db) == () and snapshots.find(db, "a") is None
