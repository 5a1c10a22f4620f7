"""How many machines of a host, of a datastore and of a VCenter are read at the same time."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.planning import (
    actions,
    desired,
    dispatch,
    explanations,
    hypervisors,
    observed,
    planner,
    restorations,
)

NOW, BACKUP = samples.NOW, actions.Type.BACKUP
DUPLICATE = actions.Type.DUPLICATE


def estate(*more: Any, limits: dict[str, int] | None = None, unit: int = 50) -> desired.Desired:
    """Policies ``gold`` and ``silver`` of VCenter ``lab``, ``far`` of VCenter ``other``, ``files`` of disk images."""
    return samples.estate(
        samples.unit("fast", maxConcurrentJobs=unit),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.vcenter("lab", limits=limits or {}),
        samples.vcenter("other", limits=limits or {}),
        samples.virtual("gold"),
        samples.virtual("silver"),
        samples.virtual("far", vcenter="other"),
        samples.policy("files"),
        *more,
    )


def state(
    wanted: desired.Desired, machines: dict[str, tuple[observed.Machine, ...]], *jobs: observed.Job, **fields: Any
) -> observed.Observed:
    """``machines``: by policy."""
    everybody = tuple({one.id: one for one in itertools.chain.from_iterable(machines.values())}.values())
    made = samples.seen(wanted, machines=everybody, jobs=jobs, **fields)
    inventories = {
        name: observed.Inventory(machines=machines.get(name, ()), seen=NOW, snapshots=one.snapshots)
        for name, one in made.inventories.items()
    }
    return dataclasses.replace(made, inventories=inventories)


def due(machine: str, policy: str = "gold", **fields: Any) -> actions.Action:
    """A due backup of a machine."""
    values: dict[str, Any] = {
        "address": f"backup/{policy}/{machine}@now", "type": BACKUP, "state": actions.State.DUE, "at": NOW,
        "reason": actions.Reason(code="SlotDue", message="due"), "policy": policy, "client": machine,
        "client_id": f"vsphere:/{machine}", "unit": "fast", "candidates": ("fast",), "storage": "fast", **fields,
    }  # fmt: skip
    return actions.Action(**values)


def job(machine: str, policy: str = "gold", **fields: Any) -> observed.Job:
    """A running backup."""
    values = {"address": f"backup/{policy}/{machine}@before", "unit": "fast", **fields}
    return observed.Job(
        id=f"j-{machine}", type="Backup", state="Running", policy=policy, client=f"vsphere:/{machine}", **values
    )


def starts(wanted: desired.Desired, seen: observed.Observed, *ready: actions.Action) -> list[str]:
    """Machines that begin."""
    return [str(one.action.client) for one in dispatch.choose(ready, seen.jobs, wanted, seen, NOW)]


def reasons(wanted: desired.Desired, seen: observed.Observed, *ready: actions.Action) -> dict[str, str]:
    """Why machines have to wait."""
    held = dispatch.held(ready, seen.jobs, wanted, seen, NOW)
    return {one.client or "": held[one.address].code for one in ready if one.address in held}


def test_a_host_serves_so_many_and_another_one_goes_on() -> None:
    wanted = estate(limits={"perHost": 1})
    there = {"gold": tuple(samples.guest(f"vm{n}", f"esx{n % 2}", f"ds{n}") for n in range(4))}
    ready = [due(f"vm{n}") for n in range(4)]
    seen = state(wanted, there)
    assert starts(wanted, seen, *ready) == ["vm0", "vm1"]
    assert reasons(wanted, seen, *ready) == {"vm2": "HostBusy", "vm3": "HostBusy"}
    assert starts(wanted, state(wanted, there, job("vm0")), *ready[1:]) == ["vm1"]


def test_a_machine_on_two_datastores_needs_room_on_both() -> None:
    wanted = estate(limits={"perDatastore": 1})
    there = {
        "gold": (
            samples.guest("vm0", "esx1", "ds1"),
            samples.guest("vm1", "esx2", "ds1", "ds2"),
            samples.guest("vm2", "esx3", "ds2"),
        )
    }
    seen = state(wanted, there)
    ready = [due("vm0"), due("vm1"), due("vm2")]
    # What does not fit is passed over, not waited for.
    assert starts(wanted, seen, *ready) == ["vm0", "vm2"]
    assert reasons(wanted, seen, *ready) == {"vm1": "DatastoreBusy"}


def test_leftovers_are_open_snapshots() -> None:
    wanted = estate(limits={"openSnapshots": 3})
    there = {"gold": tuple(samples.guest(f"vm{n}", f"esx{n}", f"ds{n}") for n in range(4))}
    ready = [due(f"vm{n}") for n in range(4)]
    left = (samples.snapshot("a", "vm8", "j-dead"), samples.snapshot("b", "vm9", "j-dead", vcenter="other"))
    seen = state(wanted, there, snapshots=left)
    assert starts(wanted, seen, *ready) == ["vm0", "vm1"]
    held = dispatch.held(ready, (), wanted, seen, NOW)
    assert {one.message for one in held.values()} == {
        "3 snapshots are open, 1 of them left over (limits.openSnapshots of VCenter lab is 3)"
    }
    # The snapshot of a live job is the job's own: it counts once.
    alive = job("vm0")
    seen = state(wanted, there, alive, snapshots=(samples.snapshot("c", "vm0", alive.id),))
    assert starts(wanted, seen, *ready[1:]) == ["vm1", "vm2"]


def test_limits_are_a_vcenters_own_over_all_its_policies() -> None:
    wanted = estate(limits={"perHost": 1})
    same = {name: (samples.guest(f"{name}vm", "esx1", "ds1"),) for name in ("gold", "silver", "far")}
    ready = [due(f"{name}vm", name) for name in same]
    assert starts(wanted, state(wanted, same), *ready) == ["farvm", "goldvm"]


@pytest.mark.parametrize(
    ("target", "limits", "code"),
    [
        ({"host": "esx0"}, {"perHost": 1}, "HostBusy"),
        ({"datastore": "ds0"}, {"perDatastore": 1}, "DatastoreBusy"),
        ({}, {"openSnapshots": 1}, "SnapshotsOpen"),
        ({"host": "esx1", "datastore": "ds1"}, {"perHost": 1, "perDatastore": 1}, None),
    ],
)
def test_a_restore_waits_for_its_vcenter_and_its_vcenter_for_it(
    target: dict[str, str], limits: dict[str, int], code: str | None
) -> None:
    spec = {"client": "vm9", "target": {"vmware": {"vcenter": "lab", **target}}}
    item = samples.make("Restore", "drill", spec)
    wanted = estate(item, limits=limits)
    there = {"gold": (samples.guest("vm0", "esx0", "ds0"),)}
    place = restorations.address("drill", restorations.digest(item))
    asked = due("vm9", address=place, type=actions.Type.RESTORE, unit=None, candidates=(), source_unit="fast")
    assert starts(wanted, state(wanted, there, job("vm0")), asked) == ([] if code else ["vm9"])
    assert reasons(wanted, state(wanted, there, job("vm0")), asked) == ({"vm9": code} if code else {})
    running = observed.Job(id="j-9", address=place, type="Restore", state="Running", policy="gold", client="x")
    assert starts(wanted, state(wanted, there, running), due("vm0")) == ([] if code else ["vm0"])
    seen = state(wanted, there, running)
    told = explanations.vcenter(wanted, seen, planner.plan(wanted, seen, NOW), "lab")
    assert any(one.about == "limits" and "1 machine is read" in one.message for one in told)
    # A restore by command, or of what the manifest said before, is not known to ask anything.
    other = dataclasses.replace(running, address="restore/drill@2026-11-20T00:00Z")
    assert starts(wanted, state(wanted, there, other), due("vm0")) == ["vm0"]


def test_other_sources_and_other_work_count_nothing() -> None:
    wanted = estate(limits={"perHost": 1, "openSnapshots": 1})
    there = {"gold": (samples.guest("vm0", "esx1", "ds1"), samples.guest("vm1", "esx1", "ds1"))}
    copying = due("vm1", type=DUPLICATE, address="duplicate/x", image="i", unit="fast")
    ready = [due("vm0"), due("vmx", "files"), copying]
    seen = state(wanted, there)
    assert sorted(starts(wanted, seen, *ready)) == ["vm0", "vm1", "vmx"]
    assert reasons(wanted, seen, *ready) == {}


def test_a_running_job_is_found_under_its_policys_old_name_and_by_its_vcenters_other_policies() -> None:
    wanted = estate(samples.virtual("new", previousNames=["former"]), limits={"perHost": 1})
    there = {"new": (samples.guest("vm0", "esx1", "ds1"), samples.guest("vm1", "esx1", "ds1"))}
    assert starts(wanted, state(wanted, there, job("vm0", "former")), due("vm1", "new")) == []
    # A policy that does not match the machine any more, as another one does.
    assert starts(wanted, state(wanted, there, job("vm0", "gold")), due("vm1", "new")) == []
    # Nobody knows where it runs: it counts as an open snapshot alone.
    assert starts(wanted, state(wanted, there, job("vm7", "gold")), due("vm1", "new")) == ["vm1"]


def test_the_plan_says_what_a_due_backup_waits_for() -> None:
    wanted = estate(limits={"perHost": 1})
    there = {"gold": (samples.guest("vm0", "esx1", "ds1"), samples.guest("vm1", "esx1", "ds2"))}
    plan = planner.plan(wanted, state(wanted, there), NOW)
    first, second = (one for one in plan.actions if one.type is BACKUP and one.state is actions.State.DUE)
    assert (first.client, first.reason.code) == ("vm0", "FirstBackup")
    assert (second.client, second.reason.code) == ("vm1", "HostBusy")
    assert second.reason.message.startswith("the series has no complete image yet")
    assert second.reason.message.endswith("(limits.perHost of VCenter lab is 1)")


def test_a_vcenter_is_explained() -> None:
    wanted = estate(limits={"perHost": 1, "perDatastore": 3, "openSnapshots": 9})
    there = {"gold": (samples.guest("vm0", "esx1", "ds1"), samples.guest("vm1", "esx1", "ds2"))}
    running = job("vm0")
    noted = (samples.snapshot("a", "vm0", running.id), samples.snapshot("b", "vm7", "j-dead"))
    seen = state(wanted, there, running, snapshots=noted)
    said = explanations.vcenter(wanted, seen, planner.plan(wanted, seen, NOW), "lab")
    found = {one.about: one for one in said}
    assert found["limits"].message == (
        "1 machine is read, 1 snapshot is left over, of 9 snapshots at most; host esx1: 1 of 1; datastore ds1: 1 of 3"
    )
    assert found["policy gold"].message.startswith("matches 2 machines, as of ")
    assert "policy far" not in found and "policy files" not in found
    assert "in use by j-vm0" in found["snapshot a"].message
    assert found["remove-snapshot/vm7/b"].code == "LeftoverSnapshot"
    assert [one.code for one in said if one.about.startswith("backup/gold/vm1")] == ["HostBusy"]
    elsewhere = explanations.vcenter(wanted, seen, planner.plan(wanted, seen, NOW), "other")
    assert [one.about for one in elsewhere] == ["policy far", "limits"]


def test_a_vcenter_that_nobody_describes_any_more_is_explained() -> None:
    before = estate()
    after = samples.estate(*(one for one in before.objects() if one.key != ("VCenter", "lab")))
    seen = state(before, {"gold": (samples.guest("vm0", "esx1", "ds1"),)})
    lost = dataclasses.replace(seen.inventories["gold"], unreachable=("SourceError", "no route"))
    seen = dataclasses.replace(seen, inventories={**seen.inventories, "gold": lost})
    said = explanations.vcenter(after, seen, planner.plan(after, seen, NOW), "lab")
    assert {one.code for one in said} >= {"VCenterGone", "Orphaned", "UnreachableSource"}


# -- properties --------------------------------------------------------------------------------------------------------

_HOSTS = st.sampled_from([None, "esx1", "esx2"])
_STORES = st.lists(st.sampled_from(["ds1", "ds2", "ds3"]), max_size=3, unique=True)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[desired.Desired, observed.Observed, list[actions.Action]]:
    """Up to twelve machines under three policies; some are being read, some are due, some snapshots are left over."""
    limits = {name: draw(st.integers(1, 4)) for name in ("perHost", "perDatastore", "openSnapshots")}
    wanted = estate(limits=limits, unit=draw(st.integers(1, 9)))
    machines: dict[str, list[observed.Machine]] = {"gold": [], "silver": [], "far": []}
    jobs, ready = [], []
    for number in range(draw(st.integers(0, 12))):
        name, policy = f"vm{number}", draw(st.sampled_from(sorted(machines)))
        machines[policy].append(samples.guest(name, draw(_HOSTS), *draw(_STORES)))
        what = draw(st.sampled_from(["runs", "due", "due", "idle"]))
        if what == "runs":
            jobs.append(job(name, policy))
        elif what == "due":
            at = samples.ago(hours=draw(st.integers(0, 3)))
            ready.append(due(name, policy, at=at, priority=draw(st.integers(0, 1))))
    left = [
        samples.snapshot(f"s{number}", f"vm{number}", "j-dead", vcenter=draw(st.sampled_from(["lab", "other"])))
        for number in range(draw(st.integers(0, 3)))
    ]
    made = {name: tuple(found) for name, found in machines.items()}
    return wanted, state(wanted, made, *jobs, snapshots=tuple(left)), ready


def used(
    wanted: desired.Desired, seen: observed.Observed, pairs: list[tuple[str, str]]
) -> collections.Counter[tuple[str, str, str]]:
    """What some (policy, client id) take: by VCenter, kind and name. Counted apart from the code under test."""
    result: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for policy, client in pairs:
        vcenter = "other" if policy == "far" else "lab"
        machine = next(one for one in seen.inventories[policy].machines if one.id == client)
        result[vcenter, "openSnapshots", ""] += 1
        if machine.host is not None:
            result[vcenter, "perHost", machine.host] += 1
        for name in machine.datastores:
            result[vcenter, "perDatastore", name] += 1
    for one in seen.snapshots:
        result[one.vcenter, "openSnapshots", ""] += 1
    return result


def limit(wanted: desired.Desired, key: tuple[str, str, str]) -> int:
    """The limit of what ``used`` counts."""
    limits = wanted.vcenters[key[0]].spec.limits
    return {"perHost": limits.per_host, "perDatastore": limits.per_datastore}.get(key[1], limits.open_snapshots)


@given(worlds(), st.randoms(use_true_random=False))
def test_no_limit_is_exceeded_what_fits_starts_and_the_choice_is_the_same_every_time(
    world: tuple[desired.Desired, observed.Observed, list[actions.Action]], chance: Any
) -> None:
    wanted, seen, ready = world
    chosen = dispatch.choose(ready, seen.jobs, wanted, seen, NOW)
    before = [(str(one.policy), str(one.client)) for one in seen.jobs]
    begun = [(str(one.action.policy), str(one.action.client_id)) for one in chosen]
    taken = used(wanted, seen, before)
    after = used(wanted, seen, before + begun)
    for key, count in after.items():
        # What stood above a limit before stays where it is.
        assert count <= max(limit(wanted, key), taken[key])
    busy = len(seen.jobs) + len(chosen)
    held = dispatch.held(ready, seen.jobs, wanted, seen, NOW)
    names = {one.action.address for one in chosen}
    for action in ready:
        pair = (str(action.policy), str(action.client_id))
        fits = all(
            count <= limit(wanted, key)
            for key, count in used(wanted, seen, [*before, *begun, pair]).items()
            if count > after[key]
        )
        if action.address in names:
            assert action.address not in held
            continue
        # Nothing that would still fit is left, and what does not fit says why.
        assert not fits or busy >= wanted.units["fast"].spec.max_concurrent_jobs
        assert (action.address in held) is not fits
    shuffled = list(ready)
    chance.shuffle(shuffled)
    assert dispatch.choose(shuffled, seen.jobs, wanted, seen, NOW) == chosen


@pytest.mark.parametrize("policy", ["files", "nobody", None])
def test_what_asks_nothing_of_a_vcenter_is_never_refused(policy: str | None) -> None:
    wanted = estate(limits={"perHost": 1, "perDatastore": 1, "openSnapshots": 1})
    floor = hypervisors.Hypervisors(wanted, state(wanted, {}))
    for _ in range(3):
        assert floor.refuses(due("x", policy=policy)) is None
        floor.take(due("x", policy=policy), "x")
