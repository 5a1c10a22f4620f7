"""In doubt nothing goes: folders that are missing, writers that sleep, pools that were copied."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pool_crash_child as child
import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import disks, errors, meters
from reconciler.storage.dedupe import pools, registrations, stores


def _everything(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("missing", ["manifests", "containers", "writers", "shard"])
@pytest.mark.parametrize("fresh", [True, False], ids=["opened-after", "opened-before"])
def test_a_pool_without_one_of_its_folders_is_not_collected(
    root: Path, opening: Callable[..., pools.DedupePool], missing: str, fresh: bool
) -> None:
    pool = opening()
    samples.store(pool, "kept", samples.noise(5 * MIB, 1))
    samples.store(pool, "gone", samples.noise(5 * MIB, 2))
    pool.delete("gone")
    needed, _ = samples.locate(pool, samples.noise(5 * MIB, 1)[: 128 << 10])
    if fresh:
        pool.close()
    folder = needed.parent if missing == "shard" else root / missing
    aside = root.parent / "aside"
    folder.rename(aside)
    before = _everything(root)
    if not fresh or missing != "containers":
        again = opening()
        with pytest.raises(errors.UnitError):
            again.reclaim(meter=meters.Meter())
    containers_left = {name: size for name, size in _everything(root).items() if name.startswith("containers/")}
    assert containers_left == {name: size for name, size in before.items() if name.startswith("containers/")}
    aside.rename(folder)
    pool = opening()
    assert pool.reclaim(meter=meters.Meter()) > 5 * MIB
    assert samples.load(pool, "kept") == samples.noise(5 * MIB, 1)


def test_a_writer_that_was_asleep_when_it_was_ended_cannot_commit(
    root: Path, opening: Callable[..., pools.DedupePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = opening()
    samples.store(pool, "kept", child.KEPT)
    pool.close()
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, child.__file__, str(root), "write"],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(root.glob("writers/[0-9a-f]*")):
            assert process.poll() is None
            time.sleep(0.001)
        with (root / "lock").open("rb") as lock:
            # One that falls asleep with the lock in its hand keeps everybody waiting, which is another matter.
            fcntl.flock(lock, fcntl.LOCK_EX)
            process.send_signal(signal.SIGSTOP)
        # One that is merely slow keeps its registration.
        pool = opening()
        pool.reclaim(meter=meters.Meter())
        assert list(root.glob("writers/*"))
        monkeypatch.setattr(registrations, "SILENCE", 0.2)
        time.sleep(0.3)
        pool.delete("kept")
        pool.reclaim(meter=meters.Meter())
        assert list(root.glob("writers/*")) == []
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "acknowledged" not in out
    # It learns of it at its commit, or earlier where it misses its parent, which it kept no longer.
    assert "registration was removed" in err or "image kept" in err
    assert list(pool.list()) == []
    pool.sweep([])
    pool.reclaim(meter=meters.Meter())
    assert samples.container_files(root) == []


def test_a_pool_copied_elsewhere_opens_for_reading_and_stays_as_it_is(
    root: Path, opening: Callable[..., pools.DedupePool], tmp_path: Path
) -> None:
    data = samples.noise(5 * MIB, 3)
    pool = opening()
    samples.store(pool, "a", data)
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    before = _everything(copy)
    stranger = samples.open_pool(copy, owner="22222222-2222-4222-8222-222222222222")
    assert samples.load(stranger, "a") == data
    assert stranger.stats(meter=meters.Meter()).images == 1
    assert stranger.check(meter=meters.Meter()) == ()
    assert stranger.preview(meter=meters.Meter()).verdict.dead == {}
    for change in (
        lambda: stranger.begin(samples.label("b"), ["d"]),
        lambda: stranger.delete("a"),
        lambda: stranger.reclaim(meter=meters.Meter()),
        lambda: stranger.scrub(meter=meters.Meter()),
        lambda: stranger.sweep([]),
    ):
        with pytest.raises(errors.UnitReadOnly, match="another catalog"):
            change()
    stranger.close()
    assert _everything(copy) == before


def test_a_disk_that_fills_up_in_the_middle_of_a_container_costs_only_the_image_being_written(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small / "pool"
    samples.create(root)
    pool = samples.open_pool(root, container_size=4 * MIB)
    try:
        samples.store(pool, "kept", samples.noise(6 * MIB, 1))
        before = samples.container_bytes(root)
        # Somebody else fills it between the look at the free space and the write.
        monkeypatch.setattr(stores, "reserve", lambda _root: -(1 << 40))
        writer = pool.begin(samples.label("large"), ["d"])
        with pytest.raises(errors.UnitFull):
            writer.write(disks.MemoryDisk("d", samples.noise(60 * MIB, 2)), meter=meters.Meter())
            writer.commit(samples.label("large"))
        writer.abort()
        monkeypatch.undo()
        assert samples.leftovers(root) == []
        assert [held.label.id for held in pool.list()] == ["kept"]
        assert samples.load(pool, "kept") == samples.noise(6 * MIB, 1)
        # Collecting needs next to no room, and none for what is wholly dead.
        pool.reclaim(meter=meters.Meter())
        assert samples.container_bytes(root) == before
        samples.store(pool, "small", samples.noise(9 * MIB, 3))
        assert samples.load(pool, "small") == samples.noise(9 * MIB, 3)
        assert pool.check(meter=meters.Meter()) == ()
    finally:
        pool.close()
