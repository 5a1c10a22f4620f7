"""Approvals and what they ended, as the catalog keeps them: with an audit line, once, and void once promised anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import catalog_samples as samples
import pytest

from reconciler.api import lifecycles
from reconciler.catalog import approvals, audits, database, fences, images, imports, leases
from reconciler.planning import configuration, observed, promises


def approval(**fields: Any) -> observed.Approval:
    """Consent to three copies."""
    values: dict[str, Any] = {
        "digest": "blake3:1", "copies": 3, "by": "ann", "until": samples.later(hours=24), "reason": "change 1234",
    }  # fmt: skip
    return observed.Approval(**{**values, **fields})


def release(**fields: Any) -> observed.Release:
    """What an approval ended for one client."""
    values: dict[str, Any] = {
        "lifecycle": "gold", "operation": "land", "before": promises.NONE, "client": samples.CLIENT, "up_to": 3,
        "digest": "blake3:1", "by": "ann",
    }  # fmt: skip
    return observed.Release(**{**values, **fields})


def gold(period: str, **fields: Any) -> Any:
    """A lifecycle whose Backup operation keeps copies for a period."""
    return samples.lifecycle("gold", samples.operation("land", retention={"type": "Fixed", "period": period}, **fields))


def rule(period: str) -> str:
    """A Fixed rule as releases name it."""
    return promises.written(gold(period).spec.operations[0].retention)


def found(number: int) -> imports.ImportedImage:
    """What a label on a unit says."""
    return imports.ImportedImage(
        id=f"img-{number}", client_id=samples.CLIENT, client_name="oblVM1", client_slug="oblvm1",
        source=samples.CLIENT, policy="obl", schedule="nightly", lifecycle="gold", operation="land", copy=1, type="Full",
        state="Complete", time=samples.NOW, sequence=number, slot=samples.NOW, revision="main@sha1:1", parent=None,
        changes="FullRead", consistency="Offline", owed=gold("7d").spec.written(),
    )  # fmt: skip


def events(db: database.Database) -> list[tuple[str, str]]:
    """The audit's events about approvals."""
    return [(one.event, one.object) for one in audits.entries(db) if one.event in ("Approved", "PromisesReleased")]


def test_approvals_read_back_in_order_with_an_audit_line_each(db: database.Database) -> None:
    first, second = approval(), approval(digest="blake3:2", copies=0, by="bob")
    approvals.record(db, first, samples.NOW, "tester")
    approvals.record(db, second, samples.NOW, "tester")
    assert approvals.approvals(db) == (first, second)
    assert events(db) == [("Approved", "blake3:1"), ("Approved", "blake3:2")]
    (line, _) = [one for one in audits.entries(db) if one.event == "Approved"]
    assert line.actor == "tester" and line.details["reason"] == "change 1234" and line.details["by"] == "ann"


def test_an_approval_of_a_change_is_spent_with_it(db: database.Database) -> None:
    other = approval(digest="blake3:2")
    for one in (approval(), other, approval(by="bob")):
        approvals.record(db, one, samples.NOW, "tester")
    approvals.spend(db, "blake3:1", samples.NOW, "tester")
    approvals.spend(db, "blake3:1", samples.NOW, "tester")
    assert approvals.approvals(db) == (other,)
    assert [one.object for one in audits.entries(db) if one.event == "ApprovalSpent"] == ["blake3:1"]


def test_releases_are_recorded_once_and_the_widest_of_each_is_kept(db: database.Database) -> None:
    many = (
        release(),
        release(client="diskimages:/srv/other"),
        release(operation="dedupe", up_to=configuration.EVERY_IMAGE),
    )
    approvals.release(db, many, samples.NOW, "tester")
    approvals.release(db, many, samples.later(hours=1), "tester")
    assert set(approvals.releases(db)) == set(many)
    assert events(db) == [("PromisesReleased", "blake3:1")]
    # The same promise approved again under another digest: the newer approval is who let it go.
    again = release(digest="blake3:2", by="bob")
    approvals.release(db, (again,), samples.NOW, "tester")
    assert set(approvals.releases(db)) == {again, *many[1:]}


def test_a_controller_that_was_succeeded_ends_no_promise(db: database.Database, tmp_path: Path) -> None:
    lease = leases.acquire(tmp_path, db, samples.NOW, "tester", "/srv/estate")
    try:
        with pytest.raises(fences.Superseded):
            approvals.release(db, (release(),), samples.NOW, "tester", fence=lease.token - 1)
        assert approvals.releases(db) == ()
        approvals.release(db, (release(),), samples.NOW, "tester", fence=lease.token)
        assert approvals.releases(db) == (release(),)
    finally:
        lease.release()


def test_a_rule_in_force_again_voids_what_was_let_go_of_it(db: database.Database) -> None:
    samples.apply(db, gold("30d"))
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    samples.apply(db, gold("7d"), revision="main@sha1:2")
    other = release(before=rule("90d"))
    approvals.release(db, (release(before=rule("30d")), other), samples.NOW, "tester")
    samples.apply(db, gold("5d"), revision="main@sha1:3")
    assert len(approvals.releases(db)) == 2
    samples.apply(db, gold("30d"), revision="main@sha1:4")
    assert approvals.releases(db) == (other,)


def test_a_release_follows_its_operation_to_a_new_name(db: database.Database) -> None:
    samples.apply(db, gold("7d"))
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    twice = release(before=rule("90d"))
    early = dataclasses.replace(twice, operation="first", digest="blake3:2")
    approvals.release(db, (release(before=rule("30d")), twice, early), samples.NOW, "tester")
    renamed = samples.lifecycle("gold", samples.operation("first", previousNames=["land"]))
    assert isinstance(renamed, lifecycles.StorageLifecyclePolicy)
    samples.apply(db, renamed, revision="main@sha1:2")
    moved = release(before=rule("30d"), operation="first")
    assert set(approvals.releases(db)) == {moved, early}


def test_copies_that_come_back_later_wait_anew(db: database.Database) -> None:
    samples.apply(db, gold("7d"))
    samples.see(db, "oblVM1", "oblVM2")
    kept = (release(before=rule("30d")), release(client="diskimages:/srv/guests/oblVM2"))
    approvals.release(db, (release(), *kept), samples.NOW, "tester")
    label = found(9)
    assert imports.import_image(db, label, "fast", 1000, None, now=samples.NOW, actor="tester")
    assert set(approvals.releases(db)) == set(kept)


def test_what_comes_back_waits_alone_once_what_came_before_was_approved(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    for number in (1, 1, 2):
        imports.import_image(db, found(number), "fast", 100, None, now=samples.NOW, actor="tester")
    every = release(lifecycle=promises.ANY, operation=promises.ANY, client=promises.ANY)
    approvals.release(db, [every], samples.NOW, "tester")
    imports.import_image(db, found(3), "fast", 100, None, now=samples.NOW, actor="tester")
    assert approvals.releases(db) == ()
    assert {copy.image: copy.imported for copy in images.list_copies(db)} == {
        "img-1": False, "img-2": False, "img-3": True,
    }  # fmt: skip
