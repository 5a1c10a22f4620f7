"""FAT12, FAT16 and FAT32: the chains of every file, the clusters whose entry in the table is zero, and the names.

Names are long ones where there are, checked by the sum of the short one; times have no zone and are taken as UTC.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import bitmaps, chains, outputs, stretches

_FAT12, _FAT16 = 4085, 65525
_MASK = 0x0FFFFFFF
_LONG, _LABEL, _FOLDER = 0x0F, 0x08, 0x10
_DELETED = 0xE5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
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


def _shape(stretch: stretches.Stretch) -> _Shape:
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
    return _Shape(
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
        label=boot[extended + 7 : extended + 18].decode("cp437").strip() if boot[extended + 2] == 0x29 else "",
        dirty=bool(boot[extended + 1] & 1),
    )


def _table(stretch: stretches.Stretch, shape: _Shape, most: int) -> array[int]:
    """The table's entries, their reserved bits cleared."""
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


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated``, ``Damaged`` and ``TooMuch``."""
    shape = _shape(stretch)
    reader = _Reader(stretch, shape, output)
    reader.walk()
    return reader.facts()


class _Found(NamedTuple):
    path: str
    attributes: int
    cluster: int
    size: int
    raw: bytes


class _Reader:
    def __init__(self, stretch: stretches.Stretch, shape: _Shape, output: outputs.Output) -> None:
        self._stretch = stretch
        self._shape = shape
        self._output = output
        self._table = _table(stretch, shape, 4 * output.limits.bitmap)
        end = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[shape.bits]
        self._clusters = chains.Clusters(
            stretch, self._table, last=shape.last, end=end, base=shape.base, unit=shape.unit
        )
        self._number = 0
        self._damaged = 0
        self._label = shape.label

    def walk(self) -> None:
        """All directories from the root down; each has clusters of its own, so that none is met twice."""
        shape = self._shape
        if shape.root_cluster:
            try:
                runs = self._clusters.chain(shape.root_cluster)
            except chains.Damaged as error:
                raise stretches.Truncated(f"the root of FAT cannot be read: {error}") from None
            self._hand_over(runs)
            data = self._clusters.content(runs, chains.MOST_DIRECTORY)
        else:
            data = self._stretch.exactly(shape.root, shape.root_length)
        waiting = [("", data)]
        while waiting:
            above, data = waiting.pop()
            below = [entry for found in self._entries(above, data) if (entry := self._take(found)) is not None]
            waiting += reversed(below)

    def _hand_over(self, runs: list[chains.Run]) -> None:
        self._number += 1
        if self._output.want_runs:
            for offset, place, length in self._clusters.extents(runs):
                self._output.run(self._number, offset, place, length)

    def _take(self, found: _Found) -> tuple[str, bytes] | None:
        """Hand over one entry; path and content where it is a directory."""
        folder = bool(found.attributes & _FOLDER)
        runs: list[chains.Run] = []
        try:
            if found.cluster:
                runs = self._clusters.chain(found.cluster)
        except chains.Damaged as error:
            self._damaged += 1
            self._output.warn("FileSkipped", f"{found.path[:200]!a} cannot be read: {error}")
            return None
        self._hand_over(runs)
        if self._output.want_files:
            self._output.file(self._entry(found, folder, runs))
        return (found.path, self._clusters.content(runs, chains.MOST_DIRECTORY)) if folder else None

    def _entry(self, found: _Found, folder: bool, runs: list[chains.Run]) -> outputs.Entry:
        entry = outputs.Entry(
            path=found.path,
            kind="directory" if folder else "file",
            size=0 if folder else found.size,
            inode=found.cluster,
            resident=not runs,
        )
        if not folder:
            entry.runs = list(self._clusters.extents(runs))
        hundredths, made_time, made_date, read_date = struct.unpack_from("<BHHH", found.raw, 13)
        time, date = struct.unpack_from("<HH", found.raw, 22)
        entry.created = chains.moment(made_date, made_time, hundredths)
        entry.modified = chains.moment(date, time)
        entry.accessed = chains.moment(read_date, 0)
        return entry

    def _entries(self, above: str, data: bytes) -> Iterator[_Found]:
        pieces: dict[int, str] = {}
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
                    pieces[raw[0] & 0x1F] = (raw[1:11] + raw[14:26] + raw[28:32]).decode("utf-16-le", "surrogatepass")
            else:
                found = self._short(above, raw, pieces, checked)
                pieces = {}
                if found is not None:
                    yield found

    def _short(self, above: str, raw: bytes, pieces: dict[int, str], checked: int) -> _Found | None:
        attributes = raw[11]
        if attributes & _LABEL:
            if not above:
                self._label = raw[:11].decode("cp437").strip()
            return None
        if raw[:2] in (b". ", b".."):
            return None
        name = _long(pieces) if pieces and _sum(raw[:11]) == checked else _eight(raw)
        high, low, size = struct.unpack_from("<H4xHI", raw, 20)
        cluster = low | (high << 16 if self._shape.bits == 32 else 0)
        return _Found(f"{above}/{name}" if above else name, attributes, cluster, size, raw)

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where the table is believed."""
        shape = self._shape
        marks = {32: (1 << 27, 1 << 26), 16: (1 << 15, 1 << 14), 12: (0, 0)}[shape.bits]
        clean = not shape.dirty and self._table[1] & sum(marks) == sum(marks)
        reason = "" if clean or self._output.quiesced else "it was not unmounted"
        if shape.bits != 12 and not self._table[1] & marks[1]:
            reason = "it has recorded errors"
        if self._damaged:
            reason = f"{self._damaged} files cannot be read"
        if self._output.want_space and not reason:
            self._free()
        return outputs.Facts(filesystem="fat", label=self._label, clean=clean, reason=reason, cluster=shape.unit)

    def _free(self) -> None:
        count = self._shape.last - 1
        bits = bytearray(-(-count // 8))
        bitmap = bitmaps.Bitmap(bits, count=count, unit=self._shape.unit, base=self._shape.base)
        first = 0
        table = self._table
        # Zeros of the table as runs: whatever is not zero is in use, bad or reserved.
        for at in range(chains.FIRST, self._shape.last + 1):
            if not table[at]:
                continue
            first = at - chains.FIRST
            bits[first >> 3] |= 1 << (first & 7)
        for offset, length in bitmap.free():
            self._output.free(offset, length)


def _long(pieces: dict[int, str]) -> str:
    text = "".join(pieces[number] for number in sorted(pieces))
    return text.split("\x00", 1)[0]


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
