"""Import leases of the lab: a machine from a ConfigSpec, its disks from stream-optimized bodies and from nothing else."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim, vmodl

pytestmark = clients.needs_lab

MIB = 1 << 20
SIZES = (24 * MIB + 1536, 3 * MIB)
MACHINES = [{"name": "source", "powerState": "poweredOff", "disks": [{"sizeBytes": SIZES[0]}]}]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start(tmp_path_factory.mktemp("lab"), machines=MACHINES, taskMillis=5) as lab:
        yield lab


@pytest.fixture
def instance(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance
    lab.clear_faults()
    lab.mode(leaseSeconds=0)


def specification(name: str) -> Any:
    """A machine with one disk on a PVSCSI controller and one on SATA."""
    scsi = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    sata = vim.vm.device.VirtualAHCIController(key=-2, busNumber=0)
    changes = [vim.vm.device.VirtualDeviceSpec(operation="add", device=one) for one in (scsi, sata)]
    for number, (controller, size) in enumerate(zip((scsi, sata), SIZES, strict=True)):
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[ds1]", diskMode="persistent", thinProvisioned=True
        )
        disk = vim.vm.device.VirtualDisk(
            key=-10 - number,
            controllerKey=controller.key,
            unitNumber=number,
            capacityInBytes=size,
            capacityInKB=-(-size // 1024),
            backing=backing,
        )
        changes.append(vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk))
    config = vim.vm.ConfigSpec(
        name=name,
        guestId="otherGuest64",
        numCPUs=1,
        memoryMB=64,
        instanceUuid="50151515-1111-2222-3333-444455556666",
        files=vim.vm.FileInfo(vmPathName="[ds1]"),
        deviceChange=changes,
    )
    return vim.vm.VmImportSpec(configSpec=config)


def open_lease(instance: Any, name: str) -> Any:
    pool = clients.find(instance, vim.ResourcePool, "Resources")
    datacenter = clients.find(instance, vim.Datacenter, "DC0")
    lease = pool.ImportVApp(specification(name), folder=datacenter.vmFolder)
    clients.wait(lease)
    return lease


def content(seed: int, size: int) -> bytes:
    """A third of noise, the rest zero but for its last sector."""
    rng = random.Random(seed)
    return (rng.randbytes(size // 3) + bytes(size))[: size - 512] + rng.randbytes(512)


def names(lab: Lab) -> list[str]:
    return sorted(one["name"] for one in lab.state()["machines"])


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_machine_is_made_with_what_was_sent(lab: Lab, instance: Any, tmp_path: Path, method: str) -> None:
    name = f"made by {method}"
    lease = open_lease(instance, name)
    info = lease.info
    keys = [one.importKey for one in info.deviceUrl]
    assert keys == [f"/{name}/ParaVirtualSCSIController0:0", f"/{name}/VirtualAHCIController0:1"]
    assert all(one.disk for one in info.deviceUrl)
    machine = info.entity
    assert machine.name == name
    with pytest.raises(vim.fault.MethodDisabled):
        machine.PowerOnVM_Task()
    sent = [content(seed, size) for seed, size in enumerate(SIZES)]
    for entry, disk in zip(info.deviceUrl, sent, strict=True):
        status, text = clients.send(lab, entry.url, clients.packed(disk, tmp_path), method)
        assert status in (200, 201), text
        lease.HttpNfcLeaseProgress(50)
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    disks = lab.machine(name)["disks"]
    assert [lab.content(name, disk["key"]) for disk in disks] == sent
    clients.done(machine.PowerOnVM_Task())
    clients.done(machine.PowerOffVM_Task())
    clients.done(machine.Destroy_Task())


def test_a_lease_takes_what_another_gave(lab: Lab, instance: Any, tmp_path: Path) -> None:
    lab.write("source", "Hard disk 1", 0, content(5, SIZES[0]))
    export = clients.find(instance, vim.VirtualMachine, "source").ExportVm()
    clients.wait(export)
    assert clients.fetch(lab, export.info.deviceUrl[0].url, tmp_path / "body") == 200
    export.HttpNfcLeaseComplete()
    lease = open_lease(instance, "again")
    status, text = clients.send(lab, lease.info.deviceUrl[0].url, (tmp_path / "body").read_bytes())
    assert status == 201, text
    lease.HttpNfcLeaseComplete()
    assert lab.content("again", lab.machine("again")["disks"][0]["key"]) == lab.content("source", "Hard disk 1")
    clients.done(lease.info.entity.Destroy_Task())


@pytest.mark.parametrize("form", ["flat", "monolithicSparse", "empty"])
def test_any_other_form_of_a_disk_ends_the_lease_and_the_machine(
    lab: Lab, instance: Any, tmp_path: Path, form: str
) -> None:
    before = names(lab)
    lease = open_lease(instance, "refused")
    disk = content(1, SIZES[0])
    body = (
        {"flat": disk, "empty": b""}.get(form) if form != "monolithicSparse" else clients.packed(disk, tmp_path, form)
    )
    assert body is not None
    status, text = clients.send(lab, lease.info.deviceUrl[0].url, body)
    assert (status, "not a stream-optimized VMDK" in text) == (500, True), text
    assert clients.wait(lease, "error") == "error"
    assert "not a stream-optimized VMDK" in lease.error.msg
    assert names(lab) == before


def test_a_broken_body_is_refused_and_may_be_sent_again(lab: Lab, instance: Any, tmp_path: Path) -> None:
    lease = open_lease(instance, "second try")
    disk = content(2, SIZES[0])
    body, url = clients.packed(disk, tmp_path), lease.info.deviceUrl[0].url
    wrong = bytearray(body)
    wrong[len(body) // 2] ^= 0xFF
    for bad, why in (
        (body[: len(body) // 2], "without an end marker"),
        (bytes(wrong), "sector"),
        (clients.packed(content(2, SIZES[1]), tmp_path), f"the one to be made {SIZES[0]}"),
    ):
        status, text = clients.send(lab, url, bad)
        assert (status, why in text) == (500, True), text
    assert clients.send(lab, url, body)[0] == 201
    lease.HttpNfcLeaseComplete()
    assert lab.content("second try", lab.machine("second try")["disks"][0]["key"]) == disk
    clients.done(lease.info.entity.Destroy_Task())


def misplaced(body: bytes) -> bytes:
    """A stream whose first grain table names a sector where no grain is."""
    changed = bytearray(body)
    (directory,) = struct.unpack_from("<Q", body, len(body) - 1024 + 56)  # the footer, then the end marker
    (table,) = struct.unpack_from("<I", body, directory * 512)
    (grain,) = struct.unpack_from("<I", body, table * 512)
    struct.pack_into("<I", changed, table * 512, grain + 1)
    return bytes(changed)


def test_tables_that_do_not_fit_their_grains_are_refused(lab: Lab, instance: Any, tmp_path: Path) -> None:
    lab.write("source", "Hard disk 1", 0, content(6, SIZES[0]))
    export = clients.find(instance, vim.VirtualMachine, "source").ExportVm()
    clients.wait(export)
    assert clients.fetch(lab, export.info.deviceUrl[0].url, tmp_path / "body") == 200
    export.HttpNfcLeaseComplete()
    body = (tmp_path / "body").read_bytes()
    lease = open_lease(instance, "misplaced")
    url = lease.info.deviceUrl[0].url
    for bad, why in (
        (misplaced(body), "a grain table places sector 0 at"),
        (body[:-512], "without an end marker"),
        (body + b"more", "there are bytes behind the end marker"),
        (body[:-1536] + body[-512:], "the footer is missing"),
    ):
        status, text = clients.send(lab, url, bad)
        assert (status, why in text) == (500, True), text
    assert clients.send(lab, url, body)[0] == 201
    lease.HttpNfcLeaseAbort(None)


@pytest.mark.parametrize("ending", ["abort", "silence"])
def test_a_half_made_machine_goes_with_its_lease(lab: Lab, instance: Any, tmp_path: Path, ending: str) -> None:
    before, body = names(lab), clients.packed(content(3, SIZES[0]), tmp_path)
    lab.mode(leaseSeconds=3 if ending == "silence" else 0)
    lease = open_lease(instance, "half made")
    url = lease.info.deviceUrl[0].url
    assert "half made" in names(lab)
    folder = lab.folder / "datastores" / "DC0" / "ds1" / "half made"
    assert folder.exists()
    assert clients.send(lab, url, body)[0] == 201
    if ending == "abort":
        lease.HttpNfcLeaseAbort(vim.fault.Timedout(msg="had enough"))
    assert clients.wait(lease, "error") == "error"
    deadline = time.monotonic() + 10
    while names(lab) != before or folder.exists():
        assert time.monotonic() < deadline, (names(lab), list(folder.iterdir()))
        time.sleep(0.01)
    assert clients.send(lab, url, b"late")[0] == 404


def test_export_and_import_do_not_mix(lab: Lab, instance: Any, tmp_path: Path) -> None:
    lease = open_lease(instance, "mixed")
    assert clients.fetch(lab, lease.info.deviceUrl[0].url, tmp_path / "none") == 405
    lease.HttpNfcLeaseAbort(None)
    with pytest.raises(vmodl.fault.InvalidArgument):
        clients.find(instance, vim.ResourcePool, "Resources").ImportVApp(
            vim.vApp.VAppImportSpec(
                name="x",
                vAppConfigSpec=vim.vApp.VAppConfigSpec(),
                resourcePoolSpec=vim.ResourceConfigSpec(
                    cpuAllocation=vim.ResourceAllocationInfo(), memoryAllocation=vim.ResourceAllocationInfo()
                ),
            )
        )
