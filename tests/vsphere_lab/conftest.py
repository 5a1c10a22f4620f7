"""Without Go and the simulator's sources there is no lab: its tests are skipped, and say what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "hack"))

import vsphere_labs


@pytest.fixture(scope="session", autouse=True)
def _needs_the_lab() -> None:
    if reason := vsphere_labs.available():
        pytest.skip(reason)
