"""One lab and the way to freeze its machines: what ``freezing`` is asked, by whom, and what came of it."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import virtual_estates

from reconciler.api import vcenters
from reconciler.base import clocks, disks, extents, meters
from reconciler.sources import hooks, machines
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.inventory import lookups
from reconciler.sources.vsphere.reading import freezing, readings

MIB = 1 << 20
OWNER = "catalog-1"
#: A disk of four places that are not zero.
SIZE = 8 * MIB


class Ledger:
    """Remembers every call, and what is noted now."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.open: dict[str, machines.Snapshot] = {}

    def intend(self, snapshot: machines.Snapshot) -> None:
        self.calls.append(("intend",))
        self.open[snapshot.id] = snapshot

    def made(self, id: str, reference: str) -> None:
        assert id in self.open
        self.calls.append(("made", reference))

    def read_by(self, id: str, process: int) -> None:
        assert id in self.open
        self.calls.append(("read_by", str(process)))

    def gone(self, id: str) -> None:
        self.calls.append(("gone",))
        self.open.pop(id, None)

    @property
    def words(self) -> list[str]:
        """The calls by name."""
        return [call[0] for call in self.calls]


class Bench:
    """A lab, a session with it, and somebody who asks."""

    def __init__(self, lab: virtual_estates.vsphere_labs.Lab, **vcenter: Any) -> None:
        self.lab = lab
        text = json.loads(lab.vcenter_yaml(**vcenter))
        self.vcenter = vcenters.VCenter.model_validate(text)
        self.session = sessions.Session("lab", self.vcenter.spec)
        self.ledger = Ledger()
        self.lines: list[str] = []
        self.meter = meters.Meter()
        self.clock: clocks.Clock = clocks.SystemClock()
        self.dice = random.Random(7)

    @property
    def log(self) -> str:
        """All that was logged."""
        return "\n".join(self.lines)

    def asked(self) -> machines.Asked:
        """A job."""
        return machines.Asked(
            owner=OWNER, job="j-000001", ledger=self.ledger, meter=self.meter, log=self.lines.append, clock=self.clock
        )

    def machine(self, vm: str = "vm1") -> lookups.Machine:
        """A machine as the product finds it."""
        uuid = self.lab.machine(vm)["instanceUuid"]
        return lookups.find(self.session, lookups.client_id(uuid))

    def noted(self, id: str, vm: str = "vm1", **more: Any) -> machines.Snapshot:
        """A snapshot of ours as the ledger has it."""
        found = self.lab.machine(vm)
        return machines.Snapshot(
            id=id, vcenter="lab", machine=f"vsphere:{found['instanceUuid']}", machine_name=vm, place=found["moref"],
            job="j-000001", **more,
        )  # fmt: skip

    @contextlib.contextmanager
    def frozen(
        self, vm: str = "vm1", commands: hooks.Hooks | None = None, **source: Any
    ) -> Iterator[readings.VmReading]:
        """A reading."""
        wanted = vcenters.VMware.model_validate({"vcenter": "lab", "include": [{"name": "*"}], **source})
        reading = freezing.freeze(self.session, wanted, self.machine(vm), commands, self.asked())
        with contextlib.closing(reading):
            yield reading

    def references(self, vm: str = "vm1") -> list[str]:
        """References of the machine's snapshots."""
        return [one["moref"] for one in self.lab.machine(vm)["snapshots"]]

    def snapshot_of_others(self, vm: str = "vm1", **named: str) -> str:
        """Somebody else's; its reference."""
        return str(self.lab.act(vm, "foreignSnapshot", **named)["snapshot"])

    def writes(self, vm: str = "vm1", disk: str = "Hard disk 1", *, places: int = 3) -> None:
        """The guest writes."""
        size = next(one["sizeBytes"] for one in self.lab.machine(vm)["disks"] if one["label"] == disk)
        for _ in range(places):
            offset = self.dice.randrange(size // 512) * 512
            self.lab.write(
                vm, disk, offset, self.dice.randbytes(min(self.dice.choice((512, 9000, 130_000)), size - offset))
            )


@contextlib.contextmanager
def bench(folder: Path, *, vcenter: Mapping[str, Any] | None = None, **machine: Any) -> Iterator[Bench]:
    """A lab with the machine ``vm1``, whose first disk holds something."""
    machine.setdefault("disks", [{"label": "Hard disk 1", "sizeBytes": SIZE}])
    given = {"name": "vm1", "changeTracking": True, **machine}
    with (
        virtual_estates.vsphere_labs.Lab.start(folder / "lab", machines=[given], taskMillis=5) as lab,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in lab.environment().items():
            patch.setenv(name, value)
        made = Bench(lab, **(vcenter or {}))
        try:
            for offset in (0, MIB + 4096, 3 * MIB + 700 * 1024, SIZE - 512):
                lab.write("vm1", "Hard disk 1", offset, made.dice.randbytes(512))
            yield made
        finally:
            made.session.logout()


def content(disk: disks.Disk) -> bytes:
    """What a backup of the whole disk holds: its extents read, zeros elsewhere."""
    found = bytearray(disk.size)
    for offset, length in extents.pieces(extents.align(disk.extents(), MIB, disk.size), MIB):
        found[offset : offset + length] = disk.pread(offset, length)
    return bytes(found)


def applied(parent: bytes, disk: disks.Disk, changed: extents.Extents) -> bytes:
    """What an incremental comes to over its parent: blocks are read whole."""
    found = bytearray(parent)
    for offset, length in extents.align(changed, MIB, disk.size):
        found[offset : offset + length] = disk.pread(offset, length)
    return bytes(found)
