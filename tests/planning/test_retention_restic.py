"""``Keep`` against restic itself: the same times, the same rules, the same images kept.

One repository, sets of snapshots told apart by tag, each rule tried with ``forget --dry-run --json`` on all of them.
Times are UTC on both sides, because restic reckons in the machine's zone. A restic process spends half a second on its
key, so two run at a time.
"""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import planning_samples as samples
import pytest

from reconciler.api import lifecycles
from reconciler.planning import retention

NIGHTLY = [dt.datetime(2022, 11, 23, 21, tzinfo=dt.UTC) - dt.timedelta(days=day) for day in range(11)]
#: Odd gaps, several a day, ends of months and years, the turn of an ISO year.
ODD = [
    samples.at(text)
    for text in (
        "2020-02-29T12:00Z", "2020-12-27T23:59Z", "2020-12-31T23:59Z", "2021-01-01T00:00Z", "2021-01-03T23:59:59Z",
        "2021-01-04T00:00Z", "2021-11-30T10:00Z", "2022-01-31T08:00Z", "2022-02-28T08:00Z", "2022-03-01T07:59Z",
        "2022-03-02T08:00Z", "2022-03-02T08:00:01Z", "2022-03-02T09:10Z", "2022-04-29T08:00Z", "2022-04-30T08:00Z",
    )
]  # fmt: skip
_random = random.Random(7)
RANDOM = sorted(
    {samples.at("2022-06-01T00:00Z") + dt.timedelta(minutes=_random.randrange(60 * 24 * 100)) for _ in range(12)}
)
SETS = {"nightly": NIGHTLY, "odd": ODD, "random": RANDOM}
RULES: tuple[dict[str, Any], ...] = (
    {"last": 1}, {"last": 5}, {"last": 100}, {"hourly": 3}, {"daily": 1}, {"daily": 7}, {"weekly": 2}, {"weekly": 9},
    {"monthly": 3}, {"yearly": 2}, {"yearly": 5}, {"daily": 3, "weekly": 2}, {"last": 2, "monthly": 4},
    {"hourly": 4, "daily": 3, "weekly": 3, "monthly": 3, "yearly": 3}, {"within": "2d"}, {"within": "2mo"},
    {"within": "1y"}, {"within": "1mo3d"}, {"within": "36h"}, {"withinHourly": "2d"}, {"withinDaily": "1mo"},
    {"withinWeekly": "2mo"}, {"withinMonthly": "1y"}, {"withinYearly": "2y"}, {"within": "1h", "daily": 2},
    {"withinDaily": "5d", "monthly": 2}, {"within": "24h"}, {"within": "1d", "yearly": 1}, {"withinMonthly": "14mo"},
    {"weekly": 1, "withinYearly": "10y"},
)  # fmt: skip
_OPTIONS = {
    "last": "--keep-last", "hourly": "--keep-hourly", "daily": "--keep-daily", "weekly": "--keep-weekly",
    "monthly": "--keep-monthly", "yearly": "--keep-yearly", "within": "--keep-within",
    "withinHourly": "--keep-within-hourly", "withinDaily": "--keep-within-daily",
    "withinWeekly": "--keep-within-weekly", "withinMonthly": "--keep-within-monthly",
    "withinYearly": "--keep-within-yearly",
}  # fmt: skip


class Repository:
    """A restic repository with the sets in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ, "TZ": "UTC", "RESTIC_PASSWORD": "planning", "RESTIC_REPOSITORY": str(folder / "repository"),
            "RESTIC_CACHE_DIR": str(folder / "cache"), "GOMAXPROCS": "2",
        }  # fmt: skip

    def run(self, *words: str) -> str:
        """restic, as a process."""
        done = subprocess.run(
            ["restic", *words], env=self._environment, cwd=self._folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def fill(self) -> None:
        """Make the snapshots: one backup each, of a file of a few bytes."""
        (self._folder / "file").write_text("x")
        self.run("init")
        for _ in _pool(self._back_up, [(tag, moment) for tag, moments in SETS.items() for moment in moments]):
            pass

    def _back_up(self, one: tuple[str, dt.datetime]) -> None:
        tag, moment = one
        self.run("backup", "--time", f"{moment:%Y-%m-%d %H:%M:%S}", "--tag", tag, "--force", "file")

    def kept(self, rule: dict[str, Any]) -> dict[str, set[dt.datetime]]:
        """By tag, the times of the snapshots that restic keeps."""
        options = [word for name, value in rule.items() for word in (_OPTIONS[name], _spelled(value))]
        answer = json.loads(self.run("forget", "--dry-run", "--json", "--no-lock", "--group-by", "tags", *options))
        return {group["tags"][0]: {samples.at(one["time"]) for one in group["keep"]} for group in answer}


def _pool(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        return list(threads.map(work, items))


def _spelled(value: object) -> str:
    """restic knows years, months, days and hours, with a letter each."""
    return str(value).replace("mo", "m")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, set[dt.datetime]]]:
    """What restic says to each of ``RULES``; a machine without restic is a broken one, not a reason to skip."""
    repository = Repository(tmp_path_factory.mktemp("restic"))
    repository.fill()
    return _pool(repository.kept, RULES)


@pytest.mark.parametrize(
    ("number", "rule"), list(enumerate(RULES)), ids=[",".join(f"{k}={v}" for k, v in rule.items()) for rule in RULES]
)
def test_keep_keeps_what_restic_keeps(
    answers: list[dict[str, set[dt.datetime]]], number: int, rule: dict[str, Any]
) -> None:
    written = lifecycles.Keep.model_validate({"type": "Keep", **rule})
    for tag in sorted(SETS):
        candidates = [
            retention.Candidate(f"img-{index}", moment, index) for index, moment in enumerate(sorted(SETS[tag]))
        ]
        decided = retention.keep(written, candidates, samples.NOW)
        ours = {one.time for one in candidates if decided[one.id].keeps}
        assert ours == answers[number][tag], tag
        assert len(ours) >= 1
