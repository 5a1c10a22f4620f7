"""Retention seen from outside: natural expiry flows, shortening waits, omission never deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import estate_samples
import pytest
from estate_samples import START, Estate

#: A minute later each day, so that the slot of that day has come however long the first pass took to put it in force.
DAYS = [f"2026-03-{day:02d}T12:{28 + day}:00Z" for day in range(2, 10)]

#: Hours after the third day's backup, before the fourth.
LATE = "2026-03-04T20:00:00Z"


def states(estate: Estate, clock: str) -> list[str]:
    return [copy["state"] for copy in estate.at(clock).json("get", "copies")["items"]]


def three_days(folder: Path, **words: str) -> Estate:
    """An estate with the images of three days."""
    estate = estate_samples.build(folder, "alpha", **words)
    for day in DAYS[:3]:
        estate.apply(clock=day)
    return estate


def test_fixed_expiry_flows_and_the_newest_stays(tmp_path: Path) -> None:
    estate = three_days(tmp_path / "estate", retention="{type: Fixed, period: 60h}")
    oldest = estate.get("copies")[0]
    assert oldest["expiresAt"].startswith("2026-03-05T00:30:")
    result: Any = estate.apply(clock=DAYS[3])
    assert [one["type"] for one in result["actions"]].count("Expire") == 1
    present = [copy for copy in estate.at(DAYS[3]).json("get", "copies")["items"] if copy["state"] == "Complete"]
    assert oldest["image"] not in [copy["image"] for copy in present]
    assert len(present) == 3
    # No backup can succeed any more: time passes, and the newest image stays.
    estate.write(retention="{type: Fixed, period: 60h}", machines="nothing")
    estate.at(DAYS[7]).run("apply", ".", "--yes", code=None)
    assert "Complete" in states(estate, DAYS[7])


def test_shortened_retention_is_held(tmp_path: Path) -> None:
    estate = three_days(tmp_path / "estate", retention="{type: Fixed, period: 30d}")
    estate.write(retention="{type: Fixed, period: 1d}")
    plan = estate.at(LATE).json("plan", "--detailed-exitcode", code=2)
    assert plan["destruction"]["copies"] >= 1
    assert plan["destruction"]["approved"] is False
    assert plan["destruction"]["digest"].startswith("blake3:")
    result = estate.apply(clock=LATE, code=4)
    assert result["held"] == plan["destruction"]["copies"]
    assert states(estate, LATE) == ["Complete"] * 3
    # It stays held, and the rest is in force: nothing more to do.
    estate.apply(clock=LATE, code=4)
    estate.at(LATE).run("plan", "--detailed-exitcode", code=0)


def test_removed_manifests_orphan_and_delete_nothing(tmp_path: Path) -> None:
    estate = three_days(tmp_path / "estate", retention="{type: Fixed, period: 60h}")
    (estate.folder / "policy.yaml").unlink()
    plan = estate.at(DAYS[2]).json("plan")
    assert [(one["change"], one["kind"], one["name"]) for one in plan["configuration"]] == [
        ("Orphan", "BackupPolicy", "nightly")
    ]
    estate.apply(clock=DAYS[2])
    assert states(estate, DAYS[2]).count("Complete") >= 2
    assert [(one["name"], one["state"]) for one in estate.at(DAYS[2]).json("get", "policies")["items"]] == [
        ("nightly", "Orphaned")
    ]
    images = len(estate.get("images"))
    # An hour short of the second missed day: beyond it the series is overdue, and all that is left must stay.
    assert all(one["type"] != "Backup" for one in estate.apply(clock="2026-03-06T11:30:00Z")["actions"])
    assert len(estate.get("images")) <= images
    # The same name brought back adopts what it had.
    estate.write(retention="{type: Fixed, period: 60h}")
    plan = estate.at(DAYS[4]).json("plan")
    assert [one["change"] for one in plan["configuration"]] == ["Adopt"]


@pytest.mark.parametrize("emptied", [True, False], ids=["an empty tree", "a third of it"])
def test_much_gone_at_once_changes_nothing(tmp_path: Path, emptied: bool) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    estate.apply(clock=START)
    before = estate.at(START).json("status")["revision"]
    for name in ("storage.yaml", "lifecycle.yaml", "policy.yaml"):
        (estate.folder / name).unlink()
    if not emptied:
        estate_samples.replace(estate.folder / "storage.yaml", estate_samples.STORAGE.split("---")[0])
    plan = estate.at(START).json("plan", code=None)
    assert plan["configuration"] == []
    assert [problem["code"] for problem in plan["problems"] if problem["severity"] == "Error"] == ["HF490"]
    assert "HF490" in estate.at(START).run("apply", ".", "--yes", code=4).stderr
    assert estate.at(START).json("status")["revision"] == before
    # Protection goes on from what is in force.
    done = estate.at(DAYS[1]).json("apply", ".", "--yes", code=4)
    assert done["succeeded"] == 1
