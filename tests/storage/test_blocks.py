"""Walking a disk by blocks, and reading a stored disk with proof."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from concurrent import futures

import pytest
import unit_samples as samples
from unit_samples import MIB, SampleDisk

from reconciler.base import digests, disks, errors, extents, meters
from reconciler.storage import blocks, units


def _stored(data: bytes, load: Callable[[int], bytes], workers: futures.Executor | None = None) -> blocks.ProvenDisk:
    record = units.DiskRecord(name="d", size=len(data), sector=512, digest=samples.digest(data), blake3=None)
    return blocks.ProvenDisk(
        image="img",
        record=record,
        block_digests=samples.block_list(data),
        load=lambda indices: [load(index) for index in indices],
        workers=workers,
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, 512, MIB - 1, MIB])
def test_zeros_are_recognised_in_any_buffer(kind: type, size: int) -> None:
    assert blocks.is_zero(kind(bytes(size)))
    if size:
        assert not blocks.is_zero(kind(bytes(size - 1) + b"\1"))


def test_a_walk_yields_what_is_not_zero_in_order() -> None:
    data = samples.patch(bytes(5 * MIB + 3), MIB, samples.noise(MIB, 1)) + b"end"
    walk = blocks.BlockWalk(SampleDisk("d", data), meter=meters.Meter())
    found = list(walk)
    assert [(block.index, block.offset, block.length) for block in found] == [(1, MIB, MIB), (5, 5 * MIB, 6)]
    assert [bytes(block.data or b"") for block in found] == [data[MIB : 2 * MIB], data[5 * MIB :]]
    assert walk.digests == samples.block_list(data)
    assert walk.changed is None


def test_a_walk_over_a_parent_yields_emptied_blocks_without_data() -> None:
    old = samples.noise(4 * MIB, 2)
    new = samples.patch(old, MIB, bytes(2 * MIB))
    disk = SampleDisk("d", new, data_extents=[(0, 2 * MIB), (3 * MIB, MIB)])
    walk = blocks.BlockWalk(disk, meter=meters.Meter(), parent=samples.block_list(old))
    assert [(block.index, block.data) for block in walk] == [(1, None), (2, None)]
    assert walk.changed == ((MIB, 2 * MIB),)
    assert walk.digests == samples.block_list(new)


class ThinDisk:
    """A hundred gigabytes, of which the last block was ever written."""

    name, size, sector = "thin", 100 << 30, 512

    def extents(self) -> extents.Extents:
        return ((self.size - MIB, MIB),)

    def pread(self, offset: int, length: int) -> bytes:
        assert offset >= self.size - MIB, "a hole was read"
        return b"x" * length


def test_the_zeros_of_a_large_thin_disk_cost_no_hashing() -> None:
    began = time.process_time()
    full = blocks.BlockWalk(ThinDisk(), meter=meters.Meter())
    (only,) = list(full)
    again = blocks.BlockWalk(ThinDisk(), meter=meters.Meter(), parent=full.digests)
    assert list(again) == [] and again.changed == () and again.digests == full.digests
    wanted = digests.zero_list(ThinDisk.size)
    wanted[-digests.DIGEST_SIZE :] = digests.digest(b"x" * MIB)
    assert (only.offset, full.digests, full.record().blake3) == (ThinDisk.size - MIB, bytes(wanted), None)
    # Hashing as many zeros takes ten times that.
    assert time.process_time() - began < 4


def test_a_walk_must_end_before_it_is_asked() -> None:
    walk = blocks.BlockWalk(SampleDisk("d", samples.noise(2 * MIB, 3)), meter=meters.Meter())
    next(iter(walk))
    with pytest.raises(RuntimeError):
        walk.record()


def test_a_walk_over_a_hole_can_be_cancelled() -> None:
    meter = meters.Meter()
    meter.cancel()
    walk = blocks.BlockWalk(SampleDisk("d", bytes(MIB), data_extents=[]), meter=meter)
    with pytest.raises(errors.Cancelled):
        list(walk)


def test_a_list_of_another_size_is_no_parent() -> None:
    with pytest.raises(errors.UnitError):
        blocks.BlockWalk(SampleDisk("d", bytes(2 * MIB)), meter=meters.Meter(), parent=bytes(32))


def test_small_reads_in_a_row_load_a_block_once() -> None:
    data = samples.noise(3 * MIB, 4)
    loaded: list[int] = []

    def load(index: int) -> bytes:
        loaded.append(index)
        return data[index * MIB : (index + 1) * MIB]

    disk = _stored(data, load)
    assert b"".join(bytes(disk.pread(at, 65536)) for at in range(0, 3 * MIB, 65536)) == data
    assert loaded == [0, 1, 2]
    assert bytes(disk.pread(5, 2 * MIB)) == data[5 : 5 + 2 * MIB]
    assert loaded == [0, 1, 2]


def test_zero_blocks_are_never_loaded() -> None:
    def load(index: int) -> bytes:
        raise AssertionError(index)

    disk = _stored(bytes(3 * MIB + 7), load)
    assert bytes(disk.pread(0, 3 * MIB + 7)) == bytes(3 * MIB + 7)
    assert disk.extents() == ()
    assert blocks.prove(disk, image="img", meter=meters.Meter()) == ()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EIO, errors.ImageDamaged), (errno.ESTALE, errors.UnitError), (errno.ETIMEDOUT, errors.UnitError)],
)
def test_only_lost_bytes_are_damage_an_unreachable_unit_is_not(number: int, expected: type[Exception]) -> None:
    def load(index: int) -> bytes:
        raise OSError(number, "no")

    disk = _stored(samples.noise(2 * MIB, 5), load)
    with pytest.raises(expected) as caught:
        disk.pread(0, 10)
    assert type(caught.value) is expected
    if expected is errors.ImageDamaged:
        (damage,) = blocks.prove(disk, image="img", meter=meters.Meter())
        assert (damage.offset, damage.length) == (0, 2 * MIB)
    else:
        with pytest.raises(expected):
            blocks.prove(disk, image="img", meter=meters.Meter())


def test_damaged_blocks_apart_are_findings_of_their_own() -> None:
    data = samples.noise(5 * MIB, 6)

    def load(index: int) -> bytes:
        return bytes(MIB) if index in (1, 2, 4) else data[index * MIB : (index + 1) * MIB]

    found = blocks.prove(_stored(data, load), image="img", meter=meters.Meter())
    assert [(damage.offset, damage.length) for damage in found] == [(MIB, 2 * MIB), (4 * MIB, MIB)]


def test_a_false_list_is_refused() -> None:
    data = samples.noise(2 * MIB, 7)
    record = units.DiskRecord(name="d", size=len(data), sector=512, digest=samples.digest(data), blake3=None)
    good = samples.block_list(data)
    assert blocks.check_list(good, record, "img") == good
    for bad in (good[:-32], good + bytes(32), bytes([good[0] ^ 1]) + good[1:]):
        with pytest.raises(errors.ImageDamaged, match=r"img.*d"):
            blocks.check_list(bad, record, "img")


def test_data_extents_are_merged_and_end_with_the_disk() -> None:
    data = samples.noise(2 * MIB, 8) + bytes(MIB) + samples.noise(MIB + 9, 9)
    assert blocks.data_extents(samples.block_list(data), len(data)) == ((0, 2 * MIB), (3 * MIB, MIB + 9))
    assert blocks.data_extents(b"", 0) == ()
    assert blocks.data_extents(digests.digest(b"x"), 1) == ((0, 1),)


def test_a_stored_disk_is_a_disk() -> None:
    assert isinstance(_stored(b"x", lambda _: b"x"), disks.Disk)


def test_what_is_read_ahead_is_what_is_read_alone() -> None:
    data = b"".join(samples.noise(MIB, seed) if seed % 5 else bytes(MIB) for seed in range(60)) + samples.noise(99, 60)
    loaded: list[int] = []

    def load(index: int) -> bytes:
        loaded.append(index)
        return data[index * MIB : (index + 1) * MIB]

    with futures.ThreadPoolExecutor(2) as workers:
        disk = _stored(data, load, workers)
        assert b"".join(bytes(disk.pread(at, MIB)) for at in range(0, 60 * MIB, MIB)) + disk.pread(60 * MIB, 99) == data
    assert sorted(loaded) == [number for number in range(61) if number % 5 or number == 60]


def test_backward_reads_load_nothing_else() -> None:
    data = samples.noise(20 * MIB, 9)
    loaded: list[int] = []

    def load(index: int) -> bytes:
        loaded.append(index)
        return data[index * MIB : (index + 1) * MIB]

    with futures.ThreadPoolExecutor(2) as workers:
        disk = _stored(data, load, workers)
        for index in (12, 7, 19, 3):
            assert disk.pread(index * MIB, MIB) == data[index * MIB : (index + 1) * MIB]
    assert loaded == [12, 7, 19, 3]


def test_damage_in_a_stretch_is_told_of_its_block_alone() -> None:
    data = samples.noise(20 * MIB, 10)

    def load(index: int) -> bytes:
        if index == 9:
            raise OSError(errno.EIO, "no")
        return bytes(MIB) if index == 13 else data[index * MIB : (index + 1) * MIB]

    with futures.ThreadPoolExecutor(2) as workers:
        found = blocks.prove(_stored(data, load, workers), image="img", meter=meters.Meter())
    assert [(damage.offset, damage.length) for damage in found] == [(9 * MIB, MIB), (13 * MIB, MIB)]


def test_a_reader_whose_stretch_another_one_gives_up_reads_alone() -> None:
    data = samples.noise(60 * MIB, 11)
    begun, go = threading.Event(), threading.Event()

    def load(index: int) -> bytes:
        if threading.current_thread().name.startswith("ahead"):
            begun.set()
            go.wait(10)
        return data[index * MIB : (index + 1) * MIB]

    with (
        futures.ThreadPoolExecutor(1, thread_name_prefix="ahead") as workers,
        futures.ThreadPoolExecutor(1) as reader,
    ):
        disk = _stored(data, load, workers)
        disk.pread(0, MIB)
        disk.pread(1 * MIB, MIB)
        assert begun.wait(10)
        # The worker is busy with the first stretch; a block of a later one waits for its turn.
        waiting = max(disk._ahead._coming)
        asked = reader.submit(disk.pread, waiting * MIB, MIB)
        while waiting in disk._ahead._coming:
            time.sleep(0.001)
        disk.pread(3 * MIB, MIB)
        go.set()
        assert asked.result(10) == data[waiting * MIB : (waiting + 1) * MIB]
