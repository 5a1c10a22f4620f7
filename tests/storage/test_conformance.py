"""What every storage unit does when all goes well: images come back bit for bit, and say what they are."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from pathlib import Path

import pytest
import unit_samples as samples
from blake3 import blake3
from unit_samples import MIB, SampleDisk

from reconciler.base import disks, errors, extents, meters
from reconciler.storage import units


@pytest.mark.parametrize("size", [0, 1, 511, MIB - 1, MIB, MIB + 1, 3 * MIB + 777])
def test_a_full_of_any_size_comes_back_bit_for_bit(unit: units.StorageUnit, size: int) -> None:
    data = samples.noise(size, 1)
    commit, written = samples.store(unit, samples.label(), {"system.img": data})
    assert samples.load(unit, "img-1", "system.img") == data
    record = commit.label.disks[0]
    assert record == written["system.img"].record
    assert (record.name, record.size, record.sector) == ("system.img", size, 512)
    assert record.digest == samples.digest(data)
    assert record.blake3 == blake3(data).hexdigest()
    assert written["system.img"].changed is None
    assert commit.base is None
    opened = unit.open("img-1")
    assert opened.block_digests("system.img") == samples.block_list(data)
    assert opened.base is None
    opened.close()


def test_holes_are_not_read_stay_holes_and_are_not_stored(unit: units.StorageUnit) -> None:
    data = samples.patch(bytes(40 * MIB + 5), 3 * MIB + 100, samples.noise(2 * MIB, 2))
    disk = SampleDisk("d", data, data_extents=[(3 * MIB + 100, 2 * MIB), (20 * MIB, MIB)])
    commit, _ = samples.store(unit, samples.label(), [disk])
    assert samples.load(unit, "img-1", "d") == data
    assert commit.label.disks[0].blake3 == blake3(data).hexdigest()
    assert commit.label.disks[0].digest == samples.digest(data)
    assert extents.total(disk.reads) <= 4 * MIB
    assert 2 * MIB <= commit.stored_bytes <= 3.5 * MIB
    opened = unit.open("img-1")
    assert opened.disk("d").extents() == ((3 * MIB, 3 * MIB),)
    opened.close()


def test_an_incremental_with_known_changes_reads_only_the_blocks_around_them(unit: units.StorageUnit) -> None:
    old = samples.noise(8 * MIB + 300, 3)
    new = samples.patch(samples.patch(old, 2 * MIB - 10, b"x" * 20), 8 * MIB + 10, b"tail")
    samples.store(unit, samples.label("full"), {"d": old})
    disk = SampleDisk("d", new)
    changed = ((2 * MIB - 10, 20), (5 * MIB, 512), (8 * MIB + 10, 4))
    commit, written = samples.store(unit, samples.label("inc", parent="full"), [disk], parent="full", changed=changed)
    assert sorted(disk.reads) == [(MIB, MIB), (2 * MIB, MIB), (5 * MIB, MIB), (8 * MIB, 300)]
    assert samples.load(unit, "inc", "d") == new
    assert samples.load(unit, "full", "d") == old
    assert written["d"].changed == samples.different(old, new)
    assert (commit.label.disks[0].digest, commit.label.disks[0].blake3) == (samples.digest(new), None)
    assert commit.base == (None if unit.standalone else "full")
    assert commit.stored_bytes < 3 * MIB


def test_an_incremental_without_known_changes_finds_them_by_reading_everything_once(unit: units.StorageUnit) -> None:
    old = samples.noise(6 * MIB, 4)
    new = samples.patch(old, 4 * MIB + 4096, samples.noise(512, 5))
    samples.store(unit, samples.label("full"), {"d": old})
    disk = SampleDisk("d", new)
    commit, written = samples.store(unit, samples.label("inc", parent="full"), [disk], parent="full")
    assert extents.normalise(disk.reads) == ((0, 6 * MIB),)
    assert extents.total(disk.reads) == 6 * MIB
    assert written["d"].changed == ((4 * MIB, MIB),)
    assert samples.load(unit, "inc", "d") == new
    assert (commit.label.disks[0].digest, commit.label.disks[0].blake3) == (
        samples.digest(new),
        blake3(new).hexdigest(),
    )
    assert commit.stored_bytes < 2 * MIB


def test_an_incremental_without_any_change_stores_next_to_nothing(unit: units.StorageUnit) -> None:
    data = samples.noise(3 * MIB, 6)
    samples.store(unit, samples.label("full"), {"d": data})
    for image, changed in (("inc-1", ()), ("inc-2", None)):
        commit, written = samples.store(
            unit, samples.label(image, parent="full"), {"d": data}, parent="full", changed=changed
        )
        assert written["d"].changed == ()
        assert commit.stored_bytes < 64 << 10
        assert samples.load(unit, image, "d") == data


def test_changes_that_a_unit_remembers_are_those_relative_to_the_direct_base(unit: units.StorageUnit) -> None:
    versions = [samples.noise(4 * MIB, 7)]
    samples.store(unit, samples.label("i0"), {"d": versions[0]})
    for step in (1, 2):
        versions.append(samples.patch(versions[-1], step * MIB, b"changed"))
        samples.store(
            unit, samples.label(f"i{step}", parent=f"i{step - 1}"), {"d": versions[-1]}, parent=f"i{step - 1}"
        )
    opened = unit.open("i2")
    remembered = opened.changed("d", "i1")
    assert remembered in ([((2 * MIB, MIB),), None] if unit.standalone else [((2 * MIB, MIB),)])
    assert opened.changed("d", "some-other-image") is None
    with pytest.raises(errors.NotFound):
        opened.disk("e")
    opened.close()
    full = unit.open("i0")
    # A unit without chains may compare any two of its images; one with chains knows its own steps only.
    assert full.changed("d", "i1") in ([((MIB, MIB),), None] if unit.standalone else [None])
    full.close()


def test_every_image_of_a_chain_of_five_comes_back(unit: units.StorageUnit) -> None:
    versions = {"i0": samples.noise(5 * MIB + 17, 8)}
    samples.store(unit, samples.label("i0"), {"d": versions["i0"]})
    for step in range(1, 6):
        parent = f"i{step - 1}"
        new = samples.patch(versions[parent], step * 900_000, samples.noise(70_000, 80 + step))
        changed = ((step * 900_000, 70_000),) if step % 2 else None
        samples.store(unit, samples.label(f"i{step}", parent=parent), {"d": new}, parent=parent, changed=changed)
        versions[f"i{step}"] = new
    for image, data in versions.items():
        assert samples.load(unit, image, "d") == data
        assert unit.verify(image, meter=meters.Meter()) == ()


def test_a_block_that_became_zero_reads_as_zero_over_a_parent_with_data(unit: units.StorageUnit) -> None:
    old = samples.noise(5 * MIB, 9)
    wiped = samples.patch(old, MIB, bytes(MIB))
    punched = samples.patch(wiped, 3 * MIB, bytes(2 * MIB))
    samples.store(unit, samples.label("i0"), {"d": old})
    samples.store(unit, samples.label("i1", parent="i0"), {"d": wiped}, parent="i0", changed=((MIB, MIB),))
    sparse = SampleDisk("d", punched, data_extents=[(0, MIB), (2 * MIB, MIB)])
    _, written = samples.store(unit, samples.label("i2", parent="i1"), [sparse], parent="i1")
    assert written["d"].changed == ((3 * MIB, 2 * MIB),)
    assert samples.load(unit, "i1", "d") == wiped
    assert samples.load(unit, "i2", "d") == punched
    opened = unit.open("i2")
    assert opened.disk("d").extents() == ((0, MIB), (2 * MIB, MIB))
    opened.close()
    samples.store(unit, samples.label("i3", parent="i2"), {"d": old}, parent="i2")
    assert samples.load(unit, "i3", "d") == old


def test_a_disk_that_grew_is_written_whole_beside_one_that_only_changed(unit: units.StorageUnit) -> None:
    old = {"a": samples.noise(2 * MIB, 10), "b": samples.noise(2 * MIB, 11)}
    new = {"a": old["a"] + samples.noise(MIB + 9, 12), "b": samples.patch(old["b"], 5, b"b")}
    samples.store(unit, samples.label("full"), old)
    writer = unit.begin(samples.label("inc", parent="full"), ["a", "b"])
    grown = writer.write(SampleDisk("a", new["a"]), meter=meters.Meter())
    edited = writer.write(SampleDisk("b", new["b"]), meter=meters.Meter(), parent="full", changed=((5, 1),))
    commit = writer.commit(samples.label("inc", parent="full"))
    assert grown.changed is None
    assert edited.changed == ((0, MIB),)
    assert commit.base == (None if unit.standalone else "full")
    for name in new:
        assert samples.load(unit, "inc", name) == new[name]


def test_a_parent_of_another_size_or_without_the_disk_is_refused(unit: units.StorageUnit) -> None:
    samples.store(unit, samples.label("full"), {"d": samples.noise(MIB, 13)})
    for disk in (SampleDisk("d", bytes(MIB + 1)), SampleDisk("other", bytes(MIB))):
        writer = unit.begin(samples.label("inc", parent="full"), [disk.name])
        with pytest.raises(errors.HoldfastError):
            writer.write(disk, meter=meters.Meter(), parent="full")
        writer.abort()
    assert samples.held(unit).keys() == {"full"}


def test_two_disks_are_written_by_two_threads_and_kept_in_the_order_of_the_start(unit: units.StorageUnit) -> None:
    contents = {"b.img": samples.noise(6 * MIB, 14), "a.img": samples.noise(5 * MIB, 15)}
    writer = unit.begin(samples.label(), list(contents))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(writer.write, SampleDisk(name, contents[name]), meter=meters.Meter())
            for name in ("a.img", "b.img")
        ]
        for future in futures:
            future.result()
    commit = writer.commit(samples.label())
    assert [record.name for record in commit.label.disks] == ["b.img", "a.img"]
    for name, data in contents.items():
        assert samples.load(unit, "img-1", name) == data


@pytest.mark.parametrize(
    "names", [("a.img", "a.img.digests", "a.img.changed"), ("x/y z.img", "x_y_z.img"), ("é" * 80, "Ü" * 80, ".", "..")]
)
def test_no_two_disks_collide_whatever_their_names(unit: units.StorageUnit, names: tuple[str, ...]) -> None:
    contents = {name: samples.noise(MIB + index, 20 + index) for index, name in enumerate(names)}
    samples.store(unit, samples.label("i0"), contents)
    edited = {name: samples.patch(data, 0, b"edited") for name, data in contents.items()}
    samples.store(unit, samples.label("i1", parent="i0"), edited, parent="i0")
    for name in names:
        assert samples.load(unit, "i0", name) == contents[name]
        assert samples.load(unit, "i1", name) == edited[name]


def test_many_threads_read_one_disk_at_once(unit: units.StorageUnit) -> None:
    data = samples.noise(6 * MIB + 123, 16)
    samples.store(unit, samples.label(), {"d": data})
    opened = unit.open("img-1")
    disk = opened.disk("d")
    ranges = [(at, min(333_333, len(data) - at)) for at in range(0, len(data), 111_111)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: bytes(disk.pread(*span)), ranges))
    assert found == [data[at : at + length] for at, length in ranges]
    with pytest.raises(ValueError, match="beyond"):
        disk.pread(len(data) - 1, 2)
    opened.close()
    opened.close()


def test_an_image_is_visible_only_after_its_commit(
    unit: units.StorageUnit, reopen: Callable[..., units.StorageUnit]
) -> None:
    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", samples.noise(2 * MIB, 17)), meter=meters.Meter())
    assert samples.held(unit) == {}
    assert unit.unreadable() == ()
    with pytest.raises(errors.ImageMissing):
        unit.open("img-1")
    writer.commit(samples.label())
    assert samples.held(unit).keys() == {"img-1"}
    assert samples.held(reopen()).keys() == {"img-1"}


def test_what_a_unit_lists_is_what_was_committed(
    unit: units.StorageUnit, reopen: Callable[..., units.StorageUnit]
) -> None:
    commits = [
        samples.store(unit, samples.label("a-1"), {"d": samples.noise(MIB, 18)})[0],
        samples.store(unit, samples.label("b-1", slug="other"), {"d": b"", "e": samples.noise(10, 19)})[0],
        samples.store(unit, samples.label("a-2", parent="a-1"), {"d": samples.noise(MIB, 20)}, parent="a-1")[0],
    ]
    expected = {
        commit.label.id: units.Held(label=commit.label, stored_bytes=commit.stored_bytes, base=commit.base)
        for commit in commits
    }
    assert samples.held(unit) == expected
    fresh = reopen()
    assert samples.held(fresh) == expected
    opened = fresh.open("a-2")
    assert opened.label == commits[2].label
    opened.close()


def test_a_label_may_learn_its_state_at_commit_but_not_another_identity(unit: units.StorageUnit) -> None:
    writer = unit.begin(samples.label(), ["a", "b"])
    writer.write(SampleDisk("b", samples.noise(100, 21)), meter=meters.Meter())
    with pytest.raises(errors.UnitError):
        writer.commit(samples.label("img-2"))
    writer.abort()
    writer = unit.begin(samples.label(), ["a", "b"])
    writer.write(SampleDisk("b", samples.noise(100, 21)), meter=meters.Meter())
    commit = writer.commit(samples.label(state="Partial"))
    assert commit.label.state == "Partial"
    assert [record.name for record in commit.label.disks] == ["b"]
    assert samples.held(unit)["img-1"].label == commit.label


def test_a_complete_image_must_hold_all_its_disks(unit: units.StorageUnit) -> None:
    writer = unit.begin(samples.label(), ["a", "b"])
    writer.write(SampleDisk("a", bytes(10)), meter=meters.Meter())
    with pytest.raises(errors.UnitError, match="b"):
        writer.commit(samples.label())
    writer.abort()
    assert samples.held(unit) == {}


def test_delete_takes_an_image_away_and_may_be_repeated(
    unit: units.StorageUnit, root: Path, factory: samples.Factory
) -> None:
    before = samples.tree(root)
    samples.store(unit, samples.label("keep", slug="other"), {"d": samples.noise(MIB, 22)})
    kept = samples.tree(root)
    samples.store(unit, samples.label(), {"d": samples.noise(4 * MIB, 23)})
    for _ in range(2):
        unit.delete("img-1")
        assert samples.held(unit).keys() == {"keep"}
    with pytest.raises(errors.ImageMissing):
        unit.open("img-1")
    unit.reclaim(meter=meters.Meter())
    assert samples.load(unit, "keep", "d") == samples.noise(MIB, 22)
    if factory.exact:
        assert samples.tree(root) == kept
        unit.delete("keep")
        assert samples.tree(root) == before


def test_the_id_of_a_deleted_image_may_be_used_again(unit: units.StorageUnit) -> None:
    samples.store(unit, samples.label(), {"d": samples.noise(MIB, 24)})
    with pytest.raises(errors.UnitError):
        unit.begin(samples.label(), ["d"])
    unit.delete("img-1")
    samples.store(unit, samples.label(), {"d": samples.noise(MIB, 25)})
    assert samples.load(unit, "img-1", "d") == samples.noise(MIB, 25)


def test_capacity_counts_what_images_occupy(unit: units.StorageUnit) -> None:
    empty = unit.capacity()
    samples.store(unit, samples.label(), {"d": samples.noise(8 * MIB, 26)})
    filled = unit.capacity()
    assert 8 * MIB <= filled.used - empty.used <= 9 * MIB
    assert 0 < filled.free <= filled.total
    unit.delete("img-1")
    unit.reclaim(meter=meters.Meter())
    after = unit.capacity()
    assert after.used - after.reclaimable <= empty.used + MIB


def test_a_meter_counts_what_was_covered_and_what_was_sent(unit: units.StorageUnit) -> None:
    data = samples.patch(bytes(6 * MIB), MIB, samples.noise(2 * MIB, 27))
    meter = meters.Meter()
    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", data, data_extents=[(0, 4 * MIB)]), meter=meter)
    writer.commit(samples.label())
    found = meter.reading()
    assert found.scanned == 6 * MIB
    assert found.non_zero == 2 * MIB
    assert found.sent == 2 * MIB


def test_a_disk_of_an_image_can_be_the_source_of_another(
    unit: units.StorageUnit, factory: samples.Factory, tmp_path: Path
) -> None:
    data = samples.noise(3 * MIB + 1, 28)
    first, _ = samples.store(unit, samples.label(), {"d": data})
    path = tmp_path / "second"
    path.mkdir()
    second = factory.open(path, factory.create(path), samples.OWNER)
    opened = unit.open("img-1")
    source: disks.Disk = opened.disk("d")
    copied, _ = samples.store(second, samples.label(), [source])
    assert copied.label.disks == first.label.disks
    assert samples.load(second, "img-1", "d") == data
    opened.close()
    second.close()


def test_what_an_image_would_free_is_known_before_and_nothing_is_touched(unit: units.StorageUnit) -> None:
    stored, _ = samples.store(unit, samples.label("a"), {"d": samples.noise(4 * MIB, 1)})
    samples.store(unit, samples.label("b"), {"d": samples.noise(2 * MIB, 2)})
    said, exact = unit.freed_by(["a", "unknown"])
    assert exact and 4 * MIB <= said <= stored.stored_bytes + MIB
    assert unit.freed_by([]) == (0, True)
    assert unit.freed_by(["a", "b"])[0] > said
    before = unit.capacity()
    unit.delete("a")
    unit.reclaim(meter=meters.Meter())
    assert unit.freed_by(["a"]) == (0, True)
    freed = before.used - unit.capacity().used
    assert abs(freed - said) <= 64 << 10


@pytest.mark.parametrize("count", [3, 12])
def test_many_images_free_what_they_free_together(unit: units.StorageUnit, count: int) -> None:
    for number in range(count):
        samples.store(unit, samples.label(f"img-{number}"), {"d": samples.noise(MIB, number)})
    ids = [f"img-{number}" for number in range(count)]
    each = [unit.freed_by([one])[0] for one in ids]
    said, exact = unit.freed_by([*ids, *ids, "unknown"])
    # Beside what each has for itself, what only they share; in a pool, a few pages.
    assert exact and sum(each) <= said <= sum(each) + MIB
