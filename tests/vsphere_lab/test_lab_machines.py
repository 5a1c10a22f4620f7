"""Machines of the lab are made, registered, changed, moved and removed as a restore does it, with real files."""

from __future__ import annotations

import base64
import contextlib
import random
import urllib.parse
from collections.abc import Iterator
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim, vmodl

MIB = 1 << 20
CONTENT = random.Random(3).randbytes(2 * MIB)
DATACENTERS = [
    {
        "name": "DC0",
        "clusters": [{"name": "C0", "hosts": ["esx1", "esx2"], "pools": ["small"]}],
        "hosts": ["esx3"],
        "datastores": [
            {"name": "ds1", "freeBytes": 5 << 30},
            {"name": "nfs", "type": "NFS"},
            {"name": "vsan", "type": "vsan", "hosts": ["esx1", "esx2"]},
        ],
        "folders": ["gold", "restored"],
    },
    {"name": "DC1"},
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("machines")
    (folder / "raw").write_bytes(CONTENT)
    raw = {"from": str(folder / "raw")}
    names = ("source", "away", "vsan", "gone", "failed", "template", "clone of template")
    machines: list[dict[str, Any]] = [
        {"name": name, "folder": "gold", "powerState": "poweredOff", "changeTracking": True, "disks": [raw]}
        for name in names
    ]
    machines[2]["datastore"] = "vsan"
    machines[5]["template"] = True
    machines.append({"name": "running", "disks": [raw]})
    machines.append({"name": "elsewhere", "datacenter": "DC1"})
    with Lab.start(folder / "lab", machines=machines, datacenters=DATACENTERS, taskMillis=4) as lab:
        yield lab


@pytest.fixture(scope="module")
def instance(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance


def machine(instance: Any, name: str) -> Any:
    return clients.find(instance, vim.VirtualMachine, name)


def at(instance: Any, path: str) -> Any:
    found = instance.content.searchIndex.FindByInventoryPath(path)
    assert found is not None, path
    return found


def pool(instance: Any) -> Any:
    return at(instance, "DC0/host/C0/Resources")


def upload(lab: Lab, path: str, body: bytes, store: str = "ds1") -> int:
    secret = base64.b64encode(f"{lab.username}:{lab.password}".encode()).decode()
    target = f"/folder/{urllib.parse.quote(path)}?dcPath=DC0&dsName={store}"
    with contextlib.closing(clients.connection(lab)) as link:
        link.request("PUT", target, body, {"Authorization": f"Basic {secret}"})
        answer = link.getresponse()
        answer.read()
        return answer.status


def add(device: Any, operation: str | None = None) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation=operation, device=device)


def disk(file: str, controller: int, unit: int | None, size: int = 0, key: int = -10, **backing: Any) -> Any:
    return vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=size // 1024,
        capacityInBytes=size or None,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=file, diskMode=backing.pop("mode", "persistent"), **backing
        ),
    )


SCSI = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")


def create(
    instance: Any, name: str, *devices: Any, path: str = "[ds1]", folder: str = "restored", **config: Any
) -> Any:
    spec = vim.vm.ConfigSpec(
        name=name, guestId="otherGuest64", files=vim.vm.FileInfo(vmPathName=path), deviceChange=list(devices), **config
    )
    return clients.done(at(instance, f"DC0/vm/{folder}").CreateVM_Task(spec, pool(instance)))


def drives(vm: Any) -> list[Any]:
    return [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]


def test_a_machine_is_made_with_its_devices(lab: Lab, instance: Any) -> None:
    sata = vim.vm.device.VirtualAHCIController(key=-2, busNumber=0)
    nvme = vim.vm.device.VirtualNVMEController(key=-3, busNumber=1)
    card = vim.vm.device.VirtualVmxnet3(
        key=-4, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    )
    vm = create(
        instance,
        "made",
        *(add(one) for one in (SCSI, sata, nvme, card)),
        add(disk("[ds1]", -1, 0, MIB, -10, thinProvisioned=True), "create"),
        add(disk("", -1, None, 2 * MIB, -11), "create"),
        add(disk("[nfs]", -2, 3, MIB, -12, mode="independent_persistent"), "create"),
        add(disk("[ds1] made/named.vmdk", -3, 0, MIB, -13), "create"),
        add(disk("", 200, 1, MIB, -14), "create"),
        numCPUs=3,
        memoryMB=256,
        firmware="efi",
        annotation="two\nlines",
        extraConfig=[vim.option.OptionValue(key="a.b", value="c")],
    )
    assert (vm.name, str(vm.runtime.powerState), vm.parent.name) == ("made", "poweredOff", "restored")
    assert vm.config.files.vmPathName == "[ds1] made/made.vmx"
    assert (vm.config.hardware.numCPU, vm.config.hardware.memoryMB, vm.config.firmware) == (3, 256, "efi")
    found = {one.key: (one.backing.fileName, one.capacityInBytes, one.unitNumber) for one in drives(vm)}
    assert found == {
        2000: ("[ds1] made/made.vmdk", MIB, 0),
        2001: ("[ds1] made/made_1.vmdk", 2 * MIB, 1),
        16003: ("[nfs] made/made.vmdk", MIB, 3),
        32015: ("[ds1] made/named.vmdk", MIB, 0),
        3001: ("[ds1] made/made_2.vmdk", MIB, 1),
    }
    assert {one.backing.uuid[:7] for one in drives(vm)} == {"6000C29"}
    nic = next(one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualVmxnet3))
    assert nic.key == 4000
    assert nic.macAddress.startswith("00:50:56:")
    assert sorted(one.name for one in vm.datastore) == ["ds1", "nfs"]
    lab.write("made", 2001, MIB, b"content")
    flat = lab.folder / "datastores" / "DC0" / "ds1" / "made" / "made_1-flat.vmdk"
    assert flat.read_bytes()[MIB : MIB + 7] == b"content"
    clients.done(vm.PowerOn())
    assert lab.machine("made")["powerState"] == "poweredOn"
    with pytest.raises(vim.fault.InvalidPowerState):
        clients.done(vm.PowerOn())
    with pytest.raises(vim.fault.InvalidPowerState):
        clients.done(vm.Destroy())
    clients.done(vm.PowerOff())
    clients.done(vm.Destroy())
    assert not flat.parent.exists()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.name  # noqa: B018


def test_a_machine_that_cannot_be_made_leaves_nothing_behind(lab: Lab, instance: Any) -> None:
    good = add(disk("[ds1]", -1, 0, MIB), "create")
    for devices, fault in (
        ([add(SCSI), good, add(disk("[ds1]", -1, 0, MIB), "create")], vim.fault.InvalidDeviceSpec),
        ([add(SCSI), good, add(disk("[ds1]", -1, 7, MIB), "create")], vim.fault.InvalidDeviceSpec),
        ([add(SCSI), good, add(disk("[ds1]", -9, 1, MIB), "create")], vim.fault.InvalidDeviceSpec),
        ([add(SCSI), good, add(disk("[ds1] none/x.vmdk", -1, 1))], vim.fault.FileNotFound),
        ([add(SCSI), good, add(disk("[ds1] source/source.vmdk", -1, 1, MIB), "create")], vim.fault.FileAlreadyExists),
        ([add(SCSI), good, add(disk("[ds1] running/running.vmdk", -1, 1))], vim.fault.FileLocked),
        ([add(SCSI), good, add(disk("[no] x/x.vmdk", -1, 1, MIB), "create")], vim.fault.InvalidDatastorePath),
    ):
        with pytest.raises(fault):
            create(instance, "never", *devices)
    with pytest.raises(vim.fault.DuplicateName):
        create(instance, "source", folder="gold")
    with pytest.raises(vim.fault.InvalidDatastorePath):
        create(instance, "never", path="[no]")
    with pytest.raises(vim.fault.InvalidVmConfig):
        create(instance, "")
    assert not (lab.folder / "datastores" / "DC0" / "ds1" / "never").exists()
    assert "never" not in [one["name"] for one in lab.state()["machines"]]


def test_an_instance_uuid_that_is_taken_is_replaced(lab: Lab, instance: Any) -> None:
    taken = machine(instance, "source").config.instanceUuid
    vm = create(instance, "twin", instanceUuid=taken)
    assert vm.config.instanceUuid != taken
    clients.done(vm.Destroy())
    vm = create(instance, "other", instanceUuid="50151515-0000-0000-0000-444455556666")
    assert vm.config.instanceUuid == "50151515-0000-0000-0000-444455556666"
    lab.act("other", "duplicateUuid", of="source")
    assert vm.config.instanceUuid == taken
    clients.done(vm.Destroy())


def test_a_machine_is_registered_from_files_that_were_sent(lab: Lab, instance: Any) -> None:
    folder = lab.folder / "datastores" / "DC0" / "ds1" / "source"
    files = instance.content.fileManager
    center = at(instance, "DC0")
    files.MakeDirectory("[ds1] sent", center)
    with pytest.raises(vim.fault.FileAlreadyExists):
        files.MakeDirectory("[ds1] sent", center)
    with pytest.raises(vim.fault.FileNotFound):
        files.MakeDirectory("[ds1] no/parent", center)
    files.MakeDirectory("[ds1] sent/with/parents", center, True)
    vmx = (folder / "source.vmx").read_text()
    vmx = vmx.replace('displayName = "source"', 'displayName = "sent"').replace("source.nvram", "sent.nvram")
    where = at(instance, "DC0/vm/restored")

    def register(path: str, name: str | None = None) -> Any:
        return clients.done(where.RegisterVM_Task(path, name, False, pool(instance), None))

    with pytest.raises(vim.fault.FileNotFound):
        register("[ds1] sent/sent.vmx")
    assert upload(lab, "sent/sent.vmx", vmx.encode()) == 201
    with pytest.raises(vim.fault.FileNotFound):
        register("[ds1] sent/sent.vmx")
    assert upload(lab, "sent/source.vmdk", (folder / "source.vmdk").read_bytes()) == 201
    assert upload(lab, "sent/source-flat.vmdk", CONTENT) == 201
    assert upload(lab, "sent/sent.nvram", b"nvram") == 201
    vm = register("[ds1] sent/sent.vmx")
    assert vm.name == "sent"
    source = machine(instance, "source")
    assert vm.config.instanceUuid != source.config.instanceUuid, "vCenter gives another where it is taken"
    assert vm.config.uuid == source.config.uuid
    assert lab.content("sent", "scsi0:0") == CONTENT
    assert drives(vm)[0].backing.uuid == drives(source)[0].backing.uuid
    with pytest.raises(vim.fault.AlreadyExists):
        register("[ds1] sent/sent.vmx")
    assert {one.name for one in vm.layoutEx.file} >= {"[ds1] sent/sent.vmx", "[ds1] sent/sent.nvram"}
    clients.done(vm.PowerOn())
    snapshot = clients.snapshot(vm, "one")
    lab.write("sent", "scsi0:0", 0, b"new")
    assert lab.frozen("sent", "scsi0:0", snapshot._moId) == CONTENT
    clients.done(vm.RemoveAllSnapshots_Task())
    clients.done(vm.PowerOff())
    vm.Unregister()
    assert (lab.folder / "datastores" / "DC0" / "ds1" / "sent" / "source-flat.vmdk").read_bytes()[:3] == b"new"
    vm = register("[ds1] sent/sent.vmx", "named")
    assert (vm.name, lab.read("named", "scsi0:0", 0, 3)) == ("named", b"new")
    clients.done(vm.Destroy())
    clients.done(files.DeleteFile("[ds1] sent", center))
    assert not (lab.folder / "datastores" / "DC0" / "ds1" / "sent").exists()


def test_a_machine_is_reconfigured(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "away")

    def reconfigure(*devices: Any, **config: Any) -> None:
        clients.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(devices), **config)))

    reconfigure(annotation="changed", numCPUs=2, extraConfig=[vim.option.OptionValue(key="x", value="1")])
    assert (vm.config.annotation, vm.config.hardware.numCPU) == ("changed", 2)
    reconfigure(extraConfig=[vim.option.OptionValue(key="x", value="")])
    assert [one.key for one in vm.config.extraConfig] == []
    reconfigure(add(disk("[ds1] source/source.vmdk", 1000, None)))
    assert lab.content("away", 2001) == CONTENT, "another machine's disk, while that is off"
    removal = vim.vm.device.VirtualDeviceSpec
    reconfigure(removal(operation="remove", device=drives(vm)[1]))
    assert len(drives(vm)) == 1
    assert lab.content("source", 2000) == CONTENT, "only detached"
    reconfigure(add(disk("", 1000, None, MIB), "create"))
    file = drives(vm)[1].backing.fileName
    reconfigure(removal(operation="remove", fileOperation="destroy", device=drives(vm)[1]))
    assert not (lab.folder / "datastores" / "DC0" / "ds1" / file.removeprefix("[ds1] ")).exists()
    larger = drives(vm)[0]
    larger.capacityInBytes, larger.capacityInKB = 4 * MIB, 4096
    reconfigure(removal(operation="edit", device=larger))
    assert lab.content("away", 2000) == CONTENT + bytes(2 * MIB)
    clients.done(vm.CreateSnapshot_Task(name="s", description="", memory=False, quiesce=False))
    larger = drives(vm)[0]
    larger.capacityInBytes, larger.capacityInKB = 8 * MIB, 8192
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        reconfigure(removal(operation="edit", device=larger))
    clients.done(vm.RemoveAllSnapshots_Task())
    with pytest.raises(vim.fault.DuplicateName):
        clients.done(vm.Rename("source"))
    clients.done(vm.Rename("away"))


def test_a_change_that_fails_in_its_middle_changes_nothing(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "failed")
    before = lab.machine("failed")
    removal = vim.vm.device.VirtualDeviceSpec(operation="remove", fileOperation="destroy", device=drives(vm)[0])
    wrong = add(disk("[ds1] none/x.vmdk", 1000, 5))
    with pytest.raises(vim.fault.FileNotFound):
        clients.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(name="other", deviceChange=[removal, wrong])))
    assert lab.machine("failed") == before
    assert lab.content("failed", 2000) == CONTENT
    snapshot = clients.snapshot(vm, "still works")
    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))


def test_a_machine_moves_between_folders_hosts_and_datastores_with_its_snapshots(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "away")
    snapshot = clients.snapshot(vm, "kept")
    frozen = lab.frozen("away", 2000, "kept")
    lab.write("away", 2000, 0, b"after")
    live = lab.content("away", 2000)
    clients.done(at(instance, "DC0/vm/restored").MoveIntoFolder_Task([vm]))
    assert vm.parent.name == "restored"
    nfs = next(one for one in at(instance, "DC0").datastore if one.name == "nfs")
    esx3 = at(instance, "DC0/host/esx3/esx3")
    clients.done(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=esx3, datastore=nfs, pool=esx3.parent.resourcePool)))
    assert (vm.runtime.host, vm.resourcePool) == (esx3, esx3.parent.resourcePool)
    assert vm.config.files.vmPathName == "[nfs] away/away.vmx"
    assert lab.frozen("away", 2000, snapshot._moId) == frozen
    assert lab.content("away", 2000) == live
    assert not list((lab.folder / "datastores" / "DC0" / "ds1" / "away").glob("*"))
    assert vm in esx3.vm
    assert vm in nfs.vm
    lab.crash()
    lab.restart()
    with clients.session(lab) as again:
        vm = machine(again, "away")
        assert (vm.parent.name, vm.runtime.host.name, vm.config.files.vmPathName) == (
            "restored",
            "esx3",
            "[nfs] away/away.vmx",
        )
        clients.done(vm.RemoveAllSnapshots_Task())
    assert lab.content("away", 2000) == live


def test_disks_are_made_copied_moved_and_removed_without_a_machine(lab: Lab) -> None:
    with clients.session(lab) as instance:
        manager, center = instance.content.virtualDiskManager, at(instance, "DC0")
        spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType="thin", adapterType="lsiLogic", capacityKb=1024
        )
        clients.done(manager.CreateVirtualDisk_Task("[ds1] alone.vmdk", center, spec))
        folder = lab.folder / "datastores" / "DC0" / "ds1"
        assert (folder / "alone-flat.vmdk").stat().st_size == MIB, "not an empty file"
        clients.done(manager.CopyVirtualDisk_Task("[ds1] source/source.vmdk", center, "[nfs] copy.vmdk", center))
        assert (lab.folder / "datastores" / "DC0" / "nfs" / "copy-flat.vmdk").read_bytes() == CONTENT
        with pytest.raises(vim.fault.FileAlreadyExists):
            clients.done(manager.CopyVirtualDisk_Task("[ds1] source/source.vmdk", center, "[nfs] copy.vmdk", center))
        with pytest.raises(vim.fault.FileLocked):
            clients.done(manager.CopyVirtualDisk_Task("[ds1] running/running.vmdk", center, "[nfs] x.vmdk", center))
        clients.done(manager.MoveVirtualDisk_Task("[nfs] copy.vmdk", center, "[ds1] moved.vmdk", center))
        assert (folder / "moved-flat.vmdk").read_bytes() == CONTENT
        wanted = "60 00 C2 9a 00 11 22 33-44 55 66 77 88 99 aa bb"
        manager.SetVirtualDiskUuid("[ds1] moved.vmdk", center, wanted)
        assert manager.QueryVirtualDiskUuid("[ds1] moved.vmdk", center) == wanted
        for name in ("alone", "moved"):
            clients.done(manager.DeleteVirtualDisk_Task(f"[ds1] {name}.vmdk", center))
        assert not list(folder.glob("alone*")) + list(folder.glob("moved*"))
        with pytest.raises(vim.fault.FileNotFound):
            clients.done(manager.DeleteVirtualDisk_Task("[ds1] moved.vmdk", center))


def test_a_vsan_datastore_has_no_flat_files(lab: Lab) -> None:
    with clients.session(lab) as instance:
        vm = machine(instance, "vsan")
        assert sorted(one.name for one in (lab.folder / "datastores" / "DC0" / "vsan" / "vsan").iterdir()) == [
            "vsan.nvram",
            "vsan.vmdk",
            "vsan.vmx",
        ]
        snapshot = clients.snapshot(vm, "one")
        lab.write("vsan", 2000, 0, b"x")
        assert lab.frozen("vsan", 2000, snapshot._moId) == CONTENT
        clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
        assert lab.content("vsan", 2000) == b"x" + CONTENT[1:]
        assert upload(lab, "vsan/new-flat.vmdk", CONTENT, "vsan") == 403
        assert upload(lab, "vsan/new.vmdk", b"descriptor", "vsan") == 201


def test_the_browser_finds_files_by_pattern_and_kind(lab: Lab) -> None:
    with clients.session(lab) as instance:
        store = next(one for one in at(instance, "DC0").datastore if one.name == "ds1")
        browser = vim.host.DatastoreBrowser
        spec = browser.SearchSpec(
            matchPattern=["gone*"], details=browser.FileInfo.Details(fileSize=True, fileType=True, modification=False)
        )
        found = clients.done(store.browser.SearchDatastore_Task("[ds1] gone", spec))
        assert {one.path: one.fileSize for one in found.file if "flat" in one.path} == {"gone-flat.vmdk": len(CONTENT)}
        spec = browser.SearchSpec(query=[browser.VmDiskQuery()])
        found = clients.done(store.browser.SearchDatastoreSubFolders_Task("[ds1]", spec))
        assert "gone.vmdk" in [one.path for folder in found for one in folder.file]
        assert not [one.path for folder in found for one in folder.file if "flat" in one.path]
        with pytest.raises(vim.fault.FileNotFound):
            clients.done(store.browser.SearchDatastore_Task("[ds1] nowhere", spec))


def test_what_happens_in_an_estate_can_be_told(lab: Lab) -> None:
    with clients.session(lab) as instance:
        vm = machine(instance, "gone")
        lab.act("gone", "rename", name="renamed")
        assert vm.name == "renamed"
        lab.act("renamed", "move", folder="gold/deep")
        assert vm.parent.name == "deep"
        lab.act("renamed", "power", state="poweredOn")
        assert str(vm.runtime.powerState) == "poweredOn"
        lab.act("renamed", "vmotion", host="esx2")
        assert vm.runtime.host.name == "esx2"
        old = drives(vm)[0].backing.uuid
        lab.act("renamed", "changeDiskUuid", disk="2000")
        assert drives(vm)[0].backing.uuid != old
        lab.act("renamed", "addDisk", sizeBytes=MIB)
        assert [one.key for one in drives(vm)] == [2000, 2001]
        lab.act("renamed", "removeDisk", disk="2001")
        assert [one.key for one in drives(vm)] == [2000]
        lab.act("renamed", "foreignSnapshot", name="theirs", description="before the update")
        assert [one.name for one in vm.snapshot.rootSnapshotList] == ["theirs"]
        lab.act("renamed", "storageVmotion", datastore="nfs")
        assert lab.content("renamed", 2000) == CONTENT
        lab.write("renamed", 2000, 0, b"x")
        lab.act("renamed", "revert", snapshot="theirs")
        assert lab.content("renamed", 2000) == CONTENT
        lab.act("renamed", "removeAllSnapshots")
        assert vm.snapshot is None
        lab.act("renamed", "consolidationNeeded")
        assert vm.runtime.consolidationNeeded
        store = next(one for one in at(instance, "DC0").datastore if one.name == "ds1")
        assert store.summary.freeSpace == 5 << 30
        lab.act("", "datastoreFree", datastore="ds1", freeBytes=123456)
        assert store.summary.freeSpace == 123456
        lab.act("renamed", "destroy")
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            vm.name  # noqa: B018
        assert not list((lab.folder / "datastores" / "DC0" / "nfs" / "gone").glob("*"))


def test_templates_are_marked_and_unmarked(lab: Lab) -> None:
    with clients.session(lab) as instance:
        vm = machine(instance, "template")
        assert vm.resourcePool is None
        vm.MarkAsVirtualMachine(pool(instance))
        assert vm.resourcePool == pool(instance)
        assert not vm.config.template
        vm.MarkAsTemplate()
        assert vm.config.template
        with pytest.raises(vmodl.fault.NotSupported):
            clients.done(vm.PowerOn())
