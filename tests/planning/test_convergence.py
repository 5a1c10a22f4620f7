"""The main property: with the clock held still and no job failing, doing what is due ends with nothing due.

Whatever an estate says and whatever happened to it before (failures, crashes, outages, damage, edits, clock steps), no
never is violated, every deletion that a plan calls due passes the check inside the deleting transaction, and a plan
does not depend on the order in which facts arrive.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import random
from typing import Any

import estates
import planning_samples as samples
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import actions, desired, planner

MACHINES = (samples.machine("diskimages:/srv/oblVM1"), samples.machine("diskimages:/srv/oblVM2"))


def new_world(wanted: desired.Desired) -> worlds.World:
    """Two machines under every policy."""
    return worlds.World(now=samples.NOW, wanted=wanted, machines={"gold": MACHINES, "silver": MACHINES})


def replace(world: worlds.World, kind: str, *items: Any) -> None:
    """The manifests of one kind are exchanged."""
    kept = [item for item in world.wanted.objects() if item.kind != kind]
    number = world.wanted.revision.rpartition(":")[2]
    world.wanted = samples.estate(*kept, *items, revision=f"dir@blake3:{int(number) + 1}")


def step(world: worlds.World, word: str, value: Any) -> worlds.Fate:
    """Let something happen; how the jobs that follow end."""
    if word == "pass":
        world.pass_by(hours=value)
    elif word == "back":
        world.pass_by(hours=-value)
    elif word == "lifecycle":
        replace(world, "StorageLifecyclePolicy", value)
    elif word == "policies":
        replace(world, "BackupPolicy", *value)
    elif word == "orphan":
        replace(world, "BackupPolicy", *(item for name, item in world.wanted.policies.items() if name != value))
    elif word in ("outage", "return"):
        world.units[value] = "Offline" if word == "outage" else "Online"
    elif word == "damage":
        copies = [(i.id, c.number) for images in world.images.values() for i in images for c in i.copies]
        if copies:
            world.damage(*copies[value[0] % len(copies)], value[1])
    elif word == "request":
        world.ask("gold", MACHINES[value].id)
    elif word == "trouble":
        outcomes = list(value)
        return lambda action: _fate(action, outcomes)
    return worlds.succeed


def _fate(action: actions.Action, outcomes: list[str]) -> str:
    outcome = outcomes.pop(0) if outcomes else "Succeeded"
    return "Failed" if outcome == "Partial" and action.type is not actions.Type.BACKUP else outcome


@settings(max_examples=180)
@given(wanted=estates.estates(), life=st.lists(estates.STEPS, min_size=2, max_size=12))
def test_doing_what_is_due_ends_with_nothing_due(wanted: desired.Desired, life: list[tuple[str, Any]]) -> None:
    world = new_world(wanted)
    world.settle()
    for word, value in life:
        fate = step(world, word, value)
        known = set(world.violations()) if word == "damage" else set()
        world.settle(fate)
        plan = world.plan()
        assert plan.in_state(actions.State.DUE) == ()
        assert not plan.configuration or plan.problems
        assert set(world.violations()) <= known
        samples.by_address(plan)


@settings(max_examples=100)
@given(wanted=estates.estates(), life=st.lists(estates.STEPS, max_size=6), seed=st.integers(0, 1000))
def test_a_plan_does_not_depend_on_the_order_of_facts(
    wanted: desired.Desired, life: list[tuple[str, Any]], seed: int
) -> None:
    world = new_world(wanted)
    world.turn()
    for word, value in life:
        world.settle(step(world, word, value))
    world.pass_by(hours=25)
    seen, shuffled = world.observe(), random.Random(seed)

    def mixed(value: Any) -> Any:
        items = list(value.items()) if isinstance(value, dict) else list(value)
        shuffled.shuffle(items)
        return dict(items) if isinstance(value, dict) else tuple(items)

    other = dataclasses.replace(
        seen,
        **{
            name: mixed(getattr(seen, name))
            for name in ("series", "clients", "units", "applied", "anchors", "promises", "owed", "requests", "attempts")
        },
        inventories={
            name: dataclasses.replace(one, machines=mixed(one.machines))
            for name, one in mixed(dict(seen.inventories)).items()
        },
    )
    objects = mixed(list(world.wanted.objects()))
    again = samples.estate(*objects, revision=world.wanted.revision)
    assert planner.plan(again, other, world.now) == planner.plan(world.wanted, seen, world.now)


@settings(max_examples=40)
@given(wanted=estates.estates(), hours=st.lists(st.sampled_from((6.0, 24.0, 48.0)), max_size=8))
def test_planning_twice_says_the_same_and_changes_nothing(wanted: desired.Desired, hours: list[float]) -> None:
    world = new_world(wanted)
    for passed in hours:
        world.settle()
        world.pass_by(hours=passed)
    seen = world.observe()
    assert planner.plan(world.wanted, seen, world.now) == planner.plan(world.wanted, seen, world.now)


@settings(max_examples=40)
@given(wanted=estates.estates(), days=st.integers(1, 12))
def test_what_a_plan_foresees_comes_true(wanted: desired.Desired, days: int) -> None:
    """Every Planned backup is due, or waits, or is Blocked, once its time has come."""
    world = new_world(wanted)
    for _ in range(days):
        world.settle()
        world.pass_by(hours=24)
    world.settle()
    coming = [
        action
        for action in world.plan().in_state(actions.State.PLANNED)
        if action.type is actions.Type.BACKUP and action.at is not None
    ]
    if not coming:
        return
    first = min(coming, key=lambda action: (action.at, action.address))
    assert first.at is not None
    world.now = first.at
    addresses = {action.address for action in world.plan().actions if action.state is not actions.State.PLANNED}
    assert first.address in addresses


def test_one_pass_converges_although_actions_depend_on_each_other() -> None:
    chain = samples.lifecycle(
        "gold",
        samples.operation("land", "fast", None, {"type": "ExpireAfterCopy"}),
        samples.operation("second", "deep", "land", {"type": "ExpireAfterCopy"}),
        samples.operation("third", "far", "second", samples.FOREVER),
    )
    world = new_world(
        samples.estate(
            samples.unit("fast"), samples.pool("deep"), samples.pool("far"), chain,
            samples.policy("gold", {"name": "daily", "type": "Full", "every": "24h"}),
        )
    )  # fmt: skip
    world.settle()
    done = collections.Counter(address.partition("/")[0] for address, _ in world.done)
    assert done == {"backup": 2, "duplicate": 4, "expire": 4, "reclaim": 1}
    left = [c.operation for images in world.images.values() for i in images for c in i.copies if c.state != "Expired"]
    assert left == ["third", "third"]
    assert not world.plan().changes


@pytest.mark.parametrize("outcome", ["Failed", "Lost", "Partial", "Cancelled"])
def test_a_backup_that_never_succeeds_comes_to_rest_and_is_tried_at_its_next_slot(outcome: str) -> None:
    world = new_world(samples.small())
    world.settle(lambda _: outcome)
    started = len(world.done)
    assert not world.plan().in_state(actions.State.DUE)
    world.now = samples.NOW + dt.timedelta(hours=23)
    world.settle(lambda _: outcome)
    world.now = samples.NOW + dt.timedelta(hours=24)
    before = len(world.done)
    world.settle()
    assert started and len(world.done) > before
    assert not world.plan().changes


def test_a_copy_that_became_the_last_good_one_in_the_pass_that_lets_it_go_is_refused_and_stays() -> None:
    lifecycle = samples.lifecycle(
        "gold",
        samples.operation("land", "fast", None, samples.FOREVER),
        samples.operation("near", "deep", "land", {"type": "Fixed", "period": "1d"}),
        samples.operation("away", "far", "land", samples.FOREVER),
    )
    units = (samples.unit("fast"), samples.pool("deep"), samples.pool("far"))
    world = worlds.World(
        now=samples.NOW,
        wanted=samples.estate(*units, lifecycle, samples.policy()),
        machines={"gold": MACHINES[:1]},
        units={"far": "Offline"},
    )
    world.settle()
    world.pass_by(hours=60)
    world.units["far"] = "Online"
    world.unreachable.add("gold")
    started = world.turn(lambda one: "SourceDamaged" if one.type is actions.Type.DUPLICATE else "Succeeded")
    assert [one.action.type.value for one in started] == ["Duplicate", "Expire"]
    (image,) = next(iter(world.images.values()))
    assert {copy.operation: copy.state for copy in image.copies} == {"land": "Damaged", "near": "Complete"}
    # It helps the other one out, and may go then.
    for _ in range(2):
        world.settle()
        world.pass_by(hours=1)
    assert not world.plan().changes and not world.violations()
    (image,) = next(iter(world.images.values()))
    left = {copy.operation: copy.state for copy in image.copies}
    assert left == {"land": "Complete", "near": "Expired", "away": "Complete"}


def test_a_drill_of_a_copy_that_proved_false_in_the_same_pass_is_made_of_another_one() -> None:
    lifecycle = samples.lifecycle(
        "gold",
        samples.operation("land", "fast", None, samples.FOREVER, verify={"boot": "7d"}),
        samples.operation("away", "far", "land", samples.FOREVER),
    )
    units = (samples.unit("fast"), samples.pool("far"))
    world = worlds.World(
        now=samples.NOW,
        wanted=samples.estate(*units, lifecycle, samples.policy()),
        machines={"gold": MACHINES[:1]},
    )
    world.turn()
    started = world.turn(lambda one: "SourceDamaged" if one.type is actions.Type.DUPLICATE else "Succeeded")
    assert [one.action.type.value for one in started] == ["Duplicate", "Verify"] and not world.results
    for _ in range(5):
        world.settle()
        world.pass_by(hours=24)
    assert ("img-2", 1, "Boot") in world.results and not world.violations()
