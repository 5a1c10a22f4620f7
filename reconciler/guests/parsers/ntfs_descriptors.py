"""What Windows keeps of a file beside its content: who may do what, attributes, when it was made, where it leads.

Handed out as the extended attributes by which NTFS-3G shows the same: a tree of files has them under the names that a
mount has, and a restore to NTFS can write them. Used by ``ntfs_nodes``; separate because security descriptors lie in a
file of the file system's own, each once for all files that share it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from reconciler.guests.parsers import ntfs_indexes, ntfs_links
from reconciler.guests.parsers import ntfs_records as records

_SECURE = 9
#: Descriptors that are kept, and bytes of one, of a header before each, and from one to its second copy.
_KEPT, _LONGEST, _HEAD, _COPY = 256, 64 << 10, 20, 256 << 10
#: A descriptor's own head, and one that refers to its parts by their offsets.
_OWN_HEAD, _RELATIVE = 20, 0x8000
#: Where an identifier of descriptors stands among the standard facts of a file.
_IDENTIFIER = slice(52, 56)
_DIRECTORY, _NORMAL = 0x10, 0x80
#: Bytes of extended attributes and of where a link leads.
_MOST = 64 << 10


class Descriptors:
    """The security descriptors of a volume."""

    def __init__(self, table: records.Table) -> None:
        self._table = table
        self._known: dict[int, bytes] = {}
        self._secure: list[records.Attribute] | None = None

    def attributes(self, found: list[records.Attribute], *, directory: bool, link: bool) -> Iterator[tuple[str, bytes]]:
        """Name and value of what NTFS-3G shows of a file with the attributes ``found``.

        ``link``: it is something else than a file or folder. Raises ``Damaged`` and ``Truncated``.
        """
        standard = next((one.value for one in found if one.kind == records.STANDARD and one.value is not None), b"")
        if len(standard) >= 36:
            bits = ntfs_links.attributes(found) & ~_DIRECTORY | (_DIRECTORY if directory else 0)
            yield "system.ntfs_attrib_be", struct.pack(">I", bits or _NORMAL)
            created, modified, changed, accessed = struct.unpack_from("<QQQQ", standard)
            yield "system.ntfs_crtime_be", struct.pack(">Q", created)
            yield "system.ntfs_times_be", struct.pack(">QQQQ", created, modified, accessed, changed)
        for kind, name in ((records.REPARSE, "reparse_data"), (records.EXTENDED, "ea")):
            one = next((one for one in found if one.kind == kind), None)
            if one is not None and (link or kind != records.REPARSE):
                if one.size > _MOST:
                    raise records.Damaged(f"its attribute of type {kind:#x} is too long")
                yield f"system.ntfs_{name}", self._table.value(one, _MOST)
        descriptor = self._descriptor(found, int.from_bytes(standard[_IDENTIFIER], "little"))
        if descriptor:
            yield "system.ntfs_acl", descriptor

    def _descriptor(self, found: list[records.Attribute], identifier: int) -> bytes:
        """A file's own, or the one with an identifier; empty where it has neither."""
        if not identifier:
            own = next((one for one in found if one.kind == records.SECURITY), None)
            return _trimmed(self._table.value(own, _LONGEST)) if own is not None else b""
        known = self._known.get(identifier)
        if known is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            known = self._known[identifier] = _trimmed(self._shared(identifier))
        return known

    def _shared(self, identifier: int) -> bytes:
        if self._secure is None:
            wanted = (records.LIST, records.INDEX, records.DATA)
            self._secure = self._table.gather(_SECURE, self._table.record(_SECURE), wanted)
        entry = ntfs_indexes.numbered(self._table, self._secure, "$SII", identifier)
        if entry is None or len(entry) < _HEAD:
            raise records.Damaged("its security descriptor is missing")
        offset, size = struct.unpack_from("<QI", entry, 8)
        own = [one for one in self._secure if one.kind == records.DATA and one.name == "$SDS"]
        resident = [one for one in own if one.value is not None]
        for one in resident or records.streams(own):
            for place in (offset, offset + _COPY):
                if not _HEAD <= size <= _LONGEST + _HEAD or place + size > one.size:
                    continue
                value = one.value
                data = value[place : place + size] if value is not None else self._table.content(one.runs, place, size)
                if data[:_HEAD] == entry[:_HEAD]:
                    return data[_HEAD:]
        raise records.Damaged("its security descriptor is not where it should be")


def _trimmed(data: bytes) -> bytes:
    """A descriptor without what follows its last part. Raises ``Damaged`` for what is none."""
    if len(data) < _OWN_HEAD or data[0] != 1 or not int.from_bytes(data[2:4], "little") & _RELATIVE:
        raise records.Damaged("its security descriptor is none")
    owner, group, audit, access = struct.unpack_from("<IIII", data, 4)
    end = _OWN_HEAD
    for at, sizes in ((owner, False), (group, False), (audit, True), (access, True)):
        if at:
            if at + 8 > len(data):
                raise records.Damaged("a part of its security descriptor does not fit")
            end = max(end, at + (int.from_bytes(data[at + 2 : at + 4], "little") if sizes else 8 + 4 * data[at + 1]))
    if end > len(data):
        raise records.Damaged("a part of its security descriptor does not fit")
    return data[:end]
