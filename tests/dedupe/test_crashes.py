"""Killed with SIGKILL at every point of the pool: what was acknowledged reads back, and nothing is left lying about."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pool_crash_child as child
import pool_samples as samples
import pytest

from reconciler.base import crashes, meters
from reconciler.storage.dedupe import containers, pools

_WRITE = [
    "pool.registered",
    "pool.container-written",
    "pool.container-written:2",
    "pool.container-renamed",
    "pool.container-renamed:2",
    "pool.container-indexed",
    "pool.container-indexed:3",
    "pool.attachment-placed",
    "pool.before-manifest",
    "pool.after-manifest",
]
_DELETE = ["pool.manifest-removed"]
_COLLECT = ["pool.condemned", "pool.container-deleted", "pool.container-deleted:2"]
_REWRITE = [
    "pool.rewrite-copied",
    "pool.container-written",
    "pool.rewrite-sealed",
    "pool.rewrite-condemned",
    "pool.rewrite-condemned:2",
    "pool.rewrite-indexed",
    "pool.rewrite-indexed:2",
    "pool.container-deleted:4",
]
_SCRUB = [
    "pool.scrub-found",
    "pool.damage-listed",
    "pool.damage-listed:2",
    "pool.scrub-healed",
    "pool.scrub-placed",
    "pool.scrub-placed:4",
    "pool.rewrite-sealed",
    "pool.rewrite-condemned",
    "pool.rewrite-indexed",
]


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
    tested = {point.partition(":")[0] for point in [*_WRITE, *_DELETE, *_COLLECT, *_REWRITE, *_SCRUB]}
    # Killed in ``tests/storage/test_conformance_crashes.py``, as every unit type is.
    tested.add("pool.reattached")
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
        samples.store(pool, "new", child.WRITTEN, parent="kept", attached=child.ATTACHED)
    assert samples.load(pool, "new") == child.WRITTEN
    assert samples.load_attached(pool, "new") == child.ATTACHED
    assert samples.load(pool, "kept") == child.KEPT


def test_what_a_killed_writer_had_stored_is_found_by_the_next_attempt(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    pool.close()
    _run(root, "write", "pool.before-manifest")
    again = samples.store(opening(), "new", child.WRITTEN, parent="kept", attached=child.ATTACHED)
    assert (again.reading.sent, again.commit.stored_bytes < 10_000) == (0, True)


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


def test_a_collection_of_most_of_a_pool_that_died_costs_other_processes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    samples.create(root, segment_size=4096)
    pool = samples.open_pool(root)
    samples.store(pool, "kept", child.KEPT[: samples.MIB], attached=child.ATTACHED)
    samples.store(pool, "gone", samples.noise(6 * samples.MIB, 9))
    pool.delete("gone")
    # It dies before the index that both share forgets the 1,536 segments that it took away.
    assert not _run(root, "collect", "pool.condemned")
    assert samples.load(pool, "kept") == child.KEPT[: samples.MIB]
    assert samples.load_attached(pool, "kept") == child.ATTACHED
    assert samples.store(pool, "again", child.KEPT[: samples.MIB]).reading.sent == 0
    _tidy(pool, root)
    pool.close()


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


@pytest.mark.parametrize("indexed", [True, False], ids=["index", "no-index"])
@pytest.mark.parametrize("point", _REWRITE)
def test_killed_while_rewriting(
    root: Path, opening: Callable[..., pools.DedupePool], point: str, indexed: bool
) -> None:
    pool = opening(container_size=2 * samples.MIB)
    samples.store(pool, "kept", child.KEPT)
    # Of each of its containers the first half is all that lives afterwards.
    wide = samples.noise(4 * 2 * samples.MIB, 9)
    halves = b"".join(wide[at : at + samples.MIB // 2] for at in range(0, len(wide), 2 * samples.MIB))
    for number in range(4):
        samples.store(pool, f"wide{number}", wide[2 * number * samples.MIB : 2 * (number + 1) * samples.MIB])
    samples.store(pool, "halves", halves)
    for number in range(4):
        pool.delete(f"wide{number}")
    pool.close()
    assert not _run(root, "collect", point)
    if not indexed:
        shutil.rmtree(root / "index")
    pool = opening()
    assert samples.load(pool, "halves") == halves
    assert samples.load(pool, "kept") == child.KEPT
    assert samples.store(pool, "again", halves).reading.sent == 0
    _tidy(pool, root)
    # An index made anew may know some segments in the old containers and some in the new one; then little stays dead.
    assert pool.stats(meter=meters.Meter()).dead_bytes < (1 if indexed else samples.MIB)
    for image in ("halves", "again"):
        assert samples.load(pool, image) == halves


@pytest.mark.parametrize("point", _SCRUB)
def test_killed_while_scrubbing(root: Path, opening: Callable[..., pools.DedupePool], point: str) -> None:
    pool = opening(container_size=2 * samples.MIB)
    samples.store(pool, "kept", child.KEPT)
    other = samples.noise(5 * samples.MIB, 9)
    samples.store(pool, "other", other)
    id = pool._opened().header.id
    # One false segment, one false page, and one container without its end.
    spoiled = [samples.locate(pool, child.KEPT[: 128 << 10]), (samples.container_files(root, "meta-b")[0], None)]
    for path, record in spoiled:
        samples.flip(path, record or containers.read_footer(path, id).records[0])
    torn, _ = samples.locate(pool, other[: 128 << 10])
    with torn.open("r+b") as file:
        file.truncate(torn.stat().st_size - 200)
    pool.close()
    assert not _run(root, "scrub", point)
    pool = opening()
    report = pool.scrub(meter=meters.Meter())
    assert report.complete
    assert [(one.disk, one.offset, one.length) for one in report.wounded["kept"]] == [("d", 0, 128 << 10)]
    assert set(report.wounded) == {"kept"}, "a segment that proved true was lost on the way"
    assert samples.load(pool, "other") == other
    assert samples.store(pool, "again", child.KEPT).reading.sent == 128 << 10
    _tidy(pool, root)
    for image, data in (("kept", child.KEPT), ("again", child.KEPT), ("other", other)):
        assert samples.load(pool, image) == data
    assert pool.scrub(meter=meters.Meter()).findings == ()
