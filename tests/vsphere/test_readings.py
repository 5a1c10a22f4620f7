"""A machine that writes on while it is read: what is read is the frozen state, or it is said to be nothing."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from reading_samples import MIB, SIZE, Bench, applied, bench, content

from reconciler.base import clocks, errors, extents
from reconciler.sources import hooks, machines
from reconciler.sources.vsphere.reading import freezing, readings, spaces, verdicts, watches

DISK = "Hard disk 1"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Day:
    """What one backup came to."""

    #: What the guest had when it was frozen, and what the image holds.
    frozen: bytes
    image: bytes
    state: Mapping[str, str]
    told: machines.DiskChanges
    verdict: machines.Verdict


def day(lab: Bench, before: Day | None = None, **source: Any) -> Day:
    """One backup of the first disk, against the day before; the guest writes while it is read."""
    frozen = lab.lab.content("vm1", DISK)
    with lab.frozen(**source) as reading:
        lab.writes()
        disk = reading.disks[0]
        told = reading.changes(DISK, before.state if before else {})
        if told.changed is None:
            image = content(disk)
        else:
            assert before is not None
            image = applied(before.image, disk, told.changed)
        lab.writes()
        verdict = reading.finish()
        state = reading.state()
    assert lab.lab.machine("vm1")["snapshots"] == [one for one in lab.lab.machine("vm1")["snapshots"] if not _ours(one)]
    assert lab.ledger.open == {}
    return Day(frozen=frozen, image=image, state=state, told=told, verdict=verdict)


def _ours(snapshot: Mapping[str, Any]) -> bool:
    return "holdfast" in snapshot["description"]


# -- bytes ----------------------------------------------------------------------------------------------------------


def test_days_of_a_guest_that_writes_all_the_time(lab: Bench) -> None:
    lab.lab.mode(areasPerAnswer=2)
    before = day(lab)
    assert before.told.reason.code == "FirstRun"
    assert before.image == before.frozen
    for _ in range(4):
        lab.writes(places=6)
        today = day(lab, before)
        assert today.told.reason.code == "ChangeTracking"
        assert today.told.changed is not None
        assert extents.total(today.told.changed) < SIZE // 2
        assert today.image == today.frozen != before.image
        assert today.verdict == machines.Verdict(failed=(), consistency="Snapshot", warnings=())
        before = today


LARGE = [{"label": DISK, "sizeBytes": 96 * MIB}]


def test_a_full_read_asks_for_what_was_ever_written_only(tmp_path: Path) -> None:
    with bench(tmp_path, disks=LARGE) as lab:
        today = day(lab)
        assert today.image == today.frozen
        assert today.verdict.warnings == ()
        assert "HintTaken" in lab.log
        with lab.frozen() as reading:
            assert extents.total(reading.disks[0].extents()) < 8 * MIB


def test_a_hint_that_lies_is_found_out(tmp_path: Path) -> None:
    with bench(tmp_path, disks=LARGE) as lab:
        for offset in range(0, 90, 3):
            lab.lab.write("vm1", DISK, offset * MIB, lab.dice.randbytes(300_000))
        lab.lab.mode(wrongStar=True)
        today = day(lab)
        assert today.image == today.frozen
        assert [one.code for one in today.verdict.warnings] == ["HintWrong"]
        assert DISK in today.verdict.warnings[0].message


@pytest.mark.parametrize("mode", ["starIsWholeDisk", "spuriousAreas"])
def test_answers_that_say_too_much_do_no_harm(lab: Bench, mode: str) -> None:
    lab.lab.mode(**{mode: True})
    before = day(lab)
    lab.writes()
    today = day(lab, before)
    assert today.told.changed is not None
    assert (before.image, today.image) == (before.frozen, today.frozen)


# -- reasons for a full read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "happens"),
    [
        ("ChangeIdReset", lambda lab: lab.lab.act("vm1", "resetChangeTracking")),
        ("DiskReplaced", lambda lab: lab.lab.act("vm1", "changeDiskUuid", disk=DISK)),
        ("DiskResized", lambda lab: lab.lab.act("vm1", "resizeDisk", disk=DISK, sizeBytes=SIZE + MIB)),
        ("DiskMoved", lambda lab: lab.lab.act("vm1", "moveDisk", disk=DISK, slot="scsi0:5")),
        ("FileFault", lambda lab: lab.lab.fault(on="QueryChangedDiskAreas", kind="fault", fault="FileFault")),
    ],
)
def test_in_doubt_the_disk_is_read_as_a_whole(lab: Bench, code: str, happens: Callable[[Bench], object]) -> None:
    before = day(lab)
    lab.writes()
    happens(lab)
    today = day(lab, before)
    assert today.told.changed is None
    assert today.told.reason.code == code
    assert DISK in today.told.reason.message
    assert today.image == today.frozen
    assert [one.code for one in today.verdict.warnings] == [code]
    lab.lab.clear_faults()
    # The day after, what this one recorded is counted from.
    assert day(lab, today).told.changed is not None


def test_a_fault_names_machine_phase_and_its_own_words(lab: Bench) -> None:
    before = day(lab)
    lab.lab.fault(on="QueryChangedDiskAreas", kind="fault", fault="FileFault", message="the map is gone")
    reason = day(lab, before).told.reason
    assert f"VM vm1: changed areas of {DISK}: FileFault: the map is gone" in reason.message
    lab.lab.fault(on="QueryChangedDiskAreas", kind="truncate", afterBytes=60, count=0)
    with lab.frozen() as reading:
        reason = reading.changes(DISK, before.state).reason
    assert reason.code == "AreasUnknown"
    assert f"VM vm1: changed areas of {DISK}: 127.0.0.1" in reason.message


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("afterwards", ["removeAllSnapshots", None])
def test_a_revert_is_noticed_whatever_the_tracking_says(tmp_path: Path, keeps: bool, afterwards: str | None) -> None:
    with bench(tmp_path, vcenter={"transports": ["nbdkit-vddk"]}) as lab:
        lab.lab.mode(revertKeepsTracking=keeps)
        theirs = lab.snapshot_of_others()
        lab.writes()
        before = day(lab)
        lab.writes()
        # Somebody else's snapshot alone is no reason.
        before = day(lab, before)
        assert before.told.changed is not None
        assert before.image == before.frozen
        lab.lab.act("vm1", "revert", snapshot=theirs)
        lab.lab.act("vm1", "power", state="poweredOn")
        if afterwards is not None:
            lab.lab.act("vm1", afterwards)
        lab.writes()
        today = day(lab, before)
        assert today.told.reason.code in ("Reverted", "ChangeIdReset")
        assert today.image == today.frozen
        assert day(lab, today).told.changed is not None


def test_a_snapshot_of_others_that_came_after_the_parent_may_be_reverted_to(lab: Bench) -> None:
    lab.lab.mode(revertKeepsTracking=True)
    before = day(lab)
    lab.writes()
    theirs = lab.snapshot_of_others()
    lab.writes()
    lab.lab.act("vm1", "revert", snapshot=theirs)
    lab.lab.act("vm1", "removeAllSnapshots")
    lab.writes()
    today = day(lab, before)
    assert today.told.changed is not None
    assert today.image == today.frozen


def test_tracking_is_switched_on_with_the_first_backup(tmp_path: Path) -> None:
    with bench(tmp_path, changeTracking=False) as lab:
        before = day(lab)
        assert "TrackingEnabled" in lab.log
        assert before.verdict.warnings == ()
        assert before.image == before.frozen
        lab.writes()
        today = day(lab, before)
        assert today.told.changed is not None
        assert today.image == today.frozen


@pytest.mark.parametrize(
    ("machine", "source", "happens", "code"),
    [
        ({"changeTrackingSupported": False}, {}, None, "TrackingUnsupported"),
        ({}, {"changeTracking": "AsIs"}, None, None),
        ({}, {}, lambda lab: lab.lab.fault(on="ReconfigVM_Task", kind="task", fault="GenericVmConfigFault", count=0),
         "TrackingRefused"),
    ],
)  # fmt: skip
def test_where_tracking_cannot_be_had_the_backup_is_made_all_the_same(
    tmp_path: Path, machine: dict[str, Any], source: dict[str, Any], happens: Any, code: str | None
) -> None:
    with bench(tmp_path, **{"changeTracking": False, **machine}) as lab:
        if happens is not None:
            happens(lab)
        before = day(lab, **source)
        assert before.image == before.frozen
        assert [one.code for one in before.verdict.warnings] == ([code] if code else [])
        today = day(lab, before, **source)
        assert today.told.reason.code == "TrackingOff"
        assert today.image == today.frozen


# -- distrust -------------------------------------------------------------------------------------------------------


def _behind_its_back(lab: Bench) -> None:
    """A byte of the disk changes and its tracking does not notice."""
    offset = 5 * MIB + 12345
    with Path(lab.lab.machine("vm1")["disks"][0]["flat"]).open("r+b") as file:
        file.seek(offset)
        file.write(b"unseen")


def test_blocks_called_unchanged_are_read_in_their_turn_until_a_lie_is_met(lab: Bench) -> None:
    distrust = {"cbtDistrust": {"share": "34%"}}
    before = day(lab, **distrust)
    _behind_its_back(lab)
    tested = []
    for _ in range(3):
        today = day(lab, before, **distrust)
        assert today.told.changed is not None
        assert extents.intersect(today.told.tested, today.told.changed) == today.told.tested
        assert all(place % MIB == 0 for place, _ in today.told.tested)
        tested.append(today.told.tested)
        before = today
    assert all(tested)
    assert before.image == before.frozen


def test_every_so_often_a_disk_is_read_as_a_whole(lab: Bench) -> None:
    source = {"cbtDistrust": {"fullEvery": "30d"}}
    before = day(lab, **source)
    for days, code in ((29, "ChangeTracking"), (30, "FullEvery"), (59, "ChangeTracking")):
        lab.clock = clocks.ShiftedClock(clocks.SystemClock().now() + dt.timedelta(days=days))
        before = day(lab, before, **source)
        assert before.told.reason.code == code
        assert before.verdict.warnings == ()


# -- while it is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "happens"),
    [
        (verdicts.SnapshotGone, lambda lab: lab.lab.act("vm1", "removeSnapshot", snapshot=lab.references()[-1])),
        (verdicts.SnapshotGone, lambda lab: lab.lab.act("vm1", "removeAllSnapshots")),
        (verdicts.SnapshotGone, lambda lab: lab.lab.act("vm1", "destroy")),
        (verdicts.Reverted, lambda lab: lab.lab.act("vm1", "revert", snapshot=lab.references()[0])),
        (verdicts.Reverted, lambda lab: lab.lab.act("vm1", "revert", snapshot=lab.references()[1])),
        (verdicts.DisksChanged, lambda lab: lab.lab.act("vm1", "addDisk", sizeBytes=MIB, slot="scsi0:7")),
        (verdicts.DisksChanged, lambda lab: lab.lab.act("vm1", "removeDisk", disk="Hard disk 2")),
        (verdicts.DisksChanged, lambda lab: lab.lab.act("vm1", "resizeDisk", disk="Hard disk 2", sizeBytes=2 * MIB)),
    ],
)
def test_a_machine_that_is_another_one_afterwards_is_said_so(
    tmp_path: Path, error: type[errors.SourceChanged], happens: Callable[[Bench], object]
) -> None:
    independent = {"label": "Hard disk 2", "sizeBytes": MIB, "mode": "independent_persistent"}
    disks = [{"label": DISK, "sizeBytes": SIZE}, independent]
    with bench(tmp_path, disks=disks) as lab:
        theirs = lab.snapshot_of_others()
        source = {"excludeDisks": [{"machine": "*", "disk": "Hard disk 2"}]}
        with lab.frozen(**source) as reading:
            assert reading.finish().failed == ()
            happens(lab)
            with pytest.raises(error, match=r"VM vm1: .*while it was read|VM vm1: .* any more"):
                reading.finish()
        left = [one["moref"] for one in lab.lab.state()["machines"] for one in one["snapshots"]]
        assert set(left) <= {theirs}
        assert lab.ledger.open == {}


def test_a_vcenter_that_is_away_for_a_while_is_asked_again(lab: Bench) -> None:
    with lab.frozen() as reading:
        lab.lab.crash()
        threading.Timer(4.5, lab.lab.restart).start()
        assert reading.finish().failed == ()
        assert "VM vm1: verdict: 127.0.0.1" in lab.log
    assert lab.references() == []


def test_somebody_elses_snapshot_meanwhile_does_no_harm(lab: Bench) -> None:
    with lab.frozen() as reading:
        theirs = lab.snapshot_of_others()
        assert reading.finish().failed == ()
    assert lab.references() == [theirs]


def test_a_datastore_that_runs_full_ends_it_and_a_full_one_begins_none(tmp_path: Path) -> None:
    with bench(tmp_path, vcenter={"maxSnapshotAge": "8s", "datastoreFreeSpace": "20%"}) as lab:
        capacity = 1 << 40
        with lab.frozen() as reading:
            lab.lab.act("", "datastoreFree", datastore="ds1", freeBytes=1)
            _wait(lambda: lab.references() == [])
            for step in (reading.finish, lambda: reading.disks[0].pread(0, 512)):
                with pytest.raises(
                    spaces.DatastoreFull, match=r"VM vm1: read: datastore ds1 has .* free, less than half"
                ):
                    step()
        assert lab.ledger.words == ["intend", "made", "gone"]
        with pytest.raises(spaces.DatastoreFull, match="VM vm1: no snapshot is made: datastore ds1 has"), lab.frozen():
            pass
        assert lab.ledger.words == ["intend", "made", "gone"]
        lab.lab.act("", "datastoreFree", datastore="ds1", freeBytes=capacity)


def test_a_snapshot_that_grows_too_old_is_removed_although_a_read_hangs(tmp_path: Path) -> None:
    with bench(tmp_path, vcenter={"maxSnapshotAge": "1s"}) as lab, lab.frozen() as reading:
        lab.lab.fault(on="GET /folder", kind="hang", count=0)
        began = time.monotonic()
        with pytest.raises(watches.SnapshotTooOld, match=r"VM vm1: .*maxSnapshotAge 1s"):
            reading.disks[0].pread(0, MIB)
        assert time.monotonic() - began < 5
        _wait(lambda: lab.references() == [])
        lab.lab.clear_faults()


def test_a_cancel_is_heard_although_a_read_hangs(lab: Bench) -> None:
    with lab.frozen() as reading:
        lab.lab.fault(on="GET /folder", kind="hang", count=0)
        threading.Timer(0.2, lab.meter.cancel).start()
        with pytest.raises(errors.Cancelled):
            reading.disks[0].pread(0, MIB)
        lab.lab.clear_faults()
    assert lab.references() == []


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- endings --------------------------------------------------------------------------------------------------------


def test_a_disk_that_cannot_be_opened_is_missing_and_nothing_is_left(lab: Bench) -> None:
    theirs = lab.snapshot_of_others()
    with lab.frozen() as reading:
        assert reading.disks == ()
        assert len(reading.missing) == 1
        assert f"VM vm1: {DISK}" in reading.missing[0].message
        assert reading.finish().failed == ()
    assert lab.references() == [theirs]
    assert lab.ledger.open == {}


def test_hooks_run_around_it_in_every_ending(lab: Bench, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    script = f'echo "$HOLDFAST_HOOK $HOLDFAST_MACHINE $HOLDFAST_DISKS" >> {noted}'
    commands = hooks.Hooks(before=("sh", "-c", script), after=("sh", "-c", script))
    with lab.frozen(commands=commands):
        assert noted.read_text() == f"before vm1 {DISK}\n"
    assert noted.read_text() == f"before vm1 {DISK}\nafter vm1 {DISK}\n"
    lab.lab.fault(on="CreateSnapshot_Task", kind="task", fault="InsufficientStorageSpace")
    with pytest.raises(errors.SourceError, match="InsufficientStorageSpace"), lab.frozen(commands=commands):
        pass
    assert noted.read_text().splitlines()[2:] == [f"before vm1 {DISK}", f"after vm1 {DISK}"]


def test_a_hook_that_fails_keeps_nothing_else_from_being_undone(lab: Bench) -> None:
    bad = hooks.Hooks(before=("sh", "-c", "echo no; exit 3"), after=())
    with pytest.raises(errors.HookFailed, match="before hook of vm1"), lab.frozen(commands=bad):
        pass
    assert lab.ledger.words == []
    bad = hooks.Hooks(before=(), after=("sh", "-c", "exit 4"))
    with pytest.raises(errors.HookFailed, match="after hook of vm1"), lab.frozen(commands=bad):
        pass
    assert lab.references() == []
    lab.lab.fault(on="CreateSnapshot_Task", kind="task", fault="InsufficientStorageSpace")
    with pytest.raises(errors.SourceError, match="InsufficientStorageSpace") as told, lab.frozen(commands=bad):
        pass
    assert any("after hook of vm1" in note for note in told.value.__notes__)


def test_a_removal_that_fails_costs_no_image_and_hides_no_hook(lab: Bench) -> None:
    lab.lab.fault(on="RemoveSnapshot_Task", kind="task", fault="InsufficientStorageSpace", count=0)
    commands = hooks.Hooks(before=(), after=("sh", "-c", "exit 4"))
    with pytest.raises(errors.HookFailed, match="after hook"), lab.frozen(commands=commands) as reading:
        assert reading.finish().failed == ()
    assert "SnapshotLeft: VM vm1: snapshot removal: InsufficientStorageSpace" in lab.log
    assert len(lab.ledger.open) == 1


def test_what_needs_consolidation_is_said(lab: Bench) -> None:
    lab.lab.act("vm1", "consolidationNeeded")
    with lab.frozen() as reading:
        assert [one.code for one in reading.finish().warnings] == ["ConsolidationNeeded"]
        lab.lab.act("vm1", "consolidationNeeded")
    lab.lab.act("vm1", "consolidationNeeded")
    with lab.frozen(consolidate=True):
        lab.lab.act("vm1", "consolidationNeeded")
    assert not lab.lab.machine("vm1")["consolidationNeeded"]


# -- disks of every kind --------------------------------------------------------------------------------------------


def test_disks_that_snapshots_leave_out_are_missing_unless_they_are_excluded(tmp_path: Path) -> None:
    disks = [
        {"label": DISK, "sizeBytes": SIZE},
        {"label": "Hard disk 2", "sizeBytes": MIB, "mode": "independent_persistent"},
        {"label": "Hard disk 3", "sizeBytes": MIB, "kind": "rdm",
         "rdm": {"compatibility": "physicalMode", "lun": "naa.6000", "device": str(_lun(tmp_path, MIB))}},
    ]  # fmt: skip
    with bench(tmp_path, disks=disks) as lab:
        with lab.frozen() as reading:
            assert [disk.name for disk in reading.disks] == [DISK]
            assert [one.code for one in reading.missing] == ["IndependentDisk", "RawDevice"]
            assert all("VM vm1: Hard disk" in one.message for one in reading.missing)
        with lab.frozen(excludeDisks=[{"machine": "vm*", "disk": "Hard disk [23]"}]) as reading:
            assert reading.missing == ()
            assert [one.code for one in reading.finish().warnings] == ["DiskExcluded", "DiskExcluded"]


def _lun(folder: Path, size: int) -> Path:
    path = folder / f"lun-{size}"
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


@pytest.mark.parametrize(
    ("power", "hooked", "consistency"),
    [("poweredOn", False, "Live"), ("poweredOn", True, "Snapshot"), ("poweredOff", False, "Offline")],
)
def test_a_raw_device_is_read_by_its_path_here(tmp_path: Path, power: str, hooked: bool, consistency: str) -> None:
    lun = _lun(tmp_path, MIB)
    raw = {"compatibility": "physicalMode", "lun": "naa.6000", "device": str(lun)}
    disks = [{"label": DISK, "sizeBytes": SIZE}, {"label": "Hard disk 2", "sizeBytes": MIB, "kind": "rdm", "rdm": raw}]
    commands = hooks.Hooks(before=("true",) if hooked else ())
    with bench(tmp_path, disks=disks, powerState=power) as lab:
        declared = {"machine": "vm1", "disk": "Hard disk 2", "device": str(lun)}
        with lab.frozen(commands=commands, rdm=[declared]) as reading:
            assert [disk.name for disk in reading.disks] == [DISK, "Hard disk 2"]
            assert content(reading.disks[1]) == lun.read_bytes()
            paper = json.loads(reading.configuration() or "")
            assert [disk["mappingFile"] for disk in paper["disks"]] == [False, True]
            assert reading.changes("Hard disk 2", reading.state()).reason.code == "RawDevice"
            assert reading.finish().consistency == consistency
            if power == "poweredOff":
                lab.lab.act("vm1", "power", state="poweredOn")
                assert reading.finish().consistency == "Live"
        short = _lun(tmp_path, MIB // 2)
        with lab.frozen(rdm=[{**declared, "device": str(short)}]) as reading:
            assert [disk.name for disk in reading.disks] == [DISK]
            assert f"{short} has {MIB // 2} bytes, the raw device has {MIB}" in reading.missing[0].message


def test_a_machine_of_which_no_disk_can_be_read_is_not_frozen(lab: Bench) -> None:
    everything = [{"machine": "*", "disk": "*"}]
    with pytest.raises(freezing.NotReadable, match="VM vm1: no disk can be"), lab.frozen(excludeDisks=everything):
        pass
    assert lab.ledger.words == []


def test_the_machine_on_paper_comes_along(lab: Bench) -> None:
    with lab.frozen() as reading:
        paper = reading.configuration()
    assert paper is not None
    assert "vm1.vmx" in paper
    assert isinstance(reading, readings.VmReading)
