"""A machine staged as a folder: a vCenter registers it, and it holds the image's bytes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from vm_restores import IMAGE, MIB, UUID, World

from reconciler.base import digests, errors, meters
from reconciler.operations import restorestages, restoreworks
from reconciler.sources.vsphere.blueprints import blueprints, staging
from reconciler.sources.vsphere.connections import datastorefiles, properties
from reconciler.sources.vsphere.inventory import ancestry
from reconciler.storage import opening as storage


def _stage(world: World, *words: str, code: int = 0) -> Any:
    done = world.command.run(
        "restore", "--unit", world.unit, IMAGE, "--to", world.root / "out", "--staged", "-o", "json", *words, code=code
    )
    return json.loads(done.stdout) if code == 0 else done.stderr


def _register(world: World, folder: Path) -> None:
    """Upload the folder, as an administrator would, and register it."""
    center = ancestry.nearest(ancestry.above(world.session, world.reference("vm1"), "test"), vim.Datacenter)
    assert center is not None
    world.session.content.fileManager.MakeDirectory("[ds1] staged", center.object, True)
    for file in sorted(folder.iterdir()):
        place = datastorefiles.Place(datacenter="DC0", datastore="ds1", path=f"staged/{file.name}")
        data = file.read_bytes()
        datastorefiles.send(world.session, place, lambda data=data: [data], len(data), "test")
    vm = world.reference("vm1")
    shown = properties.of(world.session, vm, ("parent", "resourcePool"), "test")
    world.lab.act("vm1", "destroy")
    task = shown["parent"].RegisterVM_Task(path="[ds1] staged/vm1.vmx", asTemplate=False, pool=shown["resourcePool"])
    properties.wait(world.session, task, "test")


def test_a_staged_folder_is_a_machine(world: World) -> None:
    nvram = blueprints.parse(world.label.configuration or "", IMAGE).nvram
    assert nvram is not None
    document = _stage(world)
    folder = world.root / "out"
    assert document["format"] == "staged"
    assert {path.name for path in folder.iterdir()} == {
        "vm1.vmx", "vm1.nvram", "vm1.vmdk", "vm1-flat.vmdk", "vm1_1.vmdk", "vm1_1-flat.vmdk",
    }  # fmt: skip
    for disk in document["disks"]:
        assert disk["verified"]
        data = Path(disk["path"]).read_bytes()
        assert data == world.contents[disk["name"]]
        blocks = b"".join(digests.digest(data[at : at + MIB]) for at in range(0, len(data), MIB))
        assert disk["digest"] == digests.disk_digest(blocks)
    assert (folder / "vm1.nvram").read_bytes() == nvram.content()
    _register(world, folder)
    world.prove("vm1")
    found = world.lab.machine("vm1")
    assert (found["instanceUuid"], found["firmware"]) == (f"{UUID}1", "efi")


def test_a_machine_without_its_vmx_is_staged_from_its_devices(world: World) -> None:
    blueprint = blueprints.parse(world.label.configuration or "", IMAGE)
    bare = blueprint.model_copy(update={"vmx": None, "nvram": None})
    world.back_up(configuration=bare.write())
    document = _stage(world)
    assert any("no vmx was captured" in note for note in document["notes"])
    _register(world, world.root / "out")
    world.prove("vm1")


def test_nothing_is_overwritten_unasked(world: World) -> None:
    _stage(world)
    before = {path.name: path.stat().st_mtime_ns for path in (world.root / "out").iterdir()}
    assert "exists" in _stage(world, code=4)
    assert {path.name: path.stat().st_mtime_ns for path in (world.root / "out").iterdir()} == before
    _stage(world, "--force")


def test_what_a_killed_attempt_had_named_is_kept_and_the_rest_is_made(world: World) -> None:
    folder = world.root / "out"
    folder.mkdir()

    def stage(*, again: bool) -> restoreworks.Outcome:
        work = restorestages.Staged(to=folder, names=(), force=False, read_back=False, units=(), again=again)
        with (
            contextlib.closing(storage.open_folder(world.unit)) as unit,
            contextlib.closing(unit.open(IMAGE)) as stored,
        ):
            work.plan(stored)
            work.run(stored, meters.Meter(), str)
        return work.outcome()

    (folder / "vm1.vmx").write_text("of somebody else")
    with pytest.raises(errors.TargetExists):
        stage(again=True)
    (folder / "vm1.vmx").unlink()
    stage(again=False)
    # Descriptors bear a number of their own each time.
    whole = {path.name: len(path.read_bytes()) for path in folder.iterdir()}
    for name in ("vm1.vmx", "vm1_1-flat.vmdk"):
        (folder / name).unlink()
    kept = (folder / "vm1-flat.vmdk").stat().st_ino
    with pytest.raises(errors.TargetExists):
        stage(again=False)
    assert [disk.resumed_bytes > 0 for disk in stage(again=True).disks] == [True, False]
    assert {path.name: len(path.read_bytes()) for path in folder.iterdir()} == whole
    assert (folder / "vm1_1-flat.vmdk").read_bytes() == world.contents["Hard disk 2"]
    assert (folder / "vm1-flat.vmdk").stat().st_ino == kept
    (folder / "vm1-flat.vmdk").write_bytes(b"of somebody else")
    with pytest.raises(errors.TargetExists, match="not what the image holds"):
        stage(again=True)


def test_one_disk_alone_leaves_the_other_out_of_the_vmx(world: World) -> None:
    document = _stage(world, "--disk", "Hard disk 2")
    assert any("Hard disk 1 is not restored" in note for note in document["notes"])
    text = (world.root / "out" / "vm1.vmx").read_text()
    assert "scsi0:0." not in text
    assert 'sata0:1.fileName = "vm1.vmdk"' in text


def test_a_captured_vmx_keeps_its_settings_and_loses_its_past() -> None:
    lines = (
        'displayName = "vm1"',
        'scsi0:0.fileName = "vm1-000002.vmdk"',
        'scsi0:0.mode = "persistent"',
        'scsi0:0.redo = ""',
        'uuid.location = "56 4d"',
        'sched.swap.derivedName = "/vmfs/x.vswp"',
        'ctkEnabled = "TRUE"',
        'guestinfo.note = "a = b"',
        "# a remark",
        'scsi0:1.fileName = "other.vmdk"',
        'scsi0:1.present = "TRUE"',
    )
    text = "\n".join(lines)
    disks = tuple(
        blueprints.Disk(
            label=f"Hard disk {unit + 1}", controller=1000, unit=unit, slot=f"scsi0:{unit}", size=MIB, kind="Flat",
            mode="persistent", thin=True,
        )
        for unit in (0, 1)
    )  # fmt: skip
    blueprint = blueprints.Blueprint(
        name="vm1", instance_uuid="", bios_uuid="", guest_id="other", version="vmx-14", cpus=1, memory_mib=64,
        disks=disks, place=blueprints.Place(vcenter="vc"), vmx=blueprints.Packed.of("vm1.vmx", text.encode()),
    )  # fmt: skip
    made = staging.vmx(blueprint, staging.folder(blueprint, ["Hard disk 1"]))
    assert made.splitlines() == [
        'displayName = "vm1"',
        'guestinfo.note = "a = b"',
        'nvram = "vm1.nvram"',
        'scsi0:0.present = "TRUE"',
        'scsi0:0.deviceType = "scsi-hardDisk"',
        'scsi0:0.fileName = "vm1.vmdk"',
    ]


def test_paths_lead_up_to_the_root(world: World) -> None:
    way = ancestry.above(world.session, world.reference("vm1"), "test")
    assert ancestry.path(way) == "/DC0/vm/gold/vm1"
