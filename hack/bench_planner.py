"""The planner measured over many rows: see ``hack/bench``. Plans are made by the installed command on two cores.

The pass of the loop is measured inside a process of its own, as ``holdfast run`` turns: it reads the tree, asks the
sources and turns; the first turn reads all of the catalog, the next ones find nothing new. The bytes of the images do
not exist, so the turn is told that the units have been compared with the catalog; that comparison is made once when a
controller starts and depends on the units alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests")]

import make_catalog  # noqa: E402
import postgres_server  # noqa: E402

from reconciler.base import clocks, times  # noqa: E402
from reconciler.catalog import database, inventories  # noqa: E402
from reconciler.cli import seats, settings  # noqa: E402

HOLDFAST = Path(sys.executable).with_name("holdfast")
TWO_CORES = ("taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:2])))
# A morning to come: the pools are made by the clock of the machine, and must not be of the future.
NOW = f"{dt.date.today() + dt.timedelta(days=1)}T09:00:00Z"
CLIENTS = 100
MIB = 1 << 20
GIB = 1 << 30
MANIFESTS = 1000
#: Seconds, at most, over a million images.
WANTED = {"sqlite": 10.0, "postgresql": 20.0}
#: How much more ten times the images may take than ten times: noise of the machine.
SLACK = 1.15

#: Starts a command from a small process of its own: a child's peak memory begins at that of the process it came from.
_WATCH = """
import os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""

POLICY = """\
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: team-{number:04d}, labels: {{service: erp, team: team-{number:04d}}}}}
spec:
  source:
    diskImages: {{path: ../machines, machines: "team-{number:04d}-*", disks: ["*.img", "*.qcow2"]}}
  schedules:
    - {{name: weekly-full, type: Full, cron: "0 21 * * Sat", timeZone: Europe/Berlin}}
    - {{name: nightly, type: Incremental, cron: "0 21 * * Sun-Fri", timeZone: Europe/Berlin, startingDeadline: 4h}}
  lifecycle: gold
  limits: {{maxConcurrentJobs: 8, maxStreamsPerClient: 2}}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Used:
    """What a command took."""

    #: On the wall.
    seconds: float
    #: Of all its threads, in seconds.
    processor: float
    #: At its peak, in bytes.
    memory: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table."""

    what: str
    found: float
    #: What it may be at most, None where nothing is asked.
    most: float | None
    #: ``s``, ``MiB`` or ``x``.
    measure: str

    def line(self) -> str:
        """As it is printed."""
        digits = 0 if self.measure == "MiB" else 2
        asked = "" if self.most is None else f"at most {self.most:,.{digits}f} {self.measure}"
        met = "" if self.most is None else "yes" if self.found <= self.most else "NO"
        return f"{self.what:<58} {self.found:>9,.{digits}f} {self.measure:<4} {asked:<18} {met}"


def timed(*words: str | Path, environment: Mapping[str, str] | None = None) -> Used:
    """What one command on two cores takes; it must succeed."""
    variables = {**os.environ, "HOLDFAST_TEST": "1", "HOLDFAST_CLOCK": NOW} if environment is None else environment
    command = [*TWO_CORES, sys.executable, "-c", _WATCH, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        raise SystemExit(f"bench: {words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    seconds, processor, memory = map(float, done.stdout.split())
    return Used(seconds=seconds, processor=processor, memory=int(memory) * 1024)


def plan_of(folder: Path, catalog: str, runs: int) -> Used:
    """The median of some plans over a catalog."""
    where = [folder / "estate", "--state", folder / "state", "--catalog", catalog]
    return sorted((timed(HOLDFAST, "plan", *where) for _ in range(runs)), key=lambda one: one.seconds)[runs // 2]


def pass_of(folder: Path, catalog: str) -> tuple[float, float]:
    """Seconds of the first turn of the loop, and of the quickest of the next ones, in a process of its own."""
    environment = {**os.environ, "HOLDFAST_TEST": "1", "HOLDFAST_CLOCK": NOW}
    command = [*TWO_CORES, sys.executable, str(HERE / "bench_planner.py"), "--pass", str(folder), catalog]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"bench: the pass failed:\n{done.stdout}{done.stderr}")
    first, second = done.stdout.split()[-2:]
    return float(first), float(second)


def turn(folder: Path, catalog: str) -> None:
    """Turn as the loop does, and say how long the first turn and the quickest later one took."""
    chosen = settings.of_estate(folder / "estate", state=folder / "state", catalog=catalog)
    with (
        contextlib.closing(database.open_writing(chosen.catalog)) as db,
        seats.controlling(chosen, db, clocks.from_environment()) as controller,
    ):
        controller._checked.update(inventories.known_units(db))
        took = []
        for _ in range(4):
            began = time.monotonic()
            controller.reload()
            plan = controller.turn()
            took.append(time.monotonic() - began)
            if controller.started or plan.configuration:
                raise SystemExit("the catalog was to have nothing new")
        print(took[0], min(took[1:]))


@contextlib.contextmanager
def catalogs(kind: str, work: Path) -> Iterator[Sequence[str]]:
    """Two places for catalogs: to plan over, and to turn over."""
    if kind == "sqlite":
        yield [str(work / name / "state" / "catalog.sqlite") for name in ("plan", "pass")]
        return
    server = postgres_server.Server.temporary(shared_buffers="256MB")
    try:
        yield [server.create("plan"), server.create("pass")]
    finally:
        server.stop()


def measure(kind: str, sizes: Sequence[int], runs: int, work: Path) -> Iterator[Figure]:
    """Every figure of one kind of catalog."""
    plans = {}
    for images in sizes:
        folder = work / kind / str(images)
        with catalogs(kind, folder) as (to_plan, to_turn):
            for name, catalog in (("plan", to_plan), ("pass", to_turn)):
                wish = make_catalog.Wish(
                    clients=max(1, images // CLIENTS), images=images, estate=folder / name / "estate",
                    state=folder / name / "state", catalog=catalog, now=times.parse(NOW), settled=name == "pass",
                )  # fmt: skip
                wish.state.mkdir(parents=True)
                wish.estate.mkdir(parents=True)
                print(f"  {images:,} images in {kind}, to {name} over ...", file=sys.stderr, flush=True)
                make_catalog.make(wish)
            used = plan_of(folder / "plan", to_plan, runs)
            first, again = pass_of(folder / "pass", to_turn)
        plans[images] = used.processor
        large = images >= 1_000_000
        what = f"over {images:,} images in {kind}"
        yield Figure(
            what=f"holdfast plan {what}", found=used.seconds, most=WANTED[kind] if large else None, measure="s"
        )
        yield Figure(what="  its processor time", found=used.processor, most=None, measure="s")
        asked = GIB / MIB if large and kind == "sqlite" else None
        yield Figure(what="  its memory", found=used.memory / MIB, most=asked, measure="MiB")
        yield Figure(what="  first pass of the loop", found=first, most=None, measure="s")
        most = 1.0 if large and kind == "sqlite" else None
        yield Figure(what="  a pass with nothing new", found=again, most=most, measure="s")
        shutil.rmtree(folder)
    if len(sizes) > 1:
        ratio = plans[sizes[-1]] / plans[sizes[0]]
        linear = sizes[-1] / sizes[0] * SLACK
        what = f"growth of processor time from {sizes[0]:,} to {sizes[-1]:,}"
        yield Figure(what=what, found=ratio, most=linear, measure="x")


def write_manifests(estate: Path, files: int) -> None:
    """An estate of so many files, a policy in each but one."""
    for name in ("policies", "machines", "units/fast", "units/pool", "units/offsite"):
        (estate / name).mkdir(parents=True)
    (estate / "estate.yaml").write_text(make_catalog.ESTATE.format(daily=30))
    for number in range(files - 1):
        (estate / "policies" / f"team-{number:04d}.yaml").write_text(POLICY.format(number=number))


def validate(runs: int, work: Path) -> Figure:
    """``holdfast validate`` over many files of manifests."""
    estate = work / "manifests"
    write_manifests(estate, MANIFESTS)
    took = sorted(timed(HOLDFAST, "validate", estate).seconds for _ in range(runs))
    shutil.rmtree(estate)
    return Figure(what=f"holdfast validate over {MANIFESTS:,} files", found=took[runs // 2], most=2.0, measure="s")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/bench planner", description=__doc__)
    parser.add_argument("--images", default="100000,1000000", help="numbers of images, small to large")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--only", choices=sorted(WANTED), help="one kind of catalog alone")
    parser.add_argument("--pass", nargs=2, dest="turning", metavar=("FOLDER", "CATALOG"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.turning:
        turn(Path(chosen.turning[0]), chosen.turning[1])
        return 0
    sizes = [int(size) for size in chosen.images.split(",")]
    missed = False
    with tempfile.TemporaryDirectory(prefix="holdfast-planner-", dir=chosen.work) as folder:
        work = Path(folder)
        figures = [validate(chosen.runs, work)]
        for kind in [chosen.only] if chosen.only else list(WANTED):
            for figure in measure(kind, sizes, chosen.runs, work):
                figures.append(figure)
                print(figure.line(), file=sys.stderr, flush=True)
    print(f"Measured {dt.datetime.now(dt.UTC):%Y-%m-%d} on two of {os.cpu_count()} cores:")
    for figure in figures:
        print(figure.line())
        missed |= figure.most is not None and figure.found > figure.most
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
