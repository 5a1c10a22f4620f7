"""Containers that are mostly dead: what lives in them moves, proven, and the rest comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import disks, errors, meters
from reconciler.storage.dedupe import appenders, containers, pools, recipes, rewrites, verdicts

A = samples.noise(12 * MIB, 1)
#: Of each container of 4 MiB that ``A`` fills, the first.
FIRSTS = A[:MIB] + A[4 * MIB : 5 * MIB] + A[8 * MIB : 9 * MIB]


def collect(pool: pools.DedupePool, threshold: int = verdicts.THRESHOLD) -> int:
    return pool.reclaim(meter=meters.Meter(), threshold=threshold)


@pytest.fixture
def sparse(pool: pools.DedupePool) -> pools.DedupePool:
    """A pool of three data containers, of each of which a quarter lives."""
    for number in range(3):
        samples.store(pool, f"all{number}", A[4 * number * MIB : 4 * (number + 1) * MIB])
    samples.store(pool, "firsts", FIRSTS)
    for number in range(3):
        pool.delete(f"all{number}")
    return pool


def test_what_lives_moves_and_the_rest_comes_back(sparse: pools.DedupePool, root: Path) -> None:
    old = set(samples.container_files(root, "data"))
    before = samples.container_bytes(root)
    promised = sparse.capacity().reclaimable
    assert 9 * MIB < promised < 9.2 * MIB
    assert collect(sparse) == before - samples.container_bytes(root)
    assert before - samples.container_bytes(root) >= promised
    new = samples.container_files(root, "data")
    assert len(new) == 1, "three quarters of a container fit into one"
    assert not old & set(new)
    assert samples.load(sparse, "firsts") == FIRSTS
    assert sparse.check(meter=meters.Meter()) == ()
    assert samples.leftovers(root) == []
    stats = sparse.stats(meter=meters.Meter())
    assert (stats.dead_bytes, stats.reclaimable_bytes) == (0, 0)
    assert sparse.capacity().reclaimable == 0
    assert collect(sparse) == 0
    # Nothing has to be stored again.
    assert samples.store(sparse, "again", FIRSTS).reading.sent == 0


def test_pages_keep_both_of_their_copies(pool: pools.DedupePool, root: Path) -> None:
    big = samples.noise(3 * 32 * MIB, 4)
    samples.store(pool, "big", big)
    samples.store(pool, "page", big[: 32 * MIB])
    pool.delete("big")
    collect(pool)
    for kind in ("meta-a", "meta-b"):
        aside = []
        for path in samples.container_files(root, kind):
            aside.append((path, path.read_bytes()))
            path.unlink()
        pool.close()
        fresh = samples.open_pool(root)
        assert samples.load(fresh, "page") == big[: 32 * MIB], f"{kind} alone held a page"
        fresh.close()
        for path, data in aside:
            path.write_bytes(data)
    pool_id = pool._opened().header.id
    left = [containers.read_footer(path, pool_id).records for path in samples.container_files(root, "meta-a")]
    assert sum(map(len, left)) == 32 * MIB // recipes.PAGE + 1, "more than the pages and the span of what is left"


def test_the_share_that_must_be_dead_is_the_callers(sparse: pools.DedupePool, root: Path) -> None:
    old = samples.container_files(root, "data")
    collect(sparse, 80)
    assert samples.container_files(root, "data") == old
    kept = sparse.preview(meter=meters.Meter(), threshold=80).verdict.kept
    assert {one.reason for one in kept} == {verdicts.Reason.MOSTLY_LIVE}
    assert sum(one.size for one in kept) > 9 * MIB
    collect(sparse, 70)
    assert len(samples.container_files(root, "data")) == 1


def test_a_preview_says_what_a_collection_then_does(sparse: pools.DedupePool, root: Path) -> None:
    samples.store(sparse, "gone", samples.noise(5 * MIB, 7))
    sparse.delete("gone")
    before = samples.container_bytes(root)
    preview = sparse.preview(meter=meters.Meter())
    assert samples.container_bytes(root) == before
    assert preview.verdict.dead_bytes > 5 * MIB
    assert {one.kind for one in preview.verdict.sparse} == {containers.DATA}
    freed = collect(sparse)
    # Several containers become one, so their frames come back too.
    frames = freed - preview.verdict.dead_bytes - preview.verdict.net_bytes
    assert 0 <= frames <= len(preview.verdict.sparse) * containers.FRAME


def test_a_container_that_a_running_writer_relies_on_stays(sparse: pools.DedupePool, root: Path) -> None:
    old = samples.container_files(root, "data")
    writer = sparse.begin(samples.label("w"), ["d"])
    writer.write(disks.MemoryDisk("d", A[: 4 * MIB]), meter=meters.Meter())
    preview = sparse.preview(meter=meters.Meter())
    assert verdicts.Reason.IN_USE in {one.reason for one in preview.verdict.kept}
    collect(sparse)
    assert len(set(old) & set(samples.container_files(root, "data"))) == 1
    writer.commit(samples.label("w"))
    assert samples.load(sparse, "w") == A[: 4 * MIB]
    assert samples.load(sparse, "firsts") == FIRSTS


def test_what_came_to_be_needed_while_records_were_copied_keeps_its_container(
    sparse: pools.DedupePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, done = rewrites._copy, threading.Event()

    def late(*arguments: object) -> set[int]:
        found = copy(*arguments)  # type: ignore[arg-type]
        if not done.is_set():
            done.set()
            samples.store(sparse, "late", A)
        return found

    monkeypatch.setattr(rewrites, "_copy", late)
    collect(sparse)
    assert done.is_set()
    assert samples.load(sparse, "late") == A
    assert samples.load(sparse, "firsts") == FIRSTS
    monkeypatch.undo()
    sparse.delete("late")
    collect(sparse)
    assert sparse.stats(meter=meters.Meter()).dead_bytes == 0
    assert samples.load(sparse, "firsts") == FIRSTS


def test_a_reader_goes_on_across_a_rewriting(sparse: pools.DedupePool, root: Path) -> None:
    opened = sparse.open("firsts")
    disk = opened.disk("d")
    assert bytes(disk.pread(0, MIB)) == FIRSTS[:MIB]
    stranger = samples.open_pool(root, owner=None)
    foreign = stranger.open("firsts")
    elsewhere = foreign.disk("d")
    assert bytes(elsewhere.pread(0, MIB)) == FIRSTS[:MIB]
    assert collect(sparse) > 9 * MIB
    assert bytes(disk.pread(MIB, 2 * MIB)) == FIRSTS[MIB:]
    assert bytes(elsewhere.pread(MIB, 2 * MIB)) == FIRSTS[MIB:]
    for one in (opened, foreign, stranger):
        one.close()


def test_one_who_only_reads_and_looked_between_copy_and_exchange_finds_everything_afterwards(
    sparse: pools.DedupePool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = rewrites._exchange
    strangers: list[pools.DedupePool] = []

    def looked_at(*arguments: object) -> set[int]:
        stranger = samples.open_pool(root, owner=None)
        assert samples.load(stranger, "firsts") == FIRSTS
        strangers.append(stranger)
        return exchange(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rewrites, "_exchange", looked_at)
    collect(sparse)
    for stranger in strangers:
        assert samples.load(stranger, "firsts") == FIRSTS, "what was in the old and in the new container is in neither"
        stranger.close()
    assert strangers


def test_beside_a_writer_of_another_process_nothing_is_moved(sparse: pools.DedupePool, root: Path) -> None:
    old = samples.container_files(root, "data")
    other = samples.open_pool(root)
    writer = other.begin(samples.label("w"), ["d"])
    # Two handles of one process share what they know; another process does not.
    (claims,) = sparse._opened().users()
    claims.registration, kept = None, claims.registration
    collect(sparse)
    assert samples.container_files(root, "data") == old
    assert {one.reason for one in sparse.preview(meter=meters.Meter()).verdict.kept} == {verdicts.Reason.BESIDE_WRITER}
    claims.registration = kept
    writer.abort()
    other.close()
    collect(sparse)
    assert len(samples.container_files(root, "data")) == 1


def _flip(path: Path, number: int, pool: pools.DedupePool) -> None:
    record = containers.read_footer(path, pool._opened().header.id).records[number]
    with path.open("r+b") as file:
        file.seek(record.offset + containers.RECORD.size + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))


def test_a_record_that_is_false_is_not_copied_and_the_rest_is(sparse: pools.DedupePool, root: Path) -> None:
    store = sparse._opened()
    fingerprint = samples.fingerprint(FIRSTS[: 128 << 10], store.header.key)
    (location,) = store.index.find(containers.DATA, [fingerprint])
    assert location is not None
    path = containers.path(store.folder, location.container, containers.DATA)
    _flip(path, location.number, sparse)
    collect(sparse)
    assert path.exists(), "a container is deleted whose live record was not copied"
    assert store.damages.lost
    with pytest.raises(errors.ImageDamaged):
        samples.load(sparse, "firsts")
    # The next one moves what is good, and the next backup of the same bytes brings back what is not.
    collect(sparse)
    assert not path.exists()
    assert samples.store(sparse, "again", FIRSTS).reading.sent == 128 << 10
    assert samples.load(sparse, "again") == samples.load(sparse, "firsts") == FIRSTS


def test_a_page_that_is_false_is_taken_from_its_twin(pool: pools.DedupePool, root: Path) -> None:
    big = samples.noise(3 * 32 * MIB, 4)
    samples.store(pool, "big", big)
    samples.store(pool, "page", big[: 32 * MIB])
    pool.delete("big")
    (path,) = [
        one
        for one in samples.container_files(root, "meta-a")
        if len(containers.read_footer(one, pool._opened().header.id).records) > 1
    ]
    _flip(path, 0, pool)
    collect(pool, 1)
    assert not path.exists()
    assert samples.load(pool, "page") == big[: 32 * MIB]
    assert pool.check(meter=meters.Meter()) == ()


def test_a_collection_that_is_cancelled_while_it_copies_leaves_everything(
    sparse: pools.DedupePool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = meters.Meter()
    append = appenders.OpenContainer.append

    def cancelling(self: appenders.OpenContainer, records: list[appenders.NewRecord]) -> None:
        append(self, records)
        meter.cancel()

    monkeypatch.setattr(appenders.OpenContainer, "append", cancelling)
    before = samples.container_files(root, "data")
    with pytest.raises(errors.Cancelled):
        sparse.reclaim(meter=meter)
    assert samples.container_files(root, "data") == before
    assert samples.leftovers(root) == []
    assert samples.load(sparse, "firsts") == FIRSTS


def test_a_full_pool_can_be_rewritten(small: Path, opening: Callable[..., pools.DedupePool]) -> None:
    root = small / "pool"
    samples.create(root)
    pool = samples.open_pool(root, container_size=2 * MIB)
    contents = {}
    try:
        with pytest.raises(errors.UnitFull):
            for number in range(40):
                data = samples.noise(4 * MIB, number)
                samples.store(pool, f"all{number}", data)
                contents[f"first{number}"] = data[:MIB]
                samples.store(pool, f"first{number}", data[:MIB])
        whole = [name for name in contents if name in {held.label.id for held in pool.list()}]
        for number in range(len(contents)):
            pool.delete(f"all{number}")
        before = samples.container_bytes(root)
        assert collect(pool) > before // 2
        for name in whole:
            assert samples.load(pool, name) == contents[name]
        stats = pool.stats(meter=meters.Meter())
        assert (stats.reclaimable_bytes, stats.stored_bytes) == (0, samples.container_bytes(root))
        samples.store(pool, "new", samples.noise(8 * MIB, 99))
    finally:
        pool.close()


def _moved_elsewhere(pool: pools.DedupePool, old: Path) -> Path:
    """What another process does that shares the index: the records of ``old`` in a new container, in no line of the
    log; the new one."""
    store = pool._opened()
    footer = containers.read_footer(old, store.header.id)
    target = appenders.OpenContainer(store.folder, store.header.id, footer.kind)
    with old.open("rb") as file:
        for record in footer.records:
            file.seek(record.offset + containers.RECORD.size)
            target.append([(record.fingerprint, record.encoding, file.read(record.stored), record.raw)])
    store.index.add(target.seal(), set())
    return target.target


@pytest.mark.parametrize("ghost", [False, True], ids=["sealed", "moved"])
def test_what_another_process_stored_or_moved_is_neither_missed_nor_called_lost(
    pool: pools.DedupePool, root: Path, ghost: bool
) -> None:
    samples.store(pool, "a", A)
    store = pool._opened()
    for old in samples.container_files(root, "data"):
        new = _moved_elsewhere(pool, old)
        if ghost:
            # Looked at between the line and the act that follows it.
            with store.journal.locked():
                store.journal.append("condemn", containers=[old.name])
                store.follow()
                store.present.pop(containers.parse_name(new.name)[0])  # type: ignore[index]
                old.rename(old.with_name(old.name + containers.CONDEMNED))
    assert samples.load(pool, "a") == A
    assert pool.wounded(meter=meters.Meter()) == {}
    collect(pool)
    assert pool.scrub(meter=meters.Meter()).lost == 0
    assert samples.load(pool, "a") == A
