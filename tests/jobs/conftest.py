"""A real catalog, and every engine that exists on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_samples import LONG

from reconciler.base import clocks
from reconciler.catalog import database
from reconciler.jobs import embedded, engines


@pytest.fixture
def db(tmp_path: Path) -> Iterator[database.Database]:
    """A fresh SQLite catalog."""
    opened = database.open_writing(str(tmp_path / "catalog.sqlite"))
    yield opened
    opened.close()


@pytest.fixture(params=["embedded"])
def engine(request: pytest.FixtureRequest, db: database.Database) -> Iterator[engines.Engine]:
    """Each implementation of the port, beating fast."""
    assert request.param == "embedded"
    made = embedded.Engine(db, clock=clocks.SystemClock(), interval=0.05)
    yield made
    assert made.stop(LONG) == ()
