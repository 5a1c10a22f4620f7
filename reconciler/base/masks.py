"""A disk with parts of it read as zeros: the free space and the page files that an image leaves out.

Made once per disk by a backup, so that every copy of the image holds the same bytes. The ranges are remembered beside
the image in a compact form, since the next incremental must read anew whatever they hid and hide no longer.
"""

from __future__ import annotations

import base64
import zlib
from array import array

from reconciler.base import disks, extents


class MaskedDisk(disks.Closing):
    """A Disk whose ``hidden`` ranges read as zeros; all other bytes are those of the disk beneath."""

    def __init__(self, disk: disks.Disk, hidden: extents.Extents) -> None:
        self.name = disk.name
        self.size = disk.size
        self.sector = disk.sector
        self._disk = disk
        self._shown = extents.subtract(disk.extents(), hidden)
        self._hidden = hidden
        self._starts = array("q", (offset for offset, _ in hidden))

    def extents(self) -> extents.Extents:
        """What may hold data and is not hidden."""
        return self._shown

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """The bytes, zeros where they are hidden. Hidden bytes are not read where a whole request lies in them."""
        hidden = extents.within(self._hidden, self._starts, offset, length)
        if not hidden:
            return self._disk.pread(offset, length)
        if hidden == ((offset, length),):
            return bytes(length)
        data = bytearray(self._disk.pread(offset, length))
        for start, count in hidden:
            data[start - offset : start - offset + count] = bytes(count)
        return data

    def close(self) -> None:
        """Close the disk beneath."""
        self._disk.close()


def pack(ranges: extents.Extents) -> str:
    """Ordered, disjoint ranges as printable text: distances and lengths in turn, deflated."""
    flat = array("Q")
    end = 0
    for offset, length in ranges:
        flat.extend((offset - end, length))
        end = offset + length
    return base64.b64encode(zlib.compress(flat.tobytes(), 6)).decode("ascii")


def unpack(text: str) -> extents.Extents:
    """The ranges behind a text of ``pack``. Raises ``ValueError`` on any other text."""
    flat = array("Q")
    try:
        flat.frombytes(zlib.decompress(base64.b64decode(text, validate=True)))
    except zlib.error as error:
        raise ValueError(f"not packed ranges: {error}") from error
    if len(flat) % 2:
        raise ValueError("not packed ranges: a distance without a length")
    ranges: list[extents.Extent] = []
    end = 0
    for gap, length in zip(flat[::2], flat[1::2], strict=True):
        ranges.append((end + gap, length))
        end += gap + length
    return tuple(ranges)
