"""Reading: bit for bit or not at all, without writing a byte where the pool is not one's own, and what is counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_samples import MIB

from reconciler.base import disks, errors, meters
from reconciler.storage.dedupe import inspections, pools


def _state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


@pytest.mark.parametrize("owner", [None, "22222222-2222-4222-8222-222222222222"])
def test_somebody_else_reads_without_writing_a_byte(
    root: Path, opening: Callable[..., pools.DedupePool], owner: str | None
) -> None:
    data = samples.noise(5 * MIB, 1)
    pool = opening()
    samples.store(pool, "i0", data)
    samples.store(pool, "i1", data)
    pool.delete("i1")
    pool.close()
    before = _state(root)
    pool = opening(owner=owner)
    assert samples.load(pool, "i0") == data
    assert pool.verify("i0", meter=meters.Meter()) == ()
    assert pool.check(meter=meters.Meter()) == ()
    assert pool.stats(meter=meters.Meter()).images == 1
    assert pool.capacity().reclaimable == 0
    for act in (
        lambda: pool.begin(samples.label("i2"), ["d"]),
        lambda: pool.delete("i0"),
        lambda: pool.sweep([]),
        lambda: pool.reclaim(meter=meters.Meter()),
    ):
        with pytest.raises(errors.UnitReadOnly):
            act()
    pool.close()
    assert _state(root) == before


def test_a_reader_in_another_role_sees_what_is_committed_while_it_reads(
    opening: Callable[..., pools.DedupePool],
) -> None:
    owner, reader = opening(), opening(owner=None)
    first, second = samples.noise(3 * MIB, 2), samples.noise(3 * MIB, 3)
    samples.store(owner, "i0", first)
    assert samples.load(reader, "i0") == first
    samples.store(owner, "i1", second)
    assert samples.load(reader, "i1") == second
    owner.delete("i0")
    owner.reclaim(meter=meters.Meter())
    assert samples.load(reader, "i1") == second


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_in_any_container_never_gives_wrong_bytes(
    root: Path, opening: Callable[..., pools.DedupePool], data: st.DataObject
) -> None:
    content = samples.noise(MIB, 4)[:400_000] + b"words and more words " * 30_000
    pool = opening()
    if not list(pool.list()):
        samples.store(pool, "i0", content)
    pool.close()
    file = data.draw(st.sampled_from(range(3)))
    path = samples.container_files(root)[file]
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    pool = opening()
    try:
        try:
            assert samples.load(pool, "i0") == content
        except errors.ImageDamaged as damage:
            assert path.suffix == ".data"
            assert "image i0, disk d" in damage.message
        assert pool.check(meter=meters.Meter()) != ()
    finally:
        pool.close()
        path.write_bytes(whole)


def test_equal_segments_in_many_places_and_parts_of_them_are_put_together_right(pool: pools.DedupePool) -> None:
    text = samples.noise(300, 5) * 7000
    data = bytearray(12 * MIB)
    for at, length in ((0, 2 * MIB), (3 * MIB + 4096, 2 * MIB), (6 * MIB + 512, 2 * MIB), (10 * MIB, 700_000)):
        data[at : at + length] = text[:length]
    samples.store(pool, "i0", bytes(data))
    # Of the next one, parts of segments are used, and others whole beside them.
    data[1000:1100] = bytes(100)
    data[7 * MIB : 7 * MIB + 50_000] = samples.noise(50_000, 6)
    samples.store(pool, "i1", bytes(data), parent="i0")
    with contextlib.closing(pool.open("i1")) as stored, contextlib.closing(stored.disk("d")) as disk:
        assert bytes(disk.pread(0, len(data))) == data
        for at, length in ((0, MIB), (3 * MIB, 4 * MIB), (7 * MIB + 1, 3 * MIB), (11 * MIB - 5, 10)):
            assert bytes(disk.pread(at, length)) == data[at : at + length]


def test_damage_names_image_disk_and_offset_and_spares_the_rest(pool: pools.DedupePool, root: Path) -> None:
    content = samples.noise(3 * MIB, 5)
    samples.store(pool, "i0", content)
    (path,) = samples.container_files(root, "data")
    raw = bytearray(path.read_bytes())
    raw[raw.find(content[MIB + 5000 : MIB + 5064])] ^= 1
    path.write_bytes(raw)
    opened = pool.open("i0")
    disk = opened.disk("d")
    assert bytes(disk.pread(0, MIB)) == content[:MIB]
    with pytest.raises(errors.ImageDamaged, match=f"image i0, disk d: damaged at offset {MIB}"):
        disk.pread(MIB + 7, 1)
    assert bytes(disk.pread(2 * MIB, MIB)) == content[2 * MIB :]
    opened.close()
    (damage,) = pool.verify("i0", meter=meters.Meter())
    assert (damage.disk, damage.offset, damage.length) == ("d", MIB, MIB)
    # What was proven false is in no index from then on, so it is told of the image, too.
    assert {finding.object for finding in pool.check(meter=meters.Meter())} == {"i0", path.name}


def test_a_container_that_vanished_is_damage_not_an_accident(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    content = samples.noise(2 * MIB, 6)
    samples.store(pool, "i0", content)
    path = samples.container_files(root, "data")[0]
    moved = path.rename(root.parent / path.name)
    with pytest.raises(errors.ImageDamaged, match="image i0"):
        samples.load(pool, "i0")
    assert [finding.object for finding in pool.check(meter=meters.Meter())] == ["i0"]
    # The next backup stores it again, and both images are whole.
    assert samples.store(pool, "i1", content).reading.sent == 2 * MIB
    assert samples.load(pool, "i0") == content
    pool.close()
    moved.rename(path)
    assert samples.load(opening(), "i1") == content


def test_an_opened_image_outlives_the_unit_that_opened_it(pool: pools.DedupePool) -> None:
    data = samples.noise(2 * MIB, 7)
    samples.store(pool, "i0", data)
    opened = pool.open("i0")
    disk = opened.disk("d")
    pool.close()
    assert bytes(disk.pread(0, 2 * MIB)) == data
    opened.close()


def test_comparing_two_images_of_a_pool(pool: pools.DedupePool) -> None:
    base = samples.noise(36 * MIB, 8)
    edited = samples.patch(samples.patch(base, 5 * MIB, b"x"), 33 * MIB, bytes(MIB))
    samples.store(pool, "i0", base)
    samples.store(pool, "i1", edited)
    samples.store(pool, "i2", base + b"longer")
    opened = pool.open("i1")
    assert opened.changed("d", "i0") == ((5 * MIB, MIB), (33 * MIB, MIB))
    assert opened.changed("d", "i1") == ()
    assert opened.changed("d", "i2") is None
    assert opened.changed("d", "nothing") is None
    with pytest.raises(errors.NotFound):
        opened.changed("e", "i0")
    opened.close()


def test_statistics_count_what_is_there(pool: pools.DedupePool, root: Path) -> None:
    assert pool.stats(meter=meters.Meter()) == inspections.PoolStatistics(
        images=0,
        logical_bytes=0,
        non_zero_bytes=0,
        stored_bytes=0,
        attachment_bytes=0,
        ratio=None,
        non_zero_ratio=None,
        segments=0,
        containers=0,
        dead_bytes=0,
        reclaimable_bytes=0,
        cache_hit_ratio=None,
        generation=1,
    )
    data = samples.noise(4 * MIB, 9) + bytes(4 * MIB)
    samples.store(pool, "i0", data)
    samples.store(pool, "i1", data)
    found = pool.stats(meter=meters.Meter())
    assert (found.images, found.logical_bytes, found.non_zero_bytes) == (2, 16 * MIB, 8 * MIB)
    assert found.stored_bytes == samples.container_bytes(root)
    assert (found.segments, found.containers) == (32, len(samples.container_files(root)))
    assert found.cache_hit_ratio == 0.5
    assert found.ratio == 16 * MIB / found.stored_bytes
    assert (found.dead_bytes, found.generation) == (0, 1)
    pool.delete("i0")
    pool.delete("i1")
    found = pool.stats(meter=meters.Meter())
    assert found.reclaimable_bytes == found.dead_bytes == found.stored_bytes
    pool.reclaim(meter=meters.Meter())
    found = pool.stats(meter=meters.Meter())
    assert (found.stored_bytes, found.containers, found.generation, found.cache_hit_ratio) == (0, 0, 3, 0.5)


def test_a_disk_of_many_spans_costs_little_where_it_is_empty(pool: pools.DedupePool, root: Path) -> None:
    size = 3 << 30
    piece = samples.noise(MIB, 10)

    class Sparse(disks.MemoryDisk):
        """Three GiB with one MiB of data in the last span."""

        def __init__(self) -> None:
            super().__init__("d", b"")
            self.size = size

        def extents(self) -> tuple[tuple[int, int], ...]:
            return ((size - 2 * MIB, MIB),)

        def pread(self, offset: int, length: int) -> bytes:
            assert (offset, length) == (size - 2 * MIB, MIB)
            return piece

    samples.store(pool, "i0", Sparse())
    assert samples.container_bytes(root) < MIB + (64 << 10)
    assert (root / "manifests" / "i0.json").stat().st_size < 4096
    opened = pool.open("i0")
    disk = opened.disk("d")
    assert disk.extents() == ((size - 2 * MIB, MIB),)
    assert bytes(disk.pread(size - 3 * MIB, 3 * MIB)) == bytes(MIB) + piece + bytes(MIB)
    opened.close()
