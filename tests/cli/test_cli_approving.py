"""Approvals through the installed command: what they let go is exactly what they name, by command and by manifest."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import estate_samples
import pytest
from estate_samples import Estate

#: A minute later each day: the slots of a policy are a day after the moment that put it in force.
DAYS = [f"2026-03-{day:02d}T12:{28 + day}:00Z" for day in range(2, 12)]
#: Hours after the third day's backup, before the fourth.
LATE = "2026-03-04T20:00:00Z"
SHORT = "{type: Fixed, period: 1d}"
LONG = "{type: Fixed, period: 30d}"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    """Images of three days of two machines, promised thirty days; the manifests then say one day."""
    estate = estate_samples.build(tmp_path_factory.mktemp("approving") / "estate", "alpha", "beta", retention=LONG)
    for day in DAYS[:3]:
        estate.apply(clock=day)
    estate.write(retention=SHORT)
    shutil.copytree(estate.folder, estate.folder.with_name("kept"))
    return estate


@pytest.fixture
def estate(template: Estate) -> Estate:
    """That estate, at its place, as it was."""
    shutil.rmtree(template.folder)
    shutil.copytree(template.folder.with_name("kept"), template.folder)
    return template


def held(estate: Estate, clock: str = LATE) -> Any:
    """The destructive part of a plan made now."""
    return estate.at(clock).json("plan")["destruction"]


def present(estate: Estate, clock: str = LATE) -> set[str]:
    """Images that have a complete copy."""
    return {one["image"] for one in estate.at(clock).json("get", "copies")["items"] if one["state"] == "Complete"}


def approval(part: Any, *, until: str = "2026-03-10T00:00:00Z", copies: int | None = None) -> str:
    """An Approval as a manifest."""
    count = part["copies"] if copies is None else copies
    return (
        "apiVersion: holdfast/v1alpha1\nkind: Approval\nmetadata: {name: shorten}\nspec:\n"
        f"  destruction: {part['digest']}\n  copies: {count}\n  by: backup-team\n"
        f"  until: {until}\n  reason: change 1234\n"
    )


def test_by_command_exactly_what_was_shown_goes(estate: Estate) -> None:
    before, part = present(estate), held(estate)
    named = {item["image"] for item in part["items"]}
    assert part["copies"] == 4 and named < before
    assert estate.apply(clock=LATE, code=4)["held"] == 4
    assert present(estate) == before
    found = estate.at(LATE).json("approve", part["digest"], "--reason", "change 1234", "--by", "ann")
    assert found["kind"] == "Result" and found["done"] and found["details"]["copies"] == 4
    plan = estate.at(LATE).json("plan")
    assert plan["destruction"] == {**part, "approved": True}
    due = [one for one in plan["actions"] if one["type"] == "Expire" and one["state"] == "Due"]
    assert {one["image"] for one in due} == named
    assert all(one["reason"]["code"] == "Approved" and "by ann" in one["reason"]["message"] for one in due)
    assert estate.apply(clock=LATE, code=0)["held"] == 0
    assert present(estate) == before - named
    estate.at(LATE).run("plan", "--detailed-exitcode", code=0)
    audit = estate.at(LATE).json("get", "audit")["items"]
    events = [one["event"] for one in audit]
    assert events.count("Approved") == 1 and events.index("PromisesReleased") < events.index("CopyExpiring")
    # The image of the third day was promised thirty days too, and was not among them: it is asked for by itself.
    later = held(estate, "2026-03-05T13:30:00Z")
    assert later["copies"] == 2 and not {item["image"] for item in later["items"]} & named


def test_by_manifest_in_the_same_revision_in_one_apply(estate: Estate) -> None:
    before, part = present(estate), held(estate)
    estate_samples.replace(estate.folder / "approval.yaml", approval(part))
    plan = estate.at(LATE).json("plan", "--detailed-exitcode", code=2)
    assert plan["destruction"]["approved"] and plan["destruction"]["digest"] == part["digest"]
    result = estate.apply(clock=LATE, code=0)
    assert [one["type"] for one in result["actions"]] == ["Expire"] * 4 and result["configuration"] == 2
    assert present(estate) == before - {item["image"] for item in part["items"]}
    drift = {one["code"]: one["object"] for one in estate.at(LATE).json("plan")["drift"]}
    assert drift["ApprovalUsed"] == "Approval/shorten"


def test_the_manifest_that_plan_prints_is_valid_and_is_enough(estate: Estate) -> None:
    part = held(estate)
    text = estate.at(LATE).using(COLUMNS="80").run("plan").stdout
    lines = itertools.dropwhile(lambda line: "apiVersion" not in line, text.splitlines())
    pasted = "\n".join(itertools.takewhile(str.strip, lines)) + "\n"
    assert all(len(line) <= 80 for line in pasted.splitlines())
    comment = estate.at(LATE).run("plan", "-o", "markdown").stdout
    block = comment.partition("```yaml\n")[2].partition("```")[0]
    assert block.split() == pasted.split()
    estate_samples.replace(estate.folder / "approval.yaml", pasted)
    assert estate.at(LATE).json("validate")["valid"]
    assert held(estate) == {**part, "approved": True}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"until": "2026-03-04T19:59:00Z"}, "ApprovalExpired"),
        ({"copies": 3}, "ApprovalTooSmall"),
        ({"digest": "blake3:" + "0" * 64}, "ApprovalUnused"),
    ],
)
def test_a_manifest_that_does_not_match_holds_everything(estate: Estate, change: dict[str, Any], code: str) -> None:
    before, part = present(estate), held(estate)
    words = {name: value for name, value in change.items() if name != "digest"}
    text = approval({**part, "digest": change.get("digest", part["digest"])}, **words)
    estate_samples.replace(estate.folder / "approval.yaml", text)
    assert estate.apply(clock=LATE, code=4)["held"] == 4
    assert present(estate) == before
    assert code in {one["code"] for one in estate.at(LATE).json("plan")["drift"]}


def test_what_waits_for_no_approval_cannot_be_approved(estate: Estate) -> None:
    part = held(estate)
    command = estate.at(LATE)
    wrong = command.run("approve", "blake3:" + "0" * 64, "--reason", "x", code=1)
    assert part["digest"] in wrong.stderr and wrong.stdout == ""
    assert "--copies 1" in command.run("approve", part["digest"], "--reason", "x", "--copies", "1", code=1).stderr
    for until in ("2026-03-01T00:00:00Z", "soon"):
        command.run("approve", part["digest"], "--reason", "x", "--until", until, code=64)
    command.run("approve", part["digest"], "--reason", " ", code=64)
    assert not held(estate)["approved"]
    # One that has run out holds everything again.
    command.run("approve", part["digest"], "--reason", "x", "--until", "1h")
    assert held(estate, "2026-03-04T20:30:00Z")["approved"]
    assert not held(estate, "2026-03-04T21:30:00Z")["approved"]


def test_a_rule_that_is_in_force_again_promises_anew(estate: Estate) -> None:
    estate.at(LATE).run("approve", held(estate)["digest"], "--reason", "x")
    estate.write(retention="{type: Forever}")
    estate.at(LATE).run("approve", "blake3:" + "0" * 64, "--reason", "x", code=1)
    estate.write(retention=SHORT)
    estate.apply(clock=LATE, code=0)
    gone = present(estate)
    estate.write(retention=LONG)
    estate.apply(clock=LATE)
    estate.write(retention=SHORT)
    # The same digest would mean other copies by now: what is left is held, and has to be approved by itself.
    later = "2026-03-05T13:30:00Z"
    part = held(estate, later)
    assert {item["image"] for item in part["items"]} <= gone and part["copies"] == 2 and not part["approved"]


def test_with_a_controller_alive_it_is_carried_out_at_once(estate: Estate, tmp_path: Path) -> None:
    part, before = held(estate), present(estate)
    clock = estate_samples.set_clock(tmp_path / "clock", LATE)
    command = estate.at(clock)
    with estate_samples.running(command, tmp_path / "log", "."):
        found = command.json("approve", part["digest"], "--reason", "change 1234", code=0)
        assert found["done"] and found["details"]["result"]["held"] == 0
        left = {one["image"] for one in command.json("get", "copies")["items"] if one["state"] == "Complete"}
    assert left == before - {item["image"] for item in part["items"]}


@pytest.mark.parametrize("by", ["command", "manifest"])
def test_an_approval_lets_a_guarded_change_go(estate: Estate, by: str) -> None:
    estate.write(retention=LONG)
    estate.apply(clock=LATE)
    before = present(estate)
    for name in ("storage.yaml", "lifecycle.yaml", "policy.yaml"):
        (estate.folder / name).unlink()
    plan = estate.at(LATE).json("plan", code=None)
    (problem,) = [one for one in plan["problems"] if one["code"] == "HF490"]
    digest = problem["hint"].rpartition(" ")[2]
    if by == "command":
        assert estate.at(LATE).json("approve", digest, "--reason", "moved away")["details"]["what"] == "Configuration"
    else:
        estate_samples.replace(estate.folder / "approval.yaml", approval({"digest": digest, "copies": 0}))
    plan = estate.at(LATE).json("plan")
    assert [one["change"] for one in plan["configuration"]].count("Orphan") == 4
    estate.apply(clock=LATE, code=0)
    assert present(estate) == before
    assert estate.at(LATE).json("plan")["configuration"] == []
    assert {one["state"] for one in estate.at(LATE).json("get", "policies")["items"]} == {"Orphaned"}
    # The same once more is asked once more; a manifest stands as long as it stands.
    estate.write(retention=LONG)
    estate.apply(clock=LATE)
    for name in ("storage.yaml", "lifecycle.yaml", "policy.yaml"):
        (estate.folder / name).unlink()
    plan = estate.at(LATE).json("plan", code=None)
    assert ("HF490" in {one["code"] for one in plan["problems"]}) == (by == "command")
