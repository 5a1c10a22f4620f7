"""An empty unit of each type for every test of the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import unit_samples as samples
from unit_factories import FACTORIES

from reconciler.storage import identities, units


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> samples.Factory:
    """Each unit type in turn."""
    found: samples.Factory = request.param
    return found


@pytest.fixture
def root(tmp_path: Path, factory: samples.Factory) -> Path:
    """The root of an empty unit."""
    path = tmp_path / "unit"
    path.mkdir()
    factory.create(path)
    return path


@pytest.fixture
def reopen(root: Path, factory: samples.Factory) -> Iterator[Callable[..., units.StorageUnit]]:
    """Opens the unit afresh, as the owner or as somebody else; what was opened before is closed first."""
    opened: list[units.StorageUnit] = []

    def again(owner: str | None = samples.OWNER) -> units.StorageUnit:
        for unit in opened:
            unit.close()
        opened.append(factory.open(root, identities.read(root, "unit"), owner))
        return opened[-1]

    yield again
    for unit in opened:
        unit.close()


@pytest.fixture
def unit(reopen: Callable[..., units.StorageUnit]) -> units.StorageUnit:
    """An empty unit, opened by its owner."""
    return reopen()
