"""Marking: which records of which containers the images of a pool need.

Every manifest, span and page is read and proven, and every segment looked up; the data itself is never read. One
failure spoils the mark: it then says which images, and nothing may be deleted on its word. What is shared by many
images is read once. A ``Mark`` can be widened by images that were committed after it began.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from reconciler.base import errors, meters
from reconciler.storage.dedupe import attachments, containers, indexes, manifests, recipes, registrations, stores

#: An image, the folder of its manifest, and whether it is a pin.
Source = tuple[str, Path, bool]


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
        #: Whether the image at hand made the store look again.
        self._looked_again = False
        #: Container -> one byte per record, 1 where it is live.
        self.live: dict[int, bytearray] = {}
        #: Container -> bytes of its live records, footer entries included.
        self.live_bytes: dict[int, int] = {}
        self._live_total = 0
        #: Images that were marked; pinned ones too.
        self.images: set[str] = set()
        self.problems: list[Problem] = []
        #: Bytes of the disks of all committed images.
        self.logical = 0
        #: Bytes of those that segments cover.
        self.non_zero = 0
        #: Of ``live_bytes``, what deleted images alone hold that are the parents of running writers.
        self.pinned_bytes = 0
        #: Of ``live_bytes``, what only attachments need, and what they shared with a disk that was marked later.
        self.attachment_bytes = 0

    def add_all(self, images: Iterable[Source] | None = None) -> None:
        """Mark those of ``images`` (all of the pool by default) that are not marked yet. Raises ``OSError`` too."""
        for image, folder, pinned in every(self._store) if images is None else images:
            self.add(image, folder, pinned=pinned)

    def require_sound(self) -> None:
        """Raise ``ImageDamaged`` naming the images that cannot be followed, if there are any."""
        if self.problems:
            images = some(problem.image for problem in self.problems)
            raise errors.ImageDamaged(
                f"storage unit {self._store.settings.name}: images {images} cannot be followed to their segments,"
                f" so nothing was deleted: {self.problems[0].message}",
                hint="delete these images, or put back what is missing",
            )

    def numbers(self, container: int) -> list[int]:
        """The live records of a container, by their numbers."""
        return [number for number, bit in enumerate(self.live.get(container, b"")) if bit]

    def add(self, image: str, folder: Path, *, pinned: bool = False) -> None:
        """Mark what one image needs, unless it is marked already. One that is gone meanwhile is skipped.

        Raises ``Cancelled`` or ``FormatTooNew``; damage becomes a problem.
        """
        if image in self.images:
            return
        self._meter.check()
        self._looked_again = False
        settings = self._store.settings
        before = self._live_total
        try:
            manifest = manifests.read(folder, image, self._store.header.id, settings.name)
            for disk in manifest.disks:
                self._add_disk(disk)
            for attached in manifest.attachments:
                self._add_attachment(attached)
        except errors.ImageMissing:
            return
        except (errors.UnitError, containers.Damaged) as error:
            if not manifests.path(folder, image).exists():
                return  # deleted meanwhile, and perhaps collected
            self.problems.append(Problem(image=image, message=str(error)))
            return
        self.images.add(image)
        if pinned:
            self.pinned_bytes += self._live_total - before
        else:
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

    def _add_attachment(self, attached: manifests.AttachmentRecipe) -> None:
        if attached.listing not in self._seen:
            before = self._live_total
            rows = attachments.decode_list(self._meta(attached.listing))
            self._data(list(dict.fromkeys(row.fingerprint for row in rows)))
            self._seen.add(attached.listing)
            self.attachment_bytes += self._live_total - before

    def _meta(self, fingerprint: bytes) -> bytes:
        data = self._store.fetch_meta(fingerprint)
        locations = [self._store.locate(kind, [fingerprint])[0] for kind in containers.META]
        if None in locations and not self._looked_again:
            # Once for each image: a copy that is lost stays lost.
            self._looked_again = True
            self._store.look_again()
            locations = [self._store.locate(kind, [fingerprint])[0] for kind in containers.META]
        for location in locations:
            if location is not None:
                self._set(location)
        return data

    def _data(self, fingerprints: list[bytes]) -> None:
        lost, locations = self._store.damages.lost, self._store.locate(containers.DATA, fingerprints)
        if any(one is None and name not in lost for name, one in zip(fingerprints, locations, strict=True)):
            self._store.look_again()
            lost, locations = self._store.damages.lost, self._store.locate(containers.DATA, fingerprints)
        for fingerprint, location in zip(fingerprints, locations, strict=True):
            if location is not None:
                self._set(location)
            elif fingerprint not in lost:
                raise containers.Damaged(f"segment {fingerprint.hex()[:16]} is in no container")

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
            self._live_total += length + containers.ENTRY.size


def every(store: stores.Store) -> list[Source]:
    """Every committed image, then every pinned one. Raises ``OSError``."""
    root = store.settings.root
    folder = root / "manifests"
    found = [(image, folder, False) for image in manifests.names(folder)]
    return found + [(image, place, True) for image, place in registrations.pins(root / "writers")]


def some(names: Iterable[str]) -> str:
    """The first few of names, in order, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
