"""A virtual machine started from its backups: what a vCenter says of it is no promise that a firmware here can read it."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from holdfast_command import ROOT
from virtual_estates import MIB, VirtualEstate, vsphere_labs

sys.path.insert(0, str(ROOT / "hack"))
import tiny_guests


def test_an_efi_machine_on_vmwares_own_controller_starts_from_an_incremental(tmp_path: Path) -> None:
    before, after = secrets.token_hex(8), secrets.token_hex(8)
    tiny_guests.build(tmp_path / "efi.img", before, firmware="uefi")
    disks = [
        {"label": "Hard disk 1", "controller": "scsi0:0", "sizeBytes": 8 * MIB},
        {"label": "Hard disk 2", "controller": "scsi0:1", "sizeBytes": tiny_guests.SIZE, "from": str(tmp_path / "efi.img")},
    ]  # fmt: skip
    machines = [{"name": "vm1", "firmware": "efi", "memoryMB": 512, "cpus": 1, "disks": disks}]
    with vsphere_labs.Lab.start(tmp_path / "lab", machines=machines) as lab:
        estate = VirtualEstate(tmp_path, lab)
        drills = {"boot": {"within": "120s", "judge": "Serial", "pattern": f"{tiny_guests.READY} {after}"}}
        estate.build(index=True, drills=drills)
        estate.apply()
        place = lab.content("vm1", "Hard disk 2").find(f"{before}\n".encode())
        lab.write("vm1", "Hard disk 2", place, f"{after}\n".encode())
        manifests = estate.folder / "estate.yaml"
        manifests.write_text(
            manifests.read_text().replace(
                "storage: fast,", "storage: fast, verify: {content: 7d, files: 14d, boot: 30d},"
            )
        )
        estate.pass_day()
        estate.apply()
        newest = max(estate.items("images"), key=lambda one: one["sequence"])
        assert (newest["type"], newest["changes"]) == ("Incremental", "Known")
        found = {one["proof"]: one for one in estate.items("verifications")}
        assert {(one["image"], one["state"]) for one in found.values()} == {(newest["id"], "Passed")}
        assert set(found) == {"Boot", "Files"} and after in found["Boot"]["details"]["console"]
        (client,) = estate.items("clients")
        assert {one["type"]: one["reason"] for one in client["conditions"]}["Recoverable"] == "Verified"
