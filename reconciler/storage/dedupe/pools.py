"""The DedupePool as a storage unit: every image stands alone, and costs what no other image holds.

A thin face over the parts of this package; it decides who may write, and counts. ``Store`` references are taken per
open image and per writer, so closing the unit does not pull the floor from under a restore.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from reconciler.base import clocks, errors, files, meters
from reconciler.storage import identities, labels, units
from reconciler.storage.dedupe import (
    condemnations,
    containers,
    departures,
    headers,
    images,
    inspections,
    journals,
    manifests,
    proofs,
    reattachments,
    reclaims,
    scrubs,
    stores,
    sweeps,
    verdicts,
    wounds,
    writers,
)

TYPE = "DedupePool"


def create(
    root: Path,
    identity: identities.Identity,
    *,
    segment_size: int = headers.DEFAULT_SEGMENT_SIZE,
    algorithm: str = "zstd",
    level: int = 3,
) -> None:
    """Make an empty pool in the folder ``root``, durably. ``unit.json`` is the caller's, written after this.

    May be repeated after a crash. Raises ``UnitError`` for impossible parameters, or where another pool lies.
    """
    headers.create(root, identity, segment_size=segment_size, algorithm=algorithm, level=level)
    with files.unit_errors(str(root)):
        journals.Journal(root, str(root), clocks.from_environment()).create()


class DedupePool:
    """One pool, opened. Thread-safe."""

    standalone = True

    def __init__(
        self,
        name: str,
        root: Path,
        identity: identities.Identity,
        owner: str | None,
        cache: Path | None = None,
        *,
        container_size: int = containers.TARGET_SIZE,
        memory: int | None = None,
    ) -> None:
        """Writable where ``owner`` (the caller's catalog) is the pool's and the file system allows it.

        ``cache``: local folder for the fingerprint index, ``root/index`` by default. A pool that is only read is never
        written to: without a ``cache`` that this process may write, its index is built in a temporary folder, from
        every footer. Nothing is opened before it is needed. ``memory``: bytes of decoded segments to keep.
        """
        self.name = name
        self.root = root
        self._identity = identity
        owned = owner is not None and owner == identity.owner
        self._refusal = (
            ""
            if owned and os.access(root, os.W_OK)
            else "its folder is not writable"
            if owned
            else "it belongs to another catalog"
        )
        self._settings = stores.Settings(
            root=root,
            name=name,
            writable=not self._refusal,
            cache=cache,
            container_size=container_size,
            memory=memory or stores.KEPT,
        )
        self._clock = clocks.from_environment()
        self._journal = journals.Journal(root, name, self._clock)
        self._store: stores.Store | None = None
        self._lock = threading.Lock()
        self._surveyed: tuple[int, int] | None = None

    def require_online(self) -> None:
        """Raise ``UnitOffline`` unless the folder still is this pool; see ``units.StorageUnit``."""
        identities.require(self.root, self.name, self._identity.id)

    def begin(
        self, label: units.ImageLabel, disk_names: Collection[str], *, replaces: bool = False
    ) -> writers.PoolWriter:
        """Start an image. Raises ``UnitReadOnly``, ``UnitFull``, or ``UnitError`` if the id is committed already."""
        self._require_writable()
        labels.require_safe(label, self.name)
        store = self._take()
        try:
            store.require_room(0)
            store.follow()
            return writers.PoolWriter(store, label, disk_names, replaces=replaces)
        except BaseException:
            stores.release(store)
            raise

    def open(self, image_id: str) -> images.StoredPoolImage:
        """Open a committed image. Raises ``ImageMissing``, ``ImageDamaged`` or ``FormatTooNew``."""
        manifest = self._manifest(image_id)
        store = self._take()
        try:
            store.follow()
            return images.StoredPoolImage(store, manifest)
        except BaseException:
            stores.release(store)
            raise

    def reattach(self, image_id: str, name: str, pages: Iterable[bytes]) -> None:
        """Put an attachment in another one's place; see ``units.StorageUnit``."""
        self._require_writable()
        store = self._take()
        try:
            store.follow(thorough=True)
            with files.unit_errors(self.name):
                reattachments.reattach(store, image_id, name, pages)
        finally:
            stores.release(store)

    def delete(self, image_id: str) -> None:
        """Take an image away, durably; its space comes back at ``reclaim``. One that is gone already is no error."""
        self._require_writable()
        if not labels.is_safe(image_id):
            return
        store = self._opened()
        folder = self.root / "manifests"
        with store.journal.locked():
            # An image that lost its manifest is still in the log, and stops every collection until this is settled.
            if manifests.path(folder, image_id).exists() or image_id in store.journal.replay().images:
                store.journal.append("delete", image=image_id)
                journals.remove_manifest(folder, image_id)

    def list(self) -> Iterator[units.Held]:
        """Every committed image whose manifest can be read."""
        for image in self._names():
            try:
                manifest = self._manifest(image)
            except (errors.ImageMissing, errors.ImageDamaged, errors.FormatTooNew):
                continue
            yield units.Held(label=manifest.label, stored_bytes=manifest.stored, base=None)

    def unreadable(self) -> tuple[str, ...]:
        """Images whose manifest cannot be read."""
        result = []
        for image in self._names():
            try:
                self._manifest(image)
            except errors.ImageMissing:
                continue
            except (errors.ImageDamaged, errors.FormatTooNew):
                result.append(image)
        return tuple(sorted(result))

    def verify(self, image_id: str, *, meter: meters.Meter) -> tuple[units.Damage, ...]:
        """Re-read every block of an image, and every page of its attachments, and prove its digest.

        Segments of its disks that turn out to be false are in no index from then on, where this pool may be written.
        """
        image = self.open(image_id)
        try:
            found = proofs.prove(image, meter)
            if found and not self._refusal:
                with files.unit_errors(self.name):
                    proofs.withdraw(self._opened(), image, found, meter)
        finally:
            image.close()
        return found

    def capacity(self) -> units.Capacity:
        """Space, measured now. Only where images were deleted since the last collection, the recipes are read to see
        what a collection would give back; 0 where that fails, as the collection would too."""
        self.require_online()
        with files.unit_errors(self.name):
            space = os.statvfs(self.root)
            used = _size(self.root)
            kept_free = stores.reserve(self.root)
        reclaimable = self._reclaimable()
        return units.Capacity(
            total=space.f_blocks * space.f_frsize,
            free=max(space.f_bavail * space.f_frsize - kept_free, 0),
            used=used,
            reclaimable=reclaimable or 0,
            surveyed=reclaimable is not None,
        )

    def _reclaimable(self) -> int | None:
        try:
            with files.unit_errors(self.name):
                history = self._journal.replay()
            if not history.owed:
                return 0
            with self._lock:
                if self._surveyed is not None and self._surveyed[0] == history.sequence:
                    return self._surveyed[1]
                opened = self._store
            if opened is not None:
                return self._obtainable(opened)
            # Looking is no reason to write, so not even the index of the pool is opened for it.
            store = stores.share(dataclasses.replace(self._settings, writable=False))
            try:
                return self._obtainable(store)
            finally:
                stores.release(store)
        except (errors.UnitError, errors.FormatTooNew):
            return None

    def _obtainable(self, store: stores.Store) -> int:
        reclaims.require_agreement(store)
        return self._survey(store, meters.Meter())[1]

    def _survey(self, store: stores.Store, meter: meters.Meter) -> tuple[reclaims.Survey, int]:
        """What is live, and the bytes that a collection would give back."""
        with files.unit_errors(self.name):
            found = reclaims.survey(store, meter)
            verdict = reclaims.judge(store, found)
            reclaimable = condemnations.waiting_bytes(store) + verdict.dead_bytes + verdict.net_bytes
        with self._lock:
            # What a running writer keeps from collection changes without a line in the log.
            settled = not any(kept.reason in verdicts.PASSING for kept in verdict.kept)
            self._surveyed = (found.history.sequence, reclaimable) if settled else None
        return found, reclaimable

    def freed_by(self, image_ids: Collection[str]) -> tuple[int, bool]:
        """The bytes that nothing needs once these images are gone, and whether they were counted: in a pool of up to
        2,000 images and 4,096 containers, within 20 seconds. Else what each image alone added when it was written.
        What is counted exactly: see ``departures``."""
        known = set(self._names())
        wanted = known.intersection(image_ids)
        found = self._departing(wanted, len(known)) if wanted else 0
        if found is not None:
            return found, True
        return sum(self._added(image) for image in wanted), False

    def _departing(self, images: Collection[str], known: int) -> int | None:
        try:
            with files.unit_errors(self.name):
                if not departures.countable(self.root, known):
                    return None
                with self._lock:
                    opened = self._store
                # Looking is no reason to write, so not even the index of the pool is opened for it.
                store = opened or stores.share(dataclasses.replace(self._settings, writable=False))
                try:
                    return departures.freed(store, images)
                finally:
                    if opened is None:
                        stores.release(store)
        except (errors.UnitError, errors.FormatTooNew):
            return None

    def _added(self, image: str) -> int:
        try:
            return self._manifest(image).stored
        except (errors.ImageMissing, errors.ImageDamaged, errors.FormatTooNew):
            return 0

    def sweep(self, alive: Collection[str]) -> int:
        """Remove leftovers of writers whose image ids are not in ``alive``; the bytes freed."""
        self._require_writable()
        with files.unit_errors(self.name):
            return sweeps.sweep(self._opened(), alive)

    def reclaim(self, *, meter: meters.Meter, threshold: int = verdicts.THRESHOLD) -> int:
        """Give back the space of deleted images; the bytes freed. Raises ``ImageDamaged`` with nothing deleted.

        ``threshold``: percent; containers of which a larger part is dead are rewritten.
        """
        self._require_writable()
        with files.unit_errors(self.name):
            return reclaims.reclaim(self._opened(), meter, threshold)

    def preview(self, *, meter: meters.Meter, threshold: int = verdicts.THRESHOLD) -> inspections.Preview:
        """What ``reclaim`` would do now, and why not more. Changes nothing. Raises what ``reclaim`` raises."""
        store = self._opened()
        with files.unit_errors(self.name):
            reclaims.require_agreement(store)
            found = reclaims.survey(store, meter)
            verdict = reclaims.judge(store, found, threshold)
            return inspections.Preview(
                verdict=verdict,
                waiting_bytes=condemnations.waiting_bytes(store),
                pinned_bytes=found.mark.pinned_bytes,
            )

    def scrub(self, *, meter: meters.Meter, limits: scrubs.Limits | None = None) -> scrubs.Report:
        """Re-read containers, prove every digest and heal what can be healed; see ``scrubs``. Resumable."""
        self._require_writable()
        with files.unit_errors(self.name):
            return scrubs.scrub(self._opened(), meter, limits or scrubs.Limits(), self._clock.now())

    @property
    def knows_damage(self) -> bool:
        """Whether the pool's list of damage names anything, as far as this process has read it."""
        return bool(self._opened().damages)

    def wounded(self, *, meter: meters.Meter) -> Mapping[str, tuple[units.Damage, ...]]:
        """The images that cannot be read back whole, as far as is known, and which ranges. Reads recipes, no data."""
        self.require_online()
        with files.unit_errors(self.name):
            return wounds.of_all(self._opened(), meter)[1]

    def stats(self, *, meter: meters.Meter) -> inspections.PoolStatistics:
        """What the pool holds. Reads every recipe, no data. Raises ``ImageDamaged`` where one cannot be followed."""
        store = self._opened()
        found, reclaimable = self._survey(store, meter)
        with files.unit_errors(self.name):
            return inspections.statistics(store, found, reclaimable)

    def check(self, *, meter: meters.Meter) -> tuple[inspections.Finding, ...]:
        """Follow every image to its segments and prove every byte of every container."""
        self.require_online()
        with files.unit_errors(self.name):
            return inspections.check(self._opened(), meter)

    def close(self) -> None:
        """Release what the unit holds; open images and writers go on. Idempotent."""
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            stores.release(store)

    def _names(self) -> tuple[str, ...]:
        self.require_online()
        with files.unit_errors(self.name):
            return tuple(manifests.names(self.root / "manifests"))

    def _manifest(self, image: str) -> manifests.Manifest:
        return manifests.read(self.root / "manifests", image, uuid.UUID(self._identity.id), self.name)

    def _require_writable(self) -> None:
        self.require_online()
        if self._refusal:
            raise errors.UnitReadOnly(
                f"storage unit {self.name} is read-only: {self._refusal}",
                hint="holdfast unit adopt, or check the mount",
            )

    def _opened(self) -> stores.Store:
        """The unit's own reference, for calls that end before the unit is closed."""
        self.require_online()
        with self._lock:
            if self._store is None:
                store = stores.share(self._settings)
                if str(store.header.id) != self._identity.id:
                    stores.release(store)
                    raise errors.UnitError(
                        f"storage unit {self.name}: unit.json and pool.json name different pools",
                        hint="put the files of one pool together",
                    )
                self._store = store
            return self._store

    def _take(self) -> stores.Store:
        """One more reference, for what may outlive the unit."""
        self._opened()
        return stores.share(self._settings)


def _size(root: Path) -> int:
    """Bytes that the files under ``root`` occupy."""
    total = 0
    for entry in os.scandir(root):
        try:
            if entry.is_dir(follow_symlinks=False):
                total += _size(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue  # gone since it was listed
    return total
