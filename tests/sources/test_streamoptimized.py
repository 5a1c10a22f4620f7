"""Disks as streams: what is written is read by qemu-img, what qemu-img writes is read here, and a damaged stream is none."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from reconciler.base import disks, errors, extents, meters
from reconciler.sources.vmdk import graintables, streamoptimized

KIB = 1 << 10
MIB = 1 << 20
TABLE = 32 * MIB


def qemu(*command: object) -> None:
    done = subprocess.run(["qemu-img", *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "size mismatch" not in done.stdout, done.stdout + done.stderr


class Sparse(disks.Closing):
    """A disk of any size of which only some ranges hold data."""

    name = "Hard disk 1"
    sector = 512

    def __init__(self, size: int, ranges: list[tuple[int, int]], seed: int = 0) -> None:
        self.size = size
        rng = random.Random(seed)
        self._data = [(offset, self._bytes(rng, length)) for offset, length in extents.clip(ranges, size)]

    @staticmethod
    def _bytes(rng: random.Random, length: int) -> bytes:
        # Some of it compresses, some does not, some is zero although it is allocated.
        return b"".join(
            rng.choice((rng.randbytes, lambda n: b"line of text" * (n // 12 + 1), bytes))(min(40 * KIB, length))
            for _ in range(0, length, 40 * KIB)
        )[:length]

    def extents(self) -> extents.Extents:
        return tuple((offset, len(data)) for offset, data in self._data)

    def pread(self, offset: int, length: int) -> bytes:
        found = bytearray(length)
        for start, data in self._data:
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                found[low - offset : high - offset] = data[low - start : high - start]
        return bytes(found)

    def raw(self, path: Path) -> Path:
        with path.open("wb") as file:
            file.truncate(self.size)
            for offset, data in self._data:
                file.seek(offset)
                file.write(data)
        return path


@st.composite
def sparse_disks(draw: st.DrawFn) -> Sparse:
    size = 512 * draw(st.integers(1, 3 * TABLE // 512))
    places = st.one_of(
        st.integers(0, size), st.sampled_from([0, TABLE - 512, TABLE, 2 * TABLE - 65536, max(0, size - 700)])
    )
    lengths = st.sampled_from([1, 512, 65536, 65537, 300_000, 2 * MIB])
    ranges = draw(st.lists(st.tuples(places, lengths), max_size=5))
    return Sparse(size, ranges, draw(st.integers(0, 1000)))


def packed(disk: disks.Disk) -> bytes:
    out = io.BytesIO()
    written = streamoptimized.write(disk, out.write, meters.Meter())
    assert written == len(out.getvalue())
    return out.getvalue()


def unpacked(stream: bytes, size: int, path: Path) -> Path:
    with path.open("w+b") as file:
        file.truncate(size)

        def put(offset: int, data: disks.Buffer) -> None:
            file.seek(offset)
            file.write(data)

        streamoptimized.unpack("Hard disk 1", io.BytesIO(stream), put, size, meters.Meter())
    return path


SMALL = Sparse(TABLE + 5 * 512, [(0, 70_000), (5 * MIB, 100), (TABLE - 512, 2048), (TABLE + 4 * 512, 512)], seed=3)


@hypothesis.settings(max_examples=25)
@hypothesis.given(sparse_disks())
def test_qemu_reads_what_is_written_and_so_does_the_reader(disk: Sparse) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        raw = disk.raw(place / "disk.raw")
        (place / "disk.vmdk").write_bytes(packed(disk))
        qemu("check", "-f", "vmdk", place / "disk.vmdk")
        qemu("compare", "-f", "vmdk", "-F", "raw", place / "disk.vmdk", raw)
        ours = unpacked((place / "disk.vmdk").read_bytes(), disk.size, place / "ours.raw")
        qemu("compare", "-f", "raw", "-F", "raw", ours, raw)


@hypothesis.settings(max_examples=25)
@hypothesis.given(sparse_disks())
def test_what_qemu_writes_is_read(disk: Sparse) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        raw = disk.raw(place / "disk.raw")
        qemu("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, place / "disk.vmdk")
        ours = unpacked((place / "disk.vmdk").read_bytes(), disk.size, place / "ours.raw")
        qemu("compare", "-f", "raw", "-F", "raw", ours, raw)


def test_a_size_that_is_no_whole_sectors_is_rounded_up(tmp_path: Path) -> None:
    disk = Sparse(1000, [(0, 1000)], seed=2)
    stream = packed(disk)
    found = unpacked(stream, 1024, tmp_path / "x").read_bytes()
    assert found == disk.pread(0, 1000) + bytes(24)


def test_no_disk_is_as_large() -> None:
    with pytest.raises(ValueError, match="no VMDK can have"):
        packed(Sparse((62 << 40) + 512, []))


def test_the_meter_counts_and_stops() -> None:
    meter = meters.Meter()
    stream = io.BytesIO()
    streamoptimized.write(SMALL, stream.write, meter)
    assert meter.reading().scanned == SMALL.size
    assert 0 < meter.reading().sent < len(stream.getvalue())
    meter.cancel()
    with pytest.raises(errors.Cancelled):
        streamoptimized.write(SMALL, lambda *_: None, meter)
    with pytest.raises(errors.Cancelled):
        streamoptimized.unpack("d", io.BytesIO(stream.getvalue()), lambda *_: None, SMALL.size, meter)


def qemu_stream(folder: Path) -> bytes:
    raw = SMALL.raw(folder / "small.raw")
    qemu("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, folder / "small.vmdk")
    return (folder / "small.vmdk").read_bytes()


@pytest.mark.parametrize("maker", ["ours", "qemu"])
def test_a_stream_cut_anywhere_is_none(tmp_path: Path, maker: str) -> None:
    stream = packed(SMALL) if maker == "ours" else qemu_stream(tmp_path)
    whole = stream.rstrip(b"\0") if maker == "qemu" else stream[:-511]
    rng = random.Random(1)
    for length in sorted({0, 1, 511, 512, 513, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(60))}):
        with pytest.raises(streamoptimized.NotAStream, match="Hard disk 1"):
            unpacked(whole[:length], SMALL.size, tmp_path / "cut")


@pytest.mark.parametrize("maker", ["ours", "qemu"])
def test_damage_is_never_another_disk(tmp_path: Path, maker: str) -> None:
    """A changed byte makes the stream none, or lies where nobody looks."""
    stream = packed(SMALL) if maker == "ours" else qemu_stream(tmp_path)
    rng = random.Random(7)
    right = SMALL.raw(tmp_path / "right").read_bytes()
    refused = 0
    for _ in range(120):
        broken = bytearray(stream)
        broken[rng.choice((rng.randrange(len(stream)), rng.randrange(128)))] ^= 1 << rng.randrange(8)
        try:
            found = unpacked(bytes(broken), SMALL.size, tmp_path / "found")
        except streamoptimized.NotAStream:
            refused += 1
        else:
            assert found.read_bytes() == right
    assert refused > 30


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.binary(max_size=3000), st.integers(0, 120))
def test_noise_is_refused(noise: bytes, kept: int) -> None:
    stream = packed(SMALL)[: kept * 512] + noise
    with pytest.raises(streamoptimized.NotAStream):
        streamoptimized.unpack("d", io.BytesIO(stream), lambda *_: None, SMALL.size, meters.Meter())


def header(**changes: int | bytes) -> bytes:
    values: dict[str, int | bytes] = {
        "magic": b"KDMV", "version": 3, "flags": 0x30001, "capacity": SMALL.size // 512, "grain": 128, "descriptor": 1,
        "length": 20, "entries": 512, "redundant": 0, "directory": (1 << 64) - 1, "overhead": 128, "unclean": 0,
        "newlines": b"\n \r\n", "method": 1,
    }  # fmt: skip
    return struct.pack("<4sIIQQQQIQQQB4sH433x", *(values | changes).values()).ljust(128 * 512, b"\0")


def marker(value: int, size: int, kind: int) -> bytes:
    return struct.pack("<QII", value, size, kind).ljust(512, b"\0")


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (header(magic=b"COWD"), "no VMDK begins like this"),
        (header(flags=1), "another kind"),
        (header(version=4), "another kind"),
        (header(method=0), "another kind"),
        (header(grain=1 << 40), "grains of"),
        (header(grain=96), "grains of 96"),
        (header(entries=1 << 31), "to a table"),
        (header(overhead=1 << 50), "before the first grain"),
        (header(capacity=1 << 50), "it holds a disk of"),
        (header(newlines=b"\n \n\n"), "line ends"),
        (header() + marker(0, 1 << 31, 0), "packed into 2147483648 bytes"),
        (header() + marker(1 << 60, 100, 0), "a grain for sector"),
        (header() + marker(64, 100, 0), "a grain for sector 64"),
        (header() + marker(1 << 62, 0, 1), "announces"),
        (header() + marker(1 << 62, 0, 2), "announces"),
        (header() + marker(1, 0, 9), "unknown kind 9"),
        (header() + marker(0, 100, 0), "damaged"),
        (header() + marker(0, 0, 0), "without its tables"),
        (header() + marker(0, 0, 0) + b"x", "more behind its end"),
    ],
)
def test_a_hostile_header_or_marker_costs_nothing(stream: bytes, words: str) -> None:
    with pytest.raises(streamoptimized.NotAStream, match=words):
        streamoptimized.unpack("d", io.BytesIO(stream), lambda *_: None, SMALL.size, meters.Meter())


def test_a_grain_that_would_grow_without_end_is_cut_off() -> None:
    bomb = zlib.compress(bytes(8 * MIB), 9)[:4000]
    grain = struct.pack("<QI", 0, len(bomb)) + bomb
    with pytest.raises(streamoptimized.NotAStream, match="does not hold 65536 bytes"):
        streamoptimized.unpack(
            "d", io.BytesIO(header() + grain + bytes(1024)), lambda *_: None, SMALL.size, meters.Meter()
        )


def test_tables_may_all_come_at_the_end() -> None:
    seen = graintables.Seen()
    assert seen.grain(3, 130)
    assert seen.grain(512, 140)
    assert not seen.grain(512, 150)
    first, second = [0] * 512, [0] * 512
    first[3], second[0] = 130, 140
    assert not seen.table(900, [0] * 511)
    assert not seen.table(900, [*first[:-1], 7])
    assert seen.table(901, second)
    assert not seen.fit([911, 901], 2)
    assert seen.table(911, first)
    assert not seen.table(921, first)
    assert seen.table(931, [0] * 512)
    assert seen.fit([911, 901, 931], 3)
    assert not seen.fit([911, 901, 930], 3)
    assert not seen.fit([911, 901, 0, 5], 3)
    assert not seen.fit([911], 1)
    assert not seen.grain(4, 950), "its table has come"


BIG = """
import resource, sys
sys.path.insert(0, "tests/sources")
import test_streamoptimized as t
from reconciler.base import meters
from reconciler.sources.vmdk import streamoptimized
import tempfile
GIB = 1 << 30
class Even(t.Sparse):
    # Every fourth MiB of a disk of 1 GiB.
    def __init__(self):
        self.size, self._data = GIB, []
    def extents(self):
        return tuple((offset, 1 << 20) for offset in range(0, GIB, 4 << 20))
    def pread(self, offset, length):
        return (b"%d " % (offset >> 16) * (1 << 19))[:length]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with tempfile.TemporaryFile() as file:
    streamoptimized.write(Even(), file.write, meters.Meter())
    file.seek(0)
    data = streamoptimized.unpack("d", file, lambda *_: None, GIB, meters.Meter())
assert data == GIB // 4, data
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_disk() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BIG], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48 * KIB, "KiB more than at the start"
