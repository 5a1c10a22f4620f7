"""One test for each exit code, and: with ``-o json`` stdout is one document, or empty where nothing can be told."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import estate_samples
import pytest
from estate_samples import Estate


def silent(estate: Estate, *arguments: str | Path, code: int) -> str:
    """Runs with ``-o json``; checks that stdout stays empty and stderr explains. What stderr says."""
    done = estate.command.run(*arguments, "-o", "json", code=code)
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    return done.stderr


def test_0_done_although_there_are_warnings(converged: Estate) -> None:
    done = converged.command.run("validate", code=0)
    assert done.stdout.startswith("valid: 4 objects")


def test_1_for_what_could_not_be_done(converged: Estate) -> None:
    assert "nobody" in silent(converged, "restore", "nobody", "--to", "out", code=1)
    silent(converged, "describe", "image", "nothing", code=1)
    silent(converged, "logs", "j-999999", code=1)
    silent(converged, "cancel", "nonsense", code=1)


def test_1_where_there_is_no_catalog_yet(empty: Estate) -> None:
    (empty.state).mkdir()
    assert "no catalog" in silent(empty, "get", "images", code=1)


def test_2_changes_present_with_the_plan_printed(empty: Estate) -> None:
    plan = empty.command.json("plan", "--detailed-exitcode", code=2)
    assert plan["kind"] == "Plan"
    assert plan["summary"]["changes"] is True
    assert empty.command.json("plan", code=0)["summary"]["changes"] is True


def test_3_an_action_failed_and_the_rest_was_done(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha", "beta")
    estate.write(hooks=estate_samples.hook("test $HOLDFAST_MACHINE != beta"))
    result = estate.apply(code=3)
    states = {one["address"].split("/")[2].split("@")[0]: one["state"] for one in result["actions"]}
    assert states == {"alpha": "Succeeded", "beta": "Failed"}
    assert (result["succeeded"], result["failed"], result["converged"]) == (1, 1, True)
    failed = next(one for one in result["actions"] if one["state"] == "Failed")
    assert failed["error"]["code"] == "HookFailed"


def test_4_nothing_done_because_the_manifests_have_errors(empty: Estate) -> None:
    (empty.folder / "bad.yaml").write_text("apiVersion: holdfast/v1alpha1\nkind: BackupPolici\n")
    for command in (["validate"], ["plan"], ["apply", "--yes"]):
        done = empty.command.run(*command, code=4)
        assert "bad.yaml:2:" in done.stderr + done.stdout
        assert "BackupPolicy" in done.stderr + done.stdout
    assert empty.command.json("validate", code=4)["valid"] is False
    plan = empty.command.json("plan", code=4)
    assert [(one["file"], one["line"]) for one in plan["problems"]] == [("bad.yaml", 2)]
    assert not (empty.state / "catalog.sqlite").exists()


def test_4_a_restore_target_exists(converged: Estate, tmp_path: Path) -> None:
    (tmp_path / "system.img").write_text("mine")
    done = converged.command.run("restore", "alpha", "--to", tmp_path, "-o", "json", code=4)
    assert "--force" in done.stderr
    assert (tmp_path / "system.img").read_text() == "mine"


def test_words_in_another_encoding_are_written_down_and_paths_refused(converged: Estate, tmp_path: Path) -> None:
    restore = ("restore", "alpha", "--reason", "f\udcfcr den Test", "--to")
    refused = converged.command.run(*restore, tmp_path / "\udcff", code=64)
    assert "\\xff is not UTF-8" in refused.stderr
    converged.command.run(*restore, tmp_path / "to")
    assert "f\\xfcr den Test" in converged.command.run("get", "restores", "-o", "json").stdout.replace("\\\\", "\\")


def test_5_a_stale_plan_says_what_moved(empty: Estate, tmp_path: Path) -> None:
    empty.command.run("plan", "--out", tmp_path / "plan.json")
    empty.write(retention="{type: Fixed, period: 9d}")
    assert "StorageLifecyclePolicy/gold" in silent(empty, "apply", tmp_path / "plan.json", code=5)
    assert not empty.state.exists()


def test_6_another_controller_lives(empty: Estate, tmp_path: Path) -> None:
    with estate_samples.running(empty.command, tmp_path / "log", ".") as process:
        assert f"pid {process.pid} " in silent(empty, "run", ".", code=6)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["plan", "--nonsense"],
        ["get", "nonsense"],
        ["get"],
        ["plan", "--horizon", "soon"],
        ["validate", "missing"],
        ["plan", "missing"],
        ["run", "missing"],
        ["apply", "missing"],
        ["restore", "alpha", "--to", "out", "--format", "tar"],
        ["restore", "alpha", "--to", "out", "--as-of", "yesterday"],
        ["restore", "alpha", "--to", ""],
        ["restore", "alpha", "--to", "/dev/no-such-disk"],
        ["files", "get", "alpha", "/", "--to", ""],
        ["files", "get", "alpha", "/", "--to", "/dev/no-such-disk"],
        ["apply", "storage.yaml"],
        ["pool", "stats", "fast"],
        ["restore", "alpha", "--vcenter", "one", "--name", "", "--replace"],
    ],
)
def test_64_wrong_words(converged: Estate, arguments: list[str]) -> None:
    silent(converged, *arguments, code=64)


def test_64_a_group_alone_prints_its_help(converged: Estate) -> None:
    said = converged.command.run("files", code=64).stderr
    assert said.startswith("Usage: holdfast files") and said.rstrip().endswith("130 interrupted.")


def test_64_changes_to_apply_and_nobody_to_ask(empty: Estate) -> None:
    assert "--yes" in silent(empty, "apply", code=64)
    assert not empty.state.exists()
    assert "--yes" in silent(empty, "init", "other", code=64)


def test_0_nothing_to_ask_when_nothing_changes(converged: Estate) -> None:
    assert converged.command.json("apply")["converged"] is True


def test_130_interrupted(empty: Estate) -> None:
    estate_samples.slow(empty, "alpha")
    process = empty.command.start("apply", ".", "--yes", "-o", "json")
    estate_samples.until(lambda: estate_samples.scanned(empty))
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=40)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in said
    assert [one["state"] for one in empty.get("jobs")] == ["Lost"]


def test_errors_name_the_next_step(converged: Estate) -> None:
    said = silent(converged, "get", "images", "--client", "alpa", code=1)
    assert "alpa" in said


def test_help_and_version_need_nothing(tmp_path: Path, converged: Estate) -> None:
    nowhere = converged.command.using(folder=tmp_path)
    listed = nowhere.run("--help").stdout
    assert "Exit codes" in listed and "..." not in listed.split("Commands:")[1]
    assert "scrub: read again" in nowhere.run("pool", "--help").stdout
    for command in ("plan", "restore", "get"):
        assert "--state" in nowhere.run(command, "--help").stdout
    document = json.loads(nowhere.run("version", "-o", "json").stdout)
    assert "backup.before-commit" in document["crashPoints"]
    assert list(tmp_path.iterdir()) == []
