"""Export leases of the lab: whole disks as stream-optimized VMDKs, frozen, for as long as progress is reported."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim

pytestmark = clients.needs_lab

MIB = 1 << 20
DISKS = [
    {"label": "Hard disk 1", "controller": "scsi0:0", "sizeBytes": 40 * MIB + 512 * 3},
    {"label": "Hard disk 2", "controller": "sata0:1", "sizeBytes": 3 * MIB, "kind": "sparse"},
]
MACHINES = [{"name": "web", "disks": DISKS}, {"name": "off", "powerState": "poweredOff", "disks": DISKS[:1]}]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start(tmp_path_factory.mktemp("lab"), machines=MACHINES, taskMillis=5) as lab:
        yield lab


@pytest.fixture
def instance(lab: Lab) -> Iterator[Any]:
    yield from with_session(lab)
    lab.clear_faults()
    lab.mode(leaseSeconds=0)


def with_session(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance


@pytest.fixture
def web(instance: Any) -> Iterator[Any]:
    machine = clients.find(instance, vim.VirtualMachine, "web")
    yield machine
    clients.done(machine.RemoveAllSnapshots_Task())


def leases_alive(lab: Lab) -> list[str]:
    return [one["kind"] for one in lab.state()["leases"] if one["state"] in ("initializing", "ready")]


def test_a_snapshot_is_sent_as_it_was_frozen_while_the_guest_writes(lab: Lab, web: Any, tmp_path: Path) -> None:
    rng = random.Random(1)
    for offset, length in ((0, 70_000), (20 * MIB + 512, 300_000), (40 * MIB, 1536)):
        lab.write("web", "Hard disk 1", offset, rng.randbytes(length))
    lab.write("web", "Hard disk 2", MIB, rng.randbytes(MIB))
    snapshot = clients.snapshot(web, "first")
    frozen = [lab.content("web", disk["label"]) for disk in DISKS]
    lab.write("web", "Hard disk 1", 100, b"later" * 1000)
    lab.write("web", "Hard disk 2", 2 * MIB, b"later" * 1000)

    lease = snapshot.ExportSnapshot()
    assert lease.state in ("initializing", "ready")
    clients.wait(lease)
    info = lease.info
    assert info.entity._moId == web._moId
    assert info.leaseTimeout == 300
    disks = [one for one in info.deviceUrl if one.disk]
    assert [one.key.rpartition("/")[2] for one in disks] == ["ParaVirtualSCSIController0:0", "VirtualAHCIController0:1"]
    assert info.totalDiskCapacityInKB == sum(disk["sizeBytes"] // 1024 for disk in DISKS)
    assert {one.sslThumbprint for one in disks} == {lab.thumbprint_sha1}
    sums = {}
    for entry, content in zip(disks, frozen, strict=True):
        body = tmp_path / entry.targetId
        assert clients.fetch(lab, entry.url, body) == 200
        assert body.stat().st_size < len(content) // 2, "zeros are not sent"
        assert clients.raw(body) == content
        sums[entry.key] = (hashlib.sha1(body.read_bytes()).hexdigest(), body.stat().st_size, True)
    (nvram,) = [one for one in info.deviceUrl if not one.disk]
    assert clients.fetch(lab, nvram.url, tmp_path / "nvram") == 200
    assert (tmp_path / "nvram").read_bytes().startswith(b"NVRAM of web ")
    found = {one.key: (one.sha1, one.size, one.disk) for one in lease.HttpNfcLeaseGetManifest()}
    assert sums.items() <= found.items()
    assert len(found) == 3
    lease.HttpNfcLeaseProgress(50)
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    assert clients.fetch(lab, disks[0].url, tmp_path / "late") == 404
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseComplete()
    assert leases_alive(lab) == []


def test_a_snapshot_on_a_snapshot_is_sent_through_its_chain(lab: Lab, web: Any, tmp_path: Path) -> None:
    lab.write("web", "Hard disk 1", 5 * MIB, b"base" * 50_000)
    clients.snapshot(web, "first")
    lab.write("web", "Hard disk 1", 5 * MIB + 7, b"middle" * 5000)
    second = clients.snapshot(web, "second")
    frozen = lab.content("web", "Hard disk 1")
    lab.write("web", "Hard disk 1", 5 * MIB, b"top" * 50_000)
    lease = second.ExportSnapshot()
    clients.wait(lease)
    assert clients.fetch(lab, lease.info.deviceUrl[0].url, tmp_path / "body.vmdk") == 200
    assert clients.raw(tmp_path / "body.vmdk") == frozen
    lease.HttpNfcLeaseComplete()


def test_a_lease_keeps_the_machine_as_it_is(lab: Lab, instance: Any, web: Any, tmp_path: Path) -> None:
    with pytest.raises(vim.fault.InvalidPowerState):
        web.ExportVm()
    off = clients.find(instance, vim.VirtualMachine, "off")
    lab.write("off", "Hard disk 1", MIB, b"at rest" * 9999)
    lease = off.ExportVm()
    clients.wait(lease)
    pool = clients.find(instance, vim.ResourcePool, "Resources")
    for blocked in (
        off.PowerOnVM_Task,
        off.Destroy_Task,
        off.UnregisterVM,
        lambda: off.RelocateVM_Task(vim.vm.RelocateSpec(pool=pool)),
        off.ExportVm,
    ):
        with pytest.raises(vim.fault.MethodDisabled) as refused:
            blocked()
        assert lease._moId in refused.value.msg
    assert clients.fetch(lab, lease.info.deviceUrl[0].url, tmp_path / "body.vmdk") == 200
    assert clients.raw(tmp_path / "body.vmdk") == lab.content("off", "Hard disk 1")
    lease.HttpNfcLeaseComplete()
    clients.done(off.PowerOnVM_Task())
    clients.done(off.PowerOffVM_Task())


def test_the_exported_snapshot_is_not_removed_another_is(lab: Lab, web: Any) -> None:
    first, second = clients.snapshot(web, "first"), clients.snapshot(web, "second")
    lease = second.ExportSnapshot()
    clients.wait(lease)
    with pytest.raises(vim.fault.MethodDisabled):
        second.RemoveSnapshot_Task(removeChildren=False)
    clients.done(first.RemoveSnapshot_Task(removeChildren=False))
    lease.HttpNfcLeaseAbort(None)
    assert lease.state == "error"
    clients.done(second.RemoveSnapshot_Task(removeChildren=False))


def test_a_lease_lives_as_long_as_progress_is_reported(lab: Lab, web: Any, tmp_path: Path) -> None:
    lab.mode(leaseSeconds=2)
    lease = clients.snapshot(web, "first").ExportSnapshot()
    clients.wait(lease)
    url = lease.info.deviceUrl[0].url
    assert lease.info.leaseTimeout == 2
    for percent in range(4):
        time.sleep(0.6)
        lease.HttpNfcLeaseProgress(percent)
    assert lease.state == "ready"
    assert clients.fetch(lab, url, tmp_path / "in time") == 200
    clients.wait(lease, "error")
    assert isinstance(lease.error, vim.fault.Timedout)
    with pytest.raises(vim.fault.Timedout):
        lease.HttpNfcLeaseProgress(99)
    assert clients.fetch(lab, url, tmp_path / "late") == 404


def test_a_body_ends_with_its_lease(lab: Lab, web: Any) -> None:
    lab.write("web", "Hard disk 1", 0, random.Random(2).randbytes(8 * MIB))
    lease = clients.snapshot(web, "first").ExportSnapshot()
    clients.wait(lease)
    lab.mode(diskBytesPerSecond=2 * MIB)
    try:
        with contextlib.closing(clients.connection(lab)) as link:
            link.request("GET", clients.target(lease.info.deviceUrl[0].url))
            answer = link.getresponse()
            assert answer.read(1000)[:4] == b"KDMV"
            lease.HttpNfcLeaseAbort(None)
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
    finally:
        lab.mode(diskBytesPerSecond=0)


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_a_body_cut_short_is_not_taken_for_whole(lab: Lab, web: Any, tmp_path: Path, kind: str) -> None:
    lab.write("web", "Hard disk 1", 0, random.Random(3).randbytes(MIB))
    lease = clients.snapshot(web, "first").ExportSnapshot()
    clients.wait(lease)
    url = lease.info.deviceUrl[0].url
    lab.fault(on="GET /nfc", vm="web", kind=kind, afterBytes=200_000)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        clients.fetch(lab, url, tmp_path / "short")
    assert not lease.HttpNfcLeaseGetManifest()
    assert clients.fetch(lab, url, tmp_path / "whole.vmdk") == 200
    assert clients.raw(tmp_path / "whole.vmdk") == lab.content("web", "Hard disk 1")
    lease.HttpNfcLeaseComplete()


def test_a_lease_may_lead_to_a_host_by_name(lab: Lab, web: Any) -> None:
    lab.mode(leaseHost="localhost")
    try:
        lease = clients.snapshot(web, "first").ExportSnapshot()
        clients.wait(lease)
        (url, *_) = [one.url for one in lease.info.deviceUrl]
    finally:
        lab.mode(leaseHost="")
    assert url.startswith(f"https://localhost:{lab.port}/nfc/")
    with urllib.request.urlopen(url, context=clients.trust(lab), timeout=clients.PATIENCE) as answer:
        assert answer.read(4) == b"KDMV"
    lease.HttpNfcLeaseComplete()


def test_a_lease_may_fail_to_become_ready(lab: Lab, web: Any) -> None:
    snapshot = clients.snapshot(web, "first")
    lab.fault(on="ExportSnapshot", kind="task", fault="FileFault", message="the disk cannot be opened")
    lease = snapshot.ExportSnapshot()
    assert clients.wait(lease, "error", "ready") == "error"
    assert lease.error.msg == "the disk cannot be opened"
    again = snapshot.ExportSnapshot()
    clients.wait(again)
    lab.fault(on="HttpNfcLeaseProgress", vm="web", kind="fault", fault="Timedout")
    with pytest.raises(vim.fault.Timedout):
        again.HttpNfcLeaseProgress(1)
    again.HttpNfcLeaseProgress(2)
    again.HttpNfcLeaseComplete()


def test_leases_die_with_the_vcenter(lab: Lab, instance: Any, tmp_path: Path) -> None:
    off = clients.find(instance, vim.VirtualMachine, "off")
    lease = off.ExportVm()
    clients.wait(lease)
    url = lease.info.deviceUrl[0].url
    lab.crash()
    lab.restart()
    assert clients.fetch(lab, url, tmp_path / "late") == 404
    with clients.session(lab) as again:
        off = clients.find(again, vim.VirtualMachine, "off")
        clients.done(off.PowerOnVM_Task())
        clients.done(off.PowerOffVM_Task())
