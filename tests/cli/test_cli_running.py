"""``holdfast run``: it watches, it follows the clock, it stops in order, and there is one of it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import estate_samples
import pytest
from estate_samples import START, Estate

from reconciler.catalog import database, migrations


def finished(estate: Estate) -> int:
    if not (estate.state / "catalog.sqlite").exists():
        return 0
    return len([job for job in estate.get("jobs") if job["state"] == "Succeeded"])


def test_the_loop_follows_clock_manifests_and_requests(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    clock = tmp_path / "clock"
    value = estate_samples.set_clock(clock, START)
    log = tmp_path / "log"
    with estate_samples.running(estate.at(value), log, ".") as process:
        estate_samples.until(lambda: finished(estate) == 1, what="the first backup")

        # The clock: a day later the next slot is due at once.
        estate_samples.set_clock(clock, "2026-03-03T12:30:00Z")
        estate_samples.until(lambda: finished(estate) == 2, seconds=10, what="the second backup")

        # A good edit is picked up, here a new machine's policy limits; the revision is told.
        before = log.read_text().count("revision")
        estate.write(retention="{type: Fixed, period: 30d}")
        estate_samples.until(lambda: log.read_text().count("revision") > before, seconds=10, what="the edit")
        good = estate.command.json("status")["revision"]

        # A bad edit freezes the configuration; protection goes on from the last good one.
        (estate.folder / "bad.yaml").write_text("kind: Nonsense\n")
        estate_samples.until(lambda: "bad.yaml" in log.read_text(), seconds=10, what="the complaint")
        estate_samples.set_clock(clock, "2026-03-04T12:30:00Z")
        estate_samples.until(lambda: finished(estate) == 3, seconds=10, what="the backup under the last good revision")
        assert estate.command.json("status")["revision"] == good
        assert estate.get("images")[-1]["revision"] == good
        (estate.folder / "bad.yaml").unlink()

        # A request, through the living controller.
        done = estate.at(value).json("backup", "nightly", "alpha", "--wait")
        assert done["done"] is True
        assert finished(estate) == 4

        # Apply hands over and watches; another estate is none of this controller's business.
        passed = estate.at(value).run("apply", ".", "--yes", "-o", "json", code=0)
        assert f"pid {process.pid}" in passed.stderr
        other = estate_samples.build(tmp_path / "other", "alpha")
        said = other.at(value).run("apply", ".", "--yes", "--state", estate.state, code=6).stderr
        assert str(estate.folder) in said
        started = time.monotonic()
        said = estate.at(value).run("run", ".", code=6).stderr
        assert f"pid {process.pid} " in said
        assert time.monotonic() - started < 8

        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert {job["state"] for job in estate.get("jobs")} == {"Succeeded"}


def test_one_that_was_succeeded_ends_and_does_not_sit_there(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    command = estate.at(estate_samples.set_clock(tmp_path / "clock", START))
    with estate_samples.running(command, tmp_path / "first", ".") as first:
        estate_samples.until(lambda: finished(estate) == 1, what="the first backup")
        (estate.state / "controller.lock").unlink()  # as on another host, after 15 s of silence
        with estate_samples.running(command, tmp_path / "second", ".") as second:
            (estate.folder / "more.yaml").write_text("# holdfast: ignore\n")
            assert first.wait(30) == 1 and second.poll() is None
    assert "another controller took over" in (tmp_path / "first").read_text()


def test_sigterm_in_the_middle_of_a_backup_ends_it_in_order(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate")
    estate_samples.slow(estate, "alpha")
    with estate_samples.running(estate.command, tmp_path / "log", ".") as process:
        estate_samples.until(lambda: estate_samples.scanned(estate), what="the backup at work")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert [job["state"] for job in estate.get("jobs")] == ["Lost"]
    assert estate.get("images") == []
    estate.machine("alpha")
    assert estate.apply()["succeeded"] == 1


def test_a_failing_backup_is_told_to_who_waits(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha", every="5y", retention="{type: Forever}")
    estate.apply()
    estate.write(hooks=estate_samples.hook("exit 7"), every="5y", retention="{type: Forever}")
    estate.apply()
    with estate_samples.running(estate.command, tmp_path / "log", "."):
        done = estate.command.run("backup", "nightly", "--wait", code=3)
    assert "ended with 7" in done.stdout + done.stderr


def test_backup_without_a_controller(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha", "beta", every="5y", retention="{type: Forever}")
    estate.apply()
    assert estate.command.json("backup", "nightly", "beta", "--wait")["succeeded"] == 1
    assert [image["client"] for image in estate.get("images")] == ["alpha", "beta", "beta"]
    asked = estate.command.json("backup", "nightly")
    assert "holdfast run" in asked["message"]
    assert len(estate.get("images")) == 3
    assert estate.apply()["succeeded"] == 2
    said = estate.command.run("backup", "nightli", code=1).stderr
    assert "did you mean nightly?" in said
    assert "gamma" in estate.command.run("backup", "nightly", "gamma", code=1).stderr
    estate.write(hooks=estate_samples.hook("exit 7"), every="5y", retention="{type: Forever}")
    estate.command.run("apply", ".", "--yes")
    assert estate.command.json("backup", "nightly", "alpha", "--wait", code=3)["failed"] == 1


@pytest.mark.parametrize("pass_of_its_own", [True, False], ids=["apply", "run"])
def test_cancel_returns_when_nothing_moves_any_more(tmp_path: Path, pass_of_its_own: bool) -> None:
    estate = estate_samples.build(tmp_path / "estate")
    estate_samples.slow(estate, "alpha")
    with estate.command.start(*(["apply", ".", "--yes"] if pass_of_its_own else ["run", "."])) as process:
        try:
            first = estate_samples.until(lambda: estate_samples.scanned(estate), what="the backup at work")
            assert estate_samples.until(lambda: estate_samples.scanned(estate) > first, what="progress")
            (job,) = estate.get("jobs", "--job-state", "Running")
            estate.command.run("cancel", job["id"])
            after = estate_samples.tree(estate.folder / "storage", times=False)
            opened = [str(link.resolve()) for link in Path(f"/proc/{process.pid}/fd").glob("*")]
            assert estate.get("jobs")[0]["state"] == "Cancelled"
            assert not [name for name in opened if "machines" in name]
            time.sleep(2)
            assert estate_samples.tree(estate.folder / "storage", times=False) == after
            if pass_of_its_own:
                assert process.wait(20) == 3
        finally:
            process.terminate()
            process.communicate(timeout=40)
    assert estate.get("images") == []
    assert "cancelled" in estate.command.run("cancel", job["id"]).stdout


def test_the_catalog_of_an_older_version_is_migrated_by_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    with monkeypatch.context() as older:
        older.setattr(migrations, "REVISIONS", migrations.REVISIONS[:1])
        older.setattr(migrations, "HEAD", migrations.REVISIONS[-1])
        database.open_writing(str(estate.state / "catalog.sqlite")).close()
    command = estate.at(START)
    assert "holdfast apply migrates it" in command.run("plan", ".", code=1).stderr
    assert "it was migrated" in command.run("apply", ".", "--yes", code=0).stderr
    assert finished(estate) == 1
    assert "migrated" not in command.run("apply", ".", "--yes", code=0).stderr
