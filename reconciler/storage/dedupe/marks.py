"""Marking: which records of which containers the images of a pool need.

Every manifest, span and page is read and proven, and every segment looked up; the data itself is never read. One
failure spoils the mark: it then says which images, and nothing may be deleted on its word. What is shared by many
images is read once. A ``Mark`` can be widened by images that were committed after it began.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from reconciler.base import errors, meters
from reconciler.storage.dedupe import containers, indexes, manifests, recipes, stores

_META = (containers.META_A, containers.META_B)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why an image cannot be marked."""

    image: str
    message: str


class Mark:
    """The live records of a pool, growing. Used by one thread."""

    def __init__(self, store: stores.Store, meter: meters.Meter) -> None:
        self._store = store
        self._meter = meter
        self._known: dict[int, indexes.Known] = store.index.known()
        self._seen: set[bytes] = set()
        #: Container -> one byte per record, 1 where it is live.
        self.live: dict[int, bytearray] = {}
        #: Container -> bytes of its live records, footer entries included.
        self.live_bytes: dict[int, int] = {}
        #: Images that were marked; pinned ones too.
        self.images: set[str] = set()
        self.problems: list[Problem] = []
        #: Bytes of the disks of all committed images.
        self.logical = 0
        #: Bytes of those that segments cover.
        self.non_zero = 0

    def add(self, image: str, folder: Path, *, pinned: bool = False) -> None:
        """Mark what one image needs, unless it is marked already. One that is gone meanwhile is skipped.

        Raises ``Cancelled`` or ``FormatTooNew``; damage becomes a problem.
        """
        if image in self.images:
            return
        self._meter.check()
        settings = self._store.settings
        try:
            manifest = manifests.read(folder, image, self._store.header.id, settings.name)
            for disk in manifest.disks:
                self._add_disk(disk)
        except errors.ImageMissing:
            return
        except (errors.UnitError, containers.Damaged) as error:
            if not manifests.path(folder, image).exists():
                return  # deleted meanwhile, and perhaps collected
            self.problems.append(Problem(image=image, message=str(error)))
            return
        self.images.add(image)
        if not pinned:
            self.logical += sum(disk.size for disk in manifest.disks)
            self.non_zero += sum(disk.non_zero for disk in manifest.disks)

    def knows(self, container: int) -> bool:
        """Whether the container was there when the mark began."""
        return container in self._known

    def is_live(self, container: int, number: int) -> bool:
        """Whether a record is marked."""
        bits = self.live.get(container, b"")
        return number < len(bits) and bits[number] != 0

    def needs_meta(self, fingerprint: bytes) -> bool:
        """Whether an image needs this page or span."""
        return fingerprint in self._seen

    def _add_disk(self, disk: manifests.DiskRecipe) -> None:
        for index, fingerprint in enumerate(disk.spans):
            if fingerprint == recipes.NOTHING or fingerprint in self._seen:
                continue
            data = self._meta(fingerprint)
            for page in recipes.decode_span(data, recipes.span_length(index, disk.size)).pages:
                if page != recipes.NOTHING and page not in self._seen:
                    self._meter.check()
                    self._data(recipes.page_fingerprints(self._meta(page)))
                    # Only now: an image that fails half-way must not vouch for the next one.
                    self._seen.add(page)
            self._seen.add(fingerprint)

    def _meta(self, fingerprint: bytes) -> bytes:
        data = self._store.fetch_meta(fingerprint)
        for kind in _META:
            location = self._store.index.find(kind, [fingerprint])[0]
            if location is not None:
                self._set(location)
        return data

    def _data(self, fingerprints: list[bytes]) -> None:
        present = self._store.present
        locations = self._store.index.find(containers.DATA, fingerprints)
        for fingerprint, location in zip(fingerprints, locations, strict=True):
            if location is None or location.container not in present:
                raise containers.Damaged(f"segment {fingerprint.hex()[:16]} is in no container")
            self._set(location)

    def _set(self, location: indexes.Location) -> None:
        container, _, length, number = location
        bits = self.live.get(container)
        if bits is None:
            known = self._known.get(container)
            if known is None:
                # Sealed since the mark began, so no candidate; its size is not known here and not needed.
                return
            bits = self.live[container] = bytearray(known.records)
            self.live_bytes[container] = 0
        if not bits[number]:
            bits[number] = 1
            self.live_bytes[container] += length + containers.ENTRY.size
