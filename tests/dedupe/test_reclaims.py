"""Taking back space: what nothing needs goes, what anything needs stays, and doubt keeps everything."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import disks, errors, meters
from reconciler.storage.dedupe import containers, pools, reclaims, registrations

A = samples.noise(9 * MIB, 1)
B = samples.noise(7 * MIB, 2)


def collect(pool: pools.DedupePool) -> int:
    return pool.reclaim(meter=meters.Meter())


def test_what_only_a_deleted_image_needed_comes_back(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "b", B)
    before = samples.container_bytes(root)
    samples.store(pool, "a", A)
    grown = samples.container_bytes(root) - before
    assert pool.capacity().reclaimable == 0
    pool.delete("a")
    assert samples.container_bytes(root) == before + grown
    assert pool.capacity().reclaimable == grown
    assert collect(pool) == grown
    assert samples.container_bytes(root) == before
    assert pool.capacity().reclaimable == 0
    assert samples.load(pool, "b") == B
    assert samples.leftovers(root) == []
    assert collect(pool) == 0


def test_an_empty_pool_gives_everything_back(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A)
    pool.delete("a")
    collect(pool)
    assert samples.container_files(root) == []
    assert samples.store(pool, "a", A).reading.sent == len(A)
    assert samples.load(pool, "a") == A


def test_what_another_image_shares_stays(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A)
    samples.store(pool, "a2", A)
    data = samples.container_files(root, "data")
    pool.delete("a")
    assert pool.capacity().reclaimable == 0
    assert collect(pool) == 0
    assert samples.container_files(root, "data") == data
    assert samples.load(pool, "a2") == A


def test_a_container_that_is_dead_in_part_is_counted_and_kept(pool: pools.DedupePool) -> None:
    # A quarter of every MiB dies, so of every container, in whatever order the workers filled them.
    most = b"".join(A[start : start + MIB * 3 // 4] + bytes(MIB // 4) for start in range(0, len(A), MIB))
    samples.store(pool, "a", A)
    samples.store(pool, "most", most)
    pool.delete("a")
    collect(pool)
    stats = pool.stats(meter=meters.Meter())
    assert 0.24 * len(A) < stats.dead_bytes < 0.27 * len(A)
    assert stats.reclaimable_bytes == 0
    assert samples.load(pool, "most") == most


def test_an_image_of_pages_taken_over_from_a_deleted_parent_stays_whole(pool: pools.DedupePool) -> None:
    old = samples.noise(40 * MIB, 3)
    new = samples.patch(old, 35 * MIB, b"edited")
    samples.store(pool, "i0", old)
    samples.store(pool, "i1", new, parent="i0", changed=((35 * MIB, 6),))
    pool.delete("i0")
    collect(pool)
    assert samples.load(pool, "i1") == new
    assert pool.verify("i1", meter=meters.Meter()) == ()


class _Gate(disks.MemoryDisk):
    """A disk whose reader pauses before block ``at`` until the test lets it go on."""

    def __init__(self, data: bytes, at: int) -> None:
        super().__init__("d", data)
        self.reached, self.go, self._at = threading.Event(), threading.Event(), at

    def pread(self, offset: int, length: int) -> disks.Buffer:
        if offset >= self._at:
            self.reached.set()
            assert self.go.wait(20)
        return super().pread(offset, length)


@pytest.mark.parametrize("parent", [None, "i0"])
def test_a_collection_beside_a_running_writer_keeps_what_the_writer_found(
    pool: pools.DedupePool, root: Path, parent: str | None
) -> None:
    samples.store(pool, "i0", A)
    samples.store(pool, "other", B)
    disk = _Gate(samples.patch(A, 8 * MIB, b"edited"), 8 * MIB)
    result: list[samples.Stored] = []
    changed = ((8 * MIB, MIB),) if parent else None
    writer = threading.Thread(
        target=lambda: result.append(samples.store(pool, "i1", disk, parent=parent, changed=changed))
    )
    writer.start()
    assert disk.reached.wait(20)
    # The only image that holds what the writer found is deleted, and space is taken back, twice.
    pool.delete("i0")
    pool.delete("other")
    freed = collect(pool)
    # What the running writer does not rely on goes; its own does not, and is not said to be obtainable.
    assert freed > 0
    assert pool.capacity().reclaimable == 0
    collect(pool)
    disk.go.set()
    writer.join(20)
    # What it had not come to yet may have gone and is stored again, unless its parent keeps it.
    assert parent is None or result[0].reading.sent == 4096
    assert samples.load(pool, "i1") == samples.patch(A, 8 * MIB, b"edited")
    pool.delete("i1")
    collect(pool)
    assert samples.container_files(root) == []


def test_what_a_writer_kept_from_collection_is_collected_once_it_gave_up(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "i0", A)
    writer = pool.begin(samples.label("i1"), ["d"])
    writer.write(disks.MemoryDisk("d", A), meter=meters.Meter())
    pool.delete("i0")
    data = samples.container_files(root, "data")
    collect(pool)
    assert samples.container_files(root, "data") == data
    writer.abort()
    assert pool.capacity().reclaimable > len(A)
    collect(pool)
    assert samples.container_files(root) == []


def test_a_commit_is_refused_when_a_container_it_needs_was_condemned(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "i0", A)
    writer = pool.begin(samples.label("i1"), ["d"])
    writer.write(disks.MemoryDisk("d", A), meter=meters.Meter())
    # As a collection by another process would, which does not know what this writer found.
    for path in samples.container_files(root, "data")[:1]:
        path.rename(path.with_name(path.name + containers.CONDEMNED))
    with pytest.raises(errors.UnitError, match="collected"):
        writer.commit(samples.label("i1"))
    writer.abort()
    with pytest.raises(errors.ImageMissing):
        pool.open("i1")


def test_a_writer_whose_registration_was_removed_never_commits(pool: pools.DedupePool, root: Path) -> None:
    writer = pool.begin(samples.label("i1"), ["d"])
    writer.write(disks.MemoryDisk("d", B), meter=meters.Meter())
    (folder,) = root.glob("writers/*")
    registrations.remove(folder)
    with pytest.raises(errors.UnitError, match="registration"):
        writer.commit(samples.label("i1"))
    writer.abort()
    assert list(pool.list()) == []


def test_a_silent_writer_is_ended_and_a_quick_one_is_not(
    pool: pools.DedupePool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = pool.begin(samples.label("i1"), ["d"])
    silent.write(disks.MemoryDisk("d", B), meter=meters.Meter())
    collect(pool)
    assert list(root.glob("writers/*"))
    monkeypatch.setattr(registrations, "SILENCE", -1.0)
    collect(pool)
    with pytest.raises(errors.UnitError, match="silent"):
        silent.commit(samples.label("i1"))
    silent.abort()


def _lose_manifest(root: Path) -> None:
    (root / "manifests" / "a.json").unlink()


def _foreign_manifest(root: Path) -> None:
    (root / "manifests" / "a.json").rename(root / "manifests" / "x.json")


def _damage_manifest(root: Path) -> None:
    path = root / "manifests" / "a.json"
    path.write_bytes(path.read_bytes().replace(b"obl-gold", b"obl-cold"))


def _lose_pages(root: Path) -> None:
    for path in [*samples.container_files(root, "meta-a"), *samples.container_files(root, "meta-b")]:
        path.unlink()


def _damage_pages(root: Path) -> None:
    for path in [*samples.container_files(root, "meta-a"), *samples.container_files(root, "meta-b")]:
        data = bytearray(path.read_bytes())
        data[containers.HEADER.size + containers.RECORD.size + 40] ^= 1
        path.write_bytes(data)


def _lose_data(root: Path) -> None:
    for path in samples.container_files(root, "data"):
        path.unlink()


def _damage_log(root: Path) -> None:
    path = root / "log"
    path.write_bytes(path.read_bytes().replace(b'"do":"commit"', b'"do":"delete"', 1))


@pytest.mark.parametrize(
    "damage",
    [_lose_manifest, _foreign_manifest, _damage_manifest, _lose_pages, _damage_pages, _lose_data, _damage_log],
)
def test_in_doubt_nothing_is_deleted(
    root: Path, opening: Callable[..., pools.DedupePool], damage: Callable[[Path], None]
) -> None:
    pool = opening()
    samples.store(pool, "a", A)
    samples.store(pool, "b", B)
    samples.store(pool, "c", samples.noise(5 * MIB, 4))
    pool.delete("c")
    pool.close()
    damage(root)
    left = samples.container_files(root)
    pool = opening()
    with pytest.raises(errors.UnitError) as refusal:
        collect(pool)
    assert samples.container_files(root) == left
    assert pool.capacity().reclaimable == 0
    if damage not in (_damage_log, _lose_pages, _lose_data, _damage_pages):
        assert " a" in refusal.value.message or " x" in refusal.value.message


def test_deleting_the_image_that_lost_its_manifest_lets_collections_go_on(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A)
    samples.store(pool, "b", B)
    _lose_manifest(root)
    with pytest.raises(errors.ImageDamaged, match="a"):
        collect(pool)
    pool.delete("a")
    assert collect(pool) > len(A)
    assert samples.load(pool, "b") == B


def test_one_copy_of_a_page_is_enough(root: Path, opening: Callable[..., pools.DedupePool]) -> None:
    pool = opening()
    samples.store(pool, "a", A)
    pool.close()
    samples.container_files(root, "meta-a")[0].unlink()
    pool = opening()
    assert samples.load(pool, "a") == A
    assert collect(pool) == 0
    # The next image that needs the same page brings the missing copy back.
    samples.store(pool, "a2", A)
    samples.container_files(root, "meta-b")[0].unlink()
    pool.close()
    assert samples.load(opening(), "a") == A


def test_a_dead_container_is_kept_if_the_index_names_a_false_place_for_its_segments(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "a", A[: 3 * MIB])
    samples.store(pool, "b", B[: 3 * MIB])
    store = pool._opened()
    first, second = samples.container_files(root, "data")
    footer = containers.read_footer(first, store.header.id)
    number = int(second.name[:16], 16)
    # The index says that the segments of the first container lie in the second one.
    store.index.forget(footer.container, footer.kind, [record.fingerprint for record in footer.records])
    false = containers.Footer(
        kind=footer.kind, container=number, records=footer.records, size=footer.size, content_digest=bytes(32)
    )
    store.index.add(false, ())
    plan = reclaims.survey(store, meters.Meter())
    assert int(first.name[:16], 16) not in plan.dead
    collect(pool)
    assert first.exists()


def test_a_copy_that_the_index_lost_sight_of_is_found_again_and_kept(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A)
    store = pool._opened()
    (path,) = samples.container_files(root, "meta-a")
    footer = containers.read_footer(path, store.header.id)
    fingerprints = [record.fingerprint for record in footer.records]
    store.index.forget(footer.container, footer.kind, fingerprints)
    collect(pool)
    assert path.exists()
    assert None not in store.index.find(footer.kind, fingerprints)
    # Data that no image needs goes, whether the index knows it or not.
    samples.store(pool, "b", B)
    pool.delete("b")
    pool.delete("a")
    for lost in samples.container_files(root, "data")[:2]:
        records = containers.read_footer(lost, store.header.id).records
        store.index.forget(int(lost.name[:16], 16), containers.DATA, [record.fingerprint for record in records])
    collect(pool)
    assert samples.container_files(root) == []


def test_a_writer_that_found_a_vanished_container_succeeds_at_its_next_attempt(
    pool: pools.DedupePool, root: Path
) -> None:
    samples.store(pool, "a", A)
    for path in samples.container_files(root, "data"):
        path.unlink()
    with pytest.raises(errors.UnitError, match="next attempt"):
        samples.store(pool, "b", A)
    samples.store(pool, "b", A)
    assert samples.load(pool, "b") == A


def test_a_second_collection_at_the_same_time_is_refused(pool: pools.DedupePool) -> None:
    store = pool._opened()
    with reclaims.alone(store), pytest.raises(errors.UnitError, match="another collection"):
        collect(pool)


def test_a_cancelled_collection_deletes_nothing(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A)
    samples.store(pool, "b", B)
    pool.delete("a")
    left = samples.container_files(root)
    meter = meters.Meter()
    meter.cancel()
    with pytest.raises(errors.Cancelled):
        pool.reclaim(meter=meter)
    assert samples.container_files(root) == left


def test_condemned_containers_of_an_interrupted_collection_are_deleted(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A)
    pool.delete("a")
    store = pool._opened()
    plan = reclaims.survey(store, meters.Meter())
    assert reclaims._condemn(store, plan)
    waiting = samples.container_bytes(root)
    assert waiting > len(A)
    assert pool.stats(meter=meters.Meter()).reclaimable_bytes == waiting
    assert collect(pool) == waiting
    assert samples.container_bytes(root) == 0


def test_writers_readers_and_collections_at_once(pool: pools.DedupePool) -> None:
    base = samples.noise(6 * MIB, 9)
    stop = threading.Event()
    problems: list[BaseException] = []

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            for turn in range(4):
                work(10 * number + turn)
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    def write(turn: int) -> None:
        data = samples.patch(base, (turn % 6) * MIB, samples.noise(MIB, turn))
        samples.store(pool, f"i{turn}", data)
        assert samples.load(pool, f"i{turn}") == data
        if turn % 2:
            pool.delete(f"i{turn}")

    def gather() -> None:
        try:
            while not stop.is_set():
                collect(pool)
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(write, number)) for number in range(3)]
    collector = threading.Thread(target=gather)
    for thread in [*threads, collector]:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    collector.join(60)
    assert problems == []
    collect(pool)
    for held in list(pool.list()):
        turn = int(held.label.id[1:])
        assert samples.load(pool, held.label.id) == samples.patch(base, (turn % 6) * MIB, samples.noise(MIB, turn))
    assert pool.check(meter=meters.Meter()) == ()


def test_space_is_held_back_so_that_a_full_pool_can_collect(pool: pools.DedupePool) -> None:
    space = os.statvfs(pool.root)
    assert pool.capacity().free <= space.f_bavail * space.f_frsize - 100 * MIB
