"""What an NTFS file is beside a file: links, devices, pipes, and content that Windows has put elsewhere.

Told by the tag of its reparse point, or by what Interix and NTFS-3G write into a system file. Used by ``ntfs_names``
for lists and by ``ntfs_nodes``, which also wants to know where a link leads.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import ntfs_records as records
from reconciler.guests.parsers import texts

_JUNCTION, _LINK, _LINUX_LINK = 0xA0000003, 0xA000000C, 0xA000001D
#: Sockets, pipes and devices of the Linux subsystem.
_FORMATS = {0x80000023: stat.S_IFSOCK, 0x80000024: stat.S_IFIFO, 0x80000025: stat.S_IFCHR, 0x80000026: stat.S_IFBLK}
#: Tags that leave the content where it is; of the cloud's, all digits but this one count.
_OVERLAY, _DEDUPLICATED, _CLOUD, _CLOUD_MASK = 0x80000017, 0x80000013, 0x9000001A, 0xFFFF0FFF
#: Attributes of a file that is kept elsewhere and fetched when it is read.
_ELSEWHERE = 0x1000 | 0x40000 | 0x400000
_HIDDEN, _SYSTEM = 0x2, 0x4
_INTERIX_LINK, _INTERIX = b"IntxLNK\x01", {b"IntxCHR\x00": stat.S_IFCHR, b"IntxBLK\x00": stat.S_IFBLK}
_RELATIVE = 1
#: Bytes of a link as Interix keeps it, and of a reparse point.
_LONGEST, _LONGEST_POINT = 8 + 2 * 4096, 16 << 10


class Special(NamedTuple):
    """What a file is."""

    format: int
    target: str | None = None
    device: int | None = None
    #: Why its unnamed stream is not its content, empty where it is.
    problem: str = ""


def attributes(found: list[records.Attribute]) -> int:
    """The attributes that DOS knows, and those that came later."""
    for one in found:
        if one.kind == records.STANDARD and one.value is not None and len(one.value) >= 36:
            return int.from_bytes(one.value[32:36], "little")
    return 0


def kind(found: list[records.Attribute], directory: bool, table: records.Table) -> str:
    """``file``, ``directory``, ``symlink`` or ``other``."""
    names = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return names.get(special(found, directory, table).format, "other")


def special(found: list[records.Attribute], directory: bool, table: records.Table) -> Special:
    """What a file is, from its attributes; ``table`` reads what lies outside of its record. Raises ``Damaged``."""
    usual = Special(stat.S_IFDIR if directory else stat.S_IFREG)
    for one in found:
        if one.kind == records.REPARSE:
            value = table.value(one, _LONGEST_POINT)
            return _reparse(value, found, usual) if len(value) >= 8 else usual
    return usual if directory or not attributes(found) & _SYSTEM else _interix(found, table, usual)


def _reparse(value: bytes, found: list[records.Attribute], usual: Special) -> Special:
    tag = int.from_bytes(value[:4], "little")
    if tag in (_JUNCTION, _LINK):
        return Special(stat.S_IFLNK, _windows(value, 20 if tag == _LINK else 16))
    if tag == _LINUX_LINK:
        return Special(stat.S_IFLNK, value[12:].decode("utf-8", "surrogateescape"))
    if tag in _FORMATS:
        extended = dict(extras(found))
        numbers = extended.get(b"$LXDEV", b"")
        device = os.makedev(*struct.unpack_from("<II", numbers)) if len(numbers) >= 8 else None
        return Special(_FORMATS[tag], None, device)
    if usual.format == stat.S_IFDIR:
        return usual
    if tag == _OVERLAY:
        return usual._replace(problem="Windows has compressed it in a way of its own (CompactOS)")
    if tag == _DEDUPLICATED:
        return usual._replace(problem="Windows has moved its content into the store of deduplicated data")
    if tag & _CLOUD_MASK == _CLOUD:
        away = attributes(found) & _ELSEWHERE
        return usual._replace(problem="its content is kept in a cloud and not on this disk") if away else usual
    return usual._replace(problem=f"its content is kept elsewhere (reparse point {tag:#x})")


def _windows(value: bytes, at: int) -> str:
    """The target of a link or junction as Windows shows it; with slashes where it is relative."""
    if len(value) < at:
        raise records.Damaged("the target of the link does not fit")
    start, length, shown, shown_length = struct.unpack_from("<HHHH", value, 8)
    relative = at == 20 and int.from_bytes(value[16:20], "little") & _RELATIVE
    if not relative and shown_length:
        start, length = shown, shown_length
    if at + start + length > len(value) or length % 2:
        raise records.Damaged("the target of the link does not fit")
    text = texts.utf16(value[at + start : at + start + length])
    return text.replace("\\", "/") if relative else text.removeprefix("\\??\\")


def _interix(found: list[records.Attribute], table: records.Table, usual: Special) -> Special:
    for one in found:
        if one.kind != records.DATA or one.name:
            continue
        content = one.value
        if content is None:
            if one.size > _LONGEST or one.flags & (records.COMPRESSED | records.ENCRYPTED):
                return usual
            content = table.value(one, _LONGEST)
        head = content[:8]
        if head == _INTERIX_LINK:
            return Special(stat.S_IFLNK, texts.utf16(content[8 : len(content) & ~1]))
        if head in _INTERIX and len(content) >= 24:
            major, minor = struct.unpack_from("<I4xI", content, 8)
            return Special(_INTERIX[head], None, os.makedev(major, minor))
        # System files of Windows itself are hidden, too.
        if len(content) <= 1 and not attributes(found) & _HIDDEN:
            return Special(stat.S_IFSOCK if content else stat.S_IFIFO)
    return usual


def extras(found: list[records.Attribute]) -> Iterator[tuple[bytes, bytes]]:
    """The extended attributes that OS/2 and the Linux subsystem keep: names and values. Raises ``Damaged``."""
    for one in found:
        value = one.value or b""
        if one.kind != records.EXTENDED:
            continue
        at = 0
        while at + 8 <= len(value):
            onward, letters, length = struct.unpack_from("<IxBH", value, at)
            start = at + 9 + letters
            if start + length > len(value):
                raise records.Damaged("an extended attribute of it does not fit")
            yield value[at + 8 : start - 1], value[start : start + length]
            if not onward:
                return
            at += onward
