"""Attachments in an image's folder: a list of pages, and the pages that the image holds itself, compressed.

``attachment-NAME.pages`` is the list, proven by its digest in ``image.json``: per page its BLAKE3 (32 bytes) and, as
little-endian numbers, its bytes (4), where its zstd frame begins in ``attachment-NAME.zst`` (8) and how long that is
(4), 0 for a page that the image's base holds. So ``zstd -d`` of that file gives the pages that are the image's own. A
page of the base is found by its digest, never by its place: a damaged copy that was made anew has other places.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import zstandard

from reconciler.base import digests, errors, files
from reconciler.storage import attachments, blocks, units
from reconciler.storage.directory import formats

_LEVEL: Final = 3
_ENTRY: Final = struct.Struct("<32sIQI")

#: The folder of an image and what it says of its attachment of one name, if it has that.
Finder = Callable[[str], tuple[Path, formats.StoredAttachment | None]]


class Entry(NamedTuple):
    """One page in a list."""

    digest: bytes
    #: Bytes of the page.
    size: int
    #: Where its frame begins in the image's own file.
    offset: int
    #: Bytes of the frame; 0 where the base holds the page.
    stored: int


class _Place(NamedTuple):
    """Where a page lies."""

    file: Path
    offset: int
    stored: int


def write(
    unit: str, folder: Path, stored: formats.StoredAttachment, pages: Iterable[bytes], known: Collection[bytes]
) -> tuple[formats.StoredAttachment, int]:
    """Store ``pages``, but those whose digest is ``known``; what ``image.json`` shall say of it, and its bytes.

    Both files are durable then. Raises what ``pages`` raises and ``UnitError``, with neither file left.
    """
    try:
        with files.unit_errors(unit):
            data = _Frames(folder / stored.data)
        try:
            entries = [_entry(unit, data, page, known) for page in attachments.checked(stored.name, pages)]
            with files.unit_errors(unit):
                data.sync()
        finally:
            data.close()
        listed = b"".join(map(_ENTRY.pack, *zip(*entries, strict=True))) if entries else b""
        with files.unit_errors(unit):
            files.write_new(folder / stored.pages, listed, mode=formats.FILE_MODE)
    except BaseException:
        for name in (stored.data, stored.pages):
            (folder / name).unlink(missing_ok=True)
        raise
    uses_base = any(not entry.stored for entry in entries)
    result = formats.StoredAttachment(
        name=stored.name,
        data=stored.data,
        pages=stored.pages,
        digest=formats.list_digest(listed),
        parent=stored.parent if uses_base else None,
    )
    return result, data.size + len(listed)


class _Frames:
    """The file of an image's own pages, being written."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, formats.FILE_MODE)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        #: Digest -> where the page's frame lies: a page that comes twice is stored once.
        self.placed: dict[bytes, tuple[int, int]] = {}
        self.size = 0

    def place(self, digest: bytes, page: bytes) -> tuple[int, int]:
        """Offset and length of a page's frame. Raises ``OSError``."""
        if digest not in self.placed:
            frame = self._compressor.compress(page)
            files.pwrite_all(self._handle, frame, self.size)
            self.placed[digest] = (self.size, len(frame))
            self.size += len(frame)
        return self.placed[digest]

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def _entry(unit: str, data: _Frames, page: bytes, known: Collection[bytes]) -> Entry:
    digest = digests.digest(page)
    if digest in known:
        return Entry(digest, len(page), 0, 0)
    with files.unit_errors(unit):
        return Entry(digest, len(page), *data.place(digest, page))


def read_list(folder: Path, stored: formats.StoredAttachment) -> list[Entry]:
    """The proven list of an attachment. Raises ``ImageDamaged``, or ``OSError`` where it cannot be read now."""
    try:
        return [Entry(*row) for row in _ENTRY.iter_unpack(formats.read_list(folder, stored))]
    except struct.error as error:
        raise errors.ImageDamaged(str(error)) from error
    except OSError as error:
        if blocks.is_damage(error):
            raise errors.ImageDamaged(str(error.strerror)) from error
        raise


class DirectoryAttachment:
    """An attachment opened for reading; see ``units.Attachment``."""

    def __init__(self, *, unit: str, image: str, folder: Path, stored: formats.StoredAttachment, find: Finder) -> None:
        """``find`` leads to the bases. Raises ``AttachmentDamaged`` where the list cannot be read, ``UnitError``."""
        self.name = stored.name
        self._files: dict[Path, io.FileIO] = {}
        self._unit, self._image = unit, image
        with files.unit_errors(unit):
            try:
                entries = read_list(folder, stored)
            except errors.ImageDamaged as error:
                raise attachments.unlisted(image, stored.name, error.message) from error
            self.pages = tuple(units.Page(digest=entry.digest, size=entry.size) for entry in entries)
            self._places = {
                entry.digest: _Place(folder / stored.data, entry.offset, entry.stored)
                for entry in entries
                if entry.stored
            }
            #: Why pages of the base are not found, where some are not.
            self._lost = self._follow({page.digest for page in self.pages} - self._places.keys(), stored, find)
            self._open_files()

    def found(self) -> frozenset[bytes]:
        """The digests of the pages of which it is known where they lie."""
        return frozenset(self._places)

    def read(self, number: int) -> bytes:
        """The bytes of page ``number``, proven. Raises ``ImageDamaged``, ``UnitError``."""
        page = self.pages[number]
        place = self._places.get(page.digest)
        if place is None:
            raise attachments.damaged(self._image, self.name, number, self._lost)
        try:
            frame = os.pread(self._files[place.file].fileno(), place.stored, place.offset)
            if zstandard.frame_content_size(frame) != page.size:
                raise attachments.damaged(self._image, self.name, number, "its frame has a false length")
            data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=page.size)
        except zstandard.ZstdError as error:
            raise attachments.damaged(self._image, self.name, number, error) from error
        except OSError as error:
            if blocks.is_damage(error):
                raise attachments.damaged(self._image, self.name, number, error.strerror) from error
            raise errors.UnitError(f"storage unit {self._unit}: {error.strerror}: {place.file}") from error
        return attachments.proven(self._image, self.name, number, page, data)

    def close(self) -> None:
        """Close its files. Idempotent."""
        for file in self._files.values():
            file.close()

    def _open_files(self) -> None:
        """Open every file that holds a page, so that it is there even if its image is deleted."""
        try:
            for path in {place.file for place in self._places.values()}:
                try:
                    self._files[path] = io.FileIO(path)
                except FileNotFoundError:
                    self._lost = f"{path} is missing"
            self._places = {digest: place for digest, place in self._places.items() if place.file in self._files}
        except BaseException:
            self.close()
            raise

    def _follow(self, wanted: set[bytes], stored: formats.StoredAttachment, find: Finder) -> str:
        """Learn where pages that an image of the chain holds lie; why some are nowhere, if some are."""
        seen = {self._image}
        parent = stored.parent
        while wanted and parent is not None:
            if parent in seen:
                return f"its chain comes back to {parent}"
            seen.add(parent)
            try:
                folder, member = find(parent)
                entries = [] if member is None else read_list(folder, member)
            except (errors.ImageMissing, errors.ImageDamaged) as error:
                return f"base {parent} cannot be used: {error.message}"
            for entry in entries:
                if entry.stored and member is not None and entry.digest in wanted:
                    self._places[entry.digest] = _Place(folder / member.data, entry.offset, entry.stored)
            wanted -= self._places.keys()
            parent = None if member is None else member.parent
        return "no image of the chain holds it"
