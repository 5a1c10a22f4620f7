"""Units that vanish, come back empty, refuse writes, fill up or are taken for one another: nothing is lost or deleted."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_estates import Estate

#: Longer than the first wait after a failure, shorter than a slot.
RETRY = dt.timedelta(minutes=10)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


@pytest.fixture
def mounts() -> Iterator[list[Path]]:
    """Mount points to be released at the end."""
    made: list[Path] = []
    yield made
    for path in reversed(made):
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def mount(mounts: list[Path], path: Path, size: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(path)], check=True)
    mounts.append(path)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(path)], check=True)


def copies(estate: Estate) -> dict[tuple[str, int], str]:
    return {(copy["image"], copy["number"]): copy["state"] for copy in estate.items("copies")}


@pytest.mark.parametrize("replaced", [False, True], ids=["missing", "empty"])
def test_a_unit_whose_folder_is_missing_or_empty_is_offline(grown: Estate, replaced: bool) -> None:
    before = {key for key, state in copies(grown).items() if state == "Complete"}
    aside = grown.root / "aside"
    grown.paths["pool"].rename(aside)
    if replaced:
        grown.paths["pool"].mkdir()
    grown.command.run("apply", "--yes", ".", code=3)
    assert grown.unit_states() == {"fast": "Online", "pool": "Offline"}
    now = copies(grown)
    assert all(now[key] in ("Complete", "Unreachable", "Expired") for key in before)
    assert "Lost" not in now.values()
    if replaced:
        assert list(grown.paths["pool"].iterdir()) == [], "something was written where the pool is not"
        grown.paths["pool"].rmdir()
    # What owes a copy to the missing unit must stay, however old it is.
    newest = {label.client_slug for label in grown.held()["fast"].values()}
    assert newest == {"vm1", "vm2"}
    aside.rename(grown.paths["pool"])
    grown.command.run("apply", "--yes", ".")
    grown.require_converged()


@root_only
def test_a_read_only_unit_is_asked_for_nothing_and_still_restores(
    fresh: Estate, mounts: list[Path], tmp_path: Path
) -> None:
    mount(mounts, fresh.paths["fast"], "64m")
    fresh.command.run("apply", "--yes", ".")
    remount(fresh.paths["fast"], "ro")
    fresh.pass_day(1)
    fresh.command.run("apply", "--yes", ".", code=3)
    assert fresh.unit_states()["fast"] == "ReadOnly"
    assert "Lost" not in copies(fresh).values()
    fresh.command.run("restore", "vm1", "--copy", "1", "--to", tmp_path / "restored")
    remount(fresh.paths["fast"], "rw")
    fresh.command.run("apply", "--yes", ".")
    fresh.require_converged()


@root_only
def test_a_full_unit_fails_the_job_and_goes_on_once_there_is_space(
    fresh: Estate, mounts: list[Path], tmp_path: Path
) -> None:
    mount(mounts, fresh.paths["fast"], "32m")
    fresh.command.run("apply", "--yes", ".")
    images = set(fresh.held()["fast"])
    ballast = fresh.paths["fast"] / ".ballast"
    fresh.pass_day(1)
    # Less than an image needs, yet below the high water mark: the unit is tried, and fills up under the job.
    space = os.statvfs(fresh.paths["fast"])
    ballast.write_bytes(bytes(space.f_bavail * space.f_frsize - 1_000_000))
    failed = fresh.ask_process("apply", "--yes", ".", code=3)
    assert "UnitFull" in {outcome["error"]["code"] for outcome in failed["actions"] if outcome["error"]}
    assert set(fresh.held()["fast"]) >= images
    left = [path for path in fresh.paths["fast"].rglob(".*") if path != ballast and "catalog" not in path.name]
    assert left == [], "an unfinished image was left on a full unit"
    fresh.command.run("restore", "vm1", "--copy", "1", "--to", tmp_path / "restored")
    ballast.unlink()
    fresh.set_clock(fresh.now() + RETRY)
    fresh.command.run("apply", "--yes", ".")
    fresh.require_converged()


def test_a_unit_swapped_for_another_is_offline(grown: Estate) -> None:
    before = copies(grown)
    stranger = grown.root / "stranger"
    shutil.copytree(grown.paths["fast"], stranger)
    text = (stranger / "unit.json").read_text()
    identity = grown.identity("fast")
    (stranger / "unit.json").write_text(text.replace(identity, "00000000-0000-4000-8000-000000000000"))
    for folder in [path for path in stranger.iterdir() if path.is_dir()]:
        shutil.rmtree(folder)
    aside = grown.root / "aside"
    grown.paths["fast"].rename(aside)
    stranger.rename(grown.paths["fast"])
    grown.command.run("apply", "--yes", ".", code=3)
    assert grown.unit_states()["fast"] == "Offline"
    assert "Lost" not in copies(grown).values()
    assert set(before) <= set(copies(grown))
    shutil.rmtree(grown.paths["fast"])
    aside.rename(grown.paths["fast"])
    grown.command.run("apply", "--yes", ".")
    grown.require_converged()
