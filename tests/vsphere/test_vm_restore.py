"""Restores of virtual machines into a vCenter: every way, every byte, and nothing left of what went wrong."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import virtual_estates
from pyVmomi import vim
from vm_restores import DATACENTER, IMAGE, MIB, UUID, World, machine

from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import properties, sessions

WAYS = ("import", "datastore", "vddk")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A vCenter with two machines, and an image of the first."""
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab",
        machines=[machine(1, tags=["backup/gold", "a b/c*"]), machine(2, nvram=False)],
        datacenters=[DATACENTER],
        taskMillis=1,
    ) as lab:
        for name, value in lab.environment().items():
            monkeypatch.setenv(name, value)
        made = World(tmp_path, lab, ("datastore", "nbdkit-vddk"))
        made.fill("vm1")
        made.back_up()
        yield made
        sessions.close_all()


# -- the ways, places and identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("via", WAYS)
def test_each_way_writes_every_byte(world: World, via: Any) -> None:
    target = world.restore(via=via, name="back")
    world.prove("back")
    assert (target.way, target.identity) == (via, "new")
    assert target.target == "vsphere:lab/DC0/vm/gold/back"
    made = world.lab.machine("back")
    assert (made["folder"], made["host"], made["powerState"], made["firmware"]) == ("gold", "esx1", "poweredOff", "efi")
    assert made["attributes"] == {"owner": "x"}
    assert sorted(made["tags"]) == ["a b/c*", "backup/gold"]
    assert made["instanceUuid"] != f"{UUID}1"
    keys = {str(one.key) for one in world.config("back").extraConfig if one.value}
    assert not [key for key in keys if key.startswith("holdfast")]
    assert world.names() == ["back", "vm1", "vm2"]


def test_the_same_identity_where_the_original_is_gone(world: World) -> None:
    before = world.config("vm1")
    world.lab.act("vm1", "destroy")
    target = world.restore()
    world.prove("vm1")
    after = world.config("vm1")
    assert target.identity == "same"
    assert (after.instanceUuid, after.uuid) == (before.instanceUuid, before.uuid)


def test_what_a_vcenter_does_not_offer_is_said(world: World) -> None:
    world.lab.mode(tagService="older")
    world.restore(name="older")
    assert sorted(world.lab.machine("older")["tags"]) == ["a b/c*", "backup/gold"]
    world.lab.mode(tagService="none")
    target = world.restore(name="none")
    assert any("tags were not set" in note for note in target.notes)
    world.lab.fault(on="ImportVApp", kind="fault", fault="NotSupported")
    target = world.restore(name="beside")
    assert target.way == "datastore"
    assert any("import is not offered" in note for note in target.notes)
    world.prove("beside")


def test_the_same_identity_is_refused_while_the_original_lives(world: World) -> None:
    with pytest.raises(errors.TargetExists, match="vm1 has the identity") as caught:
        world.plan(name="back", identity="same")
    assert "--identity new" in str(caught.value.hint)


def _card(world: World, kind: str = "manual") -> None:
    """A network card for vm1."""
    card = vim.vm.device.VirtualVmxnet3(
        key=-1,
        addressType=kind,
        macAddress="00:50:56:00:00:11",
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
    )
    change = vim.vm.ConfigSpec(deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=card)])
    properties.wait(world.session, world.reference("vm1").ReconfigVM_Task(change), "test")


def test_a_network_that_is_not_there_leaves_the_card_unconnected(world: World) -> None:
    _card(world)
    world.back_up()
    assert world.label.configuration is not None
    world.back_up(configuration=world.label.configuration.replace('"network":"VM Network"', '"network":"gone"'))
    target = world.restore(name="back")
    cards = [one for one in world.config("back").hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    assert [one.connectable.startConnected for one in cards] == [False]
    assert any("network gone is not here" in note and "not connected" in note for note in target.notes)


def test_macs_are_kept_with_the_identity_and_not_without(world: World) -> None:
    _card(world)
    world.back_up()
    world.restore(name="back")
    world.lab.act("vm1", "destroy")
    world.restore()
    assert _macs(world, "vm1") == ["00:50:56:00:00:11"]
    assert len(_macs(world, "back")) == 1
    assert _macs(world, "back") != ["00:50:56:00:00:11"]


def _macs(world: World, name: str) -> list[str]:
    kinds = vim.vm.device.VirtualEthernetCard
    return [one.macAddress for one in world.config(name).hardware.device if isinstance(one, kinds)]


def test_a_cluster_of_the_same_name_in_another_datacenter_is_not_home(tmp_path: Path, monkeypatch: Any) -> None:
    centers = [
        {"name": name, "clusters": [{"name": "C0", "hosts": [f"esx{number}"]}], "datastores": [{"name": "ds1"}]}
        for number, name in enumerate(("other", "DC0"))
    ]
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=[machine(datacenter="DC0", folder="", host="esx1")], datacenters=centers
    ) as lab:
        for name, value in lab.environment().items():
            monkeypatch.setenv(name, value)
        world = World(tmp_path, lab)
        world.back_up()
        assert world.label.configuration is not None
        world.back_up(configuration=world.label.configuration.replace('"host":"esx1"', '"host":"gone"'))
        target = world.plan(name="back")
        sessions.close_all()
    assert target.target == "vsphere:lab/DC0/vm/back"


@pytest.mark.parametrize(
    ("wanted", "folder", "host", "store"),
    [
        ({"folder": "restored"}, "restored", "esx1", "ds1"),
        ({"folder": "/DC0/vm/restored", "host": "esx2"}, "restored", "esx2", "ds1"),
        ({"host": "esx3", "datastore": "ds2"}, "gold", "esx3", "ds2"),
        ({"host": "C0", "datastore": "ds2", "pool": "Resources"}, "gold", "esx1", "ds2"),
    ],
)
def test_another_place(world: World, wanted: dict[str, str], folder: str, host: str, store: str) -> None:
    target = world.restore(name="back", **wanted)
    world.prove("back")
    made = world.lab.machine("back")
    assert (made["folder"], made["host"]) == (folder, host)
    assert {one["file"].partition("]")[0] for one in made["disks"]} == {f"[{store}"}
    assert target.target == f"vsphere:lab/DC0/vm/{folder}/back"


@pytest.mark.parametrize(
    ("wanted", "words", "hint"),
    [
        ({"folder": "silver"}, "no folder of machines silver", "gold"),
        ({"host": "esx9"}, "no host or cluster esx9", "esx1"),
        ({"datastore": "ds9"}, "no datastore ds9", "ds1, ds2"),
        ({"pool": "p9"}, "no resource pool of this host p9", "Resources"),
    ],
)
def test_a_place_that_is_not_there_says_what_is(world: World, wanted: dict[str, str], words: str, hint: str) -> None:
    with pytest.raises(errors.NotFound, match=words) as caught:
        world.plan(name="back", **wanted)
    assert hint in str(caught.value.hint)


def test_a_flat_upload_is_refused_where_objects_are_kept(world: World) -> None:
    with pytest.raises(errors.TargetError, match="vSAN, which keeps objects") as caught:
        world.plan(name="back", datastore="vs1", via="datastore")
    assert "import" in str(caught.value.hint)

    world.lab.act("vm1", "datastoreFree", datastore="ds2", freeBytes=5 * MIB)
    with pytest.raises(errors.TargetError, match=r"flat files take all of .*are free on ds2"):
        world.plan(name="back", datastore="ds2", via="datastore")
    # It keeps objects, so it is proven through VMware's library.
    world.restore(name="back", datastore="vs1")
    world.prove("back")


def test_one_disk_alone_is_said(world: World) -> None:
    said = world.run("--name", "back", "--disk", "Hard disk 2").stdout
    del world.contents["Hard disk 1"]
    world.prove("back")
    assert "Hard disk 1 is not restored: the machine comes without it" in said
    assert world.run("--name", "other", "--disk", "Hard disk 9", code=1).stderr.count("has no disk Hard disk 9") == 1


def test_a_dry_run_says_all_and_makes_nothing(world: World) -> None:
    calls = world.lab.state()["calls"]
    planned = json.loads(world.run("--name", "back", "--host", "esx3", "--dry-run", "-o", "json").stdout)
    assert (planned["state"], planned["target"]) == ("Planned", "vsphere:lab/DC0/vm/gold/back")
    assert (planned["via"], planned["identity"]) == ("import", "new")
    assert [one["verified"] for one in planned["disks"]] == [False, False]
    made = {name for name, count in world.lab.state()["calls"].items() if count != calls.get(name, 0)}
    assert not [name for name in made if name.endswith("_Task") or name == "ImportVApp"]


def test_what_is_written_is_said_with_its_rate(world: World) -> None:
    said = world.run("--name", "back", "--power-on").stdout
    assert "vsphere:lab/DC0/vm/gold/back  by import, new identity" in said
    assert re.search(r"writing \S+.*/s", said)
    assert re.search(r"proving \S+.*/s", said)
    assert world.lab.machine("back")["powerState"] == "poweredOn"


def test_an_image_of_no_machine_is_refused(world: World) -> None:
    world.back_up(configuration=None)
    said = world.run("--name", "back", code=64).stderr
    assert "holds disks and no machine" in said


# -- never over a machine, and in place of one -----------------------------------------------------------------------


def test_never_over_a_machine(world: World) -> None:
    before = world.contents
    said = world.run(code=4).stderr
    assert "there is a machine vm1 in /DC0/vm/gold" in said
    assert "--replace" in said
    assert world.names() == ["vm1", "vm2"]
    assert world.contents == before


@pytest.mark.parametrize("identity", ["same", "new"])
def test_replacing_leaves_the_old_machine_whole(world: World, identity: str) -> None:
    _card(world, "assigned")
    world.back_up()
    # What is not in the API's description, not every server has.
    world.lab.fault(on="Fetch", kind="fault", fault="NotSupported")
    world.lab.write("vm1", "Hard disk 1", 0, b"after the backup")
    old = {one["label"]: world.lab.content("vm1", one["label"]) for one in world.lab.machine("vm1")["disks"]}
    done = json.loads(
        world.run("--replace", "--identity", identity, "-o", "json", HOLDFAST_CLOCK="2026-11-24T06:00:00Z").stdout
    )
    aside = "vm1.replaced-2026-11-24"
    assert world.names() == ["vm1", aside, "vm2"]
    world.prove("vm1")
    left = world.lab.machine(aside)
    assert left["powerState"] == "poweredOff"
    assert {one["label"]: world.lab.content(aside, one["label"]) for one in left["disks"]} == old
    same = world.lab.machine("vm1")["instanceUuid"] == f"{UUID}1"
    assert same == (identity == "same")
    assert left["instanceUuid"] != world.lab.machine("vm1")["instanceUuid"]
    assert done["identity"] == identity
    assert any(aside in note for note in done["notes"])
    assert not any("firmware" in note for note in done["notes"])
    # The address was the old machine's when the card was made.
    assert (_macs(world, "vm1") == ["00:50:56:00:00:11"]) == same
    # The same day once more: names do not collide.
    world.run("--replace", HOLDFAST_CLOCK="2026-11-24T07:00:00Z")
    assert world.names() == ["vm1", aside, f"{aside}-2", "vm2"]


@pytest.mark.parametrize("on", ["PowerOffVM_Task", "ReconfigVM_Task"])
def test_what_fails_while_replacing_is_taken_back(world: World, on: str) -> None:
    world.lab.fault(on=on, vm="vm1", kind="task", fault="InsufficientResourcesFault", message="no room today")
    with pytest.raises(errors.SourceError, match="no room today"):
        world.restore(replace=True)
    assert world.names() == ["vm1", "vm2"]
    found = world.lab.machine("vm1")
    assert (found["powerState"], found["instanceUuid"]) == ("poweredOn", f"{UUID}1")


def test_what_a_forgotten_task_did_is_seen(world: World) -> None:
    # The machine's own changes as above, and a service that is busy for a moment.
    world.lab.fault(on="ReconfigVM_Task", kind="forget", skip=4)
    world.lab.fault(on="PUT /folder", kind="http503", count=2)
    world.lab.fault(on="RemoveSnapshot_Task", kind="task", fault="FileLocked")
    world.restore(replace=True, via="datastore")
    (aside,) = (name for name in world.names() if name.startswith("vm1.replaced-"))
    assert world.names() == ["vm1", aside, "vm2"]
    assert world.lab.machine("vm1")["instanceUuid"] == f"{UUID}1"


def test_a_naming_that_fails_brings_the_old_machine_back(world: World) -> None:
    # The machine's own changes: nvram, the mark, then its name.
    world.lab.fault(on="ReconfigVM_Task", kind="task", fault="InsufficientResourcesFault", message="not today", skip=3)
    with pytest.raises(errors.SourceError, match="not today"):
        world.restore(replace=True)
    assert world.names() == ["vm1", "vm2"]
    found = world.lab.machine("vm1")
    assert (found["powerState"], found["instanceUuid"]) == ("poweredOn", f"{UUID}1")


def test_what_became_of_the_old_machine_meanwhile_is_seen(world: World) -> None:
    old = world.reference("vm1")

    def renamed_and_off(phase: str) -> None:
        if phase == "proving":
            old.PowerOffVM_Task()
            old.ReconfigVM_Task(vim.vm.ConfigSpec(name="vm1.other"))

    with pytest.raises(errors.TargetExists, match=r"renamed to vm1\.other"):
        world.restore(renamed_and_off, replace=True, name="vm1")
    assert world.names() == ["vm1.other", "vm2"]
    assert world.lab.machine("vm1.other")["powerState"] == "poweredOff"

    old.ReconfigVM_Task(vim.vm.ConfigSpec(name="vm1"))
    old.PowerOnVM_Task()
    world.restore(lambda phase: old.PowerOffVM_Task() if phase == "proving" else None, replace=True)
    assert len(world.names()) == 3


# -- bad endings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("via", "fault", "words"),
    [
        ("import", {"on": "ImportVApp", "kind": "fault", "fault": "InsufficientResourcesFault"}, "import"),
        ("import", {"on": "POST /nfc", "kind": "http503"}, "import of Hard disk 1"),
        ("import", {"on": "POST /nfc", "kind": "http503", "skip": 1}, "import of Hard disk 2"),
        ("import", {"on": "HttpNfcLeaseComplete", "kind": "fault", "fault": "InvalidState"}, "completing"),
        (
            "datastore",
            {"on": "CreateVM_Task", "kind": "task", "fault": "FileFault", "late": True},
            "making the machine",
        ),
        ("datastore", {"on": "PUT /folder", "kind": "http503", "skip": 1, "count": 3}, "upload of Hard disk 1"),
        ("datastore", {"on": "PUT /folder", "kind": "http503", "skip": 3, "count": 3}, "upload of Hard disk 2"),
        ("datastore", {"on": "ReconfigVM_Task", "kind": "task", "fault": "FileLocked"}, "attaching disks"),
        ("vddk", {"on": "CreateVM_Task", "kind": "task", "fault": "InsufficientStorageSpace"}, "making the machine"),
        ("import", {"on": "CreateSnapshot_Task", "kind": "task", "fault": "FileFault"}, "reading it back"),
        (
            "datastore",
            {"on": "RemoveSnapshot_Task", "kind": "task", "fault": "InsufficientResourcesFault"},
            "removing the snapshot",
        ),
    ],
)
def test_a_fault_leaves_nothing(world: World, via: Any, fault: dict[str, Any], words: str) -> None:
    before = world.files()
    world.lab.fault(**{"message": "the peer says so", **fault})
    with pytest.raises(errors.HoldfastError, match=words):
        world.restore(via=via, name="back")
    world.lab.clear_faults()
    assert world.names() == ["vm1", "vm2"]
    assert world.files() == before
    assert not [one for one in world.lab.state()["leases"] if one["state"] in ("ready", "initializing")]


def test_other_bytes_than_the_image_holds_are_never_named(world: World) -> None:
    def phase(name: str) -> None:
        if name == "proving":
            world.lab.write(world.halfmade()[0], "Hard disk 1", MIB, b"bits rot here")

    with pytest.raises(errors.ImageDamaged, match="Hard disk 1 was read back with digest"):
        world.restore(phase, via="import", name="back")
    assert world.names() == ["vm1", "vm2"]


def test_a_lease_is_told_of_progress_in_time(world: World) -> None:
    world.lab.mode(leaseSeconds=1)
    world.lab.fault(on="POST /nfc", kind="slow", seconds=2.5)
    world.restore(via="import", name="back")
    world.prove("back")


def test_a_session_that_ends_is_renewed(world: World) -> None:
    world.lab.fault(on="CreateSnapshot_Task", kind="expire")
    world.lab.fault(on="ReconfigVM_Task", kind="expire")
    world.restore(via="datastore", name="back")
    world.prove("back")


# -- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("via", "point"),
    [
        ("import", "machine.made"),
        ("import", "machine.proven"),
        ("datastore", "machine.disk-written"),
        ("vddk", "machine.disk-written"),
    ],
)
def test_what_a_kill_leaves_is_swept_by_the_next_restore(world: World, via: str, point: str) -> None:
    world.lab.mode(leaseSeconds=1)
    world.run("--name", "back", "--via", via, code=-signal.SIGKILL, HOLDFAST_CRASH=point)
    world.prove("vm1")
    assert "back" not in world.names()
    if via == "import" and point != "machine.proven":
        # A lease dies with its maker, and takes the machine along.
        _until(lambda: not world.halfmade())
    else:
        assert len(world.halfmade()) == 1
    said = world.run("--name", "back", "--via", via).stdout
    assert ("half-made by a dead restore, was removed" in said) == (via != "import" or point == "machine.proven")
    world.prove("back")
    assert world.names() == ["back", "vm1", "vm2"]
    # Its own folder keeps the temporary name; the dead one's is gone.
    assert len({name.partition("/back.")[2].partition("/")[0] for name in world.files()}) == 1


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_restore_that_is_stopped_in_the_middle(world: World, sent: signal.Signals) -> None:
    world.lab.fault(on="PUT /folder", kind="slow", seconds=20, skip=1)
    words = ("restore", "--unit", world.unit, IMAGE, "--vcenter", "lab", "--name", "back", "--via", "datastore")
    process = world.command.start(*words)
    try:
        _until(lambda: bool(world.halfmade()))
        time.sleep(0.3)
        process.send_signal(sent)
        process.communicate(timeout=60)
    finally:
        process.kill()
    world.lab.clear_faults()
    world.prove("vm1")
    if sent is signal.SIGTERM:
        assert process.returncode == errors.Cancelled.exit_code
        assert world.halfmade() == []
    else:
        assert len(world.halfmade()) == 1
        world.run("--name", "back")
        assert world.names() == ["back", "vm1", "vm2"]


def test_a_kill_between_the_old_name_and_the_new(world: World) -> None:
    world.run("--replace", code=-signal.SIGKILL, HOLDFAST_CRASH="machine.old-renamed")
    aside = next(name for name in world.names() if "replaced" in name)
    world.prove(aside)
    half = world.halfmade()
    assert len(half) == 1
    # It was proven, so nobody removes it; it is named instead.
    said = world.run().stdout
    assert f"{half[0]} was proven whole" in said
    world.prove("vm1")
    world.prove(aside)
    assert world.halfmade() == half


def test_another_restore_at_work_is_left_alone(world: World) -> None:
    first = world.plan(via="datastore", name="one")
    first.begin(meters.Meter())
    world.restore(via="datastore", name="two")
    assert len(world.halfmade()) == 1
    first.abort()
    assert world.names() == ["two", "vm1", "vm2"]


def _until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
