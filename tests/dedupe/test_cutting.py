"""Cutting along the files of a guest: it covers every byte exactly once whatever the layout says, and finds a file again
wherever another guest keeps it."""

from __future__ import annotations

import itertools
import random
from array import array
from pathlib import Path

import pool_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_samples import MIB

from reconciler.base import disks, extents, layouts, meters
from reconciler.storage.dedupe import cuts, pools, segmenters

SEGMENT = 4096
#: (file, offset in the file, offset on the disk, length) each.
Runs = list[tuple[int, int, int, int]]


def layout_of(runs: Runs) -> layouts.Layout:
    file, file_offset, disk_offset, length = (array("q", column) for column in zip(*sorted(runs), strict=True))
    return layouts.Layout(file=file, file_offset=file_offset, disk_offset=disk_offset, length=length)


runs = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 40_000), st.integers(-5000, 90_000), st.integers(-10, 30_000)),
    min_size=1,
    max_size=40,
)
fed = st.lists(st.tuples(st.integers(0, 80_000), st.integers(1, 20_000)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(runs=runs, fed=fed, size=st.integers(1, 81_113))
def test_what_is_fed_is_cut_exactly_once_whatever_the_layout_says(runs: Runs, fed: Runs, size: int) -> None:
    data = random.Random(7).randbytes(size)
    plan = cuts.plan(layout_of(runs), size, SEGMENT)
    covered = [(plan.part(index).offset, plan.part(index).length) for index in range(len(plan))]
    assert all(sum(left) <= right[0] for left, right in itertools.pairwise(covered))
    assert all(offset >= 0 and length > 0 and offset + length <= size for offset, length in covered)
    segmenter = segmenters.Segmenter(SEGMENT, plan)
    ranges = extents.clip(fed, size)
    found: list[segmenters.Segment] = []
    for offset, length in ranges:
        # As the walk does: in blocks that know nothing of segments.
        for start, step in extents.pieces(((offset, length),), 10_000):
            found += segmenter.feed(start, data[start : start + step])
    found += segmenter.end()
    places: list[extents.Extent] = []
    for segment in found:
        assert 0 < len(segment.data) <= 2 * SEGMENT
        assert bytes(segment.data) == b"".join(data[offset : offset + length] for offset, length in segment.parts)
        places += segment.parts
    assert sum(length for _, length in places) == extents.total(ranges)
    assert extents.normalise(places) == ranges


def guest(files: dict[int, bytes], order: list[int], *, size: int, start: int, seed: int) -> tuple[bytes, Runs]:
    """A disk that holds the files one after the other from ``start`` on, each aligned to 512 bytes; the last in two runs."""
    disk, dice = bytearray(size), random.Random(seed)
    runs: Runs = []
    position = start
    for number in order:
        content = files[number]
        cut = len(content) // 2 // 512 * 512 if number == order[-1] else len(content)
        for file_offset, piece in ((0, content[:cut]), (cut, content[cut:])):
            if piece:
                disk[position : position + len(piece)] = piece
                runs.append((number, file_offset, position, len(piece)))
                position += -(-len(piece) // 512) * 512 + 512 * dice.randrange(40)
    return bytes(disk), runs


def store(pool: pools.DedupePool, image: str, data: bytes, runs: Runs, parent: str | None = None) -> meters.Reading:
    meter = meters.Meter()
    writer = pool.begin(samples.label(image), ["d"])
    writer.write(disks.MemoryDisk("d", data), meter=meter, parent=parent, layout=lambda: layout_of(runs))
    writer.commit(samples.label(image))
    return meter.reading()


@pytest.fixture
def files() -> dict[int, bytes]:
    dice = random.Random(3)
    sizes = [dice.choice((700, 5_000, 70_000, 200_000, 900_000, 3_000_000)) for _ in range(40)]
    return {number: dice.randbytes(size) for number, size in enumerate(sizes)}


def test_a_guest_installed_separately_adds_next_to_nothing(pool: pools.DedupePool, files: dict[int, bytes]) -> None:
    order = list(files)
    total = sum(map(len, files.values()))
    size = total + 2 * MIB + 4321
    first, first_runs = guest(files, order, size=size, start=63 * 512, seed=1)
    random.Random(5).shuffle(order)
    second, second_runs = guest(files, order, size=size + 777, start=MIB + 512, seed=2)
    assert store(pool, "i0", first, first_runs).sent >= total
    assert store(pool, "i1", second, second_runs).sent < total // 100
    assert samples.load(pool, "i0") == first
    assert samples.load(pool, "i1") == second


def test_files_in_runs_all_over_a_disk_of_many_pages(pool: pools.DedupePool) -> None:
    size, dice = 100 * MIB + 12_345, random.Random(4)
    data, runs = bytearray(size), []
    places = dice.sample(range(0, size - 65_536, 65_536), 900)
    # Three files: the runs of one ascend, those of the others jump about.
    places[:300] = sorted(places[:300])
    for index, place in enumerate(places):
        data[place : place + 40_960] = dice.randbytes(40_960)
        runs.append((index // 300, index % 300 * 40_960, place, 40_960))
    store(pool, "i0", bytes(data), runs)
    assert samples.load(pool, "i0") == data
    assert store(pool, "i1", bytes(data), runs).sent == 0
    assert samples.load(pool, "i1") == data


def test_without_a_layout_the_same_guest_is_stored_again(pool: pools.DedupePool, files: dict[int, bytes]) -> None:
    order = list(files)
    size = sum(map(len, files.values())) + 2 * MIB
    first, first_runs = guest(files, order, size=size, start=63 * 512, seed=1)
    second, _ = guest(files, order[::-1], size=size, start=MIB + 512, seed=2)
    store(pool, "i0", first, first_runs)
    assert samples.store(pool, "i1", second).reading.sent > size // 2
    assert samples.load(pool, "i1") == second


def test_a_layout_that_flaps_stores_nothing_again(pool: pools.DedupePool, files: dict[int, bytes]) -> None:
    order = list(files)
    size = sum(map(len, files.values())) + 2 * MIB
    data, runs = guest(files, order, size=size, start=4096, seed=1)
    store(pool, "i0", data, runs)
    changed = samples.patch(data, 5 * MIB + 100, b"edited")
    done = store(pool, "i1", changed, [(0, 0, 0, size)], parent="i0")
    assert done.sent <= 8192
    assert samples.load(pool, "i1") == changed


def test_small_writes_in_place_cost_what_they_change(pool: pools.DedupePool, root: Path) -> None:
    data = samples.noise(32 * MIB, 9)
    samples.store(pool, "i0", data)
    new, dice = bytearray(data), random.Random(1)
    places = sorted(dice.sample(range(0, 32 * MIB, 8192), 64))
    for place in places:
        new[place : place + 8192] = dice.randbytes(8192)
    changed = extents.normalise((place, 8192) for place in places)
    before = samples.container_bytes(root)
    samples.store(pool, "i1", bytes(new), parent="i0", changed=changed)
    assert samples.container_bytes(root) - before < 2 * 64 * 8192
    assert samples.load(pool, "i1") == bytes(new)
    assert samples.load(pool, "i0") == data


def test_a_disk_written_over_and_over_stays_in_few_pieces(pool: pools.DedupePool) -> None:
    data, dice = bytearray(samples.noise(4 * MIB, 9)), random.Random(1)
    samples.store(pool, "i0", bytes(data))
    for day in range(1, 12):
        for _ in range(24):
            place = dice.randrange(0, 4 * MIB, 4096)
            data[place : place + 4096] = dice.randbytes(4096)
        samples.store(pool, f"i{day}", bytes(data), parent=f"i{day - 1}")
    recipe = pool.open("i11").recipe("d")
    assert len(recipe.page(0)) < 4 * 150
    assert samples.load(pool, "i11") == bytes(data)
