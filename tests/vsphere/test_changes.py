"""What the vCenter says of changes: when it is asked, how its answers add up, and what is looked at all the same."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.base import digests, extents, quantities
from reconciler.sources import machines
from reconciler.sources.vsphere.reading import changes

KIB, MIB = 1 << 10, 1 << 20
AT = dt.datetime(2026, 11, 20, 20, tzinfo=dt.UTC)
THEN = changes.Facts(
    size=64 * MIB,
    uuid="6000C29b-a2fe-5511-848f-22d4b6586afe",
    change_id="52 92 86 21 21 9b 59 23-ad 31 fe 4f 5e 4f 29 9e/7",
    key=2000,
    slot="scsi0:0",
    chain=("[ds1] vm1/vm1.vmdk",),
    full=AT,
    transport="datastore",
)
NOW = dataclasses.replace(THEN, change_id="52 92 86 21 21 9b 59 23-ad 31 fe 4f 5e 4f 29 9e/9", full=AT)


def asked(now: changes.Facts = NOW, then: changes.Facts = THEN, **more: object) -> changes.Since | machines.Found:
    settings: dict[str, object] = {"at": AT, **more}
    return changes.since("Hard disk 1", now, {"disk:Hard disk 1": changes.remember(then)}, **settings)  # type: ignore[arg-type]


def test_the_same_disk_under_the_same_tracking_is_counted_from_the_parent() -> None:
    assert asked() == changes.Since(change_id=THEN.change_id or "", then=THEN)


@pytest.mark.parametrize(
    ("code", "now", "then"),
    [
        ("DiskResized", {"size": 65 * MIB}, {}),
        ("DiskReplaced", {"uuid": "6000C29b-0000"}, {}),
        ("DiskReplaced", {"uuid": ""}, {}),
        ("DiskMoved", {"key": 2001, "slot": "scsi0:1"}, {}),
        ("DiskMoved", {"chain": ("[ds2] vm1/vm1.vmdk",)}, {}),
        ("Reverted", {"chain": ("[ds1] vm1/vm1-000002.vmdk", "[ds1] vm1/vm1.vmdk")},
         {"chain": ("[ds1] vm1/vm1-000001.vmdk", "[ds1] vm1/vm1.vmdk"), "others": True}),
        ("Reverted", {"change_id": "52 92 86 21 21 9b 59 23-ad 31 fe 4f 5e 4f 29 9e/7"}, {}),
        ("Reverted", {"change_id": "52 92 86 21 21 9b 59 23-ad 31 fe 4f 5e 4f 29 9e/3"}, {}),
        ("ChangeIdReset", {"change_id": "52 00 86 21 21 9b 59 23-ad 31 fe 4f 5e 4f 29 9e/9"}, {}),
        ("TrackingOff", {"change_id": None}, {}),
        ("TrackingNew", {}, {"change_id": None}),
    ],
)  # fmt: skip
def test_in_doubt_the_disk_is_read_as_a_whole_and_the_reason_named(
    code: str, now: dict[str, object], then: dict[str, object]
) -> None:
    found = asked(dataclasses.replace(NOW, **now), dataclasses.replace(THEN, **then))  # type: ignore[arg-type]
    assert isinstance(found, machines.Found)
    assert found.code == code
    assert "Hard disk 1" in found.message


@pytest.mark.parametrize(
    "now",
    [
        {"key": 2001},
        {"slot": "sata0:0"},
        # Somebody else's snapshot came in between: the disk goes on from where it was.
        {"chain": ("[ds1] vm1/vm1-000001.vmdk", "[ds1] vm1/vm1.vmdk"), "others": True},
        {"change_id": "52 92 86 21 21 9b 59 23-ad 31 fe 4f 5e 4f 29 9e/new"},
    ],
)
def test_what_says_nothing_against_the_tracking_is_no_reason(now: dict[str, object]) -> None:
    assert isinstance(asked(dataclasses.replace(NOW, **now)), changes.Since)  # type: ignore[arg-type]


def test_a_first_run_and_a_parent_that_says_nothing_usable() -> None:
    for state, code in (({}, "FirstRun"), ({"disk:Hard disk 1": "{}"}, "ParentUnknown")):
        found = changes.since("Hard disk 1", NOW, state, at=AT)
        assert isinstance(found, machines.Found)
        assert found.code == code


def test_after_a_while_a_disk_is_read_as_a_whole_whatever_is_said() -> None:
    every = quantities.Duration.parse("30d")
    assert isinstance(asked(full_every=every, at=AT + dt.timedelta(days=29)), changes.Since)
    for then in (THEN, dataclasses.replace(THEN, full=None)):
        found = asked(then=then, full_every=every, at=AT + dt.timedelta(days=30))
        assert isinstance(found, machines.Found)
        assert found.code == "FullEvery"


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{}", '{"size": "x"}', changes.remember(THEN)[:-9]])
def test_facts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        changes.recall(text)


@given(
    st.builds(
        changes.Facts,
        size=st.integers(0, 1 << 60),
        uuid=st.text(),
        change_id=st.none() | st.text(),
        key=st.integers(-(1 << 31), 1 << 31),
        slot=st.text(),
        chain=st.lists(st.text()).map(tuple),
        others=st.booleans(),
        full=st.none() | st.just(AT),
        round=st.integers(0, 1 << 31),
        transport=st.text(),
    )
)
def test_facts_are_remembered_as_they_were(facts: changes.Facts) -> None:
    assert changes.recall(changes.remember(facts)) == facts


# -- answers --------------------------------------------------------------------------------------------------------

SIZE = 100_000
ranges = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 9000)), max_size=40).map(
    lambda found: tuple((start, min(length, SIZE - start)) for start, length in found)
)


@given(ranges, st.integers(3000, SIZE), st.integers(0, SIZE))
def test_answers_in_any_pieces_add_up(areas: extents.Extents, step: int, back: int) -> None:
    def ask(offset: int) -> changes.Answer:
        # It may speak of what was answered already, and name areas twice and beyond what it speaks of.
        start, end = max(offset - back, 0), min(offset + step, SIZE)
        shown = [area for area in areas if area[0] < end and area[0] + area[1] > offset]
        return changes.Answer(start=start, length=end - start, areas=(*shown, *shown[:1]))

    assert changes.collect(ask, SIZE) == extents.normalise(areas)


def test_the_last_step_may_end_beyond_the_disk() -> None:
    step, size = 64 << 10, (3 * (64 << 10)) - 1024

    def ask(offset: int) -> changes.Answer:
        return changes.Answer(start=offset, length=3 * step - offset, areas=((step, step), (2 * step, step)))

    assert changes.collect(ask, size) == ((step, size - step),)
    for area in ((2 * step, 2 << 20), (2 * step, step + 1), (3 * step, step)):
        odd = changes.Answer(start=0, length=size, areas=(area,))
        with pytest.raises(changes.Odd):
            changes.collect(lambda _offset, odd=odd: odd, size)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("start", "length", "areas"),
    [
        (0, 0, ()),
        (0, -5, ()),
        (10, 90, ()),
        (0, 101, ()),
        (0, 100, ((90, 11),)),
        (0, 100, ((-1, 5),)),
        (0, 100, ((5, -1),)),
        (0, 100, ((1 << 62, 5),)),
    ],
)
def test_odd_answers_are_refused(start: int, length: int, areas: extents.Extents) -> None:
    with pytest.raises(changes.Odd, match=r"\d"):
        changes.collect(lambda _offset: changes.Answer(start=start, length=length, areas=areas), 100)


def test_an_empty_disk_is_not_asked_about() -> None:
    def ask(offset: int) -> changes.Answer:
        raise AssertionError(offset)

    assert changes.collect(ask, 0) == ()


# -- distrust -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300 * MIB), st.integers(1, 100), st.text(max_size=5))
def test_every_unchanged_block_is_tested_in_its_turn(size: int, share: int, disk: str) -> None:
    changed = extents.clip([(3 * MIB + 5, 700_000)], size)
    every = -(-100 // share)
    turns = [changes.tests(disk, size, changed, share, turn) for turn in range(every)]
    unchanged = extents.subtract(((0, size),), extents.align(changed, digests.BLOCK, size))
    assert extents.normalise(one for turn in turns for one in turn) == unchanged
    for tested in turns:
        assert not extents.intersect(tested, changed)
        assert all(offset % digests.BLOCK == 0 for offset, _ in tested)
    if 100 % share == 0:
        assert sum(extents.total(turn) for turn in turns) == extents.total(unchanged)


def test_the_share_is_about_what_was_asked_for() -> None:
    tested = changes.tests("6000C29b", 10_000 * MIB, (), 5, 3)
    assert 400 <= extents.total(tested) // MIB <= 600
    assert changes.tests("6000C29b", 10_000 * MIB, (), 0, 3) == ()
    assert changes.tests("6000C29b", 10_000 * MIB, (), 100, 3) == ((0, 10_000 * MIB),)


# -- hints ----------------------------------------------------------------------------------------------------------


@given(ranges, st.text(max_size=5))
def test_samples_lie_outside_the_areas_at_both_ends_and_around_edges(areas: extents.Extents, key: str) -> None:
    data = extents.normalise(areas)
    holes = extents.subtract(((0, SIZE),), data)
    found = changes.samples(key, SIZE, data, places=64, length=512)
    assert extents.intersect(found, holes) == found
    assert extents.total(found) <= 64 * 512
    if holes:
        covered = {offset for offset, _ in found} | {offset + length for offset, length in found}
        assert holes[0][0] in covered
        assert holes[-1][0] + holes[-1][1] in covered
    if 0 < len(holes) <= 16:
        for start, length in holes:
            assert extents.intersect(((start, 1),), found)
            assert extents.intersect(((start + length - 1, 1),), found)
    assert found == changes.samples(key, SIZE, data, places=64, length=512)


def test_other_snapshots_sample_other_places() -> None:
    whole = 1 << 40
    drawn = {changes.samples(f"snapshot-{number}", whole, (), places=64, length=64 * KIB) for number in range(5)}
    assert len(drawn) == 5
    assert all(60 <= len(one) <= 64 for one in drawn)
    assert changes.samples("any", whole, ((0, whole),), places=64, length=64 * KIB) == ()
