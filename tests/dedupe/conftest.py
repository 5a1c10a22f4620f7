"""An empty pool for every test, closed afterwards."""

from __future__ import annotations

import subprocess
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


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "holdfast-test", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
