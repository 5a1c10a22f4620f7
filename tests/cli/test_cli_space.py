"""Where copies go and how room is made, through the installed command: full units, drained ones, groups of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import estate_samples
import pytest

from reconciler.base import times

MIB = estate_samples.MIB
START = times.parse(estate_samples.START)
DAY = dt.timedelta(hours=24, minutes=10)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")

UNIT = "apiVersion: holdfast/v1alpha1\nkind: StorageUnit\nmetadata: {name: %s}\nspec: {path: storage/%s, %s}\n---\n"
GROUP = "apiVersion: holdfast/v1alpha1\nkind: StorageUnitGroup\nmetadata: {name: %s}\nspec: {selection: %s, members: [%s]}\n---\n"
POLICY = """apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: nightly}
spec:
  source: {diskImages: {path: machines, machines: "*"}}
  schedules: [%s]
  lifecycle: gold
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: gold}
spec:
  operations:
"""
FULL = "{name: daily, type: Full, every: 24h}"
CHAIN = "{name: daily, type: Incremental, every: 24h, fullEvery: 7d}"


@dataclasses.dataclass
class World:
    """An estate and its clock."""

    estate: estate_samples.Estate
    now: dt.datetime = START

    def write(self, units: dict[str, str], operations: list[str], groups: str = "", schedule: str = FULL) -> None:
        """(Re)write the manifests: units by name with the rest of their spec, operations as flow mappings."""
        for name in units:
            (self.estate.folder / "storage" / name).mkdir(parents=True, exist_ok=True)
        text = "".join(UNIT % (name, name, spec) for name, spec in units.items()) + groups + POLICY % schedule
        text += "".join(f"    - {{{one}}}\n" for one in operations)
        estate_samples.replace(self.estate.folder / "estate.yaml", text)

    def apply(self, code: int | None = 0) -> Any:
        """One pass, now."""
        clock = estate_samples.set_clock(self.estate.folder.parent / "clock", times.show(self.now))
        self.command = self.estate.at(clock)
        return self.command.json("apply", ".", "--yes", code=code)

    def day(self, code: int | None = 0) -> Any:
        """One pass, a day later."""
        self.now += DAY
        return self.apply(code)

    def plan(self, *arguments: str, code: int | None = 0) -> Any:
        """The plan now."""
        return self.command.json("plan", ".", *arguments, code=code)

    def copies(self, unit: str | None = None, state: str = "Complete") -> list[dict[str, Any]]:
        """Copies in a state, on one unit or any."""
        return [
            one
            for one in self.command.json("get", "copies")["items"]
            if one["state"] == state and unit in (None, one["unit"])
        ]

    def images(self, unit: str | None = None, state: str = "Complete") -> set[str]:
        """The images of those copies."""
        return {one["image"] for one in self.copies(unit, state)}

    def restores(self, machine: str, *arguments: str) -> None:
        """The machine's image comes back as its disk is now, from whichever copy is asked for."""
        target = self.estate.folder.parent / f"restored-{machine}-{len(arguments)}-{self.now:%d%H%M}"
        self.command.run("restore", machine, "--to", target, *arguments)
        disk = self.estate.folder / "machines" / machine / "system.img"
        assert (target / "system.img").read_bytes() == disk.read_bytes()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two machines of 4 MiB."""
    folder = tmp_path / "estate"
    folder.mkdir()
    estate = estate_samples.build(folder)
    for name in ("storage.yaml", "lifecycle.yaml", "policy.yaml"):
        (folder / name).unlink()
    for machine in ("vm1", "vm2"):
        estate.machine(machine, size=4 * MIB)
    return World(estate)


@pytest.fixture
def mounts() -> Iterator[list[Path]]:
    """Mount points to be released at the end."""
    made: list[Path] = []
    yield made
    for path in reversed(made):
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def mount(mounts: list[Path], path: Path, size: int) -> None:
    """A file system of its own, of ``size`` bytes, under a unit."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(path)], check=True)
    mounts.append(path)


def filled(path: Path) -> float:
    """How full a file system is, in percent."""
    found = os.statvfs(path)
    return 100 * (found.f_blocks - found.f_bavail) / found.f_blocks


@root_only
@pytest.mark.parametrize("type", ["Directory", "DedupePool"])
def test_a_capacity_managed_unit_never_stops_taking_backups(world: World, mounts: list[Path], type: str) -> None:
    path = world.estate.folder / "storage" / "fast"
    # Room for about eight images of 4 MiB below the mark.
    mount(mounts, path, 48 * MIB if type == "Directory" else 56 * MIB)
    marks = 'highWaterMark: "70%", lowWaterMark: "45%"'
    managed = "name: land, type: Backup, storage: fast, retention: {type: CapacityManaged, desired: 1d}"
    world.write({"fast": f"type: {type}, {marks}"}, [managed])
    seen: list[str] = []
    for day in range(6):
        for machine in ("vm1", "vm2"):
            world.estate.machine(machine, size=4 * MIB)
        world.day()
        jobs = world.command.json("get", "jobs")["items"]
        seen = [one["image"] for one in jobs if one["type"] == "Backup" and one["state"] == "Succeeded"]
        assert len(seen) == 2 * (day + 1), "a machine was not backed up"
        there = world.images("fast")
        # What is gone is the oldest; two of one day began within a moment.
        days = {id: id.split("-")[1][:8] for id in seen}
        assert max((days[id] for id in seen if id not in there), default="") <= min(days[id] for id in there)
        assert filled(path) <= 72
    assert len(world.images("fast")) < len(seen)
    why = [str(one) for one in world.command.json("get", "audit")["items"] if one["event"] == "CopyExpiring"]
    assert why and all("CapacityManaged" in one for one in why)
    assert any("over its 70% mark, down to 45%" in one for one in why)
    world.plan("--detailed-exitcode", code=0)
    world.restores("vm1")


@root_only
def test_what_keeps_a_unit_full_is_said(world: World, mounts: list[Path]) -> None:
    path = world.estate.folder / "storage" / "fast"
    mount(mounts, path, 16 * MIB)
    managed = "name: land, type: Backup, storage: fast, retention: {type: CapacityManaged}"
    world.write({"fast": 'type: Directory, highWaterMark: "50%", lowWaterMark: "40%"'}, [managed])
    world.day()
    found = world.plan()
    (drift,) = [one for one in found["drift"] if one["code"] == "CannotMakeSpace"]
    assert drift["object"] == "StorageUnit/fast" and "2 of newest images" in drift["message"]
    assert len(world.copies("fast")) == 2


@root_only
def test_two_jobs_do_not_both_take_the_last_space(world: World, mounts: list[Path]) -> None:
    """Room for one more full: one machine is backed up there, the other goes to the next member."""
    for name in ("one", "two"):
        mount(mounts, world.estate.folder / "storage" / name, 15 * MIB if name == "one" else 40 * MIB)
    groups = GROUP % ("both", "Prioritized", "one, two")
    units = dict.fromkeys(("one", "two"), 'type: Directory, highWaterMark: "99%"')
    world.write(units, ["name: land, type: Backup, storage: both, retention: {type: Forever}"], groups)
    world.day()
    assert Counter(one["unit"] for one in world.copies()) == {"one": 2}
    world.day()
    assert Counter(one["unit"] for one in world.copies()) == {"one": 3, "two": 1}
    jobs = world.command.json("get", "jobs")["items"]
    assert {one["state"] for one in jobs} == {"Succeeded"}


# -- draining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [FULL, CHAIN])
@pytest.mark.parametrize("new", ["Directory", "DedupePool"])
def test_a_unit_is_drained_by_the_loop(world: World, schedule: str, new: str) -> None:
    land = "name: land, type: Backup, storage: %s, retention: {type: Fixed, period: 30d}"
    world.write({"old": "type: Directory", "new": f"type: {new}"}, [land % "old"], schedule=schedule)
    for _ in range(3):
        for machine in ("vm1", "vm2"):
            with (world.estate.folder / "machines" / machine / "system.img").open("r+b") as file:
                file.write(os.urandom(64 << 10))
        world.day()
    before = world.images("old")
    assert len(before) == 6
    # The first step alone says what is to be done next.
    units = {"old": "type: Directory, state: Draining", "new": f"type: {new}"}
    world.write(units, [land % "old"], schedule=schedule)
    world.apply()
    blocked = [one for one in world.plan()["actions"] if one["reason"]["code"] == "SameUnit"]
    assert len(blocked) == 6 and "give operation land another unit" in blocked[0]["reason"]["message"]
    world.write(units, [land % "new"], schedule=schedule)
    world.apply()
    assert world.images("old") == set() and world.images("new") == before
    assert {one["number"] for one in world.copies("new")} == {2}
    found = world.plan("--detailed-exitcode", code=0)
    assert {"code": "Drained", "object": "StorageUnit/old", "message": "unit old is empty and can be removed"} in found[
        "drift"
    ]
    assert found["destruction"]["copies"] == 0
    world.restores("vm1")
    # It goes on there: the next backup, and the removal of the empty unit.
    world.day()
    assert len(world.images("new")) == 8
    world.write({"new": f"type: {new}"}, [land % "new"], schedule=schedule)
    world.day()
    assert len(world.images("new")) == 10
    stored = {one["image"]: one["storedBytes"] for one in world.copies("new")}
    if schedule == CHAIN and new == "Directory":
        # Increments moved as increments.
        assert sum(stored[image] < 2 * MIB for image in before) == 4


def test_a_drain_goes_on_after_the_copy_that_moved_is_lost(world: World) -> None:
    land = "name: land, type: Backup, storage: both, retention: {type: Forever}"
    groups = GROUP % ("both", "Prioritized", "old, new")
    world.write({"old": "type: Directory", "new": "type: Directory"}, [land], groups)
    world.day()
    assert len(world.images("old")) == 2
    world.write({"old": "type: Directory, state: Draining", "new": "type: Directory"}, [land], groups)
    # The process dies between the new copy's commit and the old one's deletion, and again in the deletion.
    clock = estate_samples.set_clock(world.estate.folder.parent / "clock", times.show(world.now))
    for point in ("duplicate.after-commit", "duplicate.recorded", "expire.marked", "expire.deleted"):
        world.estate.at(clock).crashing(point).run("apply", ".", "--yes", code=-9)
    world.apply()
    assert world.images("old") == set() and len(world.images("new")) == 2
    for machine in ("vm1", "vm2"):
        world.restores(machine)


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "off", "as_copy", "expected"),
    [
        ("Prioritized", "", False, {"one": 6}),
        ("Prioritized", "one", True, {"two": 6}),
        ("Failover", "", False, {"one": 6}),
        ("Failover", "one", True, {"two": 6}),
        ("RoundRobin", "", False, {"one": 2, "two": 2, "three": 2}),
        ("RoundRobin", "two", True, {"one": 3, "three": 3}),
        ("LoadBalance", "", False, {"one": 2, "two": 2, "three": 2}),
        ("LoadBalance", "three", True, {"one": 3, "two": 3}),
    ],
)
def test_groups_choose_as_they_say(
    world: World, selection: str, off: str, as_copy: bool, expected: dict[str, int]
) -> None:
    """Six machines; ``off`` is disabled. All start in one turn, one stream each."""
    for number in range(3, 7):
        world.estate.machine(f"vm{number}")
    units = {
        name: f"type: Directory, maxConcurrentJobs: {0 if name == off else 10}" for name in ("one", "two", "three")
    }
    groups = GROUP % ("g", selection, "one, two, three")
    operations = ["name: land, type: Backup, storage: g, retention: {type: Forever}"]
    if as_copy:
        units["fast"] = "type: Directory, maxConcurrentJobs: 20"
        operations = [
            "name: land, type: Backup, storage: fast, retention: {type: Forever}",
            "name: second, type: Duplication, source: land, storage: g, retention: {type: Forever}",
        ]
    world.write(units, operations, groups)
    world.day()
    found = Counter(one["unit"] for one in world.copies() if one["unit"] != "fast")
    if as_copy and selection in ("RoundRobin", "LoadBalance"):
        # Copies become due as their backups end, so that turns overlap: nobody is left out, nobody has all.
        assert set(found) == set(expected) and found.total() == 6 and max(found.values()) <= 4
    else:
        assert found == expected


def test_a_member_whose_folder_is_gone_is_passed_over_and_chains_stay_where_their_base_lies(world: World) -> None:
    units = {"one": "type: Directory", "two": "type: Directory"}
    groups = GROUP % ("g", "RoundRobin", "one, two")
    world.write(units, ["name: land, type: Backup, storage: g, retention: {type: Forever}"], groups, schedule=CHAIN)
    world.day()
    home = {one["client"]: one["unit"] for one in world.copies()}
    assert sorted(home.values()) == ["one", "two"]
    world.day()
    assert {(one["client"], one["unit"]) for one in world.copies()} == set(home.items())
    (world.estate.folder / "storage" / "one").rename(world.estate.folder / "storage" / "away")
    world.day(code=None)
    fresh = [
        one for one in world.command.json("get", "images")["items"] if one["time"] > times.show(world.now - DAY / 2)
    ]
    moved = next(client for client, unit in home.items() if unit == "one")
    assert {(one["client"], one["type"]) for one in fresh} == {
        (moved, "Full"), (next(c for c in home if c != moved), "Incremental"),
    }  # fmt: skip
    assert {one["unit"] for one in world.copies()} == {"two"}


def test_a_copy_prefers_a_unit_that_does_not_fail_with_the_others(world: World) -> None:
    units = {
        "fast": "type: Directory, failureDomain: rack-1", "near": "type: Directory, failureDomain: rack-1",
        "far": "type: Directory, failureDomain: rack-2",
    }  # fmt: skip
    operations = [
        "name: land, type: Backup, storage: fast, retention: {type: Forever}",
        "name: second, type: Duplication, source: land, storage: g, retention: {type: Forever}",
    ]
    world.write(units, operations, GROUP % ("g", "Prioritized", "near, far"))
    world.day()
    assert Counter(one["unit"] for one in world.copies()) == {"fast": 2, "far": 2}
