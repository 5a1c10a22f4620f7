"""Machines whose disks are torn, gone, unreadable or no disks at all: what can be kept is kept, and the rest is named."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_estates import Estate


def images_of(estate: Estate, client: str) -> list[dict[str, Any]]:
    found = [image for image in estate.items("images") if image["client"] == client]
    return sorted(found, key=lambda image: str(image["time"]))


def test_a_truncated_qcow2_makes_a_partial_image_that_names_it(fresh: Estate) -> None:
    shutil.copy(fresh.machines / "vm1" / "data.raw", fresh.machines / "vm2" / "spare.raw")
    torn = fresh.machines / "vm2" / "root.qcow2"
    with torn.open("r+b") as file:
        file.truncate(torn.stat().st_size // 2)
    done = fresh.ask_process("apply", "--yes", ".", code=3)
    assert "root.qcow2" in str([outcome["error"] for outcome in done["actions"] if outcome["error"]])
    assert [image["state"] for image in images_of(fresh, "vm2")][-1] == "Partial"
    assert [image["state"] for image in images_of(fresh, "vm1")] == ["Complete"]
    assert {label.client_slug for label in fresh.held()["pool"].values()} == {"vm1"}


def test_a_disk_gone_between_passes_is_drift(grown: Estate) -> None:
    (grown.machines / "vm1" / "data.raw").unlink()
    grown.command.run("apply", "--yes", ".")
    assert "DiskRemoved" in grown.drift()
    assert {image["state"] for image in images_of(grown, "vm1")} == {"Complete"}


@pytest.mark.parametrize("fault", ["grows", "vanishes"])
def test_a_disk_that_moves_while_it_is_read_is_partial(fresh: Estate, fault: str) -> None:
    disk = fresh.machines / "vm1" / "system.img"
    with disk.open("r+b") as file:
        for offset in range(0, 300 << 20, 1 << 20):
            file.seek(offset)
            file.write(offset.to_bytes(8, "little") * 131072)
    process = fresh.command.start("apply", "--yes", ".")
    deadline = time.monotonic() + 60
    while not list(fresh.paths["fast"].glob("vm1/.*/*")):
        assert process.poll() is None and time.monotonic() < deadline, "no backup was seen to begin"
        time.sleep(0.002)
    if fault == "grows":
        with disk.open("ab") as file:
            file.write(bytes(1 << 20))
    else:
        disk.unlink()
    process.communicate(timeout=120)
    assert process.returncode == 3
    newest = images_of(fresh, "vm1")[-1]
    assert newest["state"] == "Partial"
    assert "system.img" in str(newest["warnings"])
    assert [image["state"] for image in images_of(fresh, "vm2")] == ["Complete"]


def test_a_machine_without_disks_is_drift_and_no_failure(grown: Estate) -> None:
    (grown.machines / "empty").mkdir()
    grown.command.run("apply", "--yes", ".")
    assert "NoDisks" in grown.drift()
    grown.require_converged()


def _garbage(estate: Estate) -> None:
    folder = estate.machines / "broken"
    folder.mkdir()
    (folder / "root.qcow2").write_bytes(b"this is no disk image " * 1000)


def _dangling(estate: Estate) -> None:
    folder = estate.machines / "broken"
    folder.mkdir()
    (folder / "system.img").symlink_to("/nowhere/at/all.img")


@pytest.mark.parametrize("fault", [_garbage, _dangling], ids=["garbage", "dangling"])
def test_a_disk_that_cannot_be_read_fails_alone(grown: Estate, fault: Callable[[Estate], None]) -> None:
    fault(grown)
    done = grown.ask_process("apply", "--yes", ".", code=3)
    failed = {outcome["address"]: outcome["error"]["message"] for outcome in done["actions"] if outcome["error"]}
    assert failed and all("/broken@" in address for address in failed)
    assert all("root.qcow2" in text or "system.img" in text for text in failed.values())
    assert all(state != "Running" for state in grown.job_states())
    grown.require_agreement()
    grown.require_tidy()
    grown.require_bytes()
    # Repaired, the machine is backed up at its next chance.
    for path in list((grown.machines / "broken").iterdir()):
        path.unlink()
    (grown.machines / "broken").rmdir()
    grown.command.run("apply", "--yes", ".")
    assert not grown.ask("plan", "--detailed-exitcode", ".")["summary"]["changes"]


def test_a_machine_that_is_gone_keeps_its_images(grown: Estate) -> None:
    shutil.rmtree(grown.machines / "vm2")
    grown.command.run("apply", "--yes", ".")
    assert "UnprotectedClient" in grown.drift()
    kept = [image for image in images_of(grown, "vm2") if image["state"] == "Complete"]
    assert kept
    assert any(label.client_slug == "vm2" for label in grown.held()["pool"].values())
    grown.require_converged()


def test_a_source_that_is_gone_is_drift_and_expires_nobody(grown: Estate, tmp_path: Path) -> None:
    before = {(unit, image) for unit, labels in grown.held().items() for image in labels}
    grown.machines.rename(tmp_path / "aside")
    grown.command.run("apply", "--yes", ".", code=None)
    assert "UnreachableSource" in grown.drift()
    newest = {image for unit, image in before if unit == "pool"}
    assert newest & {image for labels in grown.held().values() for image in labels}
    (tmp_path / "aside").rename(grown.machines)
    grown.command.run("apply", "--yes", ".")
    grown.require_converged()
