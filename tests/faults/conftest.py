"""Estates for the fault tests: one folder per worker process, put back as it was before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fault_estates import Estate

from reconciler.storage.dedupe import stores


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    """An estate kept ``fresh`` (never applied), ``grown`` (three days old, the fourth has come) and ``done`` (the
    fourth day's pass went undisturbed)."""
    estate = Estate(tmp_path_factory.mktemp("faults") / "root")
    estate.root.mkdir()
    estate.build()
    estate.keep("fresh")
    estate.command.run("apply", "--yes", ".")
    for day in (1, 2):
        estate.pass_day(day)
        estate.command.run("apply", "--yes", ".")
    estate.pass_day(3)
    estate.keep("grown")
    estate.command.run("apply", "--yes", ".")
    estate.keep("done")
    return estate


@pytest.fixture
def fresh(templates: Estate) -> Estate:
    """An estate that was never applied."""
    return templates.put_back("fresh")


@pytest.fixture
def grown(templates: Estate) -> Estate:
    """An estate three days old, whose disks changed since and whose next pass backs up, duplicates and expires."""
    return templates.put_back("grown")


@pytest.fixture(autouse=True)
def every_pool_is_given_back() -> Iterator[None]:
    """A pool left open in this process would meet the next test's pool at the same path."""
    before = set(stores._shared)
    yield
    assert set(stores._shared) <= before, "a pool was left open"
