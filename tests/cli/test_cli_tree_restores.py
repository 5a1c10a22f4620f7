"""Restores of the manifests, by the installed command: made once per digest, also over kills, and told like any other."""

from __future__ import annotations

import signal
from pathlib import Path

import estate_samples
import pytest
from estate_samples import START, Estate

RESTORE = """
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {name: drill}
spec: {client: alpha, target: {folder: out}, format: %s, reason: "case 7"}
"""


@pytest.fixture
def estate(tmp_path: Path) -> Estate:
    """An estate with one image of a machine of two disks, and a Restore of it in the tree."""
    made = estate_samples.build(tmp_path / "estate", duplicate="yes")
    made.machine("alpha", disks=("system", "data"))
    made.apply(clock=START)
    (made.folder / "restore.yaml").write_text(RESTORE % "raw")
    return made


def disks(estate: Estate) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((estate.folder / "out").glob("*.img"))}


def machines(estate: Estate) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((estate.folder / "machines" / "alpha").iterdir())}


def test_it_is_made_once_and_recorded(estate: Estate) -> None:
    plan = estate.at(START).json("plan", ".", "--detailed-exitcode", code=2)
    (action,) = [one for one in plan["actions"] if one["type"] == "Restore"]
    assert (action["state"], action["client"], action["sourceUnit"]) == ("Due", "alpha", "fast")
    estate.apply(clock=START)
    assert disks(estate) == machines(estate)
    (record,) = estate.get("restores")
    assert (record["name"], record["state"], record["reason"]) == ("drill", "Verified", "case 7")
    assert {Path(disk["path"]).name for disk in record["disks"]} == {"system.img", "data.img"}
    estate.at(START).run("plan", ".", "--detailed-exitcode", code=0)
    before = {path: path.stat().st_mtime_ns for path in (estate.folder / "out").iterdir()}
    estate.apply(clock=START)
    assert before == {path: path.stat().st_mtime_ns for path in (estate.folder / "out").iterdir()}
    audit = [one for one in estate.get("audit") if one["event"] == "Restored"]
    assert [one["details"]["reason"] for one in audit] == ["case 7"]
    # Another spec is another restore; the manifest that goes takes nothing with it.
    (estate.folder / "restore.yaml").write_text(RESTORE % "qcow2")
    estate.apply(clock=START)
    assert sorted(path.suffix for path in (estate.folder / "out").iterdir()) == [".img", ".img", ".qcow2", ".qcow2"]
    (estate.folder / "restore.yaml").unlink()
    estate.apply(clock=START)
    assert len(estate.get("restores")) == 2 and len(disks(estate)) == 2


def test_what_is_in_the_way_is_kept_and_the_restore_waits(estate: Estate) -> None:
    (estate.folder / "out").mkdir()
    (estate.folder / "out" / "system.img").write_bytes(b"precious")
    estate.apply(clock=START, code=3)
    assert (estate.folder / "out" / "system.img").read_bytes() == b"precious"
    (record,) = estate.get("restores")
    assert record["state"] == "Failed" and "exists" in record["message"] and "overwrite: true" in record["message"]
    (estate.folder / "out" / "system.img").unlink()
    estate.apply(clock="2026-03-02T12:10:00Z")
    assert disks(estate) == machines(estate)
    assert [one["state"] for one in estate.get("restores")] == ["Verified"]


@pytest.mark.parametrize("point", ["restore.begun", "restore.reading", "restore.before-rename:2", "restore.proven"])
def test_a_killed_one_is_finished_by_the_next_pass(estate: Estate, point: str) -> None:
    killed = estate.at(START).crashing(point).run("apply", ".", "--yes", code=None)
    assert killed.returncode == -signal.SIGKILL
    estate.apply(clock=START)
    assert disks(estate) == machines(estate)
    assert [one["state"] for one in estate.get("restores")] == ["Verified"]
    assert not [path for path in (estate.folder / "out").iterdir() if path.name.startswith(".")]


def test_one_that_was_killed_and_is_asked_for_no_more_has_failed(estate: Estate) -> None:
    estate.at(START).crashing("restore.begun").run("apply", ".", "--yes", code=None)
    (estate.folder / "restore.yaml").unlink()
    estate.apply(clock=START)
    (record,) = estate.get("restores")
    assert (record["state"], record["message"]) == ("Failed", "its worker is gone")


def test_an_unknown_machine_is_said_and_holds_nothing_up(estate: Estate) -> None:
    (estate.folder / "restore.yaml").write_text((RESTORE % "raw").replace("client: alpha", "client: nobody"))
    plan = estate.at(START).json("plan", ".", code=0)
    (action,) = [one for one in plan["actions"] if one["type"] == "Restore"]
    assert (action["state"], action["reason"]["code"]) == ("Blocked", "ClientUnknown")
    estate.apply(clock=START)
    assert not estate.get("restores")


def test_nothing_is_written_into_a_unit(estate: Estate, tmp_path: Path) -> None:
    # A manifest that names the folder itself is an error; a link to it is seen when it is to be written.
    (estate.folder / "out").symlink_to(estate.folder / "storage" / "pool")
    estate.apply(clock=START, code=3)
    (record,) = estate.get("restores")
    assert record["state"] == "Failed" and "lies inside the storage unit" in record["message"]
    inside = estate.folder / "storage" / "pool" / "deep"
    for source in (("alpha",), ("--unit", estate.folder / "storage" / "pool", record["image"])):
        said = estate.command.run("restore", *source, "--to", inside, code=64).stderr
        assert "lies inside the storage unit" in said
    assert not inside.exists() and not list((estate.folder / "storage" / "pool").rglob("*.img"))


def test_a_restore_by_command_leaves_the_same_record(estate: Estate, tmp_path: Path) -> None:
    (estate.folder / "restore.yaml").unlink()
    estate.command.run("restore", "alpha", "--to", tmp_path / "here", "--reason", "because")
    (record,) = estate.get("restores")
    assert (record["name"], record["state"], record["reason"], record["target"]) == (
        None, "Verified", "because", str(tmp_path / "here"),
    )  # fmt: skip
