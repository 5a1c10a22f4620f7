"""What every test shares: Hypothesis profiles, skips that count as failures under CI, and the ``holdfast`` command."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import postgres_server
import pytest
from holdfast_command import Command

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

_SLOW = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None, suppress_health_check=_SLOW)
hypothesis.settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW)
hypothesis.settings.load_profile("ci" if CI else "dev")


#: Files with tests of half a minute and more: they begin first, so that no core is left waiting for the last of them.
LONGEST = (
    "test_bench_slice.py", "test_cli_year.py", "test_vsphere_faults.py", "test_crowds.py", "test_random_kills.py",
    "test_state_machine.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See ``LONGEST``."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def _refuse_skip(report: pytest.CollectReport | pytest.TestReport, name: str) -> None:
    """Under CI a skip is a failure: what cannot run there was never tested."""
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{name}: CI skips nothing, and this was to be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See ``_refuse_skip``."""
    report = yield
    _refuse_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """See ``_refuse_skip``."""
    report = yield
    _refuse_skip(report, collector.nodeid)
    return report


@pytest.fixture
def holdfast(tmp_path: Path) -> Command:
    """The ``holdfast`` command, standing in an empty folder."""
    return Command(folder=tmp_path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL server of this run's own."""
    if postgres_server.programs() is None:
        pytest.skip("needs PostgreSQL's server programs: the package postgresql")
    pytest.importorskip("pg8000", reason="needs the Python package pg8000")
    server = postgres_server.Server.temporary(**postgres_server.HASTY)
    yield server
    server.stop()
