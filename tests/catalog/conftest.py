"""Catalogs to test with, on SQLite and on PostgreSQL: copies of one that was migrated once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import catalog_samples as samples
import postgres_server
import pytest

from reconciler.catalog import database

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def fresh_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty, migrated, closed catalog."""
    path = tmp_path_factory.mktemp("fresh") / "catalog.sqlite"
    database.open_writing(str(path)).close()
    return path


@pytest.fixture(scope="session")
def fresh_database(postgres: postgres_server.Server) -> str:
    """The name of an empty, migrated database that nobody is connected to."""
    database.open_writing(postgres.create("fresh")).close()
    return "fresh"


@pytest.fixture
def state_folder(tmp_path: Path) -> Path:
    """The state folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, state_folder: Path) -> Iterator[str]:
    """The location of an empty catalog of the test's own."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("fresh_catalog"), state_folder / "catalog.sqlite")
        yield str(state_folder / "catalog.sqlite")
        return
    server: postgres_server.Server = request.getfixturevalue("postgres")
    name = f"test{next(_NUMBERS)}"
    yield server.create(name, template=request.getfixturevalue("fresh_database"))
    server.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Names a place where no catalog is yet, another one at each call."""
    if request.param == "sqlite":
        yield lambda: str(tmp_path / f"new{next(_NUMBERS)}" / "catalog.sqlite")
        return
    server: postgres_server.Server = request.getfixturevalue("postgres")
    names = []

    def place() -> str:
        names.append(f"new{next(_NUMBERS)}")
        return server.create(names[-1])

    yield place
    for name in names:
        server.drop(name)


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
