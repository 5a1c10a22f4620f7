"""Changed areas of the lab are exact: over several epochs, in answers of a few areas each, and never from a bad id."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim, vmodl

MIB = 1 << 20
BLOCK = 64 << 10
SIZE = 8 * MIB + BLOCK // 2
DISK = {"sizeBytes": SIZE}
MACHINES = [
    {"name": "tracked", "changeTracking": True, "disks": [DISK, {"sizeBytes": MIB, "mode": "independent_persistent"}]},
    {"name": "late", "disks": [DISK]},
    {"name": "lies", "changeTracking": True, "disks": [DISK]},
    {"name": "current", "changeTracking": True, "disks": [DISK]},
    {"name": "old", "changeTrackingSupported": False, "disks": [DISK]},
    {"name": "reset", "changeTracking": True, "disks": [DISK, DISK]},
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start(tmp_path_factory.mktemp("changes"), machines=MACHINES, taskMillis=4) as lab:
        yield lab


@pytest.fixture(scope="module")
def instance(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance


def machine(instance: Any, name: str) -> Any:
    return clients.find(instance, vim.VirtualMachine, name)


def change_id(snapshot: Any, key: int = 2000) -> Any:
    return next(one for one in snapshot.config.hardware.device if one.key == key).backing.changeId


def areas(
    vm: Any, snapshot: Any, since: str, key: int = 2000, size: int = SIZE, most: int = 16
) -> tuple[set[int], int]:
    """The blocks reported as changed, and how many answers it took; areas must be in order and within what is answered."""
    found: set[int] = set()
    at = calls = 0
    while at < size:
        answer = vm.QueryChangedDiskAreas(snapshot, key, at, since)
        assert answer.startOffset == at
        assert len(answer.changedArea) <= most
        end = at
        for one in answer.changedArea:
            assert end <= one.start < one.start + one.length <= at + answer.length
            end = one.start + one.length
            assert one.start % BLOCK == 0
            assert end % BLOCK == 0 or end == size
            found.update(range(one.start // BLOCK, -(-end // BLOCK)))
        at, calls = at + answer.length, calls + 1
        assert answer.length > 0
    assert at == size
    return found, calls


def blocks(at: int, length: int) -> range:
    return range(at // BLOCK, (at + length - 1) // BLOCK + 1)


def test_areas_are_exact_over_several_epochs_from_every_id(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "tracked")
    rng = random.Random(7)
    epochs: list[set[int]] = []
    ids: list[str] = []
    written: set[int] = set()
    for _ in range(5):
        for _ in range(rng.randint(5, 60)):
            at, length = rng.randrange(SIZE - 70_000), rng.randint(1, 70_000)
            lab.write("tracked", 2000, at, rng.randbytes(length))
            written.update(blocks(at, length))
        snapshot = clients.snapshot(vm, "one")
        epochs.append(written)
        # Written before the snapshot is asked, but after it was made: of the next epoch.
        place = rng.randrange(SIZE - 10)
        lab.write("tracked", 2000, place, b"last bytes")
        written = set(blocks(place, 10))
        for number, since in enumerate(ids):
            assert areas(vm, snapshot, since)[0] == set().union(*epochs[number + 1 :]), f"since snapshot {number}"
        assert areas(vm, snapshot, "*")[0] == set().union(*epochs)
        ids.append(change_id(snapshot))
        assert areas(vm, snapshot, ids[-1])[0] == set()
        clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert len(set(ids)) == 5


def test_many_areas_come_in_several_answers_and_adjacent_blocks_in_one_area(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "reset")
    first = clients.snapshot(vm, "first")
    since = change_id(first)
    wanted = set(range(0, 80, 2)) | {100, 101, 102}
    for number in wanted:
        lab.write("reset", 2000, number * BLOCK + 17, b"x")
    second = clients.snapshot(vm, "second")
    found, calls = areas(vm, second, since)
    assert found == wanted
    assert calls == 3, "41 areas, at most 16 in an answer"
    lab.mode(areasPerAnswer=1000)
    assert areas(vm, second, since, most=1000) == (wanted, 1)
    lab.mode(areasPerAnswer=16)
    assert areas(vm, second, change_id(first, 2001), 2001)[0] == set(), "the other disk has changes of its own"
    clients.done(vm.RemoveAllSnapshots_Task())


def test_tracking_takes_effect_with_the_next_snapshot(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "late")
    lab.write("late", 2000, 0, b"before tracking")
    before = clients.snapshot(vm, "before")
    assert change_id(before) is None
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(before, 2000, 0, "*")
    clients.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    assert vm.config.changeTrackingEnabled
    assert vm.config.hardware.device[-1].backing.changeId is None, "not before the next snapshot"
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(before, 2000, 0, "*")
    clients.done(before.RemoveSnapshot_Task(removeChildren=False))
    after = clients.snapshot(vm, "after")
    since = change_id(after)
    assert since
    assert areas(vm, after, "*")[0] == {0}, "what was written before tracking counts as written"
    clients.done(vm.RemoveAllSnapshots_Task())
    clients.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
    clients.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    again = clients.snapshot(vm, "again")
    assert change_id(again).split("/")[0] != since.split("/")[0], "switched off and on it is another tracking"
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(again, 2000, 0, since)
    clients.done(vm.RemoveAllSnapshots_Task())


def test_a_machine_that_cannot_track_says_so(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "old")
    assert not vm.capability.changeTrackingSupported
    with pytest.raises(vmodl.fault.NotSupported):
        clients.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))


def test_bad_ids_bad_places_and_gone_snapshots_are_refused(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "reset")
    snapshot = clients.snapshot(vm, "one")
    own, other = change_id(snapshot), change_id(snapshot, 2001)
    for bad in ("", "rubbish", "*/1", own.split("/")[0], own.split("/")[0] + "/999", other, "52 00/1"):
        with pytest.raises(vim.fault.FileFault):
            vm.QueryChangedDiskAreas(snapshot, 2000, 0, bad)
    for key, at in ((2000, -1), (2000, SIZE), (2000, SIZE + BLOCK), (1000, 0), (4711, 0)):
        with pytest.raises(vmodl.fault.InvalidArgument):
            vm.QueryChangedDiskAreas(snapshot, key, at, "*")
    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, "*")


def test_without_a_snapshot_named_it_is_the_current_one(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "current")
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(None, 2000, 0, "*")
    lab.write("current", 2000, 5 * BLOCK, b"x")
    snapshot = clients.snapshot(vm, "one")
    lab.write("current", 2000, 9 * BLOCK, b"later")
    try:
        found = areas(vm, None, "*")[0]
        assert found == areas(vm, snapshot, "*")[0]
        assert 5 in found
        assert 9 not in found
    finally:
        clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))


def test_an_independent_disk_has_no_change_id_in_a_snapshot(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "tracked")
    snapshot = clients.snapshot(vm, "one")
    assert change_id(snapshot, 2001) is None
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot, 2001, 0, "*")
    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))


@pytest.mark.parametrize("how", ["resetChangeTracking", "resizeDisk", "moveDisk"])
def test_what_disturbs_tracking_makes_old_ids_worthless(lab: Lab, instance: Any, how: str) -> None:
    vm = machine(instance, "reset")
    resized = next(one for one in vm.config.hardware.device if one.key == 2000).capacityInBytes
    first = clients.snapshot(vm, "first")
    since = change_id(first)
    clients.done(first.RemoveSnapshot_Task(removeChildren=False))
    arguments: dict[str, Any] = {
        "resizeDisk": {"disk": "2000", "sizeBytes": 16 * MIB},
        "moveDisk": {"disk": "2000", "slot": "scsi0:5"},
    }.get(how, {})
    lab.act("reset", how, **arguments)
    key = 2005 if how == "moveDisk" else 2000
    second = clients.snapshot(vm, "second")
    try:
        if how == "moveDisk":
            assert 2000 not in [one.key for one in second.config.hardware.device]
        else:
            with pytest.raises(vim.fault.FileFault):
                vm.QueryChangedDiskAreas(second, key, 0, since)
        size = next(one for one in second.config.hardware.device if one.key == key).capacityInBytes
        assert size == (16 * MIB if how == "resizeDisk" else resized)
        assert areas(vm, second, change_id(second, key), key, size)[0] == set()
    finally:
        clients.done(vm.RemoveAllSnapshots_Task())
    if how == "moveDisk":
        lab.act("reset", "moveDisk", disk="2005", slot="scsi0:0")


def test_the_lab_can_lie_about_areas_when_told(lab: Lab, instance: Any) -> None:
    vm = machine(instance, "lies")
    for number in range(12):
        lab.write("lies", 2000, number * 2 * BLOCK, b"x")
    snapshot = clients.snapshot(vm, "one")
    written = areas(vm, snapshot, "*")[0]
    assert written == set(range(0, 24, 2))
    everything = set(range(-(-SIZE // BLOCK)))
    try:
        lab.mode(starIsWholeDisk=True)
        assert areas(vm, snapshot, "*") == (everything, 1)
        lab.mode(starIsWholeDisk=False, wrongStar=True)
        assert areas(vm, snapshot, "*")[0] < written
        lab.mode(wrongStar=False, spuriousAreas=True)
        assert areas(vm, snapshot, change_id(snapshot))[0] == set(range(3, len(everything), 7))
    finally:
        lab.mode(starIsWholeDisk=False, wrongStar=False, spuriousAreas=False)
        clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
