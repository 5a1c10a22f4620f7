"""The sample estate through days and months: one ``holdfast run`` whose clock file is moved on, night by night.

Used by ``test_cli_year`` and by ``hack/soak year``. The machines' disks change a little every day. What has to be there
at a moment is worked out here once more, from the days alone. Questions that change nothing are asked in this process,
through the same command line, because starting Python costs more than answering.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import io
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import estate_samples
import holdfast_command

from reconciler.base import times
from reconciler.cli import main

BERLIN = ZoneInfo("Europe/Berlin")
#: A disk, of which a block changes every day.
DISK, BLOCK, REGION = 256 << 10, 8 << 10, 64 << 10
#: What the small files of an image may take.
OVERHEAD = 32 << 10
#: When the night's images are made, soon after their slot, and when its work is over; times of Berlin.
MADE, REST = dt.time(21, 5), dt.time(22, 0)
#: How long the loop may take for one night.
PATIENCE = 120.0


#: Day -> what keeps its image there.
Kept = dict[dt.date, set[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """What an estate says, and what follows from it."""

    #: Writes the manifests into a new folder.
    write: Callable[[Path], None]
    #: Its storage units, and how many duplications each image is owed.
    units: tuple[str, ...]
    copies: int
    #: By operation, after these days: whose images are there.
    expected: Callable[[list[dt.date]], dict[str, Kept]]


def at(day: dt.date, local: dt.time) -> dt.datetime:
    """A time of Berlin in UTC."""
    return dt.datetime.combine(day, local, BERLIN).astimezone(dt.UTC)


def fixed(days: list[dt.date], period: int) -> Kept:
    """The days whose images are younger than ``period`` days an hour after the last slot."""
    now, span = at(days[-1], REST), dt.timedelta(days=period)
    return {day: {"Fixed"} for day in days if at(day, MADE) + span > now}


def counted(days: list[dt.date], counts: dict[str, int]) -> Kept:
    """Grandfather, father, son: the newest of each of the newest days, weeks and months."""
    result: Kept = {}
    for name, count in counts.items():
        newest = {_BUCKETS[name](day): day for day in days}
        for day in sorted(newest.values(), reverse=True)[:count]:
            result.setdefault(day, set()).add(name)
    return result


def within(days: list[dt.date], periods: dict[str, int]) -> Kept:
    """The newest of each day or week, as far as it is made less than so many hours before the newest of all.

    No multiple of a day: images are made some seconds after ``MADE``, not the same each night.
    """
    result: Kept = {}
    for name, period in periods.items():
        newest = {_BUCKETS[name](day): day for day in days}
        for day in newest.values():
            if at(day, MADE) > at(days[-1], MADE) - dt.timedelta(hours=period):
                result.setdefault(day, set()).add(f"within{name.capitalize()}")
    return result


_BUCKETS: dict[str, Callable[[dt.date], Any]] = {
    "daily": lambda day: day,
    "weekly": lambda day: day.isocalendar()[:2],
    "monthly": lambda day: (day.year, day.month),
}


def sample(daily: int, weekly: int, monthly: int) -> Plot:
    """The sample estate, with these counts: arrays that keep a week, and a pool."""

    def write(folder: Path) -> None:
        shutil.copytree(holdfast_command.ROOT / "manifests", folder)
        path = folder / "lifecycles.yaml"
        before = "daily: 14, weekly: 8, monthly: 12"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, f"daily: {daily}, weekly: {weekly}, monthly: {monthly}"))

    def expected(days: list[dt.date]) -> dict[str, Kept]:
        land = fixed(days, 7)
        # An array keeps chains: down to the full of the Saturday before, or to the first image.
        day = min(land)
        while day.weekday() != 5 and day != days[0]:
            day -= dt.timedelta(days=1)
            land[day] = {"Base"}
        return {"land": land, "dedupe": counted(days, {"daily": daily, "weekly": weekly, "monthly": monthly})}

    return Plot(write=write, units=("emprise-a", "emprise-b", "puredisk"), copies=1, expected=expected)


STAGED = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: stage}
spec: {type: Directory, path: ../storage/stage, failureDomain: one}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: near}
spec: {type: DedupePool, path: ../storage/near, failureDomain: two}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: far}
spec: {type: DedupePool, path: ../storage/far, failureDomain: three}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: staged}
spec:
  operations:
    - {name: land, type: Backup, storage: stage, retention: {type: ExpireAfterCopy}}
    - {name: keep, type: Duplication, source: land, storage: near, retention: {type: Fixed, period: 10d}}
    - name: vault
      type: Duplication
      source: keep
      storage: far
      retention: {type: Keep, withinDaily: 108h, withinWeekly: 500h, timeZone: Europe/Berlin}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: staged}
spec:
  source: {diskImages: {path: ../guests, machines: "oblVM*", disks: ["*.img"]}}
  schedules: [{name: nightly, type: Full, cron: "0 21 * * *", timeZone: Europe/Berlin}]
  lifecycle: staged
"""


def staged() -> Plot:
    """A stage that empties itself, ten days near, and days and weeks far away."""

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "estate.yaml").write_text(STAGED)

    def expected(days: list[dt.date]) -> dict[str, Kept]:
        return {"keep": fixed(days, 10), "vault": within(days, {"daily": 108, "weekly": 500})}

    return Plot(write=write, units=("stage", "near", "far"), copies=2, expected=expected)


class Year:
    """A small estate, and the process that keeps it."""

    def __init__(self, root: Path, plot: Plot, *, machines: int, first: dt.date) -> None:
        self.folder = root / "estate"
        self.estate = self.folder / "manifests"
        self.machines = [f"oblVM{number}" for number in range(1, machines + 1)]
        self.plot = plot
        self.day = first
        self.days: list[dt.date] = []
        #: Day and machine -> SHA-256 of the disk that was backed up.
        self.contents: dict[tuple[dt.date, str], str] = {}
        self.jobs: Counter[str] = Counter()
        self._clock, self._log = root / "clock", root / "log"
        self._told = 0
        for unit in plot.units:
            (self.folder / "storage" / unit).mkdir(parents=True)
        plot.write(self.estate)
        self.change()
        self.set_clock(self.day, dt.time(19, 0))

    def change(self) -> None:
        """The disks of today."""
        for name in self.machines:
            disk = self.folder / "guests" / name / "disk.img"
            disk.parent.mkdir(parents=True, exist_ok=True)
            if not disk.exists():
                disk.touch()
                os.truncate(disk, DISK)
            dice = random.Random(f"{name}/{self.day}")
            with disk.open("r+b") as file:
                file.seek(dice.randrange(DISK // REGION) * REGION)
                file.write(dice.randbytes(BLOCK))
            self.contents[self.day, name] = hashlib.sha256(disk.read_bytes()).hexdigest()

    # -- time ----------------------------------------------------------------------------------------------------------

    def set_clock(self, day: dt.date, local: dt.time) -> None:
        """A day at a time of Berlin."""
        estate_samples.set_clock(self._clock, times.show(at(day, local)))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """A ``holdfast run`` keeps the estate converged in this block."""
        command = holdfast_command.Command(folder=self.estate).at(f"@{self._clock}")
        with estate_samples.running(command, self._log):
            yield

    def night(self) -> None:
        """The slot of today comes; back once its images are made and staged. Then the disks change, and it is tomorrow."""
        self.set_clock(self.day, MADE)
        wanted = self.jobs["duplicate"] + len(self.machines) * self.plot.copies
        told, moved = self._told, time.monotonic()
        while self.jobs["duplicate"] < wanted:
            self._listen()
            if self._told > told:
                # However slow the machine is: only a loop that says nothing hangs.
                told, moved = self._told, time.monotonic()
            silent = time.monotonic() - moved
            assert silent < PATIENCE, f"{self.day}: {dict(self.jobs)}\n{self._log.read_text()[-4000:]}"
        self.days.append(self.day)
        self.day += dt.timedelta(days=1)
        self.change()

    def _listen(self) -> None:
        """Count what the loop says it has done."""
        with self._log.open() as file:
            file.seek(self._told)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                self._told += len(line.encode())
                word, _, rest = line.partition(" ")
                assert word not in ("failed", "lost", "partial", "cancelled"), line
                if word == "succeeded":
                    self.jobs[rest.strip().partition("/")[0]] += 1
        time.sleep(0.01)

    def rest(self) -> None:
        """An hour after the last slot: everything that is due is done."""
        self.set_clock(self.days[-1], REST)
        estate_samples.until(
            lambda: self.say("plan", ".", "--detailed-exitcode")[0] == 0, seconds=PATIENCE, what="a quiet estate"
        )
        self._listen()

    # -- asking --------------------------------------------------------------------------------------------------------

    def say(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code and stdout of a command line run here, at the estate's clock."""
        out, err = io.StringIO(), io.StringIO()
        variables = {"HOLDFAST_TEST": "1", "HOLDFAST_CLOCK": f"@{self._clock}"}
        with (
            mock.patch.dict(os.environ, variables),
            contextlib.chdir(self.estate),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main.run([str(argument) for argument in arguments])
        assert code in (0, 2), f"holdfast {' '.join(map(str, arguments))}: exit {code}\n{err.getvalue()}"
        return code, out.getvalue()

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of ``get ...``."""
        found: list[dict[str, Any]] = json.loads(self.say("get", *arguments, "-o", "json")[1])["items"]
        return found

    # -- judging -------------------------------------------------------------------------------------------------------

    def require_exactly(self) -> None:
        """The copies that are there are those that have to be, each with its reason; nothing failed."""
        taken = {
            one["id"]: (times.parse(one["time"]).astimezone(BERLIN).date(), one["client"])
            for one in self.items("images")
        }
        expected = self.plot.expected(self.days)
        found: dict[str, dict[str, dict[dt.date, set[str]]]] = {}
        for copy in self.items("copies"):
            if copy["state"] == "Expired":
                continue
            assert copy["state"] == "Complete", copy
            day, client = taken[copy["image"]]
            decision = copy["decision"]
            words = {decision["code"]}
            if decision["code"] == "Keep":
                words = {word.split()[0] for word in decision["message"].removeprefix("kept: ").split(", ")}
            found.setdefault(copy["operation"], {}).setdefault(client, {})[day] = words
        for operation, days in expected.items():
            clients = found.pop(operation)
            assert sorted(clients) == [name.lower() for name in self.machines]
            for client, there in clients.items():
                assert there == days, f"{operation} of {client} at {self.days[-1]}"
        assert not found

    def counted(self, operation: str) -> dict[str, int]:
        """How many images of an operation each of its rules keeps today, by what was worked out here."""
        kept = self.plot.expected(self.days)[operation].values()
        return dict(Counter(word for words in kept for word in words))

    def require_success(self) -> None:
        """Every job of the whole life succeeded."""
        assert {job["state"] for job in self.items("jobs")} == {"Succeeded"}

    def stored(self, unit: str) -> int:
        """Bytes on a unit without the catalog's dumps and its own small files."""
        root = self.folder / "storage" / unit
        return sum(
            path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file() and "catalog" not in path.parts
        )

    def require_room(self) -> None:
        """No unit holds more than its images: each a whole disk where there are plain files, what changed in a pool."""
        kept = len({day for days in self.plot.expected(self.days).values() for day in days})
        for unit in self.plot.units:
            pool = (self.folder / "storage" / unit / "manifests").is_dir()
            data = DISK + kept * REGION if pool else kept * DISK
            stored, most = self.stored(unit), len(self.machines) * (data + kept * OVERHEAD) + 40 * OVERHEAD
            assert stored <= most, f"{unit}: {stored} bytes for {kept} days, {most} at most"

    def require_restored(self, target: Path) -> None:
        """The oldest and the newest image come back bit for bit."""
        days = sorted({day for days in self.plot.expected(self.days).values() for day in days})
        images = {
            (times.parse(one["time"]).astimezone(BERLIN).date(), one["client"]): one["id"]
            for one in self.items("images")
        }
        for day in (days[0], days[-1]):
            name = self.machines[day.day % len(self.machines)]
            folder = target / f"{name}-{day}"
            self.say("restore", name, "--image", images[day, name.lower()], "--to", folder)
            (disk,) = folder.glob("*.img")
            assert hashlib.sha256(disk.read_bytes()).hexdigest() == self.contents[day, name], f"{name} of {day}"


def live(
    root: Path,
    plot: Plot,
    *,
    machines: int,
    days: int,
    first: dt.date = dt.date(2026, 1, 1),
    tell: Callable[[str], None] = lambda _: None,
) -> Year:
    """Nights from a day on, judged at the end of each month and of all."""
    year = Year(root, plot, machines=machines, first=first)
    began = time.monotonic()
    with year.kept():
        while len(year.days) < days:
            year.night()
            if year.day.day == 1 or len(year.days) == days:
                year.rest()
                year.require_exactly()
                year.require_room()
                done = ", ".join(f"{count} {type}" for type, count in sorted(year.jobs.items()))
                tell(f"until {year.days[-1]}: {done}; {time.monotonic() - began:.0f} s")
        year.require_success()
        year.require_restored(root / "restored")
    return year
