"""An estate of virtual machines: a lab as its vCenter, two units, one policy, a clock of its own.

Commands run as processes of the installed program; ``bytes_of`` gives what an image holds, so that a test can compare
it with what the guest had.
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
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from holdfast_command import ROOT, Command

from reconciler.base import times
from reconciler.cli import main

sys.path.insert(0, str(ROOT / "hack"))
import vsphere_labs

MIB = 1 << 20
START = dt.datetime(2026, 11, 20, 20, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(hours=24, minutes=20)

UNITS = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: fast}
spec: {type: Directory, path: units/fast, failureDomain: one, maxConcurrentJobs: 20}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: pool}
spec: {type: DedupePool, path: units/pool, failureDomain: two, maxConcurrentJobs: 20}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: standard}
spec:
  operations:
    - {name: land, type: Backup, storage: STORAGE, retention: {type: Forever}}
"""


def machines(count: int, *, size: int = 4 * MIB, disks: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Machines ``vm1`` to ``vmN`` of empty disks."""
    labels = [f"Hard disk {number}" for number in range(1, disks + 1)]
    return [
        {"name": f"vm{number}", "disks": [{"label": label, "sizeBytes": size} for label in labels], **more}
        for number in range(1, count + 1)
    ]


class VirtualEstate:
    """One estate below ``root`` whose machines a lab holds."""

    def __init__(self, root: Path, lab: vsphere_labs.Lab) -> None:
        self.root, self.lab = root, lab
        self.folder = root / "estate"
        self.clock = root / "clock"
        self.command = Command(folder=self.folder, variables=lab.environment()).at(f"@{self.clock}")
        self._dice = random.Random(str(root.name))

    def build(
        self,
        *,
        vcenter: Mapping[str, Any] | None = None,
        source: Mapping[str, Any] | None = None,
        transports: Sequence[str] = ("datastore",),
        storage: str = "fast",
        **policy: Any,
    ) -> VirtualEstate:
        """Manifests, empty units, the clock at ``START``. Called again it writes the manifests anew."""
        for name in ("fast", "pool"):
            (self.folder / "units" / name).mkdir(parents=True, exist_ok=True)
        wanted = {"vcenter": "lab", "include": [{"name": "*"}], **(source or {})}
        spec = {
            "source": {"vmware": wanted},
            "schedules": [{"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "90d"}],
            "lifecycle": "standard",
            "retries": {"count": 0},
            **policy,
        }
        document = {
            "apiVersion": "holdfast/v1alpha1",
            "kind": "BackupPolicy",
            "metadata": {"name": "vms"},
            "spec": spec,
        }
        center = self.lab.vcenter_yaml(transports, **(vcenter or {}))
        parts = (UNITS.replace("STORAGE", storage), center, json.dumps(document, indent=2))
        (self.folder / "estate.yaml").write_text("---\n".join(parts))
        if not self.clock.exists():
            self.set_clock(START)
        return self

    def set_clock(self, moment: dt.datetime) -> None:
        """Move the clock of every process that follows it."""
        fresh = self.root / "clock.new"
        fresh.write_text(times.show(moment))
        fresh.replace(self.clock)

    def now(self) -> dt.datetime:
        """What the clock shows."""
        passed = dt.datetime.now(dt.UTC) - dt.datetime.fromtimestamp(self.clock.stat().st_mtime, dt.UTC)
        return times.parse(self.clock.read_text()) + passed

    def pass_day(self) -> None:
        """The next slot comes."""
        self.set_clock(self.now() + DAY)

    # -- guests ----------------------------------------------------------------------------------------------------------

    def guest_writes(self, vm: str, disk: str = "Hard disk 1", *, places: int = 3) -> None:
        """Some blocks of a disk get other bytes."""
        size = next(one["sizeBytes"] for one in self.lab.machine(vm)["disks"] if one["label"] == disk)
        for _ in range(places):
            offset = self._dice.randrange(size // 4096) * 4096
            self.lab.write(vm, disk, offset, self._dice.randbytes(min(4096 * self._dice.randint(1, 8), size - offset)))

    def contents(self) -> dict[str, dict[str, str]]:
        """Machine -> label -> SHA-256 of what its disk holds now."""
        return {
            machine["name"]: {
                disk["label"]: _sha(self.lab.content(machine["name"], disk["label"])) for disk in machine["disks"]
            }
            for machine in self.lab.state()["machines"]
        }

    # -- asking ----------------------------------------------------------------------------------------------------------

    def apply(self, code: int | None = 0) -> str:
        """One pass; what it said on both streams."""
        done = self.command.run("apply", "--yes", ".", code=code, timeout=300)
        return done.stdout + done.stderr

    def items(self, *words: str) -> list[dict[str, Any]]:
        """The items of ``holdfast get ...``, asked in this process: it changes nothing, and Python is slow to start."""
        out = io.StringIO()
        with (
            mock.patch.dict(os.environ, self.command.variables),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
        ):
            code = main.run(["get", *words, "-o", "json"])
        assert code == 0, words
        found: list[dict[str, Any]] = json.loads(out.getvalue())["items"]
        return found

    def snapshots(self) -> list[tuple[str, str]]:
        """(machine, snapshot name) of every snapshot in the lab."""
        return [
            (machine["name"], one["name"]) for machine in self.lab.state()["machines"] for one in machine["snapshots"]
        ]

    def bytes_of(self, client: str, image: str) -> dict[str, str]:
        """Label -> SHA-256 of every disk of an image, restored by the command."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        try:
            made = self.command.json("restore", client, "--image", image, "--to", folder)
            return {disk["name"]: _sha(Path(disk["path"]).read_bytes()) for disk in made["disks"]}
        finally:
            shutil.rmtree(folder)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
