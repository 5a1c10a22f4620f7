"""What the world shows that the manifests do not account for, each with the next step."""

from __future__ import annotations

import dataclasses
from typing import Any

import planning_samples as samples
import pytest

from reconciler.planning import desired, observed, planner

ago, image, copy = samples.ago, samples.image, samples.copy


def drift(wanted: desired.Desired, seen: observed.Observed) -> dict[tuple[str, str], str]:
    """Messages by code and object."""
    return {(one.code, one.object): one.message for one in planner.plan(wanted, seen, samples.NOW).drift}


def fresh() -> observed.Series:
    """A series that lacks nothing."""
    return samples.series(image(1, ago(hours=1), copy(1), copy(2, "dedupe", "deep")))


def test_nothing_drifts_while_all_is_accounted_for() -> None:
    wanted = samples.small()
    assert drift(wanted, samples.seen(wanted, fresh())) == {}


def test_disks_that_no_pattern_selects_are_named() -> None:
    wanted = samples.small()
    machine = dataclasses.replace(samples.machine(), left_out=("data.vdi", "old.IMG"))
    found = drift(wanted, samples.seen(wanted, fresh(), machines=(machine,)))
    assert found == {
        (
            "DisksLeftOut",
            "Client/oblvm1",
        ): "data.vdi, old.IMG look like disks and are not backed up; add a pattern to the "
        "disks of gold, or move away what needs no backup"
    }


def test_a_disk_that_one_of_two_policies_selects_is_not_left_out() -> None:
    wanted = samples.estate(*samples.small().objects(), samples.policy("silver"))
    here, there = (dataclasses.replace(samples.machine(), left_out=names) for names in (("a.vdi", "b.vdi"), ("b.vdi",)))
    inventories = {
        name: observed.Inventory(machines=(one,), seen=samples.NOW) for name, one in (("gold", here), ("silver", there))
    }
    second = dataclasses.replace(
        fresh(), policy="silver", images=(image(2, ago(hours=1), copy(1), copy(2, "dedupe", "deep")),)
    )
    found = drift(wanted, samples.seen(wanted, fresh(), second, inventories=inventories))
    assert set(found) == {("DisksLeftOut", "Client/oblvm1"), ("DoublyMatched", "Client/oblvm1")}
    assert found["DisksLeftOut", "Client/oblvm1"].startswith("b.vdi looks like a disk and is not backed up")
    assert "leave it to one" in found["DoublyMatched", "Client/oblvm1"]


@pytest.mark.parametrize(("hours", "told"), [(47, False), (49, True)])
def test_a_series_without_a_success_is_told_once_it_is_past_its_objective(hours: float, told: bool) -> None:
    wanted = samples.small()
    known = {samples.CLIENT: samples.client(seen=ago(hours=hours))}
    found = drift(wanted, samples.seen(wanted, clients=known))
    assert (("NeverSucceeded", "BackupPolicy/gold/oblvm1") in found) is told
    partial = samples.series(image(1, ago(hours=1), state="Partial"))
    found = drift(wanted, samples.seen(wanted, partial, clients=known))
    assert (("NeverSucceeded", "BackupPolicy/gold/oblvm1") in found) is told


def test_a_success_that_has_grown_old_is_no_drift() -> None:
    wanted = samples.small()
    old = samples.series(image(1, ago(days=9), copy(1), copy(2, "dedupe", "deep")))
    assert drift(wanted, samples.seen(wanted, old)) == {}


def test_a_selection_that_matches_nothing_and_never_did_is_told_unless_nobody_could_look() -> None:
    wanted = samples.small()
    empty = observed.Inventory(machines=(), seen=samples.NOW)
    state = samples.seen(wanted, inventories={"gold": empty}, clients={})
    assert set(drift(wanted, state)) == {("EmptySelection", "BackupPolicy/gold")}
    away = dataclasses.replace(empty, unreachable=("NoSource", "it is not mounted"))
    state = samples.seen(wanted, inventories={"gold": away}, clients={})
    assert set(drift(wanted, state)) == {("UnreachableSource", "BackupPolicy/gold")}
    had = samples.seen(wanted, fresh(), inventories={"gold": empty})
    assert ("EmptySelection", "BackupPolicy/gold") not in drift(wanted, had)


@pytest.mark.parametrize(
    ("until", "code"),
    [
        ("2026-11-25T21:00:01Z", None),
        ("2026-11-24T21:00:00Z", "SuspensionEnds"),
        ("2026-11-23T21:00:01Z", "SuspensionEnds"),
        ("2026-11-23T21:00:00Z", "SuspensionOver"),
        ("2026-10-01T00:00:00Z", "SuspensionOver"),
    ],
)
def test_a_suspension_is_told_near_its_end_and_after_it(until: str, code: str | None) -> None:
    wanted = samples.small(suspend={"reason": "the storage move", "until": until})
    found = drift(wanted, samples.seen(wanted, fresh()))
    assert set(found) == ({(code, "BackupPolicy/gold")} if code else set())


def test_every_drift_says_what_to_do() -> None:
    wanted = samples.small()
    gone = samples.client("x:gone")
    bad = image(2, ago(hours=2), copy(1, state="Lost"), copy(2, "dedupe", "deep", "Damaged"))
    state = samples.seen(wanted, samples.series(image(1, ago(hours=3), copy(1), copy(2, "dedupe", "deep")), bad))
    state = dataclasses.replace(state, clients={**state.clients, gone.id: gone})
    found: dict[tuple[str, str], Any] = drift(wanted, state)
    assert f"holdfast retire {gone.slug}" in found["UnprotectedClient", f"Client/{gone.slug}"]
    assert "holdfast get copies --unit fast" in found["LostCopies", "StorageUnit/fast"]
    assert "holdfast get copies --unit deep" in found["DamagedCopies", "StorageUnit/deep"]


def virtual(*machines: observed.Machine, notes: tuple[tuple[str, str], ...] = ()) -> dict[tuple[str, str], str]:
    """Drift of two policies of one VCenter that show the same machines."""
    wanted = samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.vcenter("lab"),
        samples.virtual("gold"),
        samples.virtual("silver"),
    )
    state = samples.seen(wanted, machines=machines)
    inventory = observed.Inventory(machines=machines, seen=samples.NOW, notes=notes)
    state = dataclasses.replace(state, inventories={"gold": inventory, "silver": inventory})
    found = planner.plan(wanted, state, samples.NOW).drift
    assert len({(one.code, one.object) for one in found}) == len(found), "a code is told twice of one object"
    return {(one.code, one.object): one.message for one in found}


def test_what_a_source_says_of_a_machine_is_told_once_for_each_code() -> None:
    noted = dataclasses.replace(
        samples.guest("vm1", "esx1", "ds1"),
        notes=(
            ("ConsolidationNeeded", "vm1 needs consolidation"),
            ("DiskUnread", "Hard disk 2 is independent"),
            ("DiskUnread", "Hard disk 3 is a raw device"),
        ),
    )
    found = virtual(noted)
    assert found["ConsolidationNeeded", "Client/vm1"] == "vm1 needs consolidation"
    assert found["DiskUnread", "Client/vm1"] == "Hard disk 2 is independent; Hard disk 3 is a raw device"


def test_what_a_source_says_of_a_selection_is_told_of_the_policy() -> None:
    found = virtual(samples.guest("vm1"), notes=(("Template", "t1 is a template"), ("Template", "t2 is a template")))
    for policy in ("gold", "silver"):
        assert found["Template", f"BackupPolicy/{policy}"] == "t1 is a template; t2 is a template"


def test_hundreds_of_notes_are_counted() -> None:
    notes = tuple(("Template", f"t{number:03} is a template") for number in range(300))
    found = virtual(samples.guest("vm1"), notes=notes)["Template", "BackupPolicy/gold"]
    assert found.startswith("t000 is a template; t001 is") and found.endswith("t019 is a template; and 280 more")


def test_a_vcenter_that_policies_name_and_nobody_describes_is_told() -> None:
    before = samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.vcenter("lab"),
        samples.virtual("gold"),
        samples.virtual("silver"),
    )
    after = samples.estate(*(one for one in before.objects() if one.kind != "VCenter"))
    found = drift(after, samples.seen(before, machines=(samples.guest("vm1"),)))
    assert found["VCenterGone", "VCenter/lab"] == (
        "no manifest describes it any more, and gold, silver still name it; bring it back, or let them name another one"
    )
    alone = samples.estate(*(one for one in after.objects() if one.name != "silver"))
    assert (
        "gold still names it"
        in drift(alone, samples.seen(alone, machines=(samples.guest("vm1"),)))["VCenterGone", "VCenter/lab"]
    )
    # Of policies that are orphaned themselves nobody asks anything.
    left = samples.estate(*(one for one in after.objects() if one.kind != "BackupPolicy"))
    assert not any(code == "VCenterGone" for code, _ in drift(left, samples.seen(before)))
