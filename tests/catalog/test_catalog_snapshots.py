"""Snapshots at sources: noted before they are made, known until they are gone."""

from __future__ import annotations

import dataclasses
import os

import catalog_samples as samples

from reconciler.catalog import audits, database, snapshots, workers
from reconciler.planning import observed

ONE = observed.Snapshot(
    id="a", vcenter="lab", client="vsphere:1", machine="vm1", job="j-000001", place="vm-1", reference="snapshot-7"
)


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


def test_a_removal_is_in_the_audit(db: database.Database) -> None:
    snapshots.intend(db, ONE, samples.NOW)
    snapshots.removed(db, ONE, samples.later(hours=1), "controller")
    assert snapshots.noted(db) == ()
    entry = audits.entries(db)[-1]
    assert (entry.event, entry.object, entry.actor) == ("SnapshotRemoved", "snapshot/a", "controller")
    assert entry.details == {
        "machine": "vm1", "clientId": "vsphere:1", "vcenter": "lab", "snapshot": "snapshot-7", "job": "j-000001",
    }  # fmt: skip


def test_what_was_seen_before_its_job_or_its_removal_ended_may_be_gone(db: database.Database) -> None:
    mine = dataclasses.replace(ONE, job=samples.enqueue(db, "backup/x"))
    alien = dataclasses.replace(ONE, id="b", job="none")
    shown = (mine, alien)
    assert snapshots.over(db, shown, samples.NOW) == frozenset()
    samples.end(db, mine.job, "Failed", now=samples.later(hours=1))
    assert snapshots.over(db, shown, samples.NOW) == {"a"}
    assert snapshots.over(db, shown, samples.later(hours=2)) == frozenset()
    # A removal that failed has left the snapshot where it was.
    samples.end(db, removal(db), "Failed", now=samples.later(hours=3))
    assert snapshots.over(db, shown, samples.later(hours=2)) == frozenset()
    samples.end(db, removal(db), "Succeeded", now=samples.later(hours=4))
    assert snapshots.over(db, shown, samples.later(hours=2)) == {"b"}


def removal(db: database.Database) -> str:
    """A job that removes snapshot ``b``."""
    return samples.enqueue(db, "remove-snapshot/vm1/b", type="RemoveSnapshot")
