"""Catalogs to test with: real SQLite files, copied from one that was migrated once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import catalog_samples as samples
import pytest

from reconciler.catalog import database


@pytest.fixture(scope="session")
def fresh_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty, migrated, closed catalog."""
    path = tmp_path_factory.mktemp("fresh") / "catalog.sqlite"
    database.open_writing(str(path)).close()
    return path


@pytest.fixture
def location(tmp_path: Path, fresh_catalog: Path) -> str:
    """The location of an empty catalog of the test's own."""
    state = tmp_path / "state"
    state.mkdir()
    shutil.copyfile(fresh_catalog, state / "catalog.sqlite")
    return str(state / "catalog.sqlite")


@pytest.fixture
def db(location: str) -> Iterator[database.Database]:
    """The same, open for writing."""
    opened = database.open_writing(location)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    """Kill what a failed test left running."""
    yield
    for process in tuple(samples.CHILDREN):
        samples.kill(process)
