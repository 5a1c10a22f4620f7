"""Attachments in a pool: each page one data segment, and one meta segment that lists them.

The list is stored twice like the pages of a recipe, and named in the image's manifest by its fingerprint; equal
attachments have equal lists. ``store_pages`` is the way in, ``PoolAttachment`` the way out, ``decode_list`` what
whoever follows an image to its segments reads.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from reconciler.base import digests, disks
from reconciler.storage import attachments, units
from reconciler.storage.dedupe import appenders, containers, manifests, segmenters, stores

VERSION: Final = 1
LIST_HEAD: Final = struct.Struct("<4sB3xI4x")
LIST_ROW: Final = struct.Struct("<32s32sI")
LIST_MAGIC: Final = b"HFAL"
#: Bytes of pages that are placed at once.
_BATCH: Final = 2 << 20


class Row(NamedTuple):
    """One page in a list."""

    fingerprint: bytes
    digest: bytes
    #: Bytes.
    size: int


def encode_list(rows: Iterable[Row]) -> bytes:
    """The meta segment that lists the pages of an attachment."""
    body = b"".join(itertools.starmap(LIST_ROW.pack, rows))
    return LIST_HEAD.pack(LIST_MAGIC, VERSION, len(body) // LIST_ROW.size) + body


def decode_list(data: bytes) -> list[Row]:
    """The pages of an attachment. Raises ``containers.Damaged`` where this is no such list."""
    if len(data) < LIST_HEAD.size:
        raise containers.Damaged("the list of an attachment's pages is cut off")
    magic, version, count = LIST_HEAD.unpack_from(data)
    if magic != LIST_MAGIC or version != VERSION or len(data) != LIST_HEAD.size + count * LIST_ROW.size:
        raise containers.Damaged("the list of an attachment's pages is false")
    return [Row(*row) for row in LIST_ROW.iter_unpack(memoryview(data)[LIST_HEAD.size :])]


def store_pages(
    store: stores.Store, claims: appenders.Claims, name: str, pages: Iterable[bytes]
) -> manifests.AttachmentRecipe:
    """Store an attachment; what the manifest shall say of it. Raises ``UnitError`` kinds and what ``pages`` raises."""
    fingerprints = segmenters.Fingerprints(store.header.key)

    def place(segments: dict[bytes, disks.Buffer]) -> None:
        store.place(containers.DATA, segments, claims)
        store.beat(claims)

    rows: list[Row] = []
    batch: dict[bytes, disks.Buffer] = {}
    waiting = 0
    for page in attachments.checked(name, pages):
        row = Row(fingerprints.of(page), digests.digest(page), len(page))
        rows.append(row)
        batch[row.fingerprint] = page
        waiting += row.size
        if waiting >= _BATCH:
            place(batch)
            batch, waiting = {}, 0
    if batch:
        place(batch)
    size, listed = sum(row.size for row in rows), encode_list(rows)
    listing = fingerprints.of(listed)
    store.place_meta(listing, listed, claims)
    return manifests.AttachmentRecipe(name=name, pages=len(rows), size=size, listing=listing)


class PoolAttachment:
    """An attachment opened for reading; see ``units.Attachment``."""

    def __init__(self, store: stores.Store, image: str, recipe: manifests.AttachmentRecipe) -> None:
        """Raises ``ImageDamaged`` where its list cannot be read."""
        self.name = recipe.name
        self._store, self._image = store, image
        try:
            self._rows = decode_list(store.fetch_meta(recipe.listing))
        except containers.Damaged as error:
            raise attachments.unlisted(image, recipe.name, error) from error
        self.pages = tuple(units.Page(digest=row.digest, size=row.size) for row in self._rows)

    def read(self, number: int) -> bytes:
        """The bytes of page ``number``, proven. Raises ``ImageDamaged``, ``UnitError``."""
        fingerprint = self._rows[number].fingerprint
        try:
            data = bytes(self._store.fetch([fingerprint], prove=False)[fingerprint])
        except containers.Damaged as error:
            raise attachments.damaged(self._image, self.name, number, error) from error
        return attachments.proven(self._image, self.name, number, self.pages[number], data)
