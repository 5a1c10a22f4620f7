"""Restores of a whole disk measured: see ``hack/bench restores``. Every figure comes from a command that a user types.

One guest's system disk lies in a Directory unit, in a DedupePool and in a restic repository. A round writes the same
bytes plainly (data copied, synced), restores them by restic, from the pool and from the Directory unit, each with cold
caches and synced before the clock stops; the ratios are those of one round, and their medians are what is judged. A
restore of Holdfast proves every block before it is written and reads a sample back; the others do neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench_runs

HERE = Path(__file__).parent
HOLDFAST = Path(sys.executable).with_name("holdfast")
#: Row: what is to be reached, and from which two measurements.
FLOORS = {"pool over restic": 3.0, "pool over plain write": 0.6, "Directory over plain write": 0.6}

ESTATE = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: fast}}
spec: {{type: Directory, path: fast}}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: pool}}
spec: {{type: DedupePool, path: pool, compression: {{algorithm: zstd, level: 1}}}}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: both}}
spec:
  operations:
    - {{name: land, type: Backup, storage: fast, retention: {{type: Fixed, period: 7d}}}}
    - {{name: dedupe, type: Duplication, source: land, storage: pool, retention: {{type: Forever}}}}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: guests}}
spec:
  source: {{diskImages: {{path: {machines}}}}}
  schedules: [{{name: daily, type: Full, every: 24h}}]
  lifecycle: both
"""
_PLAIN = """
import os, sys
source, target, size = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o644), 0
end = os.fstat(source).st_size
os.ftruncate(target, end)
while size < end:
    try:
        start = os.lseek(source, size, os.SEEK_DATA)
    except OSError:
        break
    size = os.lseek(source, start, os.SEEK_HOLE)
    while start < size:
        start += os.pwrite(target, os.pread(source, min(8 << 20, size - start), start), start)
os.fsync(target)
"""


class Bench:
    """One folder with the guest, the estate and the repository."""

    def __init__(self, folder: Path, size: str, seed: int) -> None:
        self.folder, self.estate = folder, folder / "estate"
        self.disk = folder / "machines" / "oblVM1" / "system.img"
        self.restic = {"RESTIC_REPOSITORY": str(folder / "restic"), "RESTIC_PASSWORD": "bench"}
        self.restic |= {"RESTIC_CACHE_DIR": str(folder / "cache"), "RESTIC_PROGRESS_FPS": "0.1"}
        bench_runs.say(f"building a guest in {folder}")
        guests = [sys.executable, HERE / "guests.py", folder / "machines", "--count", "1", "--bytes", size]
        subprocess.run([*map(str, guests), "--seed", str(seed)], check=True, stdout=subprocess.DEVNULL)
        for other in [one for one in self.disk.parent.iterdir() if one != self.disk]:
            other.unlink()
        for unit in ("fast", "pool"):
            (self.estate / unit).mkdir(parents=True)
        (self.estate / "estate.yaml").write_text(ESTATE.format(machines=folder / "machines"))
        self._run([HOLDFAST, "apply", ".", "--yes", "--until-converged"])
        if shutil.which("restic"):
            self._run(["restic", "init", "--quiet", "--repository-version", "2"])
            self._run(["restic", "backup", "--quiet", "--compression", "auto", folder / "machines"])

    def _run(self, words: list[str | Path]) -> None:
        env = {**os.environ, **self.restic}
        subprocess.run(list(map(str, words)), check=True, cwd=self.estate, env=env, stdout=subprocess.DEVNULL)

    def round(self) -> dict[str, float]:
        """Wall seconds of each way, one after the other."""
        to = self.folder / "out"
        restore: list[str | Path] = [HOLDFAST, "restore", "oblvm1", "--disk", "system.img", "--to", to / "disk"]
        ways: dict[str, list[str | Path]] = {"plain write": [sys.executable, "-c", _PLAIN, self.disk, to / "plain"]}
        if shutil.which("restic"):
            ways["restic"] = ["restic", "restore", "latest", "--quiet", "--include", self.disk, "--target", to / "r"]
        ways |= {"pool": [*restore, "--copy", "2"], "Directory": [*restore, "--copy", "1"]}
        found = {}
        for name, command in ways.items():
            shutil.rmtree(to, ignore_errors=True)
            to.mkdir()
            found[name] = bench_runs.timed(name, command, onto=self.folder, cwd=self.estate, env=self.restic).wall
            self._require_equal(to)
        return found

    def _require_equal(self, to: Path) -> None:
        (made,) = [one for one in to.rglob("*") if one.is_file()]
        if subprocess.run(["cmp", "-s", made, self.disk], check=False).returncode:
            raise SystemExit(f"bench: {made} is not the disk that was backed up")


def _ratios(found: dict[str, float]) -> dict[str, float]:
    ratios = {f"{way} over plain write": found["plain write"] / found[way] for way in ("pool", "Directory")}
    with contextlib.suppress(KeyError):  # where restic is not installed
        ratios |= {f"{way} over restic": found["restic"] / found[way] for way in ("pool", "Directory")}
    return ratios


def main() -> int:
    """Build, measure, print, and leave nothing behind; 1 where a median misses what is to be reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", default="3600MB", help="virtual bytes of the guest's disks; 4/9 is the one restored")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bench_runs.two_cores()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder).resolve(), options.bytes, options.seed)
        data = bench.disk.stat().st_blocks * 512
        rounds = [bench.round() for _ in range(options.rounds)]
    seconds = {way: statistics.median(one[way] for one in rounds) for way in rounds[0]}
    each = [_ratios(one) for one in rounds]
    ratios = {name: statistics.median(one[name] for one in each) for name in each[0]}
    missed = [name for name, floor in FLOORS.items() if ratios.get(name, floor) < floor]
    if options.json:
        print(json.dumps({"bytes": data, "seconds": seconds, "ratios": ratios, "missed": missed, "rounds": rounds}))
    else:
        for way, wall in seconds.items():
            print(f"{way:<28}{wall:7.2f} s  {data / wall / 1e6:7.0f} MB/s of data")
        for name, ratio in ratios.items():
            print(f"{name:<28}{ratio:7.2f} x  {'to reach ' + str(FLOORS[name]) if name in FLOORS else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
