"""Recipes: which parts of which segments make up a disk, as pages of 4 MiB under spans of 256 MiB.

Pages and spans are segments themselves. Equal content has equal bytes, so a page that did not change is found by its
fingerprint and costs nothing, and two images are compared span by span without reading what they share. Spans also
carry the disk's 1 MiB block digests. Pure bytes: no file is touched here.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from reconciler.base import digests, extents
from reconciler.storage.dedupe import containers

VERSION: Final = 1
#: Bytes of disk that a page describes.
PAGE: Final = 4 << 20
#: Bytes of disk that a span describes.
SPAN: Final = 256 << 20
#: Stands for a page or a span of zeros alone.
NOTHING: Final = bytes(containers.FINGERPRINT_SIZE)

PAGE_HEAD: Final = struct.Struct("<4sB3xII")
PAGE_ENTRY: Final = struct.Struct("<IIII")
SPAN_HEAD: Final = struct.Struct("<4sB3xII")
SPAN_PAGE: Final = struct.Struct("<32sI")
PAGE_MAGIC: Final = b"HFPG"
SPAN_MAGIC: Final = b"HFSP"


class Piece(NamedTuple):
    """A range of the disk and where its bytes are; a tuple, as there are millions of them."""

    #: Bytes from the start of the disk.
    offset: int
    length: int
    fingerprint: bytes
    #: Where the range begins within the segment.
    within: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The pages of 256 MiB of disk and the digests of its blocks."""

    #: Fingerprint of each page, ``NOTHING`` for an empty one.
    pages: tuple[bytes, ...]
    #: Bytes that each page's entries cover.
    covered: tuple[int, ...]
    #: 32 bytes per 1 MiB block.
    block_digests: bytes


def page_count(size: int) -> int:
    """Pages of a disk, or of a span, of ``size`` bytes."""
    return -(-size // PAGE)


def span_count(size: int) -> int:
    """Spans of a disk of ``size`` bytes."""
    return -(-size // SPAN)


def span_length(index: int, size: int) -> int:
    """Bytes of disk in span ``index``."""
    return min(SPAN, size - index * SPAN)


def encode_page(start: int, pieces: Iterable[Piece]) -> bytes:
    """The page that begins at ``start`` of the disk; pieces ordered, disjoint, within it. Adjacent parts are joined."""
    numbers: dict[bytes, int] = {}
    entries: list[list[int]] = []
    for offset, length, fingerprint, within in pieces:
        number = numbers.setdefault(fingerprint, len(numbers))
        if entries:
            last = entries[-1]
            if last[2] == number and last[0] + last[1] == offset - start and last[3] + last[1] == within:
                last[1] += length
                continue
        entries.append([offset - start, length, number, within])
    head = PAGE_HEAD.pack(PAGE_MAGIC, VERSION, len(numbers), len(entries))
    return head + b"".join(numbers) + b"".join(itertools.starmap(PAGE_ENTRY.pack, entries))


def decode_page(data: bytes, start: int) -> tuple[Piece, ...]:
    """The pieces of a page that begins at ``start``. Raises ``containers.Damaged`` where it is no such page."""
    fingerprints, body = _page_table(data)
    count = len(fingerprints)
    pieces = []
    position = 0
    for offset, length, number, within in PAGE_ENTRY.iter_unpack(body):
        if number >= count or offset < position or length == 0 or offset + length > PAGE:
            raise containers.Damaged("a page of the recipe is false")
        pieces.append(Piece(start + offset, length, fingerprints[number], within))
        position = offset + length
    return tuple(pieces)


def page_fingerprints(data: bytes) -> list[bytes]:
    """The segments that a page needs, each once. Raises ``containers.Damaged``."""
    return _page_table(data)[0]


def _page_table(data: bytes) -> tuple[list[bytes], memoryview]:
    view = memoryview(data)
    if len(view) < PAGE_HEAD.size:
        raise containers.Damaged("a page of the recipe is cut off")
    magic, version, count, entries = PAGE_HEAD.unpack_from(view)
    body = PAGE_HEAD.size + count * containers.FINGERPRINT_SIZE
    if magic != PAGE_MAGIC or version != VERSION or len(view) != body + entries * PAGE_ENTRY.size:
        raise containers.Damaged("a page of the recipe is false")
    table = bytes(view[PAGE_HEAD.size : body])
    size = containers.FINGERPRINT_SIZE
    return [table[at : at + size] for at in range(0, len(table), size)], view[body:]


def encode_span(span: Span) -> bytes | None:
    """A span's bytes, None where it holds zeros alone."""
    if not any(span.covered):
        return None
    count = len(span.block_digests) // digests.DIGEST_SIZE
    head = SPAN_HEAD.pack(SPAN_MAGIC, VERSION, len(span.pages), count)
    return head + b"".join(map(SPAN_PAGE.pack, span.pages, span.covered)) + span.block_digests


def decode_span(data: bytes, length: int) -> Span:
    """The span of ``length`` bytes of disk. Raises ``containers.Damaged``."""
    if len(data) < SPAN_HEAD.size:
        raise containers.Damaged("a span of the recipe is cut off")
    magic, version, pages, blocks = SPAN_HEAD.unpack_from(data)
    table = SPAN_HEAD.size + pages * SPAN_PAGE.size
    if (
        magic != SPAN_MAGIC
        or version != VERSION
        or pages != page_count(length)
        or blocks != digests.block_count(length)
        or len(data) != table + blocks * digests.DIGEST_SIZE
    ):
        raise containers.Damaged("a span of the recipe is false")
    rows = tuple(SPAN_PAGE.iter_unpack(data[SPAN_HEAD.size : table]))
    return Span(pages=tuple(row[0] for row in rows), covered=tuple(row[1] for row in rows), block_digests=data[table:])


def empty_span(length: int) -> Span:
    """A span of zeros."""
    count = page_count(length)
    return Span(pages=(NOTHING,) * count, covered=(0,) * count, block_digests=bytes(digests.zero_list(length)))


def within(pieces: Sequence[Piece], offset: int, length: int) -> list[Piece]:
    """What of ordered ``pieces`` lies in a range of the disk, clipped to it."""
    end = offset + length
    index = bisect.bisect_right(pieces, offset, key=lambda piece: piece.offset)
    result = []
    for piece in pieces[max(index - 1, 0) :]:
        if piece.offset >= end:
            break
        start, stop = max(piece.offset, offset), min(piece.offset + piece.length, end)
        if start < stop:
            result.append(_part(piece, start, stop))
    return result


def without(pieces: Iterable[Piece], ranges: Iterable[extents.Extent]) -> list[Piece]:
    """What of ordered ``pieces`` lies outside ordered, disjoint ranges of the disk."""
    result: list[Piece] = []
    holes = iter(ranges)
    hole = next(holes, None)
    for piece in pieces:
        start, end = piece.offset, piece.offset + piece.length
        while hole is not None and sum(hole) <= start:
            hole = next(holes, None)
        while hole is not None and hole[0] < end:
            if start < hole[0]:
                result.append(_part(piece, start, hole[0]))
            start = sum(hole)
            if start >= end:
                break
            hole = next(holes, None)
        if start < end:
            result.append(_part(piece, start, end))
    return result


def _part(piece: Piece, start: int, end: int) -> Piece:
    return Piece(start, end - start, piece.fingerprint, piece.within + start - piece.offset)


def differences(left: Sequence[Piece], right: Sequence[Piece]) -> extents.Extents:
    """Where two recipes of the same range differ; equal bytes cut differently count as different."""
    ours, theirs = set(left), set(right)
    return extents.normalise((piece.offset, piece.length) for piece in ours ^ theirs)
