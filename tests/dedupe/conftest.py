"""An empty pool for every test, closed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pool_samples as samples
import pytest

from reconciler.storage.dedupe import pools


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of an empty pool."""
    path = tmp_path / "pool"
    samples.create(path)
    return path


@pytest.fixture
def opening(root: Path) -> Iterator[Callable[..., pools.DedupePool]]:
    """Opens the pool; takes what ``pool_samples.open_pool`` takes. All are closed at the end."""
    opened: list[pools.DedupePool] = []

    def again(**options: object) -> pools.DedupePool:
        opened.append(samples.open_pool(root, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield again
    for pool in opened:
        pool.close()


@pytest.fixture
def pool(opening: Callable[..., pools.DedupePool]) -> pools.DedupePool:
    """The empty pool, opened by its owner."""
    return opening()
