"""``plan --from REV --to REV``: two revisions of a real repository over the live catalog."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import estate_samples
import pytest
from estate_samples import MIB, Estate

NOW = "2026-03-07T13:00:00Z"


def git(folder: Path, *words: str) -> str:
    """Run git without this machine's settings."""
    quiet = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
    }
    who = ["-c", "user.name=Anna", "-c", "user.email=anna@example.test", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, *words], cwd=folder, env=quiet, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def commit(folder: Path, name: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", name)
    git(folder, "tag", name)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    """Two machines with six daily images in a pool; ``v1`` keeps them a month, ``short`` two days and one machine alone,
    ``broken`` has an error. In force and checked out is ``v1``."""
    folder = tmp_path_factory.mktemp("repository") / "estates" / "north"
    estate = estate_samples.build(folder, storage="pool", retention="{type: Fixed, period: 30d}")
    root = folder.parent.parent
    (root / ".gitignore").write_text(".holdfast\nstorage\nmachines\n")
    git(root, "init", "-q")
    commit(root, "v1")
    same = os.urandom(2 * MIB)
    for day in range(2, 8):
        for name in ("alpha", "beta"):
            (estate.machine(name, disks=("other",)) / "same.img").write_bytes(same)
        estate.apply(clock=f"2026-03-0{day}T12:00:00Z")
    git(root, "checkout", "-q", "-b", "change")
    estate.write(storage="pool", retention="{type: Fixed, period: 2d}", machines="alpha")
    commit(root, "short")
    estate_samples.replace(folder / "policy.yaml", "apiVersion: holdfast/v1alpha1\nkind: BackupPolizei\n")
    commit(root, "broken")
    git(root, "checkout", "-q", "main")
    return estate


def compared(estate: Estate, *arguments: str, code: int = 0) -> Any:
    return estate.at(NOW).json("plan", *arguments, code=code)


def test_a_shorter_retention_shows_what_it_costs_and_touches_nothing(history: Estate) -> None:
    before = estate_samples.tree(history.folder.parent)
    found = compared(history, "--from", "v1", "--to", "short")
    assert estate_samples.tree(history.folder.parent) == before
    assert (found["kind"], found["formatVersion"], found["changes"]) == ("PlanComparison", "1.0", True)
    assert found["fromRevision"].startswith("v1@sha1:") and found["toRevision"].startswith("short@sha1:")
    assert {(one["kind"], one["change"]) for one in found["configuration"]} == {
        ("BackupPolicy", "Update"),
        ("StorageLifecyclePolicy", "Update"),
    }
    # Relative paths are those of the estate: nothing but what was edited differs.
    fields = [field["path"] for one in found["configuration"] for field in one["fields"]]
    assert sorted(fields) == ["spec.operations[0].retention.period", "spec.source.diskImages.machines"]
    copies = found["copies"]
    assert (copies["earlier"], copies["leaving"], copies["later"], copies["unlisted"]) == (12, 8, 0, 0)
    first = copies["items"][0]
    assert (
        first["change"] == "Earlier"
        and first["after"]["leaves"]
        and first["before"]["at"].startswith("2026-04-01T12:00:0")
    )
    (unit,) = found["units"]
    # Eight disks of their own; the other one of each image is shared with images that stay.
    assert (unit["unit"], unit["freedCopies"], unit["estimated"]) == ("pool", 8, False)
    assert 8 * MIB <= unit["freedBytes"] < 8.2 * MIB
    assert [(one["client"], one["oldestBefore"][:10], one["oldestAfter"][:10]) for one in found["clients"]] == [
        ("alpha", "2026-03-02", "2026-03-06"),
        ("beta", "2026-03-02", "2026-03-06"),
    ]
    assert [(one["client"], one["change"]) for one in found["protection"]] == [("beta", "Lose")]


def test_the_way_back_and_the_defaults(history: Estate) -> None:
    back = compared(history, "--from", "short", "--to", "v1")
    assert (back["copies"]["earlier"], back["copies"]["later"]) == (0, 12)
    assert (back["units"][0]["freedBytes"], back["units"][0]["keptCopies"]) == (0, 8)
    assert [(one["client"], one["change"]) for one in back["protection"]] == [("beta", "Gain")]
    # Only --to: from what is in force. Only --from: to the work tree.
    assert compared(history, "--to", "short")["copies"]["leaving"] == 8
    work = compared(history, "--from", "short")
    assert work["copies"]["later"] == 12 and work["toRevision"].startswith("main@sha1:")
    same = compared(history, "--to", "v1", "--detailed-exitcode")
    assert same["changes"] is False
    compared(history, "--to", "short", "--detailed-exitcode", code=2)


def test_the_page_counts_and_lists_on_request(history: Estate) -> None:
    command = history.at(NOW).using(COLUMNS="80")
    text = command.run("plan", "--from", "v1", "--to", "short").stdout
    assert "  - nightly, gold/land: 12 earlier (8 of them now)\n" in text
    assert "  - beta: backed up by nightly, then by no policy\n" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "copy 1 on pool" not in text
    assert command.run("plan", "--from", "v1", "--to", "short", "-v").stdout.count("copy 1 on pool of") == 12
    comment = command.run("plan", "--to", "short", "-o", "markdown", "--max-bytes", "2048").stdout
    assert comment.startswith("<!-- holdfast-plan -->\n") and len(comment.encode()) <= 2048
    assert "**2 configuration changes; 12 copies expire earlier (8 now);" in comment


def test_what_cannot_be_compared_says_why(history: Estate, tmp_path: Path) -> None:
    found = compared(history, "--from", "v1", "--to", "broken", code=4)
    assert {one["severity"] for one in found["problems"]} == {"Error"}
    assert {one["file"] for one in found["problems"]} == {"policy.yaml"}
    assert found["changes"] is True and found["copies"]["earlier"] == 0
    assert compared(history, "--from", "broken", code=4)["problems"]
    assert "no revision nowhere" in history.at(NOW).run("plan", "--to", "nowhere", code=64).stderr
    history.at(NOW).run("plan", "--to", "short", "--out", tmp_path / "p.json", code=64)
    assert not (tmp_path / "p.json").exists()
    plain = estate_samples.build(tmp_path / "plain", "alpha")
    assert "git repository" in plain.at(NOW).run("plan", "--to", "main", code=64).stderr


def test_before_anything_is_in_force_everything_is_new(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    (estate.folder / ".gitignore").write_text(".holdfast\nstorage\nmachines\n")
    git(estate.folder, "init", "-q")
    commit(estate.folder, "v1")
    found = compared(estate, "--to", "v1")
    assert found["inForce"] is None and {one["change"] for one in found["configuration"]} == {"Create"}
    assert [(one["client"], one["change"]) for one in found["protection"]] == [("alpha", "Gain")]
    assert found["problems"] == [] and found["copies"]["items"] == []
    assert not estate.state.exists()


APPROVAL = """
apiVersion: holdfast/v1alpha1
kind: Approval
metadata: {name: shorter}
spec: {destruction: "%(digest)s", copies: %(copies)s, by: anna@example.test, reason: two days are enough, until: "2026-03-20T00:00:00Z"}
"""


def test_what_it_says_would_be_freed_is_what_comes_back(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path, storage="pool", retention="{type: Fixed, period: 30d}")
    (tmp_path / ".gitignore").write_text(".holdfast\nstorage\nmachines\n")
    git(tmp_path, "init", "-q")
    same = os.urandom(2 * MIB)
    for day in range(2, 6):
        for name in ("alpha", "beta"):
            (estate.machine(name, disks=("other",)) / "same.img").write_bytes(same)
        estate.apply(clock=f"2026-03-0{day}T12:00:00Z")
    commit(tmp_path, "v1")
    estate.write(storage="pool", retention="{type: Fixed, period: 1d}")
    commit(tmp_path, "short")
    now = "2026-03-05T13:00:00Z"
    (said,) = estate.at(now).json("plan", "--from", "v1", "--to", "short")["units"]
    plan = estate.at(now).json("plan")["destruction"]
    assert (said["freedCopies"], said["freedBytes"], said["estimated"]) == (plan["copies"], plan["bytes"], False)
    before = estate.command.json("pool", "stats", "pool")
    (tmp_path / "approval.yaml").write_text(APPROVAL % plan)
    estate.apply(clock=now)
    after = estate.command.json("pool", "stats", "pool")
    assert after["images"] == before["images"] - plan["copies"]
    came_back = before["storedBytes"] - after["storedBytes"]
    # What a collection left in containers that are mostly alive is dead, and counted as such.
    assert came_back + after["deadBytes"] - before["deadBytes"] == said["freedBytes"]
    assert said["freedBytes"] >= 6 * MIB > came_back >= 4 * MIB
