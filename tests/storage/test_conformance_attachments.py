"""Documents that an image carries beside its disks: pages come back in order, cost what is new, and are proven."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import unit_samples as samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit_samples import MIB, SampleDisk

from reconciler.base import errors, meters
from reconciler.storage import units

DISK = samples.noise(300_000, 90)
#: A hundred pages that nothing compresses.
PAGES = [samples.noise(30_000, 1000 + number) for number in range(100)]
Attached = Mapping[str, Iterable[bytes]]


def store(unit: units.StorageUnit, image: str, attached: Attached, *, parent: str | None = None) -> units.Commit:
    """Commit an image of the same one disk every time, so that what it adds is what is attached to it."""
    label = samples.label(image, parent=parent)
    return samples.store(unit, label, {"d": DISK}, parent=parent, attached=attached)[0]


def replaced(pages: list[bytes], *numbers: int) -> list[bytes]:
    """``pages`` with new ones at some places."""
    return [samples.noise(30_000, 5000 + at) if at in numbers else page for at, page in enumerate(pages)]


def verify(unit: units.StorageUnit, image: str) -> list[tuple[str, int, int]]:
    """Where ``verify`` finds attachments damaged."""
    found = unit.verify(image, meter=meters.Meter())
    assert all(one.attachment for one in found)
    return [(one.disk, one.offset, one.length) for one in found]


def test_pages_come_back_in_order_whatever_they_are(
    unit: units.StorageUnit, reopen: Callable[..., units.StorageUnit]
) -> None:
    same = samples.noise(777, 1)
    attached = {
        "files": [b"x", bytes(MIB), same, b"text " * 9_000, same, samples.noise(MIB, 2), bytes(5)],
        "a.b-c": [],
        "0": [same],
        "z" * 64: [b"long name"],
    }
    commit = store(unit, "img-1", attached)
    for again in (unit, reopen()):
        assert samples.load_attached(again, "img-1") == attached
        assert list(samples.load_attached(again, "img-1")) == list(attached)
        assert again.verify("img-1", meter=meters.Meter()) == ()
        assert samples.held(again)["img-1"].stored_bytes == commit.stored_bytes >= MIB
        assert samples.load(again, "img-1", "d") == DISK


def test_an_image_without_attachments_has_none(unit: units.StorageUnit) -> None:
    store(unit, "img-1", {})
    opened = unit.open("img-1")
    assert opened.attachments() == ()
    with pytest.raises(errors.NotFound, match="no attachment files"):
        opened.attachment("files")
    opened.close()


def test_two_hundred_pages_take_far_less_than_a_second(unit: units.StorageUnit) -> None:
    pages = [samples.noise(32 << 10, number) + bytes(32 << 10) for number in range(200)]
    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", DISK), meter=meters.Meter())
    began = time.process_time()
    writer.attach("files", pages)
    assert time.process_time() - began < 1
    writer.commit(samples.label())
    assert samples.load_attached(unit, "img-1") == {"files": pages}


def test_pages_that_the_parent_holds_are_not_stored_again(unit: units.StorageUnit) -> None:
    versions = {"i0": PAGES, "i1": PAGES, "i2": replaced(PAGES, 7), "i3": [*replaced(PAGES, 7, 8)[1:], b"new"]}
    commits = {"i0": store(unit, "i0", {"files": PAGES})}
    for image, parent in (("i1", "i0"), ("i2", "i1"), ("i3", "i2")):
        commits[image] = store(unit, image, {"files": versions[image]}, parent=parent)
    assert commits["i0"].stored_bytes > 3_000_000
    assert commits["i1"].stored_bytes < 30_000
    assert commits["i2"].stored_bytes < 30_000 + 30_000
    assert commits["i3"].stored_bytes < 30_000 + 30_000
    for image, pages in versions.items():
        assert samples.load_attached(unit, image) == {"files": pages}
        assert unit.verify(image, meter=meters.Meter()) == ()
        assert commits[image].base == (None if unit.standalone or image == "i0" else f"i{int(image[1]) - 1}")


def test_an_attachment_never_makes_a_parent_the_base(unit: units.StorageUnit) -> None:
    store(unit, "i0", {"files": PAGES})
    full = samples.label("i1", parent="i0")
    writer = unit.begin(full, ["d"])
    writer.write(SampleDisk("d", DISK), meter=meters.Meter())
    writer.attach("files", PAGES, parent="i0")
    commit = writer.commit(full)
    assert commit.base is None
    assert commit.stored_bytes < 60_000 if unit.standalone else commit.stored_bytes > 3_000_000
    unit.delete("i0")
    unit.reclaim(meter=meters.Meter())
    assert samples.load_attached(unit, "i1") == {"files": PAGES}
    assert unit.verify("i1", meter=meters.Meter()) == ()


def test_a_parent_without_the_attachment_or_with_another_one_is_none(unit: units.StorageUnit) -> None:
    store(unit, "i0", {"other": PAGES[:3]})
    store(unit, "i1", {"files": PAGES[:3]}, parent="i0")
    store(unit, "i2", {"files": PAGES[2:5], "other": PAGES[:1]}, parent="i1")
    assert samples.load_attached(unit, "i1") == {"files": PAGES[:3]}
    assert samples.load_attached(unit, "i2") == {"files": PAGES[2:5], "other": PAGES[:1]}


def test_what_is_deleted_gives_back_its_pages_but_not_those_still_used(unit: units.StorageUnit) -> None:
    first = store(unit, "i0", {"files": PAGES})
    both = {"files": replaced(PAGES[:40], 3)}
    if unit.standalone:
        store(unit, "i1", both, parent="i0")
    else:
        store(unit, "i1", both)
    kept = 0 if not unit.standalone else 39 * 30_000
    said, exact = unit.freed_by(["i0"])
    assert exact and abs(said - (first.stored_bytes - kept)) < 500_000
    before = unit.capacity().used
    unit.delete("i0")
    if unit.standalone:
        assert abs(unit.capacity().reclaimable - said) < 64 << 10
    unit.reclaim(meter=meters.Meter())
    assert abs(before - unit.capacity().used - said) < 64 << 10
    assert samples.load_attached(unit, "i1") == both
    assert unit.verify("i1", meter=meters.Meter()) == ()
    unit.delete("i1")
    unit.reclaim(meter=meters.Meter())
    assert unit.capacity().used < 200_000


def test_a_damaged_page_is_found_and_named(unit: units.StorageUnit, root: Path) -> None:
    store(unit, "i0", {"files": PAGES[:4], "other": PAGES[10:12]})
    store(unit, "i1", {"files": [*PAGES[:3], b"new"]}, parent="i0")
    samples.flip(root, PAGES[2][20_000:])
    assert verify(unit, "i0") == [("files", 60_000, 30_000)]
    assert verify(unit, "i1") == [("files", 60_000, 30_000)]
    opened = unit.open("i1")
    found = opened.attachment("files")
    with pytest.raises(errors.ImageDamaged, match="i1, attachment files: page 2"):
        found.read(2)
    assert (found.read(0), found.read(3)) == (PAGES[0], b"new")
    opened.close()
    assert samples.load(unit, "i1", "d") == DISK


def test_names_and_pages_that_are_none_are_refused_and_the_writer_goes_on(unit: units.StorageUnit) -> None:
    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", DISK), meter=meters.Meter())
    for name in ("", "Files", "a/b", ".hidden", "z" * 65, "a b", "files\n"):
        with pytest.raises(ValueError, match="attachment"):
            writer.attach(name, [b"x"])
    for page in (b"", bytes(MIB + 1)):
        with pytest.raises(ValueError, match="page 1"):
            writer.attach("files", [b"x", page])
    writer.attach("files", [b"true"])
    with pytest.raises(errors.UnitError, match="already"):
        writer.attach("files", [b"again"])
    writer.commit(samples.label())
    assert samples.load_attached(unit, "img-1") == {"files": [b"true"]}
    with pytest.raises(errors.UnitError):
        writer.attach("late", [b"x"])


def test_pages_that_cannot_be_read_cost_the_attachment_and_not_the_image(
    unit: units.StorageUnit, root: Path, factory: samples.Factory
) -> None:
    def failing() -> Iterator[bytes]:
        yield from PAGES[:80]
        raise errors.SourceError("the guest's files cannot be read")

    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", DISK), meter=meters.Meter())
    with pytest.raises(errors.SourceError):
        writer.attach("files", failing())
    writer.commit(samples.label())
    assert samples.load_attached(unit, "img-1") == {}
    assert not factory.exact or not any("files" in name for name in samples.tree(root))
    assert samples.load(unit, "img-1", "d") == DISK


def test_an_image_is_not_committed_while_one_of_its_attachments_is_on_its_way(unit: units.StorageUnit) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"first"
        begun.set()
        assert go_on.wait(20)

    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", DISK), meter=meters.Meter())
    thread = threading.Thread(target=writer.attach, args=("files", slow()))
    thread.start()
    assert begun.wait(20)
    with pytest.raises(errors.UnitError):
        writer.commit(samples.label())
    go_on.set()
    thread.join(20)
    writer.commit(samples.label())
    assert samples.load_attached(unit, "img-1") == {"files": [b"first"]}


def test_an_aborted_image_leaves_nothing(unit: units.StorageUnit, root: Path, factory: samples.Factory) -> None:
    before, used = samples.tree(root), unit.capacity().used
    writer = unit.begin(samples.label(), ["d"])
    writer.attach("files", PAGES)
    writer.abort()
    assert samples.held(unit) == {}
    assert not factory.exact or samples.tree(root) == before
    unit.reclaim(meter=meters.Meter())
    assert unit.capacity().used - used < 200_000


def test_attachments_are_written_while_disks_are(unit: units.StorageUnit) -> None:
    writer = unit.begin(samples.label(), ["d"])
    threads = [
        threading.Thread(target=writer.attach, args=(f"part-{number}", PAGES[number * 20 : number * 20 + 40]))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    writer.write(SampleDisk("d", DISK), meter=meters.Meter())
    for thread in threads:
        thread.join()
    writer.commit(samples.label())
    found = samples.load_attached(unit, "img-1")
    assert found == {f"part-{number}": PAGES[number * 20 : number * 20 + 40] for number in range(4)}


_PAGE = st.one_of(
    st.binary(min_size=1, max_size=40), st.builds(samples.noise, st.sampled_from([1, 4096, 70_000]), st.integers(0, 5))
)
_LISTS = st.lists(_PAGE, max_size=12)
_STEP = st.dictionaries(st.sampled_from(["files", "other", "x.y"]), _LISTS, max_size=3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(_STEP, st.booleans()), min_size=1, max_size=3), gone=st.integers(0, 2))
def test_whatever_pages_come_along_a_chain_every_image_gives_back_its_own(
    factory: samples.Factory, steps: list[tuple[dict[str, list[bytes]], bool]], gone: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        unit = factory.open(root, factory.create(root), samples.OWNER)
        held: dict[str, dict[str, list[bytes]]] = {}
        for number, (attached, leans) in enumerate(steps):
            store(unit, f"i{number}", attached, parent=f"i{number - 1}" if leans and number else None)
            held[f"i{number}"] = attached
        needed = {entry.base for entry in unit.list()}
        if f"i{gone}" not in needed:
            unit.delete(f"i{gone}")
            unit.reclaim(meter=meters.Meter())
            held.pop(f"i{gone}", None)
        for image, attached in held.items():
            assert samples.load_attached(unit, image) == attached
            assert unit.verify(image, meter=meters.Meter()) == ()
        unit.close()


def test_an_attachment_takes_another_ones_place_and_nothing_else_changes(
    unit: units.StorageUnit, reopen: Callable[..., units.StorageUnit]
) -> None:
    store(unit, "img-1", {"files": PAGES[:5], "more": [b"x"]})
    store(unit, "img-2", {"files": PAGES[:6]}, parent="img-1")
    before = unit.open("img-1")
    unit.reattach("img-1", "files", replaced(PAGES[:5], 4))
    assert bytes(before.disk("d").pread(0, len(DISK))) == DISK
    before.close()
    for again in (unit, reopen()):
        assert samples.load_attached(again, "img-1") == {"files": replaced(PAGES[:5], 4), "more": [b"x"]}
        assert list(samples.load_attached(again, "img-1")) == ["files", "more"]
        assert verify(again, "img-1") == []
    # What a child leaves to its base is found where that still holds it.
    unit.reattach("img-1", "files", PAGES[:5])
    assert samples.load_attached(unit, "img-2") == {"files": PAGES[:6]}
    unit.reattach("img-1", "new", [b"y"])
    assert list(samples.load_attached(unit, "img-1")) == ["files", "more", "new"]

    def failing() -> Iterator[bytes]:
        yield PAGES[7]
        raise errors.SourceError("nothing comes")

    with pytest.raises(errors.SourceError):
        unit.reattach("img-1", "files", failing())
    assert samples.load_attached(unit, "img-1")["files"] == PAGES[:5]
    with pytest.raises(errors.ImageMissing):
        unit.reattach("img-3", "files", PAGES)
    stranger = reopen(owner="somebody else")
    with pytest.raises(errors.UnitReadOnly):
        stranger.reattach("img-1", "files", PAGES)
