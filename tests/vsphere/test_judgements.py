"""What is said of a machine before anybody touches it: values in, words out."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest

from reconciler.api import vcenters
from reconciler.sources.vsphere.inventory import devices, judgements, listings, marks

NOW = dt.datetime(2026, 11, 23, 21, tzinfo=dt.UTC)
SPEC = vcenters.VCenterSpec.model_validate({"server": "vc", "credentialRef": {"env": "X"}})


def disk(number: int, **changed: Any) -> devices.VirtualDisk:
    known: dict[str, Any] = {
        "key": 2000 + number, "label": f"Hard disk {number}", "slot": f"scsi0:{number}", "size": 1 << 30, "kind": "Flat",
        "file": f"[ds{number}] vm/disk.vmdk", "parent": None, "mode": "persistent", "shared": False, "uuid": "u",
        "change_id": None, "lun": None, "thin": True,
    }  # fmt: skip
    return devices.VirtualDisk(**{**known, **changed})


def store(name: str, free: int = 50, **changed: Any) -> listings.Datastore:
    known: dict[str, Any] = {
        "reference": name, "name": name, "type": "VMFS", "capacity": 100 << 30, "free": free << 30, "accessible": True, "datacenter": "DC0",
    }  # fmt: skip
    return listings.Datastore(**{**known, **changed})


def machine(**changed: Any) -> listings.VM:
    known: dict[str, Any] = {
        "reference": "vm-1", "name": "erp", "instance_uuid": "5029", "folder": "/DC0/vm", "datacenter": "DC0", "cluster": "C0",
        "host": "esx1", "host_reference": "host-1", "datastores": (store("ds1"), store("ds2"), store("iso", 0)),
        "resource_pool": "R", "power": "poweredOn", "connection": "connected", "template": False, "snapshots": (),
    }  # fmt: skip
    return listings.VM(**{**known, **changed})


def details(*disks: devices.VirtualDisk, **changed: Any) -> listings.Details:
    known: dict[str, Any] = {
        "disks": disks or (disk(1),), "shared_buses": (), "fault_tolerant": False, "encrypted": False, "vtpm": False,
        "tracking_supported": True, "tracking": True, "consolidation_needed": False, "home": "ds1",
    }  # fmt: skip
    return listings.Details(**{**known, **changed})


def wanted(**said: Any) -> vcenters.VMware:
    return vcenters.VMware.model_validate({"vcenter": "vc", "include": [{"name": "*"}], **said})


def code(vm: listings.VM, told: listings.Details, **said: Any) -> str | None:
    found = judgements.problem(vm, told, judgements.choose("erp", told.disks, wanted(**said)), SPEC)
    assert found is None or found.message
    return found.code if found else None


def test_a_machine_like_any_other_has_no_problem() -> None:
    assert code(machine(), details()) is None


@pytest.mark.parametrize(
    ("vm", "told", "expected"),
    [
        ({"connection": "disconnected"}, {}, "Inaccessible"),
        ({"connection": "strange"}, {}, "Inaccessible"),
        ({"instance_uuid": ""}, {}, "NoInstanceUuid"),
        ({}, {"hidden": ("config.hardware.device",)}, "NotVisible"),
        ({}, {"fault_tolerant": True}, "FaultTolerance"),
        ({}, {"encrypted": True}, "Encrypted"),
        ({}, {"encrypted": True, "vtpm": True}, "VirtualTpm"),
        ({}, {"shared_buses": ("scsi1",)}, "SharedBus"),
        ({}, {"disks": (disk(1, shared=True),)}, "MultiWriter"),
        ({}, {"disks": (disk(1, mode="independent_persistent"),)}, "NoDisks"),
        ({"datastores": (store("ds1", 9),)}, {}, "DatastoreFull"),
        ({"datastores": (store("ds1", 10),)}, {}, None),
        ({"datastores": (store("ds1", 0, capacity=0),)}, {}, None),
        ({"datastores": (store("ds1", accessible=False),)}, {}, "Inaccessible"),
        ({"datastores": None}, {}, None),
        # Where nothing of it grows, space is not asked for: an ISO image's datastore, a store of other disks.
        ({"datastores": (store("ds1"), store("iso", 0))}, {}, None),
        (
            {"datastores": (store("ds1"), store("ds2", 0))},
            {"disks": (disk(1), disk(2, mode="independent_persistent"))},
            None,
        ),
        ({"datastores": (store("home", 0), store("ds1"))}, {"home": "home"}, "DatastoreFull"),
    ],
)
def test_what_keeps_a_machine_from_being_backed_up(
    vm: dict[str, Any], told: dict[str, Any], expected: str | None
) -> None:
    assert code(machine(**vm), dataclasses.replace(details(), **told)) == expected


def test_an_excluded_disk_grows_all_the_same() -> None:
    told = details(disk(1), disk(2))
    full = machine(datastores=(store("ds1"), store("ds2", 1)))
    assert code(full, told, excludeDisks=[{"machine": "*", "disk": "Hard disk 2"}]) == "DatastoreFull"


def test_disks_are_sorted_by_what_can_be_done_with_them() -> None:
    disks = [
        disk(1), disk(2, mode="independent_nonpersistent"), disk(3, kind="RawPhysical"), disk(4, kind="RawVirtual"),
        disk(5, kind="RawPhysical"), disk(6), disk(7, kind="RawVirtual", mode="independent_persistent"), disk(10, kind="SeSparse"),
    ]  # fmt: skip
    choice = judgements.choose(
        "erp", disks, wanted(
            excludeDisks=[{"machine": "e*", "disk": "Hard disk 6"}, {"machine": "other", "disk": "*"}],
            rdm=[{"machine": "erp", "disk": "Hard disk 5", "device": "/dev/a"}, {"machine": "erp", "disk": "Hard disk 1", "device": "/dev/b"}],
        ),
    )  # fmt: skip
    assert [one.label[-1] for one in choice.frozen] == ["1", "4", "0"]
    assert [(one.label[-1], device.device) for one, device in choice.raw] == [("5", "/dev/a")]
    assert [one.disk.label[-1] for one in choice.unread] == ["2", "3", "7"]
    assert [one.label[-1] for one in choice.excluded] == ["6"]
    assert choice.wanted == tuple(f"Hard disk {number}" for number in (1, 2, 3, 4, 5, 7, 10))
    assert choice.datastores == ("ds1", "ds10", "ds4")


def test_old_snapshots_of_others_are_told_and_ours_are_not() -> None:
    ours = marks.Mark(owner="a", id="00000000-0000-4000-8000-000000000000", job="j-1", made=NOW)

    def snapshot(days: int, description: str = "") -> listings.Snapshot:
        created = NOW - dt.timedelta(days=days, seconds=1)
        return listings.Snapshot(
            reference="s", name=f"of {days}", description=description, created=created, parent=None
        )

    vm = machine(snapshots=(snapshot(2), snapshot(3), snapshot(9, marks.describe(ours)), snapshot(40)))
    choice = judgements.choose("erp", details().disks, wanted())
    (note,) = judgements.notes(vm, details(), choice, NOW)
    assert note.code == "OldSnapshots"
    assert "'of 3' of 2026-11-20, 'of 40' of 2026-10-14" in note.message
    assert "of 9" not in note.message


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("erp", "erp"),
        ("a%2fb", "a/b"),
        ("a%2Fb%5cc", "a/b\\c"),
        ("100%25", "100%"),
        ("%252f", "%2f"),
        ("50%", "50%"),
        ("%41", "%41"),
    ],
)
def test_names_are_shown_as_people_wrote_them(given: str, shown: str) -> None:
    assert listings.unescaped(given) == shown


def test_places_that_run_in_a_circle_have_no_path() -> None:
    one = listings.Place(name="one", parent="two", kind="Folder")
    two = listings.Place(name="two", parent="one", kind="Folder")
    places = listings.Places(places={"one": one, "two": two}, stores={}, root="root")
    assert places.folder("one") is None
    assert places.above("one", "Datacenter") is None
    assert places.folder("root") == "/"
