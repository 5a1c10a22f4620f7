"""Months under one ``holdfast run``: what is there is what the rules keep, no more and no less.

The four months have the clock put forward in them; a whole year, of eight machines, is ``hack/soak year``.
"""

from __future__ import annotations

from pathlib import Path

import years


def test_four_months_of_the_sample_estate(tmp_path: Path) -> None:
    counts = {"daily": 14, "weekly": 8, "monthly": 3}
    year = years.live(tmp_path, years.sample(**counts), machines=1, days=120)
    assert year.jobs["backup"] == year.jobs["duplicate"] == 120
    assert year.counted("dedupe") == counts


def test_five_weeks_of_two_of_its_machines(tmp_path: Path) -> None:
    year = years.live(tmp_path, years.sample(daily=7, weekly=4, monthly=2), machines=2, days=34)
    assert year.jobs["backup"] == year.jobs["duplicate"] == 2 * 34


def test_a_stage_that_empties_itself_a_period_and_days_and_weeks_within_one(tmp_path: Path) -> None:
    year = years.live(tmp_path, years.staged(), machines=1, days=36)
    assert year.jobs["backup"] == 36
    assert year.jobs["expire"] == 36 + (36 - 10) + (36 - 7)
