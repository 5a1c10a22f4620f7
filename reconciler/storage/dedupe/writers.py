"""Writing one image into a pool: reader, segmenter, hash, lookup, compress, container, and at last the manifest.

``write`` walks the disk in the calling thread (reading, block digests, the plain digest) and hands groups of blocks to
the pool's worker threads, which cut, hash, look up, compress and append. At most ``_AHEAD`` groups of 2 MiB are on
their way per disk, so a disk being written holds about 20 MiB. Recipes are built in disk order as groups come back.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Collection, Iterator

from blake3 import blake3

from reconciler.base import crashes, digests, disks, errors, extents, files, layouts, meters
from reconciler.storage import blocks, labels, units
from reconciler.storage.dedupe import (
    appenders,
    containers,
    images,
    manifests,
    recipes,
    registrations,
    segmenters,
    stores,
)

#: Blocks of 1 MiB handed to a worker at once.
_GROUP = 2
#: Groups on their way per disk.
_AHEAD = 5
_META = (containers.META_A, containers.META_B)

_Placed = list[segmenters.CutBlock]


class _RecipeBuilder:
    """Pages and spans of a disk being written, from blocks that come in disk order."""

    def __init__(self, writer: PoolWriter, disk: disks.Disk, parent: images.Recipe | None, meter: meters.Meter) -> None:
        self._writer, self._parent, self._meter = writer, parent, meter
        self._size = disk.size
        self._name = disk.name
        count = recipes.page_count(disk.size)
        #: Fingerprint and covered bytes of pages that are not the parent's.
        self._pages: dict[int, tuple[bytes, int]] = {}
        self._count = count
        self._page = -1
        self._blocks: dict[int, list[recipes.Piece]] = {}

    def add(self, block: int, pieces: list[recipes.Piece]) -> None:
        """The pieces of one block, which replace the parent's."""
        page = block * digests.BLOCK // recipes.PAGE
        if page != self._page:
            self._end_page()
            self._page = page
        self._blocks[block] = pieces

    def _end_page(self) -> None:
        if not self._blocks:
            return
        index, given, self._blocks = self._page, self._blocks, {}
        start = index * recipes.PAGE
        old: tuple[recipes.Piece, ...] = self._parent.page(index) if self._parent else ()
        first = start // digests.BLOCK
        last = digests.block_count(min(start + recipes.PAGE, self._size))
        pieces: list[recipes.Piece] = []
        for block in range(first, last):
            if block in given:
                pieces += given[block]
            elif old:
                pieces += recipes.within(old, block * digests.BLOCK, digests.BLOCK)
        fingerprint = (
            self._writer.place_meta(recipes.encode_page(start, pieces), self._meter) if pieces else recipes.NOTHING
        )
        self._pages[index] = (fingerprint, sum(piece.length for piece in pieces))

    def finish(self, block_digests: bytes) -> manifests.DiskRecipe:
        """Place the spans that are not the parent's; the whole recipe."""
        self._end_page()
        spans, covered = [], 0
        per_span = recipes.SPAN // recipes.PAGE
        for index in range(recipes.span_count(self._size)):
            first = index * per_span
            numbers = range(first, min(first + per_span, self._count))
            old = (
                self._parent.span(index) if self._parent else recipes.empty_span(recipes.span_length(index, self._size))
            )
            if not any(number in self._pages for number in numbers):
                spans.append(self._parent.disk.spans[index] if self._parent else recipes.NOTHING)
                covered += sum(old.covered)
                continue
            rows = [
                self._pages.get(number, (old.pages[number - first], old.covered[number - first])) for number in numbers
            ]
            start = index * recipes.SPAN // digests.BLOCK * digests.DIGEST_SIZE
            part = block_digests[start : start + len(old.block_digests)]
            encoded = recipes.encode_span(
                recipes.Span(
                    pages=tuple(row[0] for row in rows), covered=tuple(row[1] for row in rows), block_digests=part
                )
            )
            spans.append(self._writer.place_meta(encoded, self._meter) if encoded else recipes.NOTHING)
            covered += sum(row[1] for row in rows)
        return manifests.DiskRecipe(name=self._name, size=self._size, non_zero=covered, spans=tuple(spans))


class PoolWriter:
    """An image being written. Disks may be written by several threads at once."""

    def __init__(self, store: stores.Store, label: units.ImageLabel, disk_names: Collection[str]) -> None:
        """Takes over one reference to ``store``; registers. Raises ``UnitError`` kinds, with nothing left behind."""
        self._store = store
        self._label = label
        self._names = tuple(disk_names)
        self._claims = appenders.Claims(label.id)
        self._segmenter = segmenters.OffsetSegmenter(store.header.segment_size, store.header.key)
        self._lock = threading.Lock()
        self._written: dict[str, tuple[units.DiskRecord, manifests.DiskRecipe]] = {}
        self._parents: dict[str, manifests.Manifest] = {}
        self._ended = False
        self._failed = False
        root = store.settings.root
        with store.journal.locked():
            for entry in registrations.entries(root / "writers"):
                if entry.image == label.id:
                    registrations.remove(entry.folder)
            if manifests.path(root / "manifests", label.id).exists():
                raise errors.UnitError(f"storage unit {store.settings.name} holds image {label.id} already")
            self._registration = registrations.Registration(root / "writers", label.id)
        self._claims.registration = self._registration
        store.join(self._claims)

    def write(
        self,
        disk: disks.Disk,
        *,
        meter: meters.Meter,
        changed: extents.Extents | None = None,
        parent: str | None = None,
        layout: layouts.Layout | None = None,  # noqa: ARG002  cutting along files belongs to segmenters
    ) -> units.WrittenDisk:
        """Store one disk; see ``units.ImageWriter``."""
        self._require_open()
        try:
            return self._write(disk, meter, changed, parent)
        except BaseException:
            self._failed = True
            raise

    def _write(
        self, disk: disks.Disk, meter: meters.Meter, changed: extents.Extents | None, parent: str | None
    ) -> units.WrittenDisk:
        if disk.name not in self._names or disk.name in self._written:
            raise errors.UnitError(f"image {self._label.id}: disk {disk.name} was not announced, or is written twice")
        recipe = None if parent is None else self._parent_recipe(parent, disk)
        walk = blocks.BlockWalk(
            disk, meter=meter, parent=recipe.block_digests() if recipe else None, changed=changed if recipe else None
        )
        builder = _RecipeBuilder(self, disk, recipe, meter)
        for placed in self._place_all(walk, meter):
            for block, pieces in placed:
                builder.add(block, pieces)
            with files.unit_errors(self._store.settings.name):
                self._registration.beat()
        done = builder.finish(walk.digests)
        with self._lock:
            self._written[disk.name] = (walk.record(), done)
        return walk.written()

    def _place_all(self, walk: blocks.BlockWalk, meter: meters.Meter) -> Iterator[_Placed]:
        """Groups of blocks through the workers, results in disk order, never more than ``_AHEAD`` on their way."""
        running: collections.deque[concurrent.futures.Future[_Placed]] = collections.deque()
        try:
            group: list[blocks.Block] = []
            for block in walk:
                group.append(block)
                if len(group) == _GROUP:
                    running.append(self._store.workers.submit(self._place, group, meter))
                    group = []
                    if len(running) == _AHEAD:
                        yield running.popleft().result()
            if group:
                running.append(self._store.workers.submit(self._place, group, meter))
            while running:
                yield running.popleft().result()
        finally:
            # After a failure nothing of this disk may still be on its way when the image is aborted.
            for future in running:
                future.cancel()
            concurrent.futures.wait(running)

    def _place(self, group: list[blocks.Block], meter: meters.Meter) -> _Placed:
        cut, segments = self._segmenter.cut(group)
        if segments:
            pieces = sum(len(of_block) for _, of_block in cut)
            added = self._store.place(containers.DATA, segments, self._claims)
            self._claims.count(lookups=pieces, hits=pieces - added.segments)
            meter.add(sent=added.raw, stored=added.stored, lookups=pieces, hits=pieces - added.segments)
        return cut

    def place_meta(self, data: bytes, meter: meters.Meter) -> bytes:
        """Store a page or a span twice; its fingerprint."""
        fingerprint = blake3(data, key=self._store.header.key).digest()
        for kind in _META:
            meter.add(stored=self._store.place(kind, {fingerprint: data}, self._claims).stored)
        return fingerprint

    def _parent_recipe(self, parent: str, disk: disks.Disk) -> images.Recipe:
        with self._lock:
            manifest = self._parents.get(parent)
            if manifest is None:
                manifest = self._parents[parent] = self._pin(parent)
        for recipe in manifest.disks:
            if recipe.name == disk.name and recipe.size == disk.size:
                return images.Recipe(self._store, parent, recipe)
        raise errors.UnitError(
            f"image {parent}: holds no disk {disk.name} of {disk.size} bytes",
            hint="a disk that is new or was resized is written without parent",
        )

    def _pin(self, parent: str) -> manifests.Manifest:
        settings = self._store.settings
        folder = settings.root / "manifests"
        with self._store.journal.locked():
            manifest = manifests.read(folder, parent, self._store.header.id, settings.name)
            if not self._registration.stands:
                raise self._lost()
            self._registration.pin(folder, parent)
        return manifest

    def commit(self, label: units.ImageLabel) -> units.Commit:
        """Make the image visible, durably; see ``units.ImageWriter`` and ``FORMAT.md``."""
        self._require_open()
        with self._lock:
            records = {name: record for name, (record, _) in self._written.items()}
            disk_recipes = {name: recipe for name, (_, recipe) in self._written.items()}
        final = labels.complete(self._label, label, self._names, records)
        store = self._store
        store.flush(self._claims)
        manifest = manifests.Manifest(
            pool=store.header.id,
            label=final,
            stored=self._claims.stored,
            disks=tuple(disk_recipes[record.name] for record in final.disks),
        )
        data = manifests.encode(manifest)
        # The manifest's own bytes are this image's too; the few digits by which the number grows are neglected.
        manifest = dataclasses.replace(manifest, stored=manifest.stored + len(data))
        data = manifests.encode(manifest)
        store.require_room(len(data))
        with store.journal.locked():
            self._require_whole()
            store.journal.append(
                "commit",
                image=final.id,
                manifest=blake3(data).hexdigest(),
                lookups=self._claims.lookups,
                hits=self._claims.hits,
            )
            crashes.passing("pool.before-manifest")
            files.write_atomically(manifests.path(store.settings.root / "manifests", final.id), data)
            crashes.passing("pool.after-manifest")
        self._end()
        return units.Commit(label=final, stored_bytes=manifest.stored, base=None)

    def _require_whole(self) -> None:
        """Refuse to commit what would not be readable. The pool's lock is held, so nothing moves meanwhile."""
        if not self._registration.stands:
            raise self._lost()
        store = self._store
        if manifests.path(store.settings.root / "manifests", self._label.id).exists():
            raise errors.UnitError(f"storage unit {store.settings.name} holds image {self._label.id} already")
        kinds = self._claims.kinds() | store.present
        for container in self._claims.all():
            kind = kinds.get(container)
            if kind is None or not containers.path(store.folder, container, kind).exists():
                store.distrust()
                raise errors.UnitError(
                    f"image {self._label.id}: container {container:016x} was collected while the image was written",
                    hint="the next attempt stores it again",
                )

    def abort(self) -> None:
        """Remove every trace of the unfinished image. Idempotent."""
        self._end()

    def _end(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, True
        if ended:
            return
        try:
            self._store.leave(self._claims)
            with files.unit_errors(self._store.settings.name):
                self._registration.release()
        finally:
            stores.release(self._store)

    def _require_open(self) -> None:
        if self._ended:
            raise errors.UnitError(f"image {self._label.id}: its writer has ended")
        if self._failed:
            raise errors.UnitError(f"image {self._label.id}: a disk of it failed, so it can only be aborted")

    def _lost(self) -> errors.UnitError:
        return errors.UnitError(
            f"image {self._label.id}: its registration was removed: another attempt began, or it was silent too long",
            hint="the next attempt goes on from what is stored",
        )
