"""Entries become pages and come back; little that changed is few new bytes; bytes of strangers do no harm."""

from __future__ import annotations

import random

import fileindex_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.base import errors
from reconciler.catalog.fileindexes import columns, entries, indexes, pages

DISKS = [
    pages.Disk(
        name="d0",
        volumes=(
            pages.Volume(filesystem="ntfs", label="C \udce9", offset=1 << 20, length=1 << 30),
            pages.Volume(filesystem=None, label="", offset=0, length=1),
        ),
        warnings=(("VolumeUnreadable", "volume at byte 5"),),
        reads=((0, 4096), (1 << 40, 512)),
    )
]


def index(rows: list[entries.Entry], parent: indexes.Index | None = None) -> tuple[samples.Memory, indexes.Index]:
    stored = samples.Memory(indexes.build(rows, DISKS, parent))
    return stored, indexes.Index("i", stored)


@settings(max_examples=40)
@given(st.lists(samples.rows(), min_size=1, max_size=4))
def test_every_state_of_a_tree_comes_back_whatever_it_was_built_on(states: list[list[entries.Entry]]) -> None:
    parent = None
    for rows in states:
        _, parent = index(rows, parent)
        assert list(parent) == rows
        assert parent.head.disks == tuple(DISKS)
        assert parent.head.entries == len(rows)


def test_a_small_change_anywhere_stores_little_and_a_large_one_starts_over() -> None:
    rows = samples.tree(1, 20_000)
    stored, first = index(rows)
    assert max(page.size for page in stored.pages) < 1 << 20
    held = {page.digest for page in stored.pages}
    later = samples.changed(rows, 2, 0.01)
    after, second = index(later, first)
    assert list(second) == later
    fresh = sum(page.size for page in after.pages if page.digest not in held)
    whole = sum(page.size for page in stored.pages)
    assert fresh < whole / 25
    assert second.layers[0] == first.layers[0]
    rewritten = [row._replace(size=row.size + 1) for row in later]
    assert len(index(rewritten, second)[1].layers) == 1
    assert second.layers == index(later, second)[1].layers


def test_layers_are_laid_together_before_they_weigh_too_much() -> None:
    rows = samples.tree(3, 8_000)
    parent = index(rows)[1]
    most = 0
    for day in range(12):
        rows = samples.changed(rows, day, 0.05)
        parent = index(rows, parent)[1]
        most = max(most, len(parent.layers))
        assert sum(layer.entries for layer in parent.head.layers[1:]) <= 2_500
    assert list(parent) == rows
    assert 3 <= most <= 7


def test_cuts_depend_on_names_nearby() -> None:
    rows = samples.tree(4, 20_000)
    shifted = [samples.entry("0-first", disk="disk0"), *rows]
    one, other = (samples.Memory(indexes.build(some, [])) for some in (rows, indexes.ordered(shifted)))
    held = {page.digest for page in one.pages}
    assert sum(page.digest not in held for page in other.pages) <= 3  # the head, and the page it fell into


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.binary(max_size=40))
def test_bytes_of_strangers_are_refused_or_make_sense(seed: int, noise: bytes) -> None:
    """Whatever a page holds, reading it ends in entries with proper names or in an error that says so."""
    rng = random.Random(seed)
    rows = samples.tree(5, 40)
    raw = bytearray(columns.unpack(pages.encode(rows)[1:]))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(raw))
        raw[at : at + rng.randrange(3)] = noise[: rng.randrange(3)] or bytes([rng.randrange(256)])
    forged = bytes([pages.FORMAT]) + columns.pack(bytes(raw), 3)
    for page in (forged, noise, bytes([1]) + noise):
        try:
            found = pages.decode(page)
        except (columns.Malformed, errors.FormatTooNew):
            continue
        for row in found:
            assert row.path
            assert not {"", ".", ".."} & set(row.path.split("/"))
            assert row.kind in (*entries.KINDS, entries.GONE)
            assert row.size >= 0


@pytest.mark.parametrize(
    "head",
    [
        b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"disks":[],"layers":[[1,1]],"entries":0}', b'{"disks":[],"layers":[],"entries":-1}',
        b'{"disks":[{"name":1,"volumes":[],"warnings":[]}],"layers":[],"entries":0}', b'{"disks":[],"layers":[[true,0]],"entries":0}',
        b'{"disks":[{"name":"d","volumes":[["x","l",0]],"warnings":[]}],"layers":[],"entries":0}',
        b'{"disks":[{"name":"d","volumes":[],"warnings":[["c"]]}],"layers":[],"entries":0}',
    ],
)  # fmt: skip
def test_a_head_that_makes_no_sense_is_damage(head: bytes) -> None:
    with pytest.raises(errors.ImageDamaged, match="makes no sense"):
        indexes.Index("i", samples.Memory([bytes([1]) + columns.pack(head, 3)]))


def test_damage_is_told_and_a_newer_format_is_not_damage() -> None:
    rows = samples.tree(6, 3_000)
    stored, found = index(rows)
    stored.data[1], stored.data[2] = stored.data[2], stored.data[1]
    with pytest.raises(errors.ImageDamaged, match="not in order"):
        list(found)
    stored.data[1] = b"\x02" + stored.data[1][1:]
    with pytest.raises(errors.FormatTooNew):
        list(found)
    bomb = bytes([1]) + columns.pack(bytes(columns.MOST + 1), 1)
    stored.data[1] = bomb
    with pytest.raises(errors.ImageDamaged, match="too large"):
        list(found)
    with pytest.raises(errors.ImageDamaged, match="no pages"):
        indexes.Index("i", samples.Memory([]))


def test_of_several_entries_under_one_name_the_first_is_kept() -> None:
    twice = [samples.entry("b", size=2), samples.entry("a"), samples.entry("b", size=3)]
    assert [(row.path, row.size) for row in indexes.ordered(twice)] == [("a", 1), ("b", 2)]
