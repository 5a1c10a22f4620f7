"""The fingerprint index is a cache: gone, torn, stale or lying, it costs time and never bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import lmdb
import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import meters
from reconciler.storage.dedupe import containers, headers, indexes, pools

DATA = samples.noise(6 * MIB, 1)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder)


def _garbage(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(os.urandom(100_000))


def _cut_off(folder: Path) -> None:
    path = folder / "data.mdb"
    os.truncate(path, path.stat().st_size - 8192)


def _empty(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(b"")


def _marker(folder: Path, **fields: object) -> None:
    path = folder / "marker.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _power_cut(folder: Path) -> None:
    _marker(folder, boot="another boot", clean=False)
    # What a torn cache may look like: it opens, and what it says is false.
    _garbage(folder)


def _other_pool(folder: Path) -> None:
    _marker(folder, pool="00000000-0000-4000-8000-000000000000")


def _no_marker(folder: Path) -> None:
    (folder / "marker.json").unlink()


@pytest.mark.parametrize("damage", [_delete, _garbage, _cut_off, _empty, _power_cut, _other_pool, _no_marker])
def test_an_index_that_is_lost_or_damaged_is_made_again(
    root: Path, opening: Callable[..., pools.DedupePool], damage: Callable[[Path], None]
) -> None:
    pool = opening()
    samples.store(pool, "i0", DATA)
    pool.close()
    damage(root / "index")
    pool = opening()
    assert samples.load(pool, "i0") == DATA
    assert samples.store(pool, "i1", DATA).reading.sent == 0


def test_a_clean_index_is_used_again_after_a_restart_of_the_machine(
    root: Path, opening: Callable[..., pools.DedupePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = opening()
    samples.store(pool, "i0", DATA)
    pool.close()
    _marker(root / "index", boot="another boot")
    monkeypatch.setattr(containers, "read_footer", lambda *_: pytest.fail("a footer was read"))
    assert samples.load(opening(), "i0") == DATA


def test_whoever_only_reads_leaves_the_marker_alone_and_whoever_writes_does_not(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    marker = root / "index" / "marker.json"
    pool = opening()
    samples.store(pool, "i0", DATA)
    pool.close()
    before = marker.stat().st_ino, marker.stat().st_mtime_ns
    pool = opening()
    assert samples.load(pool, "i0") == DATA
    pool.close()
    assert (marker.stat().st_ino, marker.stat().st_mtime_ns) == before
    assert json.loads(marker.read_text())["clean"] is True
    pool = opening()
    samples.store(pool, "i1", samples.noise(MIB, 3))
    assert json.loads(marker.read_text())["clean"] is False
    pool.close()
    assert json.loads(marker.read_text())["clean"] is True


def test_a_marker_that_a_dead_process_left_unfinished_goes_at_the_next_opening(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "i0", DATA)
    pool.close()
    (root / "index" / ".tmp-marker.json-0123abcd").write_text("{")
    assert samples.load(opening(), "i0") == DATA
    assert samples.leftovers(root) == []


def test_a_container_the_index_has_not_heard_of_is_learnt_at_the_next_opening(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "i0", DATA)
    pool.close()
    shutil.copytree(root / "index", root.parent / "old-index")
    pool = opening()
    more = samples.noise(5 * MIB, 2)
    samples.store(pool, "i1", more)
    pool.close()
    shutil.rmtree(root / "index")
    (root.parent / "old-index").rename(root / "index")
    pool = opening()
    assert samples.load(pool, "i1") == more
    assert samples.store(pool, "i2", more + DATA).reading.sent == 0


def test_an_entry_that_lies_about_a_place_is_found_out_by_the_fingerprint(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "i0", DATA)
    pool.close()
    index = indexes.Index(root / "index", json.loads((root / "pool.json").read_text())["id"], "pool")
    footer = containers.read_footer(samples.container_files(root, "data")[0], _id(root))
    shifted = tuple(record._replace(offset=record.offset + 4096) for record in footer.records)
    index.prune(index.known())
    index.add(dataclasses.replace(footer, records=shifted), ())
    index.close()
    pool = opening()
    assert sum(damage.length for damage in pool.verify("i0", meter=meters.Meter())) >= MIB
    pool.close()
    shutil.rmtree(root / "index")
    assert opening().verify("i0", meter=meters.Meter()) == ()


def test_a_value_with_a_flipped_bit_is_a_miss_and_the_segment_is_stored_again(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "i0", DATA)
    footer = containers.read_footer(samples.container_files(root, "data")[0], _id(root))
    pool.close()
    path = root / "index" / "data.mdb"
    raw = bytearray(path.read_bytes())
    fingerprint = footer.records[3].fingerprint
    position = raw.find(fingerprint)
    while position >= 0:
        raw[position + 32 + 9] ^= 1
        position = raw.find(fingerprint, position + 1)
    path.write_bytes(raw)
    assert samples.store(opening(), "i1", DATA).reading.sent == 128 << 10


def test_an_index_grows_beyond_its_first_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_FIRST_MAP", 1 << 20)
    index = indexes.Index(tmp_path / "index", "pool", "unit")
    for container in range(30):
        index.add(_footer(container), ())
    wanted = [record.fingerprint for record in _footer(17).records]
    assert [location and location.container for location in index.find(containers.DATA, wanted)] == [17] * 1000
    assert len(index.known()) == 30
    assert (tmp_path / "index" / "data.mdb").stat().st_size < 8 * MIB
    index.close()


def test_pruning_takes_what_is_known_in_containers_that_are_gone_and_nothing_else(tmp_path: Path) -> None:
    index = indexes.Index(tmp_path / "index", "pool", "pool")
    footers = [_footer(container) for container in (1, 2, 3)]
    for footer in footers:
        index.add(footer, (1, 2, 3))
    index.prune({1, 3})
    for footer in footers:
        found = index.find(containers.DATA, [record.fingerprint for record in footer.records])
        assert {place and place.container for place in found} == {2 if footer.container == 2 else None}
    assert index.known().keys() == {2}
    index.close()


def test_two_processes_share_an_index_while_one_of_them_makes_it_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "_FIRST_MAP", 1 << 20)
    index = indexes.Index(tmp_path / "index", "pool", "unit")
    index.add(_footer(99), ())
    code = (
        "import sys; from pathlib import Path; import test_indexes as t\n"
        "t.indexes._FIRST_MAP = 1 << 20\n"
        "index = t.indexes.Index(Path(sys.argv[1]), 'pool', 'unit')\n"
        "[index.add(t._footer(c), ()) for c in range(30)]\n"
        "index.close()\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "index")], check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert len(index.known()) == 31
    index.add(_footer(31), ())
    assert index.find(containers.DATA, [_footer(5).records[0].fingerprint])[0] is not None
    index.close()


def test_a_segment_in_two_containers_stays_known_where_it_was_and_outlives_the_other(tmp_path: Path) -> None:
    index = indexes.Index(tmp_path / "index", "pool", "unit")
    first = _footer(1)
    second = dataclasses.replace(first, container=2)
    index.add(first, {1})
    index.add(second, {1, 2})
    fingerprints = [record.fingerprint for record in first.records]
    assert {location and location.container for location in index.find(containers.DATA, fingerprints)} == {1}
    index.forget(2, containers.DATA, fingerprints)
    assert {location and location.container for location in index.find(containers.DATA, fingerprints)} == {1}
    index.add(second, {2})
    assert {location and location.container for location in index.find(containers.DATA, fingerprints)} == {2}
    index.forget(2, containers.DATA, fingerprints)
    assert set(index.find(containers.DATA, fingerprints)) == {None}
    assert set(index.known()) == {1}
    index.close()


def test_the_cache_may_lie_elsewhere(root: Path, tmp_path: Path, opening: Callable[..., pools.DedupePool]) -> None:
    pool = opening(cache=tmp_path / "cache" / "pool")
    samples.store(pool, "i0", DATA)
    assert (tmp_path / "cache" / "pool" / "data.mdb").exists()
    assert not (root / "index").exists()


def _footer(container: int) -> containers.Footer:
    records = tuple(
        containers.Record(container.to_bytes(16, "big") + number.to_bytes(16, "big"), 64 + number, 0, 1, 0)
        for number in range(1000)
    )
    return containers.Footer(
        kind=containers.DATA, container=container, records=records, size=1000, content_digest=bytes(32)
    )


def _id(root: Path) -> uuid.UUID:
    return headers.read(root, "pool").id


def test_a_full_file_system_is_an_error_and_no_bus_error(small: Path) -> None:
    (small / "index").mkdir()
    with (small / "fill").open("wb") as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            file.flush()
    os.truncate(small / "fill", (small / "fill").stat().st_size - 4096)  # what the marker takes
    code = "import sys, pathlib as p; from reconciler.storage.dedupe import indexes as i; i.Index(p.Path(sys.argv[1]), '', 'u')"
    done = subprocess.run([sys.executable, "-c", code, small / "index"], check=False, capture_output=True, text=True)
    assert (done.returncode, "UnitFull: storage unit u: no space left for the index" in done.stderr) == (1, True)


def test_an_index_in_use_is_not_doubted_for_pages_at_its_end_that_lmdb_never_wrote(tmp_path: Path) -> None:
    dice, data = random.Random(2), tmp_path / "data.mdb"
    with lmdb.open(str(tmp_path), max_dbs=8, map_size=64 * MIB) as environment:
        table = environment.open_db(b"data")
        for _ in range(200):
            with environment.begin(write=True) as transaction:
                keys = [dice.randbytes(8) for _ in range(dice.choice((30, 60, 100, 300)))]
                for key in keys:
                    transaction.put(key, bytes(60), db=table)
                for key in keys:
                    transaction.delete(key, db=table)
            if (environment.info()["last_pgno"] + 1) * environment.stat()["psize"] > data.stat().st_size:
                break
        else:
            raise AssertionError("lmdb wrote every page")
    with (tmp_path / "users").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        indexes.Index(tmp_path, "pool", "unit").close()
