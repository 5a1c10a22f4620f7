"""Access control lists of POSIX as the kernel hands them out, from what ext and XFS store.

Both store them shorter than ``getxattr`` gives them, and each in its own way; what they become is the same.
"""

from __future__ import annotations

import struct

#: Name of the extended attribute of a file's own list, and of the one that a directory hands on.
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_VERSION = 2
_USER, _GROUP = 2, 8
_NOBODY = 0xFFFFFFFF


def pack(entries: list[tuple[int, int, int]]) -> bytes:
    """The value of the extended attribute; entries are (tag, permissions, user or group)."""
    lines = (struct.pack("<HHI", tag, bits, who if tag in (_USER, _GROUP) else _NOBODY) for tag, bits, who in entries)
    return struct.pack("<I", _VERSION) + b"".join(lines)


def ext(value: bytes) -> bytes:
    """From what ext stores. Raises ``ValueError``."""
    if len(value) < 4 or value[:4] != b"\x01\x00\x00\x00":
        raise ValueError("an access control list is of an unknown version")
    entries: list[tuple[int, int, int]] = []
    at = 4
    while at + 4 <= len(value):
        tag, bits = struct.unpack_from("<HH", value, at)
        who = 0
        at += 4
        if tag in (_USER, _GROUP):
            if at + 4 > len(value):
                raise ValueError("an access control list ends too early")
            who = int.from_bytes(value[at : at + 4], "little")
            at += 4
        entries.append((tag, bits, who))
    return pack(entries)


def xfs(value: bytes) -> bytes:
    """From what XFS stores. Raises ``ValueError``."""
    count = int.from_bytes(value[:4], "big")
    if len(value) < 4 or len(value) < 4 + 12 * count:
        raise ValueError("an access control list ends too early")
    found = (struct.unpack_from(">IIH", value, 4 + 12 * number) for number in range(count))
    return pack([(tag & 0xFFFF, bits, who) for tag, who, bits in found])
