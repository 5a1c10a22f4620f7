"""Under CI a skip is a failure; on a developer's machine it is a skip with its reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_trees import ROOT

_TESTS = """
import pytest

@pytest.mark.skip(reason="needs the Debian package tapeworm")
def test_marked(): ...

def test_halfway():
    pytest.skip("needs two tape drives")

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise AssertionError

def test_sound(): ...
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A small suite under this suite's own ``conftest``."""
    for name in ("conftest.py", "holdfast_command.py", "holdfast_forks.py", "postgres_server.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_some.py").write_text(_TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    return tmp_path


def run(suite: Path, ci: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."]
    environment = {**os.environ, "CI": ci}
    return subprocess.run(command, cwd=suite, env=environment, text=True, capture_output=True, timeout=60, check=False)


def test_ci_turns_every_skip_into_a_failure(suite: Path) -> None:
    found = run(suite, "true")
    assert found.returncode == 1, found.stdout
    assert "1 failed, 1 passed, 1 xfailed, 2 errors" in found.stdout
    for reason in ("tapeworm", "two tape drives", "no_such_module"):
        assert reason in found.stdout


def test_elsewhere_a_skip_stays_a_skip(suite: Path) -> None:
    found = run(suite, "")
    assert found.returncode == 0, found.stdout
    assert "1 passed, 3 skipped, 1 xfailed" in found.stdout
