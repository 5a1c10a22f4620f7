"""Stored images of a pool: their recipes read page by page, and their disks with every block proven.

``Recipe`` is one disk's tree of spans, pages and pieces, read lazily and from any thread; the writer reads a parent
through it, ``StoredPoolImage`` serves whole disks, comparisons and digest lists.
"""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Mapping, Sequence

from reconciler.base import buffers, digests, disks, errors, extents
from reconciler.storage import attachments, blocks, memories, units
from reconciler.storage.dedupe import attachments as pool_attachments
from reconciler.storage.dedupe import containers, manifests, recipes, stores

#: Decoded pages kept per open disk: 2 GiB of disk.
_PAGES_KEPT = 512


class Recipe:
    """Where each byte of one stored disk is. Thread-safe."""

    def __init__(
        self,
        store: stores.Store,
        image: str,
        disk: manifests.DiskRecipe,
        *,
        error: type[errors.UnitError] = errors.ImageDamaged,
    ) -> None:
        """``error`` is what damage raises: a writer must tell its parent's from that of the disk it reads."""
        self._error = error
        self.image = image
        self.disk = disk
        self._store = store
        self._spans: dict[int, recipes.Span] = {}
        self._pages: collections.OrderedDict[int, tuple[recipes.Piece, ...]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def span(self, index: int) -> recipes.Span:
        """Span ``index``. Raises ``ImageDamaged``."""
        with self._lock:
            known = self._spans.get(index)
        if known is not None:
            return known
        length = recipes.span_length(index, self.disk.size)
        fingerprint = self.disk.spans[index]
        if fingerprint == recipes.NOTHING:
            span = recipes.empty_span(length)
        else:
            try:
                span = recipes.decode_span(self._store.fetch_meta(fingerprint), length)
            except containers.Damaged as error:
                raise self.damaged(index * recipes.SPAN, error) from error
        with self._lock:
            return self._spans.setdefault(index, span)

    def page_fingerprint(self, index: int) -> bytes:
        """Fingerprint of page ``index`` of the disk, ``recipes.NOTHING`` for zeros. Raises ``ImageDamaged``."""
        return self.span(index * recipes.PAGE // recipes.SPAN).pages[index % (recipes.SPAN // recipes.PAGE)]

    def page(self, index: int) -> tuple[recipes.Piece, ...]:
        """The pieces of page ``index``. Raises ``ImageDamaged``."""
        with self._lock:
            known = self._pages.get(index)
            if known is not None:
                self._pages.move_to_end(index)
                return known
        fingerprint = self.page_fingerprint(index)
        pieces: tuple[recipes.Piece, ...] = ()
        if fingerprint != recipes.NOTHING:
            try:
                pieces = recipes.decode_page(self._store.fetch_meta(fingerprint), index * recipes.PAGE)
            except containers.Damaged as error:
                raise self.damaged(index * recipes.PAGE, error) from error
        with self._lock:
            self._pages[index] = pieces
            if len(self._pages) > _PAGES_KEPT:
                self._pages.popitem(last=False)
        return pieces

    def blocks(self, indices: Sequence[int]) -> list[disks.Buffer]:
        """The bytes of 1 MiB blocks, each segment read once. Raises ``ImageDamaged``.

        Of one block every segment is proven, so that damage has a place; of more only what the caller proves by blocks.
        """
        ranges = [(index * digests.BLOCK, digests.block_length(index, self.disk.size)) for index in indices]
        pieces = [recipes.within(self.page(start // recipes.PAGE), start, length) for start, length in ranges]
        used: collections.Counter[bytes] = collections.Counter()
        for piece in itertools.chain.from_iterable(pieces):
            used[piece.fingerprint] += piece.length
        alone = len(indices) == 1
        made = [buffers.aligned(length) for _, length in ranges]
        # Segments are unpacked right where they belong; what is wanted elsewhere too is copied from there.
        places = {
            piece.fingerprint: (piece.offset, block[piece.offset - start : piece.offset - start + piece.length])
            for block, (start, _), own in zip(made, ranges, pieces, strict=True)
            for piece in own
            if piece.within == 0
        }
        try:
            segments = self._store.fetch(used, prove=alone, places={one: place for one, (_, place) in places.items()})
        except containers.Damaged as error:
            raise self.damaged(ranges[0][0], error) from error
        for fingerprint, length in used.items():
            if alone and length < len(segments[fingerprint]):
                self._store.keep(fingerprint, segments[fingerprint])
        for block, (start, _), own in zip(made, ranges, pieces, strict=True):
            self._fill(block, start, own, segments, places)
        return list(made)

    def part(self, offset: int, length: int) -> disks.Buffer:
        """A few bytes within one page, from segments that are proven one by one, each of them as a whole.

        Raises ``ImageDamaged``.
        """
        pieces = recipes.within(self.page(offset // recipes.PAGE), offset, length)
        try:
            segments = {piece.fingerprint: self._store.segment(piece.fingerprint) for piece in pieces}
        except containers.Damaged as error:
            raise self.damaged(offset // digests.BLOCK * digests.BLOCK, error) from error
        found = bytearray(length)
        self._fill(memoryview(found), offset, pieces, segments, {})
        return bytes(found)

    def _fill(
        self,
        block: memoryview,
        offset: int,
        pieces: Sequence[recipes.Piece],
        segments: Mapping[bytes, disks.Buffer],
        places: Mapping[bytes, tuple[int, memoryview]],
    ) -> None:
        """Put the pieces where they belong in ``block``, which lies at ``offset`` of the disk; ``places``: offset and
        place of those that may be there already."""
        for start, size, fingerprint, within in pieces:
            segment = segments[fingerprint]
            if within + size > len(segment):
                raise self.damaged(start, "the recipe goes beyond a segment")
            home, place = places.get(fingerprint, (-1, None))
            if home != start or segment is not place:
                block[start - offset : start - offset + size] = memoryview(segment)[within : within + size]

    def block_digests(self) -> bytes:
        """The disk's list of block digests. Raises ``ImageDamaged``."""
        return b"".join(self.span(index).block_digests for index in range(len(self.disk.spans)))

    def damaged(self, offset: int, cause: object) -> errors.UnitError:
        """The error for damage at ``offset`` of this disk."""
        return self._error(
            f"image {self.image}, disk {self.disk.name}: damaged at offset {offset}: {cause}",
            hint="use another copy of the image",
        )


def differences(left: Recipe, right: Recipe) -> extents.Extents:
    """The blocks in which two recipes of disks of one size differ; what they share is not read.

    Raises ``ImageDamaged``.
    """
    found: list[extents.Extent] = []
    pages_per_span = recipes.SPAN // recipes.PAGE
    for index, (ours, theirs) in enumerate(zip(left.disk.spans, right.disk.spans, strict=True)):
        if ours == theirs:
            continue
        first = index * pages_per_span
        for page in range(first, min(first + pages_per_span, recipes.page_count(left.disk.size))):
            if left.page_fingerprint(page) != right.page_fingerprint(page):
                found += recipes.differences(left.page(page), right.page(page))
    return extents.align(found, digests.BLOCK, left.disk.size)


class StoredPoolImage:
    """An opened image. Its disks are readable until it is closed."""

    def __init__(self, store: stores.Store, manifest: manifests.Manifest) -> None:
        """Takes over one reference to ``store``."""
        self._store = store
        self._manifest = manifest
        self._recipes = {disk.name: Recipe(store, manifest.label.id, disk) for disk in manifest.disks}
        self._records = {record.name: record for record in manifest.label.disks}
        self._attached = {attached.name: attached for attached in manifest.attachments}
        self._memory: memories.Memory[tuple[str, int]] = memories.Memory(store.settings.memory // 4)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def label(self) -> units.ImageLabel:
        """What the image says of itself."""
        return self._manifest.label

    @property
    def base(self) -> str | None:
        """None: every image of a pool stands alone."""
        return None

    def disk(self, name: str, *, block_digests: bytes | None = None) -> blocks.ProvenDisk:
        """One disk, whole. Raises ``NotFound`` or ``ImageDamaged``."""
        recipe = self.recipe(name)
        if block_digests is None:
            block_digests = self.block_digests(name)
        else:
            blocks.check_list(block_digests, self._records[name], self.label.id)
        return blocks.ProvenDisk(
            image=self.label.id,
            record=self._records[name],
            block_digests=block_digests,
            load=recipe.blocks,
            part=recipe.part,
            workers=self._store.workers,
            memory=self._memory,
        )

    def changed(self, name: str, parent: str) -> extents.Extents | None:
        """Where the disk differs from the same disk of ``parent``; None where the pool does not hold that."""
        recipe = self.recipe(name)
        settings = self._store.settings
        try:
            manifest = manifests.read(settings.root / "manifests", parent, self._store.header.id, settings.name)
        except (errors.ImageMissing, errors.ImageDamaged):
            return None
        for disk in manifest.disks:
            if disk.name == name and disk.size == recipe.disk.size:
                return differences(recipe, Recipe(self._store, parent, disk))
        return None

    def block_digests(self, name: str) -> bytes:
        """The disk's list of 32-byte block digests, proven. Raises ``NotFound`` or ``ImageDamaged``."""
        return blocks.check_list(self.recipe(name).block_digests(), self._records[name], self.label.id)

    def attachments(self) -> tuple[str, ...]:
        """The names of its attachments."""
        return tuple(self._attached)

    def attachment(self, name: str) -> pool_attachments.PoolAttachment:
        """One attachment. Raises ``NotFound`` or ``ImageDamaged``."""
        if name not in self._attached:
            raise attachments.missing(self.label.id, name, self._attached)
        return pool_attachments.PoolAttachment(self._store, self.label.id, self._attached[name])

    def recipe(self, name: str) -> Recipe:
        """One disk's recipe. Raises ``NotFound``."""
        try:
            return self._recipes[name]
        except KeyError:
            raise errors.NotFound(
                f"image {self.label.id} has no disk {name}", hint=f"it has {', '.join(self._recipes)}"
            ) from None

    def close(self) -> None:
        """Release the image, and with it its disks. Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            stores.release(self._store)
