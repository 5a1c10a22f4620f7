"""Killed with SIGKILL at every point of the pool: what was acknowledged reads back, and nothing is left lying about."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pool_crash_child as child
import pool_samples as samples
import pytest

from reconciler.base import crashes, meters
from reconciler.storage.dedupe import pools

_WRITE = [
    "pool.registered",
    "pool.container-written",
    "pool.container-written:2",
    "pool.container-renamed",
    "pool.container-renamed:2",
    "pool.container-indexed",
    "pool.container-indexed:3",
    "pool.before-manifest",
    "pool.after-manifest",
]
_DELETE = ["pool.manifest-removed"]
_COLLECT = ["pool.condemned", "pool.container-deleted", "pool.container-deleted:2"]


def _run(root: Path, act: str, point: str) -> bool:
    """Run an act that dies at ``point``; whether it was acknowledged before."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "HOLDFAST_TEST": "1", "HOLDFAST_CRASH": point, "PYTHONPATH": paths}
    command = [sys.executable, child.__file__, str(root), act]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == (-9 if point else 0), done.stderr
    return "acknowledged" in done.stdout


def _held(pool: pools.DedupePool) -> set[str]:
    assert pool.unreadable() == ()
    return {held.label.id for held in pool.list()}


def _tidy(pool: pools.DedupePool, root: Path) -> None:
    """Sweep and collect, after which no file is left that nothing refers to."""
    pool.sweep([])
    pool.reclaim(meter=meters.Meter())
    assert samples.leftovers(root) == []
    stats = pool.stats(meter=meters.Meter())
    assert stats.reclaimable_bytes == 0
    assert stats.stored_bytes == samples.container_bytes(root)
    assert pool.check(meter=meters.Meter()) == ()


def test_every_point_of_the_pool_is_tested_here() -> None:
    tested = {point.partition(":")[0] for point in [*_WRITE, *_DELETE, *_COLLECT]}
    assert tested == {point for point in crashes.POINTS if point.startswith("pool.")}


@pytest.mark.parametrize("point", _WRITE)
def test_killed_while_writing(root: Path, opening: Callable[..., pools.DedupePool], point: str) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    pool.close()
    before = samples.container_bytes(root)
    assert not _run(root, "write", point)
    pool = opening()
    assert samples.load(pool, "kept") == child.KEPT
    visible = _held(pool)
    assert visible == ({"kept", "new"} if point == "pool.after-manifest" else {"kept"})
    if "new" in visible:
        assert samples.load(pool, "new") == child.WRITTEN
    _tidy(pool, root)
    if "new" not in visible:
        assert samples.container_bytes(root) == before
        samples.store(pool, "new", child.WRITTEN, parent="kept")
    assert samples.load(pool, "new") == child.WRITTEN
    assert samples.load(pool, "kept") == child.KEPT


def test_what_a_killed_writer_had_stored_is_found_by_the_next_attempt(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    pool.close()
    _run(root, "write", "pool.before-manifest")
    assert samples.store(opening(), "new", child.WRITTEN, parent="kept").reading.sent == 0


@pytest.mark.parametrize("point", _DELETE)
def test_killed_while_deleting(root: Path, opening: Callable[..., pools.DedupePool], point: str) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    samples.store(pool, "new", child.WRITTEN, parent="kept")
    pool.close()
    assert not _run(root, "delete", point)
    pool = opening()
    pool.delete("kept")
    assert _held(pool) == {"new"}
    _tidy(pool, root)
    assert samples.load(pool, "new") == child.WRITTEN


def test_a_deletion_that_was_only_announced_is_carried_out(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    with pool._journal.locked():
        pool._journal.append("delete", image="kept")
    _tidy(pool, root)
    assert _held(pool) == set()
    assert samples.container_bytes(root) == 0


@pytest.mark.parametrize("point", _COLLECT)
def test_killed_while_collecting(root: Path, opening: Callable[..., pools.DedupePool], point: str) -> None:
    pool = opening(container_size=2 * samples.MIB)
    samples.store(pool, "kept", child.KEPT)
    samples.store(pool, "other", samples.noise(5 * samples.MIB, 9))
    before = samples.container_bytes(root)
    pool.delete("other")
    pool.close()
    assert not _run(root, "collect", point)
    pool = opening()
    assert samples.load(pool, "kept") == child.KEPT
    # What is condemned is no longer found, so it is stored again rather than relied on.
    again = samples.noise(5 * samples.MIB, 9)
    samples.store(pool, "again", again)
    _tidy(pool, root)
    assert samples.load(pool, "again") == again
    assert samples.load(pool, "kept") == child.KEPT
    pool.delete("again")
    _tidy(pool, root)
    assert samples.container_bytes(root) < before - 5 * samples.MIB


def test_a_log_whose_last_line_is_torn_goes_on(root: Path, opening: Callable[..., pools.DedupePool]) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    with (root / "log").open("ab") as log:
        log.write(b'0123456789abcdef {"do":"delete","image":"kept"')
    samples.store(pool, "new", child.WRITTEN)
    assert _held(pool) == {"kept", "new"}
    _tidy(pool, root)


def test_a_crowd_of_attempts_that_died_leaves_nothing(root: Path, opening: Callable[..., pools.DedupePool]) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    pool.close()
    for point in ("pool.container-renamed:3", "pool.before-manifest", "pool.registered"):
        _run(root, "write", point)
    assert _run(root, "write", "")
    pool = opening()
    _tidy(pool, root)
    assert samples.load(pool, "new") == child.WRITTEN
