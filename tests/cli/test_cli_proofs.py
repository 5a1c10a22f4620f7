"""Verification as desired state, by the installed command: digests, files and a real machine that starts or does not."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import estate_samples
import pytest
from estate_samples import START, Estate

HACK = Path(__file__).parents[2] / "hack"
LATER = "2026-03-04T13:00:00Z"


def asks(estate: Estate, verify: str, **words: str) -> None:
    """Let the first operation ask for proofs."""
    estate.write(**words)
    path = estate.folder / "lifecycle.yaml"
    path.write_text(path.read_text().replace("storage: fast,", f"storage: fast, verify: {verify},", 1))


def found(estate: Estate, clock: str = START) -> dict[tuple[str, str], str]:
    """The last results: (image's machine, proof) -> state."""
    items = estate.at(clock).json("get", "verifications")["items"]
    return {(one["image"].partition("-")[0], one["proof"]): one["state"] for one in items}


def recoverable(estate: Estate, clock: str = START) -> dict[str, tuple[str, str]]:
    items = estate.at(clock).json("get", "clients")["items"]
    return {
        one["slug"]: next((c["status"], c["reason"]) for c in one["conditions"] if c["type"] == "Recoverable")
        for one in items
    }


def formatted(path: Path, files: dict[str, bytes]) -> None:
    """A disk that is one ext4 file system with these files."""
    tree = path.with_suffix(".tree")
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    path.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, path, "16M"], check=True)
    shutil.rmtree(tree)


def damage(estate: Estate, marker: bytes) -> None:
    """Turn bytes of a file inside a stored disk of the unit ``fast``."""
    for path in (estate.folder / "storage" / "fast").rglob("*.raw"):
        data = path.read_bytes()
        place = data.find(marker)
        if place >= 0:
            with path.open("r+b") as file:
                file.seek(place)
                file.write(b"\xff" * 16)
            return
    raise AssertionError("no stored disk holds the marker")


@pytest.fixture(scope="module")
def tiny() -> Any:
    sys.path.insert(0, str(HACK))
    import tiny_guests

    return tiny_guests


def test_a_real_machine_boots_from_its_backup_and_one_that_cannot_fails(tmp_path: Path, tiny: Any) -> None:
    estate = estate_samples.build(tmp_path / "estate")
    nonce = secrets.token_hex(8)
    for name in ("alive", "broken"):
        estate.machine(name, content=b"x")
        disk = estate.folder / "machines" / name / "system.img"
        disk.unlink()
        tiny.build(disk, nonce, **({} if name == "alive" else {"init": None}))
    drills = f'  drills: {{boot: {{within: 90s, judge: Serial, pattern: "{tiny.READY} {nonce}"}}}}'
    asks(estate, "{boot: 30d, files: 14d}", hooks=drills)
    estate.apply(clock=START, code=3)
    assert found(estate) == {
        ("alive", "Boot"): "Passed", ("alive", "Files"): "Passed",
        ("broken", "Boot"): "Failed", ("broken", "Files"): "Passed",
    }  # fmt: skip
    lines = estate.at(START).run("get", "clients").stdout.splitlines()
    assert {line.split()[0]: line.split("  ")[-1].strip() for line in lines[1:]} == {
        "alive": "ok", "broken": "Protected: VerificationFailed",
    }  # fmt: skip
    assert recoverable(estate) == {"alive": ("True", "Verified"), "broken": ("False", "VerificationFailed")}
    results = {one["image"].partition("-")[0]: one for one in estate.get("verifications") if one["proof"] == "Boot"}
    assert nonce in results["alive"]["details"]["console"]
    screen = Path(results["alive"]["details"]["screenshot"])
    assert screen.read_bytes().startswith(b"\x89PNG") and nonce in screen.with_suffix(".txt").read_text()
    plan = estate.at(START).json("plan", ".", "--detailed-exitcode", code=0)
    assert "VerificationFailed" in {one["code"] for one in plan["drift"]}
    # What the machine wrote is gone: the copies are what they were.
    for image in estate.get("images"):
        out = tmp_path / image["id"]
        assert (
            estate.command.json("restore", image["client"], "--image", image["id"], "--to", out)["state"] == "Verified"
        )
    assert not subprocess.run(["pgrep", "-f", f"qemu.*{estate.folder}"], check=False, capture_output=True).stdout


def test_files_are_read_and_held_against_the_index(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    disk = estate.folder / "machines" / "alpha" / "system.img"
    marker = secrets.token_bytes(32)
    formatted(disk, {f"folder/{n}.bin": marker * 2000 for n in range(30)})
    asks(estate, "{files: 14d}")
    estate.apply(clock=START)
    (result,) = estate.get("verifications")
    assert (result["state"], result["details"]["volumes"], result["details"]["indexed"]) == ("Passed", 1, True)
    assert result["details"]["files"] == 30 and result["details"]["bytes"] == 30 * 64_000
    assert not [one for one in estate.at(START).json("plan", ".")["actions"] if one["type"] == "Verify"]
    damage(estate, marker)
    later = "2026-03-16T13:00:00Z"
    asks(estate, "{files: 14d}", every="300d", retention="{type: Forever}")
    estate.apply(clock=later, code=3)
    assert found(estate) == {("alpha", "Files"): "Passed", ("alpha", "Content"): "Failed"}
    assert {one["state"] for one in estate.get("copies")} >= {"Damaged"}


def test_a_disk_without_a_file_system_fails_its_files(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    asks(estate, "{files: 14d}")
    estate.apply(clock=START, code=3)
    (result,) = estate.get("verifications")
    assert result["state"] == "Failed" and "no file system" in result["message"]
    # There is nothing better, which is said before and after.
    done = estate.command.run("restore", "alpha", "--to", tmp_path / "out")
    for said in (done.stdout, done.stderr):
        assert f"every image that can be restored is damaged or failed a drill; this one is {result['image']}" in said


def test_a_restore_takes_the_newest_image_that_failed_no_drill_and_names_the_newer_one(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    disk = estate.folder / "machines" / "alpha" / "system.img"
    formatted(disk, {"a": b"a" * 5000})
    good = disk.read_bytes()
    asks(estate, "{files: 12h}", retention="{type: Forever}")
    estate.apply(clock=START)
    estate.machine("alpha")
    estate.apply(clock="2026-03-03T12:05:00Z", code=3)
    older, newer = (one["id"] for one in sorted(estate.get("images"), key=lambda one: str(one["time"])))
    for options in (("--dry-run",), ()):
        done = estate.command.run("restore", "alpha", "--to", tmp_path / "out", *options, "-o", "json")
        result = json.loads(done.stdout)
        (note,) = result["notes"]
        assert result["image"] == older and note in done.stderr
        assert newer in note and "Files failed 2026-03-03T12:05" in note and f"--image {newer} takes it" in note
    assert (tmp_path / "out" / "system.img").read_bytes() == good
    (record,) = estate.get("restores")
    assert record["image"] == older
    taken = estate.command.json("restore", "alpha", "--image", newer, "--to", tmp_path / "newer")
    assert taken["image"] == newer and f"image {newer} was asked for: its Files failed" in taken["notes"][0]
    # What the manifests ask for goes by the same rule.
    text = "{apiVersion: holdfast/v1alpha1, kind: Restore, metadata: {name: drill}, spec: {client: alpha, target: {folder: tree}}}"
    (estate.folder / "restore.yaml").write_text(text)
    (action,) = [one for one in estate.at(LATER).json("plan", ".")["actions"] if one["type"] == "Restore"]
    assert action["image"] == older and f"image: {newer} takes it all the same" in action["reason"]["message"]
    estate.apply(clock="2026-03-03T12:10:00Z")
    assert (estate.folder / "tree" / "system.img").read_bytes() == good
    restored = [one for one in estate.get("audit") if one["event"] == "Restored"]
    assert f"; image: {newer} takes it all the same" in restored[-1]["details"]["notes"][0]


def test_content_that_proves_false_is_damaged_and_made_anew(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha", duplicate="yes")
    marker = secrets.token_bytes(32)
    (estate.folder / "machines" / "alpha" / "system.img").write_bytes(marker * 32768)
    asks(estate, "{content: 2d}", duplicate="yes", every="300d", retention="{type: Forever}")
    estate.apply(clock=START)
    assert not estate.get("verifications")
    damage(estate, marker)
    estate.apply(clock=LATER, code=3)
    (result,) = estate.get("verifications")
    assert (result["proof"], result["state"], result["copy"]) == ("Content", "Failed", 1)
    assert {one["state"] for one in estate.get("copies")} == {"Complete"}
    assert recoverable(estate, LATER)["alpha"] == ("True", "Verified")
    estate.at(LATER).run("plan", ".", "--detailed-exitcode", code=0)
    # Nobody proves them again: what a ServiceLevel promised is missed until somebody does.
    level = "{apiVersion: holdfast/v1alpha1, kind: ServiceLevel, metadata: {name: erp}, spec: {selector: {matchLabels: {a: b}}, verified: {content: 2d}}}"
    (estate.folder / "level.yaml").write_text(level)
    policy = estate.folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("{name: nightly}", "{name: nightly, labels: {a: b}}"))
    late = estate.at("2026-03-08T13:00:00Z")

    def missed() -> list[str]:
        return [one["object"] for one in late.json("plan", ".")["drift"] if one["code"] == "ServiceLevelMissed"]

    assert missed() == ["ServiceLevel/erp"]
    estate.apply(clock="2026-03-08T13:00:00Z")
    assert not missed()


def test_a_kill_before_the_result_is_kept_proves_it_again(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    formatted(estate.folder / "machines" / "alpha" / "system.img", {"a": b"a" * 5000})
    asks(estate, "{files: 14d}")
    estate.at(START).crashing("verify.found").run("apply", ".", "--yes", code=None)
    assert not estate.get("verifications")
    estate.apply(clock="2026-03-02T12:05:00Z")
    assert found(estate) == {("alpha", "Files"): "Passed"}


def test_a_drill_keeps_its_period_where_images_are_kept_for_less(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    formatted(estate.folder / "machines" / "alpha" / "system.img", {"a": b"a" * 5000})
    asks(estate, "{files: 14d}", retention="{type: Fixed, period: 36h}")
    tried = []
    for clock in (START, "2026-03-03T12:05:00Z", "2026-03-05T12:10:00Z", "2026-03-16T13:00:00Z"):
        estate.apply(clock=clock)
        (result,) = estate.get("verifications")
        tried.append((result["time"][8:10], result["state"], result["expired"]))
        assert recoverable(estate, clock)["alpha"] == ("True", "Verified")
    assert tried == [("02", "Passed", False), ("02", "Passed", False), ("02", "Passed", True), ("16", "Passed", False)]
