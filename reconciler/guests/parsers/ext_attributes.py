"""The extended attributes of ext: behind the inode, in a block of their own, or each in an inode of its own.

Used by ``ext_nodes``; ``inline`` also by ``ext_names``, because small directories and files continue in an attribute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from reconciler.guests.parsers import acls, ext_inodes

_MAGIC = b"\x00\x00\x02\xea"
_BLOCK_HEAD = 32
#: The beginnings of names that are stored as numbers; what is not among them nobody can ask the kernel for.
_PREFIXES = {
    1: "user.",
    2: acls.ACCESS,
    3: acls.DEFAULT,
    4: "trusted.",
    6: "security.",
    7: "system.",
    8: "system.richacl",
}
_ACLS = (2, 3)
_SYSTEM = 7
#: Bytes of a value that has an inode of its own.
_LARGEST = 1 << 20

#: Group and name, inode of the value (0: it stands here), offset and length of the value.
_Entry = tuple[int, bytes, int, int, int]


def _entries(data: bytes, at: int) -> Iterator[_Entry]:
    while at + 16 <= len(data) and any(data[at : at + 4]):
        letters, group, offset, inode, length = struct.unpack_from("<BBHII", data, at)
        if at + 16 + letters > len(data):
            raise ext_inodes.Damaged("the name of an extended attribute does not fit")
        yield group, data[at + 16 : at + 16 + letters], inode, offset, length
        at += (16 + letters + 3) & ~3


def _inside(inode: bytes) -> bytes:
    """What lies behind the inode's fields, the magic number left out; empty where there are no attributes."""
    start = 128 + int.from_bytes(inode[128:130], "little")
    return inode[start + 4 :] if len(inode) >= 160 and inode[start : start + 4] == _MAGIC else b""


def inline(inode: bytes) -> bytes:
    """What an inline file or directory holds beyond the block map's place. Raises ``Damaged``."""
    data = _inside(inode)
    for group, name, _, offset, length in _entries(data, 0):
        if group == _SYSTEM and name == b"data":
            return data[offset : offset + length]
    return b""


def read(inode: bytes, block: bytes, fetch: Callable[[int, int], bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and value of every attribute, as the kernel gives them.

    ``block``: the one of its own, empty where it has none; ``fetch`` reads a value that has an inode. Raises
    ``Damaged`` and what ``fetch`` raises.
    """
    if block and block[:4] != _MAGIC:
        raise ext_inodes.Damaged("the block of its extended attributes is none")
    for data, first in ((_inside(inode), 0), (block, _BLOCK_HEAD)):
        for group, name, number, offset, length in _entries(data, first):
            prefix = _PREFIXES.get(group)
            if prefix is None or (group == _SYSTEM and name == b"data"):
                continue
            if number:
                if length > _LARGEST:
                    raise ext_inodes.Damaged("an extended attribute is too long")
                value = fetch(number, length)
            elif offset + length > len(data):
                raise ext_inodes.Damaged("the value of an extended attribute does not fit")
            else:
                value = data[offset : offset + length]
            try:
                value = acls.ext(value) if group in _ACLS else value
            except ValueError as error:
                raise ext_inodes.Damaged(str(error)) from None
            yield prefix + name.decode("utf-8", "surrogateescape"), value
