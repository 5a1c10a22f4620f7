"""What every file system offers a browser: nodes by number, the names in a directory, and where a stream lies.

``serving`` answers requests with it and knows no file system; ``ntfs_nodes``, ``ext_nodes`` and the others implement
it and know no requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from reconciler.guests.parsers import outputs, stretches

#: Bytes of extended attributes of one file that are handed over.
MOST_XATTRS = 4 << 20
#: What lies in a row: offset in the stream, offset on the volume, length.
Run = tuple[int, int, int]


class Missing(Exception):
    """There is no such file, or it is deleted."""


class Refused(Exception):
    """It is there and cannot be read by its nature: encrypted, packed in an unknown way, of another type."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Node:
    """One file; the fields of ``guests.nodes.Node``."""

    inode: int
    format: int
    size: int = 0
    links: int = 1
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    #: Created, modified, changed, accessed.
    times: tuple[int, int, int, int] = (0, 0, 0, 0)
    flags: tuple[str, ...] = ()
    streams: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    target: str | None = None
    device: int | None = None
    xattrs: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    problem: str = ""
    incomplete: str = ""


class Name(NamedTuple):
    """One entry of a directory."""

    text: str
    number: int
    #: What the file's own count of reuses must be, where the file system keeps one; 0 if it does not matter.
    version: int = 0


class Content(NamedTuple):
    """The bytes of one stream."""

    size: int
    #: In order, apart; what they leave out, up to ``size``, reads as zeros. Of packed content, what may hold data.
    runs: Iterator[Run] | list[Run]
    #: All of it, where it lies in the file's own record.
    data: bytes | None = None
    #: Makes ``length`` bytes at an offset, where the runs do not hold them as they are.
    unpack: Callable[[int, int], bytes] | None = None


class FileSystem(Protocol):
    """One volume, opened. Its methods raise ``Missing``, ``Refused``, and others where something is damaged."""

    @property
    def root(self) -> int:
        """Number of the root directory."""

    @property
    def stretch(self) -> stretches.Stretch:
        """The volume, as its runs refer to it."""

    def facts(self) -> outputs.Facts:
        """Label and state."""

    def node(self, number: int, version: int = 0) -> Node:
        """The file ``number``, which has a name."""

    def names(self, number: int) -> Iterator[Name]:
        """What a directory holds, itself and its parent left out, always in the same order."""

    def look(self, number: int, name: str) -> Name:
        """The entry of one name in a directory. Raises ``Missing``."""

    def content(self, number: int, stream: str) -> Content:
        """A stream of a file, the file's own content for an empty name."""


def absent(name: str) -> Missing:
    """What is raised where a directory has no such entry."""
    return Missing(f"its directory holds no {name[:200]!a}")


def named(names: Iterable[Name], name: str) -> Name:
    """The entry of one name, where a directory is but a list. Raises ``Missing``."""
    for found in names:
        if found.text == name:
            return found
    raise absent(name)


def add_xattrs(node: Node, found: Iterator[tuple[str, bytes]], damaged: tuple[type[Exception], ...]) -> None:
    """Put extended attributes into a node; one that cannot be read costs the others behind it, and nothing else."""
    size = 0
    try:
        for name, value in found:
            size += len(value)
            if size > MOST_XATTRS:
                node.incomplete = f"it has more than {MOST_XATTRS} bytes of extended attributes"
                return
            node.xattrs.append((name, value))
    except damaged as error:
        node.incomplete = f"its extended attributes cannot be read: {error}"
