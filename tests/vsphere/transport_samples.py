"""Frozen disks of a real peer for the tests of transports, and what those disks hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from reconciler.api import vcenters
from reconciler.base import disks, meters
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.inventory import devices
from reconciler.sources.vsphere.transports import ports

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "hack"))

import vsphere_labs  # noqa: E402

Lab = vsphere_labs.Lab
MIB = 1 << 20
SIZE = 9 * MIB + 5 * 512
needs_peer = pytest.mark.skipif(bool(vsphere_labs.available()), reason=vsphere_labs.available() or "-")
needs_nbdkit = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs the Debian package nbdkit")


def content(size: int = SIZE, seed: int = 1) -> bytes:
    """Data at both ends and in the middle, holes between."""
    rng = random.Random(seed)
    data = bytearray(size)
    for start, length in ((0, size // 9), (size // 2 + 777, size // 11), (size - size // 8, size // 8)):
        data[start : start + length] = rng.randbytes(length)
    return bytes(data)


def write_raw(path: Path, data: bytes) -> Path:
    """A sparse file."""
    with path.open("wb") as file:
        file.truncate(len(data))
        for start in range(0, len(data), 65536):
            piece = data[start : start + 65536]
            if piece.strip(b"\0"):
                file.seek(start)
                file.write(piece)
    return path


@contextlib.contextmanager
def peer(folder: Path, machines: list[Mapping[str, Any]] | None = None, **settings: Any) -> Iterator[Lab]:
    """A peer with the machine ``web 1`` of two disks, on whose disks ``content()`` of seeds 1 and 2 lies."""
    folder.mkdir(parents=True, exist_ok=True)
    first = write_raw(folder / "first.raw", content())
    second = write_raw(folder / "second.raw", content(seed=2))
    web = {
        "name": "web 1",
        "changeTracking": True,
        "disks": [
            {"label": "Hard disk 1", "controller": "scsi0:0", "from": str(first)},
            {"label": "Hard disk 2", "controller": "scsi0:1", "from": str(second)},
        ],
    }
    settings.setdefault("taskMillis", 1)
    with Lab.start(folder / "peer", machines=[web, *(machines or [])], **settings) as lab:
        yield lab


def session(lab: Lab, **extra: Any) -> sessions.Session:
    """A session of its own with the peer."""
    os.environ.update(lab.environment())
    document = json.loads(lab.vcenter_yaml(**extra))
    vcenter = vcenters.VCenter.model_validate(document)
    return sessions.Session(vcenter.name, vcenter.spec)


@dataclasses.dataclass(kw_only=True)
class Snapshot:
    """A snapshot of a machine of the peer, and its disks as Frozen by label."""

    machine: Any
    reference: Any
    frozen: dict[str, ports.Frozen]
    readers: list[int]


def find(session: sessions.Session, name: str) -> Any:
    """The machine of a name."""
    machines = properties.everything(session, vim.VirtualMachine, ["name"], "find")
    (machine,) = [one.object for one in machines if one.values["name"] == name]
    return machine


def frozen_disks(session: sessions.Session, name: str, reference: str, **changes: Any) -> dict[str, ports.Frozen]:
    """The disks of a snapshot by label; ``changes`` replace fields of each."""
    machine, snapshot = find(session, name), session.object(vim.vm.Snapshot, reference)
    found = properties.of(session, snapshot, ["config.hardware.device"], "look")
    datastores = properties.everything(session, vim.Datastore, ["summary.name", "summary.type"], "look")
    types = {one.values["summary.name"]: one.values["summary.type"] for one in datastores}
    return {
        disk.label: ports.Frozen(
            **{
                "session": session,
                "machine": name,
                "reference": machine._moId,
                "datacenter": "DC0",
                "snapshot": reference,
                "disk": disk,
                "datastore_type": types[disk.datastore],
                "datastore_local": False,
                "read_by": lambda _: None,
                "meter": meters.Meter(),
                **changes,
            }
        )
        for disk in devices.disks(found["config.hardware.device"])
    }


@contextlib.contextmanager
def snapshot(
    session: sessions.Session, name: str = "web 1", *, meter: meters.Meter | None = None, **changes: Any
) -> Iterator[Snapshot]:
    """A snapshot that is removed afterwards. ``changes`` replace fields of every Frozen."""
    machine = find(session, name)
    task = session.act("snapshot", lambda: machine.CreateSnapshot_Task("t", "", memory=False, quiesce=False))
    reference = properties.wait(session, task, "snapshot")
    readers: list[int] = []
    changes = {"read_by": readers.append, "meter": meter or meters.Meter(), **changes}
    frozen = frozen_disks(session, name, reference._moId, **changes)
    try:
        yield Snapshot(machine=machine, reference=reference, frozen=frozen, readers=readers)
    finally:
        again = session.object(vim.vm.Snapshot, reference._moId)
        task = session.act("removal", lambda: again.RemoveSnapshot_Task(removeChildren=False))
        properties.wait(session, task, "removal")


def with_disk(frozen: ports.Frozen, **changes: Any) -> ports.Frozen:
    """The same with another disk."""
    return dataclasses.replace(frozen, disk=dataclasses.replace(frozen.disk, **changes))


def whole(disk: disks.Disk, step: int = MIB) -> bytes:
    """Every byte, read in steps."""
    return b"".join(bytes(disk.pread(offset, min(step, disk.size - offset))) for offset in range(0, disk.size, step))


def by_extents(disk: disks.Disk) -> bytes:
    """Every byte, where only the extents are read."""
    found = bytearray(disk.size)
    for offset, length in disk.extents():
        found[offset : offset + length] = disk.pread(offset, length)
    return bytes(found)
