"""What the destructive part of a plan would really free."""

from __future__ import annotations

import os
from pathlib import Path

import estate_samples
from estate_samples import MIB, Estate


def three_days(folder: Path, storage: str) -> Estate:
    """A machine of one disk that stays and one that is another every day, backed up on three days."""
    estate = estate_samples.build(folder, storage=storage, retention="{type: Fixed, period: 30d}")
    same = os.urandom(2 * MIB)
    for day in (2, 3, 4):
        machine = estate.machine("alpha", disks=("other",), size=MIB)
        (machine / "same.img").write_bytes(same)
        estate.apply(clock=f"2026-03-0{day}T12:00:00Z")
    estate.write(storage=storage, retention="{type: Fixed, period: 1d}")
    return estate


def test_in_a_pool_it_is_what_no_other_image_needs(tmp_path: Path) -> None:
    estate = three_days(tmp_path / "estate", "pool")
    plan = estate.at("2026-03-04T13:00:00Z").json("plan")
    held = plan["destruction"]
    assert (held["copies"], held["estimated"]) == (2, False)
    # The two older images share all but their own daily disk with the newest one.
    assert 2 * MIB <= held["bytes"] < 2.2 * MIB
    text = estate.at("2026-03-04T13:00:00Z").run("plan").stdout
    assert "would be destroyed" in text.splitlines()[-1] and "about" not in text


def test_in_a_directory_it_is_what_the_files_occupy(tmp_path: Path) -> None:
    estate = three_days(tmp_path / "estate", "fast")
    held = estate.at("2026-03-04T13:00:00Z").json("plan")["destruction"]
    assert (held["copies"], held["estimated"]) == (2, False)
    folders = sorted((estate.folder / "storage" / "fast" / "alpha").iterdir())[:2]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert held["bytes"] == sum(file.stat().st_blocks * 512 for file in files)


def test_where_a_unit_is_away_it_is_an_estimate_and_says_so(tmp_path: Path) -> None:
    estate = three_days(tmp_path / "estate", "pool")
    (estate.folder / "storage" / "pool").rename(tmp_path / "away")
    command = estate.at("2026-03-04T13:00:00Z")
    held = command.json("plan")["destruction"]
    assert (held["copies"], held["estimated"]) == (2, True)
    assert "(about " in command.run("plan").stdout.splitlines()[-1]
