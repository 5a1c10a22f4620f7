"""Writing one image into a pool: its disks as streams of segments, and at last the manifest.

``write`` may run for several disks at once; ``streams`` does the work of each. ``commit`` makes the image visible in
the order that ``FORMAT.md`` gives, and refuses where anything the image needs is gone.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Collection, Iterable

from blake3 import blake3

from reconciler.base import crashes, disks, errors, extents, files, layouts, meters
from reconciler.storage import attachments, blocks, labels, units
from reconciler.storage.dedupe import (
    appenders,
    builders,
    comparisons,
    containers,
    images,
    manifests,
    proofs,
    recipes,
    registrations,
    segmenters,
    stores,
    streams,
)
from reconciler.storage.dedupe import attachments as pool_attachments


class PoolWriter:
    """An image being written. Disks may be written by several threads at once."""

    def __init__(
        self, store: stores.Store, label: units.ImageLabel, disk_names: Collection[str], *, replaces: bool = False
    ) -> None:
        """Takes over one reference to ``store``; registers. ``replaces``: the image may be there already.

        Raises ``UnitError`` kinds, with nothing left behind.
        """
        self._replaces = replaces
        self._store = store
        self._label = label
        self._names = tuple(disk_names)
        self._claims = appenders.Claims(label.id)
        self._fingerprints = segmenters.Fingerprints(store.header.key)
        self._lock = threading.Lock()
        self._written: dict[str, tuple[units.DiskRecord, manifests.DiskRecipe]] = {}
        #: By name, in the order in which they were begun; None while one is being stored.
        self._attached: dict[str, manifests.AttachmentRecipe | None] = {}
        self._parents: dict[str, manifests.Manifest] = {}
        self._ended = False
        self._failed = False
        root = store.settings.root
        with store.journal.locked():
            for entry in registrations.entries(root / "writers"):
                if entry.image == label.id:
                    registrations.remove(entry.folder)
            self._require_free()
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
        layout: Callable[[], layouts.Layout] | None = None,
    ) -> units.WrittenDisk:
        """Store one disk; see ``units.ImageWriter``."""
        self._require_running()
        try:
            return self._write(disk, meter, changed, parent, layout)
        except BaseException:
            self._failed = True
            raise

    def _write(
        self,
        disk: disks.Disk,
        meter: meters.Meter,
        changed: extents.Extents | None,
        parent: str | None,
        layout: Callable[[], layouts.Layout] | None,
    ) -> units.WrittenDisk:
        if disk.name not in self._names or disk.name in self._written:
            raise errors.UnitError(f"image {self._label.id}: disk {disk.name} was not announced, or is written twice")
        recipe = None if parent is None else self._parent_recipe(parent, disk)
        known = changed if recipe else None
        walk = blocks.BlockWalk(disk, meter=meter, parent=recipe.block_digests() if recipe else None, changed=known)
        builder = builders.RecipeBuilder(functools.partial(self._place_meta, meter), disk, recipe)
        stream = streams.DiskStream(
            walk=walk,
            size=disk.size,
            segment_size=self._store.header.segment_size,
            builder=builder,
            comparison=comparisons.Comparison(self._store, recipe) if recipe else None,
            layout=layout,
            place=functools.partial(self._place, meter),
            workers=self._store.workers,
            beat=functools.partial(self._store.beat, self._claims),
        )
        stream.run()
        done = builder.finish(walk.digests)
        if recipe is not None and known is None:
            # All was looked up by block, and what is the parent's was found.
            meter.add(lookups=stream.kept, hits=stream.kept)
            self._claims.count(lookups=stream.kept, hits=stream.kept)
        with self._lock:
            self._written[disk.name] = (walk.record(), done)
        return walk.written()

    def attach(self, name: str, pages: Iterable[bytes], *, parent: str | None = None) -> None:  # noqa: ARG002
        """Store a document beside the disks; see ``units.ImageWriter``. What any image holds is not stored again."""
        attachments.require_name(name)
        self._require_running()
        with self._lock:
            if name in self._attached:
                raise errors.UnitError(f"image {self._label.id}: attachment {name} was written already")
            self._attached[name] = None
        try:
            recipe = pool_attachments.store_pages(self._store, self._claims, name, pages)
        except BaseException:
            with self._lock:
                del self._attached[name]
            raise
        crashes.passing("pool.attachment-placed")
        with self._lock:
            self._attached[name] = recipe

    def _place(self, meter: meters.Meter, segments: list[segmenters.Segment]) -> list[recipes.Piece]:
        """Store segments; where they lie on the disk. Runs in the pool's workers."""
        pieces, named, found = self._fingerprints.name(segments)
        if named:
            added = self._store.place(containers.DATA, named, self._claims)
            self._claims.count(lookups=found, hits=found - added.segments)
            meter.add(sent=added.raw, stored=added.stored, lookups=found, hits=found - added.segments)
        return pieces

    def _place_meta(self, meter: meters.Meter, data: bytes) -> bytes:
        """Store a page or a span; its fingerprint."""
        fingerprint = self._fingerprints.of(data)
        meter.add(stored=self._store.place_meta(fingerprint, data, self._claims))
        return fingerprint

    def _parent_recipe(self, parent: str, disk: disks.Disk) -> images.Recipe:
        with self._lock:
            manifest = self._parents.get(parent)
            if manifest is None:
                manifest = self._parents[parent] = self._pin(parent)
        for recipe in manifest.disks:
            if recipe.name == disk.name and recipe.size == disk.size:
                return images.Recipe(self._store, parent, recipe, error=errors.ParentDamaged)
        raise errors.UnitError(
            f"image {parent}: holds no disk {disk.name} of {disk.size} bytes",
            hint="a disk that is new or was resized is written without parent",
        )

    def _pin(self, parent: str) -> manifests.Manifest:
        settings = self._store.settings
        folder = settings.root / "manifests"
        with self._store.journal.locked():
            try:
                manifest = manifests.read(folder, parent, self._store.header.id, settings.name)
            except (errors.ImageMissing, errors.ImageDamaged) as error:
                raise errors.ParentDamaged(f"image {parent} cannot be written against: {error}") from error
            if not self._registration.stands:
                raise self._lost()
            self._registration.pin(folder, parent)
        return manifest

    def commit(self, label: units.ImageLabel, *, meter: meters.Meter | None = None) -> units.Commit:
        """Make the image visible, durably; see ``units.ImageWriter`` and ``FORMAT.md``."""
        self._require_open()
        with self._lock:
            records = {name: record for name, (record, _) in self._written.items()}
            disk_recipes = {name: recipe for name, (_, recipe) in self._written.items()}
            attached = [recipe for recipe in self._attached.values() if recipe is not None]
            if len(attached) < len(self._attached):
                raise errors.UnitError(f"image {label.id}: an attachment is still being written")
        final = labels.complete(self._label, label, self._names, records)
        store = self._store
        store.flush(self._claims)
        manifest = manifests.Manifest(
            pool=store.header.id,
            label=final,
            stored=self._claims.stored,
            disks=tuple(disk_recipes[record.name] for record in final.disks),
            attachments=tuple(attached),
        )
        data = manifests.encode(manifest)
        # The manifest's own bytes are this image's too; the few digits by which the number grows are neglected.
        manifest = dataclasses.replace(manifest, stored=manifest.stored + len(data))
        data = manifests.encode(manifest)
        store.require_room(len(data))
        if self._replaces:
            self._prove(manifest, meter or meters.Meter())
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
        self._require_free()
        require_in_place(store, self._claims)

    def _require_free(self) -> None:
        settings = self._store.settings
        if not self._replaces and manifests.path(settings.root / "manifests", self._label.id).exists():
            raise errors.UnitError(f"storage unit {settings.name} holds image {self._label.id} already")

    def _prove(self, manifest: manifests.Manifest, meter: meters.Meter) -> None:
        """Read the image back before it takes another one's place. Raises ``UnitError``."""
        image = images.StoredPoolImage(stores.share(self._store.settings), manifest)
        try:
            found = proofs.prove(image, meter)
        finally:
            image.close()
        labels.require_proven(self._store.settings.name, found)

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

    def _require_running(self) -> None:
        if self._ended:
            raise errors.UnitError(f"image {self._label.id}: its writer has ended")

    def _require_open(self) -> None:
        self._require_running()
        if self._failed:
            raise errors.UnitError(f"image {self._label.id}: a disk of it failed, so it can only be aborted")

    def _lost(self) -> errors.UnitError:
        return errors.UnitError(
            f"image {self._label.id}: its registration was removed: another attempt began, or it was silent too long",
            hint="the next attempt goes on from what is stored",
        )


def require_in_place(store: stores.Store, claims: appenders.Claims) -> None:
    """Refuse to commit what relies on a container that is gone, with the pool's lock held. Raises ``UnitError``."""
    kinds = claims.kinds() | store.present
    for container in claims.all():
        kind = kinds.get(container)
        if kind is None or not containers.path(store.folder, container, kind).exists():
            store.distrust()
            raise errors.UnitError(
                f"image {claims.image}: container {container:016x} was collected while the image was written",
                hint="the next attempt stores it again",
            )
