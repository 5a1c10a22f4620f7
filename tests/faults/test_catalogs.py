"""A catalog that is damaged, deleted or out of space: a clear word, nothing touched, and a way back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_estates import Estate


def _everything(estate: Estate) -> dict[str, tuple[int, int]]:
    """Size and mtime of every file on every unit."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for root in estate.paths.values()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_corrupt_catalog_is_named_and_nothing_is_touched(grown: Estate) -> None:
    catalog = grown.folder / ".holdfast" / "catalog.sqlite"
    with catalog.open("r+b") as file:
        file.write(os.urandom(4096))
    before = _everything(grown)
    for arguments in (("apply", "--yes", "."), ("plan", ".")):
        found = grown.command.run(*arguments, code=1)
        assert str(catalog) in found.stderr
        assert "Traceback" not in found.stderr
    assert _everything(grown) == before


def test_a_deleted_state_folder_is_healed_by_adopting_the_units(grown: Estate) -> None:
    held = grown.held()
    shutil.rmtree(grown.folder / ".holdfast")
    grown.command.run("apply", "--yes", ".", code=3)
    assert set(grown.unit_states().values()) == {"ReadOnly"}
    assert "unit adopt" in str(grown.ask("plan", ".")["drift"])
    assert grown.held() == held, "a unit of another catalog was written to"
    for unit in grown.paths:
        grown.command.run("unit", "adopt", unit, "--yes")
    grown.command.run("apply", "--yes", ".", code=None)
    assert all(set(grown.held()[unit]) >= set(labels) for unit, labels in held.items())
    assert not grown.ask("plan", "--detailed-exitcode", ".")["summary"]["changes"]
    grown.require_agreement()
    grown.require_bytes()


@pytest.fixture
def small_state(grown: Estate) -> Iterator[Path]:
    """The estate's state on a file system of its own, with hardly any space left."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    state = grown.root / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(state)], check=True)
    shutil.copytree(grown.folder / ".holdfast", state, dirs_exist_ok=True)
    yield state
    subprocess.run(["umount", "-l", str(state)], check=True)


def test_a_full_state_folder_is_a_clear_error_without_damage(grown: Estate, small_state: Path) -> None:
    space = os.statvfs(small_state)
    ballast = small_state / "ballast"
    ballast.write_bytes(bytes(space.f_bavail * space.f_frsize - 8192))
    held = grown.held()
    found = grown.command.run("apply", "--yes", ".", "--state", small_state, code=None)
    assert found.returncode in (1, 3), found.stderr
    assert "Traceback" not in found.stderr
    assert "space" in found.stderr or "full" in found.stderr, found.stderr
    assert all(set(grown.held()[unit]) >= set(labels) for unit, labels in held.items())
    ballast.unlink()
    shutil.rmtree(grown.folder / ".holdfast")
    grown.command.run("apply", "--yes", ".", "--state", small_state)
    grown.require_bytes()
