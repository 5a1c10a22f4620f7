"""Sharing: what the pool holds already is never stored again, whoever brings it, in whatever order."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import disks, errors, meters
from reconciler.storage.dedupe import pools


def test_the_same_disk_again_costs_its_manifest_alone(pool: pools.DedupePool, root: Path) -> None:
    data = samples.noise(40 * MIB, 1)
    first = samples.store(pool, "i0", data)
    before = samples.container_bytes(root)
    second = samples.store(pool, "i1", data)
    assert samples.container_bytes(root) == before
    assert second.commit.stored_bytes < 8192
    assert (second.reading.sent, second.reading.hits, second.reading.lookups) == (0, 320, 320)
    assert (first.reading.sent, first.reading.hits, first.reading.lookups) == (40 * MIB, 0, 320)
    assert first.commit.stored_bytes == pytest.approx(samples.container_bytes(root), rel=0.01)
    for image in ("i0", "i1"):
        assert samples.load(pool, image) == data


def test_pages_of_the_parent_that_did_not_change_are_neither_read_nor_written(
    pool: pools.DedupePool, root: Path
) -> None:
    old = samples.noise(33 * MIB, 2)
    samples.store(pool, "i0", old)
    before = samples.container_bytes(root)
    new = samples.patch(old, 32 * MIB + 70_000, b"new")
    done = samples.store(pool, "i1", new, parent="i0", changed=((32 * MIB + 70_000, 3),))
    assert done.written.changed == ((32 * MIB, MIB),)
    # One grain of 4 KiB, one page of 1 MiB and one span, twice each, in three containers.
    assert 4 << 10 < samples.container_bytes(root) - before < 16 << 10
    assert done.reading.scanned == MIB
    assert samples.load(pool, "i1") == new
    assert samples.load(pool, "i0") == old


def test_content_that_moved_by_whole_segments_is_found(pool: pools.DedupePool) -> None:
    data = samples.noise(4 * MIB, 3)
    samples.store(pool, "i0", data)
    moved = samples.store(pool, "i1", bytes(5 * MIB) + data[: 2 * MIB] + data)
    assert moved.reading.sent == 0


def test_a_segment_that_occurs_twice_in_one_disk_is_stored_once(pool: pools.DedupePool) -> None:
    piece = samples.noise(MIB, 4)
    done = samples.store(pool, "i0", piece * 9)
    assert done.reading.sent == MIB
    assert (done.reading.lookups, done.reading.hits) == (72, 64)
    assert samples.load(pool, "i0") == piece * 9


class _Lockstep(disks.MemoryDisk):
    """A disk whose reads wait for the other reader, so that two jobs see the same bytes at the same time."""

    def __init__(self, data: bytes, barrier: threading.Barrier) -> None:
        super().__init__("d", data)
        self._barrier = barrier

    def pread(self, offset: int, length: int) -> disks.Buffer:
        self._barrier.wait(10)
        return super().pread(offset, length)


def test_two_jobs_that_read_alike_disks_at_once_store_them_once(pool: pools.DedupePool, root: Path) -> None:
    data = samples.noise(24 * MIB, 5)
    barrier = threading.Barrier(2)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(samples.store, pool, f"i{n}", _Lockstep(data, barrier)) for n in range(2)]
        done = [job.result() for job in jobs]
    assert sum(one.reading.sent for one in done) == 24 * MIB
    assert samples.container_bytes(root) < 25 * MIB
    for image in ("i0", "i1"):
        assert samples.load(pool, image) == data


def test_an_aborted_job_takes_nothing_from_one_that_shares_its_open_container(pool: pools.DedupePool) -> None:
    data = samples.noise(2 * MIB, 6)
    first = pool.begin(samples.label("i0"), ["d"])
    first.write(disks.MemoryDisk("d", data), meter=meters.Meter())
    second = pool.begin(samples.label("i1"), ["d"])
    shared = meters.Meter()
    second.write(disks.MemoryDisk("d", data), meter=shared)
    assert shared.reading().sent == 0
    first.abort()
    second.commit(samples.label("i1"))
    assert samples.load(pool, "i1") == data


def test_what_an_aborted_job_alone_needed_is_not_kept(pool: pools.DedupePool, root: Path) -> None:
    writer = pool.begin(samples.label("i0"), ["d"])
    writer.write(disks.MemoryDisk("d", samples.noise(2 * MIB, 7)), meter=meters.Meter())
    assert samples.leftovers(root)
    writer.abort()
    assert samples.leftovers(root) == []
    assert samples.container_bytes(root) == 0


def test_two_handles_on_one_folder_are_one_pool(opening: Callable[..., pools.DedupePool]) -> None:
    data = samples.noise(2 * MIB, 8)
    samples.store(opening(), "i0", data)
    other = opening()
    assert samples.store(other, "i1", data).reading.sent == 0
    assert samples.load(other, "i0") == data


def test_small_segments_and_odd_sizes(tmp_path: Path) -> None:
    samples.create(tmp_path / "small", segment_size=4096)
    pool = samples.open_pool(tmp_path / "small")
    data = samples.noise(3 * MIB + 12345, 9)
    samples.store(pool, "i0", data)
    assert samples.load(pool, "i0") == data
    edited = samples.patch(data, 5000, b"!")
    assert samples.store(pool, "i1", edited).reading.sent == 4096
    assert samples.load(pool, "i1") == edited
    pool.close()


@pytest.mark.parametrize("size", [0, 1000, 3 << 10, 100_000, 2 << 20])
def test_an_impossible_segment_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(errors.UnitError, match="power of two"):
        samples.create(tmp_path / "pool-x", segment_size=size)


def test_a_full_comparison_with_the_parent_keeps_what_is_equal(pool: pools.DedupePool) -> None:
    old = samples.noise(6 * MIB, 10)
    samples.store(pool, "i0", old)
    new = samples.patch(samples.patch(old, MIB, bytes(MIB)), 4 * MIB, samples.noise(1000, 11))
    done = samples.store(pool, "i1", new, parent="i0")
    assert done.written.changed == ((MIB, MIB), (4 * MIB, MIB))
    # One grain of 4 KiB is new; the rest of its segment stays the parent's.
    assert done.reading.sent == 4096
    opened = pool.open("i1")
    assert opened.changed("d", "i0") == ((MIB, MIB), (4 * MIB, MIB))
    opened.close()
    assert samples.load(pool, "i1") == new
