"""``plan --out`` and ``apply FILE``: what was reviewed is what is applied, or exit 5 says what moved."""

from __future__ import annotations

import json
from pathlib import Path

import estate_samples
from estate_samples import START, Estate


def test_a_saved_plan_is_applied_without_asking_and_converges(empty: Estate, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    command = empty.at(estate_samples.set_clock(clock, START))
    command.run("plan", "--out", tmp_path / "plan.json")
    # What fell due since is no reason to refuse.
    estate_samples.set_clock(clock, "2026-03-02T19:00:00Z")
    result = command.using(folder=tmp_path).json("apply", "plan.json")
    assert (result["succeeded"], result["converged"]) == (1, True)
    command.run("plan", "--detailed-exitcode", code=0)
    # Applying it once more finds everything done.
    assert command.json("apply", tmp_path / "plan.json")["succeeded"] == 0


def test_a_changed_manifest_makes_it_stale_and_is_named(converged: Estate, tmp_path: Path) -> None:
    converged.command.run("plan", "--out", tmp_path / "plan.json")
    extra = converged.folder / "extra.yaml"
    extra.write_text(
        "apiVersion: holdfast/v1alpha1\nkind: BackupWindow\nmetadata: {name: night}\nspec: {allow: [{days: [Mon], start: '20:00', duration: 4h}]}\n"
    )
    try:
        done = converged.command.run("apply", tmp_path / "plan.json", code=5)
    finally:
        extra.unlink()
    assert "BackupWindow/night" in done.stderr


def test_what_is_no_plan_is_a_usage_error(converged: Estate, tmp_path: Path) -> None:
    for name, text in {
        "a.json": "{}",
        "b.json": "[1]",
        "c.json": "no",
        "d.json": '{"kind": "ImageList", "items": []}',
    }.items():
        (tmp_path / name).write_text(text)
        converged.command.run("apply", tmp_path / name, code=64)


def test_a_newer_format_is_refused(converged: Estate, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    converged.command.run("plan", "--out", file)
    document = json.loads(file.read_text())
    assert document["kind"] == "Plan"
    file.write_text(json.dumps({**document, "formatVersion": "2.0"}))
    assert "2.0" in converged.command.run("apply", file, code=4).stderr


def test_two_processes_under_the_very_same_clock_agree(empty: Estate) -> None:
    """The second process begins at the same moment anew, so the image is a little later than its now."""
    assert empty.apply(clock=START)["converged"] is True
    command = empty.at(START)
    assert command.json("plan", "--detailed-exitcode", code=0)["summary"]["due"] == 0
    assert empty.apply(clock=START)["succeeded"] == 0
    assert len(empty.get("images")) == 1
