"""Which image of a series is really the newest, where a clock was wrong when some were made, or is wrong now."""

from __future__ import annotations

import datetime as dt

import planning_samples as samples
import pytest

from reconciler.base import times
from reconciler.planning import doubts

AT = samples.at
NOW = AT("2026-11-23T12:00Z")


@pytest.mark.parametrize(
    ("now", "made", "wrong"),
    [
        # Right ones only; the present clock may be wrong in either direction.
        (NOW, ["2026-11-20", "2026-11-21", "2026-11-22"], []),
        (AT("2015-01-01T00:00Z"), ["2026-11-20", "2026-11-21", "2026-11-22"], []),
        (AT("2026-11-21T12:00Z"), ["2026-11-20", "2026-11-21", "2026-11-22"], []),
        # A clock that was a year ahead, for one image or for most, and is right again.
        (NOW, ["2026-11-20", "2027-11-21", "2026-11-22"], [1]),
        (NOW, ["2026-11-20", "2027-11-21", "2027-11-22", "2027-11-23", "2026-11-22"], [1, 2, 3]),
        (AT("2015-01-01T00:00Z"), ["2026-11-20", "2027-11-21", "2026-11-21", "2026-11-22"], [1]),
        # A clock that was years behind: what it made last is the newest.
        (NOW, ["2026-11-20", "2026-11-21", "2015-01-01", "2026-11-22"], [2]),
    ],
)
def test_what_a_wrong_clock_made(now: dt.datetime, made: list[str], wrong: list[int]) -> None:
    stamps = [times.to_number(AT(f"{day}T00:00Z")) for day in made]
    assert doubts.misdated(stamps, now) == set(wrong)
