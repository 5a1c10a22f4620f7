"""Backups of virtual machines through a holding area: two phases, the snapshot goes after the first one."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from virtual_estates import MIB, VirtualEstate, machines, vsphere_labs

from reconciler.operations import reservations

SIZE = 12 * MIB


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[VirtualEstate]:
    """Two machines, a holding area with room for both, a pool."""
    (tmp_path / "area").mkdir()
    wanted = machines(2, size=SIZE, changeTracking=True)
    with vsphere_labs.Lab.start(tmp_path / "lab", machines=wanted, taskMillis=2) as lab:
        found = VirtualEstate(tmp_path, lab)
        for number in (1, 2):
            lab.write(f"vm{number}", "Hard disk 1", 0, found._dice.randbytes(5 * MIB))
        yield build(found)


def build(estate: VirtualEstate, size: str = "100MiB", **more: Any) -> VirtualEstate:
    """Write the manifests."""
    area = {"path": str(estate.root / "area"), "maxSize": size}
    schedule = {"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "30d"}
    return estate.build(source={"holdingArea": area}, storage="pool", schedules=[schedule], **more)


def left(estate: VirtualEstate) -> list[str]:
    """What lies in the area."""
    return [path.name for path in (estate.root / "area").iterdir() if not path.name.startswith(".")]


def logged(estate: VirtualEstate, client: str = "vm1") -> list[str]:
    """The log of a machine's last backup."""
    jobs = [one for one in estate.items("jobs") if one["type"] == "Backup" and one["client"] == client]
    return estate.command.run("logs", max(one["id"] for one in jobs)).stdout.splitlines()


def proven(estate: VirtualEstate, contents: dict[str, dict[str, str]], client: str = "vm1") -> dict[str, Any]:
    """The newest image, which holds exactly what the machine held."""
    image = max((one for one in estate.items("images") if one["client"] == client), key=lambda one: one["time"])
    assert estate.bytes_of(client, image["id"]) == contents[client]
    return image


def held(lines: list[str]) -> list[str]:
    """Of a log, what was held."""
    return [line.partition("  held ")[2].partition(" in ")[0] for line in lines if "  held " in line]


def test_fulls_and_incrementals_are_held_then_stored(estate: VirtualEstate) -> None:
    contents = estate.contents()
    estate.apply()
    assert proven(estate, contents)["state"] == "Complete"
    lines = logged(estate)
    # So small a disk is read as a whole, whatever is known of it.
    assert held(lines) == ["12.0 MiB"], lines
    assert any("stored " in line and "/s" in line for line in lines), lines
    assert left(estate) == []
    assert estate.snapshots() == []
    estate.pass_day()
    estate.lab.write("vm1", "Hard disk 1", 3 * MIB + 100, b"changed" * 1000)
    contents = estate.contents()
    estate.apply()
    image = proven(estate, contents)
    assert (image["type"], image["changes"]) == ("Incremental", "Known")
    lines = logged(estate)
    assert held(lines) == ["1.00 MiB"], "the block around the change"
    assert sum("ChangeTracking" in line for line in lines) == 1, "asked once, told once"


def test_a_machine_that_can_never_fit_is_not_even_frozen_a_second_time(estate: VirtualEstate) -> None:
    build(estate, size="11MiB")
    said = estate.apply(code=3)
    jobs = [one for one in estate.items("jobs") if one["type"] == "Backup"]
    assert {one["error"]["code"] for one in jobs} == {"HoldingAreaFull"}, said
    assert all("12.0 MiB are needed, 11.0 MiB are left" in one["error"]["message"] for one in jobs), jobs
    assert (estate.items("images"), estate.snapshots(), left(estate)) == ([], [], [])
    assert estate.lab.state()["calls"]["CreateSnapshot_Task"] == 2
    (estate.root / "area").rename(estate.root / "gone")
    estate.pass_day()
    estate.apply(code=3)
    jobs = [one for one in estate.items("jobs") if "there is no such folder" in one["error"]["message"]]
    assert len(jobs) == 2
    assert estate.lab.state()["calls"]["CreateSnapshot_Task"] == 2, "nothing is frozen for an area that is not there"


def test_machines_wait_for_room_with_nothing_frozen(estate: VirtualEstate) -> None:
    build(estate, size="20MiB")
    other = reservations.reserve(estate.root / "area", 1 << 30, "j-000001", 10 * MIB)
    # A test that fails must not leave the command waiting for room.
    with estate.command.start("apply", "--yes", ".") as process, contextlib.closing(other):
        deadline = time.monotonic() + 60
        while sum("waits, with nothing frozen" in line for line in lines_of(estate)) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.3)
        assert estate.snapshots() == []
        assert [one.partition(".")[0] for one in left(estate)] == ["j-000001"]
        other.close()
        assert process.wait(120) == 0
    proven(estate, estate.contents())
    proven(estate, estate.contents(), "vm2")
    assert (left(estate), estate.snapshots()) == ([], [])


def lines_of(estate: VirtualEstate) -> list[str]:
    """The logs of all jobs that there are."""
    asked = estate.command.run("get", "jobs", "-o", "json", code=None)
    # The first apply may still be making the catalog.
    jobs = json.loads(asked.stdout)["items"] if asked.returncode == 0 else []
    return [line for one in jobs for line in estate.command.run("logs", one["id"]).stdout.splitlines()]


def test_the_guests_files_are_looked_up_while_the_machine_is_frozen(tmp_path: Path) -> None:
    """A pool cuts what is new along files, whose places are written elsewhere on the disk than the changes are."""
    (tmp_path / "area").mkdir()
    (tmp_path / "files").mkdir()
    dice = random.Random(7)
    for number in range(4):
        (tmp_path / "files" / f"{number}.bin").write_bytes(dice.randbytes(3 * MIB))
    raw = tmp_path / "guest.raw"
    raw.touch()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "files", raw, "48M"], check=True)
    disk = {"label": "Hard disk 1", "sizeBytes": 48 * MIB, "from": str(raw)}
    wanted = [{"name": "vm1", "changeTracking": True, "disks": [disk]}]
    with vsphere_labs.Lab.start(tmp_path / "lab", machines=wanted, taskMillis=2) as lab:
        estate = build(VirtualEstate(tmp_path, lab))
        estate.apply()
        estate.pass_day()
        data = raw.read_bytes()
        for number in range(4):
            # In place, as a database writes: the file system's own tables stay as they are.
            place = data.index((tmp_path / "files" / f"{number}.bin").read_bytes()[:4096])
            lab.write("vm1", "Hard disk 1", place, dice.randbytes(2 * MIB))
        contents = estate.contents()
        estate.apply()
        image = proven(estate, contents)
        assert (image["changes"], image["warnings"]) == ("Known", [])
        lines = logged(estate)
        assert not any("frozen anew" in line for line in lines), lines
        assert len(held(lines)) == 1
        assert held(lines)[0] in ("8.00 MiB", "9.00 MiB", "10.0 MiB", "11.0 MiB", "12.0 MiB"), lines


@pytest.mark.parametrize("point", ["holding.copied", "holding.released"])
def test_a_kill_in_each_phase_leaves_nothing_that_the_next_pass_does_not_sweep(
    estate: VirtualEstate, point: str
) -> None:
    contents = estate.contents()
    done = estate.command.crashing(point).run("apply", "--yes", ".", code=None)
    assert done.returncode == -signal.SIGKILL
    assert len(left(estate)) >= 1
    if point == "holding.released":
        assert len(estate.snapshots()) < 2, "the snapshot went before the image was stored"
    estate.apply(code=None)
    estate.apply()
    proven(estate, contents)
    proven(estate, contents, "vm2")
    assert left(estate) == []
    assert estate.snapshots() == []


def test_a_damaged_parent_makes_the_machine_be_frozen_anew_and_read_as_a_whole(estate: VirtualEstate) -> None:
    estate.apply()
    estate.pass_day()
    # A change in every stretch that the pool keeps a list of digests for: nothing of the new image is the spoilt one's.
    for vm in ("vm1", "vm2"):
        for place in (1, 5, 9):
            estate.lab.write(vm, "Hard disk 1", place * MIB + 100, estate._dice.randbytes(5000))
    contents = estate.contents()
    spoil(estate.folder / "units" / "pool")
    before = estate.lab.state()["calls"]["CreateSnapshot_Task"]
    estate.apply()
    image = proven(estate, contents)
    assert (image["state"], image["changes"]) == ("Complete", "FullRead")
    lines = logged(estate)
    assert any("frozen anew, and read as a whole" in line for line in lines), lines
    assert held(lines) == ["3.00 MiB", "12.0 MiB"], lines
    assert estate.lab.state()["calls"]["CreateSnapshot_Task"] - before == 4, "two machines, twice each"
    assert len([one for one in estate.items("images") if one["client"] == "vm1"]) == 2
    assert (left(estate), estate.snapshots()) == ([], [])


def spoil(pool: Path) -> None:
    """What the pool says of its images' blocks cannot be read any more, in both places."""
    found = [path for path in pool.rglob("*") if path.is_file() and path.suffix in (".meta-a", ".meta-b")]
    assert found
    for path in found:
        data = bytearray(path.read_bytes())
        for place in range(200, len(data) - 200, 50):
            data[place] ^= 1
        path.write_bytes(data)
