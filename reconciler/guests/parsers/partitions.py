"""Partition tables: GPT with both its copies, MBR with its chain of extended boot records.

Everything here is bounded: so many entries, so many links, and a chain that turns back on itself ends where it does.
Sectors may have 512 or 4096 bytes, and a disk image does not say which it was made with, so both are tried.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zlib

from reconciler.guests.parsers import stretches

#: status, CHS, type, CHS, first sector, count of sectors.
_ENTRY = struct.Struct("<B3sB3sII")
_EXTENDED = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE = 0xEE
#: Logical partitions a chain of extended boot records may hold.
_LINKS = 128

#: signature, revision, header size, CRC, reserved, my LBA, other LBA, first usable, last usable, GUID, entries LBA,
#: count of entries, bytes of an entry, CRC of the entries.
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
#: type GUID, unique GUID, first LBA, last LBA.
_GPT_ENTRY = struct.Struct("<16s16sQQ")
#: Bytes of the table of entries; the usual one has 16 KiB.
_TABLE = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What a partition table says."""

    #: ``gpt`` or ``mbr``.
    scheme: str
    #: Byte offset and length of each partition, in the table's order, each at least in part on the disk.
    partitions: list[tuple[int, int]]
    #: What was wrong with it, in sentences.
    problems: list[str]
    #: Whether nothing in it was out of place; a boot sector read by mistake seldom looks like that.
    sound: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Slot:
    status: int
    kind: int
    #: In sectors.
    first: int
    count: int


def _slots(sector: bytes) -> list[_Slot] | None:
    """The four entries of a boot record; None where there is none."""
    if len(sector) < 512 or sector[510:512] != b"\x55\xaa":
        return None
    slots = []
    for number in range(4):
        status, _, kind, _, first, count = _ENTRY.unpack_from(sector, 446 + 16 * number)
        slots.append(_Slot(status=status, kind=kind, first=first, count=count))
    return slots


def protective(disk: stretches.Disk) -> bool | None:
    """Whether the master boot record points to a GPT; None where there is no master boot record."""
    slots = _slots(disk.read(0, 512))
    return None if slots is None else any(slot.kind == _PROTECTIVE for slot in slots)


def mbr(disk: stretches.Disk, sector: int) -> Table | None:
    """The table of the master boot record, its extended partitions resolved; ``sector`` in bytes."""
    slots = _slots(disk.read(0, 512))
    if slots is None:
        return None
    partitions: list[tuple[int, int]] = []
    problems: list[str] = []
    sound = True
    for number, slot in enumerate(slots, 1):
        if slot == _Slot(status=0, kind=0, first=0, count=0):
            continue
        first, length = slot.first * sector, slot.count * sector
        sound = sound and slot.status in (0, 0x80) and slot.kind != 0 and slot.first > 0 and slot.count > 0
        if slot.kind in (0, _PROTECTIVE) or slot.first == 0 or slot.count == 0:
            continue
        if first >= disk.size:
            problems.append(f"partition {number} starts at byte {first}, beyond the disk's end")
            sound = False
        elif slot.kind in _EXTENDED:
            partitions += _chain(disk, sector, slot, problems)
        else:
            sound = sound and first + length <= disk.size
            partitions.append((first, min(length, disk.size - first)))
    sound = sound and bool(partitions) and not _overlapping(partitions)
    return Table(scheme="mbr", partitions=partitions, problems=problems, sound=sound)


def _overlapping(partitions: list[tuple[int, int]]) -> bool:
    ordered = sorted(partitions)
    return any(offset + length > after for (offset, length), (after, _) in itertools.pairwise(ordered))


def _chain(disk: stretches.Disk, sector: int, extended: _Slot, problems: list[str]) -> list[tuple[int, int]]:
    partitions: list[tuple[int, int]] = []
    seen: set[int] = set()
    at = extended.first
    while len(seen) < _LINKS:
        slots = _slots(disk.read(at * sector, 512)) if at not in seen else None
        if slots is None:
            problems.append(f"the chain of logical partitions is broken at sector {at}")
            return partitions
        seen.add(at)
        onward = None
        for slot in slots[:2]:
            if slot.kind in _EXTENDED:
                onward = extended.first + slot.first if slot.first and onward is None else onward
            elif slot.kind and slot.first and slot.count:
                first = (at + slot.first) * sector
                if first < disk.size:
                    partitions.append((first, min(slot.count * sector, disk.size - first)))
        if onward is None:
            return partitions
        at = onward
    problems.append(f"only the first {_LINKS} links of the chain of logical partitions were followed")
    return partitions


def gpt(disk: stretches.Disk, sector: int) -> Table | None:
    """The first copy of a GPT whose digests hold, the backup's if the primary's do not; ``sector`` in bytes."""
    primary = _copy(disk, sector, 1)
    if primary is not None:
        return Table(scheme="gpt", partitions=primary, problems=[], sound=True)
    header = disk.read(sector, _HEADER.size)
    places = [disk.size // sector - 1]
    if len(header) == _HEADER.size and header[:8] == b"EFI PART":
        places.append(_HEADER.unpack(header)[6])
    for place in places:
        backup = _copy(disk, sector, place)
        if backup is not None:
            problem = "the first copy of the partition table is damaged; its backup was read"
            return Table(scheme="gpt", partitions=backup, problems=[problem], sound=True)
    return None


def _copy(disk: stretches.Disk, sector: int, lba: int) -> list[tuple[int, int]] | None:
    if lba < 1 or lba * sector >= disk.size:
        return None
    header = disk.read(lba * sector, sector)
    if len(header) < _HEADER.size or header[:8] != b"EFI PART":
        return None
    fields = _HEADER.unpack_from(header)
    size, crc, mine = fields[2], fields[3], fields[5]
    entries, count, width, entries_crc = fields[10:14]
    if not _HEADER.size <= size <= sector or mine != lba:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != crc:
        return None
    if width < 128 or width > 4096 or count * width > _TABLE:
        return None
    table = disk.read(entries * sector, count * width)
    if len(table) != count * width or zlib.crc32(table) != entries_crc:
        return None
    partitions = []
    for number in range(count):
        kind, _, first, last = _GPT_ENTRY.unpack_from(table, number * width)
        if kind != bytes(16) and 0 < first <= last and first * sector < disk.size:
            partitions.append((first * sector, min((last + 1) * sector, disk.size) - first * sector))
    return partitions
