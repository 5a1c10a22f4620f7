"""A small estate with real disks, a clock of its own and a memory of what the disks held at every moment.

The tests of this folder and ``hack/soak`` kill ``holdfast`` in it and then ask two questions: did it converge, and is
every image that was ever committed bit for bit what its disks held when it was made. What is killed, and what runs
afterwards, are processes of the installed command; questions that change nothing are asked in this process, through
the same command line, because starting Python costs more than answering.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from holdfast_command import Command

from reconciler.base import times
from reconciler.cli import main
from reconciler.storage import opening, units

MIB = 1 << 20
#: When the first pass runs; later ones follow by ``DAY``.
START = dt.datetime(2026, 11, 20, 20, 0, tzinfo=dt.UTC)
#: A day and a little, so that each pass finds exactly one slot due.
DAY = dt.timedelta(hours=24, minutes=20)

#: Machine -> disk file -> bytes.
MACHINES: Mapping[str, Mapping[str, int]] = {
    "vm1": {"system.img": 3 * MIB, "data.raw": MIB + 512},
    "vm2": {"root.qcow2": 2 * MIB},
}

MANIFESTS = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: fast}
spec: {type: Directory, path: units/fast, failureDomain: one}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: pool}
spec: {type: DedupePool, path: units/pool, failureDomain: two}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: standard}
spec:
  operations:
    - {name: land, type: Backup, storage: fast, retention: {type: Fixed, period: 36h}}
    - {name: dedupe, type: Duplication, source: land, storage: pool, retention: {type: Keep, last: 2}}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: guests}
spec:
  source: {diskImages: {path: machines, machines: "*", disks: ["*.img", "*.raw", "*.qcow2"]}}
  schedules: [{name: daily, type: Incremental, every: 24h, fullEvery: 2d}]
  lifecycle: standard
"""

#: (unit, client, slot): how many images of it a unit holds.
Holdings = Counter[tuple[str, str, str]]


class Estate:
    """One estate below ``root``; everything about it lies there, so a copy put back is the estate as it was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "estate"
        self.machines = self.folder / "machines"
        self.paths = {"fast": self.folder / "units" / "fast", "pool": self.folder / "units" / "pool"}
        self._clock = root / "clock"
        self._history = root / "history.json"
        self.command = Command(folder=self.folder).at(f"@{self._clock}")

    # -- making and changing -------------------------------------------------------------------------------------------

    def build(self, manifests: str = MANIFESTS) -> Estate:
        """Manifests, empty units, machines with their first contents, the clock at ``START``."""
        for path in self.paths.values():
            path.mkdir(parents=True)
        (self.folder / "estate.yaml").write_text(manifests)
        self._history.write_text("[]")
        self.set_clock(START)
        self.change(0)
        return self

    def set_clock(self, moment: dt.datetime, *, jump: bool = False) -> None:
        """Move the clock of every process that follows it."""
        fresh = self.root / "clock.new"
        fresh.write_text(("jump " if jump else "") + times.show(moment))
        fresh.replace(self._clock)

    def now(self) -> dt.datetime:
        """What the clock shows."""
        passed = dt.datetime.now(dt.UTC) - dt.datetime.fromtimestamp(self._clock.stat().st_mtime, dt.UTC)
        return times.parse(self._clock.read_text().removeprefix("jump ")) + passed

    def change(self, seed: int) -> None:
        """New contents in every disk: all of vm1, a little of the rest. Nothing may be reading them."""
        contents: dict[str, dict[str, str]] = {}
        for machine, disks in MACHINES.items():
            for disk, size in disks.items():
                data = _contents(f"{machine}/{disk}", size, seed)
                _write_disk(self.machines / machine / disk, data)
                contents.setdefault(machine, {})[disk] = hashlib.sha256(data).hexdigest()
        history = json.loads(self._history.read_text())
        history.append([times.show(self.now() if history else START - DAY), contents])
        self._history.write_text(json.dumps(history))

    def pass_day(self, seed: int) -> None:
        """The disks change, then a day goes by."""
        self.change(seed)
        self.set_clock(self.now() + DAY)

    # -- keeping and putting back --------------------------------------------------------------------------------------

    def keep(self, name: str) -> None:
        """Put the estate as it is aside under a name."""
        self._copy(self.root, self.root.with_name(f"{self.root.name}-{name}"))

    def put_back(self, name: str) -> Estate:
        """The estate as it was kept, at the same paths, with its clock where it stood."""
        self._copy(self.root.with_name(f"{self.root.name}-{name}"), self.root)
        self.set_clock(times.parse(self._clock.read_text().removeprefix("jump ")))
        return self

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True)

    # -- asking, in this process ---------------------------------------------------------------------------------------

    def say(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command line run here, at the estate's clock."""
        out, err = io.StringIO(), io.StringIO()
        variables = {"HOLDFAST_TEST": "1", "HOLDFAST_CLOCK": f"@{self._clock}"}
        with (
            mock.patch.dict(os.environ, variables),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main.run([str(argument) for argument in arguments])
        return code, out.getvalue(), err.getvalue()

    def ask(self, *arguments: str | Path, code: int = 0) -> Any:
        """The document that a command line run here prints; fails unless it exits with ``code``."""
        found, out, err = self.say(*arguments, "-o", "json")
        assert found == code, f"holdfast {' '.join(map(str, arguments))}: exit {found}\n{out}\n{err}"
        return json.loads(out)

    def ask_process(self, *arguments: str | Path, code: int = 0) -> Any:
        """The document that a process of the installed command prints; fails unless it exits with ``code``."""
        return self.command.json(*arguments, code=code)

    def identity(self, unit: str) -> str:
        """The UUID of a unit."""
        return str(json.loads((self.paths[unit] / "unit.json").read_text())["id"])

    def drift(self) -> set[str]:
        """Codes of the drift that a plan shows."""
        return {one["code"] for one in self.ask("plan", ".")["drift"]}

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of ``get ...``."""
        items: list[dict[str, Any]] = self.ask("get", *arguments)["items"]
        return items

    def unit_states(self) -> dict[str, str]:
        """Unit -> state."""
        return {unit["name"]: unit["state"] for unit in self.items("units")}

    def job_states(self) -> Counter[str]:
        """How many jobs are in which state."""
        return Counter(job["state"] for job in self.items("jobs"))

    # -- what the units hold -------------------------------------------------------------------------------------------

    def held(self) -> dict[str, dict[str, units.ImageLabel]]:
        """Unit -> image id -> label, read from the units alone. A unit without an identity holds nothing."""
        found: dict[str, dict[str, units.ImageLabel]] = {}
        for name, path in self.paths.items():
            if (path / "unit.json").exists():
                with contextlib.closing(opening.open_folder(path)) as unit:
                    found[name] = {held.label.id: held.label for held in unit.list()}
        return found

    def holdings(self) -> Holdings:
        """How many images of which slot of which client each unit holds."""
        return Counter(
            (unit, label.client_slug, times.show(label.slot) if label.slot else "")
            for unit, labels in self.held().items()
            for label in labels.values()
        )

    def contents_at(self, moment: dt.datetime) -> dict[str, dict[str, str]]:
        """Machine -> disk -> SHA-256 of what it held at a time."""
        found: dict[str, dict[str, str]] = {}
        for since, contents in json.loads(self._history.read_text()):
            if times.parse(since) <= moment:
                found = contents
        return found

    # -- the invariants ------------------------------------------------------------------------------------------------

    def require_bytes(self) -> int:
        """Every complete image on every unit is what its disks held at its time; how many there are."""
        count = 0
        for name, labels in self.held().items():
            with contextlib.closing(opening.open_folder(self.paths[name])) as unit:
                for label in labels.values():
                    if label.state != "Complete":
                        continue
                    expected = self.contents_at(label.time)[label.client_name]
                    with contextlib.closing(unit.open(label.id)) as image:
                        found = {disk.name: _digest(image, disk.name) for disk in image.label.disks}
                    assert found == expected, f"{label.id} on {name} is not what its disks held at {label.time}"
                    count += 1
        return count

    def require_agreement(self) -> None:
        """The catalog's complete copies and the units' images are the same set."""
        copies = {(c["unit"], c["image"]) for c in self.items("copies") if c["state"] == "Complete"}
        assert copies == {(unit, image) for unit, labels in self.held().items() for image in labels}

    def require_tidy(self) -> None:
        """No unfinished name on any unit, no writer registered, a pool that is whole and has nothing to give back."""
        leftovers = [path for root in self.paths.values() for path in root.rglob("*") if _unfinished(path)]
        assert leftovers == [], "left behind on a unit"
        assert self.ask("pool", "stats", "pool")["reclaimableBytes"] == 0
        assert self.ask("pool", "check", "pool")["done"]

    def require_converged(self) -> None:
        """Nothing to do, nothing running, catalog and units agree, nothing left behind, every byte right."""
        plan = self.ask("plan", "--detailed-exitcode", ".")
        assert not plan["summary"]["changes"]
        states = self.job_states()
        assert not states["Running"] and not states["Queued"], states
        self.require_agreement()
        self.require_tidy()
        self.require_bytes()


def _contents(name: str, size: int, seed: int) -> bytes:
    """A disk's bytes: vm1 is new throughout with every seed, the rest changes in one place; there are holes."""
    first = random.Random(f"{name}:{seed if name.startswith('vm1') else 0}")
    data = bytearray(size)
    data[: size // 2] = first.randbytes(size // 2)
    data[-4096:] = first.randbytes(4096)
    later = random.Random(f"{name}:{seed}:later").randbytes(100_000)
    data[300_000:400_000] = later
    return bytes(data)


def _write_disk(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = path.parent / f".{path.name}.new"
    raw.write_bytes(data)
    if path.suffix == ".qcow2":
        image = raw.with_suffix(".qcow2")
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)], check=True)
        image.replace(path)
        raw.unlink()
    else:
        raw.replace(path)


def _digest(image: units.StoredImage, name: str) -> str:
    """SHA-256 of a stored disk, holes included."""
    with contextlib.closing(image.disk(name)) as disk:
        data = bytearray(disk.size)
        for offset, length in disk.extents():
            data[offset : offset + length] = disk.pread(offset, length)
    return hashlib.sha256(data).hexdigest()


def _unfinished(path: Path) -> bool:
    if path.name.startswith((".", "tmp")) or path.name.endswith((".tmp", ".new")):
        return True
    return path.parent.name == "writers"
