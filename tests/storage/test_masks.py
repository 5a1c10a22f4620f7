"""Parts of a disk that read as zeros, and the ranges that remember which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.base import disks, extents, masks

SIZE = 300

RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 40)), max_size=12).map(
    lambda ranges: extents.clip(ranges, SIZE)
)


def _points(ranges: extents.Extents) -> set[int]:
    return {at for offset, length in ranges for at in range(offset, offset + length)}


@given(left=RANGES, right=RANGES)
def test_what_is_subtracted_is_gone_and_nothing_else_is(left: extents.Extents, right: extents.Extents) -> None:
    rest = extents.subtract(left, right)
    assert _points(rest) == _points(left) - _points(right)
    assert rest == extents.normalise(rest)


@given(ranges=RANGES, offset=st.integers(0, SIZE), length=st.integers(0, SIZE))
def test_a_window_holds_just_what_lies_in_it(ranges: extents.Extents, offset: int, length: int) -> None:
    found = extents.within(ranges, [start for start, _ in ranges], offset, length)
    assert _points(found) == _points(ranges) & set(range(offset, offset + length))


@given(hidden=RANGES, data=RANGES, offset=st.integers(0, SIZE), length=st.integers(0, SIZE))
def test_hidden_bytes_read_as_zeros_and_all_others_as_they_are(
    hidden: extents.Extents, data: extents.Extents, offset: int, length: int
) -> None:
    length = min(length, SIZE - offset)
    content = bytes(at % 255 + 1 for at in range(SIZE))
    masked = masks.MaskedDisk(disks.MemoryDisk("a.img", content, data_extents=data, sector=4096), hidden)
    gone = _points(hidden)
    expected = bytes(0 if at in gone else content[at] for at in range(offset, offset + length))
    assert bytes(masked.pread(offset, length)) == expected
    assert _points(masked.extents()) == _points(data) - gone
    assert (masked.name, masked.size, masked.sector) == ("a.img", SIZE, 4096)


@given(ranges=st.lists(st.tuples(st.integers(0, 1 << 50), st.integers(1, 1 << 40)), max_size=20).map(extents.normalise))
def test_ranges_come_back_from_their_text(ranges: extents.Extents) -> None:
    text = masks.pack(ranges)
    assert text.isascii()
    assert masks.unpack(text) == ranges


@pytest.mark.parametrize("text", ["", "no", "!", masks.pack(((0, 8),))[:-4]])
def test_a_text_that_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        masks.unpack(text)
