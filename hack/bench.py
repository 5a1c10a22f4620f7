"""The data path measured: see ``hack/bench``. Every figure comes from a command that a user could type."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HOLDFAST = Path(sys.executable).with_name("holdfast")

ESTATE = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: fast}}
spec: {{type: Directory, path: fast, maxConcurrentJobs: 10}}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: pool}}
spec: {{type: DedupePool, path: pool, maxConcurrentJobs: 10, compression: {{algorithm: zstd, level: 1}}}}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: staged}}
spec:
  operations:
    - {{name: land, type: Backup, storage: fast, retention: {{type: Fixed, period: 7d}}}}
{staging}---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: guests}}
spec:
  source: {{diskImages: {{path: {machines}}}}}
  schedules: [{{name: daily, type: Full, every: 24h}}]
  lifecycle: staged
  limits: {{maxConcurrentJobs: 8}}
"""
STAGING = """\
    - {name: dedupe, type: Duplication, source: land, storage: pool, retention: {type: Forever}}
"""


def drop_caches() -> None:
    """Make the next step read from the device, as far as this user may."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def timed(name: str, command: list[str | Path], **options: Any) -> float:
    """Wall seconds of a command that must succeed."""
    drop_caches()
    print(f"  {name} ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"bench: {name} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds


def ask(estate: Path, *words: str) -> Any:
    """A Holdfast list document's items."""
    done = subprocess.run([HOLDFAST, *words, "-o", "json"], capture_output=True, text=True, cwd=estate, check=True)
    document = json.loads(done.stdout)
    return document.get("items", document)


def measure(folder: Path, count: int, size: str, seed: int) -> list[tuple[str, float, int]]:
    """Rows of (what, wall seconds, bytes that are not zero)."""
    machines, estate = folder / "machines", folder / "estate"
    print(f"building {count} guests of {size} in {folder}", file=sys.stderr, flush=True)
    guests = [sys.executable, HERE / "guests.py", machines, "--count", str(count), "--bytes", size, "--seed", str(seed)]
    subprocess.run(list(map(str, guests)), check=True, stdout=subprocess.DEVNULL)
    for name in ("fast", "pool"):
        (estate / name).mkdir(parents=True)
    manifest = estate / "estate.yaml"

    def write(staging: str) -> None:
        manifest.write_text(ESTATE.format(machines=machines, staging=staging))

    write("")
    script = 'cp -r --sparse=always "$1" "$2" && sync -f "$2"'
    copied = timed("cp", ["bash", "-c", script, "-", machines, folder / "copied"])
    shutil.rmtree(folder / "copied")
    apply: list[str | Path] = [HOLDFAST, "apply", estate, "--yes", "--until-converged"]
    clock = {**os.environ, "HOLDFAST_TEST": "1"}
    first = timed("first full", apply, env={**clock, "HOLDFAST_CLOCK": "2026-11-23T21:00:00Z"})
    data = sum(job["nonZeroBytes"] for job in ask(estate, "get", "jobs"))
    rows = [("cp of the same files, synced", copied, data), ("first full to a Directory unit", first, data)]
    second = timed("second full", apply, env={**clock, "HOLDFAST_CLOCK": "2026-11-24T21:30:00Z"})
    rows.append(("second full, nothing changed", second, data))
    write(STAGING.replace("storage: pool,", "storage: pool, existing: Backfill,"))
    staged = timed("staging", apply, env={**clock, "HOLDFAST_CLOCK": "2026-11-24T22:00:00Z"})
    rows.append(("staging of both into a DedupePool, read back", staged, 2 * data))
    image = max(ask(estate, "get", "images"), key=lambda one: (one["client"] == "oblvm1", one["time"]))
    size_one = next(job["nonZeroBytes"] for job in ask(estate, "get", "jobs") if job["image"] == image["id"])
    for copy, where in zip(image["copies"], ("the Directory unit", "the DedupePool"), strict=False):
        command: list[str | Path] = [HOLDFAST, "restore", image["client"], "--image", image["id"], "--copy", str(copy)]
        seconds = timed(f"restore from {where}", [*command, "--to", folder / f"restored{copy}"], cwd=estate)
        rows.append((f"restore of one guest from {where}, proven", seconds, size_one))
    stats = ask(estate, "pool", "stats", "pool")
    print(
        f"pool: {stats['ratio']:.2f}:1 raw, {stats['nonZeroRatio']:.2f}:1 of what is not zero, two fulls of each guest"
    )
    return rows


def main() -> None:
    """Build, measure, print, and leave nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", default="8GB", help="virtual bytes of all guests together")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=options.folder) as folder:
        rows = measure(Path(folder), options.count, options.bytes, options.seed)
    width = max(len(name) for name, _, _ in rows)
    for name, seconds, count in rows:
        print(f"{name:<{width}}  {seconds:7.1f} s  {count / seconds / 1e6:7.0f} MB/s")


if __name__ == "__main__":
    main()
