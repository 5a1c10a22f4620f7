"""What a browser hands out: a file as its file system knows it, and where its bytes lie.

Made by the child that parses, checked by ``receipts``, handed out by ``browsing``; read by whoever restores, mounts or
proves single files. These are values alone, so that nobody who holds one needs the parsers behind it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

#: What ``Node.flags`` may hold.
FLAGS = frozenset(
    ("sparse", "compressed", "encrypted", "readonly", "hidden", "system", "archive", "immutable", "append")
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One file, directory, link or device, under whatever names."""

    #: Which of the disk's volumes it lies on, an index.
    volume: int
    #: The same for all names of a file, and the number that listings give.
    inode: int
    #: ``file``, ``directory``, ``symlink`` or ``other``.
    kind: str
    #: The type bits of ``st_mode`` (such as ``stat.S_IFIFO``), also where ``mode`` is None; 0 where unknown.
    format: int
    #: Bytes of the file itself; of a symbolic link, of its target as it is stored; 0 for all else.
    size: int
    #: How many names it has; of a directory, whatever the file system counts.
    links: int
    #: ``st_mode``, type and permissions; None where the file system keeps none.
    mode: int | None
    uid: int | None
    gid: int | None
    #: Nanoseconds since the epoch, UTC; 0 where unknown. ``changed`` is when the record was.
    created: int
    modified: int
    changed: int
    accessed: int
    #: Of ``FLAGS``.
    flags: tuple[str, ...] = ()
    #: Name and bytes of every named (alternate) data stream.
    streams: tuple[tuple[str, int], ...] = ()
    #: Where a symbolic link leads. Absolute targets of Windows as Windows shows them (``C:\\Users\\x``), relative ones
    #: with slashes.
    target: str | None = None
    #: Of a device node, as ``os.makedev`` packs it.
    device: int | None = None
    #: Full name (``user.x``, ``system.posix_acl_access``) and value, as ``os.getxattr`` gives them.
    xattrs: tuple[tuple[str, bytes], ...] = ()
    #: Why its content, its target or its entries cannot be read; empty where they can. Reading it raises.
    problem: str = ""
    #: What of it could not be read beside that, such as its extended attributes; empty as a rule.
    incomplete: str = ""


class Extent(NamedTuple):
    """Bytes of a stream that lie in a row; what lies between extents was never written and reads as zeros."""

    #: In the stream, bytes.
    offset: int
    length: int
    #: On the disk, bytes; None where the content is packed or lies inside a record, and only ``read`` gives it.
    place: int | None
