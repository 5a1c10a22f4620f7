"""Small estates for black-box tests: manifests written as text, machines of random bytes, one command to run them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import holdfast_command

from reconciler.storage import identities, opening, units

MIB = 1 << 20
#: Where every test's time begins; a Monday.
START = "2026-03-02T12:00:00Z"

STORAGE = """
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: fast}
spec: {type: Directory, path: storage/fast, maxConcurrentJobs: 10, failureDomain: one}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: pool}
spec: {type: DedupePool, path: storage/pool, maxConcurrentJobs: 10, failureDomain: two, compression: {algorithm: zstd, level: %(level)s}}
"""

LIFECYCLE = """
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: %(lifecycle)s}
spec:
  operations:
    - {name: land, type: Backup, storage: %(storage)s, retention: %(retention)s}
"""

DUPLICATION = "    - {name: dedupe, type: Duplication, source: land, storage: pool, retention: {type: Forever}}\n"

POLICY = """
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: %(policy)s}
spec:
  source: {diskImages: {path: machines, machines: "%(machines)s"}}
  schedules: [{name: daily, type: %(type)s, every: %(every)s}]
  lifecycle: gold
  limits: {maxConcurrentJobs: 8, maxStreamsPerClient: 2}
  retries: {count: %(retries)s}
%(hooks)s
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estate:
    """A folder with manifests and machines, and the command that stands in it."""

    folder: Path
    command: holdfast_command.Command

    @property
    def state(self) -> Path:
        """The state folder it uses by default."""
        return self.folder / ".holdfast"

    def at(self, clock: str) -> holdfast_command.Command:
        """The command under a test clock."""
        return self.command.at(clock)

    def apply(self, *arguments: str, code: int | None = 0, clock: str | None = None) -> Any:
        """One pass; the ApplyResult."""
        command = self.at(clock) if clock else self.command
        return command.json("apply", ".", "--yes", *arguments, code=code)

    def get(self, what: str, *arguments: str) -> list[dict[str, Any]]:
        """The items of ``get WHAT``."""
        return list(self.command.json("get", what, *arguments)["items"])

    def write(self, **words: str) -> None:
        """(Re)write the manifests. ``duplicate`` set to ``yes`` adds a second copy in the pool."""
        chosen = {
            "level": "1", "storage": "fast", "retention": "{type: Fixed, period: 7d}", "policy": "nightly", "lifecycle": "gold",
            "machines": "*", "type": "Full", "every": "24h", "retries": "2", "hooks": "", "duplicate": "", **words,
        }  # fmt: skip
        files = {"storage.yaml": STORAGE % chosen, "lifecycle.yaml": LIFECYCLE % chosen, "policy.yaml": POLICY % chosen}
        if chosen["duplicate"]:
            files["lifecycle.yaml"] += DUPLICATION
        for name, text in files.items():
            replace(self.folder / name, text)

    def machine(
        self, name: str, *, disks: tuple[str, ...] = ("system",), size: int = MIB, content: bytes = b""
    ) -> Path:
        """A machine folder with raw disks of random bytes, or of ``content``."""
        folder = self.folder / "machines" / name
        folder.mkdir(parents=True, exist_ok=True)
        for disk in disks:
            (folder / f"{disk}.img").write_bytes(content or os.urandom(size))
        return folder


def build(folder: Path, *machines: str, **words: str) -> Estate:
    """A new estate with its storage folders and these machines."""
    estate = Estate(folder=folder, command=holdfast_command.Command(folder=folder))
    for unit in ("fast", "pool"):
        (folder / "storage" / unit).mkdir(parents=True)
    (folder / "machines").mkdir()
    for machine in machines:
        estate.machine(machine)
    estate.write(**words)
    return estate


@contextlib.contextmanager
def unit_of(estate: Estate, name: str) -> Iterator[units.StorageUnit]:
    """A unit of the estate, for its owner."""
    root = estate.folder / "storage" / name
    kind = "Directory" if name == "fast" else "DedupePool"
    declared = opening.Declared(name=name, type=kind, path=root)
    with contextlib.closing(opening.open_unit(declared, owner=identities.read(root, name).owner)) as unit:
        yield unit


def hook(script: str) -> str:
    """The ``hooks`` of a policy that runs a shell script before each backup."""
    return f'  hooks: {{before: ["/bin/sh", "-c", "{script}"], timeout: 60s}}'


def slow(estate: Estate, machine: str) -> None:
    """Make a machine's backup take many seconds: text that the strongest compression has to chew on."""
    estate.machine(machine, content=os.urandom(24 * MIB).hex().encode())
    estate.write(storage="pool", level="19")


def scanned(estate: Estate) -> int:
    """Bytes that the running jobs have read so far, as another process sees them."""
    if not (estate.state / "catalog.sqlite").exists():
        return 0
    said = estate.command.run("get", "jobs", "--job-state", "Running", "-o", "json", code=None)
    if said.returncode:
        # The file is there a moment before there is a catalog in it.
        assert "there is no catalog" in said.stderr, said.stderr
        return 0
    return sum(one["scannedBytes"] for one in json.loads(said.stdout)["items"])


def replace(path: Path, text: str) -> None:
    """Put a text in place at once, as editors do."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def set_clock(path: Path, moment: str) -> str:
    """Write a clock file; the value of ``HOLDFAST_CLOCK``."""
    replace(path, moment + "\n")
    return f"@{path}"


def tree(folder: Path, *, times: bool = True) -> dict[str, tuple[str, int]]:
    """Every name below a folder with a hash of its bytes and its mtime in ns (0 without ``times``)."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        content = hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = (content, path.stat().st_mtime_ns if times else 0)
    return found


def until(check: Callable[[], Any], *, seconds: float = 30, what: str = "it") -> Any:
    """Wait until ``check`` returns something true; that."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


@contextlib.contextmanager
def running(command: holdfast_command.Command, log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A ``holdfast run`` whose stderr goes to ``log``; stopped at the end of the block if it still lives."""
    with log.open("w") as file:
        process = command.start("run", *arguments, stdout=subprocess.DEVNULL, stderr=file)
    try:
        until(lambda: "revision" in log.read_text() or process.poll() is not None, what="the loop's first turn")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
