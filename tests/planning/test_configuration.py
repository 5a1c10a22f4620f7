"""What a revision changes; renames; the guard against omission; what the decisions are made from."""

from __future__ import annotations

import dataclasses
from typing import Any

import planning_samples as samples
import pytest

from reconciler.api import models
from reconciler.planning import actions, configuration, desired, observed, planner

EVERY = {"name": "daily", "type": "Full", "every": "24h"}


def estate(*more: models.Object, period: str = "7d", **spec: Any) -> desired.Desired:
    """A unit, a lifecycle and a policy."""
    retention = {"type": "Fixed", "period": period}
    return samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast", None, retention)),
        samples.policy("gold", EVERY, **spec),
        *more,
    )


def applied(wanted: desired.Desired, *orphaned: models.Object) -> dict[desired.Key, observed.Applied]:
    """In force since long ago."""
    found = {item.key: observed.Applied(object=item, since=samples.ago(days=9)) for item in wanted.objects()}
    gone = {item.key: observed.Applied(object=item, since=samples.ago(days=9), orphaned=True) for item in orphaned}
    return {**found, **gone}


def told(changes: tuple[actions.ConfigurationChange, ...]) -> list[tuple[str, str, list[tuple[str, Any, Any]]]]:
    """Changes as plain data."""
    return [(c.change, f"{c.kind}/{c.name}", [(f.path, f.before, f.after) for f in c.fields]) for c in changes]


def test_a_first_revision_creates_everything_and_the_same_again_changes_nothing() -> None:
    first = configuration.changes(estate(), {})
    assert [word for word, _, _ in told(first)] == ["Create"] * 3
    assert [f"{c.kind}/{c.name}" for c in first] == [
        "BackupPolicy/gold", "StorageLifecyclePolicy/gold", "StorageUnit/fast",
    ]  # fmt: skip
    assert configuration.changes(estate(), applied(estate())) == ()


def test_an_update_names_each_field() -> None:
    found = configuration.changes(estate(period="30d", priority=5), applied(estate()))
    assert told(found) == [
        ("Update", "BackupPolicy/gold", [("spec.priority", 0, 5)]),
        ("Update", "StorageLifecyclePolicy/gold", [("spec.operations[0].retention.period", "7d", "30d")]),
    ]


def test_entries_of_a_list_are_held_against_each_other_by_name() -> None:
    before = samples.policy("gold", EVERY, {"name": "weekly", "type": "Full", "cron": "0 0 * * 6"})
    after = samples.policy("gold", {"name": "weekly", "type": "Full", "cron": "0 1 * * 6"}, {**EVERY, "name": "new"})
    found = {f.path: (f.before, f.after) for f in configuration.differences(before.written(), after.written())}
    assert found["spec.schedules[0].cron"] == ("0 0 * * 6", "0 1 * * 6")
    assert found["spec.schedules[1]"][0] is None
    # An index of the earlier list for what is gone.
    assert found["spec.schedules[0]"][1] is None


def test_a_manifest_that_disappears_is_orphaned_and_adopted_when_it_comes_back() -> None:
    extra = samples.unit("old")
    gone = configuration.changes(estate(), applied(estate(extra)))
    assert told(gone) == [("Orphan", "StorageUnit/old", [])]
    left = applied(estate(), extra)
    assert configuration.changes(estate(), left) == ()
    back = configuration.changes(estate(samples.unit("old", maxConcurrentJobs=1)), left)
    assert told(back) == [("Adopt", "StorageUnit/old", [("spec.maxConcurrentJobs", 4, 1)])]
    effective = configuration.effective(estate(), left)
    assert effective.is_orphaned("StorageUnit", "old") and not effective.is_orphaned("StorageUnit", "fast")
    assert configuration.effective(effective, left) == effective


@pytest.mark.parametrize("orphaned", [False, True])
def test_a_rename_is_an_update_and_no_orphan(orphaned: bool) -> None:
    before = samples.estate(samples.unit("fast"), *([] if orphaned else [samples.pool("deep")]))
    held = applied(before, *([samples.pool("deep")] if orphaned else []))
    after = samples.estate(samples.unit("fast"), samples.pool("deeper", previousNames=["deep"]))
    (change,) = configuration.changes(after, held)
    assert (change.change, change.name) == ("Adopt" if orphaned else "Update", "deeper")
    assert ("metadata.name", "deep", "deeper") in told((change,))[0][2]
    assert set(configuration.effective(after, held).units) == {"fast", "deeper"}
    assert configuration.renames(configuration.effective(after, held)).units == {"deep": "deeper"}


def test_a_previous_name_that_is_in_use_again_is_not_followed() -> None:
    both = samples.estate(samples.unit("fast"), samples.unit("slow", previousNames=["fast"]))
    assert configuration.renames(both).units == {}
    assert [c.change for c in configuration.changes(both, applied(samples.estate(samples.unit("fast"))))] == ["Create"]


def many(count: int) -> desired.Desired:
    """So many units."""
    return samples.estate(*(samples.unit(f"u{n}") for n in range(count)), revision="dir@blake3:2")


@pytest.mark.parametrize(
    ("before", "after", "stopped"),
    [
        (9, 9, False),
        (9, 6, False),
        (8, 5, True),
        (9, 5, True),
        (4, 2, False),
        (3, 0, True),
        (1, 0, True),
        (0, 0, False),
    ],
)
def test_a_tree_that_lost_too_much_changes_nothing(before: int, after: int, stopped: bool) -> None:
    held, wanted = applied(many(before)), many(after)
    problem = configuration.guard(wanted, held)
    assert (problem is not None) is stopped
    if problem is not None:
        assert problem.code == "HF490" and problem.severity == "Error"
        assert configuration.changes(wanted, held) == ()
        assert set(configuration.effective(wanted, held).units) == {f"u{n}" for n in range(before)}
        plan = planner.plan(wanted, observed.Observed(applied=held), samples.NOW)
        assert [one.code for one in plan.problems] == ["HF490"] and plan.configuration == ()


def test_protection_goes_on_while_the_guard_holds_the_configuration() -> None:
    wanted = estate()
    state = samples.seen(wanted, samples.series(samples.image(1, samples.ago(days=2))))
    plan = planner.plan(samples.estate(revision="dir@blake3:9"), state, samples.NOW)
    assert [a.address for a in plan.in_state(actions.State.DUE)] == ["backup/gold/oblvm1@2026-11-23T21:00Z"]


def test_renamed_objects_do_not_count_as_gone() -> None:
    before = many(3)
    after = samples.estate(*(samples.unit(f"new{n}", previousNames=[f"u{n}"]) for n in range(3)))
    assert configuration.guard(after, applied(before)) is None


def test_promises_are_what_a_revision_would_break() -> None:
    before = samples.estate(samples.small().lifecycles["gold"])
    changed = samples.estate(
        samples.lifecycle(
            "gold",
            samples.operation("first", "fast", None, {"type": "Fixed", "period": "1d"}, previousNames=["land"]),
            samples.operation("third", "deep", "first"),
        )
    )
    found = configuration.promises(changed, applied(before), 17)
    assert [(p.operation, p.retention.type, p.up_to) for p in found] == [
        ("first", "Fixed", 17),
        ("dedupe", "Forever", 17),
    ]
    assert configuration.promises(before, applied(before)) == ()


def test_a_schedule_counts_from_its_anchor_unless_its_timing_changes() -> None:
    wanted = estate()
    state = samples.seen(wanted)
    policy = wanted.policies["gold"]
    (schedule,) = policy.spec.schedules
    since = state.anchors["gold", "daily"]
    assert configuration.anchor(policy, schedule, state, samples.NOW) == since
    retyped = schedule.model_copy(update={"type": "Incremental"})
    assert configuration.anchor(policy, retyped, state, samples.NOW) == since
    moved = schedule.model_copy(update={"every": None, "cron": "0 0 * * *"})
    assert configuration.anchor(policy, moved, state, samples.NOW) == samples.NOW
    assert configuration.anchor(policy, schedule, dataclasses.replace(state, anchors={}), samples.NOW) == samples.NOW
