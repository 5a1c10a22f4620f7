"""Estates that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import estate_samples
import pytest


@pytest.fixture(scope="session")
def converged(tmp_path_factory: pytest.TempPathFactory) -> estate_samples.Estate:
    """An estate whose three machines are backed up and duplicated. Shared: tests only read it."""
    estate = estate_samples.build(tmp_path_factory.mktemp("converged"), "alpha", "beta", duplicate="yes")
    estate.machine("gamma", disks=("system", "data"))
    estate.apply()
    return estate


@pytest.fixture
def empty(tmp_path: Path) -> estate_samples.Estate:
    """A good estate of one machine in which nothing was ever applied."""
    return estate_samples.build(tmp_path / "estate", "alpha")
