"""What of a changed block is really new, against the parent's bytes in the pool.

A write of 8 KiB into a database must not store a segment of 128 KiB again, and bytes equal to the parent's keep the
parent's cut, so that a parser that sees the guest's files otherwise does not store the disk anew. Reading the parent
back costs as much as reading the disk: where it hardly ever pays, on a disk that was rewritten, it is left.
"""

from __future__ import annotations

from typing import Final

from reconciler.base import extents
from reconciler.storage import blocks
from reconciler.storage.dedupe import containers, images, recipes, segmenters, stores

#: Bytes that are compared as one: the cluster of most file systems.
_GRAIN: Final = 4096
#: From so many pieces that begin inside a segment a block is too scattered to be read fast, and is cut anew.
_SCATTERED: Final = 32
#: Bytes compared before a verdict on whether that pays; share of equal ones below which it does not.
_TRIAL: Final = 8 << 20
_WORTH: Final = 0.1
#: Bytes that are not compared before the next trial.
_REST: Final = 64 << 20


class Comparison:
    """The new bytes of one disk against its parent. Used by one thread."""

    def __init__(self, store: stores.Store, parent: images.Recipe) -> None:
        self._store = store
        self._parent = parent
        self._fingerprints = segmenters.Fingerprints(store.header.key)
        self._compared = self._equal = self._skipped = 0

    def new(self, block: blocks.Block) -> extents.Extents:
        """The ranges of the disk within ``block`` whose bytes are not the parent's; at least those. May be wider.

        Raises ``ImageDamaged`` where the parent's recipe cannot be read, ``UnitError``.
        """
        whole = ((block.offset, block.length),)
        if block.data is None:
            return whole
        page = self._parent.page(block.offset // recipes.PAGE)
        old = recipes.within(page, block.offset, block.length)
        if not old or sum(1 for piece in old if piece.within) > _SCATTERED:
            return whole
        view = memoryview(block.data)
        ranges: list[extents.Extent] = []
        unequal: list[recipes.Piece] = []
        position = block.offset
        for piece in old:
            ranges.append((position, piece.offset - position))
            position = piece.offset + piece.length
            data = view[piece.offset - block.offset : position - block.offset]
            if piece.within or self._fingerprints.of(data) != piece.fingerprint:
                unequal.append(piece)
        ranges.append((position, block.offset + block.length - position))
        gaps = [gap for gap in ranges if gap[1] and not blocks.is_zero(_slice(view, block, gap))]
        return extents.normalise([*gaps, *self._against(unequal, block, view)])

    def _against(self, unequal: list[recipes.Piece], block: blocks.Block, view: memoryview) -> list[extents.Extent]:
        """The new ranges within pieces whose bytes are not known to be equal."""
        total = sum(piece.length for piece in unequal)
        if not self._worth_it(total):
            return [(piece.offset, piece.length) for piece in unequal]
        try:
            segments = self._store.fetch([piece.fingerprint for piece in unequal])
        except containers.Damaged:
            # The parent lost bytes: storing them anew heals it too.
            return [(piece.offset, piece.length) for piece in unequal]
        result: list[extents.Extent] = []
        for piece in unequal:
            segment = segments[piece.fingerprint]
            self._store.keep(piece.fingerprint, segment)
            before = memoryview(segment)[piece.within : piece.within + piece.length]
            result += _differences(piece, before, _slice(view, block, (piece.offset, piece.length)))
        self._compared += total
        self._equal += total - extents.total(result)
        return result

    def _worth_it(self, length: int) -> bool:
        if self._compared < _TRIAL or self._equal >= _WORTH * self._compared:
            return True
        self._skipped += length
        if self._skipped >= _REST:
            self._compared = self._equal = self._skipped = 0
        return False


def _slice(view: memoryview, block: blocks.Block, extent: extents.Extent) -> memoryview:
    return view[extent[0] - block.offset : extent[0] - block.offset + extent[1]]


def _differences(piece: recipes.Piece, before: memoryview, after: memoryview) -> list[extents.Extent]:
    """Where two ranges of equal length differ, by grains of the disk; all of it where more than half does."""
    if len(before) != len(after):
        return [(piece.offset, piece.length)]
    # On the left a bytearray compares with any buffer as fast as memory can be read; a memoryview goes byte by byte.
    old = bytearray(before)
    if old == after:
        return []
    found = [
        (piece.offset + start, step)
        for start, step in _grains(piece.offset, len(after))
        if old[start : start + step] != after[start : start + step]
    ]
    return found if 2 * extents.total(found) <= piece.length else [(piece.offset, piece.length)]


def _grains(offset: int, length: int) -> list[extents.Extent]:
    return [(start - offset, step) for start, step in extents.pieces(((offset, length),), _GRAIN)]
