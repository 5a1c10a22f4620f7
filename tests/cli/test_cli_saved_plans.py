"""``plan --out`` and ``apply FILE``: what was reviewed is what is applied, or exit 5 says what moved."""

from __future__ import annotations

import json
from pathlib import Path

import estate_samples
import plan_schema
import pytest
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


@pytest.mark.parametrize("version", ["2.0", "1.1"])
def test_a_newer_format_is_refused(converged: Estate, tmp_path: Path, version: str) -> None:
    file = tmp_path / "plan.json"
    converged.command.run("plan", "--out", file)
    document = json.loads(file.read_text())
    assert document["kind"] == "Plan"
    file.write_text(json.dumps({**document, "formatVersion": version}))
    assert version in converged.command.run("apply", file, code=4).stderr


@pytest.mark.parametrize("key", ["revision", "estate", "digest", "expiresAt"])
def test_an_edited_file_is_refused(converged: Estate, tmp_path: Path, key: str) -> None:
    file = tmp_path / "plan.json"
    converged.command.run("plan", "--out", file)
    document = json.loads(file.read_text())
    plan_schema.require_valid(document)
    file.write_text(json.dumps({**document, key: document[key][:-1] + "~"}))
    assert "edited" in converged.command.run("apply", file, code=5).stderr


def test_it_holds_no_secret_of_the_environment_or_the_settings(converged: Estate, tmp_path: Path) -> None:
    secret = "hunter2-" + "x" * 20
    command = converged.command.using(HOLDFAST_NOTIFY=f"json://u:{secret}@localhost/", VCENTER_PASSWORD=secret)
    command.run("plan", "--out", tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert secret not in text
    assert json.loads(text)["catalog"] == str(converged.state / "catalog.sqlite")


def test_it_can_be_applied_for_a_week(empty: Estate, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    empty.at(START).run("plan", "--out", file)
    late = empty.at("2026-03-09T12:01:00Z").run("apply", file, code=5).stderr
    assert "until 2026-03-09T12:00" in late
    assert not empty.state.exists()


def test_nothing_is_saved_of_manifests_with_errors(empty: Estate, tmp_path: Path) -> None:
    (empty.folder / "wrong.yaml").write_text("kind: Wrong\n")
    done = empty.command.run("plan", "--out", tmp_path / "plan.json", code=4)
    assert "nothing was saved" in done.stderr
    assert not (tmp_path / "plan.json").exists()


def test_a_unit_that_went_away_is_named(empty: Estate, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    empty.apply(clock=START)
    empty.at("2026-03-03T12:30:00Z").run("plan", "--out", file)
    (empty.folder / "storage" / "fast").rename(tmp_path / "away")
    said = empty.at("2026-03-03T12:31:00Z").run("apply", file, code=5).stderr
    assert "unit fast is offline now" in said
    (tmp_path / "away").rename(empty.folder / "storage" / "fast")
    assert empty.at("2026-03-03T12:32:00Z").json("apply", file)["succeeded"] == 1


def test_an_image_that_destroys_one_more_is_named(empty: Estate, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    empty.write(retention="{type: Keep, last: 5}")
    for day in range(2, 6):
        empty.apply(clock=f"2026-03-0{day}T12:0{day}:00Z")
    empty.write(retention="{type: Keep, last: 2}")
    empty.at("2026-03-05T13:00:00Z").run("plan", "--out", file)
    assert json.loads(file.read_text())["destruction"]["copies"] == 2
    empty.write(retention="{type: Keep, last: 5}")
    empty.at("2026-03-05T13:01:00Z").run("backup", "nightly", "alpha", "--wait")
    empty.write(retention="{type: Keep, last: 2}")
    said = empty.at("2026-03-05T13:02:00Z").run("apply", file, code=5).stderr
    assert "series nightly/alpha has a new image alpha-" in said
    assert "the destructive part holds 1 copies more" in said


def test_two_processes_under_the_very_same_clock_agree(empty: Estate) -> None:
    """The second process begins at the same moment anew, so the image is a little later than its now."""
    assert empty.apply(clock=START)["converged"] is True
    command = empty.at(START)
    assert command.json("plan", "--detailed-exitcode", code=0)["summary"]["due"] == 0
    assert empty.apply(clock=START)["succeeded"] == 0
    assert len(empty.get("images")) == 1
