"""Every test of a source leaves no server behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import disk_samples as samples
import pytest


@pytest.fixture(autouse=True)
def no_servers_left() -> Iterator[None]:
    """No qemu-nbd outlives the test that started it."""
    before = samples.children()
    yield
    assert samples.children() == before


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The empty folder of one machine, below a root with nothing else."""
    folder = tmp_path / "guests" / "oblVM1"
    folder.mkdir(parents=True)
    return folder
