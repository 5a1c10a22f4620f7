"""The recipe of a disk that is being written: pieces come roughly in disk order, pages are placed once settled.

What is not replaced stays the parent's, page by page and span by span, so an image that shares nearly everything with
its parent costs what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reconciler.base import digests, disks, extents
from reconciler.storage.dedupe import images, manifests, recipes

#: Stores a page or a span; its fingerprint.
PlaceMeta = Callable[[bytes], bytes]


class RecipeBuilder:
    """Pages and spans of one disk. Used by one thread."""

    def __init__(self, place: PlaceMeta, disk: disks.Disk, parent: images.Recipe | None) -> None:
        self._place, self._parent = place, parent
        self._size = disk.size
        self._name = disk.name
        self._count = recipes.page_count(disk.size)
        #: Fingerprint and covered bytes of pages that are not the parent's.
        self._pages: dict[int, tuple[bytes, int]] = {}
        #: Page -> what is replaced in it, and the new pieces.
        self._replaced: dict[int, list[extents.Extent]] = {}
        self._pieces: dict[int, list[recipes.Piece]] = {}

    def add(self, replaced: Iterable[extents.Extent], pieces: Iterable[recipes.Piece], settled: int) -> None:
        """New pieces for ranges that are no longer the parent's; below ``settled`` nothing more will come."""
        for offset, length in extents.pieces(replaced, recipes.PAGE):
            self._replaced.setdefault(offset // recipes.PAGE, []).append((offset, length))
        for piece in pieces:
            first, last = piece.offset // recipes.PAGE, (piece.offset + piece.length - 1) // recipes.PAGE
            for page in range(first, last + 1):
                own = recipes.within((piece,), page * recipes.PAGE, recipes.PAGE) if first != last else (piece,)
                self._pieces.setdefault(page, []).extend(own)
        for page in sorted(page for page in self._replaced if (page + 1) * recipes.PAGE <= settled):
            self._end_page(page)

    def _end_page(self, index: int) -> None:
        if index in self._pages:
            raise RuntimeError(f"disk {self._name}: page {index} of its recipe was settled too early")
        replaced = extents.normalise(self._replaced.pop(index))
        pieces = self._pieces.pop(index, [])
        if self._parent is not None:
            pieces += recipes.without(self._parent.page(index), replaced)
        pieces.sort()
        start = index * recipes.PAGE
        fingerprint = self._place(recipes.encode_page(start, pieces)) if pieces else recipes.NOTHING
        self._pages[index] = (fingerprint, sum(piece.length for piece in pieces))

    def finish(self, block_digests: bytes) -> manifests.DiskRecipe:
        """Place the spans that are not the parent's; the whole recipe."""
        for page in sorted(self._replaced):
            self._end_page(page)
        spans, covered = [], 0
        per_span = recipes.SPAN // recipes.PAGE
        for index in range(recipes.span_count(self._size)):
            first = index * per_span
            numbers = range(first, min(first + per_span, self._count))
            length = recipes.span_length(index, self._size)
            old = self._parent.span(index) if self._parent else recipes.empty_span(length)
            if not any(number in self._pages for number in numbers):
                spans.append(self._parent.disk.spans[index] if self._parent else recipes.NOTHING)
                covered += sum(old.covered)
                continue
            rows = [
                self._pages.get(number, (old.pages[number - first], old.covered[number - first])) for number in numbers
            ]
            start = index * recipes.SPAN // digests.BLOCK * digests.DIGEST_SIZE
            span = recipes.Span(
                pages=tuple(row[0] for row in rows),
                covered=tuple(row[1] for row in rows),
                block_digests=block_digests[start : start + len(old.block_digests)],
            )
            encoded = recipes.encode_span(span)
            spans.append(self._place(encoded) if encoded else recipes.NOTHING)
            covered += sum(row[1] for row in rows)
        return manifests.DiskRecipe(name=self._name, size=self._size, non_zero=covered, spans=tuple(spans))
