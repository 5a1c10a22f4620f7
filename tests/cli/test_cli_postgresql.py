"""A whole estate with its catalog on a PostgreSQL server, as a user keeps it: settings in ``holdfast.toml``, kills, two hosts."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import estate_samples as samples
import postgres_server
import pytest

_NUMBERS = itertools.count(1)
CLOCK = "2026-03-02T12:00:00Z"


@pytest.fixture
def catalog(postgres: postgres_server.Server) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"estate{next(_NUMBERS)}"
    yield postgres.create(name)
    postgres.drop(name)


@pytest.fixture
def estate(tmp_path: Path, catalog: str) -> samples.Estate:
    """Two machines, copies on a folder and in a pool, and the catalog's URL in the settings."""
    (tmp_path / "root").mkdir()
    made = samples.build(tmp_path / "root", "alpha", "beta", duplicate="yes")
    (made.folder / "holdfast.toml").write_text(f'catalog = "{catalog}"\n')
    return made


def test_a_whole_estate_lives_on_a_server(estate: samples.Estate, tmp_path: Path) -> None:
    planned = estate.at(CLOCK).json("plan", ".")
    assert planned["summary"]["due"] == 2
    assert not estate.state.exists()
    done = estate.apply(clock=CLOCK)
    assert (done["converged"], len(estate.get("images")), len(estate.get("copies"))) == (True, 2, 4)
    assert not (estate.state / "catalog.sqlite").exists()
    assert (estate.state / "controller.lock").exists()
    assert estate.at(CLOCK).run("plan", ".", "--detailed-exitcode").returncode == 0
    estate.at("2026-03-02T13:00:00Z").run("backup", "nightly", "alpha", "--wait")
    assert len(estate.get("images")) == 3
    kept = (estate.folder / "machines" / "beta" / "system.img").read_bytes()
    result = estate.command.json("restore", "beta", "--to", tmp_path / "restored")
    assert result["state"] == "Verified"
    assert Path(result["disks"][0]["path"]).read_bytes() == kept
    assert {job["state"] for job in estate.get("jobs")} == {"Succeeded"}
    assert estate.get("audit")


@pytest.mark.parametrize(
    "point",
    ["catalog.migrated", "configuration.recorded", "backup.after-commit", "duplicate.before-commit", "dump.written"],
)
def test_an_estate_killed_half_way_converges(estate: samples.Estate, point: str) -> None:
    killed = estate.at(CLOCK).crashing(point).run("apply", ".", "--yes", code=None)
    assert killed.returncode == -signal.SIGKILL
    done = estate.apply(clock="2026-03-02T12:30:00Z")
    assert done["converged"], done
    assert estate.at("2026-03-02T12:31:00Z").run("plan", ".", "--detailed-exitcode").returncode == 0
    assert sorted(image["client"] for image in estate.get("images")) == ["alpha", "beta"]
    assert {copy["state"] for copy in estate.get("copies")} == {"Complete"}


def test_a_controller_on_another_host_is_named_and_waited_for(estate: samples.Estate, tmp_path: Path) -> None:
    estate.apply(clock=CLOCK)
    with samples.running(estate.at(CLOCK), tmp_path / "log", ".") as process:
        elsewhere = tmp_path / "elsewhere"
        refused = estate.at(CLOCK).run("run", ".", "--state", elsewhere, code=6)
        assert f"pid {process.pid}" in refused.stderr
        handed = estate.at(CLOCK).run("apply", ".", "--yes", "--state", elsewhere)
        assert "handed over" in handed.stderr
        process.kill()
        process.wait()
        # Its process is seen to be dead on this host; from another one it would be succeeded after 15 s.
        assert estate.at(CLOCK).json("apply", ".", "--yes", "--state", elsewhere)["converged"]


def test_what_cannot_be_had_is_said_without_the_password(estate: samples.Estate) -> None:
    down = estate.command.using(HOLDFAST_CATALOG="postgresql://me:s3cret@127.0.0.1:1/catalog")
    for words in (("plan", "."), ("apply", ".", "--yes"), ("get", "images")):
        said = down.run(*words, code=1)
        assert "127.0.0.1:1 does not answer" in said.stderr
        assert "start PostgreSQL there, or correct --catalog" in said.stderr
        assert "s3cret" not in said.stdout + said.stderr
    empty = estate.command.run("get", "images", code=1)
    assert "there is no catalog at postgresql://holdfast@/" in empty.stderr
    saved = estate.folder / "saved.json"
    secret = estate.command.using(PGPASSWORD="s3cret").at(CLOCK)
    secret.run("plan", ".", "--out", saved)
    assert "s3cret" not in saved.read_text()
    secret.run("apply", saved)


def test_a_lost_server_is_made_again_on_another_one(
    estate: samples.Estate, catalog: str, postgres: postgres_server.Server
) -> None:
    estate.apply(clock=CLOCK)
    known = [(one["id"], one["sequence"]) for one in estate.get("images")]
    jobs, trail = len(estate.get("jobs")), len(estate.get("audit"))
    words = ("catalog", "rebuild", "--from", "fast", "pool")
    later = estate.at("2026-03-03T12:00:00Z")
    assert "there is a catalog here" in later.run(*words, code=4).stderr
    url = postgres.create(f"again{next(_NUMBERS)}")
    (estate.folder / "holdfast.toml").write_text(f'catalog = "{url}"\n')
    killed = later.crashing("rebuild.compared").run(*words, code=None)
    assert killed.returncode == -signal.SIGKILL
    done = later.json(*words)
    assert (done["source"]["kind"], done["images"], done["copies"]) == ("Dump", 2, 4)
    assert [(one["id"], one["sequence"]) for one in estate.get("images")] == known
    assert (len(estate.get("jobs")), len(estate.get("audit"))) == (jobs, trail + 1)
    # Numbers that the server counts up go on.
    assert estate.apply(clock="2026-03-03T12:10:00Z")["succeeded"] == 4
    assert len({one["id"] for one in estate.get("jobs")}) == jobs + 4
