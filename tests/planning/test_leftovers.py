"""Snapshots of ours: never touched while their job lives, removed afterwards, never forgotten, never removed twice."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.planning import actions, alarms, desired, dispatch, explanations, observed, planfile, planner, snapshots

NOW, ago, snapshot = samples.NOW, samples.ago, samples.snapshot
BACKUP, REMOVE = actions.Type.BACKUP, actions.Type.REMOVE_SNAPSHOT


def estate(*more: Any, **vcenter: Any) -> desired.Desired:
    """One policy of the machines of VCenter ``lab``."""
    return samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.vcenter("lab", **vcenter),
        samples.virtual("gold"),
        *more,
    )


def seen(
    wanted: desired.Desired,
    *noted: observed.Snapshot,
    shown: tuple[observed.Snapshot, ...] = (),
    unreachable: tuple[str, str] | None = None,
    **fields: Any,
) -> observed.Observed:
    """What the catalog noted, and what the inventory of ``gold`` shows."""
    machines = (samples.guest("vm1", "esx1", "ds1"), samples.guest("vm2", "esx1", "ds1"))
    made = samples.seen(wanted, machines=machines, snapshots=noted, **fields)
    inventory = observed.Inventory(machines=machines, seen=NOW, snapshots=shown, unreachable=unreachable)
    return dataclasses.replace(made, inventories=dict.fromkeys(made.inventories, inventory))


def job(id: str = "j-000001", type: actions.Type = BACKUP, **fields: Any) -> observed.Job:
    """A live job, of machine ``vm1`` unless told otherwise."""
    values = {"address": f"{type}/{id}", "policy": "gold", "client": "vsphere:/vm1", **fields}
    return observed.Job(id=id, type=type.value, state="Running", **values)


def removals(wanted: desired.Desired, state: observed.Observed) -> dict[str, actions.Action]:
    """The removals of a plan by the id of their snapshot."""
    plan = planner.plan(wanted, state, NOW)
    assert plan.destruction == actions.Destruction()
    found = [one for one in plan.actions if one.type is REMOVE]
    return {snapshots.named(one.address): one for one in found}


def test_a_snapshot_of_a_dead_job_is_removed_and_named() -> None:
    wanted = estate()
    found = removals(wanted, seen(wanted, snapshot("a")))
    assert found["a"].address == "remove-snapshot/vm1/a"
    assert (found["a"].state.value, found["a"].reason.code) == ("Due", "LeftoverSnapshot")
    for word in ("vm1", "j-000001", "1h", "VCenter lab"):
        assert word in found["a"].reason.message
    assert (found["a"].client, found["a"].client_id, found["a"].policy) == ("vm1", "vsphere:/vm1", None)


def test_one_that_was_noted_and_never_heard_of_may_exist() -> None:
    wanted = estate()
    found = removals(wanted, seen(wanted, snapshot("a", reference=None)))
    assert "may exist" in found["a"].reason.message


def test_a_snapshot_of_a_live_job_is_left_alone() -> None:
    wanted = estate()
    state = seen(wanted, snapshot("a"), shown=(snapshot("a"), snapshot("b")), jobs=(job(),))
    assert removals(wanted, state) == {}
    assert [one for one in planner.plan(wanted, state, NOW).drift if "Snapshot" in one.code] == []


def test_what_both_catalog_and_source_know_is_one_snapshot() -> None:
    wanted = estate()
    noted = snapshot("a", vcenter="old-name", place="vm-1", reference=None)
    shown = snapshot("a", job="j-000001", since=None, place="vm-99", reference="snapshot-7")
    state = seen(wanted, noted, shown=(shown,))
    assert snapshots.known(state) == {"a": dataclasses.replace(shown, since=ago(hours=1))}
    # The catalog's VCenter is not declared any more; where the snapshot was seen is.
    assert removals(wanted, state)["a"].state is actions.State.DUE


def test_one_that_only_the_source_shows_is_removed_once_it_is_not_young() -> None:
    wanted = estate()
    found = removals(wanted, seen(wanted, shown=(snapshot("a", job="none"),)))
    assert found["a"].state is actions.State.DUE
    young = snapshot("a", job="none", since=ago(minutes=5))
    found = removals(wanted, seen(wanted, shown=(young,)))
    assert (found["a"].state.value, found["a"].reason.code) == ("Waiting", "YoungSnapshot")
    assert found["a"].at == ago(minutes=5) + snapshots.GRACE
    # The source's clock is hours ahead: that is no reason to wait for it.
    ahead = snapshot("a", job="none", since=ago(hours=-3))
    assert removals(wanted, seen(wanted, shown=(ahead,)))["a"].state is actions.State.DUE
    # One that a job noted is not young: its job is over.
    assert removals(wanted, seen(wanted, dataclasses.replace(young, job="j-000007")))["a"].state is actions.State.DUE


@pytest.mark.parametrize("gone", ["declared", "orphaned"])
def test_one_on_a_vcenter_that_nobody_declares_is_blocked_and_not_forgotten(gone: str) -> None:
    before = estate(samples.vcenter("old"))
    state = seen(before, snapshot("a", vcenter="old"))
    after = estate()
    if gone == "declared":
        state = dataclasses.replace(state, applied={k: v for k, v in state.applied.items() if k[1] != "old"})
    found = removals(after, state)
    assert (found["a"].state.value, found["a"].reason.code) == ("Blocked", "VCenterUnknown")
    assert "declare it again" in found["a"].reason.message


def test_one_on_a_vcenter_that_cannot_be_reached_is_blocked() -> None:
    wanted = estate()
    state = seen(wanted, snapshot("a"), unreachable=("SourceError", "no route to lab"))
    found = removals(wanted, state)
    assert (found["a"].state.value, found["a"].reason.code) == ("Blocked", "SourceUnreachable")
    assert "no route to lab" in found["a"].reason.message
    # One policy with an answer is enough: the other's trouble is its own.
    wanted = estate(samples.virtual("silver"))
    state = seen(wanted, snapshot("a"))
    broken = dataclasses.replace(state.inventories["gold"], unreachable=("SourceError", "no"))
    state = dataclasses.replace(state, inventories={**state.inventories, "gold": broken})
    assert removals(wanted, state)["a"].state is actions.State.DUE


def test_a_removal_that_failed_rests_and_one_that_runs_says_so() -> None:
    wanted = estate()
    failed = observed.Attempts(
        failed=2, lost=0, last_finished=ago(minutes=1), last_state="Failed", message="vm1: TaskInProgress"
    )
    state = seen(wanted, snapshot("a"), attempts={"remove-snapshot/vm1/a": failed})
    one = removals(wanted, state)["a"]
    assert (one.state.value, one.reason.code, one.attempt) == ("Waiting", "Retry", 3)
    assert one.at == ago(minutes=1) + dt.timedelta(minutes=5)
    assert "TaskInProgress" in one.reason.message
    running = job("j-000009", REMOVE, address="remove-snapshot/vm1/a", policy=None)
    one = removals(wanted, dataclasses.replace(state, jobs=(running,)))["a"]
    assert (one.state.value, one.reason.code) == ("Due", "Running")


def drift(wanted: desired.Desired, state: observed.Observed) -> dict[str, actions.Drift]:
    """Drift of snapshots by code."""
    return {one.code: one for one in planner.plan(wanted, state, NOW).drift if "Snapshot" in one.code}


def test_what_is_left_over_and_what_is_too_old_is_drift() -> None:
    wanted = estate(maxSnapshotAge="2h")
    assert set(drift(wanted, seen(wanted, snapshot("a")))) == {"LeftoverSnapshot"}
    found = drift(wanted, seen(wanted, snapshot("a", since=ago(hours=3)), jobs=(job(),)))
    assert set(found) == {"SnapshotOld"}
    assert found["SnapshotOld"].object == "Client/vm1"
    assert "maxSnapshotAge 2h" in found["SnapshotOld"].message
    assert "holdfast cancel j-000001" in found["SnapshotOld"].message
    assert set(drift(wanted, seen(wanted, snapshot("a", since=ago(hours=3))))) == {"LeftoverSnapshot", "SnapshotOld"}


def test_somebody_hears_of_a_snapshot_that_is_too_old() -> None:
    wanted = estate(maxSnapshotAge="2h")
    state = seen(wanted, snapshot("a", since=ago(hours=3)))
    found = {one.key: one for one in alarms.alarms(planner.plan(wanted, state, NOW), wanted, state)}
    assert "SnapshotOld/vm1" in found
    assert "maxSnapshotAge" in found["SnapshotOld/vm1"].message


def test_explain_and_the_document_speak_of_it() -> None:
    wanted = estate()
    state = seen(wanted, snapshot("a"))
    plan = planner.plan(wanted, state, NOW)
    said = explanations.client(wanted, state, plan, "vm1", (), NOW)
    assert {"LeftoverSnapshot"} <= {one.code for one in said}
    assert "remove-snapshot/vm1/a" in {one.about for one in said}
    document = planfile.document(plan)
    assert [(one.address, one.type) for one in document.actions if one.type == "RemoveSnapshot"] == [
        ("remove-snapshot/vm1/a", "RemoveSnapshot")
    ]


def test_a_machine_that_the_catalog_does_not_know_goes_by_its_name() -> None:
    wanted = estate()
    lost = snapshot("a", machine="Gone VM", client="vsphere:/gone")
    assert removals(wanted, seen(wanted, lost))["a"].address == "remove-snapshot/gone-vm/a"


# -- dispatch ----------------------------------------------------------------------------------------------------------


def starts(wanted: desired.Desired, state: observed.Observed) -> list[str]:
    """Addresses of what a turn would start."""
    plan = planner.plan(wanted, state, NOW)
    return [one.action.address for one in dispatch.choose(plan.actions, state.jobs, wanted, state, NOW)]


def test_a_machine_is_freed_of_its_leftover_before_it_is_backed_up_and_one_at_a_time() -> None:
    wanted = estate()
    state = seen(wanted, snapshot("a"), snapshot("b", since=ago(hours=2)))
    found = starts(wanted, state)
    assert found[0] == "remove-snapshot/vm1/b"
    assert [one.partition("@")[0] for one in found[1:]] == ["backup/gold/vm2"]
    plan = planner.plan(wanted, state, NOW)
    waiting = next(one for one in plan.actions if one.type is BACKUP and one.client == "vm1")
    assert (waiting.state.value, waiting.reason.code) == ("Due", "MachineBusy")


def test_nothing_is_removed_while_the_machine_is_backed_up() -> None:
    wanted = estate()
    state = seen(wanted, snapshot("a", job="j-000000"), jobs=(job("j-000005", address="backup/gold/vm1@x"),))
    assert [one for one in starts(wanted, state) if one.startswith("remove")] == []
    assert removals(wanted, state)["a"].state is actions.State.DUE


def test_a_removal_waits_for_no_media_server() -> None:
    wanted = estate(samples.make("MediaServer", "ms1", {"storageUnits": ["fast"], "maxConcurrentJobs": 1}))
    state = seen(wanted, snapshot("a"), jobs=(job("j-000005", client="vsphere:/vm2", media_server="ms1"),))
    assert starts(wanted, state) == ["remove-snapshot/vm1/a"]


# -- properties --------------------------------------------------------------------------------------------------------

_IDS = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def some_snapshots(draw: st.DrawFn) -> observed.Snapshot:
    """One of a few snapshots of two machines and three jobs, on a VCenter that is declared, gone, or unheard of."""
    return snapshot(
        draw(_IDS),
        draw(st.sampled_from(["vm1", "vm2", "vm3"])),
        draw(st.sampled_from(["j-000001", "j-000002", "none"])),
        vcenter=draw(st.sampled_from(["lab", "lab", "gone"])),
        reference=draw(st.sampled_from([None, "snapshot-1"])),
        since=draw(st.sampled_from([None, NOW, ago(minutes=10), ago(hours=1), ago(days=3), ago(hours=-2)])),
    )


@st.composite
def some_attempts(draw: st.DrawFn) -> observed.Attempts:
    """Attempts that did not succeed."""
    failed = draw(st.integers(1, 9))
    state = draw(st.sampled_from(["Failed", "Lost", "Cancelled"]))
    return observed.Attempts(
        failed=failed,
        lost=failed if state == "Lost" else 0,
        last_finished=draw(st.sampled_from([NOW, ago(minutes=2), ago(hours=2), ago(days=2)])),
        last_state=state,
        message="no",
    )


@given(
    noted=st.lists(some_snapshots(), max_size=4, unique_by=lambda one: one.id),
    shown=st.lists(some_snapshots(), max_size=4, unique_by=lambda one: one.id),
    live=st.sets(st.sampled_from(["j-000001", "j-000002"])),
    attempts=st.dictionaries(st.tuples(st.sampled_from(["vm1", "vm2", "vm3"]), _IDS), some_attempts(), max_size=3),
    reachable=st.booleans(),
)
def test_every_snapshot_is_either_in_use_or_on_its_way_out(
    noted: list[observed.Snapshot],
    shown: list[observed.Snapshot],
    live: set[str],
    attempts: dict[tuple[str, str], observed.Attempts],
    reachable: bool,
) -> None:
    wanted = estate()
    state = seen(
        wanted,
        *noted,
        shown=tuple(shown),
        unreachable=None if reachable else ("SourceError", "away"),
        jobs=tuple(job(id, client="vsphere:/vm9") for id in sorted(live)),
        attempts={f"remove-snapshot/{slug}/{id}": one for (slug, id), one in attempts.items()},
    )
    found = removals(wanted, state)
    known = snapshots.known(state)
    assert set(known) == {one.id for one in (*noted, *shown)}
    for id, one in known.items():
        # Never one whose job lives, and none that is dead is left out.
        assert (id in found) is (one.job not in live)
        if id not in found:
            continue
        action = found[id]
        if one.vcenter != "lab" or not reachable:
            assert action.state is actions.State.BLOCKED
        if action.state is actions.State.WAITING:
            # It comes back by itself, at a time that a loop can sleep until.
            assert action.at is not None and action.at > NOW
        assert one.machine in action.reason.message and one.job in action.reason.message
    chosen = dispatch.choose(list(found.values()), state.jobs, wanted, state, NOW)
    machines = [start.action.client_id for start in chosen]
    assert len(machines) == len(set(machines))
    due = {one.client_id for one in found.values() if one.state is actions.State.DUE}
    assert set(machines) == due


@given(failures=st.integers(1, 30), passed=st.integers(0, 4000))
def test_no_removal_is_tried_again_at_once(failures: int, passed: int) -> None:
    """The wait grows to an hour and stays there: as many attempts in a day as fit, and no end of trying."""
    wanted = estate()
    last = observed.Attempts(
        failed=failures, lost=0, last_finished=ago(seconds=passed), last_state="Failed", message="no"
    )
    state = seen(wanted, snapshot("a"), attempts={"remove-snapshot/vm1/a": last})
    one = removals(wanted, state)["a"]
    pause = min(60 * 5 ** min(failures - 1, 5), 3600)
    assert one.state is (actions.State.DUE if passed >= pause else actions.State.WAITING)


@given(
    noted=st.lists(some_snapshots(), max_size=4, unique_by=lambda one: one.id),
    shown=st.lists(some_snapshots(), max_size=4, unique_by=lambda one: one.id),
    live=st.sets(st.sampled_from(["j-000001", "j-000002"])),
    fates=st.lists(st.booleans(), max_size=12),
)
def test_doing_what_is_due_ends_with_nothing_due_and_only_what_is_in_use_left(
    noted: list[observed.Snapshot], shown: list[observed.Snapshot], live: set[str], fates: list[bool]
) -> None:
    """Turns of a loop in small: removals fail as ``fates`` says, then succeed; the clock goes on where nothing is due."""
    wanted, now, attempts = estate(), NOW, dict[str, observed.Attempts]()
    jobs = tuple(job(id, client="vsphere:/vm9") for id in sorted(live))
    before = snapshots.known(seen(wanted, *noted, shown=tuple(shown), jobs=jobs))
    for _ in range(60):
        state = seen(wanted, *noted, shown=tuple(shown), jobs=jobs, attempts=attempts)
        found = [one for one in planner.plan(wanted, state, now).actions if one.type is REMOVE]
        chosen = dispatch.choose(found, state.jobs, wanted, state, now)
        for start in chosen:
            id, place = snapshots.named(start.action.address), start.action.address
            assert before[id].job not in live
            if fates and fates.pop():
                failed = attempts[place].failed + 1 if place in attempts else 1
                attempts[place] = observed.Attempts(
                    failed=failed, lost=0, last_finished=now, last_state="Failed", message="no"
                )
                continue
            noted = [one for one in noted if one.id != id]
            shown = [one for one in shown if one.id != id]
        waiting = [one.at for one in found if one.state is actions.State.WAITING and one.at is not None]
        if not chosen:
            if not waiting:
                break
            now = min(waiting)
    else:
        raise AssertionError("there is no end of it")
    kept = {one.id for one in (*noted, *shown)}
    # What is in use, and what stands where nobody is asked any more.
    assert kept == {id for id, one in before.items() if one.job in live or one.vcenter != "lab"}
