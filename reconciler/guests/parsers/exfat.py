"""exFAT: the clusters of every file, its allocation bitmap, and the names."""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import bitmaps, chains, outputs, stretches

_BITMAP, _UPCASE, _LABEL, _FILE, _STREAM, _NAME = 0x81, 0x82, 0x83, 0x85, 0xC0, 0xC1
_NO_CHAIN = 0x02
_FOLDER = 0x10
_DIRTY, _FAILED = 0x02, 0x04
_END = 0xFFFFFFF8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    unit: int
    base: int
    last: int
    table: int
    root: int
    flags: int
    second: bool


def _shape(stretch: stretches.Stretch) -> _Shape:
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
    return _Shape(unit=unit, base=base, last=count + 1, table=place, root=root, flags=flags, second=second)


class _Found(NamedTuple):
    path: str
    folder: bool
    chained: bool
    first: int
    size: int
    valid: int
    #: The file's own entry, which holds its times.
    raw: bytes


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated``, ``Damaged`` and ``TooMuch``."""
    shape = _shape(stretch)
    reader = _Reader(stretch, shape, output)
    reader.walk()
    return reader.facts()


class _Reader:
    def __init__(self, stretch: stretches.Stretch, shape: _Shape, output: outputs.Output) -> None:
        if shape.last * 4 > 4 * output.limits.bitmap:
            raise outputs.TooMuch(f"a table of more than {4 * output.limits.bitmap} bytes")
        table = array("I", stretch.exactly(shape.table, 4 * (shape.last + 1)))
        self._stretch = stretch
        self._shape = shape
        self._output = output
        self._clusters = chains.Clusters(stretch, table, last=shape.last, end=_END, base=shape.base, unit=shape.unit)
        self._number = 0
        self._damaged = 0
        self._label = ""
        self._bits: bytearray | None = None
        self._claimed: list[chains.Run] = []

    def walk(self) -> None:
        """All directories from the root down; each has clusters of its own, so that none is met twice."""
        try:
            runs = self._clusters.chain(self._shape.root)
        except chains.Damaged as error:
            raise stretches.Truncated(f"the root of exFAT cannot be read: {error}") from None
        self._hand_over(runs)
        waiting = [("", self._clusters.content(runs, chains.MOST_DIRECTORY))]
        while waiting:
            above, data = waiting.pop()
            below = [entry for found in self._entries(above, data) if (entry := self._take(found)) is not None]
            waiting += reversed(below)

    def _runs(self, found: _Found) -> list[chains.Run]:
        if not found.first or not found.size:
            return []
        if found.chained:
            return self._clusters.chain(found.first)
        return self._clusters.row(found.first, -(-found.size // self._shape.unit))

    def _hand_over(self, runs: list[chains.Run]) -> None:
        self._number += 1
        self._claimed += runs
        if self._output.want_runs:
            for offset, place, length in self._clusters.extents(runs):
                self._output.run(self._number, offset, place, length)

    def _take(self, found: _Found) -> tuple[str, bytes] | None:
        """Hand over one file; path and content where it is a directory."""
        try:
            runs = self._runs(found)
        except chains.Damaged as error:
            self._damaged += 1
            self._output.warn("FileSkipped", f"{found.path[:200]!a} cannot be read: {error}")
            return None
        self._hand_over(runs)
        if self._output.want_files:
            self._output.file(self._entry(found, runs))
        if not found.folder:
            return None
        return found.path, self._clusters.content(runs, min(found.size, chains.MOST_DIRECTORY))

    def _entry(self, found: _Found, runs: list[chains.Run]) -> outputs.Entry:
        entry = outputs.Entry(
            path=found.path,
            kind="directory" if found.folder else "file",
            size=0 if found.folder else found.size,
            inode=found.first,
            resident=not runs,
        )
        if not found.folder:
            # What lies behind the valid length was never written and reads as zeros.
            entry.runs = (
                [
                    (offset, place, min(length, found.valid - offset))
                    for offset, place, length in self._clusters.extents(runs)
                    if offset < found.valid
                ]
                if found.valid < found.size
                else list(self._clusters.extents(runs))
            )
        raw = found.raw
        made, changed, read = struct.unpack_from("<III", raw, 8)
        entry.created = _moment(made, raw[20], raw[22])
        entry.modified = _moment(changed, raw[21], raw[23])
        entry.accessed = _moment(read, 0, raw[24])
        return entry

    def _entries(self, above: str, data: bytes) -> Iterator[_Found]:
        at = 0
        while at + chains.ENTRY <= len(data) and data[at]:
            raw = data[at : at + chains.ENTRY]
            if raw[0] == _FILE:
                more = raw[1]
                group = data[at : at + chains.ENTRY * (more + 1)]
                if len(group) == chains.ENTRY * (more + 1) and _sum(group) == int.from_bytes(raw[2:4], "little"):
                    found = self._file(above, group)
                    at += chains.ENTRY * more
                    if found is not None:
                        yield found
                else:
                    self._damaged += 1
                    self._output.warn("FileSkipped", f"an entry in /{above[:200]} is damaged")
            elif not above:
                self._own(raw)
            at += chains.ENTRY

    def _file(self, above: str, group: bytes) -> _Found | None:
        stream = group[chains.ENTRY : 2 * chains.ENTRY]
        if len(stream) < chains.ENTRY or stream[0] != _STREAM:
            return None
        flags, letters = stream[1], stream[3]
        valid, first, size = struct.unpack_from("<Q4xIQ", stream, 8)
        name = b"".join(
            group[at + 2 : at + chains.ENTRY]
            for at in range(2 * chains.ENTRY, len(group), chains.ENTRY)
            if group[at] == _NAME
        )
        text = name[: 2 * letters].decode("utf-16-le", "surrogatepass")
        folder = bool(int.from_bytes(group[4:6], "little") & _FOLDER)
        path = f"{above}/{text}" if above else text
        return _Found(path, folder, not flags & _NO_CHAIN, first, size, min(valid, size), group[: chains.ENTRY])

    def _own(self, raw: bytes) -> None:
        """Entries of the root that describe the volume."""
        first, size = struct.unpack_from("<IQ", raw, 20)
        if raw[0] == _LABEL:
            self._label = raw[2 : 2 + 2 * min(raw[1], 11)].decode("utf-16-le", "replace")
        elif raw[0] == _UPCASE or (raw[0] == _BITMAP and bool(raw[1] & 1) == self._shape.second):
            try:
                runs = self._clusters.chain(first)
            except chains.Damaged as error:
                self._damaged += 1
                self._output.warn("FileSkipped", f"a table of the volume cannot be read: {error}")
                return
            self._claimed += runs
            if raw[0] == _BITMAP and self._output.want_space:
                if size > self._output.limits.bitmap:
                    raise outputs.TooMuch(f"a bitmap of more than {self._output.limits.bitmap} bytes")
                self._bits = bytearray(self._clusters.content(runs, size))

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where its bitmap is believed."""
        flags, unit = self._shape.flags, self._shape.unit
        clean = not flags & (_DIRTY | _FAILED)
        reason = "" if clean or self._output.quiesced else "it was not unmounted"
        if flags & _FAILED:
            reason = "it has recorded errors"
        if self._damaged:
            reason = f"{self._damaged} files cannot be read"
        if self._output.want_space and not reason:
            reason = self._free()
        return outputs.Facts(filesystem="exfat", label=self._label, clean=clean, reason=reason, cluster=unit)

    def _free(self) -> str:
        count = self._shape.last - 1
        if self._bits is None or len(self._bits) * 8 < count:
            return "its bitmap is missing or too short"
        bitmap = bitmaps.Bitmap(self._bits, count=count, unit=self._shape.unit, base=self._shape.base)
        for first, many in self._claimed:
            bitmap.mark(first - chains.FIRST, many, True)
        for offset, length in bitmap.free():
            self._output.free(offset, length)
        return ""


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
