"""What a plan says a pool would give back is what it then gives back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pool_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_samples import MIB

from reconciler.base import meters
from reconciler.storage.dedupe import departures, pools

#: Pieces that images are put together from, so that they share some and not others.
PIECES = [samples.noise(MIB // 2, seed) for seed in range(6)]


def dead(pool: pools.DedupePool) -> int:
    return pool.stats(meter=meters.Meter()).dead_bytes


def test_what_one_image_alone_holds_is_what_a_collection_gives_back(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "b", samples.noise(7 * MIB, 2))
    samples.store(pool, "a", samples.noise(9 * MIB, 1))
    before = samples.container_bytes(root)
    said, exact = pool.freed_by(["a"])
    assert exact and said > 9 * MIB
    assert samples.container_bytes(root) == before
    pool.delete("a")
    assert pool.reclaim(meter=meters.Meter()) == said == before - samples.container_bytes(root)


def test_what_others_share_is_not_counted(pool: pools.DedupePool) -> None:
    data = samples.noise(5 * MIB, 3)
    for image in ("a", "same", "third"):
        samples.store(pool, image, data)
    assert pool.freed_by(["a"]) == (0, True)
    assert pool.freed_by(["a", "same"]) == (0, True)
    assert pool.freed_by(["a", "same", "third"])[0] > 5 * MIB
    assert pool.freed_by(["nobody"]) == (0, True)


@settings(max_examples=15, deadline=None)
@given(
    images=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    going=st.sets(st.integers(0, 5)),
    earlier=st.sets(st.integers(0, 5), max_size=2),
)
def test_it_is_the_growth_of_what_nothing_needs(images: list[list[int]], going: set[int], earlier: set[int]) -> None:
    """Whatever images share, whatever was deleted before and not collected."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "pool")
        samples.create(root)
        pool = samples.open_pool(root, container_size=MIB)
        for number, pieces in enumerate(images):
            samples.store(pool, f"i{number}", b"".join(PIECES[piece] for piece in pieces))
        for number in earlier & set(range(len(images))):
            pool.delete(f"i{number}")
        names = [f"i{number}" for number in going - earlier if number < len(images)]
        before = dead(pool)
        said, exact = pool.freed_by(names)
        assert exact
        for name in names:
            pool.delete(name)
        assert dead(pool) - before == said
        pool.close()


@pytest.mark.parametrize("limit", ["IMAGES", "CONTAINERS", "SECONDS"])
def test_beyond_its_limits_it_is_an_estimate_and_says_so(
    pool: pools.DedupePool, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    stored = samples.store(pool, "a", samples.noise(3 * MIB, 1)).commit.stored_bytes
    samples.store(pool, "b", samples.noise(MIB, 2))
    assert pool.freed_by(["a"])[1]
    if limit == "SECONDS":
        monkeypatch.setattr(departures._Budget, "__init__", lambda self, _: _out_of_time(self))
    else:
        monkeypatch.setattr(departures, limit, 1)
    assert pool.freed_by(["a"]) == (stored, False)


def _out_of_time(budget: departures._Budget) -> None:
    meters.Meter.__init__(budget)
    budget._end = 0.0


def test_a_damaged_image_makes_it_an_estimate(pool: pools.DedupePool) -> None:
    data = samples.noise(3 * MIB, 1)
    samples.store(pool, "a", data)
    samples.store(pool, "b", samples.noise(MIB, 2))
    # Without its recipe nobody can say what the other one needs.
    for file in samples.container_files(pool.root, "meta-a") + samples.container_files(pool.root, "meta-b"):
        file.unlink()
    pool.close()
    assert pool.freed_by(["a"])[1] is False


def test_looking_writes_nothing(root: Path) -> None:
    pool = samples.open_pool(root)
    samples.store(pool, "a", samples.noise(2 * MIB, 1))
    pool.close()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    stranger = samples.open_pool(root, owner=None)
    assert stranger.freed_by(["a"])[1]
    stranger.close()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
