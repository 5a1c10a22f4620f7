"""Containers: what was written is read back proven, and no flipped or missing byte passes."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.base import errors
from reconciler.storage.dedupe import containers

POOL = uuid.UUID("12345678-1234-4234-8234-123456789abc")
KEY = bytes(range(32))


def fingerprint(data: bytes) -> bytes:
    return blake3(data, key=KEY).digest()


def build(folder: Path, segments: list[bytes], *, level: int | None = 3, pool: uuid.UUID = POOL) -> Path:
    builder = containers.Builder(pool, 0x0123456789ABCDEF, containers.DATA)
    records = [(fingerprint(data), *containers.compress(data, level), len(data)) for data in segments]
    path = containers.path(folder, 0x0123456789ABCDEF, containers.DATA)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(builder.header + builder.add(records) + builder.end())
    return path


def read_all(path: Path) -> list[bytes]:
    data = path.read_bytes()
    footer = containers.read_footer(path, POOL)
    size = containers.RECORD.size
    return [
        bytes(containers.decode(data[one.offset : one.offset + size + one.stored], one.fingerprint, KEY))
        for one in footer.records
    ]


SEGMENTS = [random.Random(1).randbytes(5000), b"text " * 900, b"x", random.Random(2).randbytes(131072)]


@pytest.mark.parametrize("level", [None, 1, 3])
def test_segments_come_back_as_they_were(tmp_path: Path, level: int | None) -> None:
    path = build(tmp_path, SEGMENTS, level=level)
    assert path == tmp_path / "01" / "0123456789abcdef.data"
    assert read_all(path) == SEGMENTS
    footer = containers.prove(path, POOL)
    assert (footer.kind, footer.container, footer.size) == (1, 0x0123456789ABCDEF, path.stat().st_size)


def test_a_segment_is_unpacked_where_it_is_wanted_and_nowhere_else() -> None:
    text = b"text " * 900
    encoding, payload = containers.compress(text, 3)
    record = containers.record_header(fingerprint(text), encoding, len(payload), len(text)) + bytes(payload)
    room = bytearray(len(text) + 2)
    place = memoryview(room)[1:-1]
    assert containers.decode(record, fingerprint(text), KEY, place) is place
    assert room == b"\0" + text + b"\0"
    for other in (place[1:], memoryview(bytearray(len(text) + 1))):
        assert containers.decode(record, fingerprint(text), KEY, other) == text
    short = payload[: len(payload) // 2]
    record = containers.record_header(fingerprint(text), encoding, len(short), len(text)) + bytes(short)
    with pytest.raises(containers.Damaged):
        containers.decode(record, fingerprint(text), None, place)


def test_only_what_shrinks_is_compressed(tmp_path: Path) -> None:
    footer = containers.read_footer(build(tmp_path, SEGMENTS), POOL)
    assert [record.encoding for record in footer.records] == [0, 1, 0, 0]
    assert [record.raw for record in footer.records] == [len(data) for data in SEGMENTS]
    assert footer.records[1].stored < 100


def test_an_empty_container_is_one_too(tmp_path: Path) -> None:
    assert containers.prove(build(tmp_path, []), POOL).records == ()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_detected_and_never_gives_wrong_bytes(tmp_path: Path, data: st.DataObject) -> None:
    path = build(tmp_path, SEGMENTS[:3])
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    with pytest.raises((containers.Damaged, errors.FormatTooNew)):
        containers.prove(path, POOL)
    for record in containers.read_footer(build(tmp_path / "good", SEGMENTS[:3]), POOL).records:
        piece = bytes(damaged[record.offset : record.offset + containers.RECORD.size + record.stored])
        for into in (None, memoryview(bytearray(record.raw))):
            try:
                found = containers.decode(piece, record.fingerprint, KEY, into)
            except containers.Damaged:
                continue
            assert fingerprint(bytes(found)) == record.fingerprint


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_off_is_detected(tmp_path: Path, data: st.DataObject) -> None:
    path = build(tmp_path, SEGMENTS[:3])
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(containers.Damaged):
        containers.prove(path, POOL)


def test_a_container_of_another_pool_or_under_another_name_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path, SEGMENTS, pool=uuid.uuid4())
    with pytest.raises(containers.Damaged, match="another pool"):
        containers.read_footer(path, POOL)
    path = build(tmp_path, SEGMENTS)
    other = path.with_name("0123456789abcdee.data")
    path.rename(other)
    with pytest.raises(containers.Damaged, match="differ"):
        containers.read_footer(other, POOL)


def test_a_newer_container_is_refused_and_says_so(tmp_path: Path) -> None:
    path = build(tmp_path, SEGMENTS)
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 8, containers.VERSION + 1)
    path.write_bytes(data)
    with pytest.raises(errors.FormatTooNew):
        containers.read_footer(path, POOL)


def test_a_frame_that_would_grow_beyond_its_length_is_not_decompressed() -> None:
    bomb = containers.compress(bytes(1 << 20), 3)[1]
    data = bytes(1000)
    record = containers.record_header(fingerprint(data), containers.ZSTD, len(bomb), len(data)) + bytes(bomb)
    with pytest.raises(containers.Damaged):
        containers.decode(record, fingerprint(data), KEY)


@pytest.mark.parametrize("name", ["", "x.data", "0123456789abcdef", "0123456789abcdef.tmp", "0123456789abcdeg.data"])
def test_other_names_are_no_containers(name: str) -> None:
    assert containers.parse_name(name) is None
