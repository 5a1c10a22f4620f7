"""Slots of cron and ``every``, across changes of the clocks, and windows."""

from __future__ import annotations

import datetime as dt
import time

import planning_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.base import quantities, times
from reconciler.planning import calendars

BERLIN = "Europe/Berlin"
AT = samples.at
DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("0 21 * * *", None),
        ("*/5 8-18 * * Mon-Fri", None),
        ("0 0 29 2 *", None),
        ("0 0 L * *", None),
        ("0 0 30 2 *", "not a cron expression"),
        ("0 0 31 4,6,9,11 *", "not a cron expression"),
        ("0 0 * 2 MON#5", "no slot within five years"),
        ("0 0 * *", "4 fields"),
        ("0 0 0 * * *", "6 fields"),
        ("61 0 * * *", "not a cron expression"),
        ("nonsense", "1 fields"),
        ("* * * * FOO", "not a cron expression"),
        ("0 0 * * 1/0", "not a cron expression"),
        ("0 0 L/2 * *", None),
        ("0 0 * * L/2", "not a cron expression"),
    ],
)
def test_an_expression_that_never_fires_is_told_from_one_that_does(expr: str, words: str | None) -> None:
    found = calendars.check_cron(expr)
    assert found is None if words is None else found is not None and words in found


def test_a_search_ends_soon_even_where_nothing_can_be_found() -> None:
    begun = time.process_time()
    for expr in ("0 0 30 2 *", "0 0 * 2 MON#5", "not cron"):
        assert calendars.following(expr, BERLIN, samples.NOW) is None
        assert calendars.latest(expr, BERLIN, samples.NOW) is None
    assert time.process_time() - begun < 2


# 29 March 2026: 02:00 becomes 03:00 in Berlin. 25 October 2026: 03:00 becomes 02:00.
@pytest.mark.parametrize(
    ("expr", "after", "slots"),
    [
        # A fixed time in the missing hour fires once, when the hour has passed.
        ("30 2 * * *", "2026-03-28T12:00Z", ["2026-03-29T01:00Z", "2026-03-30T00:30Z"]),
        # Two of them are one slot.
        ("0,30 2 * * *", "2026-03-28T12:00Z", ["2026-03-29T01:00Z", "2026-03-30T00:00Z"]),
        # A fixed time in the doubled hour fires once, the first time.
        ("30 2 * * *", "2026-10-24T12:00Z", ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]),
        # Wildcards follow real time: every half hour of a day of 25 hours.
        ("*/30 * * * *", "2026-10-25T00:00Z", ["2026-10-25T00:30Z", "2026-10-25T01:00Z", "2026-10-25T01:30Z"]),
        ("0 21 * * *", "2026-10-24T12:00Z", ["2026-10-24T19:00Z", "2026-10-25T20:00Z"]),
        ("0 21 * * Sat", "2026-11-23T21:00Z", ["2026-11-28T20:00Z", "2026-12-05T20:00Z"]),
    ],
)
def test_slots_across_changes_of_the_clocks(expr: str, after: str, slots: list[str]) -> None:
    found, at = [], AT(after)
    for _ in slots:
        slot = calendars.following(expr, BERLIN, at)
        assert slot is not None
        found.append(times.show_minutes(slot))
        at = slot
    assert found == slots


EXPRS = st.sampled_from(
    ("* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 2 * * *", "15 */2 * * *", "0 21 * * Sun-Fri", "0 3 1 * *",
     "* 1 * * *", "0 12 29 2 *", "5 0 * 3,10 Sun", "0 0 * * *")
)  # fmt: skip
MOMENTS = st.one_of(
    st.datetimes(dt.datetime(2025, 1, 1), dt.datetime(2028, 1, 1)),
    st.datetimes(dt.datetime(2026, 3, 28, 22), dt.datetime(2026, 3, 29, 4)),
    st.datetimes(dt.datetime(2026, 10, 24, 22), dt.datetime(2026, 10, 25, 4)),
)


@settings(max_examples=150)
@given(expr=EXPRS, zone=st.sampled_from(("UTC", BERLIN, "America/New_York", "Australia/Lord_Howe")), naive=MOMENTS)
def test_latest_and_following_agree_wherever_the_search_begins(expr: str, zone: str, naive: dt.datetime) -> None:
    moment = naive.replace(tzinfo=dt.UTC)
    slot = calendars.latest(expr, zone, moment)
    assert slot is not None and slot <= moment
    after = calendars.following(expr, zone, slot)
    assert after is None or after > moment
    assert calendars.latest(expr, zone, slot) == slot
    assert calendars.following(expr, zone, slot - dt.timedelta(seconds=1)) == slot


@pytest.mark.parametrize(
    ("base", "every", "at", "latest", "following"),
    [
        ("2026-11-01T21:00Z", "24h", "2026-11-03T20:59Z", "2026-11-02T21:00Z", "2026-11-03T21:00Z"),
        ("2026-11-01T21:00Z", "24h", "2026-11-03T21:00Z", "2026-11-03T21:00Z", "2026-11-04T21:00Z"),
        ("2026-11-01T21:00Z", "24h", "2026-11-01T20:00Z", None, "2026-11-01T21:00Z"),
        ("2026-01-31T00:00Z", "1mo", "2026-03-30T00:00Z", "2026-03-03T00:00Z", "2026-03-31T00:00Z"),
        ("2024-02-29T00:00Z", "1y", "2026-11-01T00:00Z", "2026-03-01T00:00Z", "2027-03-01T00:00Z"),
        ("2026-01-01T00:00Z", "1mo2d", "2026-04-08T00:00Z", "2026-04-07T00:00Z", "2026-05-09T00:00Z"),
    ],
)
def test_every_counts_from_its_base(base: str, every: str, at: str, latest: str | None, following: str) -> None:
    period = quantities.Duration.parse(every)
    found = calendars.grid_latest(AT(base), period, AT(at))
    assert found == (AT(latest) if latest is not None else None)
    assert calendars.grid_following(AT(base), period, AT(at)) == AT(following)


def test_a_period_without_end_has_no_next_slot() -> None:
    assert calendars.grid_following(samples.NOW, quantities.Duration.parse("1000y"), samples.NOW) is not None
    late = samples.NOW.replace(year=9990)
    assert calendars.grid_following(late, quantities.Duration.parse("100y"), late) is None
    assert calendars.grid_following(samples.NOW, quantities.Duration(), samples.NOW) is None


@pytest.mark.parametrize(
    ("expr", "gap"),
    [
        ("0 21 * * *", "1d"),
        ("0 21 * * Sun-Fri", "2d"),
        ("0 21 * * Sat", "7d"),
        ("*/5 * * * *", "5m"),
        ("0 0 29 2 *", "1461d"),
    ],
)
def test_the_interval_of_a_schedule_is_its_longest_gap(expr: str, gap: str) -> None:
    expected = quantities.Duration.parse(gap).approximate
    assert calendars.interval(expr, None, "UTC") == expected
    assert calendars.interval(None, quantities.Duration.parse(gap), "UTC") == expected


# -- windows -----------------------------------------------------------------------------------------------------------

NIGHT = samples.window("night", "20:00", "10h", timeZone=BERLIN).spec
WEEKEND = samples.window(
    "weekend", "00:00", "24h", ["Sat", "Sun"], timeZone=BERLIN,
    deny=[{"days": ["Sun"], "start": "12:00", "duration": "2h"}],
).spec  # fmt: skip


@pytest.mark.parametrize(
    ("window", "at", "opening", "closing"),
    [
        # Monday 23 November 2026, winter time: 20:00 is 19:00Z, and past midnight it is still open.
        (NIGHT, "2026-11-23T18:59Z", "2026-11-23T19:00Z", None),
        (NIGHT, "2026-11-23T19:00Z", "2026-11-23T19:00Z", "2026-11-24T05:00Z"),
        (NIGHT, "2026-11-24T02:00Z", "2026-11-24T02:00Z", "2026-11-24T05:00Z"),
        (NIGHT, "2026-11-24T05:00Z", "2026-11-24T19:00Z", None),
        # The nights in which the clocks change end at 06:00 local time all the same.
        (NIGHT, "2026-03-28T20:00Z", "2026-03-28T20:00Z", "2026-03-29T04:00Z"),
        (NIGHT, "2026-10-24T20:00Z", "2026-10-24T20:00Z", "2026-10-25T05:00Z"),
        # Two days that touch are one span; deny cuts it.
        (WEEKEND, "2026-11-27T12:00Z", "2026-11-27T23:00Z", None),
        (WEEKEND, "2026-11-28T12:00Z", "2026-11-28T12:00Z", "2026-11-29T11:00Z"),
        (WEEKEND, "2026-11-29T12:00Z", "2026-11-29T13:00Z", None),
        (WEEKEND, "2026-11-29T13:00Z", "2026-11-29T13:00Z", "2026-11-29T23:00Z"),
    ],
)  # fmt: skip
def test_windows_open_and_close(window: object, at: str, opening: str, closing: str | None) -> None:
    moment = AT(at)
    assert calendars.next_opening(window, moment) == AT(opening)  # type: ignore[arg-type]
    found = calendars.closing(window, moment)  # type: ignore[arg-type]
    assert found == (AT(closing) if closing else None)


def test_a_window_that_is_always_open_never_closes() -> None:
    always = samples.window("always", "00:00", "24h").spec
    assert calendars.next_opening(always, samples.NOW) == samples.NOW
    assert calendars.closing(always, samples.NOW) is None


@pytest.mark.parametrize(
    ("duration", "deny", "words"),
    [
        ("10h", [], None),
        ("7d", [], None),
        ("8d", [], "at most a week"),
        ("0s", [], "longer than nothing"),
        ("2h", [{"days": ["Mon"], "start": "19:00", "duration": "4h"}], "never opens"),
        ("7d", [{"days": DAYS, "start": "19:00", "duration": "24h"}], "never opens"),
    ],
)
def test_impossible_windows_are_told(duration: str, deny: list[dict[str, object]], words: str | None) -> None:
    found = calendars.check_window(samples.window("w", "20:00", duration, ["Mon"], deny=deny).spec)
    assert found is None if words is None else found is not None and words in found
    if words == "never opens":
        spec = samples.window("w", "20:00", duration, ["Mon"], deny=deny).spec
        assert calendars.next_opening(spec, samples.NOW) is None
