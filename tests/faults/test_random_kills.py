"""``holdfast run`` may be killed at any moment, several times in a row, while days pass and disks change."""

from __future__ import annotations

import random

import kills
import pytest
from fault_estates import Estate

#: Four series share the kills, so that both cores of a small machine work.
SERIES = (11, 23, 42, 77)
ROUNDS = 5


@pytest.mark.parametrize("seed", SERIES)
def test_kills_at_random_moments_lose_nothing(grown: Estate, seed: int) -> None:
    score = kills.series(grown, random.Random(seed), ROUNDS, first=4)
    assert score.kills >= ROUNDS
    assert score.interrupted.total() > 0, "no kill landed while a job ran"
