"""Which images cannot be read back whole, and where: recipes followed to segments that are in no container.

Called when scrubbing found something, and when the catalog wants to know which copies are damaged. Every page is
followed once, however many images share it. Data is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from reconciler.base import errors, extents, meters
from reconciler.storage import attachments, units
from reconciler.storage.dedupe import attachments as pool_attachments
from reconciler.storage.dedupe import containers, manifests, recipes, stores

#: How often an image that misses something is looked at again before that is believed.
_DOUBTS: Final = 4


class Wounds:
    """What is missing, page by page; used by one thread."""

    def __init__(self, store: stores.Store, meter: meters.Meter) -> None:
        self._store = store
        self._meter = meter
        #: Page -> ranges of it, as (offset within the page, length), whose segments are in no container.
        self._pages: dict[bytes, extents.Extents] = {}
        #: Data segments that images need and no container holds.
        self.missing: set[bytes] = set()
        #: Whether every manifest, span and page could be read.
        self.readable = True

    def of_image(self, image: str) -> tuple[units.Damage, ...]:
        """The ranges of an image that cannot be read. Raises ``FormatTooNew``, ``Cancelled``; none if it is gone."""
        folder = self._store.settings.root / "manifests"
        try:
            manifest = manifests.read(folder, image, self._store.header.id, self._store.settings.name)
        except errors.ImageMissing:
            return ()
        except errors.ImageDamaged as error:
            self.readable = False
            return (units.Damage(image=image, disk="", offset=0, length=0, message=error.message),)
        found: list[units.Damage] = []
        for disk in manifest.disks:
            ranges = extents.normalise(self._of_disk(disk))
            found += [
                units.Damage(image=image, disk=disk.name, offset=offset, length=length, message="its segments are lost")
                for offset, length in ranges
            ]
        for attached in manifest.attachments:
            found += self._of_attachment(image, attached)
        return tuple(found)

    def _of_attachment(self, image: str, attached: manifests.AttachmentRecipe) -> Iterable[units.Damage]:
        self._meter.check()
        try:
            rows = pool_attachments.decode_list(self._store.fetch_meta(attached.listing))
        except containers.Damaged:
            self.readable = False
            return [attachments.damage(image, attached.name, 0, attached.size, "the list of its pages is lost")]
        missing = self._not_there([row.fingerprint for row in rows])
        found: list[units.Damage] = []
        offset = 0
        for row in rows:
            if row.fingerprint in missing:
                found.append(attachments.damage(image, attached.name, offset, row.size, "its segment is lost"))
            offset += row.size
        return found

    def _not_there(self, fingerprints: Iterable[bytes]) -> set[bytes]:
        """Which of these data segments are in no container."""
        wanted = list(dict.fromkeys(fingerprints))
        locations = self._store.locate(containers.DATA, wanted)
        missing = {one for one, location in zip(wanted, locations, strict=True) if location is None}
        self.missing |= missing
        return missing

    def _of_disk(self, disk: manifests.DiskRecipe) -> Iterable[extents.Extent]:
        for index, fingerprint in enumerate(disk.spans):
            if fingerprint == recipes.NOTHING:
                continue
            self._meter.check()
            start, length = index * recipes.SPAN, recipes.span_length(index, disk.size)
            try:
                pages = recipes.decode_span(self._store.fetch_meta(fingerprint), length).pages
            except containers.Damaged:
                self.readable = False
                yield start, length
                continue
            for number, page in enumerate(pages):
                at = start + number * recipes.PAGE
                if page != recipes.NOTHING:
                    for offset, size in self._of_page(page):
                        yield at + offset, min(size, disk.size - at - offset)

    def _of_page(self, fingerprint: bytes) -> extents.Extents:
        known = self._pages.get(fingerprint)
        if known is None:
            self._meter.check()
            known = self._pages[fingerprint] = self._follow(fingerprint)
        return known

    def _follow(self, fingerprint: bytes) -> extents.Extents:
        try:
            pieces = recipes.decode_page(self._store.fetch_meta(fingerprint), 0)
        except containers.Damaged:
            self.readable = False
            return ((0, recipes.PAGE),)
        missing = self._not_there(piece.fingerprint for piece in pieces)
        return tuple((piece.offset, piece.length) for piece in pieces if piece.fingerprint in missing)


def of_all(store: stores.Store, meter: meters.Meter) -> tuple[Wounds, Mapping[str, tuple[units.Damage, ...]]]:
    """What is missing, and the images that miss something, with where. Raises as ``Wounds.of_image`` does."""
    wounds, found = _look(store, meter, manifests.names(store.settings.root / "manifests"))
    for _ in range(_DOUBTS):
        if found:
            # What was being moved while the recipes were followed is in place by now, what was deleted is no damage.
            wounds, found = _look(store, meter, found)
    return wounds, found


def _look(
    store: stores.Store, meter: meters.Meter, images: Iterable[str]
) -> tuple[Wounds, dict[str, tuple[units.Damage, ...]]]:
    store.look_again()
    wounds = Wounds(store, meter)
    listed = ((image, wounds.of_image(image)) for image in sorted(images))
    return wounds, {image: ranges for image, ranges in listed if ranges}
