"""What tests of restores into a vCenter share: machines with data, images of them in a unit, and what came back."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import virtual_estates
from holdfast_command import Command
from pyVmomi import vim

from reconciler.api import vcenters
from reconciler.base import disks, meters
from reconciler.operations import machinerestores
from reconciler.sources import machinetargets, opening
from reconciler.sources.vsphere.blueprints import configurations
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.storage import opening as storage
from reconciler.storage import units

MIB = virtual_estates.MIB
NOW = dt.datetime(2026, 11, 24, 6, 0, tzinfo=dt.UTC)
UUID = "5030a5b0-1111-4000-8000-00000000000"
IMAGE = "vm1-20261124"
OWNER = "11111111-1111-4111-8111-111111111111"
DATACENTER = {
    "name": "DC0",
    "clusters": [{"name": "C0", "hosts": ["esx1", "esx2"]}],
    "hosts": ["esx3"],
    "datastores": [
        {"name": "ds1", "type": "VMFS"},
        {"name": "ds2", "type": "NFS"},
        {"name": "vs1", "type": "vsan"},
    ],
    "folders": ["gold", "templates", "restored"],
}


def machine(number: int = 1, **more: Any) -> dict[str, Any]:
    """A machine with two disks on two kinds of controller, one of no whole number of MiB."""
    return {
        "name": f"vm{number}",
        "instanceUuid": f"{UUID}{number}",
        "folder": "gold",
        "host": "esx1",
        "datastore": "ds1",
        "firmware": "efi",
        "attributes": {"owner": "x"},
        "disks": [
            {"label": "Hard disk 1", "controller": "scsi0:0", "sizeBytes": 5 * MIB},
            {"label": "Hard disk 2", "controller": "sata0:1", "sizeBytes": 2 * MIB + 512 * 8},
        ],
        **more,
    }


class World:
    """A lab, a session with it, a unit beside it with an image of ``vm1``, and the real command."""

    def __init__(self, root: Path, lab: Any, transports: Sequence[str] = ("datastore",)) -> None:
        self.root, self.lab = root, lab
        text = lab.vcenter_yaml(transports)
        self.vcenter = vcenters.VCenter.model_validate_json(text)
        self.session = sessions.of(self.vcenter)
        self.folder = root / "estate"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "vcenter.yaml").write_text(text)
        self.command = Command(folder=self.folder, variables=lab.environment())
        self.unit = root / "unit"
        self.label: units.ImageLabel
        self.contents: dict[str, bytes] = {}

    def reference(self, vm: str) -> Any:
        """The machine for calls of one's own."""
        return self.session.object(vim.VirtualMachine, self.lab.machine(vm)["moref"])

    def config(self, vm: str) -> Any:
        """Its configuration as the API shows it."""
        return properties.of(self.session, self.reference(vm), ("config",), "test")["config"]

    def fill(self, vm: str) -> None:
        """Data in a few places of every disk."""
        dice = random.Random(vm)
        for one in self.lab.machine(vm)["disks"]:
            for _ in range(4):
                offset = dice.randrange(one["sizeBytes"] // 512) * 512
                length = min(dice.randrange(1, 200) * 512, one["sizeBytes"] - offset)
                self.lab.write(vm, one["label"], offset, dice.randbytes(length))

    def back_up(self, vm: str = "vm1", *, leave: Sequence[str] = (), **changes: Any) -> None:
        """Store what the machine is now as the image of a new unit; ``changes``: fields of the label."""
        found = self.lab.machine(vm)
        slots = {one["label"]: one["slot"] for one in found["disks"]}
        self.contents = {label: self.lab.content(vm, label) for label in slots if label not in leave}
        shutil.rmtree(self.unit, ignore_errors=True)
        self.unit.mkdir()
        declared = storage.declared("unit", "Directory", str(self.unit), None, None)
        label = units.ImageLabel(
            id=IMAGE, client_id=f"vsphere:{found['instanceUuid']}", client_name=vm, client_slug=vm,
            source=f"vsphere:lab/{vm}", policy="vms", schedule="daily", lifecycle="standard", operation="land", copy=1,
            type="Full", state="Complete", time=NOW, sequence=1, slot=NOW, revision="r", parent=None,
            changes="FullRead", consistency="Snapshot",
            configuration=configurations.capture(self.session, self.reference(vm), None),
        )  # fmt: skip
        label = dataclasses.replace(label, **changes)
        storage.prepare(declared, OWNER)
        with contextlib.closing(storage.open_unit(declared, owner=OWNER)) as unit:
            writer = unit.begin(label, list(self.contents))
            for name, data in self.contents.items():
                writer.write(disks.MemoryDisk(name, data), meter=meters.Meter())
            self.label = writer.commit(label).label

    def plan(self, **wanted: Any) -> machinetargets.MachineTarget:
        """The target that a restore of the image would have."""
        sizes = {one.name: one.size for one in self.label.disks}
        asked = machinetargets.Wanted(image=IMAGE, **{"disks": sizes, **wanted})
        return opening.machine_target(self.vcenter, self.label.configuration, asked, NOW)

    def restore(self, phase: Callable[[str], None] = str, **wanted: Any) -> machinetargets.MachineTarget:
        """Restore the image in this process."""
        target = self.plan(**wanted)
        with (
            contextlib.closing(storage.open_folder(self.unit)) as unit,
            contextlib.closing(unit.open(IMAGE)) as stored,
        ):
            machinerestores.restore(stored.label.disks, stored, target, meters.Meter(), phase)
        return target

    def run(self, *words: str, code: int | None = 0, **variables: str) -> Any:
        """The command, from the unit alone; what it printed."""
        command = self.command.using(HOLDFAST_TEST="1", **variables)
        return command.run("restore", "--unit", self.unit, IMAGE, "--vcenter", "lab", *words, code=code)

    def names(self) -> list[str]:
        """Every machine there is."""
        return sorted(one["name"] for one in self.lab.state()["machines"])

    def halfmade(self) -> list[str]:
        """Those that a restore left behind."""
        return [name for name in self.names() if ".holdfast-" in name]

    def prove(self, name: str, original: str = "vm1") -> None:
        """The machine holds the image's bytes, each disk where it was, and no snapshot is left."""
        found = self.lab.machine(name)
        assert found["snapshots"] == []
        assert not found["consolidationNeeded"]
        blueprint = opening.machine_blueprint(self.label.configuration, IMAGE)
        slots = {one.slot: one.label for one in blueprint.disks if one.label in self.contents}
        assert {one["slot"] for one in found["disks"]} == set(slots)
        for one in found["disks"]:
            assert self.lab.content(name, one["label"]) == self.contents[slots[one["slot"]]], one["slot"]

    def files(self) -> set[str]:
        """Every file and folder of the datastores, relative to the lab's folder."""
        return {str(path.relative_to(self.lab.folder)) for path in (self.lab.folder).rglob("*holdfast-*")}
