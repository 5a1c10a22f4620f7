"""A large estate: what a plan and a check of it cost, through the installed command. ``hack/bench planner`` does more."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast_command import PROGRAM, Command

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "hack"))

import bench_planner  # noqa: E402
import make_catalog  # noqa: E402

NOW = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a command took, its start left in."""

    #: Processor time: a busy machine makes no difference.
    seconds: float
    #: Peak memory.
    bytes: int


def cost(command: Command, *words: str | Path) -> Cost:
    """Run a command that must succeed."""
    with subprocess.Popen(
        [*PROGRAM, *map(str, words)], cwd=command.folder, env=command.environment(), stdout=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def planned(folder: Path, images: int) -> Cost:
    """Of a plan over so many images, a hundred of each machine."""
    folder.mkdir()
    estate, state = folder / "estate", folder / "state"
    make_catalog.make(
        make_catalog.Wish(
            clients=images // 100,
            images=images,
            estate=estate,
            state=state,
            catalog=str(state / "catalog.sqlite"),
            now=NOW,
        )
    )
    command = Command(folder=folder).at("2026-11-23T09:00:00Z")
    summary = command.json("plan", estate, "--state", state)["summary"]
    assert 0 < summary["due"] < images // 100
    assert summary["planned"] == images // 100
    return cost(command, "plan", estate, "--state", state)


def test_a_plan_over_ten_times_the_images_takes_at_most_ten_times_as_long(tmp_path: Path) -> None:
    few, many = planned(tmp_path / "few", 10_000), planned(tmp_path / "many", 100_000)
    # The start of the program is in both, so a linear plan grows by less; the rest is for the noise of a busy machine.
    assert many.seconds < 10 * few.seconds, f"{few.seconds:.1f} s, then {many.seconds:.1f} s"
    assert many.seconds < 30
    assert many.bytes < few.bytes + (256 << 20), f"{many.bytes >> 20} MiB"


@pytest.mark.parametrize("files", [1000])
def test_a_thousand_manifests_are_checked_in_a_few_seconds(tmp_path: Path, files: int) -> None:
    bench_planner.write_manifests(tmp_path, files)
    command = Command(folder=tmp_path)
    assert command.json("validate", tmp_path)["objects"] == files + 6
    assert cost(command, "validate", tmp_path).seconds < 4
