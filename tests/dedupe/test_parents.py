"""Writing against another image: what it shares is taken over, and where it cannot be read the writer says so."""

from __future__ import annotations

from pathlib import Path

import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import errors
from reconciler.storage.dedupe import pools

DATA = samples.noise(40 * MIB, 1)


def test_a_whole_reading_against_an_image_counts_what_it_shares_as_found(pool: pools.DedupePool) -> None:
    samples.store(pool, "i0", DATA)
    done = samples.store(pool, "i1", DATA, parent="i0")
    assert (done.reading.scanned, done.reading.sent) == (40 * MIB, 0)
    assert (done.reading.lookups, done.reading.hits) == (320, 320)
    assert done.written.record.blake3 is not None
    pool.delete("i0")
    assert samples.load(pool, "i1") == DATA


def test_one_that_is_gone_is_named(pool: pools.DedupePool) -> None:
    with pytest.raises(errors.ParentDamaged, match="gone"):
        samples.store(pool, "i1", DATA, parent="gone")


@pytest.mark.parametrize("changed", [None, ((35 * MIB, 10),)], ids=["whole", "changes"])
def test_one_whose_recipe_is_lost_is_no_damage_of_the_disk_that_is_read(
    pool: pools.DedupePool, root: Path, changed: tuple[tuple[int, int], ...] | None
) -> None:
    samples.store(pool, "i0", DATA)
    for path in samples.container_files(root, "meta-a") + samples.container_files(root, "meta-b"):
        content = bytearray(path.read_bytes())
        for position in range(150, len(content), 50):
            content[position] ^= 1
        path.write_bytes(content)
    new = samples.patch(DATA, 35 * MIB, b"new")
    with pytest.raises(errors.ParentDamaged, match="i0"):
        samples.store(pool, "i1", new, parent="i0", changed=changed)


def test_segments_that_the_parent_lost_are_stored_anew(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "i0", DATA)
    for path in samples.container_files(root, "data"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    # Each block changes a little, so each is compared with what the parent held.
    new = DATA
    for block in range(40):
        new = samples.patch(new, block * MIB + 70_000, b"changed")
    with pytest.raises(errors.ImageDamaged):
        samples.load(pool, "i0")
    done = samples.store(pool, "i1", new, parent="i0")
    assert done.reading.sent >= 40 * 4096
