"""Processes that share a pool may be killed in any phase of writing, collecting, rewriting and scrubbing."""

from __future__ import annotations

import random
from pathlib import Path

import pool_kills
import pytest

#: Rounds between two proofs.
SERIES = 6


@pytest.mark.parametrize("part", range(3))
def test_kills_in_every_phase_lose_nothing_and_leave_nothing(tmp_path: Path, part: int) -> None:
    root = tmp_path / "pool"
    pool_kills.create(root)
    dice, score = random.Random(100 + part), pool_kills.Score()
    # The first rounds only fill the pool, until something was acknowledged that may be lost.
    for _ in range(12):
        pool_kills.round_(root, "pool.after-manifest", dice, score)
        if pool_kills.child.acts(root)[0]:
            break
    points = pool_kills.POINTS[part::3]
    for number, point in enumerate(points):
        for _ in range(6):
            pool_kills.round_(root, point, dice, score)
            if score.landed[point]:
                break
        if number % SERIES == SERIES - 1:
            pool_kills.settle(root, score)
    pool_kills.settle(root, score)
    assert set(points) <= set(score.landed), "no kill landed in some phases"
    # Three parts of these make 25 deaths and more.
    assert score.landed.total() + score.anywhere >= 9
    assert score.stored > 0
    pool_kills.empty(root)
