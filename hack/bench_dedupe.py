"""Deduplication measured beside restic and borg: see ``hack/bench``. One run builds the lab, drives all three, judges.

Every figure of Holdfast comes from the installed command on an estate with one pool. Each of ``--runs`` rounds starts
from the lab as it was built and gives every tool in turn a first full, a second full with nothing changed, a day of
change and the restore of one system disk, which must be identical; figures are medians. Then come the rows that need
an estate of their own. Prints the table, writes results.json and charts, and exits 1 if a row is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_charts
import bench_incrementals
import bench_limits
import bench_rows
import bench_runs
import bench_tools
import labs

MIB, GIB = 1 << 20, 1 << 30
#: A machine of one disk, whose restore is timed.
RESTORED = "fresh3"
STEPS = ("first full", "second full", "day of change", "restore")
Found = bench_rows.Found


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much is done."""

    quick: bool
    runs: int
    seed: int
    scale: labs.Scale
    dailies: int
    #: The large disk of the incremental: bytes, files, bytes of the file that is written; bytes written each day.
    large: tuple[int, int, int]
    amounts: tuple[int, ...]
    #: Bytes that must be free.
    free: int


def settings(*, quick: bool, runs: int, seed: int) -> Settings:
    """A slice of about half a GB, or the whole."""
    if quick:
        large, amounts = (2 * GIB, 2000, 32 * MIB), (MIB, 4 * MIB, 12 * MIB)
        return Settings(
            quick=True, runs=runs, seed=seed, scale=labs.QUICK, dailies=2, large=large, amounts=amounts, free=6 * GIB
        )
    large, amounts = (100 * GIB, 200_000, 512 * MIB), (MIB, 16 * MIB, 48 * MIB, 96 * MIB, 192 * MIB)
    return Settings(
        quick=False, runs=runs, seed=seed, scale=labs.FULL, dailies=14, large=large, amounts=amounts, free=45 * GIB
    )


@dataclasses.dataclass(kw_only=True, slots=True)
class Lab:
    """The lab as built, and what every rate of it counts."""

    machines: Path
    #: Bytes of all disks; of them not zero; the same of the disk that is restored.
    raw: int
    data: int
    disk_data: int


class Rounds:
    """All tools on copies of the lab, round after round."""

    def __init__(self, lab: Lab, work: Path, chosen: Settings) -> None:
        self._lab, self._work, self._chosen = lab, work, chosen
        #: Tool -> step -> readings.
        self.readings: dict[str, dict[str, list[bench_runs.Reading]]] = {}
        #: Tool -> step -> bytes stored after it.
        self.stored: dict[str, dict[str, list[int]]] = {}
        self.jobs_at_once: list[int] = []
        self.index_bytes = 0

    def run(self) -> None:
        """Every round; the last stores are removed too."""
        for number in range(self._chosen.runs):
            bench_runs.say(f"round {number + 1} of {self._chosen.runs}")
            machines, stores = self._work / "machines", self._work / "stores"
            labs.copy(self._lab.machines, machines)
            tools: list[bench_tools.Tool] = [
                bench_tools.Holdfast(stores / "holdfast", machines),
                bench_tools.Restic(stores / "restic", machines),
                bench_tools.Borg(stores / "borg", machines),
            ]
            for tool in tools:
                self._note(tool, "first full", tool.backup(0))
                if isinstance(tool, bench_tools.Holdfast):
                    self.jobs_at_once.append(tool.most_jobs_at_once())
                    self.index_bytes = tool.index()
                self._note(tool, "second full", tool.backup(1))
            labs.change(machines, 1, self._chosen.seed)
            for tool in tools:
                self._note(tool, "day of change", tool.backup(2))
                reading, path = tool.restore(RESTORED, self._work / "restored")
                self._note(tool, "restore", reading)
                identical(path, machines / RESTORED / "system.img", tool.name)
            shutil.rmtree(stores)
            shutil.rmtree(machines)
        shutil.rmtree(self._work / "restored")

    def _note(self, tool: bench_tools.Tool, step: str, reading: bench_runs.Reading) -> None:
        self.readings.setdefault(tool.name, {}).setdefault(step, []).append(reading)
        self.stored.setdefault(tool.name, {}).setdefault(step, []).append(tool.stored())

    def reading(self, tool: str, step: str) -> bench_runs.Reading:
        return bench_runs.median(self.readings[tool][step])

    def bytes(self, tool: str, step: str) -> int:
        return round(statistics.median(self.stored[tool][step]))

    def rows(self, borg_default: int, pread: float) -> dict[str, Found]:
        """The rows that compare one run of the tools."""
        first, peer = self.reading("holdfast", "first full"), self.reading("restic", "first full")
        peers = {"restic": self.bytes("restic", "first full"), "borg": borg_default}
        best = min(peers, key=lambda name: peers[name])
        own = self.bytes("holdfast", "first full")
        at_once = min(self.jobs_at_once)
        note = f"{at_once} jobs at once; sampled every {bench_runs.INTERVAL:.2f} s over the process tree"
        second = self._lab.data / self.reading("holdfast", "second full").wall
        restored = self.reading("restic", "restore").wall / self.reading("holdfast", "restore").wall
        return {
            "firstRate": Found(value=peer.wall / first.wall),
            "firstCpu": Found(value=first.user / peer.user),
            "stored": Found(
                value=own / peers[best],
                note=f"{own / 1e6:.0f} MB over {peers[best] / 1e6:.0f} MB of {best}; index beside it "
                f"{self.index_bytes / 1e6:.0f} MB",
            ),
            "secondRate": Found(value=second / pread),
            "restoreRate": Found(value=restored),
            "memory": Found(value=first.memory / MIB if at_once >= 8 else None, note=note),
        }


def identical(restored: Path, wanted: Path, who: str) -> None:
    """Ends the benchmark if a restore is not what was backed up."""
    if not filecmp.cmp(restored, wanted, shallow=False):
        raise SystemExit(f"bench: {restored} restored by {who} differs from {wanted}")


def measure_pair(lab: Lab, work: Path, chosen: Settings) -> dict[str, Found]:
    """Two machines in a pool of their own: a clone; then one installed separately; then days of one kind of change."""
    bench_runs.say("a guest installed separately, and days of one kind of change")
    machines = work / "machines"
    labs.copy(lab.machines, machines, ["clone3"])
    holdfast = bench_tools.Holdfast(work / "estate", machines)
    stored = [holdfast.backup(0) and holdfast.stored()]
    labs.copy(lab.machines, machines, ["fresh2"])
    holdfast.backup(1)
    stored.append(holdfast.stored())
    # The clone's second full comes with it, of which nothing changed; what that adds counts too.
    changes = []
    for day, part in enumerate(("files", "place"), 2):
        changes.append(labs.change(machines, day, chosen.seed, parts=[part]))
        holdfast.backup(day)
        stored.append(holdfast.stored())
    added = [after - before for before, after in itertools.pairwise(stored)]
    files, place = changes[0].file_packed, changes[1].place_packed
    tree = chosen.scale.tree_bytes
    return {
        "separate": Found(
            value=100 * added[0] / tree,
            note=f"{added[0] / 1e6:.1f} MB for {tree / 1e6:.0f} MB in {chosen.scale.files} files",
        ),
        "dayFiles": Found(
            value=added[1] / files,
            note=f"{added[1] / 1e6:.1f} MB over {files / 1e6:.1f} MB ({changes[0].file_bytes / 1e6:.1f} MB unpacked)",
        ),
        "dayPlace": Found(
            value=added[2] / place,
            note=f"{added[2] / 1e6:.1f} MB over {place / 1e6:.1f} MB ({changes[1].place_bytes / 1e6:.1f} MB unpacked)",
        ),
    }


def measure_dailies(
    lab: Lab, work: Path, chosen: Settings, first: float
) -> tuple[dict[str, Found], list[dict[str, Any]]]:
    """Daily fulls with change between them, then the newest image restored; the rows, and each day's state.

    ``first`` is the rate of a first full in bytes a second.
    """
    bench_runs.say(f"{chosen.dailies} daily fulls")
    machines = labs.copy(lab.machines, work / "machines")
    holdfast = bench_tools.Holdfast(work / "estate", machines)
    days = []
    for day in range(chosen.dailies):
        if day:
            labs.change(machines, day, chosen.seed)
        reading = holdfast.backup(day)
        stats = holdfast.ask("pool", "stats", "pool")
        days.append({"day": day + 1, "wallSeconds": reading.wall, "onDiskBytes": holdfast.stored(), **stats})
    readings = []
    for _ in range(chosen.runs):
        reading, path = holdfast.restore(RESTORED, work / "restored")
        readings.append(reading)
        identical(path, machines / RESTORED / "system.img", "holdfast")
    rate = lab.disk_data / bench_runs.median(readings).wall
    newest = days[-1]
    note = f"{newest['nonZeroBytes'] / newest['onDiskBytes']:.1f}:1 of what is not zero, {chosen.dailies} daily fulls"
    return {
        "restoreAged": Found(value=rate / first, note=f"{rate / 1e6:.0f} MB/s, {chosen.dailies} daily fulls"),
        "amplification": _amplification(holdfast),
        "cumulative": Found(value=newest["logicalBytes"] / newest["onDiskBytes"], note=note),
    }, days


def _amplification(holdfast: bench_tools.Holdfast) -> Found:
    """Restored into memory, so that reading the result back asks no device."""
    if os.geteuid():
        return Found(note="caches can be dropped by root alone")
    idle = holdfast.starting().read
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as memory:
        reading, _ = holdfast.restore(RESTORED, Path(memory) / "restored")
    needed, read = holdfast.needed(RESTORED), reading.read - idle
    note = f"{read / 1e6:.0f} MB read for {needed / 1e6:.0f} MB; {idle / 1e6:.0f} MB for starting are not counted"
    return Found(value=read / needed, note=note)


def measure(lab_folder: Path, work: Path, chosen: Settings) -> dict[str, Any]:
    """Everything, as the document that results.json holds."""
    bench_runs.say("the lab")
    machines = labs.build(lab_folder, chosen.scale, chosen.seed)
    large = bench_incrementals.build(lab_folder, *chosen.large)
    raw, data = labs.data_bytes(machines)
    if 2 * data < raw:
        raise SystemExit(f"bench: only {data} of the lab's {raw} bytes are not zero")
    lab = Lab(machines=machines, raw=raw, data=data, disk_data=labs.file_data_bytes(machines / RESTORED / "system.img"))
    limits = bench_limits.measure(machines, work, data, chosen.runs)
    rounds = Rounds(lab, work / "rounds", chosen)
    rounds.run()
    borg = bench_tools.Borg(work / "borg", machines, compression="lz4")
    borg.backup(0)
    found = rounds.rows(borg.stored(), limits[bench_limits.PREAD])
    shutil.rmtree(work / "borg")
    found |= measure_pair(lab, work / "pair", chosen)
    found["incremental"] = bench_incrementals.measure(work / "incremental", large, chosen.amounts)
    shutil.rmtree(work / "incremental")
    first = data / rounds.reading("holdfast", "first full").wall
    dailies, days = measure_dailies(lab, work / "dailies", chosen, first)
    found |= dailies
    return {
        "quick": chosen.quick,
        "runs": chosen.runs,
        "seed": chosen.seed,
        "machine": {"cores": len(os.sched_getaffinity(0)), "tools": versions()},
        "lab": {"rawBytes": raw, "nonZeroBytes": data, "restoredBytes": lab.disk_data},
        "limits": limits,
        "steps": [
            {"tool": tool, "step": step, "storedBytes": rounds.bytes(tool, step), **_reading(rounds, tool, step, lab)}
            for tool in rounds.readings
            for step in STEPS
        ],
        "days": days,
        "rows": bench_rows.document(found, quick=chosen.quick),
        "failed": bench_rows.failed(found, quick=chosen.quick),
    }


def _reading(rounds: Rounds, tool: str, step: str, lab: Lab) -> dict[str, float]:
    reading = rounds.reading(tool, step)
    return {
        "wallSeconds": reading.wall,
        "userSeconds": reading.user,
        "systemSeconds": reading.system,
        "memoryBytes": reading.memory,
        "bytesPerSecond": (lab.disk_data if step == "restore" else lab.data) / reading.wall,
    }


def versions() -> list[str]:
    """What was measured."""
    commands = (["restic", "version"], ["borg", "--version"], [str(bench_tools.HOLDFAST), "version"])
    done = [subprocess.run(one, capture_output=True, text=True, check=True).stdout.splitlines()[0] for one in commands]
    return [*done, " ".join(os.uname()[0:3:2])]


def report(result: dict[str, Any]) -> list[str]:
    """The document as text."""
    lab = result["lab"]
    lines = [
        (
            f"Lab: {lab['rawBytes'] / 1e9:.2f} GB raw, {lab['nonZeroBytes'] / 1e9:.2f} GB not zero;"
            " rates count the latter."
        ),
        f"Median of {result['runs']} on {result['machine']['cores']} cores; {'; '.join(result['machine']['tools'])}.",
        "",
        "Physical limits",
        *(f"  {name:<42} {value / 1e6:8.0f} MB/s" for name, value in result["limits"].items()),
        "",
        f"{'':<24}{'wall s':>9}{'MB/s':>8}{'user s':>9}{'system s':>10}{'MiB':>7}{'stored MB':>11}{'raw/stored':>12}",
    ]
    fulls = {"first full": 1, "second full": 2, "day of change": 3, "restore": 3}
    for one in result["steps"]:
        ratio = lab["rawBytes"] * fulls[one["step"]] / one["storedBytes"]
        lines.append(
            f"{one['tool'] + ', ' + one['step']:<24}{one['wallSeconds']:9.1f}{one['bytesPerSecond'] / 1e6:8.0f}"
            f"{one['userSeconds']:9.1f}{one['systemSeconds']:10.1f}{one['memoryBytes'] / MIB:7.0f}"
            f"{one['storedBytes'] / 1e6:11.0f}{ratio:11.1f}:1"
        )
    return [*lines, "", *bench_rows.table(result["rows"])]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hack/bench dedupe", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--lab", type=Path, help="where the lab is built, or lies from an earlier run; else temporary")
    parser.add_argument("--work", type=Path, help="where the stores go, removed afterwards; beside the lab by default")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="where results.json and charts go")
    parser.add_argument("--runs", type=int, help="rounds of which medians are taken; 3, or 1 with --quick")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="a lab of half a GB; judges bytes, not speed; draws no charts"
    )
    return parser.parse_args()


def main() -> int:
    """The command line."""
    options = _options()
    chosen = settings(quick=options.quick, runs=options.runs or (1 if options.quick else 3), seed=options.seed)
    bench_runs.two_cores()
    bench_runs.cold = not chosen.quick
    with tempfile.TemporaryDirectory(prefix="holdfast-lab-") as temporary:
        lab = (options.lab or Path(temporary)).resolve()
        lab.mkdir(parents=True, exist_ok=True)
        base = (options.work or lab).resolve()
        base.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(base).free
        if free < chosen.free:
            raise SystemExit(
                f"bench: {base} has {free / 1e9:.0f} GB free and needs {chosen.free / 1e9:.0f}; try --work"
            )
        with tempfile.TemporaryDirectory(prefix="work-", dir=base) as work:
            result = measure(lab, Path(work), chosen)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(report(result)))
    if not chosen.quick:
        for path in bench_charts.draw(result, options.out):
            print(path)
    if result["failed"]:
        print(f"missed: {', '.join(result['failed'])}", file=sys.stderr)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
