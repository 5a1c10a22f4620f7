"""Holdfast, restic and borg behind one face: back up the lab, restore one disk, say how many bytes are stored.

``bench_dedupe`` drives all three through ``Tool`` and times their commands with ``bench_runs``. Every command is one
that a user could type. All pack with zstd level 1: restic 0.14 does so under ``--compression auto``, borg and Holdfast
are told. A backup reads whole disks: restic and borg would else skip files by their times, which tells nothing about
the data path. restic always encrypts; borg is run without, which is its fastest.
"""

from __future__ import annotations

import datetime as dt
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import bench_runs

HERE = Path(__file__).parent
HOLDFAST = Path(sys.executable).with_name("holdfast")
BEGIN = dt.datetime(2026, 11, 23, 21, 0, tzinfo=dt.UTC)

ESTATE = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: pool}}
spec: {{type: DedupePool, path: pool, maxConcurrentJobs: 8, compression: {{algorithm: zstd, level: 1}}}}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: keep}}
spec:
  operations: [{{name: store, type: Backup, storage: pool, retention: {{type: Forever}}}}]
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: guests}}
spec:
  source: {{diskImages: {{path: {machines}{source}}}}}
  schedules: [{{name: daily, type: {type}, every: 24h}}]
  lifecycle: keep
  limits: {{maxConcurrentJobs: 8}}
"""


class Tool(Protocol):
    """A backup tool with a store of its own in a folder of its own."""

    name: str

    def backup(self, day: int) -> bench_runs.Reading:
        """Back the lab up, reading all of it; ``day`` grows by one each time."""

    def restore(self, client: str, target: Path) -> tuple[bench_runs.Reading, Path]:
        """Restore the newest system disk of a machine; where it went."""

    def stored(self) -> int:
        """Bytes of the store."""


class Holdfast:
    """An estate whose one policy backs machines up into a pool."""

    name = "holdfast"

    def __init__(self, folder: Path, machines: Path, *, type_: str = "Full", source: str = "") -> None:
        self.folder, self.pool = folder, folder / "pool"
        self.pool.mkdir(parents=True)
        (folder / "estate.yaml").write_text(ESTATE.format(machines=machines, source=source, type=type_))

    def backup(self, day: int) -> bench_runs.Reading:
        now = BEGIN + dt.timedelta(days=day, minutes=30 if day else 0)
        environment = {"HOLDFAST_TEST": "1", "HOLDFAST_CLOCK": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        command = [HOLDFAST, "apply", self.folder, "--yes", "--until-converged"]
        return bench_runs.timed(f"holdfast, backup {day}", command, onto=self.pool, env=environment)

    def restore(self, client: str, target: Path) -> tuple[bench_runs.Reading, Path]:
        shutil.rmtree(target, ignore_errors=True)
        command = [HOLDFAST, "restore", client, "--disk", "system.img", "--to", target]
        found = bench_runs.timed("holdfast, restore", command, onto=self.folder, cwd=self.folder)
        return found, target / "system.img"

    def stored(self) -> int:
        return bench_runs.folder_bytes(self.pool, without="index")

    def index(self) -> int:
        """Bytes of the cache that the pool keeps beside what is stored."""
        return bench_runs.folder_bytes(self.pool) - self.stored()

    def ask(self, *words: str) -> Any:
        """What a command prints as JSON; of a list its items."""
        done = subprocess.run(
            [HOLDFAST, *words, "-o", "json"], capture_output=True, text=True, cwd=self.folder, check=True
        )
        document = json.loads(done.stdout)
        return document.get("items", document)

    def starting(self) -> bench_runs.Reading:
        """What any command costs before it does anything, the catalog included."""
        return bench_runs.timed("holdfast, starting", [HOLDFAST, "get", "images"], onto=self.folder, cwd=self.folder)

    def most_jobs_at_once(self) -> int:
        """How many backups ran together at most."""
        jobs = [(one["startedAt"], one["finishedAt"]) for one in self.ask("get", "jobs")]
        return max(sum(start <= moment < end for start, end in jobs) for moment, _ in jobs)

    def needed(self, client: str) -> int:
        """Bytes that the segments of a client's newest image take in the pool, each counted once."""
        image = max((one for one in self.ask("get", "images") if one["client"] == client), key=lambda one: one["time"])
        return image_bytes(self.pool, image["id"])


class Restic:
    """A repository of format 2."""

    name = "restic"

    def __init__(self, folder: Path, machines: Path) -> None:
        self.folder, self.repository, self.machines = folder, folder / "repository", machines
        folder.mkdir(parents=True)
        self._environment = {
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
            "RESTIC_PROGRESS_FPS": "0.1",
        }
        init = ["restic", "init", "--quiet", "--repository-version", "2"]
        subprocess.run(init, env={**os.environ, **self._environment}, check=True, stdout=subprocess.DEVNULL)

    def backup(self, day: int) -> bench_runs.Reading:
        command = ["restic", "backup", "--quiet", "--force", "--compression", "auto", self.machines]
        return bench_runs.timed(f"restic, backup {day}", command, onto=self.folder, env=self._environment)

    def restore(self, client: str, target: Path) -> tuple[bench_runs.Reading, Path]:
        shutil.rmtree(target, ignore_errors=True)
        wanted = self.machines / client / "system.img"
        command = ["restic", "restore", "latest", "--quiet", "--include", wanted, "--target", target]
        found = bench_runs.timed("restic, restore", command, onto=self.folder, env=self._environment)
        return found, target / wanted.relative_to("/")

    def stored(self) -> int:
        return bench_runs.folder_bytes(self.repository)


class Borg:
    """A repository without encryption."""

    name = "borg"

    def __init__(self, folder: Path, machines: Path, *, compression: str = "zstd,1") -> None:
        self.folder, self.repository, self.machines = folder, folder / "repository", machines
        self._compression, self._newest = compression, ""
        folder.mkdir(parents=True)
        self._environment = {
            "BORG_BASE_DIR": str(folder / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        command = ["borg", "init", "--encryption", "none", str(self.repository)]
        subprocess.run(command, env={**os.environ, **self._environment}, check=True)

    def backup(self, day: int) -> bench_runs.Reading:
        self._newest = f"{self.repository}::day{day}"
        command = ["borg", "create", "--files-cache", "disabled", "-C", self._compression, self._newest, self.machines]
        return bench_runs.timed(f"borg, backup {day}", command, onto=self.folder, env=self._environment)

    def restore(self, client: str, target: Path) -> tuple[bench_runs.Reading, Path]:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        wanted = (self.machines / client / "system.img").relative_to("/")
        command = ["borg", "extract", "--sparse", self._newest, wanted]
        found = bench_runs.timed("borg, restore", command, onto=self.folder, cwd=target, env=self._environment)
        return found, target / wanted

    def stored(self) -> int:
        return bench_runs.folder_bytes(self.repository)


def _reader() -> ModuleType:
    """``hack/read-pool`` as a module."""
    loader = importlib.machinery.SourceFileLoader("read_pool", str(HERE / "read-pool"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    if spec is None:
        raise SystemExit("bench: hack/read-pool cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def image_bytes(root: Path, image: str) -> int:
    """Bytes that an image's segments take in a pool, each counted once with its header, by the stand-alone reader."""
    reader = _reader()
    pool = reader.Pool(root)
    pool.find(["meta-a"])
    disks = [reader.Recipe(pool, disk) for disk in pool.manifest(root / "manifests" / f"{image}.json")["disks"]]
    wanted = {one for disk in disks for number in range(len(disk.pages)) for one in disk.entries(number)[0]}
    pool.find(["data"], wanted)
    return sum(pool.places(one)[0].stored + reader.RECORD.size for one in wanted)
