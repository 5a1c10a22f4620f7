"""Which alarms stand, and what they say."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest

from reconciler.base import diagnostics
from reconciler.planning import actions, alarms, configuration, desired, observed, planner

ago, image, copy = samples.ago, samples.image, samples.copy
DAILY = {"name": "daily", "type": "Incremental", "every": "24h"}


def standing(
    wanted: desired.Desired, seen: observed.Observed, now: dt.datetime = samples.NOW, *, valid: bool = True
) -> dict[str, alarms.Alarm]:
    """The alarms by key; each is unique, short in its title, and ends with what to do."""
    found = alarms.alarms(planner.plan(wanted, seen, now), wanted, seen, valid=valid)
    assert [one.key for one in found] == sorted({one.key for one in found})
    for one in found:
        assert one.severity in ("Critical", "Warning")
        assert len(one.title) < 100 and "\n" not in one.title
        assert "Next: " in one.message or "holdfast validate" in one.message
    return {one.key: one for one in found}


def both(sequence: int, time: dt.datetime, **fields: Any) -> observed.Image:
    """An image with its two copies."""
    return image(sequence, time, copy(1), copy(2, "dedupe", "deep"), **fields)


def test_nothing_stands_while_all_is_well() -> None:
    wanted = samples.small()
    assert standing(wanted, samples.seen(wanted, samples.series(both(1, ago(hours=3))))) == {}


@pytest.mark.parametrize(("hours", "late"), [(47, False), (48, False), (48.1, True), (24 * 30, True)])
def test_a_series_past_its_objective_is_an_alarm_by_the_age_of_its_last_success(hours: float, late: bool) -> None:
    wanted = samples.small()
    found = standing(wanted, samples.seen(wanted, samples.series(both(1, ago(hours=hours)))))
    assert ("Overdue/gold/oblvm1" in found) is late
    if late:
        alarm = found["Overdue/gold/oblvm1"]
        assert alarm.severity == "Critical" and "no success under gold since" in alarm.title
        assert "objective of 2d" in alarm.message


def test_a_series_that_never_had_a_success_is_overdue_from_its_first_sight() -> None:
    wanted = samples.small()
    known = {samples.CLIENT: samples.client(seen=ago(hours=47))}
    assert standing(wanted, samples.seen(wanted, clients=known)) == {}
    known = {samples.CLIENT: samples.client(seen=ago(hours=49))}
    found = standing(wanted, samples.seen(wanted, clients=known))
    assert found["Overdue/gold/oblvm1"].title == "oblvm1 never had a success under gold"
    # A policy that was applied yesterday is not late with a machine that the catalog knows for long.
    assert standing(wanted, samples.seen(wanted, since=ago(hours=47))) == {}


def test_a_machine_that_cannot_be_backed_up_is_overdue_all_the_same() -> None:
    wanted = samples.small()
    empty = dataclasses.replace(samples.machine(), problem=("NoDisks", "no file matches"), disks=())
    assert "Overdue/gold/oblvm1" in standing(wanted, samples.seen(wanted, machines=(empty,)))
    old = samples.series(both(1, ago(days=9)))
    assert "Overdue/gold/oblvm1" in standing(wanted, samples.seen(wanted, old, machines=(empty,)))


def test_images_that_nobody_can_read_are_no_success() -> None:
    wanted = samples.small()
    lost = image(1, ago(days=3), copy(1, state="Lost"), copy(2, "dedupe", "deep", "Damaged"))
    found = standing(wanted, samples.seen(wanted, samples.series(lost)))
    assert found["Overdue/gold/oblvm1"].title == "oblvm1 has no image under gold that can be read"


def test_what_somebody_decided_to_leave_alone_is_no_alarm() -> None:
    old = samples.series(both(1, ago(days=9)))
    paused = samples.small(suspend={"reason": "storage move", "until": "2026-12-01T00:00:00Z"})
    assert standing(paused, samples.seen(paused, old)) == {}
    over = samples.small(suspend={"reason": "storage move", "until": "2026-11-23T20:00:00Z"})
    assert "Overdue/gold/oblvm1" in standing(over, samples.seen(over, old))
    wanted = samples.small()
    retired = observed.Ruling(kind="Retire", object=samples.CLIENT, by="anna", at=ago(days=1), reason="sold")
    gone = {"gold": observed.Inventory(machines=(), seen=samples.NOW)}
    assert "Overdue/gold/oblvm1" in standing(wanted, samples.seen(wanted, old, inventories=gone))
    assert standing(wanted, samples.seen(wanted, old, rulings=(retired,), inventories=gone)) == {}


def test_a_machine_that_moved_to_another_policy_is_judged_there_and_one_that_nobody_matches_where_it_was() -> None:
    wanted = samples.estate(*samples.small().objects(), samples.policy("silver", DAILY))
    old, new = samples.series(both(1, ago(days=9))), samples.series(both(2, ago(hours=1)), policy="silver")
    empty = observed.Inventory(machines=(), seen=samples.NOW)
    there = observed.Inventory(machines=(samples.machine(),), seen=samples.NOW)
    other = "diskimages:/srv/guests/other"
    left = observed.Inventory(machines=(samples.machine(other),), seen=samples.NOW)
    known = {one: samples.client(one) for one in (samples.CLIENT, other)}
    stays = samples.series(both(3, ago(hours=1)), client=other)
    inventories = {"gold": left, "silver": there}
    assert standing(wanted, samples.seen(wanted, old, new, stays, inventories=inventories, clients=known)) == {}
    gone = samples.seen(wanted, old, inventories={"gold": empty, "silver": empty})
    found = standing(wanted, gone)
    assert list(found) == ["Overdue/gold/oblvm1", "SelectionShrunk/gold"]
    assert "no policy matches" in found["Overdue/gold/oblvm1"].message


def test_a_source_that_cannot_be_asked_is_the_reason() -> None:
    wanted = samples.small()
    gone = observed.Inventory(
        machines=(samples.machine(),), seen=ago(days=3), unreachable=("NoSource", "/srv/guests is not mounted")
    )
    state = samples.seen(wanted, samples.series(both(1, ago(days=9))), inventories={"gold": gone})
    assert "/srv/guests is not mounted" in standing(wanted, state)["Overdue/gold/oblvm1"].message


def test_a_series_that_used_up_its_retries_is_an_alarm() -> None:
    wanted = samples.small(retries={"count": 0})
    tried = observed.Attempts(
        failed=1, lost=0, last_finished=samples.NOW, last_state="Failed", message="the disk said no"
    )
    state = samples.seen(
        wanted, samples.series(both(1, ago(hours=24))), attempts={"backup/gold/oblvm1@2026-11-23T21:00Z": tried}
    )
    alarm = standing(wanted, state)["Failing/gold/oblvm1"]
    assert "the disk said no" in alarm.message


def test_lost_and_damaged_copies_are_told_apart_by_unit() -> None:
    wanted = samples.small()
    bad = image(1, ago(hours=3), copy(1, state="Lost"), copy(2, "dedupe", "deep", "Damaged"))
    found = standing(wanted, samples.seen(wanted, samples.series(both(2, ago(hours=2)), bad)))
    assert {"LostCopies/fast", "DamagedCopies/deep"} <= set(found)


@pytest.mark.parametrize(
    ("hours", "window", "late"),
    [
        (23, None, False),
        (25, None, True),
        # The window opened 20 hours after the image: one hour ago nothing could be late yet.
        (25, ("17:00", "1h"), False),
        (46, ("17:00", "1h"), True),
    ],
)
def test_a_copy_that_is_owed_for_a_day_is_an_alarm_once_it_could_have_been_made(
    hours: float, window: tuple[str, str] | None, late: bool
) -> None:
    land, deep = samples.operation("land", "fast"), samples.operation("dedupe", "deep", "land", samples.FOREVER)
    more = [samples.window("w", *window)] if window else []
    wanted = samples.estate(
        samples.unit("fast"), samples.pool("deep"), *more,
        samples.lifecycle("gold", land, {**deep, "window": "w"} if window else deep), samples.policy("gold", DAILY),
    )  # fmt: skip
    spec = wanted.lifecycles["gold"].spec
    state = samples.seen(wanted, samples.series(image(1, ago(hours=hours), copy(1), spec=spec)))
    found = standing(wanted, state)
    assert ("CopyOverdue/gold/dedupe" in found) is late
    if late:
        assert found["CopyOverdue/gold/dedupe"].title.startswith("1 copy of gold onto deep should")


def test_late_copies_of_many_machines_are_one_alarm() -> None:
    wanted = samples.small()
    spec = wanted.lifecycles["gold"].spec
    clients = [f"diskimages:/srv/guests/vm{n}" for n in range(9)]
    all_series = [samples.series(image(n, ago(hours=30), copy(1), spec=spec), client=c) for n, c in enumerate(clients)]
    state = samples.seen(wanted, *all_series, machines=tuple(samples.machine(c) for c in clients))
    found = standing(wanted, state)
    assert [key for key in found if key.startswith("CopyOverdue")] == ["CopyOverdue/gold/dedupe"]
    assert found["CopyOverdue/gold/dedupe"].title.startswith("9 copies")


def test_expiry_that_a_brake_holds_names_the_space_and_how_full_the_unit_is() -> None:
    before = samples.small(land={"type": "Fixed", "period": "90d"})
    after = samples.small(land={"type": "Fixed", "period": "7d"})
    images = [image(n, ago(days=60 - n), copy(1, stored=1 << 30), copy(2, "dedupe", "deep")) for n in range(1, 11)]
    state = samples.seen(before, samples.series(*images, both(20, ago(hours=1))))
    full = observed.Unit(name="fast", state="Online", total_bytes=1000, free_bytes=130)
    state = dataclasses.replace(state, units={**state.units, "fast": full})
    plan = planner.plan(after, state, samples.NOW)
    assert plan.destruction.items
    (alarm,) = [one for one in alarms.alarms(plan, after, state) if one.key == "ExpiryHeld/fast"]
    assert alarm.title == "a brake holds 10 copies on fast"
    assert "They take 10.0 GiB; the unit is 87% full" in alarm.message
    assert str(plan.destruction.digest) in alarm.message
    released = dataclasses.replace(plan, destruction=dataclasses.replace(plan.destruction, approved=True))
    assert [one.key for one in alarms.alarms(released, after, state) if one.key.startswith("ExpiryHeld")] == []


def test_a_full_unit_is_an_alarm_only_while_nothing_on_it_may_go() -> None:
    wanted = samples.small()
    full = observed.Unit(name="fast", state="Online", total_bytes=1000, free_bytes=1)

    def keys(*images: observed.Image) -> set[str]:
        state = samples.seen(wanted, samples.series(*images))
        return set(standing(wanted, dataclasses.replace(state, units={**state.units, "fast": full})))

    assert "UnitFull/fast" in keys(both(1, ago(hours=1)))
    assert "UnitFull/fast" not in keys(both(1, ago(days=20)), both(2, ago(hours=1)))


def test_a_configuration_frozen_by_errors_or_by_the_guard_is_an_alarm() -> None:
    wanted = samples.small()
    state = samples.seen(wanted, samples.series(both(1, ago(hours=1))))
    plan = planner.plan(wanted, state, samples.NOW)
    broken = diagnostics.Diagnostic(severity=diagnostics.Severity.ERROR, code="HF201", message="no such field")
    plan = dataclasses.replace(plan, problems=(broken,))
    (alarm,) = alarms.alarms(plan, wanted, state, valid=False)
    assert alarm.key == "ConfigurationFrozen/errors" and "no such field" in alarm.message
    empty = samples.estate()
    effective = configuration.effective(empty, state.applied)
    (guarded,) = alarms.alarms(planner.plan(empty, state, samples.NOW), effective, state)
    assert guarded.key == "ConfigurationFrozen/guard" and "the tree is empty" in guarded.message


def test_a_selection_that_lost_its_clients_is_an_alarm() -> None:
    wanted = samples.small()
    empty = observed.Inventory(machines=(), seen=samples.NOW)
    state = samples.seen(wanted, samples.series(both(1, ago(hours=1))), inventories={"gold": empty})
    assert standing(wanted, state)["SelectionShrunk/gold"].severity == "Warning"


def test_alarms_name_what_the_plan_says_of_the_next_backup() -> None:
    wanted = samples.small()
    state = samples.seen(wanted, samples.series(both(1, ago(days=9))))
    plan = planner.plan(wanted, state, samples.NOW)
    (due,) = [one for one in plan.in_state(actions.State.DUE) if one.type is actions.Type.BACKUP]
    (alarm,) = alarms.alarms(plan, wanted, state)
    assert due.reason.message in alarm.message
