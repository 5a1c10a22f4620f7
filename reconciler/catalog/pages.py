"""The contents of a catalog laid out on pages, so that tomorrow's backup of it has most pages in common with today's.

A backup of the catalog is one disk, and disks are compared by their blocks: one row that grows must not move all that
follow it. So every page begins at a multiple of 128 KiB, rows come in the order in which they were made, and a page
ends at rows that are chosen by their keys, which do not change; what is left is zeros. Every large table has a region
of the disk for itself, which doubles when it is full. ``sources.catalogs`` writes the pages, a rebuild reads them.
Without the zeros the disk is JSON lines, as ``contents`` says.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from reconciler.catalog import contents, database

#: Bytes at whose multiples pages begin: the segment of a pool.
PAGE: Final = 128 << 10
#: From so many bytes on a page ends at the next row whose key says so: one in ``_CHANCE``.
_ENOUGH: Final = PAGE // 2
_CHANCE: Final = 32
#: Bytes of the smallest region: the block that incrementals are made of.
_REGION: Final = 1 << 20
#: A disk grows by doubling, so that it seldom changes its size.
_SMALLEST: Final = 16 << 20
#: How every backup of a catalog begins.
MAGIC: Final = b'{"holdfast":"catalog"'


class Place(NamedTuple):
    """Where a page lies; all in bytes."""

    disk: int
    file: int
    length: int


def write(db: database.Database, file: BinaryIO) -> tuple[Place, ...]:
    """One moment of the catalog into an empty file, page after page, and where each lies on the disk. Raises
    ``OSError``."""
    pages = _Pages(file)
    with db.reading() as connection:
        for part in contents.written(connection, db.id, by_age=True):
            for key, line in zip(part.keys, part.lines, strict=True):
                pages.add(key, line)
    pages.end_region()
    return tuple(pages.places)


def disk_size(places: Iterable[Place]) -> int:
    """Bytes of the disk that holds these pages."""
    return max(_SMALLEST, _doubled(max(place.disk + place.length for place in places)))


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines on pages that are read one after the other. Raises ``CatalogError`` where the last one is cut."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        rest = rest.lstrip(b"\0")
        for padded in whole:
            line = padded.lstrip(b"\0")
            if line:
                yield line
    if rest:
        raise contents.damaged("it ends within a line")


class _Pages:
    """Lines on their way to pages."""

    def __init__(self, file: BinaryIO) -> None:
        self.places: list[Place] = []
        self._file = file
        self._written = 0
        self._lines: list[bytes] = []
        self._size = 0
        #: Where the region begins and where its next page does, from the start of the disk.
        self._region = self._next = 0

    def add(self, key: str | None, line: bytes) -> None:
        """One more line; ``key`` is None where it is no row, such as where a table begins."""
        if key is None and self._next + self._size >= self._region + _REGION:
            self.end_region()
        elif self._size + len(line) > PAGE:
            self._end_page()
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _ENOUGH and key is not None and zlib.crc32(key.encode()) % _CHANCE == 0:
            self._end_page()

    def end_region(self) -> None:
        """The next page begins a region of its own."""
        self._end_page()
        self._region = self._next = self._region + max(_REGION, _doubled(self._next - self._region))

    def _end_page(self) -> None:
        if not self._size:
            return
        self._file.write(b"".join(self._lines))
        self.places.append(Place(self._next, self._written, self._size))
        self._written += self._size
        # A line that is longer than a page takes as many as it needs.
        self._next += -(-self._size // PAGE) * PAGE
        self._lines, self._size = [], 0


def _doubled(size: int) -> int:
    """The power of two that is not smaller."""
    return 1 << max(size - 1, 1).bit_length()
