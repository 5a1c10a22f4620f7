"""The corners of schedules: windows that end work, suspensions, changes of the clocks, days simulated slot by slot."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest

from reconciler.base import times
from reconciler.planning import actions, conditions, desired, dispatch, observed, planner

AT, image, copy = samples.at, samples.image, samples.copy
NIGHTLY = {"name": "nightly", "type": "Incremental", "cron": "0 21 * * *"}
WEEKLY = {"name": "weekly", "type": "Full", "cron": "0 21 * * Sat"}


def estate(*schedules: dict[str, Any], objects: tuple[Any, ...] = (), **spec: Any) -> desired.Desired:
    """One policy that lands on the pool ``deep``."""
    return samples.estate(
        samples.pool("deep"),
        samples.lifecycle("gold", samples.operation("land", "deep", None, samples.FOREVER)),
        samples.policy("gold", *schedules, **spec),
        *objects,
    )


class Days:
    """A series over simulated time: every due backup runs at once and ends as it is told to."""

    def __init__(self, wanted: desired.Desired, begin: str, **seen: Any) -> None:
        self.wanted = wanted
        self.now = AT(begin)
        self.images: list[observed.Image] = []
        self.attempts: dict[str, observed.Attempts] = {}
        self.seen = {"since": AT(begin), "clients": {samples.CLIENT: samples.client(seen=AT(begin))}, **seen}
        #: Every attempt: when it began, its slot, its type, how it ended.
        self.log: list[tuple[str, str, str, str]] = []
        self.state = ""

    def plan(self) -> actions.Plan:
        series = [samples.series(*self.images)] if self.images else []
        seen = samples.seen(self.wanted, *series, attempts=self.attempts, **self.seen)
        return planner.plan(self.wanted, seen, self.now)

    def until(self, end: str, *endings: str, step: str = "5m") -> list[tuple[str, str, str, str]]:
        """Go on to ``end``; attempts end as ``endings`` say, in turn, and well from then on. The new part of the log."""
        told, coming = len(self.log), list(endings)
        while self.now < AT(end):
            plan = self.plan()
            for action in plan.in_state(actions.State.DUE):
                if action.type is actions.Type.BACKUP:
                    self._run(action, coming.pop(0) if coming else "Succeeded")
            self.now += dt.timedelta(minutes=int(step.rstrip("m")))
        return self.log[told:]

    def _run(self, action: actions.Action, ending: str) -> None:
        begun, slot = self.now, action.slot
        assert slot is not None
        if ending == "Overrun":
            assert action.stop_at is not None
            self.now = action.stop_at
        if ending == "Succeeded":
            sequence = len(self.images) + 1
            self.images.append(
                image(
                    sequence,
                    begun,
                    copy(1, "land", "deep"),
                    type=str(action.backup_type),
                    slot=slot,
                    parent=action.parent,
                )
            )
            self.attempts.pop(action.address, None)
        else:
            known = self.attempts.get(action.address)
            self.attempts[action.address] = observed.Attempts(
                failed=(known.failed if known else 0) + 1, lost=0, last_finished=self.now, last_state=ending,
                message=f"it ended {ending}", overran=(known.overran if known else 0) + (ending == "Overrun"),
            )  # fmt: skip
        show = times.show_minutes
        self.log.append((show(begun), show(slot), str(action.backup_type), ending))


def brief(log: list[tuple[str, str, str, str]]) -> list[str]:
    """A log without its years and zones."""
    return [f"{begun[5:16]} {slot[5:16]} {type} {ending}" for begun, slot, type, ending in log]


# -- windows -----------------------------------------------------------------------------------------------------------

STOP = samples.window("night", "20:00", "6h", overrun="Stop")


def test_a_window_that_stops_a_backup_twice_makes_the_series_fail_as_too_short() -> None:
    days = Days(estate({**NIGHTLY, "window": "night"}, objects=(STOP,)), "2026-03-01T12:00Z")
    days.until("2026-03-02T12:00Z")
    log = days.until("2026-03-03T12:00Z", "Overrun")
    assert brief(log) == ["03-02T21:00 03-02T21:00 Incremental Overrun"]
    (waiting,) = [a for a in days.plan().actions if a.state is actions.State.WAITING]
    assert (waiting.at, waiting.reason.code) == (AT("2026-03-03T20:00Z"), "OutsideWindow")
    assert [one for one in days.plan().drift if one.code == "Failing"] == []
    # The slot that was stopped is tried again as soon as the window opens; a second stop is one too many.
    assert brief(days.until("2026-03-04T12:00Z", "Overrun")) == ["03-03T20:00 03-02T21:00 Incremental Overrun"]
    (drift,) = [one for one in days.plan().drift if one.code == "Failing"]
    assert (
        "WindowTooShort" in drift.message and "window night closed before the backup was done, 2 times" in drift.message
    )
    series = samples.series(*days.images)
    seen = samples.seen(days.wanted, series, attempts=days.attempts, **days.seen)
    (failing,) = [c for c in conditions.conditions(days.wanted, seen, series, days.now) if c.type == "Failing"]
    assert (failing.status, failing.reason) == ("True", "WindowTooShort")
    # It is tried again at the next slot, and a success ends the failing.
    assert brief(days.until("2026-03-05T12:00Z"))[0].endswith("Succeeded")
    assert [one for one in days.plan().drift if one.code == "Failing"] == []


def test_one_stop_does_not_add_up_with_another_across_a_success() -> None:
    days = Days(estate({**NIGHTLY, "window": "night"}, objects=(STOP,)), "2026-03-01T12:00Z")
    days.until("2026-03-02T12:00Z")
    days.until("2026-03-03T12:00Z", "Overrun")
    days.until("2026-03-04T12:00Z")
    days.until("2026-03-05T12:00Z", "Overrun")
    assert [one for one in days.plan().drift if one.code == "Failing"] == []


def test_a_cancelled_backup_is_no_stop_by_a_window() -> None:
    days = Days(estate({**NIGHTLY, "window": "night"}, objects=(STOP,)), "2026-03-01T12:00Z")
    days.until("2026-03-02T12:00Z")
    assert brief(days.until("2026-03-03T20:55Z", "Cancelled")) == ["03-02T21:00 03-02T21:00 Incremental Cancelled"]
    assert brief(days.until("2026-03-04T12:00Z")) == ["03-03T21:00 03-03T21:00 Incremental Succeeded"]
    assert [one for one in days.plan().drift if one.code == "Failing"] == []


def test_a_window_that_finishes_work_names_no_end() -> None:
    finish = samples.window("night", "20:00", "6h")
    for window, end in ((finish, None), (STOP, AT("2026-03-02T02:00Z"))):
        days = Days(estate({**NIGHTLY, "window": "night"}, objects=(window,)), "2026-03-01T20:59Z")
        days.now = AT("2026-03-01T21:00Z")
        (due,) = days.plan().in_state(actions.State.DUE)
        assert due.stop_at == end


def test_duplications_are_stopped_by_their_own_window() -> None:
    wanted = samples.estate(
        samples.unit("fast"), samples.pool("deep"), STOP, samples.policy("gold", NIGHTLY),
        samples.lifecycle(
            "gold", samples.operation("land", "fast"), samples.operation("dedupe", "deep", "land", samples.FOREVER, window="night")
        ),
    )  # fmt: skip
    spec = wanted.lifecycles["gold"].spec
    seen = samples.seen(wanted, samples.series(image(1, AT("2026-11-23T20:30Z"), copy(1), spec=spec)))
    (due,) = [a for a in planner.plan(wanted, seen, samples.NOW).in_state(actions.State.DUE) if a.type == "Duplicate"]
    assert due.stop_at == AT("2026-11-24T02:00Z")


def test_a_denied_hour_past_midnight_holds_a_start_until_it_has_passed() -> None:
    deny = [{"days": ["Mon", "Tue"], "start": "23:30", "duration": "2h"}]
    window = samples.window("night", "20:00", "10h", deny=deny, timeZone="Europe/Berlin")
    wanted = estate(
        {**NIGHTLY, "cron": "45 23 * * *", "timeZone": "Europe/Berlin", "window": "night"}, objects=(window,)
    )
    days = Days(wanted, "2026-03-01T12:00Z")  # a Sunday
    # Sunday's slot is not denied; Monday's waits past midnight; so does Tuesday's, on Wednesday; Wednesday's starts.
    assert brief(days.until("2026-03-05T12:00Z")) == [
        "03-01T22:45 03-01T22:45 Full Succeeded",
        "03-03T00:30 03-02T22:45 Incremental Succeeded",
        "03-04T00:30 03-03T22:45 Incremental Succeeded",
        "03-04T22:45 03-04T22:45 Incremental Succeeded",
    ]


# -- suspension --------------------------------------------------------------------------------------------------------

PAUSE = {"reason": "storage move", "until": "2026-03-05T12:00:00Z"}


@pytest.mark.parametrize(
    ("catch_up", "log"),
    [
        ("Latest", ["03-05T12:00 03-04T21:00 Incremental Succeeded", "03-05T21:00 03-05T21:00 Incremental Succeeded"]),
        ("None", ["03-05T21:00 03-05T21:00 Incremental Succeeded"]),
    ],
)
def test_slots_of_a_suspension_are_caught_up_once_or_not_at_all(catch_up: str, log: list[str]) -> None:
    schedule = {**NIGHTLY, "catchUp": catch_up}
    days = Days(estate(schedule), "2026-03-01T12:00Z", watching=AT("2026-03-01T12:00Z"))
    days.until("2026-03-02T12:00Z")
    days.wanted = estate(schedule, suspend=PAUSE)
    days.until("2026-03-03T22:00Z")
    coming = [a for a in days.plan().actions if a.type is actions.Type.BACKUP]
    assert {a.reason.code for a in coming} <= {"Suspended"}
    assert brief(days.until("2026-03-06T12:00Z")) == log


# -- several schedules, failures ---------------------------------------------------------------------------------------


def test_a_week_of_fulls_incrementals_and_cumulatives() -> None:
    wanted = estate(
        {**WEEKLY, "cron": "0 21 * * Sat"},
        {"name": "mid", "type": "Cumulative", "cron": "0 21 * * Wed"},
        NIGHTLY,
    )
    days = Days(wanted, "2026-03-06T12:00Z")  # a Friday
    log = days.until("2026-03-14T12:00Z")
    assert [f"{slot[8:10]} {type}" for _, slot, type, _ in log] == [
        "06 Full", "07 Full", "08 Incremental", "09 Incremental", "10 Incremental", "11 Cumulative", "12 Incremental",
        "13 Incremental",
    ]  # fmt: skip
    full, cumulative, after = days.images[1], days.images[5], days.images[6]
    assert (cumulative.parent, after.parent) == (full.id, cumulative.id)


def test_a_full_that_used_up_its_retries_takes_the_place_of_the_next_incremental() -> None:
    days = Days(estate(WEEKLY, NIGHTLY), "2026-03-06T12:00Z")
    days.until("2026-03-07T12:00Z")
    log = brief(days.until("2026-03-09T12:00Z", "Failed", "Failed", "Failed", step="1m"))
    assert log == [
        "03-07T21:00 03-07T21:00 Full Failed",
        "03-07T21:01 03-07T21:00 Full Failed",
        "03-07T21:06 03-07T21:00 Full Failed",
        "03-08T21:00 03-08T21:00 Full Succeeded",
    ]


def test_retries_wait_longer_each_time_and_the_series_fails_until_its_next_slot() -> None:
    days = Days(estate(NIGHTLY, retries={"count": 1}), "2026-03-06T12:00Z")
    days.until("2026-03-07T12:00Z")
    days.until("2026-03-07T23:00Z", "Failed", "Failed", step="1m")
    (drift,) = [one for one in days.plan().drift if one.code == "Failing"]
    assert "tried again at its next slot" in drift.message
    assert brief(days.until("2026-03-08T22:00Z")) == ["03-08T21:00 03-08T21:00 Incremental Succeeded"]
    assert [one for one in days.plan().drift if one.code == "Failing"] == []


def test_full_every_counts_from_the_slot_of_the_last_full() -> None:
    days = Days(
        estate({"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "3d"}), "2026-03-01T06:00Z"
    )
    log = days.until("2026-03-08T12:00Z")
    assert [type for _, _, type, _ in log] == [
        "Full",
        *["Incremental"] * 2,
        "Full",
        *["Incremental"] * 2,
        "Full",
        "Incremental",
    ]


def test_every_counts_from_the_slot_that_was_served_however_late() -> None:
    window = samples.window("late", "03:00", "1h")
    schedule = {"name": "daily", "type": "Full", "every": "24h", "window": "late"}
    days = Days(estate(schedule, objects=(window,)), "2026-03-01T02:00Z")
    assert [slot[8:16] for _, slot, _, _ in days.until("2026-03-04T12:00Z")] == [
        "01T02:00",
        "02T02:00",
        "03T02:00",
        "04T02:00",
    ]


# -- changes of the clocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "cron", "begin", "end", "slots"),
    [
        # Berlin, 29 March 2026: 02:00 becomes 03:00. New York, 8 March 2026: 02:00 becomes 03:00.
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00Z", "2026-03-30T12:00Z", ["03-29T01:00", "03-30T00:30"]),
        ("America/New_York", "30 2 * * *", "2026-03-07T12:00Z", "2026-03-09T12:00Z", ["03-08T07:00", "03-09T06:30"]),
        # Berlin, 25 October 2026: 03:00 becomes 02:00. New York, 1 November 2026: 02:00 becomes 01:00.
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00Z", "2026-10-26T12:00Z", ["10-25T00:30", "10-26T01:30"]),
        ("America/New_York", "30 1 * * *", "2026-10-31T12:00Z", "2026-11-02T12:00Z", ["11-01T05:30", "11-02T06:30"]),
        # Wildcards follow real time: no hour is left out and none comes twice.
        ("Europe/Berlin", "0 * * * *", "2026-03-28T23:30Z", "2026-03-29T03:30Z", [f"03-29T0{h}:00" for h in range(4)]),
        ("America/New_York", "0 * * * *", "2026-11-01T03:30Z", "2026-11-01T08:30Z", [f"11-01T0{h}:00" for h in range(4, 9)]),
    ],
)  # fmt: skip
def test_backups_across_changes_of_the_clocks(zone: str, cron: str, begin: str, end: str, slots: list[str]) -> None:
    days = Days(estate({**NIGHTLY, "cron": cron, "timeZone": zone}), begin)
    found = days.until(end)
    assert [slot[5:16] for _, slot, _, _ in found] == slots
    assert [begun for begun, *_ in found] == [slot for _, slot, *_ in found]


# -- one at a time -----------------------------------------------------------------------------------------------------


def test_one_backup_of_a_machine_at_a_time_over_all_policies() -> None:
    wanted = samples.estate(
        *estate(NIGHTLY).objects(), samples.policy("silver", {**NIGHTLY, "name": "other"}, priority=5)
    )
    now = AT("2026-11-23T21:00Z")
    old = [
        samples.series(image(n, samples.ago(days=1), copy(1, "land", "deep")), policy=p)
        for n, p in ((1, "gold"), (2, "silver"))
    ]
    seen = samples.seen(wanted, *old)
    plan = planner.plan(wanted, seen, now)
    due = plan.in_state(actions.State.DUE)
    assert [a.policy for a in due] == ["gold", "silver"]
    (first,) = dispatch.choose(due, (), wanted, seen, now)
    assert first.action.policy == "silver"
    live = observed.Job(
        id="j-1", address=first.action.address, type="Backup", state="Running", policy="silver", client=samples.CLIENT
    )
    assert dispatch.choose(due, (live,), wanted, dataclasses.replace(seen, jobs=(live,)), now) == ()
