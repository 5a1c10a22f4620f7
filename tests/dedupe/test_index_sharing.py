"""One index for all who use a pool from one state: those who only read do not build it again."""

from __future__ import annotations

import os
from pathlib import Path

import pool_samples as samples
import pytest

from reconciler.storage import opening
from reconciler.storage.dedupe import indexes, pools, stores

MIB = 1 << 20
A = samples.noise(3 * MIB, 5)


def test_a_reader_learns_from_the_index_that_a_writer_keeps(root: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    identity = opening.identities.read(root, "pool")
    writer = pools.DedupePool("pool", root, identity, identity.owner, opening._own_cache(caches, identity, root))
    samples.store(writer, "a", A)
    writer.close()
    (folder,) = caches.iterdir()
    before = (folder / "data.mdb").stat().st_mtime_ns
    reader = opening.open_folder(root, caches)
    assert isinstance(reader, pools.DedupePool)
    assert samples.load(reader, "a") == A
    reader.close()
    assert (folder / "data.mdb").stat().st_mtime_ns == before, "the index was built again"


def test_a_reader_that_may_not_write_the_cache_builds_an_index_for_itself(
    root: Path, pool: pools.DedupePool, tmp_path: Path
) -> None:
    samples.store(pool, "a", A)
    pool.close()
    blocked = tmp_path / "caches"
    blocked.write_text("a file, where a folder is wanted")
    reader = opening.open_folder(root, blocked)
    assert isinstance(reader, pools.DedupePool)
    assert samples.load(reader, "a") == A
    reader.close()


def test_a_reader_and_a_writer_of_one_process_share_the_index(root: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    identity = opening.identities.read(root, "pool")
    writer = pools.DedupePool("pool", root, identity, identity.owner, opening._own_cache(caches, identity, root))
    samples.store(writer, "a", A)
    reader = opening.open_folder(root, caches)
    assert isinstance(reader, pools.DedupePool)
    assert reader._opened().index is writer._opened().index
    writer.close()
    assert samples.load(reader, "a") == A
    reader.close()
    assert os.path.realpath(next(caches.iterdir())) not in indexes._shared
    assert os.path.realpath(root) not in {place for place, _ in stores._shared}


@pytest.mark.parametrize("copied", [False, True])
def test_a_copy_of_a_pool_has_an_index_of_its_own(root: Path, tmp_path: Path, copied: bool) -> None:
    identity = opening.identities.read(root, "pool")
    other = tmp_path / "elsewhere" if copied else root
    same = opening._own_cache(tmp_path, identity, root) == opening._own_cache(tmp_path, identity, other)
    assert same is not copied
