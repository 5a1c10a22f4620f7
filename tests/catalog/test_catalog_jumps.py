"""Whether a clock is believed, by what controllers noted before: a leap is not, until a day has passed."""

from __future__ import annotations

import datetime as dt

import catalog_samples as samples
import pytest
from moved_clocks import MovedClock

from reconciler.base import clocks, times
from reconciler.catalog import audits, database
from reconciler.controller import jumps

DAYS = "2026-11-20T21:00Z", "2026-11-21T21:00Z", "2026-11-22T21:00Z"


@pytest.mark.parametrize(
    ("noted", "now", "said"),
    [
        ((), "2026-11-22T21:00Z", None),
        (DAYS, "2026-11-22T21:30Z", None),
        (DAYS, "2026-11-22T20:15Z", None),
        (DAYS, "2026-12-05T21:00Z", None),
        (DAYS, "2026-12-07T21:00Z", "ahead from 2026-11-22T21:00Z to 2026-12-07T21:00Z"),
        (DAYS, "2026-11-22T19:59Z", "back from 2026-11-22T21:00Z to 2026-11-22T19:59Z"),
        # What was done since the leap makes it no better, until it has gone on for a day.
        ((*DAYS, "2027-11-22T21:00Z"), "2027-11-22T22:00Z", "expiry waits until 2027-11-23T21:00Z"),
        ((*DAYS, "2027-11-22T21:00Z", "2027-11-23T20:00Z"), "2027-11-23T20:59Z", "ahead from 2026-11-22T21:00Z"),
        ((*DAYS, "2027-11-22T21:00Z", "2027-11-23T20:00Z"), "2027-11-23T21:00Z", None),
        ((*DAYS, "2027-11-22T21:00Z", "2026-11-22T22:00Z"), "2026-11-22T23:00Z", "back from 2027-11-22T21:00Z"),
        ((*DAYS, "2027-11-22T21:00Z", "2026-11-22T22:00Z"), "2026-11-23T22:00Z", None),
    ],
)
def test_a_clock_that_leapt_is_believed_after_a_day(
    db: database.Database, noted: tuple[str, ...], now: str, said: str | None
) -> None:
    def note(at: dt.datetime, event: str) -> None:
        with db.writing() as connection:
            audits.record(connection, now=at, actor="me", event=event, object="controller")

    for at in noted:
        note(times.parse(at), "LeaseTaken")
        # Who only asks may do so from a host with any clock.
        note(times.parse("2015-01-01T00:00Z"), "Requested")
    found = jumps.at_start(db, FixedClock(now), times.parse(now))
    assert said in found if said is not None and found is not None else found is said


def test_a_long_day_is_read_to_its_beginning(db: database.Database) -> None:
    begin = times.parse("2026-11-22T00:00Z")
    with db.writing() as connection:
        for at in (begin - dt.timedelta(days=400), *(begin + dt.timedelta(minutes=n) for n in range(1200))):
            audits.record(connection, now=at, actor="me", event="LeaseTaken", object="controller")
    now = begin + dt.timedelta(minutes=1200)
    assert "ahead" in (jumps.at_start(db, clocks.SystemClock(), now) or "")
    assert jumps.at_start(db, clocks.ShiftedClock(now), now) is None, "a test's steps are time that passed"


def test_while_a_machine_sleeps_nobody_looks() -> None:
    clock = FixedClock("2026-11-22T20:00Z")
    vigil = jumps.Vigil(clock)
    assert vigil.since(clock.now() + dt.timedelta(minutes=9)) == clock.now()
    woken = clock.now() + dt.timedelta(hours=12)
    assert vigil.since(woken) == woken
    assert vigil.since(woken + dt.timedelta(minutes=1)) == woken
    assert vigil.since(woken - dt.timedelta(days=1)) == woken - dt.timedelta(days=1), "the clock was set back"


def test_what_a_process_makes_at_a_doubtful_time_is_no_proof_of_it(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    clock = MovedClock(samples.NOW + dt.timedelta(days=20))
    watch = jumps.JumpWatch(clock, db)
    assert "more than 14 days ago" in (watch.message(clock.now()) or "")
    samples.image(db, "img-2", time=clock.now())
    assert watch.message(clock.now()) is not None
    assert jumps.JumpWatch(clock, db).message(clock.now()) is None
    clock.moment += dt.timedelta(days=1, minutes=1)
    assert watch.message(clock.now()) is None


class FixedClock:
    """A clock that stands."""

    steps_are_time = False

    def __init__(self, at: str) -> None:
        self._at = times.parse(at)

    def now(self) -> dt.datetime:
        """Always the same time."""
        return self._at

    def boot(self) -> float:
        """Always the same."""
        return 0.0
