"""Snapshots of the lab freeze disks: what the guest writes afterwards is not in them, and is there when they are gone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim, vmodl

MIB = 1 << 20
BLOCK = 64 << 10


def content(seed: int, size: int = 3 * MIB) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("snapshots")
    (folder / "raw").write_bytes(content(1) + bytes(MIB))
    lun = folder / "lun"
    lun.write_bytes(content(2, MIB))
    (folder / "lun2").write_bytes(content(3, MIB))
    raw = {"from": str(folder / "raw")}
    machines: list[dict[str, Any]] = [
        {"name": name, "changeTracking": True, "disks": [raw, {"sizeBytes": MIB, "controller": "sata0:0"}]}
        for name in ("plain", "nested", "reverted", "left")
    ]
    machines += [
        {
            "name": "odd",
            "disks": [
                raw,
                {"sizeBytes": MIB, "mode": "independent_persistent"},
                {"kind": "rdm", "rdm": {"device": str(lun)}, "sizeBytes": MIB},
                {
                    "kind": "rdm",
                    "rdm": {"device": str(folder / "lun2"), "compatibility": "physicalMode"},
                    "sizeBytes": MIB,
                },
                {"kind": "sparse", "controller": "nvme0:0", **raw},
            ],
        },
        {"name": "loud", "quiesce": "fail", "disks": [raw]},
        {"name": "bare", "quiesce": "noTools", "disks": [raw]},
        {"name": "shared", "disks": [{**raw, "busSharing": "physicalSharing"}]},
        {"name": "writers", "disks": [{**raw, "sharing": "sharingMultiWriter"}]},
    ]
    with Lab.start(folder / "lab", machines=machines, taskMillis=4) as lab:
        yield lab


@pytest.fixture(scope="module")
def instance(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance


def machine(instance: Any, name: str) -> Any:
    return clients.find(instance, vim.VirtualMachine, name)


def disk_of(config: Any, key: int) -> Any:
    return next(one for one in config.hardware.device if one.key == key)


def writes(lab: Lab, vm: str, live: bytearray, seed: int, count: int = 12, disk: str = "scsi0:0") -> None:
    """Random writes of odd sizes at odd places, to the guest and to our own idea of its disk."""
    rng = random.Random(seed)
    for _ in range(count):
        at = rng.randrange(len(live) - 9000)
        data = rng.randbytes(rng.randint(1, 9000))
        live[at : at + len(data)] = data
        lab.write(vm, disk, at, data)


def folder_of(lab: Lab, vm: str) -> Path:
    return lab.folder / "datastores" / "DC0" / "ds1" / vm


def test_what_the_guest_writes_is_not_in_the_snapshot_and_is_there_afterwards(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "plain")
    live = bytearray(content(1) + bytes(MIB))
    writes(lab, "plain", live, 10)
    frozen = bytes(live)
    snapshot = clients.snapshot(vm, "one")
    base = disk_of(snapshot.config, 2000).backing
    assert base.fileName == "[ds1] plain/plain.vmdk"
    assert base.parent is None
    writes(lab, "plain", live, 11)
    assert lab.frozen("plain", "scsi0:0", snapshot._moId) == frozen
    assert (folder_of(lab, "plain") / "plain-flat.vmdk").read_bytes() == frozen, "the base is frozen as it lies"
    assert lab.content("plain", "scsi0:0") == live
    top = disk_of(vm.config, 2000).backing
    assert (top.fileName, top.parent.fileName) == ("[ds1] plain/plain-000001.vmdk", "[ds1] plain/plain.vmdk")
    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert (folder_of(lab, "plain") / "plain-flat.vmdk").read_bytes() == live
    assert disk_of(vm.config, 2000).backing.parent is None
    assert vm.snapshot is None
    assert not list(folder_of(lab, "plain").glob("*00000*"))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snapshot.config  # noqa: B018


def test_each_of_several_snapshots_is_frozen_and_any_of_them_may_go_first(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "nested")
    live = bytearray(content(1) + bytes(MIB))
    frozen, made = [], []
    for number in range(4):
        writes(lab, "nested", live, 20 + number)
        frozen.append(bytes(live))
        made.append(clients.snapshot(vm, f"number {number}"))
    writes(lab, "nested", live, 30)
    tree, names = vm.snapshot.rootSnapshotList, []
    while tree:
        assert len(tree) == 1
        names.append(tree[0].name)
        tree = tree[0].childSnapshotList
    assert names == [f"number {number}" for number in range(4)]
    assert vm.snapshot.currentSnapshot == made[3]
    left = {0, 1, 2, 3}
    for gone in (1, 3, 0, 2):
        clients.done(made[gone].RemoveSnapshot_Task(removeChildren=False))
        left.discard(gone)
        for number in left:
            assert lab.frozen("nested", "scsi0:0", made[number]._moId) == frozen[number], (gone, number)
        assert lab.content("nested", "scsi0:0") == live
        writes(lab, "nested", live, 40 + gone)
    assert lab.machine("nested")["disks"][0]["file"] == "[ds1] nested/nested.vmdk"
    assert sorted(one.name for one in folder_of(lab, "nested").glob("*.vmdk")) == [
        "nested-flat.vmdk",
        "nested.vmdk",
        "nested_1-flat.vmdk",
        "nested_1.vmdk",
    ]


def test_a_revert_throws_the_writes_away_and_makes_old_change_ids_worthless(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "reverted")
    live = bytearray(content(1) + bytes(MIB))
    first = clients.snapshot(vm, "first")
    change_id = disk_of(first.config, 2000).backing.changeId
    writes(lab, "reverted", bytearray(live), 50)
    second = clients.snapshot(vm, "second")
    writes(lab, "reverted", bytearray(live), 51)
    clients.done(first.RevertToSnapshot_Task())
    assert lab.content("reverted", "scsi0:0") == live
    assert vm.snapshot.currentSnapshot == first
    assert str(vm.runtime.powerState) == "poweredOff"
    writes(lab, "reverted", live, 52)
    third = clients.snapshot(vm, "third")
    # A tree now: second and third are both children of first.
    assert {one.name for one in vm.snapshot.rootSnapshotList[0].childSnapshotList} == {"second", "third"}
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(third, 2000, 0, change_id)
    frozen = lab.frozen("reverted", "scsi0:0", second._moId)
    clients.done(first.RemoveSnapshot_Task(removeChildren=False))
    assert lab.frozen("reverted", "scsi0:0", second._moId) == frozen
    clients.done(vm.RemoveAllSnapshots_Task())
    assert lab.content("reverted", "scsi0:0") == live
    assert not list(folder_of(lab, "reverted").glob("*00000*"))


def test_deltas_left_unmerged_are_consolidated_when_asked(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "left")
    live = bytearray(content(1) + bytes(MIB))
    snapshot = clients.snapshot(vm, "one")
    writes(lab, "left", live, 60)
    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=False))
    assert vm.snapshot is None
    assert vm.runtime.consolidationNeeded
    assert disk_of(vm.config, 2000).backing.parent is not None
    clients.done(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    assert (folder_of(lab, "left") / "left-flat.vmdk").read_bytes() == live


def test_only_disks_that_snapshots_take_along_are_frozen(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "odd")
    keys = [one.key for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    assert keys == [2000, 2001, 2002, 2003, 32000]
    before = {key: lab.content("odd", key) for key in keys}
    snapshot = clients.snapshot(vm, "one")
    after = {key: b"after %d" % key for key in keys}
    for key in keys:
        lab.write("odd", key, 5, after[key])
    same = {key for key in keys if lab.frozen("odd", key, snapshot._moId) == before[key]}
    assert same == {2000, 2002, 32000}, "not the independent one, not the raw one in physical mode"
    live = {key: disk_of(vm.config, key).backing for key in keys}
    assert {key for key in keys if live[key].parent is not None} == same
    assert live[2002].compatibilityMode == "virtualMode"
    assert isinstance(live[32000], vim.vm.device.VirtualDisk.SeSparseBackingInfo)
    clients.done(vm.RemoveAllSnapshots_Task())
    for key in keys:
        want = bytearray(before[key])
        want[5 : 5 + len(after[key])] = after[key]
        assert lab.content("odd", key) == want
    assert (lab.folder.parent / "lun").read_bytes()[5:15] == after[2002][:10], "the content lies on the LUN"


@pytest.mark.parametrize(("name", "quiesced"), [("plain", True), ("bare", False)])
def test_quiescing_is_noted_as_it_went(lab: Lab, instance: Any, name: str, quiesced: bool) -> None:
    vm = machine(instance, name)
    snapshot = clients.done(vm.CreateSnapshot_Task(name="q", description="", memory=False, quiesce=True))
    try:
        assert vm.snapshot.rootSnapshotList[0].quiesced is quiesced
    finally:
        clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))


def test_a_guest_that_cannot_be_quiesced_gets_no_snapshot(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "loud")
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        clients.done(vm.CreateSnapshot_Task(name="q", description="", memory=False, quiesce=True))
    assert vm.snapshot is None
    clients.done(vm.CreateSnapshot_Task(name="q", description="", memory=False, quiesce=False))
    clients.done(vm.RemoveAllSnapshots_Task())


@pytest.mark.parametrize("name", ["shared", "writers"])
def test_machines_that_share_disks_get_no_snapshot(lab: Lab, instance: Any, name: str) -> None:
    with pytest.raises(vim.fault.GenericVmConfigFault):
        clients.snapshot(machine(instance, name), "one")


def test_a_task_is_running_for_a_while_and_tells_its_progress(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "bare")
    lab.mode(taskMillis=200)
    try:
        task = vm.CreateSnapshot_Task(name="slow", description="", memory=False, quiesce=False)
        seen = set()
        while (state := str(task.info.state)) != "success":
            seen.add((state, task.info.progress))
        assert {state for state, _ in seen} <= {"queued", "running"}
        assert {progress for _, progress in seen} >= {1, 25, 50}
        assert task.info.entity == vm
    finally:
        lab.mode(taskMillis=4)
    clients.done(vm.RemoveAllSnapshots_Task())
