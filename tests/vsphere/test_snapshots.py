"""Snapshots of ours: noted first, made once, found by their mark, removed in every ending, and others' never."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from reading_samples import OWNER, Bench, bench

from reconciler.base import errors
from reconciler.sources import machines
from reconciler.sources.vsphere.reading import snapshots


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def take(lab: Bench, quiesce: str = "Try") -> tuple[machines.Snapshot, snapshots.Taken]:
    noted = lab.noted(str(uuid.uuid4()))
    return noted, snapshots.take(lab.session, noted, quiesce, lab.asked())


def test_it_is_noted_then_made_then_removed_then_forgotten(lab: Bench) -> None:
    noted, taken = take(lab)
    assert lab.ledger.calls == [("intend",), ("made", taken.reference)]
    assert lab.references() == [taken.reference]
    shown = lab.lab.machine("vm1")["snapshots"][0]
    assert noted.id in shown["description"]
    assert OWNER in shown["description"]
    assert "j-000001" in shown["name"] + shown["description"]
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.references() == []
    assert lab.ledger.words == ["intend", "made", "gone"]


@pytest.mark.parametrize(
    ("guest", "power", "asked", "code"),
    [
        ("ok", "poweredOn", "Try", "Quiesced"),
        ("ok", "poweredOn", "Require", "Quiesced"),
        ("ok", "poweredOn", "Never", "QuiesceNever"),
        ("ok", "poweredOff", "Require", "PoweredOff"),
        ("noTools", "poweredOn", "Try", "NotQuiesced"),
        ("fail", "poweredOn", "Try", "QuiesceFailed"),
        ("fail", "poweredOn", "Never", "QuiesceNever"),
    ],
)
def test_whether_the_guest_held_still_is_said(tmp_path: Path, guest: str, power: str, asked: str, code: str) -> None:
    with bench(tmp_path, quiesce=guest, powerState=power) as lab:
        _, taken = take(lab, asked)
        assert taken.quiesced.code == code
        assert taken.powered_off == (power == "poweredOff")
        assert lab.lab.machine("vm1")["snapshots"][0]["quiesced"] == (code == "Quiesced")
        assert len(lab.references()) == 1


@pytest.mark.parametrize("guest", ["fail", "noTools"])
def test_a_guest_that_must_hold_still_and_does_not_gets_no_snapshot(tmp_path: Path, guest: str) -> None:
    with bench(tmp_path, quiesce=guest) as lab:
        with pytest.raises(errors.SourceError, match=r"VM vm1: snapshot: .*[Qq]uiesc|VM vm1: snapshot: .*hold still"):
            take(lab, "Require")
        assert lab.references() == []
        assert lab.ledger.words[-1] == "gone"


def test_a_fault_that_has_nothing_to_do_with_the_guest_is_not_tried_again_without_quiescing(lab: Bench) -> None:
    lab.lab.fault(on="CreateSnapshot_Task", kind="task", fault="InsufficientStorageSpace", message="no room", count=1)
    with pytest.raises(errors.SourceError, match="VM vm1: snapshot: InsufficientStorageSpace"):
        take(lab)
    assert lab.lab.state()["calls"]["CreateSnapshot_Task"] == 1
    assert lab.ledger.open == {}


def test_where_the_answer_is_lost_the_snapshot_is_found_by_its_id(lab: Bench) -> None:
    lab.lab.fault(on="CreateSnapshot_Task", kind="reset")
    # Longer than anybody would look without knowing that a task runs.
    lab.lab.mode(taskMillis=4000)
    _, taken = take(lab)
    assert lab.references() == [taken.reference]
    assert lab.lab.state()["calls"]["CreateSnapshot_Task"] == 1
    assert "looking for the snapshot" in lab.log


def test_where_the_question_was_lost_nothing_is_left(lab: Bench) -> None:
    lab.lab.fault(on="CreateSnapshot_Task", kind="http503")
    with pytest.raises(errors.SourceError, match=r"VM vm1: snapshot: .*503"):
        take(lab)
    assert lab.references() == []
    assert lab.ledger.words == ["intend", "gone"]


def test_a_snapshot_that_is_there_although_its_task_failed_is_removed(lab: Bench) -> None:
    lab.lab.fault(on="CreateSnapshot_Task", kind="task", fault="InsufficientStorageSpace", late=True)
    with pytest.raises(errors.SourceError, match="InsufficientStorageSpace"):
        take(lab)
    assert lab.references() == []
    assert lab.ledger.open == {}


def test_a_cancel_while_it_is_made_leaves_none(lab: Bench) -> None:
    lab.lab.mode(taskMillis=600)
    threading.Timer(0.2, lab.meter.cancel).start()
    with pytest.raises(errors.Cancelled):
        take(lab)
    assert lab.references() == []
    assert lab.ledger.words == ["intend", "gone"]


def test_a_vcenter_that_dies_meanwhile_is_asked_again_what_became_of_it(lab: Bench) -> None:
    lab.lab.mode(taskMillis=400)

    def crash() -> None:
        lab.lab.crash()
        lab.lab.restart()

    # Its effect comes halfway: the snapshot is there, and nobody was told.
    threading.Timer(0.35, crash).start()
    noted, taken = take(lab)
    assert lab.references() == [taken.reference]
    assert "looking for the snapshot" in lab.log
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.references() == []


def test_a_vcenter_that_stays_away_leaves_a_note(lab: Bench) -> None:
    noted, _ = take(lab)
    lab.lab.crash()
    assert not snapshots.give_up(lab.session, noted, lab.asked())
    assert list(lab.ledger.open) == [noted.id]
    assert "SnapshotLeft: VM vm1: snapshot removal: 127.0.0.1" in lab.log


def test_a_busy_machine_is_waited_for(lab: Bench) -> None:
    noted, _ = take(lab)
    lab.lab.fault(on="RemoveSnapshot_Task", kind="fault", fault="ConcurrentAccess")
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.references() == []
    assert "VM vm1: snapshot removal: ConcurrentAccess" in lab.log


@pytest.mark.parametrize("kind", ["reset", "expire"])
def test_a_removal_whose_answer_is_lost_is_looked_after(lab: Bench, kind: str) -> None:
    noted, _ = take(lab)
    lab.lab.fault(on="RemoveSnapshot_Task", kind=kind)
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.references() == []
    assert lab.ledger.open == {}


def test_a_removal_that_fails_keeps_the_note_and_is_made_later(lab: Bench) -> None:
    noted, taken = take(lab)
    lab.lab.fault(on="RemoveSnapshot_Task", kind="task", fault="InsufficientStorageSpace", message="no room to merge")
    assert not snapshots.give_up(lab.session, noted, lab.asked())
    assert list(lab.ledger.open) == [noted.id]
    assert "VM vm1: snapshot removal: InsufficientStorageSpace" in lab.log
    assert lab.references() == [taken.reference]
    assert snapshots.remove_noted(lab.session, OWNER, noted, lab.meter)
    assert lab.references() == []
    assert not snapshots.remove_noted(lab.session, OWNER, noted, lab.meter)


def test_snapshots_of_others_are_never_touched(lab: Bench) -> None:
    below = lab.snapshot_of_others()
    noted, taken = take(lab)
    named_like_ours = lab.lab.machine("vm1")["snapshots"][1]["name"]
    above = lab.snapshot_of_others(name=named_like_ours, description=f"not {noted.id}")
    # Another catalog's view of the same id, and an id that nobody has.
    assert not snapshots.remove(lab.session, noted, "catalog-2", lab.lines.append)
    assert not snapshots.remove_noted(lab.session, OWNER, lab.noted(str(uuid.uuid4()), reference=below))
    assert lab.references() == [below, taken.reference, above]
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.references() == [below, above]


def test_a_cancel_stops_a_removal_before_it_begins_only(lab: Bench) -> None:
    noted, taken = take(lab)
    lab.meter.cancel()
    with pytest.raises(errors.Cancelled):
        snapshots.remove_noted(lab.session, OWNER, noted, lab.meter)
    assert lab.references() == [taken.reference]
    # The end of a job is made all the same.
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.references() == []


def test_a_machine_that_was_registered_anew_is_found_by_its_uuid(lab: Bench) -> None:
    noted, _ = take(lab)
    assert snapshots.remove_noted(lab.session, OWNER, dataclasses.replace(noted, place="vm-9999"))
    assert lab.references() == []


def test_a_machine_that_is_gone_has_no_snapshots_either(lab: Bench) -> None:
    noted, _ = take(lab)
    lab.lab.act("vm1", "destroy")
    assert not snapshots.remove_noted(lab.session, OWNER, noted)
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert lab.ledger.open == {}


def test_disks_that_need_consolidation_are_told_of_and_consolidated_where_asked(lab: Bench) -> None:
    noted, _ = take(lab)
    assert snapshots.give_up(lab.session, noted, lab.asked())
    assert snapshots.consolidate(lab.session, noted, wanted=True) is None
    lab.lab.act("vm1", "consolidationNeeded")
    told = snapshots.consolidate(lab.session, noted, wanted=False)
    assert told is not None
    assert told.code == "ConsolidationNeeded"
    lab.lab.fault(on="ConsolidateVMDisks_Task", kind="task", fault="FileLocked", message="somebody holds it")
    told = snapshots.consolidate(lab.session, noted, wanted=True)
    assert told is not None
    assert told.code == "ConsolidationNeeded"
    assert "VM vm1: consolidation: FileLocked: somebody holds it" in told.message
    done = snapshots.consolidate(lab.session, noted, wanted=True)
    assert done is not None
    assert done.code == "Consolidated"
    assert not lab.lab.machine("vm1")["consolidationNeeded"]
