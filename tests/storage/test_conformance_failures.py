"""What every storage unit does when something goes wrong: it stops, says what, and keeps what it had."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import unit_samples as samples
from unit_samples import MIB, SampleDisk

from reconciler.base import disks, errors, meters
from reconciler.storage import identities, units


def _abort_leaves_nothing(unit: units.StorageUnit, root: Path, before: set[str], used: int, *, exact: bool) -> None:
    assert samples.held(unit) == {}
    assert unit.unreadable() == ()
    if exact:
        assert samples.tree(root) == before
    else:
        unit.sweep([])
        unit.reclaim(meter=meters.Meter())
        assert not [path for path in samples.tree(root) if "/.tmp-" in f"/{path}"]
        assert unit.capacity().used <= used + MIB


def test_abort_leaves_nothing_and_may_be_repeated(
    unit: units.StorageUnit, root: Path, factory: samples.Factory
) -> None:
    before, used = samples.tree(root), unit.capacity().used
    writer = unit.begin(samples.label(), ["a", "b"])
    writer.write(SampleDisk("a", samples.noise(3 * MIB, 1)), meter=meters.Meter())
    writer.abort()
    writer.abort()
    _abort_leaves_nothing(unit, root, before, used, exact=factory.exact)
    with pytest.raises(errors.HoldfastError):
        writer.commit(samples.label())
    assert samples.held(unit) == {}


def test_a_cancelled_write_stops_at_once_and_leaves_nothing(
    unit: units.StorageUnit, root: Path, factory: samples.Factory
) -> None:
    before, used = samples.tree(root), unit.capacity().used
    meter = meters.Meter()
    disk = SampleDisk("d", samples.noise(12 * MIB, 2), before=lambda reads: meter.cancel() if reads == 3 else None)
    writer = unit.begin(samples.label(), ["d"])
    with pytest.raises(errors.Cancelled):
        writer.write(disk, meter=meter)
    # What was being read ahead may still come; nothing is begun any more.
    assert len(disk.reads) < 10
    writer.abort()
    _abort_leaves_nothing(unit, root, before, used, exact=factory.exact)


def test_a_cancelled_verification_stops(unit: units.StorageUnit) -> None:
    samples.store(unit, samples.label(), {"d": samples.noise(2 * MIB, 3)})
    meter = meters.Meter()
    meter.cancel()
    with pytest.raises(errors.Cancelled):
        unit.verify("img-1", meter=meter)


class _ShortDisk(SampleDisk):
    def pread(self, offset: int, length: int) -> disks.Buffer:
        return super().pread(offset, length)[: length - 1]


class _BrokenDisk(SampleDisk):
    def pread(self, offset: int, length: int) -> disks.Buffer:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("kind", [_ShortDisk, _BrokenDisk])
def test_a_source_that_fails_is_not_blamed_on_the_unit(
    unit: units.StorageUnit, root: Path, factory: samples.Factory, kind: type[SampleDisk]
) -> None:
    before, used = samples.tree(root), unit.capacity().used
    writer = unit.begin(samples.label(), ["d"])
    with pytest.raises(errors.SourceError, match="d"):
        writer.write(kind("d", samples.noise(2 * MIB, 4)), meter=meters.Meter())
    with pytest.raises(errors.HoldfastError):
        writer.commit(samples.label(state="Partial"))
    writer.abort()
    _abort_leaves_nothing(unit, root, before, used, exact=factory.exact)


def test_begin_starts_over_what_an_earlier_process_left(
    reopen: Callable[..., units.StorageUnit], root: Path, factory: samples.Factory, tmp_path: Path
) -> None:
    unit = reopen()
    left = unit.begin(samples.label(), ["d", "e"])
    left.write(SampleDisk("d", samples.noise(2 * MIB, 5)), meter=meters.Meter())
    fresh = factory.open(root, identities.read(root, "unit"), samples.OWNER)
    samples.store(fresh, samples.label(), {"d": samples.noise(MIB, 6)})
    if factory.exact:
        assert not [path for path in samples.tree(root) if "/." in path], "what was left is still there"
    assert samples.load(fresh, "img-1", "d") == samples.noise(MIB, 6)
    with pytest.raises(errors.HoldfastError):
        left.write(SampleDisk("e", samples.noise(MIB, 5)), meter=meters.Meter())
        left.commit(samples.label())
    left.abort()
    assert samples.load(fresh, "img-1", "d") == samples.noise(MIB, 6)
    fresh.close()


def test_sweep_keeps_the_writers_that_live(unit: units.StorageUnit) -> None:
    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", samples.noise(MIB, 7)), meter=meters.Meter())
    unit.sweep(["img-1"])
    writer.commit(samples.label())
    assert samples.load(unit, "img-1", "d") == samples.noise(MIB, 7)


def test_a_label_that_cannot_be_read_is_left_out_and_named(unit: units.StorageUnit, root: Path) -> None:
    samples.store(unit, samples.label("good"), {"d": b"good"})
    samples.store(unit, samples.label("bad"), {"d": b"bad"})
    path = samples.label_file(root, "bad")
    path.write_bytes(path.read_bytes().replace(b"obl-gold", b"obl-cold"))
    assert samples.held(unit).keys() == {"good"}
    (named,) = unit.unreadable()
    assert "bad" in named
    with pytest.raises(errors.ImageDamaged, match="bad"):
        unit.open("bad")
    path.write_bytes(b"")
    assert samples.held(unit).keys() == {"good"}
    with pytest.raises(errors.ImageDamaged, match="bad"):
        unit.open("bad")


def test_an_image_in_a_newer_format_is_refused_and_kept(unit: units.StorageUnit, root: Path) -> None:
    samples.store(unit, samples.label(), {"d": samples.noise(MIB, 8)})
    path = samples.label_file(root, "img-1")
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "formatVersion": document["formatVersion"] + 9}))
    with pytest.raises(errors.FormatTooNew, match="img-1"):
        unit.open("img-1")
    assert samples.held(unit) == {}
    assert len(unit.unreadable()) == 1
    unit.sweep([])
    assert path.exists()


def test_an_image_that_is_not_there_is_missing(unit: units.StorageUnit) -> None:
    for name in ("img-9", "../unit", "", ".", "a/b"):
        with pytest.raises(errors.ImageMissing):
            unit.open(name)
    with pytest.raises(errors.ImageMissing):
        unit.verify("img-9", meter=meters.Meter())


@pytest.mark.parametrize(("image", "slug"), [("../x", "c"), ("a/b", "c"), (".x", "c"), ("", "c"), ("x" * 300, "c")])
def test_an_id_that_is_no_file_name_is_refused(unit: units.StorageUnit, root: Path, image: str, slug: str) -> None:
    before = samples.tree(root.parent)
    with pytest.raises(errors.UnitError):
        unit.begin(samples.label(image, slug=slug), ["d"])
    assert samples.tree(root.parent) == before


@pytest.mark.parametrize("where", ["full", "incremental"])
def test_a_damaged_block_is_found_by_reading_and_by_verifying(unit: units.StorageUnit, root: Path, where: str) -> None:
    old = samples.noise(6 * MIB, 9)
    new = samples.patch(old, 4 * MIB, samples.noise(MIB, 10))
    samples.store(unit, samples.label("i0"), {"c": b"fine", "d": old})
    samples.store(unit, samples.label("i1", parent="i0"), {"c": b"fine", "d": new}, parent="i0")
    offset = {"full": 2 * MIB + 5000, "incremental": 4 * MIB + 5000}[where]
    samples.flip(root, new[offset : offset + 64])
    block = offset // MIB * MIB
    opened = unit.open("i1")
    disk = opened.disk("d")
    assert bytes(disk.pread(0, MIB)) == new[:MIB]
    with pytest.raises(errors.ImageDamaged, match=rf"i1.*d.*{block}"):
        disk.pread(block + 17, 3)
    with pytest.raises(errors.ImageDamaged, match=str(block)):
        disk.pread(0, 6 * MIB)
    opened.close()
    (damage,) = unit.verify("i1", meter=meters.Meter())
    assert (damage.image, damage.disk, damage.offset, damage.length) == ("i1", "d", block, MIB)
    assert len(unit.verify("i0", meter=meters.Meter())) == (1 if where == "full" else 0)


def test_what_replaces_a_damaged_image_takes_its_place_when_it_is_committed_and_not_before(
    unit: units.StorageUnit, root: Path
) -> None:
    old = samples.noise(4 * MIB, 9)
    new = samples.patch(old, 3 * MIB, samples.noise(MIB, 10))
    samples.store(unit, samples.label("i0"), {"d": old})
    samples.store(unit, samples.label("i1", parent="i0"), {"d": new}, parent="i0")
    samples.flip(root, old[MIB + 5000 : MIB + 5064])
    with pytest.raises(errors.UnitError, match="already"):
        unit.begin(samples.label("i0"), ["d"])
    for done in (False, True):
        assert len(unit.verify("i0", meter=meters.Meter())) == 1
        reader = unit.open("i0")
        reading = reader.disk("d")
        writer = unit.begin(samples.label("i0"), ["d"], replaces=True)
        writer.write(SampleDisk("d", old), meter=meters.Meter())
        assert bytes(reading.pread(0, MIB)) == old[:MIB]
        if done:
            writer.commit(samples.label("i0"))
        else:
            writer.abort()
        # Who reads the old one meanwhile goes on, what builds on it too.
        assert bytes(reading.pread(2 * MIB, 2 * MIB)) == old[2 * MIB :]
        reader.close()
    for image, data in (("i0", old), ("i1", new)):
        assert unit.verify(image, meter=meters.Meter()) == ()
        assert samples.load(unit, image, "d") == data
    assert set(samples.held(unit)) == {"i0", "i1"} and unit.sweep([]) == 0
    unit.reclaim(meter=meters.Meter())
    assert samples.load(unit, "i1", "d") == new


def test_an_owner_elsewhere_makes_the_unit_read_only(reopen: Callable[..., units.StorageUnit], root: Path) -> None:
    samples.store(reopen(), samples.label(), {"d": samples.noise(MIB, 11)})
    before = samples.tree(root)
    for owner in (samples.FOREIGNER, None):
        unit = reopen(owner)
        with pytest.raises(errors.UnitReadOnly):
            unit.begin(samples.label("img-2"), ["d"])
        with pytest.raises(errors.UnitReadOnly):
            unit.delete("img-1")
        with pytest.raises(errors.UnitReadOnly):
            unit.sweep([])
        assert samples.held(unit).keys() == {"img-1"}
        assert samples.load(unit, "img-1", "d") == samples.noise(MIB, 11)
        assert unit.verify("img-1", meter=meters.Meter()) == ()
        assert samples.tree(root) == before


def test_an_empty_mount_point_is_offline_and_never_empty(unit: units.StorageUnit, root: Path) -> None:
    samples.store(unit, samples.label(), {"d": b"data"})
    root.rename(root.with_name("unmounted"))
    root.mkdir()
    with pytest.raises(errors.UnitOffline):
        unit.require_online()
    with pytest.raises(errors.UnitOffline):
        list(unit.list())
    with pytest.raises(errors.UnitOffline):
        unit.open("img-1")
    with pytest.raises(errors.UnitOffline):
        unit.begin(samples.label("img-2"), ["d"])
    with pytest.raises(errors.UnitOffline):
        unit.delete("img-1")
    assert samples.tree(root) == set()


def test_another_unit_in_its_place_is_offline(unit: units.StorageUnit, root: Path) -> None:
    unit.require_online()
    identities.write(root, identities.new(identities.read(root, "unit").type, samples.OWNER))
    with pytest.raises(errors.UnitOffline, match="holds unit"):
        unit.require_online()
    with pytest.raises(errors.UnitOffline, match="holds unit"):
        list(unit.list())


@pytest.fixture
def small(tmp_path: Path, factory: samples.Factory) -> Iterator[Path]:
    """A unit's root on a file system of its own that a large image does not fit on."""
    path = tmp_path / "small"
    path.mkdir()
    options = f"size={factory.full_size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount of a tmpfs is impossible here: {done.stderr.strip()}")
    try:
        factory.create(path)
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_unit_says_so_and_keeps_what_it_had(small: Path, factory: samples.Factory) -> None:
    unit = factory.open(small, identities.read(small, "unit"), samples.OWNER)
    samples.store(unit, samples.label("first", slug="other"), {"d": samples.noise(2 * MIB, 12)})
    before, used = samples.tree(small), unit.capacity().used
    writer = unit.begin(samples.label("large"), ["d"])
    with pytest.raises(errors.UnitFull):
        writer.write(SampleDisk("d", samples.noise(factory.full_size, 13)), meter=meters.Meter())
        writer.commit(samples.label("large"))
    writer.abort()
    assert samples.held(unit).keys() == {"first"}
    assert samples.load(unit, "first", "d") == samples.noise(2 * MIB, 12)
    if factory.exact:
        assert samples.tree(small) == before
    unit.reclaim(meter=meters.Meter())
    assert unit.capacity().used <= used + MIB
    samples.store(unit, samples.label("second"), {"d": samples.noise(2 * MIB, 14)})
    assert samples.load(unit, "second", "d") == samples.noise(2 * MIB, 14)
    unit.close()


def test_a_file_system_without_writes_is_read_only(small: Path, factory: samples.Factory) -> None:
    unit = factory.open(small, identities.read(small, "unit"), samples.OWNER)
    samples.store(unit, samples.label(), {"d": samples.noise(MIB, 15)})
    unit.close()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    unit = factory.open(small, identities.read(small, "unit"), samples.OWNER)
    with pytest.raises(errors.UnitReadOnly):
        unit.begin(samples.label("img-2"), ["d"])
    with pytest.raises(errors.UnitReadOnly):
        unit.delete("img-1")
    assert samples.load(unit, "img-1", "d") == samples.noise(MIB, 15)
    unit.close()
