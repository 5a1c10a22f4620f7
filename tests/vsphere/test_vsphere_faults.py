"""Every fault of the vCenter in every phase of a backup: no snapshot is left, no byte is wrong, and the words say it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import fault_rounds
import pytest
from fault_rounds import FAULTS, Score

BATCH = 8


@pytest.mark.parametrize("part", range(2))
def test_each_fault_in_each_phase(tmp_path: Path, part: int) -> None:
    mine = FAULTS[part::2]
    score = Score()
    with fault_rounds.estate_of(tmp_path, BATCH) as estate:
        estate.apply()
        for start in range(0, len(mine), BATCH):
            estate.pass_day()
            batch = mine[start : start + BATCH]
            fault_rounds.night(estate, {f"vm{number + 1}": fault for number, fault in enumerate(batch)}, score)
        assert score.images >= len(mine) // 2, score
        assert score.states["Backup Failed"] >= 2, score
        # An answer that is cut off comes too late: what was asked for was done.
        hopeless = sum(
            one.on.startswith("Remove") and (one.rule["kind"], one.rule.get("count")) == ("task", 0) for one in mine
        )
        assert score.left >= hopeless, "a removal that cannot succeed leaves a snapshot to the next pass"
        estate.pass_day()
        estate.apply()
        newest = {image["client"]: image for image in sorted(estate.items("images"), key=lambda one: one["time"])}
        assert {image["changes"] for image in newest.values()} == {"Known"}


def test_whatever_the_vcenter_says_of_changes_no_byte_is_wrong(tmp_path: Path) -> None:
    score = Score()
    with fault_rounds.estate_of(tmp_path, 2) as estate:
        for mode in fault_rounds.MODES:
            estate.lab.mode(**mode)
            fault_rounds.night(estate, {}, score)
            estate.pass_day()
    assert (score.images, score.states["Backup Failed"]) == (2 * len(fault_rounds.MODES), 0)


def test_backups_under_random_faults(tmp_path: Path) -> None:
    score = fault_rounds.soak(tmp_path, 16, 5)
    assert score.cycles >= 16 and score.images >= 8, score


def test_a_vcenter_that_dies_in_the_middle_and_comes_back(tmp_path: Path) -> None:
    score = Score()
    with fault_rounds.estate_of(tmp_path, 4) as estate:
        process = estate.command.start("apply", "--yes", ".", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while not estate.snapshots():
            assert time.monotonic() < deadline and process.poll() is None
        estate.lab.crash()
        time.sleep(0.5)
        estate.lab.restart()
        said, _ = process.communicate(timeout=200)
        assert process.returncode in (0, 3), said
        estate.pass_day()
        fault_rounds.night(estate, {}, score)
        assert (score.images, score.states["Backup Failed"]) == (4, 0)


POINTS = (
    "snapshot.noted", "snapshot.made", "backup.frozen", "backup.reading", "backup.before-commit", "backup.after-commit",
    "backup.recorded", "snapshot.removed",
)  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_each_phase_the_next_pass_leaves_no_snapshot(tmp_path: Path, point: str) -> None:
    score = Score()
    with fault_rounds.estate_of(tmp_path, 2) as estate:
        died = estate.command.crashing(point).run("apply", "--yes", ".", code=None)
        assert died.returncode == -signal.SIGKILL, died.stderr
        fault_rounds.night(estate, {}, score)
        assert score.states["Backup Failed"] == 0
        assert {image["client"] for image in estate.items("images") if image["state"] == "Complete"} == {"vm1", "vm2"}
