"""What is captured of a machine, from the snapshot's configuration and not from what it is now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import virtual_estates
from pyVmomi import vim
from vm_restores import DATACENTER, MIB, UUID, World, machine

from reconciler.sources.vsphere.blueprints import blueprints, configurations
from reconciler.sources.vsphere.connections import properties, sessions

DISKS: list[dict[str, Any]] = [
    {"label": "Hard disk 1", "controller": "scsi0:0", "sizeBytes": 5 * MIB, "thin": False},
    {"label": "Hard disk 2", "controller": "nvme0:1", "sizeBytes": 2 * MIB},
    {
        "label": "Hard disk 3",
        "controller": "scsi1:2",
        "sizeBytes": 4 * MIB,
        "kind": "rdm",
        "rdm": {"compatibility": "virtualMode", "lun": "naa.60001"},
    },
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A vCenter with a machine of many devices and one without nvram."""
    machines = [
        machine(
            1, disks=DISKS, cpus=2, memoryMB=2048, annotation="of the\nERP", pool="gold pool", tags=["backup/gold"]
        ),
        machine(2, nvram=False, vtpm=True),
    ]
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=machines, datacenters=[DATACENTER], taskMillis=1
    ) as lab:
        for name, value in lab.environment().items():
            monkeypatch.setenv(name, value)
        yield World(tmp_path, lab)
        sessions.close_all()


def _captured(world: World, vm: str, snapshot: Any = None, **more: Any) -> blueprints.Blueprint:
    text = configurations.capture(world.session, world.reference(vm), snapshot, **more)
    return blueprints.parse(text, "image i1")


def test_everything_that_makes_the_machine_is_there(world: World) -> None:
    found = _captured(world, "vm1", mapped=["Hard disk 3"])
    assert (found.name, found.instance_uuid, found.firmware) == ("vm1", f"{UUID}1", "efi")
    assert (found.cpus, found.memory_mib, found.annotation) == (2, 2048, "of the\nERP")
    assert found.place == blueprints.Place(
        vcenter="lab",
        datacenter="/DC0",
        folder="/DC0/vm/gold",
        pool="/DC0/host/C0/Resources/gold pool",
        host="esx1",
        compute="C0",
        vmx="[ds1] vm1/vm1.vmx",
    )
    assert found.attributes == {"owner": "x"}
    assert found.tags == ("backup/gold",)
    assert [(one.label, one.slot, one.size, one.kind, one.thin) for one in found.disks[:2]] == [
        ("Hard disk 1", "scsi0:0", 5 * MIB, "Flat", False),
        ("Hard disk 2", "nvme0:1", 2 * MIB, "Flat", True),
    ]
    raw = found.disks[2]
    assert (raw.kind, raw.mapping_file) == ("RawVirtual", True)
    assert "naa.60001" in (raw.lun or "") or raw.lun
    kinds = {one.key: one.type for one in found.controllers}
    assert [kinds[one.controller] for one in found.disks] == [
        "ParaVirtualSCSIController",
        "VirtualNVMEController",
        "ParaVirtualSCSIController",
    ]
    assert found.vmx is not None
    assert b'displayName = "vm1"' in found.vmx.content()
    assert found.nvram is not None
    assert found.nvram.content().startswith(b"NVRAM of vm1")
    assert found.notes == ()


def test_it_is_the_snapshots_configuration_that_counts(world: World) -> None:
    vm = world.reference("vm1")
    snapshot = properties.wait(world.session, vm.CreateSnapshot_Task("s", "", False, False), "test")
    change = vim.vm.ConfigSpec(memoryMB=4096, annotation="later")
    properties.wait(world.session, vm.ReconfigVM_Task(change), "test")
    found = _captured(world, "vm1", snapshot)
    assert (found.memory_mib, found.annotation) == (2048, "of the\nERP")
    assert found.disks[0].file == "[ds1] vm1/vm1.vmdk"


def test_what_cannot_be_had_is_a_note(world: World) -> None:
    found = _captured(world, "vm2")
    assert found.nvram is None
    assert [note for note in found.notes if "vm2.nvram was not fetched" in note]
    assert found.vmx is not None
    world.lab.fault(on="GET /folder", kind="http503", count=1)
    assert _captured(world, "vm2").vmx is not None
    world.lab.fault(on="GET /folder", kind="http503", count=0)
    assert _captured(world, "vm2").vmx is None


def test_settings_of_the_host_are_left_and_those_of_people_kept(world: World) -> None:
    settings = {
        "guestinfo.role": "db",
        "ethernet0.pciSlotNumber": "192",
        "vmware.tools.internalversion": "1",
        "sched.swap.derivedName": "/vmfs/x",
        "scsi0:0.ctkEnabled": "TRUE",
        "holdfast.restore": "{}",
    }
    options = [vim.option.OptionValue(key=key, value=value) for key, value in settings.items()]
    properties.wait(world.session, world.reference("vm1").ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=options)), "x")
    kept = _captured(world, "vm1").extra
    assert {key: kept.get(key) for key in settings if key in kept} == {
        "guestinfo.role": "db",
        "ethernet0.pciSlotNumber": "192",
    }
