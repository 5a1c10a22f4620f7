"""The frame of a FAT file system, its table, and the entries of its directories.

Used by ``fat``, which reads all of a volume, and by ``fat_nodes``, which reads single files of it.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import chains, outputs, stretches, texts

_FAT12, _FAT16 = 4085, 65525
_MASK = 0x0FFFFFFF
_LONG, _LABEL, _FOLDER = 0x0F, 0x08, 0x10
_DELETED = 0xE5
#: What stands there where nobody gave a name.
_UNNAMED = "NO NAME"
#: Why a volume is not clean.
MOUNTED, ERRORS = "it was not unmounted", "it has recorded errors"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the boot sector says, checked."""

    sector: int
    #: Bytes per cluster, and the byte at which cluster 2 starts.
    unit: int
    base: int
    #: The highest cluster.
    last: int
    bits: int
    #: Byte and length of the first table.
    table: int
    table_length: int
    #: Byte and length of a root that has no chain; the first cluster of one that has.
    root: int
    root_length: int
    root_cluster: int
    label: str
    dirty: bool

    @property
    def end(self) -> int:
        """The least value that ends a chain."""
        return {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[self.bits]

    def reason(self, second: int) -> str:
        """Why the volume is not clean, from the table's second entry; empty where it is."""
        unmounted, well = {32: (1 << 27, 1 << 26), 16: (1 << 15, 1 << 14), 12: (0, 0)}[self.bits]
        if self.bits != 12 and not second & well:
            return ERRORS
        return MOUNTED if self.dirty or second & unmounted != unmounted else ""


def shape(stretch: stretches.Stretch) -> Shape:
    """The boot sector of a volume. Raises ``Truncated`` where it is not consistent in itself."""
    boot = stretch.exactly(0, 512)
    sector, each, reserved, tables, entries, small = struct.unpack_from("<HBHBHH", boot, 11)
    length16, large, length32 = struct.unpack_from("<H8xII", boot, 22)
    length = length16 or length32
    if sector not in (512, 1024, 2048, 4096) or not each or not reserved or not tables or not length:
        raise stretches.Truncated("the boot sector of FAT is not consistent")
    root = (reserved + tables * length) * sector
    root_length = -(-entries * chains.ENTRY // sector) * sector
    base = root + root_length
    total = min((small or large) * sector, stretch.size)
    count = (total - base) // (each * sector)
    bits = 12 if count < _FAT12 else 16 if count < _FAT16 else 32
    if not length16:
        bits = 32
    if count < 1 or (bits == 32) != (not entries) or (count + 2) * bits > length * sector * 8:
        raise stretches.Truncated("the boot sector of FAT is not consistent")
    extended = 64 if bits == 32 else 36
    return Shape(
        sector=sector,
        unit=each * sector,
        base=base,
        last=count + 1,
        bits=bits,
        table=reserved * sector,
        table_length=length * sector,
        root=root,
        root_length=root_length,
        root_cluster=struct.unpack_from("<I", boot, 44)[0] if bits == 32 else 0,
        label=label(boot[extended + 7 :]) if boot[extended + 2] == 0x29 else "",
        dirty=bool(boot[extended + 1] & 1),
    )


def table(stretch: stretches.Stretch, shape: Shape, most: int) -> array[int]:
    """The table's entries, their reserved bits cleared. Raises ``Truncated`` and ``TooMuch``."""
    if shape.last * 4 > most:
        raise outputs.TooMuch(f"a table of more than {most} bytes")
    data = stretch.exactly(shape.table, -(-(shape.last + 1) * shape.bits // 8))
    if shape.bits == 32:
        return array("I", (value & _MASK for value in array("I", data)))
    if shape.bits == 16:
        return array("I", array("H", data))
    found = array("I")
    for at in range(0, 3 * (len(data) // 3), 3):
        three = int.from_bytes(data[at : at + 3], "little")
        found.extend((three & 0xFFF, three >> 12))
    if len(data) % 3 == 2:
        found.append(int.from_bytes(data[-2:], "little") & 0xFFF)
    return found


class Found(NamedTuple):
    """One entry of a directory."""

    name: str
    #: Where its short name lies among the directory's bytes.
    at: int
    attributes: int
    #: 0 where it has none.
    cluster: int
    size: int
    raw: bytes

    @property
    def folder(self) -> bool:
        """Whether it is a directory."""
        return bool(self.attributes & _FOLDER)

    @property
    def label(self) -> bool:
        """Whether it is no file but names the volume."""
        return bool(self.attributes & _LABEL)

    def times(self) -> tuple[int, int, int, int]:
        """Created, modified, changed (never known) and accessed; local times are taken as UTC."""
        hundredths, made_time, made_date, read_date = struct.unpack_from("<BHHH", self.raw, 13)
        time, date = struct.unpack_from("<HH", self.raw, 22)
        created = chains.moment(made_date, made_time, hundredths)
        return created, chains.moment(date, time), 0, chains.moment(read_date, 0)


def entries(data: bytes, wide: bool) -> Iterator[Found]:
    """What a directory holds, labels included, itself and its parent left out; ``wide``: numbers have 32 bits."""
    pieces: dict[int, bytes] = {}
    checked = -1
    for at in range(0, len(data) - chains.ENTRY + 1, chains.ENTRY):
        raw = data[at : at + chains.ENTRY]
        if not raw[0]:
            return
        if raw[0] == _DELETED:
            pieces = {}
        elif raw[11] & 0x3F == _LONG:
            if raw[0] & 0x40:
                pieces, checked = {}, raw[13]
            if raw[13] == checked:
                pieces[raw[0] & 0x1F] = raw[1:11] + raw[14:26] + raw[28:32]
        else:
            if raw[:2] not in (b". ", b".."):
                name = _long(pieces) if pieces and _sum(raw[:11]) == checked else ""
                yield entry(raw, at, wide, name)
            pieces = {}


def entry(raw: bytes, at: int, wide: bool, name: str = "") -> Found:
    """One entry from its own 32 bytes, under its short name where no other is given."""
    high, low, size = struct.unpack_from("<H4xHI", raw, 20)
    return Found(name or _eight(raw), at, raw[11], low | (high << 16 if wide else 0), size, raw)


def label(raw: bytes) -> str:
    """The name that an entry, or the boot sector, gives to the volume."""
    text = raw[:11].decode("cp437").strip()
    return "" if text == _UNNAMED else text


def free(raw: bytes) -> bool:
    """Whether an entry is none: unused, deleted, a piece of a long name, or the directory itself or its parent."""
    return raw[0] in (0, _DELETED) or raw[:2] in (b". ", b"..") or bool(raw[11] & _LABEL)


def _long(pieces: dict[int, bytes]) -> str:
    data = b"".join(pieces[number] for number in sorted(pieces))
    end = next((at for at in range(0, len(data), 2) if data[at : at + 2] == b"\0\0"), len(data))
    return texts.utf16(data[:end])


def _sum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total


def _eight(raw: bytes) -> str:
    head = (b"\xe5" + raw[1:8] if raw[0] == 0x05 else raw[:8]).decode("cp437").rstrip()
    tail = raw[8:11].decode("cp437").rstrip()
    # Windows keeps in this byte that a short name was written in small letters.
    head = head.lower() if raw[12] & 0x08 else head
    tail = tail.lower() if raw[12] & 0x10 else tail
    return f"{head}.{tail}" if tail else head
