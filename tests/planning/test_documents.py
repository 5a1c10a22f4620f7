"""The plan as a document, saved and compared; conditions; slugs."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest
import worlds

from reconciler.api.documents import plans
from reconciler.planning import actions, clients, conditions, desired, observed, planfile, planner

KEYS = {
    "Plan": "apiVersion kind formatVersion now horizon revision inForce digest problems drift configuration actions"
    " destruction summary",
    "actions": "address type state at after policy schedule client image copy operation unit sourceUnit bytes reason",
    "configuration": "change kind name fields",
    "drift": "code object message",
    "problems": "severity code file line column object path message hint",
    "destruction": "digest copies bytes estimated approved items clients",
    "summary": "due waiting blocked planned changes",
}


def rich() -> actions.Plan:
    """A plan with something in every part."""
    before = samples.small(land={"type": "Fixed", "period": "30d"})
    after = samples.small(samples.policy("twin"), land=samples.FIXED_7D)
    spec = before.lifecycles["gold"].spec
    images = [
        samples.image(
            n, samples.ago(days=12 - n), samples.copy(),
            samples.copy(2, "dedupe", "deep", "Expired" if n < 4 else "Complete"), spec=spec,
        )
        for n in range(1, 11)
    ]  # fmt: skip
    twins = (samples.machine(), samples.machine("x:b"), samples.machine("x:b"))
    state = samples.seen(before, samples.series(*images), machines=twins)
    return planner.plan(after, dataclasses.replace(state, owed={samples.owed_key(spec): spec}), samples.NOW)


def test_the_document_has_the_pinned_keys_and_every_one_of_them() -> None:
    written = planfile.document(rich()).to_json()
    assert set(written) == set(KEYS["Plan"].split())
    assert (written["apiVersion"], written["kind"], written["formatVersion"]) == ("holdfast/v1alpha1", "Plan", "1.0")
    for part in ("actions", "configuration", "problems"):
        assert written[part] and all(set(one) == set(KEYS[part].split()) for one in written[part]), part
    for part in ("destruction", "summary"):
        assert set(written[part]) == set(KEYS[part].split())
    assert set(written["destruction"]["items"][0]) == {"image", "copy", "unit", "expiresBefore", "expiresAfter"}
    assert set(written["destruction"]["clients"][0]) == {"client", "oldestBefore", "oldestAfter"}
    assert written["now"] == "2026-11-23T21:00:00Z"
    counts = {
        state: sum(one["state"] == state for one in written["actions"]) for state in ("Due", "Waiting", "Blocked")
    }
    assert [written["summary"][name] for name in ("due", "waiting", "blocked")] == list(counts.values())
    assert written["destruction"]["copies"] == len(written["destruction"]["items"]) > 0
    assert written["destruction"]["bytes"] == 1000 * written["destruction"]["copies"]


def fresh_world() -> worlds.World:
    """A world after a few days, with a backup due."""
    machines = {"gold": (samples.machine("x:a"), samples.machine("x:b"))}
    world = worlds.World(now=samples.NOW, wanted=samples.small(land=samples.FIXED_7D), machines=machines)
    for _ in range(3):
        world.settle()
        world.pass_by(hours=24)
    return world


def saved(world: worlds.World) -> plans.Plan:
    """The document of the plan for now."""
    return planfile.document(world.plan())


def again(world: worlds.World, before: plans.Plan) -> tuple[str, ...]:
    """What moved, judged as of the saved plan's own now."""
    return planfile.compare(before, planfile.document(planner.plan(world.wanted, world.observe(), before.now)))


def test_what_was_done_since_or_fell_due_since_does_not_make_a_plan_stale() -> None:
    world = fresh_world()
    before = saved(world)
    world.turn()
    assert again(world, before) == ()
    world.settle()
    world.pass_by(hours=30)
    world.settle()
    assert again(world, before) == ()


def test_a_revision_that_moved_makes_it_stale() -> None:
    world = fresh_world()
    edited = samples.small(land={"type": "Fixed", "period": "5d"}, priority=3)
    world.wanted = dataclasses.replace(edited, revision="dir@blake3:2")
    before = saved(world)
    world.wanted = samples.small(land={"type": "Fixed", "period": "6d"}, priority=3)
    assert again(world, before) == ("StorageLifecyclePolicy/gold: Update is not what it was",)
    world.wanted = samples.small(land=samples.FIXED_7D, priority=3)
    assert again(world, before) == ("StorageLifecyclePolicy/gold: Update is no longer part of the plan",)


def test_a_destructive_part_that_grew_makes_it_stale() -> None:
    world = fresh_world()
    for _ in range(4):
        world.settle()
        world.pass_by(hours=24)
    world.wanted = samples.small(land={"type": "Keep", "last": 100})
    before = saved(world)
    assert again(world, before) == ()
    destructive = dataclasses.replace(
        world.plan(), destruction=actions.Destruction(digest="blake3:1", items=(_destroyed("img-1"),))
    )
    more = dataclasses.replace(
        destructive,
        destruction=actions.Destruction(digest="blake3:2", items=(_destroyed("img-1"), _destroyed("img-2"))),
    )
    small, large = planfile.document(destructive), planfile.document(more)
    assert planfile.compare(small, large) == ("the destructive part holds 1 copies more, such as img-2/1",)
    # Copies that flowed out naturally are no harm.
    other = dataclasses.replace(more, destruction=dataclasses.replace(more.destruction, digest="blake3:1"))
    assert planfile.compare(planfile.document(other), small) == ()


def _destroyed(image: str) -> actions.Destroyed:
    return actions.Destroyed(image=image, copy=1, unit="fast", bytes=1, expires_before=None, expires_after=None)


def test_a_unit_that_went_away_makes_it_stale() -> None:
    world = fresh_world()
    before = saved(world)
    world.units["fast"] = "Offline"
    assert [line.partition(":")[0] for line in again(world, before)] == [
        "backup/gold/x-a@2026-11-26T21",
        "backup/gold/x-b@2026-11-26T21",
    ]


# -- conditions --------------------------------------------------------------------------------------------------------


def judged(wanted: desired.Desired, *images: observed.Image, **seen: Any) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    series = samples.series(*images)
    found = conditions.conditions(wanted, samples.seen(wanted, series, **seen), series, samples.NOW)
    return {one.type: (one.status, one.reason) for one in found}


def test_conditions_go_by_the_age_of_the_last_success() -> None:
    wanted = samples.small()
    assert judged(wanted, samples.image(1, samples.ago(hours=30))) == {
        "Synced": ("True", "InForce"), "Protected": ("True", "Recent"), "Recoverable": ("Unknown", "NotVerified"),
        "Failing": ("False", "NoFailure"),
    }  # fmt: skip
    assert judged(wanted, samples.image(1, samples.ago(hours=49)))["Protected"] == ("False", "Overdue")
    assert judged(wanted)["Protected"] == ("False", "NoImage")
    broken = samples.image(1, samples.ago(hours=1), samples.copy(state="Lost"))
    assert judged(wanted, broken)["Protected"] == ("False", "NoImage")


def test_a_machine_that_cannot_be_backed_up_is_not_protected_and_says_why() -> None:
    wanted = samples.small()
    barred = dataclasses.replace(
        samples.machine(), problem=("FaultTolerance", "fault tolerance is on, under which there are no snapshots")
    )
    inventories = {"gold": observed.Inventory(machines=(barred,), seen=samples.NOW)}
    assert judged(wanted, inventories=inventories)["Protected"] == ("False", "FaultTolerance")
    recent = samples.image(1, samples.ago(hours=1))
    assert judged(wanted, recent, inventories=inventories)["Protected"] == ("True", "Recent")


def test_failing_is_a_condition_of_its_own() -> None:
    tried = observed.Attempts(
        failed=3, lost=0, last_finished=samples.NOW, last_state="Failed", message="the disk said no"
    )
    given_up = {"backup/gold/oblvm1@2026-11-23T20:00Z": tried}
    found = judged(samples.small(), samples.image(1, samples.ago(hours=25)), attempts=given_up)
    assert (found["Failing"], found["Protected"]) == (("True", "RetriesExhausted"), ("True", "Recent"))


def test_synced_tells_what_is_not_in_force() -> None:
    wanted = samples.small()
    series = samples.series(samples.image(1, samples.ago(hours=1)))
    state = samples.seen(samples.small(priority=3), series)
    (synced, *_) = conditions.conditions(wanted, state, series, samples.NOW)
    assert (synced.status, synced.reason) == ("False", "NotApplied")
    gone = dataclasses.replace(series, policy="gone")
    (synced, *_) = conditions.conditions(wanted, state, gone, samples.NOW)
    assert (synced.status, synced.reason, synced.since) == ("False", "Orphaned", None)


# -- slugs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "taken", "slug"),
    [
        ("oblVM1", (), "oblvm1"),
        ("oblVM1", ("oblvm1",), "oblvm1-2"),
        ("oblVM1", ("oblvm1", "oblvm1-2"), "oblvm1-3"),
        ("Büro / Köln №7", (), "buro-koln-no7"),
        ("../..", (), "client"),
        ("", ("client",), "client-2"),
        ("x" * 99, (), "x" * 48),
        ("x" * 99, ("x" * 48,), "x" * 46 + "-2"),
        ("a" * 45 + "-b", (f"{'a' * 45}-b",), "a" * 45 + "-2"),
    ],
)
def test_a_slug_is_safe_and_unique(name: str, taken: tuple[str, ...], slug: str) -> None:
    assert clients.slug(name, taken) == slug


def test_a_client_that_nobody_has_seen_has_the_slug_that_it_will_get() -> None:
    wanted = samples.small()
    machines = (samples.machine("x:one", name="VM"), samples.machine("x:two", name="vm"))
    state = samples.seen(wanted, machines=machines, clients={"x:one": samples.client("x:one")})
    plan = planner.plan(wanted, state, samples.NOW + dt.timedelta(hours=1))
    due = {a.client for a in plan.actions if a.type is actions.Type.BACKUP}
    assert due == {"x:one", "vm"}
