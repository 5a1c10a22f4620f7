"""``Keep`` against restic itself: the same times, the same rules, the same images kept.

One repository of about 80 snapshots with many random tags; a tag is a set of times. Each of 100 sets of rules is tried
with ``forget --dry-run --json`` on one of them, the hand-made ones on those that were made to be awkward too.
Times are UTC on both sides, because restic reckons in the machine's zone. Most of a restic process is waiting, so eight
run at a time.
"""

from __future__ import annotations

import base64
import concurrent.futures
import datetime as dt
import hashlib
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import holdfast_command
import planning_samples as samples
import pytest

from reconciler.api import lifecycles
from reconciler.base import times
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
    {
        samples.at("2021-06-01T00:00Z") + dt.timedelta(minutes=int(60 * 24 * 540 * _random.random() ** 2))
        for _ in range(54)
    }
)
#: Snapshot -> its tags.
SNAPSHOTS: dict[dt.datetime, list[str]] = {
    **{moment: ["nightly"] for moment in NIGHTLY},
    **{moment: ["odd"] for moment in ODD},
    **{moment: ["random"] for moment in RANDOM},
}
for _tags in SNAPSHOTS.values():
    _tags += [f"tag{number}" for number in range(24) if _random.random() < 0.4]
SETS = {
    tag: sorted(moment for moment, tags in SNAPSHOTS.items() if tag in tags)
    for tag in sorted({tag for tags in SNAPSHOTS.values() for tag in tags})
}
AWKWARD: tuple[dict[str, Any], ...] = (
    {"last": 1}, {"last": 5}, {"last": 100}, {"hourly": 3}, {"daily": 1}, {"daily": 7}, {"weekly": 2}, {"weekly": 9},
    {"monthly": 3}, {"yearly": 2}, {"yearly": 5}, {"daily": 3, "weekly": 2}, {"last": 2, "monthly": 4},
    {"hourly": 4, "daily": 3, "weekly": 3, "monthly": 3, "yearly": 3}, {"within": "2d"}, {"within": "2mo"},
    {"within": "1y"}, {"within": "1mo3d"}, {"within": "36h"}, {"withinHourly": "2d"}, {"withinDaily": "1mo"},
    {"withinWeekly": "2mo"}, {"withinMonthly": "1y"}, {"withinYearly": "2y"}, {"within": "1h", "daily": 2},
    {"withinDaily": "5d", "monthly": 2}, {"within": "24h"}, {"within": "1d", "yearly": 1}, {"withinMonthly": "14mo"},
    {"weekly": 1, "withinYearly": "10y"},
)  # fmt: skip


def _random_rules() -> dict[str, Any]:
    """Any combination of one to five words, with small counts and odd periods."""
    chosen = _random.sample(sorted(_OPTIONS), _random.randint(1, 5))
    return {
        name: f"{_random.randint(1, 9)}{_random.choice(['h', 'd', 'mo', 'y'])}"
        if name.startswith("within")
        else _random.randint(1, 12)
        for name in chosen
    }


_OPTIONS = {
    "last": "--keep-last", "hourly": "--keep-hourly", "daily": "--keep-daily", "weekly": "--keep-weekly",
    "monthly": "--keep-monthly", "yearly": "--keep-yearly", "within": "--keep-within",
    "withinHourly": "--keep-within-hourly", "withinDaily": "--keep-within-daily",
    "withinWeekly": "--keep-within-weekly", "withinMonthly": "--keep-within-monthly",
    "withinYearly": "--keep-within-yearly",
}  # fmt: skip

#: Rules, and the set they are tried on.
CASES: tuple[tuple[dict[str, Any], str], ...] = (
    *((rule, tag) for number, rule in enumerate(AWKWARD) for tag in (["nightly", "odd", "random"][number % 3],)),
    *((_random_rules(), _random.choice(sorted(SETS))) for _ in range(100 - len(AWKWARD))),
)


#: A repository as ``restic init`` made it, whose master key was sealed anew with scrypt's lowest cost: with restic's own
#: cost each of two hundred processes spends a quarter of a second on it. The password is ``planning``.
KEY = {
    "created": "2026-01-01T00:00:00Z", "username": "holdfast", "hostname": "tests", "kdf": "scrypt", "N": 2, "r": 1, "p": 1,
    "salt": "1ZO4A659Zh7aAJAetHrpAzPKm1rRAojEkui1b8L9aBr0o4gpJhWa+cN8uCZywJaNMQvUgwMqjDd1FOQs1ezV+w==",
    "data": "LmrBMq994EIV3gtVgqjAxXFPqVuDyZ0kdCCh6hDk9+xxmT2dSCCcprKa07pu+IOt/9KiUFE1VV759W40MmGN3DsGcEZGkDUcKuc2kQVLmByfP5mA"
    "k5RsL5Nuv4ZJjuH1unnJ3ODvDiObR2OG0pxCOFy/oYiZuk7r0x8jF0nUjE6O30by+4c9ikZJywXsJ835LMJ3Pyqufvi2HMHJL/sGZg==",
}  # fmt: skip
CONFIG = (
    "Ma8bGzCC/9ZKkK3wC0OEbf0pfMEfIbxtQGj9GbIXQOatxsgvOGpqQFPhb9VJgQ8Iwss/KsgdZgAMJ13LHncpbjkzMvYjQ87SNKDzeCOZnYu2/u"
    "pdSnPgO4lpz4PuhmyPNvhjpcn1HhaPY46wab4VZ++SOd5Fj/iVQGHMwTxYtAb/HFrYHBGwosKfHycEQfEwqGq2mS+eEgq3Je0="
)


#: Processes of restic that run together.
AT_ONCE = 8


class Repository:
    """A restic repository with the sets in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {**os.environ, "TZ": "UTC", "RESTIC_PASSWORD": "planning", "GOMAXPROCS": "2"}

    def run(self, *words: str, repository: str = "whole") -> str:
        """restic, as a process."""
        command = ["restic", "--no-cache", "--repo", repository, *words]
        done = subprocess.run(
            command, env=self._environment, cwd=self._folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def fill(self) -> None:
        """Make the snapshots: one backup each, of a file of a few bytes."""
        (self._folder / "file").write_text("x")
        self._begin("whole")
        _pool(self._fill_part, range(AT_ONCE))

    def _fill_part(self, number: int) -> None:
        """Make some of them in a repository of their own: where several write, a lock that goes away while another
        restic reads it makes that one wait for a minute."""
        root = self._begin(f"part-{number}")
        for moment in sorted(SNAPSHOTS)[number::AT_ONCE]:
            tags = [word for tag in SNAPSHOTS[moment] for word in ("--tag", tag)]
            when = f"{moment:%Y-%m-%d %H:%M:%S}"
            self.run("backup", "--time", when, *tags, "--force", "file", repository=root.name)
        for path in (root / "snapshots").iterdir():
            path.rename(self._folder / "whole" / "snapshots" / path.name)

    def _begin(self, repository: str) -> Path:
        """What ``restic init`` leaves; a key's name is the hash of its file."""
        root, key = self._folder / repository, json.dumps(KEY).encode()
        for name in ("data", "index", "keys", "locks", "snapshots"):
            (root / name).mkdir(parents=True)
        (root / "config").write_bytes(base64.b64decode(CONFIG))
        (root / "keys" / hashlib.sha256(key).hexdigest()).write_bytes(key)
        return root

    def kept(self, case: tuple[dict[str, Any], str]) -> set[dt.datetime]:
        """The times of the snapshots of a set that restic keeps."""
        rule, tag = case
        options = [word for name, value in rule.items() for word in (_OPTIONS[name], _spelled(value))]
        answer = json.loads(
            self.run("forget", "--dry-run", "--json", "--no-lock", "--tag", tag, "--group-by", "host", *options)
        )
        return {samples.at(one["time"]) for group in answer for one in group["keep"] or ()}


def _pool(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(work, items))


def _spelled(value: object) -> str:
    """restic knows years, months, days and hours, with a letter each."""
    return str(value).replace("mo", "m")


@pytest.fixture(scope="module")
def answers() -> list[set[dt.datetime]]:
    """What restic says to each of ``CASES``; a machine without restic is a broken one, not a reason to skip."""
    # In memory, as restic syncs every small file.
    with tempfile.TemporaryDirectory(prefix="restic-", dir="/dev/shm") as folder:
        repository = Repository(Path(folder))
        repository.fill()
        return _pool(repository.kept, CASES)


@pytest.mark.parametrize(
    "number",
    range(len(CASES)),
    ids=[f"{number}-{','.join(f'{k}={v}' for k, v in rule.items())}" for number, (rule, _) in enumerate(CASES)],
)
def test_keep_keeps_what_restic_keeps(answers: list[set[dt.datetime]], number: int) -> None:
    rule, tag = CASES[number]
    written = lifecycles.Keep.model_validate({"type": "Keep", **rule})
    candidates = [retention.Candidate(f"img-{index}", moment, index) for index, moment in enumerate(SETS[tag])]
    decided = retention.keep(written, candidates, samples.NOW)
    ours = {one.time for one in candidates if decided[one.id].keeps}
    assert ours == answers[number], tag
    assert len(ours) >= 1


@pytest.mark.parametrize("number", [3, 40, 71, 99])
def test_the_preview_says_the_same(answers: list[set[dt.datetime]], number: int, tmp_path: Path) -> None:
    rule, tag = CASES[number]
    (tmp_path / "times").write_text("".join(f"{times.show(moment)}\n" for moment in SETS[tag]))
    words = ",".join(f"{name}={value}" for name, value in rule.items())
    command = holdfast_command.Command(folder=tmp_path)
    found = json.loads(
        command.run(
            "retention", "preview", "--keep", words, "--time-zone", "UTC", "--times", "times", "-o", "json"
        ).stdout
    )
    assert {samples.at(one["time"]) for one in found if one["keep"]} == answers[number]
    assert all(bool(one["rules"]) == one["keep"] for one in found)
