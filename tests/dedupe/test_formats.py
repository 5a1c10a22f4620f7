"""The format on disk: what FORMAT.md states is what the code does, and a newer one is refused."""

from __future__ import annotations

import json
import re
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples
import pytest
import zstandard
from blake3 import blake3
from pool_samples import MIB

from reconciler.base import errors, meters
from reconciler.storage import identities, labels
from reconciler.storage.dedupe import containers, headers, pools, recipes

TEXT = (Path(pools.__file__).parent / "FORMAT.md").read_text()


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r"At most about 64 MiB \((\d+)\)", containers.TARGET_SIZE),
        (r"\| header \| (\d+) \|", containers.HEADER.size),
        (r"\| records \| (\d+) \+ stored each", containers.RECORD.size),
        (r"\| footer \| (\d+) per record", containers.ENTRY.size),
        (r"\| trailer \| (\d+) \|", containers.TRAILER.size),
        (r"header length 4 = (\d+)", containers.HEADER.size),
        (r"version 2 = (\d+), kind", containers.VERSION),
        (r"A raw length is at most (\d+)", containers.MAX_RAW),
        (r"A page describes (\d+) bytes", recipes.PAGE),
        (r"a span (\d+) \(256 MiB\)", recipes.SPAN),
        (r"E entries of (\d+):", recipes.PAGE_ENTRY.size),
        (r"magic `HFPG` \(4\), version 1 = (\d+)", recipes.VERSION),
        (r"`poolFormat: (\d+)`", headers.POOL_FORMAT),
        (r"from (\d+) to 1048576", headers.MIN_SEGMENT_SIZE),
        (r"from 4096 to (\d+)", headers.MAX_SEGMENT_SIZE),
    ],
)
def test_a_number_in_the_text_is_the_number_in_the_code(pattern: str, value: int) -> None:
    found = re.findall(pattern, TEXT)
    assert [int(number) for number in found] == [value]


def test_the_magics_and_kinds_in_the_text_are_those_in_the_code() -> None:
    for magic in (containers.HEADER_MAGIC, containers.RECORD_MAGIC, containers.TRAILER_MAGIC):
        assert f"`{magic.decode().encode('unicode_escape').decode()}`" in TEXT
    for magic in (recipes.PAGE_MAGIC, recipes.SPAN_MAGIC):
        assert f"`{magic.decode()}`" in TEXT
    for kind, name in containers.SUFFIXES.items():
        assert re.search(rf"\b{kind} `{name}`", TEXT)


def test_a_container_can_be_read_by_what_the_text_says_alone(pool: pools.DedupePool, root: Path) -> None:
    data = samples.noise(MIB, 1)[:300_000] + b"words " * 30_000
    samples.store(pool, "i0", data)
    key = bytes.fromhex(json.loads((root / "pool.json").read_bytes())["fingerprintKey"])
    file = samples.container_files(root, "data")[0].read_bytes()
    assert file[:8] == b"HFPOOL\r\n"
    version, kind, length, owner = struct.unpack("<HBxI16s", file[8:32])
    assert (version, kind, length) == (1, 1, 64)
    assert uuid.UUID(bytes=owner) == uuid.UUID(json.loads((root / "unit.json").read_bytes())["id"])
    assert int.from_bytes(file[32:40], "little") == int(samples.container_files(root, "data")[0].name[:16], 16)
    offset, count = struct.unpack("<QI", file[-88:-76])
    assert blake3(file[:offset]).digest() == file[-72:-40]
    assert blake3(file[:64] + file[offset:-40]).digest() == file[-40:-8]
    found = b""
    for number in range(count):
        entry = file[offset + 48 * number : offset + 48 * number + 48]
        fingerprint, place, stored, raw, encoding = struct.unpack("<32sIIIB3x", entry)
        payload = file[place + 48 : place + 48 + stored]
        segment = payload if encoding == 0 else _zstd(payload)
        assert len(segment) == raw
        assert blake3(segment, key=key).digest() == fingerprint
        found += segment
    assert found == data


def _zstd(payload: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(payload)


def test_pages_are_stored_twice_in_different_containers(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "i0", samples.noise(34 * MIB, 2))
    pool_id = headers.read(root, "pool").id
    found = [
        {
            record.fingerprint
            for file in samples.container_files(root, kind)
            for record in containers.read_footer(file, pool_id).records
        }
        for kind in ("meta-a", "meta-b")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == -(-34 * MIB // recipes.PAGE) + 1


def _newer_unit(root: Path) -> None:
    path = root / "unit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "formatVersion": identities.FORMAT_VERSION + 1}))


def _newer_pool(root: Path) -> None:
    _rewrite_header(root, poolFormat=headers.POOL_FORMAT + 1)


def _new_feature(root: Path) -> None:
    _rewrite_header(root, features=["encryption"])


def _new_compression(root: Path) -> None:
    _rewrite_header(root, compression={"algorithm": "brotli", "level": 3})


def _rewrite_header(root: Path, **fields: object) -> None:
    for name in headers.NAMES:
        document = labels.unseal((root / name).read_bytes(), name)
        (root / name).write_bytes(labels.seal({**document, **fields}))


def _newer_container(root: Path) -> None:
    for path in samples.container_files(root, "data"):
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, 8, 2)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "change", [_newer_unit, _newer_pool, _new_feature, _new_compression, _newer_container], ids=lambda one: one.__name__
)
def test_a_newer_format_is_refused(
    root: Path, opening: Callable[..., pools.DedupePool], change: Callable[[Path], None], tmp_path: Path
) -> None:
    pool = opening()
    samples.store(pool, "i0", samples.noise(2 * MIB, 3))
    pool.delete("i0")
    samples.store(pool, "i1", samples.noise(MIB, 4))
    pool.close()
    change(root)
    before = samples.container_files(root)
    with pytest.raises(errors.FormatTooNew):
        # An index of its own, as a newer release would have left none that this one reads.
        opening(cache=tmp_path / "other-index").reclaim(meter=meters.Meter())
    assert samples.container_files(root) == before


def test_one_container_of_a_newer_format_stops_collections_and_nothing_else(
    root: Path, opening: Callable[..., pools.DedupePool], tmp_path: Path
) -> None:
    pool = opening()
    kept = samples.noise(MIB, 6)
    samples.store(pool, "i0", samples.noise(MIB, 7))
    (path,) = samples.container_files(root, "data")
    samples.store(pool, "i1", kept)
    pool.close()
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 8, 2)
    path.write_bytes(data)
    pool = opening(cache=tmp_path / "other-index")
    assert samples.load(pool, "i1") == kept
    assert samples.store(pool, "i2", kept).reading.sent == 0
    with pytest.raises(errors.FormatTooNew, match=path.name):
        pool.reclaim(meter=meters.Meter())
    assert {finding.object for finding in pool.check(meter=meters.Meter())} == {"i0", path.name}


@pytest.mark.parametrize("lost", headers.NAMES)
def test_one_copy_of_the_header_is_enough(root: Path, opening: Callable[..., pools.DedupePool], lost: str) -> None:
    data = samples.noise(MIB, 5)
    pool = opening()
    samples.store(pool, "i0", data)
    pool.close()
    path = root / lost
    path.write_bytes(path.read_bytes().replace(b'"segmentSize": 131072', b'"segmentSize": 65536'))
    pool = opening()
    assert samples.load(pool, "i0") == data
    pool.close()
    path.unlink()
    assert samples.load(opening(), "i0") == data


def test_without_any_header_the_pool_says_so_and_nothing_is_made(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    for name in headers.NAMES:
        (root / name).unlink()
    with pytest.raises(errors.UnitOffline, match="header"):
        opening().begin(samples.label("i0"), ["d"])
    for name in headers.NAMES:
        (root / name).write_bytes(b"{}")
    with pytest.raises(errors.UnitError, match=r"pool-copy\.json"):
        opening().begin(samples.label("i0"), ["d"])


def test_creating_again_changes_nothing_and_another_pool_is_not_overwritten(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    identity = identities.read(root, "pool")
    before = (root / "pool.json").read_bytes()
    pools.create(root, identity, segment_size=4096)
    assert (root / "pool.json").read_bytes() == before
    samples.store(opening(), "i0", b"x" * 5000)
    with pytest.raises(errors.UnitError, match="another pool"):
        pools.create(root, identities.new("DedupePool", samples.OWNER))
    assert (root / "pool.json").read_bytes() == before


def test_no_compression_is_obeyed(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    identity = identities.new("DedupePool", samples.OWNER)
    pools.create(root, identity, algorithm="none")
    identities.write(root, identity)
    pool = samples.open_pool(root)
    text = b"".join(b"line %d\n" % number for number in range(100_000))
    samples.store(pool, "i0", text)
    assert samples.container_bytes(root) > len(text)
    assert samples.load(pool, "i0") == text
    pool.close()
