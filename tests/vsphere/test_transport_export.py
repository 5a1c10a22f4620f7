"""Disks by export lease: whole and exact, the lease ended whatever happens, and nothing left where they waited."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transport_samples as samples
from transport_samples import MIB, SIZE, Lab, Snapshot

from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.transports import export, ports

pytestmark = samples.needs_peer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One peer for all tests."""
    mixed = {
        "name": "mixed",
        "disks": [
            {"label": f"Hard disk {number}", "controller": slot, "sizeBytes": MIB}
            for number, slot in enumerate(("scsi0:0", "scsi1:1", "sata0:0", "ide0:0", "nvme0:0"), 1)
        ],
    }
    too_large = (shutil.disk_usage(tmp_path_factory.getbasetemp()).free // MIB + 1024) * MIB
    large = {"name": "large", "disks": [{"sizeBytes": 1 << 30}, {"sizeBytes": too_large, "label": "Hard disk 2"}]}
    with samples.peer(tmp_path_factory.mktemp("lab"), [mixed, large]) as lab:
        yield lab


@pytest.fixture
def frozen(lab: Lab, taken: Snapshot) -> Iterator[ports.Frozen]:
    """The first disk; a peer without faults afterwards, and no lease that lives."""
    yield taken.frozen["Hard disk 1"]
    lab.clear_faults()
    lab.mode(diskBytesPerSecond=0, leaseSeconds=0)
    assert living(lab) == []


def living(lab: Lab) -> list[dict[str, Any]]:
    return [lease for lease in lab.state()["leases"] if lease["state"] in ("ready", "initializing")]


def way(folder: Path, patience: float = 20.0) -> export.Export:
    """As the product waits, but not as long."""
    return export.Export(folder, patience=patience, pauses=(0.01, 0.02))


def spooled(folder: Path) -> list[str]:
    """Files of ours in ``folder``, with a name or without."""
    held = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [path for path in (*held, *map(str, folder.iterdir())) if path.startswith(str(folder))]


def test_what_the_snapshot_froze_is_read_while_the_guest_writes(
    lab: Lab, session: sessions.Session, tmp_path: Path
) -> None:
    with samples.snapshot(session) as taken:
        for seed, frozen in enumerate(taken.frozen.values(), 1):
            right = samples.content(seed=seed)
            lab.write("web 1", frozen.disk.label, 1024, b"m" * 512)
            assert way(tmp_path).refuses(frozen) is None
            with way(tmp_path).open(frozen) as disk:
                assert living(lab) == [], "the lease is held for the transfer only"
                assert (disk.name, disk.size, disk.sector) == (frozen.disk.label, SIZE, 512)
                assert samples.whole(disk, 300_001) == right
                assert samples.by_extents(disk) == right
                assert sum(length for _, length in disk.extents()) < SIZE // 2
                assert len(spooled(tmp_path)) == 1 and list(tmp_path.iterdir()) == []
                for offset, length in ((0, SIZE + 1), (SIZE, 1), (-1, 2)):
                    with pytest.raises(ValueError, match="beyond"):
                        disk.pread(offset, length)
            assert spooled(tmp_path) == []
            lab.write("web 1", frozen.disk.label, 1024, right[1024:1536])
    assert {lease["state"] for lease in lab.state()["leases"]} <= {"done", "error"}


def test_a_snapshot_above_another_is_read_as_the_chain_it_is(
    lab: Lab, session: sessions.Session, taken: Snapshot, tmp_path: Path
) -> None:
    lab.write("web 1", "Hard disk 1", 5 * MIB, b"between the two" * 1000)
    right = bytearray(samples.content())
    right[5 * MIB : 5 * MIB + 15000] = b"between the two" * 1000
    with samples.snapshot(session) as second:
        lab.write("web 1", "Hard disk 1", 5 * MIB, bytes(20000))
        with way(tmp_path).open(second.frozen["Hard disk 1"]) as disk:
            assert samples.whole(disk) == bytes(right)


def test_each_disk_is_found_by_its_place(lab: Lab, session: sessions.Session, tmp_path: Path) -> None:
    for number in range(1, 6):
        lab.write("mixed", f"Hard disk {number}", 0, f"this is disk {number}".encode())
    with samples.snapshot(session, "mixed") as taken:
        assert len(taken.frozen) == 5
        for frozen in taken.frozen.values():
            with way(tmp_path).open(frozen) as disk:
                assert bytes(disk.pread(0, 14)) == f"this is disk {frozen.disk.label[-1]}".encode()
        nowhere = samples.with_disk(frozen, slot="scsi3:9")
        with pytest.raises(errors.SourceError, match=r"does not tell which of its disks is at scsi3:9: .*Controller"):
            way(tmp_path).open(nowhere)
        assert living(lab) == []


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("/vm-7/VirtualLsiLogicController0:0", "scsi0:0"),
        ("/vm-7/VirtualLsiLogicSASController1:15", "scsi1:15"),
        ("/vm-7/ParaVirtualSCSIController2:3", "scsi2:3"),
        ("/vm-7/VirtualAHCIController0:29", "sata0:29"),
        ("/vm-7/VirtualIDEController1:0", "ide1:0"),
        ("/vm-7/VirtualNVMEController0:1", "nvme0:1"),
        ("/vm-7/nvram", None),
        ("disk-0.vmdk", None),
    ],
)
def test_keys_name_places(key: str, slot: str | None) -> None:
    assert export._slot(key) == slot


def test_a_long_transfer_keeps_its_lease(lab: Lab, frozen: ports.Frozen, tmp_path: Path) -> None:
    lab.mode(leaseSeconds=1, diskBytesPerSecond=MIB)
    calls = lab.state()["calls"].get("ExportSnapshot", 0) + 1
    began = time.monotonic()
    with way(tmp_path, 10).open(frozen) as disk:
        assert samples.whole(disk) == samples.content()
    assert time.monotonic() - began > 1.5, "longer than the lease would have lived"
    assert lab.state()["calls"]["HttpNfcLeaseProgress"] > 3
    # One that ran out, because a word on progress came late, is taken anew.
    lab.fault(on="HttpNfcLeaseProgress", kind="slow", seconds=1.5)
    with way(tmp_path, 10).open(frozen) as disk:
        assert samples.whole(disk) == samples.content()
    assert lab.state()["calls"]["ExportSnapshot"] > calls + 1


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "http503"},
        {"kind": "reset", "afterBytes": MIB},
        {"kind": "truncate", "afterBytes": 70_000, "count": 2},
        {"kind": "reset", "afterBytes": 0},
        {"kind": "hang"},
        {"kind": "slow", "seconds": 0.3},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_stream_that_breaks_is_asked_for_anew(
    lab: Lab, frozen: ports.Frozen, tmp_path: Path, fault: dict[str, Any]
) -> None:
    lab.fault(on="GET /nfc", **fault)
    with way(tmp_path, 1.5 if fault["kind"] == "hang" else 20).open(frozen) as disk:
        assert samples.whole(disk) == samples.content()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "http503", "message": "the host is busy"}, "HTTP 503 Service Unavailable: the host is busy"),
        ({"kind": "reset", "afterBytes": 100_000}, r"transfer broke|cut short"),
        ({"kind": "truncate", "afterBytes": 100_000}, r"transfer broke|cut short"),
        ({"kind": "hang"}, r"transfer broke: .*timed out"),
    ],
    ids=lambda fault: fault["kind"] if isinstance(fault, dict) else "",
)
def test_one_that_never_comes_is_an_error_and_the_lease_is_ended(
    lab: Lab, frozen: ports.Frozen, tmp_path: Path, fault: dict[str, Any], words: str
) -> None:
    lab.fault(on="GET /nfc", count=0, **fault)
    with pytest.raises(errors.SourceError, match=words) as caught:
        way(tmp_path, 0.3 if fault["kind"] == "hang" else 20).open(frozen)
    assert caught.value.retryable
    assert caught.value.message.startswith("VM web 1: Hard disk 1: ")
    assert living(lab) == [] and spooled(tmp_path) == []


def test_a_lease_that_is_not_given_is_said_in_the_vcenters_words(
    lab: Lab, frozen: ports.Frozen, tmp_path: Path
) -> None:
    lab.fault(on="ExportSnapshot", kind="fault", fault="TaskInProgress", message="Another task is already in progress.")
    with pytest.raises(errors.SourceError, match=r"VM web 1: Hard disk 1: export: TaskInProgress.*already in progress"):
        way(tmp_path).open(frozen)


def test_a_snapshot_that_is_gone_is_an_error(frozen: ports.Frozen, tmp_path: Path) -> None:
    gone = dataclasses.replace(frozen, snapshot="snapshot-99999")
    with pytest.raises(errors.SourceError, match="ManagedObjectNotFound"):
        way(tmp_path).open(gone)


def test_work_that_was_asked_to_stop_ends_its_lease(lab: Lab, frozen: ports.Frozen, tmp_path: Path) -> None:
    lab.mode(diskBytesPerSecond=MIB)
    meter = meters.Meter()
    timer = threading.Timer(0.5, meter.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(errors.Cancelled):
        way(tmp_path).open(dataclasses.replace(frozen, meter=meter))
    assert time.monotonic() - began < 2
    assert living(lab) == [] and spooled(tmp_path) == []
    timer.join()


def test_a_lease_that_a_killed_process_held_ends_by_itself(
    lab: Lab, session: sessions.Session, frozen: ports.Frozen, tmp_path: Path
) -> None:
    lab.mode(leaseSeconds=1, diskBytesPerSecond=MIB)
    with samples.snapshot(session) as taken:
        command = [sys.executable, "-c", KILLED, lab.vcenter_yaml(), "web 1", taken.reference._moId, str(tmp_path)]
        with subprocess.Popen(command, cwd=samples.ROOT) as reading:
            deadline = time.monotonic() + 20
            while not living(lab) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            reading.kill()
        assert spooled(tmp_path) == []
        while living(lab) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert living(lab) == []
    assert [one["name"] for one in lab.machine("web 1")["snapshots"]] == ["t"], "the module's own is left"


def test_a_disk_that_has_no_room_is_refused_before_it_comes(
    lab: Lab, session: sessions.Session, frozen: ports.Frozen, tmp_path: Path
) -> None:
    before = lab.state()["calls"].get("GET /nfc", 0)
    with samples.snapshot(session, "large") as taken:
        with pytest.raises(
            errors.SourceError, match=r"Hard disk 2: export: .* bytes free, the disk may need"
        ) as caught:
            way(tmp_path).open(taken.frozen["Hard disk 2"])
        assert "TMPDIR" in (caught.value.hint or "")
    assert lab.state()["calls"].get("GET /nfc", 0) == before and living(lab) == []
    with pytest.raises(errors.SourceError, match="No such file or directory"):
        way(tmp_path / "missing").open(frozen)


def test_a_physical_raw_device_is_refused(frozen: ports.Frozen, tmp_path: Path) -> None:
    physical = samples.with_disk(frozen, kind="RawPhysical")
    assert "physical" in (way(tmp_path).refuses(physical) or "")
    with pytest.raises(errors.SourceError, match="physical"):
        way(tmp_path).open(physical)


KILLED = """
import dataclasses, json, sys
sys.path.insert(0, "tests/vsphere")
import transport_samples as samples
from pathlib import Path
from reconciler.api import vcenters
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.transports import export
vcenter = vcenters.VCenter.model_validate(json.loads(sys.argv[1]))
session = sessions.Session(vcenter.name, vcenter.spec)
frozen = samples.frozen_disks(session, sys.argv[2], sys.argv[3])["Hard disk 1"]
export.Export(Path(sys.argv[4])).open(frozen)
"""

CHILD = """
import json, resource, sys
sys.path.insert(0, "tests/vsphere")
import transport_samples as samples
from reconciler.api import vcenters
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.transports import export
vcenter = vcenters.VCenter.model_validate(json.loads(sys.argv[1]))
session = sessions.Session(vcenter.name, vcenter.spec)
with samples.snapshot(session, "large") as taken:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with export.Export().open(taken.frozen["Hard disk 1"]) as disk:
        for offset in range(0, disk.size, 1 << 20):
            disk.pread(offset, 1 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
session.logout()
"""


def test_memory_does_not_grow_with_the_disk(lab: Lab) -> None:
    for offset in range(0, 1 << 30, 64 * MIB):
        lab.write("large", "Hard disk 1", offset, os.urandom(MIB))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, lab.vcenter_yaml()], cwd=samples.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024, "KiB more than before the disk was opened"
