"""Where the estate and the state are: options, then ``HOLDFAST_STATE``, then ``holdfast.toml``, then ``.holdfast``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import estate_samples
import pytest
from estate_samples import Estate


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    made = estate_samples.build(tmp_path_factory.mktemp("places"), "alpha")
    made.apply()
    return made


def clients(command: estate_samples.holdfast_command.Command, *arguments: str | Path) -> list[str]:
    return [one["slug"] for one in command.json("get", "clients", *arguments)["items"]]


def test_dot_holdfast_here_or_in_a_parent(estate: Estate) -> None:
    deep = estate.folder / "machines" / "alpha"
    assert clients(estate.command) == clients(estate.command.using(folder=deep)) == ["alpha"]


def test_64_where_there_is_none(estate: Estate, tmp_path: Path) -> None:
    done = estate.command.using(folder=tmp_path).run("get", "images", code=64)
    assert "--state" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_and_variables_name_it(estate: Estate, tmp_path: Path) -> None:
    away = estate.command.using(folder=tmp_path)
    assert clients(away, "--state", estate.state) == ["alpha"]
    assert clients(away, "--catalog", estate.state / "catalog.sqlite", "--state", tmp_path) == ["alpha"]
    assert clients(away.using(HOLDFAST_STATE=str(estate.state))) == ["alpha"]
    relative = os.path.relpath(estate.state, tmp_path)
    assert clients(away, "--state", relative) == ["alpha"]
    # The option comes before the variable, the variable before what lies here.
    wrong = away.using(HOLDFAST_STATE=str(tmp_path / "nothing"))
    assert clients(wrong, "--state", estate.state) == ["alpha"]
    estate.command.using(HOLDFAST_STATE=str(tmp_path / "nothing")).run("get", "clients", code=1)
    assert list(tmp_path.iterdir()) == []


def test_holdfast_toml_names_it_relative_to_itself(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha")
    (estate.folder / "holdfast.toml").write_text('state = "../elsewhere"\n')
    estate.apply()
    assert (tmp_path / "elsewhere" / "catalog.sqlite").is_file()
    assert not estate.state.exists()
    assert clients(estate.command.using(folder=estate.folder / "machines")) == ["alpha"]
    (estate.folder / "holdfast.toml").write_text("state = [\n")
    assert "holdfast.toml" in estate.command.run("plan", code=64).stderr


def test_estates_are_named_or_here(estate: Estate, tmp_path: Path) -> None:
    assert estate.command.json("plan", "--detailed-exitcode")["summary"]["changes"] is False
    named = estate.command.using(folder=tmp_path).json("plan", estate.folder, "--detailed-exitcode")
    assert named["summary"]["changes"] is False
    assert list(tmp_path.iterdir()) == []


def test_names_with_a_dot_are_no_part_of_the_estate(estate: Estate) -> None:
    before = estate.command.json("validate")["revision"]
    hidden = estate.folder / ".drafts"
    hidden.mkdir()
    (hidden / "bad.yaml").write_text("kind: Nonsense\n")
    (estate.folder / ".bad.yaml").write_text("[")
    try:
        assert estate.command.json("validate")["revision"] == before
    finally:
        shutil.rmtree(hidden)
        (estate.folder / ".bad.yaml").unlink()


def test_commands_that_only_look_write_nothing(estate: Estate, tmp_path: Path) -> None:
    before = estate_samples.tree(estate.folder)
    for arguments in (
        ["plan"], ["plan", "--detailed-exitcode", "-o", "json"], ["validate"], ["get", "images"], ["get", "copies"],
        ["get", "jobs"], ["get", "clients"], ["get", "units"], ["get", "policies"], ["get", "audit"], ["status"],
        ["describe", "client", "alpha"], ["describe", "unit", "pool"], ["logs", "j-000001"],
        ["restore", "alpha", "--to", "out", "--dry-run"],
    ):  # fmt: skip
        estate.command.run(*arguments)
        assert estate_samples.tree(estate.folder) == before, arguments


def test_plan_and_validate_of_a_new_estate_leave_no_trace(empty: Estate) -> None:
    before = estate_samples.tree(empty.folder)
    empty.command.run("plan", "--detailed-exitcode", code=2)
    empty.command.run("validate")
    assert estate_samples.tree(empty.folder) == before
