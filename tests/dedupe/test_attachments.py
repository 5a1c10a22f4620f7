"""Attachments in a pool: their pages live and die like segments, and no older Holdfast takes them for dead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import errors, meters
from reconciler.storage import labels
from reconciler.storage.dedupe import attachments, containers, pools

A = samples.noise(3 * MIB, 1)
PAGES = [samples.noise(50_000, 100 + number) for number in range(40)]


def load(pool: pools.DedupePool, image: str) -> list[bytes]:
    return samples.load_attached(pool, image)["files"]


def listing(pool: pools.DedupePool, image: str) -> bytes:
    """The meta segment that lists the pages of an image's attachment."""
    document = json.loads((pool.root / "manifests" / f"{image}.json").read_bytes())
    (attached,) = document["attachments"]
    return pool._opened().fetch_meta(bytes.fromhex(attached["list"]))


def test_a_manifest_with_attachments_is_too_new_for_who_does_not_know_them(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "plain", A)
    samples.store(pool, "more", A, attached={"files": PAGES})
    plain, more = ((root / "manifests" / f"{image}.json").read_bytes() for image in ("plain", "more"))
    # What is newer than ``labels.FORMAT_VERSION`` has stopped every collection since the first release.
    assert "attachments" not in labels.unseal(plain, "plain")
    with pytest.raises(errors.FormatTooNew, match="format 2"):
        labels.unseal(more, "more")


def test_equal_attachments_cost_a_manifest_and_a_changed_page_costs_itself(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A, attached={"files": PAGES})
    before = samples.container_bytes(root)
    samples.store(pool, "b", A, attached={"files": PAGES})
    assert samples.container_bytes(root) == before
    changed = [*PAGES[:7], samples.noise(50_000, 7), *PAGES[8:]]
    stored = samples.store(pool, "c", A, attached={"files": changed}).commit.stored_bytes
    assert 50_000 < stored < 60_000
    assert load(pool, "c") == changed


def test_a_page_that_a_disk_holds_too_is_stored_once_and_outlives_the_disk(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "disk", A)
    before = samples.container_bytes(root)
    shared = [A[at : at + (128 << 10)] for at in range(0, MIB, 128 << 10)]
    samples.store(pool, "pages", b"", attached={"files": shared})
    assert samples.container_bytes(root) < before + 4096
    pool.delete("disk")
    assert pool.reclaim(meter=meters.Meter()) > MIB
    assert load(pool, "pages") == shared
    assert pool.verify("pages", meter=meters.Meter()) == ()


def test_pages_move_when_their_container_is_rewritten(pool: pools.DedupePool, root: Path) -> None:
    samples.store(pool, "a", A, attached={"files": PAGES})
    old = samples.container_files(root)
    samples.store(pool, "b", b"", attached={"files": PAGES[::8]})
    pool.delete("a")
    assert pool.reclaim(meter=meters.Meter()) > 4 * MIB
    assert not set(old).intersection(samples.container_files(root, "data"))
    assert load(pool, "b") == PAGES[::8]
    pool.delete("b")
    pool.reclaim(meter=meters.Meter())
    assert samples.container_files(root) == []


@pytest.mark.parametrize("kind", [containers.META_A, containers.META_B])
def test_a_damaged_list_is_read_from_its_twin_and_healed(pool: pools.DedupePool, kind: int) -> None:
    samples.store(pool, "a", A, attached={"files": PAGES})
    samples.flip(*samples.locate(pool, listing(pool, "a"), kind))
    assert load(pool, "a") == PAGES
    report = pool.scrub(meter=meters.Meter())
    assert (report.false, report.healed, report.lost, dict(report.wounded)) == (1, 1, 0, {})
    pool.reclaim(meter=meters.Meter())
    assert pool.check(meter=meters.Meter()) == ()


def test_a_list_that_is_lost_is_damage_and_stops_collections(pool: pools.DedupePool) -> None:
    samples.store(pool, "a", A, attached={"files": PAGES})
    data = listing(pool, "a")
    for kind in (containers.META_A, containers.META_B):
        samples.flip(*samples.locate(pool, data, kind))
    (found,) = pool.verify("a", meter=meters.Meter())
    assert (found.part, found.length) == ("attachment files", 0)
    pool.scrub(meter=meters.Meter())
    (wound,) = pool.wounded(meter=meters.Meter())["a"]
    assert (wound.part, wound.offset, wound.length) == ("attachment files", 0, 40 * 50_000)
    assert samples.load(pool, "a") == A
    with pytest.raises(errors.ImageDamaged, match="a cannot be followed"):
        pool.reclaim(meter=meters.Meter())
    samples.store(pool, "b", A, attached={"files": PAGES})
    assert pool.wounded(meter=meters.Meter()) == {}
    assert load(pool, "a") == PAGES


def test_a_lost_page_is_mapped_to_its_images_and_healed_by_the_next_that_brings_it(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "a", A, attached={"files": PAGES})
    samples.store(pool, "b", b"other", attached={"files": PAGES[5:]})
    samples.store(pool, "c", A)
    samples.flip(*samples.locate(pool, PAGES[6]))
    report = pool.scrub(meter=meters.Meter())
    assert (report.false, report.lost) == (1, 1)
    found = {image: [(one.part, one.offset, one.length) for one in ranges] for image, ranges in report.wounded.items()}
    assert found == {"a": [("attachment files", 300_000, 50_000)], "b": [("attachment files", 50_000, 50_000)]}
    assert [str(one) for one in pool.check(meter=meters.Meter()) if one.object == "b"] == [
        "b: attachment files: 50000 bytes at 50000: its segment is lost"
    ]
    # Lost pages stop no collection, and cost no other page.
    pool.delete("c")
    pool.reclaim(meter=meters.Meter())
    assert samples.store(pool, "d", b"", attached={"files": PAGES[6:7]}).commit.stored_bytes > 50_000
    assert pool.wounded(meter=meters.Meter()) == {}
    assert load(opening(), "a") == PAGES


def test_pages_of_a_parent_that_goes_while_its_child_is_written_stay(pool: pools.DedupePool) -> None:
    samples.store(pool, "a", A, attached={"files": PAGES})
    writer = pool.begin(samples.label("b", parent="a"), ["d"])
    writer.write(samples.disks.MemoryDisk("d", A), meter=meters.Meter(), parent="a")
    pool.delete("a")
    pool.reclaim(meter=meters.Meter())
    writer.attach("files", PAGES, parent="a")
    pool.reclaim(meter=meters.Meter())
    assert writer.commit(samples.label("b", parent="a")).stored_bytes < 20_000
    pool.reclaim(meter=meters.Meter())
    assert load(pool, "b") == PAGES


def test_what_no_commit_finished_is_collected(pool: pools.DedupePool, root: Path) -> None:
    writer = pool.begin(samples.label("a"), ["d"])
    writer.attach("files", PAGES)
    writer.abort()
    pool.reclaim(meter=meters.Meter())
    assert samples.container_files(root) == []


def test_attachments_change_no_ratio(pool: pools.DedupePool) -> None:
    samples.store(pool, "a", A + bytes(MIB))
    before = pool.stats(meter=meters.Meter())
    samples.store(pool, "b", A + bytes(MIB), attached={"files": PAGES})
    samples.store(pool, "c", A + bytes(MIB), attached={"files": PAGES})
    after = pool.stats(meter=meters.Meter())
    assert before.attachment_bytes == 0
    assert 0 < after.attachment_bytes - 40 * 50_000 < 20_000
    assert after.logical_bytes == 3 * before.logical_bytes
    assert before.ratio and after.ratio and after.non_zero_ratio and before.non_zero_ratio
    assert after.ratio == pytest.approx(3 * before.ratio, rel=0.01)
    assert after.non_zero_ratio == pytest.approx(3 * before.non_zero_ratio, rel=0.01)
    # Look-ups of pages are not look-ups of data.
    assert after.cache_hit_ratio == pytest.approx(2 / 3)
    pool.delete("b")
    pool.delete("c")
    dead = pool.stats(meter=meters.Meter())
    assert (dead.attachment_bytes, dead.dead_bytes > 40 * 50_000) == (0, True)


@pytest.mark.parametrize("change", [b"HFAX", b"HFAL\x02"])
def test_a_list_that_is_none_is_damage(change: bytes) -> None:
    row = attachments.Row(bytes(32), bytes(32), 5)
    data = attachments.encode_list([row, row])
    assert attachments.decode_list(data) == [row, row]
    for false in (change + data[len(change) :], data[:-1], data[:5], data + b"x"):
        with pytest.raises(containers.Damaged):
            attachments.decode_list(false)
