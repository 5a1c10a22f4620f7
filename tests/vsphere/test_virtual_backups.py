"""Virtual machines from manifests to restored files, through the command: what comes back is what was frozen."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import virtual_estates
from virtual_estates import MIB, VirtualEstate, vsphere_labs

DISKS = [{"label": "Hard disk 1", "sizeBytes": 24 * MIB}, {"label": "Hard disk 2", "sizeBytes": 5 * MIB + 512}]


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[VirtualEstate]:
    machines = [{"name": f"vm{number}", "disks": DISKS, "changeTracking": True} for number in (1, 2)]
    with vsphere_labs.Lab.start(tmp_path / "lab", machines=machines, taskMillis=20) as lab:
        yield VirtualEstate(tmp_path, lab)


class Scribbling:
    """A guest that writes all the time."""

    def __init__(self, estate: VirtualEstate) -> None:
        self._estate = estate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self._estate.guest_writes("vm1", places=1)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def images(estate: VirtualEstate, name: str) -> list[dict[str, object]]:
    """The machine's images, by time."""
    found = [one for one in estate.items("images") if one["client"] == name]
    return sorted(found, key=lambda one: str(one["time"]))


WEEKLY = [{"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "7d"}]


def test_nights_of_two_machines(estate: VirtualEstate) -> None:
    estate.build(schedules=WEEKLY)
    wanted = []
    for night in range(3):
        for vm in ("vm1", "vm2"):
            estate.guest_writes(vm, places=5)
            estate.guest_writes(vm, "Hard disk 2", places=2)
        wanted.append(estate.contents())
        estate.apply()
        assert estate.snapshots() == []
        if night < 2:
            estate.pass_day()
    for vm in ("vm1", "vm2"):
        made = images(estate, vm)
        assert [one["state"] for one in made] == ["Complete"] * 3
        assert [one["consistency"] for one in made] == ["Snapshot"] * 3
        assert [one["changes"] for one in made] == ["FullRead", "Known", "Known"]
        assert [one["warnings"] for one in made] == [[]] * 3
        assert estate.bytes_of(vm, str(made[2]["id"])) == wanted[2][vm]
    assert estate.bytes_of("vm1", str(images(estate, "vm1")[0]["id"])) == wanted[0]["vm1"]


def test_a_guest_that_never_stops_writing_is_backed_up_as_it_was_frozen(estate: VirtualEstate) -> None:
    estate.build(storage="pool")
    estate.apply()
    estate.pass_day()
    frozen: dict[str, str] = {}
    seen = threading.Event()

    def look() -> None:
        """As soon as the snapshot is there, what it holds."""
        while not seen.wait(0.002):
            for machine in estate.lab.state()["machines"]:
                for snapshot in machine["snapshots"] if machine["name"] == "vm1" else ():
                    held = estate.lab.frozen("vm1", "Hard disk 1", snapshot["moref"])
                    frozen["sha"] = virtual_estates._sha(held)
                    return

    looking = threading.Thread(target=look)
    looking.start()
    with Scribbling(estate):
        estate.apply()
    seen.set()
    looking.join()
    newest = images(estate, "vm1")[-1]
    assert newest["changes"] == "Known"
    assert estate.bytes_of("vm1", str(newest["id"]))["Hard disk 1"] == frozen["sha"]
    assert estate.snapshots() == []
    estate.command.run("plan", "--detailed-exitcode", ".", code=0)


def test_a_block_that_was_wrongly_called_unchanged_is_met_and_all_is_read(estate: VirtualEstate) -> None:
    estate.build(source={"cbtDistrust": {"share": "100%"}, "include": [{"name": "vm1"}]}, storage="pool")
    estate.apply()
    with Path(estate.lab.machine("vm1")["disks"][0]["flat"]).open("r+b") as file:
        file.seek(20 * MIB + 5)
        file.write(b"its tracking does not see it")
    estate.pass_day()
    wanted = estate.contents()["vm1"]
    estate.apply()
    newest = images(estate, "vm1")[-1]
    assert (newest["state"], newest["changes"]) == ("Complete", "FullRead")
    assert estate.bytes_of("vm1", str(newest["id"])) == wanted
    job = next(one for one in estate.items("jobs") if one["image"] == newest["id"])
    assert "blocks that were called unchanged have changed" in estate.command.run("logs", str(job["id"])).stdout
    assert estate.snapshots() == []


def test_a_machine_that_gets_a_disk_meanwhile_leaves_no_image(estate: VirtualEstate) -> None:
    estate.build(source={"include": [{"name": "vm1"}]}, storage="pool")
    estate.lab.mode(diskBytesPerSecond=24 * MIB)

    def add() -> None:
        while not estate.lab.machine("vm1")["snapshots"]:
            time.sleep(0.005)
        time.sleep(0.5)
        estate.lab.act("vm1", "addDisk", sizeBytes=MIB, slot="scsi0:7")

    adding = threading.Thread(target=add)
    adding.start()
    said = estate.apply(code=3)
    adding.join()
    assert "VM vm1: Hard disk 3 was added while it was read" in said
    assert estate.items("images") == []
    assert estate.snapshots() == []
    estate.lab.mode(diskBytesPerSecond=0)
    estate.pass_day()
    estate.apply()
    assert [one["state"] for one in images(estate, "vm1")] == ["Complete"]


def test_a_command_that_is_stopped_leaves_no_snapshot(estate: VirtualEstate) -> None:
    estate.build(source={"include": [{"name": "vm1"}]}, storage="pool")
    estate.lab.mode(diskBytesPerSecond=2 * MIB, starIsWholeDisk=True)
    process = estate.command.start("apply", "--yes", ".", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not estate.snapshots():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0, said
    assert estate.snapshots() == []
    assert [one["state"] for one in estate.items("jobs")] == ["Lost"]
    assert estate.items("images") == []


def test_a_new_and_a_resized_disk_are_read_as_a_whole_and_the_image_says_why(estate: VirtualEstate) -> None:
    estate.build()
    estate.apply()
    estate.lab.act("vm1", "addDisk", sizeBytes=2 * MIB)
    estate.lab.act("vm2", "resizeDisk", disk="Hard disk 1", sizeBytes=26 * MIB)
    estate.pass_day()
    estate.apply()
    codes = {
        name: [one["code"] for one in images(estate, name)[-1]["warnings"]]  # type: ignore[attr-defined]
        for name in ("vm1", "vm2")
    }
    assert codes == {"vm1": ["DiskNew"], "vm2": ["DiskResized"]}


def test_warnings_and_conditions_are_described_whole(estate: VirtualEstate) -> None:
    estate.build()
    estate.lab.act("vm1", "quiesce", quiesce="fail")
    estate.apply()
    narrow = estate.command.using(COLUMNS="60")
    image = str(images(estate, "vm1")[-1]["id"])
    said = " ".join(narrow.run("describe", "image", image).stdout.split())
    assert "QuiesceFailed: VM vm1: the guest did not hold still" in said and "event log for details." in said
    assert "Protected True, Recent: newest image" in narrow.run("describe", "client", "vm1").stdout
