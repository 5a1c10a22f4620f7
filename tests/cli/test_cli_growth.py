"""A large estate: what a plan and a check of it cost, through the installed command. ``hack/bench planner`` does more."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pytest
from holdfast_command import PROGRAM, Command

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "hack"))

import bench_planner  # noqa: E402
import make_catalog  # noqa: E402

NOW = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)


def cost(command: Command, *words: str | Path) -> bench_planner.Used:
    """What a command takes; it must succeed. Its processor time is judged: a busy machine makes no difference to it."""
    return bench_planner.timed(*PROGRAM, *words, environment=command.environment())


def planned(folder: Path, images: int) -> bench_planner.Used:
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
    assert many.processor < 10 * few.processor, f"{few.processor:.1f} s, then {many.processor:.1f} s"
    assert many.processor < 30
    assert many.memory < few.memory + (256 << 20), f"{many.memory >> 20} MiB"


@pytest.mark.parametrize("files", [1000])
def test_a_thousand_manifests_are_checked_in_a_few_seconds(tmp_path: Path, files: int) -> None:
    bench_planner.write_manifests(tmp_path, files)
    command = Command(folder=tmp_path)
    assert command.json("validate", tmp_path)["objects"] == files + 6
    assert cost(command, "validate", tmp_path).processor < 4
