"""Recipes: pages and spans come back as they were, equal content has equal bytes, and comparing finds what differs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.base import digests
from reconciler.storage.dedupe import containers, recipes

START = 3 * recipes.PAGE


@st.composite
def pieces(draw: st.DrawFn) -> list[recipes.Piece]:
    """Ordered, disjoint pieces of one page, some adjacent, some of the same segment."""
    result = []
    position = START
    for _ in range(draw(st.integers(0, 12))):
        position += draw(st.sampled_from([0, 0, 512, 4096]))
        length = draw(st.integers(1, 1 << 17))
        within = draw(st.sampled_from([0, 0, 512]))
        result.append(recipes.Piece(position, length, bytes([draw(st.integers(0, 3))]) * 32, within))
        position += length
    return result


def expand(found: list[recipes.Piece] | tuple[recipes.Piece, ...]) -> list[tuple[int, bytes, int]]:
    """Where each edge of each 512-byte step of the disk comes from, whatever the pieces were joined to."""
    return [(piece.offset + at, piece.fingerprint, piece.within + at) for piece in found for at in range(piece.length)]


@settings(max_examples=60, deadline=None)
@given(given_pieces=pieces())
def test_a_page_names_the_same_bytes_after_a_round_trip(given_pieces: list[recipes.Piece]) -> None:
    small = [piece._replace(length=min(piece.length, 700)) for piece in given_pieces]
    data = recipes.encode_page(START, small)
    decoded = recipes.decode_page(data, START)
    assert expand(decoded) == expand(small)
    assert recipes.encode_page(START, decoded) == data
    assert set(recipes.page_fingerprints(data)) == {piece.fingerprint for piece in small}


def test_adjacent_parts_of_one_segment_become_one_entry() -> None:
    fingerprint = b"f" * 32
    halves = [recipes.Piece(START, 512, fingerprint, 0), recipes.Piece(START + 512, 512, fingerprint, 512)]
    whole = [recipes.Piece(START, 1024, fingerprint, 0)]
    assert recipes.encode_page(START, halves) == recipes.encode_page(START, whole)


@settings(max_examples=60, deadline=None)
@given(given_pieces=pieces(), offset=st.integers(0, 1 << 20), length=st.integers(1, 1 << 20))
def test_a_range_of_a_page_is_clipped_exactly(given_pieces: list[recipes.Piece], offset: int, length: int) -> None:
    start = START + offset
    found = recipes.within(given_pieces, start, length)
    for piece in found:
        (origin,) = (one for one in given_pieces if one.offset <= piece.offset < one.offset + one.length)
        assert piece.fingerprint == origin.fingerprint
        assert piece.within - origin.within == piece.offset - origin.offset
    covered = sum(max(0, min(one.offset + one.length, start + length) - max(one.offset, start)) for one in given_pieces)
    assert sum(piece.length for piece in found) == covered


@pytest.mark.parametrize("cut", [0, 5, 11, 12, 60])
def test_a_page_that_is_cut_off_or_false_is_refused(cut: int) -> None:
    data = recipes.encode_page(0, [recipes.Piece(0, 512, b"f" * 32, 0)])
    with pytest.raises(containers.Damaged):
        recipes.decode_page(data[:cut], 0)
    overlapping = data[:8] + b"\x02" + data[9:] + data[-16:]
    with pytest.raises(containers.Damaged):
        recipes.decode_page(overlapping, 0)


def test_a_span_comes_back_and_one_of_zeros_is_not_stored() -> None:
    length = recipes.PAGE + 5
    empty = recipes.empty_span(length)
    assert recipes.encode_span(empty) is None
    assert len(empty.block_digests) == digests.block_count(length) * 32
    span = recipes.Span(
        pages=(b"p" * 32, recipes.NOTHING), covered=(777, 0), block_digests=b"d" * len(empty.block_digests)
    )
    data = recipes.encode_span(span)
    assert data is not None
    assert recipes.decode_span(data, length) == span
    for false in (data[:-1], data[:3], b"XXXX" + data[4:]):
        with pytest.raises(containers.Damaged):
            recipes.decode_span(false, length)
    with pytest.raises(containers.Damaged):
        recipes.decode_span(data, 3 * recipes.PAGE)


def test_differences_are_what_either_side_has_alone() -> None:
    left = [recipes.Piece(0, 512, b"a" * 32, 0), recipes.Piece(512, 512, b"b" * 32, 0)]
    right = [
        recipes.Piece(0, 512, b"a" * 32, 0),
        recipes.Piece(512, 512, b"c" * 32, 0),
        recipes.Piece(4096, 9, b"d" * 32, 0),
    ]
    assert recipes.differences(left, right) == ((512, 512), (4096, 9))
    assert recipes.differences(left, left) == ()
