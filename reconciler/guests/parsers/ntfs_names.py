"""The names of an NTFS volume: every path and every stream, from the records alone.

A record names its parents, so the table is read twice: once for the directories, once for what lies in them. The
file system's own files, whose names start with ``$`` at the root, are no files of the guest and are left out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from reconciler.guests.parsers import ntfs_links, outputs, texts
from reconciler.guests.parsers import ntfs_records as records

ROOT = 5
#: The directory of the file system's own later files, and the first record that is not its own.
_EXTEND = 11
FIRST = 24
_DOS = 2
#: Between 1601 and 1970, in the file system's unit of 100 nanoseconds.
_EPOCH = 116_444_736_000_000_000
_LARGEST = (1 << 63) - 1
_DEEPEST = 4096
_WANTED = frozenset({records.STANDARD, records.LIST, records.NAME, records.DATA, records.REPARSE})


class Name(NamedTuple):
    """One name of a file."""

    parent: int
    #: Of the parent, as it was when the name was given; 0 if it does not matter.
    sequence: int
    text: str


def names(found: list[records.Attribute]) -> list[Name]:
    """The names in some attributes, the short ones for DOS left out. Raises ``Damaged``."""
    several: list[Name] = []
    for one in found:
        if one.kind != records.NAME or one.value is None:
            continue
        value = one.value
        if len(value) < 66 or len(value) < 66 + 2 * value[64]:
            raise records.Damaged("a name of it does not fit")
        if value[65] != _DOS:
            reference = int.from_bytes(value[:8], "little")
            text = texts.utf16(value[66 : 66 + 2 * value[64]])
            several.append(Name(reference & records.NUMBER, reference >> 48, text))
    return several


def _time(value: int) -> int:
    """Nanoseconds since 1970 for 100 nanoseconds since 1601; 0 for 0."""
    return max(-_LARGEST, min((value - _EPOCH) * 100, _LARGEST)) if value else 0


class Tree:
    """The directories of a volume."""

    def __init__(self, table: records.Table) -> None:
        self._table = table
        self._directories: dict[int, tuple[int, Name]] = {}
        self._paths: dict[int, str | None] = {ROOT: "", _EXTEND: None}

    def add(self, number: int, record: bytearray) -> None:
        """Note the record of a directory. Raises ``Damaged``."""
        own = names(self._table.gather(number, record, (records.LIST, records.NAME)))
        if own:
            self._directories[number] = int.from_bytes(record[16:18], "little"), own[0]

    def path(self, name: Name) -> str | None:
        """The path of a name; None where no way leads to it from the root, or it is the file system's own."""
        parent = self._parent(name)
        above = self._above(parent) if parent is not None else None
        if above is None:
            return None
        return outputs.under(above, name.text)

    def _parent(self, name: Name) -> int | None:
        known = self._directories.get(name.parent)
        if known is not None and name.sequence and known[0] != name.sequence:
            return None
        return name.parent

    def _above(self, number: int) -> str | None:
        """The path of a directory."""
        way: list[int] = []
        at: int | None = number
        while at is not None and at not in self._paths:
            known = self._directories.get(at)
            if known is None or len(way) > _DEEPEST or at < FIRST:
                at = None
                break
            way.append(at)
            at = self._parent(known[1])
            if at in way:
                at = None
        path = self._paths[at] if at is not None else None
        for step in reversed(way):
            if path is not None:
                text = self._directories[step][1].text
                path = outputs.under(path, text)
            self._paths[step] = path
        return path


def entries(tree: Tree, number: int, record: bytearray, table: records.Table) -> list[outputs.Entry]:
    """Every name and stream of one file. Raises ``Damaged``; empty where no way leads to it."""
    found = table.gather(number, record, _WANTED)
    paths = [path for name in names(found) if (path := tree.path(name)) is not None]
    directory = bool(record[22] & records.DIRECTORY)
    moments = times(found)
    kind = ntfs_links.kind(found, directory, table)
    resident = [one for one in found if one.value is not None]
    streams = [one for one in (*resident, *records.streams(found)) if one.kind == records.DATA]
    made: list[outputs.Entry] = []
    cluster = table.shape.cluster
    for path in paths:
        common = outputs.Entry(path=path, kind=kind, size=0, inode=number, links=max(len(paths), 1))
        common.created, common.modified, common.changed, common.accessed = moments
        if directory or not any(not one.name for one in streams):
            common.resident = True
            made.append(common)
        for one in sorted(streams, key=lambda one: one.name):
            if directory and not one.name:
                continue
            entry = outputs.Entry(
                path=path, kind="file" if one.name else kind, size=one.size, inode=number, links=common.links
            )
            entry.created, entry.modified, entry.changed, entry.accessed = moments
            entry.stream, entry.resident, entry.flags = one.name, one.value is not None, flags(one.flags)
            entry.runs = runs(one, cluster)
            made.append(entry)
    return made


def times(found: list[records.Attribute]) -> tuple[int, int, int, int]:
    """Created, modified, changed and accessed, nanoseconds since 1970."""
    for one in found:
        if one.kind == records.STANDARD and one.value is not None and len(one.value) >= 32:
            created, modified, changed, accessed = struct.unpack_from("<QQQQ", one.value)
            return _time(created), _time(modified), _time(changed), _time(accessed)
    return 0, 0, 0, 0


def flags(bits: int) -> tuple[str, ...]:
    """The words for an attribute's flags."""
    known = ((records.SPARSE, "sparse"), (records.COMPRESSED, "compressed"), (records.ENCRYPTED, "encrypted"))
    return tuple(name for bit, name in known if bits & bit)


def runs(one: records.Attribute, cluster: int) -> list[tuple[int, int, int]]:
    """The runs of a stream in bytes, without what was never written: that reads as zeros, whatever the clusters hold.

    A compressed stream's clusters are handed over whole; whoever unpacks them knows where it was written to.
    """
    found = [(vcn * cluster, lcn * cluster, count * cluster) for vcn, lcn, count in one.runs]
    if one.flags & records.COMPRESSED or one.initialized >= one.size:
        return found
    end = one.initialized
    return [(offset, place, min(length, end - offset)) for offset, place, length in found if offset < end]
