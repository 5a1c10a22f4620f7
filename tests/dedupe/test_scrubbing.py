"""Scrubbing: what is false is found, leaves the index, is healed where it can be, and is mapped to images."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pool_samples as samples
import pytest
from pool_samples import MIB

from reconciler.base import disks, errors, extents, meters
from reconciler.storage.dedupe import containers, pools, rounds, scrubs, stores, wounds

A = samples.noise(9 * MIB, 1)
B = samples.noise(7 * MIB, 2)
SEGMENT = 128 << 10


def scrub(pool: pools.DedupePool, **limits: float) -> scrubs.Report:
    return pool.scrub(meter=meters.Meter(), limits=scrubs.Limits(**limits))  # type: ignore[arg-type]


@pytest.fixture
def stored(pool: pools.DedupePool) -> pools.DedupePool:
    """A pool of three images, two of which share most of their segments."""
    samples.store(pool, "a", A)
    samples.store(pool, "a2", samples.patch(A, 5 * MIB, samples.noise(MIB, 5)))
    samples.store(pool, "b", B)
    return pool


def test_a_whole_pool_is_proven_and_a_round_ends(stored: pools.DedupePool, root: Path) -> None:
    meter = meters.Meter()
    report = stored.scrub(meter=meter)
    assert (report.complete, report.remaining, report.false, report.lost) == (True, 0, 0, 0)
    assert report.containers == len(samples.container_files(root))
    assert report.read == samples.container_bytes(root) == meter.reading().total
    assert (report.findings, report.wounded) == ((), {})
    assert rounds.read(root) is None


def test_a_flipped_bit_is_found_and_mapped_and_others_are_not_concerned(stored: pools.DedupePool) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    samples.flip(path, record)
    report = scrub(stored)
    assert (report.complete, report.false, report.healed, report.lost) == (True, 1, 0, 1)
    assert report.findings == ((path.name, "1 segments are false"),)
    where = {image: [(one.disk, one.offset, one.length) for one in found] for image, found in report.wounded.items()}
    assert where == {image: [("d", 2 * MIB, SEGMENT)] for image in ("a", "a2")}
    assert samples.load(stored, "b") == B
    with pytest.raises(errors.ImageDamaged, match="offset 2097152"):
        samples.load(stored, "a")


def test_what_was_found_is_not_found_again_whatever_becomes_of_the_index(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening(cache=root.parent / "one")
    samples.store(pool, "a", A)
    path, record = samples.locate(pool, A[:SEGMENT])
    samples.flip(path, record)
    scrub(pool)
    pool.close()
    pool = opening(cache=root.parent / "two")
    assert pool._opened().index.find(containers.DATA, [record.fingerprint]) == [None]
    assert samples.store(pool, "again", A).reading.sent == SEGMENT


def test_the_next_image_of_the_same_bytes_heals_every_image_that_shares_them(stored: pools.DedupePool) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    samples.flip(path, record)
    scrub(stored)
    assert samples.store(stored, "next", A).reading.sent == SEGMENT
    assert samples.load(stored, "a") == A
    assert stored.wounded(meter=meters.Meter()) == {}
    for image in ("a", "a2", "next"):
        assert stored.verify(image, meter=meters.Meter()) == ()
    # The false record goes with the next collection, and with it the last trace.
    stored.reclaim(meter=meters.Meter())
    assert not path.exists()
    report = scrub(stored)
    assert (report.false, report.findings) == (0, ())
    assert not stored._opened().damages
    assert stored.check(meter=meters.Meter()) == ()


def test_lost_segments_do_not_keep_a_collection_from_its_work(stored: pools.DedupePool, root: Path) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    samples.flip(path, record)
    scrub(stored)
    stored.delete("b")
    before = samples.container_bytes(root)
    assert stored.reclaim(meter=meters.Meter()) > len(B)
    assert samples.container_bytes(root) < before - len(B)
    ranges = stored.wounded(meter=meters.Meter())
    assert [(one.offset, one.length) for one in ranges["a"]] == [(2 * MIB, SEGMENT)]
    # Everything else of the wounded image is still there.
    disk = stored.open("a").disk("d")
    assert bytes(disk.pread(3 * MIB, 6 * MIB)) == A[3 * MIB :]
    disk.close()


@pytest.mark.parametrize("kind", [containers.META_A, containers.META_B])
def test_a_page_is_healed_from_its_twin_at_once(stored: pools.DedupePool, root: Path, kind: int) -> None:
    path = samples.container_files(root, containers.SUFFIXES[kind])[0]
    record = containers.read_footer(path, stored._opened().header.id).records[0]
    samples.flip(path, record)
    report = scrub(stored)
    assert (report.false, report.healed, report.wounded) == (1, 1, {})
    (location,) = stored._opened().index.find(kind, [record.fingerprint])
    assert location is not None
    stored.reclaim(meter=meters.Meter())
    for other in samples.container_files(root, containers.SUFFIXES[5 - kind]):
        other.unlink()
    stored.close()
    fresh = samples.open_pool(root)
    assert samples.load(fresh, "a") == A, "the page was stored once only"
    fresh.close()


def test_a_page_that_is_false_twice_wounds_all_that_it_describes(stored: pools.DedupePool, root: Path) -> None:
    store = stored._opened()
    manifest = stored._manifest("b")
    span = manifest.disks[0].spans[0]
    for kind in (containers.META_A, containers.META_B):
        for path in samples.container_files(root, containers.SUFFIXES[kind]):
            for record in containers.read_footer(path, store.header.id).records:
                if record.fingerprint == span:
                    samples.flip(path, record)
    report = scrub(stored)
    assert list(report.wounded) == ["b"]
    assert [(one.offset, one.length) for one in report.wounded["b"]] == [(0, len(B))]
    assert samples.load(stored, "a") == A
    with pytest.raises(errors.ImageDamaged, match="b"):
        stored.reclaim(meter=meters.Meter())
    samples.store(stored, "b2", B)
    assert samples.load(stored, "b") == B
    stored.reclaim(meter=meters.Meter())


@pytest.mark.parametrize("left", [64, 30, 0, "half", "header"])
def test_of_a_broken_container_everything_that_proves_true_is_moved(
    stored: pools.DedupePool, root: Path, left: int | str
) -> None:
    path, _ = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    size = path.stat().st_size
    if left == "header":
        with path.open("r+b") as file:
            file.write(b"XXXXXXXX")
    else:
        with path.open("r+b") as file:
            file.truncate(size // 2 if left == "half" else int(left))
    report = scrub(stored)
    assert not path.exists()
    assert samples.load(stored, "b") == B
    if left == "header":
        assert (report.lost, report.wounded) == (0, {})
        assert samples.load(stored, "a") == A
    else:
        assert set(report.wounded) >= {"a"}
        lost = sum(one.length for one in report.wounded["a"])
        assert lost == report.lost * SEGMENT
        # How many segments share a container is a matter of how fast they came.
        assert lost <= size // 2 + 2 * SEGMENT if left == "half" else lost > 3.5 * MIB
    set_aside = list(root.rglob("*.broken"))
    assert len(set_aside) == (left in (64, 30, 0))
    stored.reclaim(meter=meters.Meter())
    assert samples.store(stored, "again", A).reading.sent == report.lost * SEGMENT
    for image, data in (("a", A), ("again", A), ("b", B)):
        assert samples.load(stored, image) == data
    assert scrub(stored).wounded == {}


@contextlib.contextmanager
def losing(path: Path, offset: int, folder: Path) -> Iterator[None]:
    """``path`` lies on a device that cannot read the sector of 4 KiB around ``offset`` any more."""
    kept, mounted, begin = folder / "kept", folder / "device", offset - offset % 4096
    mounted.mkdir()
    shutil.move(path, kept)
    good = f"[ $(($3 + $4)) -le {begin} ] || [ $4 -ge {begin + 4096} ] || {{ echo EIO >&2; exit 1; }}"
    read = f"dd if={kept} iflag=skip_bytes,count_bytes bs=64k skip=$4 count=$3 status=none"
    server = ["nbdkit", "--exit-with-parent", "eval", f"get_size=stat -c %s {kept}", f"pread={good}; {read}"]
    with subprocess.Popen(["nbdfuse", "-r", mounted / "file", "[", *server, "]"]):
        deadline = time.monotonic() + 10
        while not (mounted / "file").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        path.symlink_to(mounted / "file")
        try:
            yield
        finally:
            subprocess.run(["fusermount3", "-u", mounted], check=True)


def test_a_container_of_a_time_to_come_is_proven_too(stored: pools.DedupePool) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    samples.flip(path, record)
    ahead = time.time() + 1e7
    os.utime(path, (ahead, ahead))
    report = scrub(stored)
    assert (report.complete, report.false, report.lost) == (True, 1, 1)


def test_a_record_on_a_sector_that_cannot_be_read_is_false_and_the_others_are_not(
    stored: pools.DedupePool, tmp_path: Path
) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    with losing(path, record.offset + record.stored // 2, tmp_path):
        report = scrub(stored)
        assert (report.complete, report.false, report.lost) == (True, 1, 1)
        assert [(one.offset, one.length) for one in report.wounded["a"]] == [(2 * MIB, SEGMENT)]
        with pytest.raises(errors.ImageDamaged, match="offset 2097152"):
            samples.load(stored, "a")
        samples.store(stored, "next", A)
        assert samples.load(stored, "a") == A
        stored.delete("b")
        stored.reclaim(meter=meters.Meter())
    assert stored.check(meter=meters.Meter()) == ()


def test_a_container_whose_end_cannot_be_read_is_salvaged_and_set_aside(
    stored: pools.DedupePool, root: Path, tmp_path: Path
) -> None:
    path, _ = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    with losing(path, path.stat().st_size - 1, tmp_path):
        report = scrub(stored)
    # The sector may have the end of the last segment, too.
    assert (report.complete, report.broken, report.lost <= 1) == (True, 1, True)
    assert [one.name for one in root.rglob("*.broken")] == [f"{path.name}.broken"]
    assert samples.store(stored, "again", A).reading.sent <= SEGMENT
    assert samples.load(stored, "a") == A


def test_a_container_that_is_gone_is_lost_and_mapped(stored: pools.DedupePool) -> None:
    path, _ = samples.locate(stored, B[:SEGMENT])
    path.unlink()
    report = scrub(stored)
    assert report.lost > 0
    assert set(report.wounded) == {"b"}
    stored.delete("a")
    stored.reclaim(meter=meters.Meter())
    samples.store(stored, "b2", B)
    assert stored.wounded(meter=meters.Meter()) == {}


def test_a_scrub_goes_on_where_its_limit_or_a_cancel_stopped_it(
    stored: pools.DedupePool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = len(samples.container_files(root))
    first = scrub(stored, size=1)
    assert (first.complete, first.containers) == (False, 1)
    assert first.remaining + first.read == samples.container_bytes(root)
    stored.close()
    seen: list[int] = []
    prove = scrubs._prove
    meter = meters.Meter()

    def watched(store: stores.Store, one: rounds.Candidate, *rest: object) -> None:
        prove(store, one, *rest)  # type: ignore[arg-type]
        seen.append(one.container)
        if len(seen) == 2:
            meter.cancel()

    monkeypatch.setattr(scrubs, "_prove", watched)
    with pytest.raises(errors.Cancelled):
        stored.scrub(meter=meter)
    assert scrub(stored, seconds=0).containers == 0
    last = scrub(stored)
    assert last.complete
    assert last.containers == everything - 3
    assert len(set(seen)) == len(seen) == everything - 1, "a container was proven twice in one round"


def test_what_was_proven_longest_ago_comes_first_and_new_ones_wait_for_the_next_round(
    stored: pools.DedupePool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrub(stored, size=1)
    samples.store(stored, "new", samples.noise(3 * MIB, 8))
    seen: list[tuple[int, int]] = []
    prove = scrubs._prove

    def watched(store: stores.Store, one: rounds.Candidate, *rest: object) -> None:
        prove(store, one, *rest)  # type: ignore[arg-type]
        seen.append((one.since, one.container))

    monkeypatch.setattr(scrubs, "_prove", watched)
    old = scrub(stored)
    assert old.complete
    assert old.containers == len(samples.container_files(root)) - 4
    assert scrub(stored).containers == len(samples.container_files(root))
    assert seen[: old.containers] == sorted(seen[: old.containers])
    assert seen[old.containers :] == sorted(seen[old.containers :])


def test_a_rate_is_kept(stored: pools.DedupePool) -> None:
    began = time.monotonic()
    report = scrub(stored, rate=16 * MIB)
    assert time.monotonic() - began >= 0.8 * report.read / (16 * MIB)


def test_a_second_scrub_at_the_same_time_is_refused(stored: pools.DedupePool) -> None:
    with stored._opened().journal.alone(scrubs.LOCK, "a scrub"), pytest.raises(errors.UnitError, match="another scrub"):
        scrub(stored)


def test_a_writer_that_relies_on_what_turns_out_false_cannot_commit(stored: pools.DedupePool) -> None:
    writer = stored.begin(samples.label("w"), ["d"])
    writer.write(disks.MemoryDisk("d", A), meter=meters.Meter())
    other = stored.begin(samples.label("v"), ["d"])
    other.write(disks.MemoryDisk("d", samples.noise(3 * MIB, 77)), meter=meters.Meter())
    samples.flip(*samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT]))
    scrub(stored)
    with pytest.raises(errors.UnitError, match="registration"):
        writer.commit(samples.label("w"))
    writer.abort()
    other.commit(samples.label("v"))
    assert samples.store(stored, "w", A).reading.sent == SEGMENT
    assert samples.load(stored, "w") == A


def test_a_record_that_reads_well_again_is_taken_off_the_list(stored: pools.DedupePool) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    samples.flip(path, record)
    scrub(stored)
    assert stored.wounded(meter=meters.Meter())
    samples.flip(path, record)
    report = scrub(stored)
    assert (report.false, report.wounded) == (0, {})
    assert not stored._opened().damages
    assert samples.load(stored, "a") == A


def test_another_container_with_the_same_segment_heals_at_once(
    root: Path, opening: Callable[..., pools.DedupePool]
) -> None:
    pool = opening()
    samples.store(pool, "a", A[: 3 * MIB])
    (first,) = samples.container_files(root, "data")
    aside = first.read_bytes()
    first.unlink()
    samples.store_again(pool, "b", A[: 3 * MIB])
    first.write_bytes(aside)
    pool.close()
    pool = opening()
    assert len(samples.container_files(root, "data")) == 2
    wanted = samples.fingerprint(A[:SEGMENT], pool._opened().header.key)
    for path in samples.container_files(root, "data"):
        records = containers.read_footer(path, pool._opened().header.id).records
        record = next(one for one in records if one.fingerprint == wanted)
        samples.flip(path, record)
        report = scrub(pool)
        healed = path == samples.container_files(root, "data")[0]
        assert (report.false, report.healed, bool(report.wounded)) == (1 if healed else 2, int(healed), not healed)
        if healed:
            assert samples.load(pool, "a") == samples.load(pool, "b") == A[: 3 * MIB]


def test_a_list_of_damage_that_is_damaged_itself_is_a_finding_and_costs_nothing_else(
    stored: pools.DedupePool, root: Path
) -> None:
    path, record = samples.locate(stored, A[2 * MIB : 2 * MIB + SEGMENT])
    samples.flip(path, record)
    scrub(stored)
    listed = root / "damage.json"
    listed.write_bytes(listed.read_bytes()[:-20])
    stored.close()
    report = scrub(stored)
    assert (report.false, report.lost) == (1, 1)
    assert set(report.wounded) == {"a", "a2"}
    assert scrub(stored).findings == ((path.name, "1 segments are false"),)


def test_images_that_are_deleted_while_they_are_looked_at_are_no_damage(
    stored: pools.DedupePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = wounds.Wounds._follow
    left = [one.label.id for one in stored.list()]

    def deleted_meanwhile(self: wounds.Wounds, fingerprint: bytes) -> extents.Extents:
        # Another process deletes an image whenever a page of it is followed, and collects at once.
        if left:
            stored.delete(left.pop())
            stored.reclaim(meter=meters.Meter())
        return look(self, fingerprint)

    monkeypatch.setattr(wounds.Wounds, "_follow", deleted_meanwhile)
    followed, found = wounds.of_all(stored._opened(), meters.Meter())
    assert left == []
    assert found == {}
    assert followed.missing == set()
