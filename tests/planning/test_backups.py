"""Which backups are due, as what, and what the others wait for."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest

from reconciler.planning import actions, desired, observed, planner

AT, ago, image, copy = samples.at, samples.ago, samples.image, samples.copy
DUE, WAITING, BLOCKED, PLANNED = actions.State.DUE, actions.State.WAITING, actions.State.BLOCKED, actions.State.PLANNED
NIGHTLY = {"name": "nightly", "type": "Incremental", "cron": "0 21 * * *"}
WEEKLY = {"name": "weekly", "type": "Full", "cron": "0 21 * * Sat"}
EVERY = {"name": "daily", "type": "Incremental", "every": "24h"}


def estate(*schedules: dict[str, Any], objects: tuple[Any, ...] = (), **spec: Any) -> desired.Desired:
    """One policy that lands on the pool ``deep``."""
    return samples.estate(
        samples.pool("deep"),
        samples.lifecycle("gold", samples.operation("land", "deep", None, samples.FOREVER)),
        samples.policy("gold", *schedules, **spec),
        *objects,
    )


def stored(sequence: int, time: dt.datetime, **fields: Any) -> observed.Image:
    """An image on ``deep``."""
    return image(sequence, time, copy(1, "land", "deep"), **fields)


def backups(wanted: desired.Desired, now: dt.datetime, *images: observed.Image, **seen: Any) -> list[actions.Action]:
    """The Backup actions of a plan."""
    found = seen.pop("series", [samples.series(*images)] if images else [])
    plan = planner.plan(wanted, samples.seen(wanted, *found, **seen), now)
    return [action for action in plan.actions if action.type is actions.Type.BACKUP]


def now_due(wanted: desired.Desired, now: str, *images: observed.Image, **seen: Any) -> tuple[str, str, str] | None:
    """Slot, type and reason code of the one due backup, None without any."""
    due = [action for action in backups(wanted, AT(now), *images, **seen) if action.state is DUE]
    if not due:
        return None
    (one,) = due
    return (one.address.rpartition("@")[2], str(one.backup_type), one.reason.code)


# -- when a series begins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        (EVERY, ("2026-11-22T09:00Z", "Full", "FirstBackup")),
        ({**EVERY, "initialBackup": "NextSlot"}, None),
        (NIGHTLY, None),
        ({**NIGHTLY, "initialBackup": "Immediately"}, ("2026-11-22T09:00Z", "Full", "FirstBackup")),
    ],
)
def test_a_series_without_images_begins_at_once_or_at_its_next_slot(
    schedule: dict[str, Any], due: tuple[str, str, str] | None
) -> None:
    assert now_due(estate(schedule), "2026-11-22T10:00Z", since=AT("2026-11-22T09:00Z")) == due


@pytest.mark.parametrize("schedule", [EVERY, NIGHTLY])
def test_what_a_clock_that_was_a_year_ahead_put_in_force_and_saw_first_counts_at_once(schedule: dict[str, Any]) -> None:
    ahead = AT("2027-11-20T21:00Z")
    for images in ((), (stored(1, ahead),)):
        assert now_due(estate(schedule), "2026-11-22T21:00:05Z", *images, since=ahead) is not None


def test_a_machine_that_came_later_counts_from_its_first_sight() -> None:
    known = {samples.CLIENT: samples.client(seen=AT("2026-11-20T12:30:15.5Z"))}
    assert now_due(estate(EVERY), "2026-11-20T13:00Z", since=AT("2026-11-01T00:00Z"), clients=known) == (
        "2026-11-20T12:30:15Z", "Full", "FirstBackup",
    )  # fmt: skip


def test_before_the_first_apply_slots_count_from_now() -> None:
    wanted = estate(EVERY)
    blank = dataclasses.replace(samples.seen(wanted), applied={}, anchors={}, clients={}, in_force=None)
    plan = planner.plan(wanted, blank, samples.NOW)
    assert samples.states(plan)["backup/gold/oblvm1@2026-11-23T21:00Z"] == ("Due", "FirstBackup")
    assert {change.change for change in plan.configuration} == {"Create"}


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "served", "now", "due"),
    [
        (NIGHTLY, "2026-11-21T21:00Z", "2026-11-22T20:59Z", None),
        (NIGHTLY, "2026-11-21T21:00Z", "2026-11-22T21:00Z", "2026-11-22T21:00Z"),
        # Several missed slots are one: the latest.
        (NIGHTLY, "2026-11-11T21:00Z", "2026-11-22T23:00Z", "2026-11-22T21:00Z"),
        # ``every`` counts from the slot that was served, not from the end of the job or from the anchor.
        (EVERY, "2026-11-21T21:00Z", "2026-11-22T20:59Z", None),
        (EVERY, "2026-11-21T21:00Z", "2026-11-22T21:00Z", "2026-11-22T21:00Z"),
        (EVERY, "2026-11-11T07:13Z", "2026-11-22T23:00Z", "2026-11-22T07:13Z"),
        # Deadlines and catch-up.
        ({**NIGHTLY, "startingDeadline": "4h"}, "2026-11-11T21:00Z", "2026-11-23T00:59Z", "2026-11-22T21:00Z"),
        ({**NIGHTLY, "startingDeadline": "4h"}, "2026-11-11T21:00Z", "2026-11-23T01:01Z", None),
        ({**NIGHTLY, "catchUp": "None"}, "2026-11-11T21:00Z", "2026-11-22T21:05Z", "2026-11-22T21:00Z"),
        ({**NIGHTLY, "catchUp": "None"}, "2026-11-11T21:00Z", "2026-11-22T21:11Z", None),
    ],
)
def test_slots_fall_due_and_are_missed(schedule: dict[str, Any], served: str, now: str, due: str | None) -> None:
    found = now_due(estate(schedule), now, stored(1, AT(served)))
    assert (found[0] if found else None) == due


def test_a_slot_that_somebody_waited_for_is_not_missed() -> None:
    wanted, last = estate({**NIGHTLY, "catchUp": "None"}), stored(1, AT("2026-11-11T21:00Z"))
    watched = {"watching": AT("2026-11-22T12:00Z")}
    assert now_due(wanted, "2026-11-23T03:00Z", last) is None
    assert now_due(wanted, "2026-11-23T03:00Z", last, **watched) == ("2026-11-22T21:00Z", "Incremental", "SlotDue")


def test_an_attempt_in_time_makes_later_ones_of_its_slot_in_time() -> None:
    lost = {"backup/gold/oblvm1@2026-11-22T21:00Z": attempts("2026-11-22T23:00Z", lost=1)}
    wanted, last = estate({**NIGHTLY, "startingDeadline": "1h"}), stored(1, AT("2026-11-11T21:00Z"))
    assert now_due(wanted, "2026-11-23T03:00Z", last) is None
    assert now_due(wanted, "2026-11-23T03:00Z", last, attempts=lost) is not None


@pytest.mark.parametrize("change", [{"cron": "0 20 * * *"}, {"timeZone": "Asia/Tokyo"}, {"cron": None, "every": "1h"}])
def test_an_edit_of_the_timing_never_starts_a_backup_by_itself(change: dict[str, Any]) -> None:
    before, after = estate(NIGHTLY), estate({**NIGHTLY, **change})
    last = stored(1, AT("2026-11-20T21:00Z"))
    # In force as before, with the edit not applied yet; then applied.
    state = samples.seen(before, samples.series(last))
    plan = planner.plan(after, state, AT("2026-11-22T20:45:30Z"))
    assert not [a for a in plan.actions if a.type is actions.Type.BACKUP and a.state is DUE]
    assert now_due(after, "2026-11-22T20:45:30Z", last, since=AT("2026-11-22T20:45Z")) is None


def test_another_edit_leaves_the_slots_alone() -> None:
    before, after = estate(NIGHTLY), estate({**NIGHTLY, "type": "Full", "catchUp": "None"})
    state = samples.seen(before, samples.series(stored(1, AT("2026-11-20T21:00Z"))))
    found = samples.states(planner.plan(after, state, AT("2026-11-22T21:01Z")))
    assert found["backup/gold/oblvm1@2026-11-22T21:00Z"][0] == "Due"


def test_a_renamed_policy_and_schedule_go_on_where_they_were() -> None:
    before = estate(NIGHTLY)
    after = samples.estate(
        samples.pool("deep"),
        samples.lifecycle("gold", samples.operation("land", "deep", None, samples.FOREVER)),
        samples.policy("erp", {**NIGHTLY, "name": "night", "previousNames": ["nightly"]}, previousNames=["gold"]),
    )
    state = samples.seen(before, samples.series(stored(1, AT("2026-11-21T21:00Z"))))
    plan = planner.plan(after, state, AT("2026-11-22T21:00Z"))
    (due,) = plan.in_state(DUE)
    assert (due.address, due.backup_type, due.parent) == ("backup/erp/oblvm1@2026-11-22T21:00Z", "Incremental", "img-1")
    assert [(c.change, c.kind, c.name) for c in plan.configuration] == [("Update", "BackupPolicy", "erp")]


# -- types -------------------------------------------------------------------------------------------------------------


def test_the_strongest_of_several_due_types_runs_once_and_serves_all() -> None:
    wanted = estate(WEEKLY, NIGHTLY)
    last = stored(1, AT("2026-11-27T21:00Z"))
    assert now_due(wanted, "2026-11-28T21:00Z", last) == ("2026-11-28T21:00Z", "Full", "SlotDue")
    full = stored(2, AT("2026-11-28T21:10Z"), slot=AT("2026-11-28T21:00Z"))
    assert now_due(wanted, "2026-11-28T22:00Z", last, full) is None
    assert now_due(wanted, "2026-11-29T21:00Z", last, full) == ("2026-11-29T21:00Z", "Incremental", "SlotDue")


def test_an_incremental_does_not_serve_a_full_and_a_failed_full_takes_the_place_of_the_next_incremental() -> None:
    wanted = estate(WEEKLY, {**NIGHTLY, "cron": "0 21 * * Sun-Fri"}, retries={"count": 0})
    older = stored(1, AT("2026-11-21T21:00Z"))
    last = stored(2, AT("2026-11-27T21:00Z"), type="Incremental", parent="img-1")
    failed = {"backup/gold/oblvm1@2026-11-28T21:00Z": attempts("2026-11-28T22:00Z", failed=1)}
    assert now_due(wanted, "2026-11-29T03:00Z", older, last, attempts=failed) is None
    assert now_due(wanted, "2026-11-29T21:00Z", older, last, attempts=failed) == (
        "2026-11-29T21:00Z",
        "Full",
        "SlotDue",
    )


@pytest.mark.parametrize(
    ("type", "images", "parent", "reason"),
    [
        ("Incremental", [], None, "FirstBackup"),
        ("Incremental", [{}], "img-1", "SlotDue"),
        ("Incremental", [{}, {"type": "Incremental"}], "img-2", "SlotDue"),
        ("Cumulative", [{}, {"type": "Incremental"}], "img-1", "SlotDue"),
        ("Cumulative", [{"type": "Incremental"}], None, "NoBase"),
        ("Incremental", [{}, {"state": "Partial"}], "img-1", "SlotDue"),
        ("Incremental", [{"copies": "Damaged"}], None, "NoBase"),
        ("Incremental", [{}, {"copies": "Lost"}], "img-1", "SlotDue"),
    ],
)
def test_an_incremental_needs_an_earlier_image_that_can_be_read(
    type: str, images: list[dict[str, Any]], parent: str | None, reason: str
) -> None:
    made = []
    for number, fields in enumerate(images, 1):
        state = fields.pop("copies", "Complete") if "copies" in fields else "Complete"
        made.append(image(number, ago(days=9 - number), copy(1, "land", "deep", state), **fields))
    (due,) = [a for a in backups(estate({**EVERY, "type": type}), samples.NOW, *made) if a.state is DUE]
    assert (due.parent, due.reason.code) == (parent, reason)
    assert due.backup_type == (type if parent else "Full")


def test_full_every_makes_an_incremental_a_full_when_the_last_one_is_that_old() -> None:
    wanted = estate({**EVERY, "fullEvery": "3d"})
    images = [stored(1, ago(days=3)), stored(2, ago(days=1), type="Incremental", parent="img-1")]
    (due,) = [a for a in backups(wanted, samples.NOW, *images) if a.state is DUE]
    assert (due.backup_type, due.reason.code) == ("Full", "FullEvery")
    assert (
        due.reason.message == "daily is due since 2026-11-23T21:00Z; a Full, because the last full is 3d old or older"
    )


def test_an_incremental_goes_where_its_base_lies_or_becomes_a_full_elsewhere() -> None:
    wanted = samples.estate(
        samples.unit("a"), samples.unit("b"), samples.group("both", "Prioritized", "a", "b"),
        samples.lifecycle("gold", samples.operation("land", "both", None, samples.FOREVER)),
        samples.policy("gold", EVERY),
    )  # fmt: skip
    last = image(1, ago(days=1), copy(1, "land", "b"))
    (due,) = [a for a in backups(wanted, samples.NOW, last) if a.state is DUE]
    assert (due.backup_type, due.candidates, due.parent) == ("Incremental", ("b",), "img-1")
    seen = samples.seen(wanted, samples.series(last))
    offline = {**seen.units, "b": observed.Unit(name="b", state="Offline", message="nothing is mounted")}
    (due,) = [a for a in backups(wanted, samples.NOW, last, units=offline) if a.state is DUE]
    assert (due.backup_type, due.candidates, due.parent, due.reason.code) == ("Full", ("a",), None, "BaseUnitRefuses")
    full = observed.Unit(name="a", state="Online", total_bytes=100, free_bytes=1)
    (blocked,) = [a for a in backups(wanted, samples.NOW, last, units={**offline, "a": full}) if a.state is BLOCKED]
    assert blocked.reason.message == "unit a is 99% full, over its 98% mark"


# -- what holds a backup -----------------------------------------------------------------------------------------------


NIGHT = samples.window("night", "20:00", "10h")


def test_a_window_holds_a_start_and_lets_the_rest_of_the_schedules_go_on() -> None:
    wanted = estate(
        {**WEEKLY, "cron": "0 12 * * *", "window": "night"}, {**NIGHTLY, "cron": "0 12 * * *"}, objects=(NIGHT,)
    )
    last = stored(1, AT("2026-11-21T12:00Z"))
    assert now_due(wanted, "2026-11-22T12:00Z", last) == ("2026-11-22T12:00Z", "Incremental", "SlotDue")
    small = stored(2, AT("2026-11-22T12:01Z"), slot=AT("2026-11-22T12:00Z"), type="Incremental", parent="img-1")
    (waiting,) = [a for a in backups(wanted, AT("2026-11-22T13:00Z"), last, small) if a.state is WAITING]
    assert (waiting.backup_type, waiting.at, waiting.reason.code) == ("Full", AT("2026-11-22T20:00Z"), "OutsideWindow")
    assert now_due(wanted, "2026-11-22T20:00Z", last, small) == ("2026-11-22T12:00Z", "Full", "SlotDue")


def test_a_slot_whose_deadline_passes_before_the_window_opens_is_missed() -> None:
    wanted = estate({**NIGHTLY, "cron": "0 12 * * *", "window": "night", "startingDeadline": "2h"}, objects=(NIGHT,))
    # Nor is it foreseen for tomorrow.
    assert backups(wanted, AT("2026-11-22T12:00Z"), stored(1, AT("2026-11-20T12:00Z"))) == []


def test_stop_windows_tell_when_they_end_the_work() -> None:
    stop = samples.window("night", "20:00", "10h", overrun="Stop")
    wanted = estate({**NIGHTLY, "window": "night"}, objects=(stop,))
    (due,) = [a for a in backups(wanted, AT("2026-11-22T21:00Z"), stored(1, AT("2026-11-20T21:00Z"))) if a.state is DUE]
    assert due.stop_at == AT("2026-11-23T06:00Z")


def test_a_suspended_policy_waits_until_its_end() -> None:
    wanted = estate(NIGHTLY, suspend={"reason": "storage move", "until": "2026-11-25T00:00:00Z"})
    (waiting, *_) = backups(wanted, samples.NOW, stored(1, ago(days=3)))
    assert (waiting.state, waiting.at, waiting.reason.code) == (WAITING, AT("2026-11-25T00:00Z"), "Suspended")
    # By then a later slot stands for the one that is due now.
    assert waiting.address == "backup/gold/oblvm1@2026-11-24T21:00Z"
    assert now_due(wanted, "2026-11-25T00:00Z", stored(1, ago(days=3))) is not None


def test_a_request_in_the_second_of_a_slot_that_was_served_before_is_a_slot_of_its_own() -> None:
    wanted = estate({"name": "daily", "type": "Full", "every": "24h"})
    at = AT("2026-11-22T15:00:00.800Z")
    ask = observed.Request(id="r-1", policy="gold", client=samples.CLIENT, at=at)
    before = samples.image(1, AT("2026-11-22T15:00:00.300Z"), slot=AT("2026-11-22T15:00Z"))
    (due, *_) = backups(wanted, AT("2026-11-22T15:00:01Z"), before, requests=(ask,))
    assert (due.slot, due.request) == (AT("2026-11-22T15:00:01Z"), "r-1")
    served = samples.image(2, AT("2026-11-22T15:00:02Z"), slot=AT("2026-11-22T15:00:01Z"))
    assert now_due(wanted, "2026-11-22T15:00:03Z", before, served, requests=(ask,)) is None


def test_each_of_many_requests_within_a_second_is_a_backup_of_its_own() -> None:
    wanted = estate({"name": "daily", "type": "Full", "every": "24h"})
    made = [samples.image(1, AT("2026-11-22T15:00:00.100Z"), slot=AT("2026-11-22T15:00Z"))]
    for number in range(2, 7):
        now = f"2026-11-22T15:00:00.{number}00Z"
        ask = observed.Request(id=f"r-{number}", policy="gold", client=samples.CLIENT, at=AT(now), after=number - 1)
        (due, *_) = backups(wanted, AT(now), *made, requests=(ask,))
        assert (due.state, due.request, due.slot) == ("Due", ask.id, AT(f"2026-11-22T15:00:0{number - 1}Z"))
        made.append(samples.image(number, AT(now), slot=due.slot))
        assert now_due(wanted, now, *made, requests=(ask,)) is None


@pytest.mark.parametrize("clock", ["2026-11-22T14:55:00Z", "2026-11-22T13:00:00Z", "2015-01-01T00:00:00Z"])
def test_a_request_is_served_by_what_is_made_after_it_and_by_nothing_else_where_the_clock_was_set_back(
    clock: str,
) -> None:
    wanted = estate({"name": "daily", "type": "Full", "every": "24h"})
    before = samples.image(1, AT("2026-11-22T15:00:00Z"))
    ask = observed.Request(id="r-1", policy="gold", client=samples.CLIENT, at=AT(clock), after=1)
    (due, *_) = backups(wanted, AT(clock), before, requests=(ask,))
    assert (due.state, due.request) == (DUE, "r-1"), "an image of before was taken for the answer"
    late = dataclasses.replace(ask, at=AT("2026-11-22T15:30:00Z"))
    served = samples.image(2, AT(clock), slot=due.slot)
    for asked in (ask, late):
        assert now_due(wanted, clock, before, served, requests=(asked,)) is None, "one request, backups without end"


def test_a_request_is_a_slot_at_its_own_time_through_the_policy() -> None:
    ask = observed.Request(id="r-1", policy="gold", client=samples.CLIENT, at=AT("2026-11-22T15:00:07.25Z"))
    again = dataclasses.replace(ask, id="r-2", at=AT("2026-11-22T15:00:09Z"))
    last = stored(1, AT("2026-11-21T21:00Z"))
    wanted = estate(WEEKLY, {**NIGHTLY, "cron": "0 21 * * Sun-Fri"})
    (due, *_) = backups(wanted, AT("2026-11-22T15:01Z"), last, requests=(ask, again))
    assert due.address == "backup/gold/oblvm1@2026-11-22T15:00:09Z"
    assert (due.backup_type, due.request, due.requests) == ("Incremental", "r-1", ("r-1", "r-2"))
    served = stored(2, AT("2026-11-22T15:01Z"), slot=AT("2026-11-22T15:00:09Z"))
    assert now_due(wanted, "2026-11-22T15:02Z", last, served, requests=(ask, again)) is None
    windowed = estate({**NIGHTLY, "window": "night"}, objects=(NIGHT,))
    (waiting, *_) = backups(windowed, AT("2026-11-22T15:01Z"), last, requests=(ask,))
    assert (waiting.state, waiting.at, waiting.request) == (WAITING, AT("2026-11-22T20:00Z"), "r-1")


def attempts(last: str, *, failed: int = 0, lost: int = 0, state: str = "") -> observed.Attempts:
    """Attempts that ended so, the last one at ``last``."""
    return observed.Attempts(
        failed=failed + lost, lost=lost, last_finished=AT(last), message="the disk said no",
        last_state=state or ("Lost" if lost and not failed else "Failed"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tried", "now", "state", "at"),
    [
        (attempts("2026-11-22T21:10Z", failed=1), "2026-11-22T21:10:30Z", WAITING, "2026-11-22T21:11Z"),
        (attempts("2026-11-22T21:10Z", failed=1), "2026-11-22T21:11Z", DUE, "2026-11-22T21:00Z"),
        (attempts("2026-11-22T21:20Z", failed=2), "2026-11-22T21:21Z", WAITING, "2026-11-22T21:25Z"),
        (attempts("2026-11-22T21:20Z", failed=3), "2026-11-22T23:00Z", None, ""),
        (attempts("2026-11-22T21:20Z", lost=1), "2026-11-22T21:20Z", DUE, "2026-11-22T21:00Z"),
        (attempts("2026-11-22T21:20Z", lost=4), "2026-11-22T21:20Z", DUE, "2026-11-22T21:00Z"),
        (attempts("2026-11-22T21:20Z", lost=5), "2026-11-22T21:20Z", WAITING, "2026-11-22T21:21Z"),
        (attempts("2026-11-22T21:20Z", lost=7), "2026-11-22T21:20Z", None, ""),
        (attempts("2026-11-22T21:20Z", failed=1, state="Cancelled"), "2026-11-22T23:00Z", None, ""),
        (attempts("2026-11-22T21:20Z", failed=1, state="Partial"), "2026-11-22T21:20Z", WAITING, "2026-11-22T21:21Z"),
        # A clock that was set back does not make a retry wait for days.
        (attempts("2026-12-22T21:20Z", failed=1), "2026-11-22T21:20Z", DUE, "2026-11-22T21:00Z"),
    ],
)
def test_attempts_are_followed_by_others_until_the_slot_is_given_up(
    tried: observed.Attempts, now: str, state: actions.State | None, at: str
) -> None:
    known = {"backup/gold/oblvm1@2026-11-22T21:00Z": tried}
    found = backups(estate(NIGHTLY), AT(now), stored(1, AT("2026-11-21T21:00Z")), attempts=known)
    here = [a for a in found if a.state is not PLANNED]
    assert [(a.state, a.at) for a in here] == ([(state, AT(at))] if state else [])
    if here:
        assert here[0].attempt == tried.failed + 1


def test_a_slot_that_was_given_up_is_told_and_the_next_one_is_tried() -> None:
    known = {"backup/gold/oblvm1@2026-11-22T21:00Z": attempts("2026-11-22T21:20Z", failed=3)}
    wanted, last = estate(NIGHTLY), stored(1, AT("2026-11-21T21:00Z"))
    plan = planner.plan(wanted, samples.seen(wanted, samples.series(last), attempts=known), AT("2026-11-22T23:00Z"))
    (drift,) = [one for one in plan.drift if one.code == "Failing"]
    assert drift.object == "BackupPolicy/gold/oblvm1" and "the disk said no" in drift.message
    assert now_due(wanted, "2026-11-23T21:00Z", last, attempts=known) is not None


def test_a_source_that_cannot_be_reached_blocks_and_the_last_known_machines_stand() -> None:
    wanted = estate(EVERY)
    gone = {
        "gold": observed.Inventory(
            machines=(samples.machine(),), seen=ago(minutes=90), unreachable=("NoSource", "/srv/guests is not there")
        )
    }
    plan = planner.plan(
        wanted, samples.seen(wanted, samples.series(stored(1, ago(days=2))), inventories=gone), samples.NOW
    )
    assert [a.reason.code for a in plan.in_state(BLOCKED)] == ["SourceUnreachable"]
    (drift,) = [one for one in plan.drift if one.code == "UnreachableSource"]
    assert "90 minutes old" in drift.message


def test_a_running_backup_is_due_and_says_so() -> None:
    address = "backup/gold/oblvm1@2026-11-23T21:00Z"
    live = (
        observed.Job(id="j-1", address=address, type="Backup", state="Running", policy="gold", client=samples.CLIENT),
    )
    wanted = estate(EVERY)
    found = samples.states(
        planner.plan(wanted, samples.seen(wanted, samples.series(stored(1, ago(days=1))), jobs=live), samples.NOW)
    )
    assert found[address] == ("Due", "Running")


def test_an_orphaned_policy_makes_no_backups_and_its_images_are_told() -> None:
    before = estate(EVERY)
    after = samples.estate(*(item for item in before.objects() if item.kind != "BackupPolicy"))
    plan = planner.plan(after, samples.seen(before, samples.series(stored(1, ago(days=5)))), samples.NOW)
    assert [a for a in plan.actions if a.type is actions.Type.BACKUP] == []
    assert [(c.change, c.name) for c in plan.configuration] == [("Orphan", "gold")]
    assert {one.code for one in plan.drift} == {"OrphanedImages", "UnprotectedClient"}


def test_two_machines_under_one_identity_are_a_problem_and_neither_is_guessed() -> None:
    twins = (
        samples.machine(),
        dataclasses.replace(samples.machine(), name="copy", source="diskimages:/srv/guests/copy"),
    )
    plan = planner.plan(estate(EVERY), samples.seen(estate(EVERY), machines=twins), samples.NOW)
    assert [one.code for one in plan.problems] == ["HF492"]
    assert plan.actions == ()


def test_drift_names_what_the_manifests_do_not_account_for() -> None:
    wanted = samples.estate(*estate(EVERY).objects(), samples.policy("silver", EVERY), samples.pool("broken"))
    machines = (
        samples.machine(samples.CLIENT, "a.img"),
        dataclasses.replace(samples.machine("diskimages:/srv/guests/empty"), problem=("NoDisks", "no disk matches")),
    )
    state = samples.seen(
        wanted,
        samples.series(stored(1, ago(hours=1), disks=("a.img", "b.img"))),
        samples.series(image(2, ago(hours=1), copy(1, "land", "deep", "Lost")), client="x:gone"),
        machines=machines,
    )
    gone = samples.client("x:gone")
    broken = observed.Unit(name="broken", state="Offline", message="no unit.json in /srv/broken")
    state = dataclasses.replace(
        state, clients={**state.clients, gone.id: gone}, units={**state.units, "broken": broken}
    )
    found = {(one.code, one.object) for one in planner.plan(wanted, state, samples.NOW).drift}
    assert found == {
        ("DiskRemoved", "Client/oblvm1"),
        ("NoDisks", "diskimages:/srv/guests/empty"),
        ("UnprotectedClient", "Client/x:gone"),
        ("DoublyMatched", "Client/oblvm1"),
        ("DoublyMatched", "Client/empty"),
        ("LostCopies", "StorageUnit/deep"),
        ("NeverSucceeded", "BackupPolicy/gold/empty"),
        ("NeverSucceeded", "BackupPolicy/silver/empty"),
        ("NeverSucceeded", "BackupPolicy/silver/oblvm1"),
        ("UnitOffline", "StorageUnit/broken"),
    }


def test_a_selection_that_shrinks_is_told() -> None:
    wanted = estate(EVERY)
    all_series = [samples.series(stored(n, ago(hours=n)), client=f"x:vm{n}") for n in range(1, 7)]
    left = tuple(samples.machine(f"x:vm{n}") for n in range(1, 4))
    found = planner.plan(wanted, samples.seen(wanted, *all_series, machines=left), samples.NOW).drift
    (message,) = [one.message for one in found if one.code == "SelectionShrunk"]
    assert message.startswith(
        "the selection lost 3 of 6 clients that have images; their images stay; if it is meant: holdfast approve blake3:"
    )
