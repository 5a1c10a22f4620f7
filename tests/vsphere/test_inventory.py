"""What a vCenter shows and what a policy makes of it, against a lab; and the same through the command."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vsphere_estates as estates
from holdfast_command import Command
from pyVmomi import vim
from vsphere_estates import vsphere_labs

from reconciler.base import errors
from reconciler.sources import opening
from reconciler.sources.vsphere.connections import faults, links, properties, sessions
from reconciler.sources.vsphere.inventory import ancestry, listings, lookups, marks, tags

OWNER = str(uuid.uuid4())
DATACENTERS = [
    {
        "name": "DC0",
        "clusters": [{"name": "C0", "hosts": ["esx1", "esx2"], "pools": ["erp"]}],
        "hosts": ["esx3"],
        "datastores": [
            {"name": "ds1", "type": "VMFS"},
            {"name": "nfs1", "type": "NFS", "capacityBytes": 100 << 30, "freeBytes": 9 << 30},
        ],
    },
    {"name": "DC1", "hosts": ["far1"], "datastores": [{"name": "far", "type": "VMFS"}]},
]


def disk(**changed: Any) -> dict[str, Any]:
    return {"sizeBytes": estates.MIB, **changed}


MACHINES: list[dict[str, Any]] = [
    {"name": "erp1", "folder": "gold/erp", "tags": ["backup/gold"], "attributes": {"owner": "erp"}, "disks": [disk()] * 11, "pool": "erp"},
    {"name": "erp2", "folder": "gold", "tags": ["backup/silver", "tier/gold"], "host": "esx2", "powerState": "poweredOff", "disks": [disk()]},
    {"name": "alone", "host": "esx3", "attributes": {"owner": "hr"}, "disks": [disk(), disk(mode="independent_persistent")]},
    {"name": "far", "datacenter": "DC1", "disks": [disk(kind="rdm", rdm={"compatibility": "physicalMode"}), disk(kind="rdm")]},
    {"name": "untracked", "changeTrackingSupported": False, "disks": [disk()]},
    {"name": "full", "datastore": "nfs1", "disks": [disk()]},
    {"name": "ft", "faultTolerance": True, "disks": [disk()]},
    {"name": "encrypted", "encrypted": True, "disks": [disk()]},
    {"name": "tpm", "encrypted": True, "vtpm": True, "disks": [disk()]},
    {"name": "bus", "disks": [disk(busSharing="virtualSharing")]},
    {"name": "writers", "disks": [disk(), disk(sharing="sharingMultiWriter")]},
    {"name": "template", "template": True, "disks": [disk()]},
    {"name": "bare", "disks": []},
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vsphere_labs.Lab]:
    """One vCenter for all questions that change nothing of it."""
    estates.needed()
    folder = tmp_path_factory.mktemp("vcenter")
    with vsphere_labs.Lab.start(folder, machines=MACHINES, datacenters=DATACENTERS) as started:
        os.environ.update(started.environment())
        yield started
        sessions.close_all()


def test_each_machine_is_placed(lab: vsphere_labs.Lab) -> None:
    look = listings.Look(sessions.of(estates.vcenter(lab)))
    found = {vm.name: vm for vm in look.machines}
    assert sorted(found) == sorted(one["name"] for one in MACHINES)
    erp1 = found["erp1"]
    assert (erp1.path, erp1.datacenter, erp1.cluster, erp1.host) == ("/DC0/vm/gold/erp/erp1", "DC0", "C0", "esx1")
    assert (erp1.resource_pool, erp1.power, erp1.connection) == ("erp", "poweredOn", "connected")
    assert erp1.reference == lab.machine("erp1")["moref"]
    assert erp1.instance_uuid == lab.machine("erp1")["instanceUuid"].lower()
    assert found["erp2"].power == "poweredOff"
    assert (found["alone"].cluster, found["alone"].host) == ("", "esx3")
    assert (found["far"].path, found["far"].datacenter) == ("/DC1/vm/far", "DC1")
    assert found["template"].template
    (store,) = found["full"].datastores or ()
    assert (store.name, store.type, store.capacity, store.free) == ("nfs1", "NFS", 100 << 30, 9 << 30)
    assert store.datacenter == "DC0"
    assert abs(look.now - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)


def test_machines_as_policies_see_them(lab: vsphere_labs.Lab) -> None:
    found = estates.source(lab).inventory()
    machines = {one.name: one for one in found.machines}
    assert estates.codes(found.notes) == ["Templates", "WithoutDisks"]
    assert "template" in found.notes[0].message
    assert "bare" in found.notes[1].message
    assert sorted(machines) == sorted(one["name"] for one in MACHINES if one["name"] not in ("template", "bare"))
    erp1 = machines["erp1"]
    assert erp1.id == f"vsphere:{lab.machine('erp1')['instanceUuid'].lower()}"
    assert erp1.source == "vsphere:lab/DC0/vm/gold/erp/erp1"
    assert erp1.disks == tuple(f"Hard disk {number}" for number in range(1, 12))
    assert (erp1.host, erp1.datastores, erp1.problem, erp1.notes) == ("esx1", ("ds1",), None, ())


def test_what_allows_no_backup_is_named_with_the_next_step(lab: vsphere_labs.Lab) -> None:
    found = estates.source(lab).inventory()
    problems = {one.name: one.problem for one in found.machines if one.problem}
    expected = {
        "ft": "FaultTolerance", "encrypted": "Encrypted", "bus": "SharedBus", "writers": "MultiWriter", "full": "DatastoreFull",
    }  # fmt: skip
    assert {name: problem.code for name, problem in problems.items() if name != "tpm"} == expected
    assert problems["tpm"].code in ("VirtualTpm", "Encrypted")  # a peer of an older API has no word for the device
    for name in ("ft", "encrypted", "bus", "writers", "tpm"):
        assert "leave it out with exclude" in problems[name].message
    assert "Hard disk 2" in problems["writers"].message
    assert "scsi0" in problems["bus"].message
    assert "nfs1 has 9.00 GiB of 100 GiB free (9%), less than datastoreFreeSpace 10%" in problems["full"].message
    assert estates.problems(estates.source(lab, spec={"datastoreFreeSpace": "9%"}).inventory()) == {
        name: problem.code for name, problem in problems.items() if name != "full"
    }


def test_what_makes_an_image_partial_is_told(lab: vsphere_labs.Lab) -> None:
    notes = {
        one.name: {note.code: note.message for note in one.notes} for one in estates.source(lab).inventory().machines
    }
    assert "Hard disk 2 is independent" in notes["alone"]["UnreadDisks"]
    assert "excludeDisks" in notes["alone"]["UnreadDisks"]
    assert "Hard disk 1 is a raw device" in notes["far"]["UnreadDisks"]
    assert "Hard disk 2" not in notes["far"]["UnreadDisks"]
    assert notes["untracked"].keys() == {"NoChangeTracking"}
    assert notes["erp1"] == {}


def test_excluded_disks_and_declared_devices(lab: vsphere_labs.Lab) -> None:
    wanted = {
        "excludeDisks": [{"machine": "al*", "disk": "Hard disk 2"}, {"machine": "erp2", "disk": "*"}],
        "rdm": [{"machine": "far", "disk": "Hard disk 1", "device": "/dev/null"}],
    }
    found = {one.name: one for one in estates.source(lab, **wanted).inventory().machines}
    assert found["alone"].disks == ("Hard disk 1",)
    assert found["alone"].notes == ()
    assert found["far"].disks == ("Hard disk 1", "Hard disk 2")
    assert found["far"].notes == ()
    assert found["erp2"].problem is not None
    assert found["erp2"].problem.code == "NoDisks"
    assert "excludeDisks" in found["erp2"].problem.message


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ([{"folder": "/DC0/vm/gold"}], [], ["erp1", "erp2"]),
        ([{"folder": "/DC0/vm/gold"}], [{"folder": "/DC0/vm/gold/erp"}], ["erp2"]),
        ([{"datacenter": "DC1"}], [], ["far"]),
        ([{"cluster": "C0", "host": "esx2"}], [], ["erp2"]),
        ([{"host": "esx3"}, {"name": "far"}], [], ["alone", "far"]),
        ([{"resourcePool": "erp"}], [], ["erp1"]),
        ([{"datastore": "nfs*"}], [], ["full"]),
        ([{"tag": "backup/gold"}], [], ["erp1"]),
        ([{"tag": "gold"}], [], ["erp1", "erp2"]),
        ([{"tag": "*/silver"}], [], ["erp2"]),
        ([{"tag": "*"}], [{"powerState": "Off"}], ["erp1"]),
        ([{"attributes": {"owner": "h*"}}], [], ["alone"]),
        ([{"name": "ERP1"}], [], []),
    ],
)
def test_selections_hold_against_the_api(
    lab: vsphere_labs.Lab, include: list[dict[str, Any]], exclude: list[dict[str, Any]], names: list[str]
) -> None:
    assert sorted(estates.names(estates.source(lab, include=include, exclude=exclude).inventory())) == names


def test_an_entry_that_matches_nothing_is_named(lab: vsphere_labs.Lab) -> None:
    found = estates.source(
        lab, include=[{"name": "erp1"}, {"folder": "/DC0/vm/gould"}, {"tag": "none/such"}]
    ).inventory()
    assert estates.names(found) == ["erp1"]
    assert estates.codes(found.notes) == ["MatchesNothing", "MatchesNothing"]
    assert "folder: /DC0/vm/gould" in found.notes[0].message
    assert "tag: none/such" in found.notes[1].message


@pytest.fixture
def own(tmp_path: Path) -> Iterator[vsphere_labs.Lab]:
    """A small vCenter that the test may change."""
    estates.needed()
    machines = [
        {"name": name, "folder": "gold", "disks": estates.DISKS, "tags": ["backup/gold"]} for name in ("one", "two")
    ]
    with vsphere_labs.Lab.start(tmp_path / "vcenter", machines=machines) as started:
        os.environ.update(started.environment())
        yield started
        sessions.close_all()


def changed(session: sessions.Session, name: str, task: Callable[[Any], Any]) -> None:
    """Let the vCenter do something to a machine."""
    (vm,) = [one for one in listings.Look(session).machines if one.name == name]
    machine = session.object(vim.VirtualMachine, vm.reference)
    properties.wait(session, session.act(f"VM {name}", lambda: task(machine)), f"VM {name}")


def snapshot_of(session: sessions.Session, name: str, title: str, description: str) -> None:
    """Let the vCenter make a snapshot."""
    changed(session, name, lambda vm: vm.CreateSnapshot_Task(title, description, False, False))


def test_snapshots_of_ours_are_known_by_their_mark(own: vsphere_labs.Lab) -> None:
    session = sessions.of(estates.vcenter(own))
    vm = listings.Look(session).machines[0]
    found = lookups.find(session, lookups.client_id(vm.instance_uuid))
    assert (found.name, found.reference, found.snapshots) == ("one", vm.reference, ())
    made = dt.datetime(2026, 11, 23, 21, tzinfo=dt.UTC)
    ours = marks.Mark(owner=OWNER, id=str(uuid.uuid4()), job="j-000007", made=made)
    others = marks.Mark(owner="somebody-else", id=str(uuid.uuid4()), job="j-000007", made=made)
    for mark in (ours, others):
        snapshot_of(session, "one", marks.name(mark.job), marks.describe(mark))
    snapshot_of(session, "two", "holdfast-j-000007", "mine, do not touch")
    (snapshot,) = estates.source(own, owner=OWNER, include=[{"name": "two"}]).inventory().snapshots
    assert (snapshot.id, snapshot.job, snapshot.vcenter) == (ours.id, "j-000007", "lab")
    assert (snapshot.machine, snapshot.machine_name, snapshot.place) == (found.id, "one", vm.reference)
    shown, _ = own.machine("one")["snapshots"]
    assert snapshot.reference == shown["moref"]
    first, second = lookups.find(session, found.id).snapshots
    assert (first.reference, second.parent) == (shown["moref"], first.reference)


def test_a_client_is_found_by_its_id_and_only_one(own: vsphere_labs.Lab) -> None:
    session = sessions.of(estates.vcenter(own))
    one = lookups.client_id(own.machine("one")["instanceUuid"])
    own.act("one", "rename", name="uno")
    assert lookups.find(session, one).name == "uno"
    with pytest.raises(faults.Vanished, match="no machine has the instance UUID"):
        lookups.find(session, lookups.client_id(str(uuid.uuid4())))
    with pytest.raises(errors.SourceError, match="not the id of a virtual machine"):
        lookups.find(session, "diskimages:/srv/guests/one")
    own.act("two", "duplicateUuid", of="uno")
    with pytest.raises(errors.SourceError, match=r"two \(vm-.*uno \(vm-.*have the same instance UUID"):
        lookups.find(session, one)
    both = estates.source(own).inventory().machines
    assert [(machine.id, machine.name) for machine in both] == [(one, "two"), (one, "uno")]


def test_what_happens_to_a_machine_is_told(own: vsphere_labs.Lab) -> None:
    own.act("one", "consolidationNeeded")
    own.act("two", "connection", state="orphaned")
    found = {one.name: one for one in estates.source(own).inventory().machines}
    assert estates.codes(found["one"].notes) == ["ConsolidationNeeded"]
    assert "consolidate: true" in found["one"].notes[0].message
    assert found["two"].problem is not None
    assert found["two"].problem.code == "Inaccessible"
    assert "its host no longer knows it (orphaned): register it again" in found["two"].problem.message
    own.act("two", "connection", state="connected")
    own.act("", "datastoreFree", datastore="ds1", freeBytes=1 << 30)
    assert estates.problems(estates.source(own).inventory()) == {"one": "DatastoreFull", "two": "DatastoreFull"}


def test_a_move_keeps_the_client_and_changes_its_place(own: vsphere_labs.Lab) -> None:
    before = {one.name: one for one in estates.source(own).inventory().machines}
    own.act("one", "move", folder="silver/deep")
    own.act("one", "vmotion", host="esx2")
    after = {one.name: one for one in estates.source(own).inventory().machines}
    assert after["one"].id == before["one"].id
    assert (after["one"].source, after["one"].host) == ("vsphere:lab/DC0/vm/silver/deep/one", "esx2")


def test_a_machine_of_a_vapp_lies_in_the_folder_of_the_vapp(own: vsphere_labs.Lab) -> None:
    session = sessions.of(estates.vcenter(own))
    (pool, *_) = properties.everything(session, vim.ResourcePool, ("name",), "pools")
    (center,) = properties.everything(session, vim.Datacenter, ("vmFolder",), "datacenters")
    shares = vim.SharesInfo(level="normal", shares=0)
    room = vim.ResourceAllocationInfo(reservation=0, expandableReservation=True, limit=-1, shares=shares)
    resources = vim.ResourceConfigSpec(cpuAllocation=room, memoryAllocation=room)
    vapp = session.act(
        "vApp",
        lambda: pool.object.CreateVApp("app", resources, vim.vApp.VAppConfigSpec(), center.values["vmFolder"]),
    )
    own.act("one", "vApp", name=vapp._moId)
    found = {vm.name: vm for vm in listings.Look(session).machines}
    assert (found["one"].path, found["one"].datacenter) == ("/DC0/vm/one", "DC0")
    assert ancestry.datacenter(session, session.object(vim.VirtualMachine, found["one"].reference), "test") == "DC0"
    assert found["two"].path == "/DC0/vm/gold/two"


def test_what_the_user_may_not_see_is_not_dropped_in_silence(own: vsphere_labs.Lab) -> None:
    own.mode(hidden=["gold"])
    by_name = estates.source(own).inventory()
    assert [one.source for one in by_name.machines] == ["vsphere:lab/?/one", "vsphere:lab/?/two"]
    for wanted in ({"include": [{"folder": "/DC0/vm/gold"}]}, {"exclude": [{"folder": "/DC0/vm/silver"}]}):
        found = estates.source(own, **wanted).inventory()
        assert found.machines == ()
        assert found.unreachable is not None
        assert found.unreachable.code == "NotVisible"
        assert "may not see what the selection asks of one, two: folder" in found.unreachable.message
        assert "System.Read" in found.unreachable.message
    own.mode(hidden=["esx1", "ds1"])
    shown = estates.source(own).inventory().machines
    assert [one.host for one in shown] == [None, None]
    for entry in ({"host": "esx1"}, {"cluster": "C0"}, {"datastore": "ds1"}):
        told = estates.source(own, include=[entry]).inventory().unreachable
        assert told is not None
        assert told.message.startswith("VCenter lab: the user may not see")
    # What can be decided without them is decided.
    assert estates.names(estates.source(own, include=[{"host": "esx1", "name": "nobody"}]).inventory()) == []
    own.mode(hidden=["one"])
    assert estates.names(estates.source(own).inventory()) == ["two"]


def test_tags_are_asked_in_either_form_and_their_absence_is_no_empty_selection(own: vsphere_labs.Lab) -> None:
    tagged = [{"tag": "backup/gold"}]
    for form in ("", "older"):
        own.mode(tagService=form)
        assert estates.names(estates.source(own, include=tagged).inventory()) == ["one", "two"]
        prefix = "/rest" if form else "/api"
        own.fault(on=f"GET {prefix}", kind="http503")
        own.fault(on=f"POST {prefix}", kind="reset", skip=1)
        assert estates.names(estates.source(own, include=tagged).inventory()) == ["one", "two"]
        own.clear_faults()
        assert own.state()["restSessions"] == 0
    own.mode(tagService="none")
    for wanted in ({"include": tagged}, {"include": [{"name": "*"}], "exclude": tagged}):
        found = estates.source(own, **wanted).inventory()
        assert found.machines == ()
        assert found.unreachable is not None
        assert found.unreachable.code == "TagsUnavailable"
        assert "has no tag service" in found.unreachable.message
    # Nobody asked for tags: nothing is missing.
    assert estates.names(estates.source(own).inventory()) == ["one", "two"]


def test_a_vcenter_that_hangs_is_not_waited_for_at_every_look(
    own: vsphere_labs.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "PATIENCE", 0.5)
    own.fault(on="RetrievePropertiesEx", kind="hang", count=0, seconds=30)
    first = estates.source(own).inventory().unreachable
    assert first is not None
    assert "VCenter lab: inventory: 127.0.0.1" in first.message
    assert "timed out" in first.message
    asked = own.state()["calls"]["RetrievePropertiesEx"]
    assert asked == 1
    second = estates.source(own).inventory().unreachable
    assert second is not None
    assert "asked again after five minutes" in second.message
    assert own.state()["calls"]["RetrievePropertiesEx"] == asked
    # One of a service that others do not need.
    monkeypatch.setattr(links, "PATIENCE", 60.0)
    monkeypatch.setattr(tags, "_PATIENCE", 0.5)
    own.clear_faults()
    own.fault(on="POST /api", kind="hang", count=0, seconds=30)
    spec = {"idleLogout": "1h"}  # another session than the one that found no answer
    for said in ("timed out", "asked again after five minutes"):
        told = estates.source(own, spec=spec, include=[{"tag": "backup/gold"}]).inventory().unreachable
        assert told is not None
        assert said in told.message
    assert own.state()["calls"]["POST /api"] == 1
    assert estates.names(estates.source(own, spec=spec).inventory()) == ["one", "two"]


def test_one_look_serves_all_policies(own: vsphere_labs.Lab) -> None:
    known = {"lab": estates.vcenter(own)}
    opened = opening.Sources(known, OWNER)
    before = dict(own.state()["calls"])
    for name in ("one", "two", "*"):
        assert opened.of(estates.policy(include=[{"name": name}])).inventory().unreachable is None
    calls = own.state()["calls"]
    assert calls["CreateContainerView"] - before.get("CreateContainerView", 0) == 3
    own.fault(on="RetrievePropertiesEx", kind="fault", fault="InvalidState", count=0)
    failing = opening.Sources(known, OWNER)
    told = {failing.of(estates.policy(include=[{"name": name}])).inventory().unreachable for name in ("one", "two")}
    assert len(told) == 1
    with pytest.raises(errors.SourceError, match="policy virtual names VCenter lab, which is not declared"):
        opening.Sources({}, OWNER).of(estates.policy())


def test_calls_grow_with_pages_and_not_with_machines(tmp_path: Path) -> None:
    """A thousand machines take two seconds on an idle machine of two cores; here are four hundred."""
    estates.needed()
    machines = [{"name": f"vm{number:04}", "disks": estates.DISKS} for number in range(400)]
    with vsphere_labs.Lab.start(tmp_path / "vcenter", machines=machines) as lab:
        os.environ.update(lab.environment())
        before = lab.state()["calls"]
        began = time.monotonic()
        found = estates.source(lab).inventory()
        took = time.monotonic() - began
        calls = {name: count - before.get(name, 0) for name, count in lab.state()["calls"].items()}
        sessions.close_all()
    assert len(estates.names(found)) == 400
    assert took < 10, took
    assert sum(calls.values()) < 30, calls


# -- through the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def estate(own: vsphere_labs.Lab, holdfast: Command) -> Command:
    """The command, standing in an estate on ``own``."""
    return holdfast.using(folder=estates.write_estate(holdfast.folder / "estate", own), **own.environment())


def clients(command: Command) -> dict[str, dict[str, Any]]:
    """Clients by name."""
    return {one["name"]: one for one in json.loads(command.run("get", "clients", "-o", "json").stdout)["items"]}


def test_a_rename_keeps_the_client(own: vsphere_labs.Lab, estate: Command) -> None:
    estate.run("apply", "--yes")
    first = clients(estate)
    assert sorted(first) == ["one", "two"]
    assert first["one"]["source"] == "vsphere:lab/DC0/vm/gold/one"
    own.act("one", "rename", name="uno")
    estate.run("apply", "--yes")
    second = clients(estate)
    assert sorted(second) == ["two", "uno"]
    assert (second["uno"]["id"], second["uno"]["slug"]) == (first["one"]["id"], first["one"]["slug"])
    shown = estate.run("describe", "client", "uno").stdout
    assert "vsphere:lab/DC0/vm/gold/uno" in shown
    assert own.state()["sessions"] == 0
