"""The records of an NTFS volume: boot sector, master file table, attributes and the runs of clusters behind them.

Used by the other ``ntfs`` modules; nothing here knows of names or of free space. Every number that leads to a read is
checked first: a record that does not hold together raises ``Damaged`` and is left out, the others are still read.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import struct
from collections.abc import Container, Iterator
from typing import NamedTuple

from reconciler.guests.parsers import stretches, texts

#: Types of attributes.
STANDARD, LIST, NAME, SECURITY, LABEL, FACTS, DATA, INDEX, ALLOCATION, BITMAP, REPARSE, EXTENDED = (
    0x10,
    0x20,
    0x30,
    0x50,
    0x60,
    0x70,
    0x80,
    0x90,
    0xA0,
    0xB0,
    0xC0,
    0xE0,
)
#: Flags of an attribute.
COMPRESSED, ENCRYPTED, SPARSE = 0x00FF, 0x4000, 0x8000
#: Flags of a record.
IN_USE, DIRECTORY = 1, 2
#: The part of a reference that is the record's number; the rest is its sequence.
NUMBER = (1 << 48) - 1

_SECTOR = 512
#: Bytes of the table that are read at once, and of an attribute list that is believed.
_CHUNK = 1 << 20
_MOST_LIST = 4 << 20
_END = 0xFFFFFFFF
#: Clusters of a stream that are believed: the largest cluster has 2 MiB, and offsets end at 62 bits.
_FARTHEST = (1 << 41) - 1

#: First cluster of the stream, cluster of the volume, clusters.
Run = tuple[int, int, int]


class Damaged(Exception):
    """A record contradicts itself or points outside the volume."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the boot sector says, checked."""

    #: Bytes per cluster and per record of the table.
    cluster: int
    record: int
    #: Clusters of the volume, a count.
    clusters: int
    #: Cluster of the table's first record, and of its mirror.
    table: int
    mirror: int


class Attribute(NamedTuple):
    """One attribute, or the part of a large one that one record holds."""

    kind: int
    name: str
    flags: int
    #: The content where it lies in the record; None where it has clusters.
    value: bytes | None
    #: The first of the stream's clusters that this part covers, and the one behind the last.
    first: int
    end: int
    #: Bytes of the content, and how many of them were ever written; the others read as zeros.
    size: int
    initialized: int
    runs: list[Run]
    #: Clusters that are compressed together, as a power of two; 0 where none are.
    unit: int = 0


def shape(stretch: stretches.Stretch) -> Shape:
    """The boot sector of a volume. Raises ``Truncated`` where it is not consistent in itself."""
    boot = stretch.exactly(0, _SECTOR)
    sector, each = struct.unpack_from("<HB", boot, 11)
    sectors, table, mirror = struct.unpack_from("<QQQ", boot, 40)
    record = struct.unpack_from("<b", boot, 64)[0]
    cluster = sector * (each if each <= 0x80 else 1 << (256 - each))
    size = record * cluster if record > 0 else 1 << -record if record >= -16 else 0
    sound = (
        sector in (512, 1024, 2048, 4096)
        and cluster & (cluster - 1) == 0
        and sector <= cluster <= 2 << 20
        and size & (size - 1) == 0
        and _SECTOR <= size <= 1 << 16
        and sectors
        and table
    )
    if not sound:
        raise stretches.Truncated("the boot sector of NTFS is not consistent")
    clusters = min(sectors * sector, stretch.size) // cluster
    if table >= clusters:
        raise stretches.Truncated("the table of NTFS lies outside the volume")
    return Shape(cluster=cluster, record=size, clusters=clusters, table=table, mirror=mirror)


def mend(data: bytes) -> bytearray:
    """A record with the ends of its sectors put back. Raises ``Damaged`` where it was written in part only."""
    record = bytearray(data)
    at, count = struct.unpack_from("<HH", record, 4)
    if count != len(record) // _SECTOR + 1 or at < 40 or at + 2 * count > _SECTOR - 2:
        raise Damaged("its update sequence is impossible")
    mark = record[at : at + 2]
    for number in range(1, count):
        end = number * _SECTOR
        if record[end - 2 : end] != mark:
            raise Damaged("it was written in part")
        record[end - 2 : end] = record[at + 2 * number : at + 2 * number + 2]
    return record


def base(record: bytearray) -> int:
    """The number of the record this one extends, 0 if it stands for itself."""
    return int.from_bytes(record[32:40], "little") & NUMBER


def attributes(record: bytearray, clusters: int, wanted: Container[int]) -> Iterator[Attribute]:
    """The attributes of a mended record that have clusters, and of the others those of the ``wanted`` types.

    ``clusters`` is a count. Raises ``Damaged``.
    """
    at = int.from_bytes(record[20:22], "little")
    end = min(len(record), int.from_bytes(record[24:28], "little"))
    while at + 16 <= end:
        kind, length, clustered, letters, name_at, flags = struct.unpack_from("<IIBBHH", record, at)
        if kind == _END:
            return
        if length < 24 or length % 8 or at + length > end or name_at + 2 * letters > length:
            raise Damaged(f"its attribute of type {kind:#x} does not fit")
        if clustered or kind in wanted:
            part = memoryview(record)[at : at + length]
            name = texts.utf16(bytes(part[name_at : name_at + 2 * letters])) if letters else ""
            yield _clustered(part, kind, name, flags, clusters) if clustered else _resident(part, kind, name, flags)
        at += length
    if record[at : at + 4] != b"\xff\xff\xff\xff":
        raise Damaged("its attributes have no end")


def _resident(part: memoryview, kind: int, name: str, flags: int) -> Attribute:
    length, at = struct.unpack_from("<IH", part, 16)
    if at + length > len(part):
        raise Damaged(f"the content of its attribute of type {kind:#x} does not fit")
    return Attribute(kind, name, flags, bytes(part[at : at + length]), 0, 0, length, length, [])


def _clustered(part: memoryview, kind: int, name: str, flags: int, clusters: int) -> Attribute:
    if len(part) < 64:
        raise Damaged(f"its attribute of type {kind:#x} is too short")
    first, last, pairs, size, initialized = struct.unpack_from("<QQH14xQQ", part, 16)
    runs, end = _runs(part, pairs, first, clusters)
    if end != (last + 1) & 0xFFFFFFFFFFFFFFFF:
        raise Damaged(f"the runs of its attribute of type {kind:#x} end at cluster {end}, not {last}")
    unit = int.from_bytes(part[34:36], "little")
    return Attribute(kind, name, flags, None, first, end, size, min(initialized, size), runs, unit)


def _runs(part: memoryview, at: int, vcn: int, clusters: int) -> tuple[list[Run], int]:
    """The runs that a list of mapping pairs stands for, holes left out, and the cluster behind them."""
    runs: list[Run] = []
    lcn = 0
    end = len(part)
    while at < end and part[at]:
        lengths, offsets = part[at] & 15, part[at] >> 4
        middle = at + 1 + lengths
        at = middle + offsets
        if not 0 < lengths <= 8 or offsets > 8 or at > end:
            raise Damaged("its runs are not readable")
        count = int.from_bytes(part[middle - lengths : middle], "little", signed=True)
        if count <= 0 or vcn + count > _FARTHEST:
            raise Damaged("a run has an impossible length")
        if offsets:
            lcn += int.from_bytes(part[middle:at], "little", signed=True)
            if lcn < 0 or lcn + count > clusters:
                raise Damaged("a run lies outside the volume")
            runs.append((vcn, lcn, count))
        vcn += count
    return runs, vcn


class Table:
    """The master file table: its records by number."""

    def __init__(self, stretch: stretches.Stretch, shape: Shape) -> None:
        """Find the table itself. Raises ``Damaged`` and ``Truncated``."""
        self.shape = shape
        self._stretch = stretch
        first = mend(stretch.exactly(shape.table * shape.cluster, shape.record))
        if first[:4] != b"FILE":
            raise Damaged("the first record of the table is none")
        self.runs: list[Run] = []
        self.size = 0
        found = list(attributes(first, shape.clusters, (LIST,)))
        self._adopt(found)
        if not self.size:
            raise Damaged("the table has no content")
        for number in self._others(0, found):
            self._adopt(attributes(self.record(number, of=0), shape.clusters, ()))

    def _adopt(self, found: Iterator[Attribute] | list[Attribute]) -> None:
        for one in found:
            if one.kind == DATA and not one.name and one.value is None:
                if one.first == 0:
                    self.size = one.initialized
                end = self.runs[-1][0] + self.runs[-1][2] if self.runs else 0
                if one.first != end:
                    raise Damaged("a part of the table is missing")
                self.runs += one.runs

    @property
    def count(self) -> int:
        """How many records there are."""
        return self.size // self.shape.record

    def record(self, number: int, *, of: int | None = None) -> bytearray:
        """The mended record ``number``; with ``of``, one that extends that record. Raises ``Damaged``."""
        record = self.find(number)
        if record is None:
            raise Damaged(f"it refers to record {number}, which is not in use")
        if of is not None and base(record) != of:
            raise Damaged(f"it refers to record {number}, which belongs to another file")
        return record

    def find(self, number: int) -> bytearray | None:
        """The mended record ``number``, None where it is not in use. Raises ``Damaged``."""
        size = self.shape.record
        if not 0 <= number < self.count:
            return None
        data = self.content(self.runs, number * size, size)
        if not any(data[:4]) or (data[:4] == b"FILE" and not data[22] & IN_USE):
            return None
        if data[:4] != b"FILE":
            raise Damaged(f"record {number} is none")
        return mend(data)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The table in order, as the number of the first record and some records, not mended.

        The whole of it, or the parts that may have changed where nothing else is of interest.
        """
        size, step = self.shape.record, stretches.GRAIN if self._stretch.partly else _CHUNK
        for offset in range(0, self.count * size, step):
            length = min(step, self.count * size - offset)
            if self._touched(offset, length):
                yield offset // size, self.content(self.runs, offset, length)

    def _touched(self, offset: int, length: int) -> bool:
        return not self._stretch.partly or any(
            place is not None and self._stretch.touched(place, count)
            for place, count in self._places(self.runs, offset, length)
        )

    def content(self, runs: list[Run], offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset`` of a stream, both in bytes; holes are zeros. Raises ``Truncated``."""
        pieces = [
            bytes(count) if place is None else self._stretch.exactly(place, count)
            for place, count in self._places(runs, offset, length)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _places(self, runs: list[Run], offset: int, length: int) -> Iterator[tuple[int | None, int]]:
        """Where a range of a stream lies on the volume, None for a hole, and bytes there."""
        cluster = self.shape.cluster
        number = max(bisect.bisect_right(runs, (offset // cluster, 1 << 62, 0)) - 1, 0)
        end = offset + length
        while offset < end:
            if number >= len(runs):
                yield None, end - offset
                return
            vcn, lcn, count = runs[number]
            start, stop = vcn * cluster, (vcn + count) * cluster
            if offset < start:
                yield None, min(start, end) - offset
                offset = min(start, end)
            elif offset < stop:
                step = min(stop, end) - offset
                yield lcn * cluster + offset - start, step
                offset += step
            else:
                number += 1

    def gather(self, number: int, record: bytearray, wanted: Container[int]) -> list[Attribute]:
        """All attributes of a file, those in other records included, as ``attributes`` does. Raises ``Damaged``."""
        clusters = self.shape.clusters
        found = list(attributes(record, clusters, wanted))
        for other in self._others(number, found):
            found += attributes(self.record(other, of=number), clusters, wanted)
        return found

    def own(self, number: int, kind: int) -> Attribute | None:
        """The unnamed attribute of one of the file system's own files, its parts joined. Raises ``Damaged``."""
        found = self.gather(number, self.record(number), (kind, LIST))
        resident = [one for one in found if one.value is not None]
        for one in (*resident, *streams(found)):
            if one.kind == kind and not one.name:
                return one
        return None

    def value(self, one: Attribute, most: int) -> bytes:
        """The first ``most`` bytes of an attribute that is not compressed. Raises ``Truncated``."""
        if one.value is not None:
            return one.value[:most]
        return self.content(one.runs, 0, min(one.size, most))

    def _others(self, number: int, found: list[Attribute]) -> list[int]:
        """The numbers of the other records of a file, in the order in which its list names them."""
        lists = [one for one in found if one.kind == LIST]
        if not lists:
            return []
        content = lists[0].value
        if content is None:
            if lists[0].size > _MOST_LIST:
                raise Damaged("its list of attributes is too long")
            content = self.content(lists[0].runs, 0, lists[0].size)
        numbers: dict[int, None] = {}
        at = 0
        while at + 26 <= len(content):
            length, reference = struct.unpack_from("<H10xQ", content, at + 4)
            if length < 26:
                raise Damaged("its list of attributes is not readable")
            numbers[reference & NUMBER] = None
            at += length
        numbers.pop(number, None)
        return list(numbers)


def streams(found: list[Attribute]) -> list[Attribute]:
    """The attributes of a file with clusters, the parts of each joined. Raises ``Damaged`` where one is missing."""
    clustered = [one for one in found if one.value is None]
    if len(clustered) < 2:
        if clustered and clustered[0].first:
            raise Damaged("the first part of a stream is missing")
        return clustered
    parts: dict[tuple[int, str], list[Attribute]] = {}
    for one in clustered:
        parts.setdefault((one.kind, one.name), []).append(one)
    joined: list[Attribute] = []
    for several in parts.values():
        several.sort(key=lambda one: one.first)
        if several[0].first:
            raise Damaged("the first part of a stream is missing")
        runs = [run for one in several for run in one.runs]
        if any(before[0] + before[2] > after[0] for before, after in itertools.pairwise(runs)):
            raise Damaged("the parts of a stream overlap")
        if any(before.end != after.first for before, after in itertools.pairwise(several)):
            raise Damaged("a part of a stream is missing")
        joined.append(several[0]._replace(runs=runs, end=several[-1].end))
    return joined
