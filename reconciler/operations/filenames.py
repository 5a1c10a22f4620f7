"""Names of restored files as a folder of this machine can hold them.

A name that a file system refuses is written with ``%XX`` for the bytes that some file system has no place for, ``%``
among them, so that it can be told what it was; of one that is too long the end becomes a digest. ``foldersinks``
decides when.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import Final

from reconciler.base import files

#: Bytes of a name that Linux holds.
_LONGEST: Final = 255
#: Bytes that some file system refuses in names, beside those that are no text.
_AWKWARD: Final = frozenset(b'\\:*?"<>|%/\0') | frozenset(range(0x20))


def temporary() -> str:
    """A fresh name for what is not whole yet; short, for the folder may hold long paths badly."""
    return f"{files.TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def plain(name: str) -> str:
    """A name as it is, as long as it leads to one file of one folder; else escaped."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        return escaped(name, long=False)
    return name


def escaped(name: str, *, long: bool) -> str:
    """A name that every folder holds. ``long``: its length alone is what was wrong with it."""
    data = name.encode("utf-8", "surrogateescape")
    if not long or name in ("", ".", ".."):
        data = _percented(data) or b"%"
    if len(data) > _LONGEST:
        mark = b"~" + hashlib.blake2b(data, digest_size=6).hexdigest().encode()
        data = data[: _LONGEST - len(mark)].decode("utf-8", "ignore").encode() + mark
    return os.fsdecode(data)


def _percented(data: bytes) -> bytes:
    try:
        data.decode()
        awkward = _AWKWARD
    except UnicodeDecodeError:
        awkward = _AWKWARD | frozenset(range(0x80, 0x100))
    last = len(data) - 1
    return b"".join(
        # Windows drops dots and spaces at the end.
        b"%%%02X" % byte if byte in awkward or (number == last and byte in b". ") else bytes([byte])
        for number, byte in enumerate(data)
    )
