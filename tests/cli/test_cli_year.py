"""Months under one ``holdfast run``: what is there is what the rules keep, no more and no less.

The two months have the clock put forward in them, and let go of days, weeks and a month; a whole year, of eight machines, is ``hack/soak year``.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import years


def test_two_months_of_the_sample_estate(tmp_path: Path) -> None:
    counts = {"daily": 10, "weekly": 5, "monthly": 2}
    year = years.live(tmp_path, years.sample(**counts), machines=1, days=62, first=dt.date(2026, 2, 1))
    assert year.jobs["backup"] == year.jobs["duplicate"] == 62
    assert year.counted("dedupe") == counts


def test_three_weeks_of_two_of_its_machines(tmp_path: Path) -> None:
    plot, first = years.sample(daily=4, weekly=2, monthly=1), dt.date(2026, 1, 18)
    year = years.live(tmp_path, plot, machines=2, days=21, first=first)
    assert year.jobs["backup"] == year.jobs["duplicate"] == 2 * 21


def test_a_stage_that_empties_itself_a_period_and_days_and_weeks_within_one(tmp_path: Path) -> None:
    year = years.live(tmp_path, years.staged(), machines=1, days=26)
    assert year.jobs["backup"] == 26
    assert year.jobs["expire"] == 26 + (26 - 10) + (26 - 7)
