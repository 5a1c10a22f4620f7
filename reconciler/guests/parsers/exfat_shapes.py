"""The frame of an exFAT file system and the entries of its directories, each a group of 32 bytes each with a sum.

Used by ``exfat``, which reads all of a volume, and by ``exfat_nodes``, which reads single files of it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import chains, stretches, texts

BITMAP, UPCASE, LABEL, FILE, _STREAM, _NAME = 0x81, 0x82, 0x83, 0x85, 0xC0, 0xC1
_NO_CHAIN = 0x02
_FOLDER = 0x10
#: Why a volume is not clean.
MOUNTED, ERRORS = "it was not unmounted", "it has recorded errors"
_DIRTY, _FAILED = 0x02, 0x04
END = 0xFFFFFFF8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the boot sector says, checked: bytes, and clusters by number."""

    unit: int
    base: int
    last: int
    table: int
    root: int
    flags: int
    second: bool

    @property
    def reason(self) -> str:
        """Why the volume is not clean, empty where it is."""
        if self.flags & _FAILED:
            return ERRORS
        return MOUNTED if self.flags & _DIRTY else ""


def shape(stretch: stretches.Stretch) -> Shape:
    """The boot sector of a volume. Raises ``Truncated`` where it is not consistent in itself."""
    boot = stretch.exactly(0, 512)
    length, table, table_length, heap, count, root = struct.unpack_from("<QIIIII", boot, 72)
    flags, sector_bits, each_bits, tables = struct.unpack_from("<HBBB", boot, 106)
    sound = 9 <= sector_bits <= 12 and each_bits <= 25 - sector_bits and tables in (1, 2) and count
    if not sound:
        raise stretches.Truncated("the boot sector of exFAT is not consistent")
    unit = 1 << sector_bits + each_bits
    base = heap << sector_bits
    if base + count * unit > stretch.size or (count + 2) * 4 > table_length << sector_bits or not length:
        raise stretches.Truncated("the boot sector of exFAT is not consistent")
    second = tables == 2 and bool(flags & 1)
    place = (table + (table_length if second else 0)) << sector_bits
    return Shape(unit=unit, base=base, last=count + 1, table=place, root=root, flags=flags, second=second)


class Found(NamedTuple):
    """One file, from its group of entries."""

    name: str
    #: Where the group lies among the directory's bytes.
    at: int
    folder: bool
    #: Whether its clusters are chained in the table; else they lie in a row.
    chained: bool
    first: int
    size: int
    #: Bytes that were ever written; the others read as zeros.
    valid: int
    #: The file's own entry, which holds its times.
    raw: bytes

    def times(self) -> tuple[int, int, int, int]:
        """Created, modified, changed (never known) and accessed; where no zone is recorded UTC is taken."""
        raw = self.raw
        made, changed, read = struct.unpack_from("<III", raw, 8)
        return _moment(made, raw[20], raw[22]), _moment(changed, raw[21], raw[23]), 0, _moment(read, 0, raw[24])


def entries(data: bytes) -> Iterator[Found | bytes | None]:
    """What a directory holds: files, other entries as their 32 bytes, and None for a damaged one."""
    at = 0
    while at + chains.ENTRY <= len(data) and data[at]:
        raw = data[at : at + chains.ENTRY]
        if raw[0] != FILE:
            yield raw
        else:
            group = data[at : at + chains.ENTRY * (raw[1] + 1)]
            if not sound(group):
                yield None
            else:
                found = file(group, at)
                at += chains.ENTRY * raw[1]
                if found is not None:
                    yield found
        at += chains.ENTRY


def sound(group: bytes) -> bool:
    """Whether a group of entries is whole and its sum holds."""
    return len(group) == chains.ENTRY * (group[1] + 1) and _sum(group) == int.from_bytes(group[2:4], "little")


def file(group: bytes, at: int) -> Found | None:
    """The file that a sound group describes, None where it describes none."""
    stream = group[chains.ENTRY : 2 * chains.ENTRY]
    if len(stream) < chains.ENTRY or stream[0] != _STREAM:
        return None
    flags, letters = stream[1], stream[3]
    valid, first, size = struct.unpack_from("<Q4xIQ", stream, 8)
    name = b"".join(
        group[place + 2 : place + chains.ENTRY]
        for place in range(2 * chains.ENTRY, len(group), chains.ENTRY)
        if group[place] == _NAME
    )
    text = texts.utf16(name[: 2 * letters])
    folder = bool(int.from_bytes(group[4:6], "little") & _FOLDER)
    return Found(text, at, folder, not flags & _NO_CHAIN, first, size, min(valid, size), group[: chains.ENTRY])


def runs(clusters: chains.Clusters, found: Found, *, take: bool) -> list[chains.Run]:
    """The clusters of a file. Raises ``Damaged``."""
    if not found.first or not found.size:
        return []
    if found.chained:
        return clusters.chain(found.first, take=take)
    return clusters.row(found.first, -(-found.size // clusters.unit), take=take)


def written(clusters: chains.Clusters, found: Found, own: list[chains.Run]) -> list[tuple[int, int, int]]:
    """The runs of a file in bytes, without what was never written."""
    return [
        (offset, place, min(length, found.valid - offset) if found.valid < found.size else length)
        for offset, place, length in clusters.extents(own)
        if offset < found.valid or found.valid >= found.size
    ]


def label(raw: bytes) -> str:
    """The name that an entry of the root gives to the volume."""
    return raw[2 : 2 + 2 * min(raw[1], 11)].decode("utf-16-le", "replace")


def _sum(group: bytes) -> int:
    total = 0
    for at, byte in enumerate(group):
        if at not in (2, 3):
            total = ((total & 1) << 15 | total >> 1) + byte & 0xFFFF
    return total


def _moment(value: int, hundredths: int, zone: int) -> int:
    """Nanoseconds since 1970; the zone is in quarters of an hour, seven bits with a sign, if its top bit is set."""
    quarters = (zone & 0x7F) - (128 if zone & 0x40 else 0) if zone & 0x80 else 0
    return chains.moment(value >> 16, value & 0xFFFF, hundredths, 15 * quarters)
