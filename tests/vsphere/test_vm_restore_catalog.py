"""A backup of a virtual machine, and its restore from the catalog by the command: job, audit, and the next pass."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import virtual_estates
from vm_restores import DATACENTER, machine

MIB = virtual_estates.MIB


def test_a_backed_up_machine_comes_back_from_the_catalog(tmp_path: Path) -> None:
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=[machine(1)], datacenters=[DATACENTER], taskMillis=1
    ) as lab:
        estate = virtual_estates.VirtualEstate(tmp_path, lab).build()
        lab.write("vm1", "Hard disk 1", MIB, b"before the backup" * 100)
        estate.apply()
        before = estate.contents()["vm1"]
        lab.write("vm1", "Hard disk 1", MIB, b"after the backup" * 100)
        command = estate.command
        said = command.run("restore", "vm1", "--vcenter", "lab", code=4).stderr
        assert "there is a machine vm1" in said
        words = ("restore", "vm1", "--vcenter", "lab", "--replace", "--reason", "wrong update")
        done = command.json(*words)
        assert (done["state"], done["via"], done["identity"]) == ("Verified", "import", "same")
        assert [phase["name"] for phase in done["phases"]] == ["making", "writing", "proving", "naming"]
        assert estate.contents()["vm1"] == before
        (job,) = [one for one in estate.items("jobs") if one["type"] == "Restore" and one["state"] == "Succeeded"]
        assert job["image"] == done["image"]
        (entry,) = [one for one in estate.items("audit") if one["event"] == "Restored"]
        assert entry["details"]["target"] == "vsphere:lab/DC0/vm/gold/vm1"
        assert entry["details"]["reason"] == "wrong update"
        # The client goes on with the new machine; the old one is another now.
        estate.pass_day()
        estate.apply()
        images = [one for one in estate.items("images") if one["client"] == "vm1"]
        assert len(images) == 2


def test_a_half_made_machine_is_no_client(tmp_path: Path) -> None:
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=[machine(1), {**machine(2), "name": "vm2.holdfast-0a1b2c3d"}],
        datacenters=[DATACENTER], taskMillis=1,
    ) as lab:  # fmt: skip
        estate = virtual_estates.VirtualEstate(tmp_path, lab).build()
        estate.apply()
        assert "HalfMade" in {one["code"] for one in estate.command.json("plan")["drift"]}
        assert {one["client"] for one in estate.items("images")} == {"vm1"}


def test_names_with_slashes_and_machines_on_vsan_come_and_go_and_who_has_no_image_is_told(tmp_path: Path) -> None:
    coded = {**machine(1), "name": "erp%2fdb 50%25", "datastore": "vs1"}
    barred = {**machine(2), "faultTolerance": True}
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=[coded, barred], datacenters=[DATACENTER], taskMillis=1
    ) as lab:
        estate = virtual_estates.VirtualEstate(tmp_path, lab).build(transports=["nbdkit-vddk"])
        said = estate.apply()
        assert "Drift: 1 FaultTolerance" in said
        conditions = {
            one["name"]: {found["type"]: found["reason"] for found in one["conditions"]}
            for one in estate.items("clients")
        }
        assert conditions["vm2"]["Protected"] == "FaultTolerance"
        assert conditions["erp/db 50%"]["Protected"] == "Recent"
        before = estate.contents()["erp%2fdb 50%25"]
        command = estate.command
        for words in (("--replace",), ("--name", "ü/[1]", "--via", "datastore", "--datastore", "ds1")):
            command.run("restore", "erp/db 50%", "--vcenter", "lab", *words)
        found = estate.contents()
        assert found["erp%2fdb 50%25"] == found["ü%2f[1]"] == before
        assert any(name.startswith("erp%2fdb 50%25.replaced-") for name in found)


def test_a_copy_that_rots_in_the_middle_is_followed_by_the_other(tmp_path: Path) -> None:
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=[machine(1)], datacenters=[DATACENTER], taskMillis=1
    ) as lab:
        estate = virtual_estates.VirtualEstate(tmp_path, lab).build()
        manifest = estate.folder / "estate.yaml"
        second = "    - {name: deep, type: Duplication, source: land, storage: pool, retention: {type: Forever}}\n"
        land = next(line for line in manifest.read_text().splitlines(keepends=True) if "name: land" in line)
        manifest.write_text(manifest.read_text().replace(land, land + second))
        for label, size in (("Hard disk 1", 5 * MIB), ("Hard disk 2", 2 * MIB)):
            lab.write("vm1", label, 0, random.Random(label).randbytes(size))
        estate.apply()
        before = estate.contents()["vm1"]
        lab.fault(on="POST /nfc", kind="slow", seconds=2)
        process = estate.command.start("restore", "vm1", "--vcenter", "lab", "--name", "back", "-o", "json")
        try:
            deadline = time.monotonic() + 60
            while not any(".holdfast-" in one["name"] for one in lab.state()["machines"]):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            # The first disk is under way, the second one not begun.
            files = [path for path in (estate.folder / "units" / "fast").rglob("*") if path.stat().st_size >= 2 * MIB]
            assert len(files) == 2
            for path in files:
                with path.open("r+b") as file:
                    file.seek(-MIB, 2)
                    file.write(b"rot" * 1000)
            said, told = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0, told
        done = json.loads(said)
        assert done["state"] == "Verified" and any("copy 1 on fast cannot be read" in note for note in done["notes"])
        assert estate.contents()["back"] == before
        assert {one["name"] for one in lab.state()["machines"]} == {"vm1", "back"}
        assert {one["unit"]: one["state"] for one in estate.items("copies")} == {"fast": "Damaged", "pool": "Complete"}
        (record,) = estate.items("restores")
        assert (record["state"], record["copy"], record["unit"]) == ("Verified", 2, "pool")
