"""The contents of a catalog laid out on pages, so that tomorrow's backup of it has most pages in common with today's.

A backup of the catalog is one disk, and disks are compared by their blocks: one row that grows must not move all that
follow it. So every page begins at a multiple of 128 KiB, rows come in the order in which they were made, and a page
ends at rows that are chosen by their keys, which do not change; what is left is zeros. ``sources.catalogs`` writes
the pages, a rebuild reads them. Without the zeros the file is JSON lines, as ``contents`` says.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from reconciler.base import extents
from reconciler.catalog import contents, database

#: Bytes at whose multiples pages begin: the segment of a pool.
PAGE: Final = 128 << 10
#: From so many bytes on a page ends at the next row whose key says so: one in ``_CHANCE``.
_ENOUGH: Final = PAGE // 2
_CHANCE: Final = 32
#: A disk grows by doubling, so that it seldom changes its size.
_SMALLEST: Final = 16 << 20
#: How every backup of a catalog begins.
MAGIC: Final = b'{"holdfast":"catalog"'


def write(db: database.Database, file: BinaryIO) -> extents.Extents:
    """One moment of the catalog into an empty file; where in it the pages hold something. Raises ``OSError``."""
    pages = _Pages(file)
    with db.reading() as connection:
        for part in contents.written(connection, db.id, by_age=True):
            for key, line in zip(part.keys, part.lines, strict=True):
                pages.add(key, line)
    pages.close()
    return tuple(pages.filled)


def disk_size(length: int) -> int:
    """Bytes of a disk that holds ``length`` bytes of pages."""
    return max(_SMALLEST, 1 << max(length - 1, 1).bit_length())


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
        self.filled: list[extents.Extent] = []
        self._file = file
        self._lines: list[bytes] = []
        self._size = 0
        self._offset = 0

    def add(self, key: str | None, line: bytes) -> None:
        """One more line; ``key`` is None where it is no row."""
        if self._size + len(line) > PAGE:
            self.close()
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _ENOUGH and key is not None and zlib.crc32(key.encode()) % _CHANCE == 0:
            self.close()

    def close(self) -> None:
        """End the page, if anything is on it."""
        if not self._size:
            return
        self._file.seek(self._offset)
        self._file.write(b"".join(self._lines))
        self.filled.append((self._offset, self._size))
        # A line that is longer than a page takes as many as it needs.
        self._offset += -(-self._size // PAGE) * PAGE
        self._lines, self._size = [], 0
