"""Whole plans, written out: what a user sees in the order in which it is shown."""

from __future__ import annotations

import dataclasses

import planning_samples as samples
import worlds

from reconciler.planning import actions, desired, planner


def lines(plan: actions.Plan) -> list[str]:
    """One line per action: state, address, time, what it follows, reason."""
    result = []
    for one in plan.actions:
        at = f" {one.at:%dT%H:%M}" if one.at else ""
        after = f" after {', '.join(one.after)}" if one.after else ""
        result.append(f"{one.state.value} {one.address}{at}{after}: {one.reason.code}")
    return result


def gold() -> desired.Desired:
    """The article's estate in small: a fast unit for a week, a pool for long, windows at night."""
    return samples.estate(
        samples.unit("fast"),
        samples.pool("deep"),
        samples.window("off-peak", "20:00", "10h", timeZone="Europe/Berlin"),
        samples.lifecycle(
            "gold",
            samples.operation("land", "fast", None, {"type": "Fixed", "period": "7d"}),
            samples.operation("dedupe", "deep", "land", {"type": "Keep", "daily": 3}, window="off-peak"),
        ),
        samples.policy(
            "obl-gold",
            {"name": "weekly", "type": "Full", "cron": "0 21 * * Sat", "timeZone": "Europe/Berlin"},
            {"name": "nightly", "type": "Incremental", "cron": "0 21 * * Sun-Fri", "timeZone": "Europe/Berlin",
             "window": "off-peak", "initialBackup": "Immediately"},
        ),
    )  # fmt: skip


def world() -> worlds.World:
    """One machine, Monday noon in Berlin."""
    machines = {"obl-gold": (samples.machine(name="oblVM1"),)}
    return worlds.World(now=samples.at("2026-11-23T11:00Z"), wanted=gold(), machines=machines)


def test_the_first_plan_of_an_estate() -> None:
    plan = world().plan()
    assert [f"{c.change} {c.kind}/{c.name}" for c in plan.configuration] == [
        "Create BackupPolicy/obl-gold",
        "Create BackupWindow/off-peak",
        "Create StorageLifecyclePolicy/gold",
        "Create StorageUnit/deep",
        "Create StorageUnit/fast",
    ]
    assert lines(plan) == [
        "Waiting backup/obl-gold/oblvm1@2026-11-23T11:00Z 23T19:00: OutsideWindow",
        (
            "Waiting duplicate/obl-gold/oblvm1@2026-11-23T11:00Z/dedupe after backup/obl-gold/oblvm1@2026-11-23T11:00Z:"
            " AfterBackup"
        ),
        "Planned backup/obl-gold/oblvm1@2026-11-23T20:00Z 23T20:00: NextSlot",
    ]
    assert plan.changes and plan.next_event == samples.at("2026-11-23T19:00Z")


def test_a_week_later() -> None:
    here = world()
    for _ in range(9 * 4):
        here.settle()
        here.pass_by(hours=6)
    here.now = samples.at("2026-12-03T23:30Z")
    plan = here.plan()
    # Saturday's full starts a new chain; the one before it is kept as a whole while its last image is. In the pool each
    # image stands alone.
    assert lines(plan) == [
        "Due backup/obl-gold/oblvm1@2026-12-03T20:00Z 03T20:00: SlotDue",
        (
            "Waiting duplicate/obl-gold/oblvm1@2026-12-03T20:00Z/dedupe after backup/obl-gold/oblvm1@2026-12-03T20:00Z:"
            " AfterBackup"
        ),
        "Planned backup/obl-gold/oblvm1@2026-12-04T20:00Z 04T20:00: NextSlot",
        "Planned expire/img-5/1 04T23:00: Fixed",
    ]
    assert not plan.configuration and not plan.drift and not plan.problems


def test_a_blocked_pool_and_a_shortened_rule() -> None:
    here = world()
    for _ in range(6 * 4):
        here.settle()
        here.pass_by(hours=6)
    here.units["deep"] = "Offline"
    shorter = samples.lifecycle(
        "gold",
        samples.operation("land", "fast", None, {"type": "Fixed", "period": "3d"}),
        samples.operation("dedupe", "deep", "land", {"type": "Keep", "daily": 3}, window="off-peak"),
    )
    here.wanted = samples.estate(*(i for i in gold().objects() if i.kind != "StorageLifecyclePolicy"), shorter)
    plan = here.plan()
    assert [(f.path, f.before, f.after) for c in plan.configuration for f in c.fields] == [
        ("spec.operations[0].retention.period", "7d", "3d")
    ]
    held = [line for line in lines(plan) if "HeldByBrake" in line]
    assert held and len(held) == len(plan.destruction.items)
    assert [one.code for one in plan.drift] == ["UnitOffline"]
    before = plan.destruction.digest
    here.settle()
    applied = here.plan()
    assert not applied.changes and applied.destruction.digest == before


def test_plans_are_values() -> None:
    plan = world().plan()
    assert planner.plan(gold(), world().observe(), plan.now) == plan
    assert dataclasses.replace(plan) == plan
