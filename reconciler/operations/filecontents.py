"""What a restore of files hands to where they go: contents to be read piece by piece, and what became of them.

``filerestores`` walks an image and tells a ``Sink``; ``foldersinks`` and ``tarsinks`` are the two there are. What is
not kept is counted in a ``Report`` by reason, with the first file that it befell: nothing is ever lost silently.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterator
from typing import Final, Protocol

from reconciler.base import errors, meters
from reconciler.guests import browsing, nodes

#: Bytes that are read at once.
PIECE: Final = 1 << 20
#: Failures and changed names that are told one by one; the rest is counted.
_KEPT: Final = 1_000
#: A folder above what was picked, of which nothing but its name is kept.
PLAIN: Final = nodes.Node(
    volume=0, inode=0, kind="directory", format=stat.S_IFDIR, size=0, links=1, mode=None, uid=None, gid=None,
    created=0, modified=0, changed=0, accessed=0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One file that is not there, or not whole."""

    path: str
    #: CamelCase.
    code: str
    message: str


class Report:
    """What a restore came to; counts of names."""

    def __init__(self) -> None:
        self.files = 0
        self.directories = 0
        self.symlinks = 0
        #: Further names of files that have several.
        self.links = 0
        #: Devices, pipes and sockets.
        self.specials = 0
        #: Alternate data streams.
        self.streams = 0
        #: Of contents.
        self.bytes = 0
        self.failed = 0
        self.failures: list[Failure] = []
        #: (path in the image, name that it was given).
        self.renamed: list[tuple[str, str]] = []
        self._renamed = 0
        self._lost: dict[str, tuple[int, str]] = {}

    def fail(self, path: str, code: str, message: str) -> None:
        """One file failed."""
        self.failed += 1
        if len(self.failures) < _KEPT:
            self.failures.append(Failure(path=path, code=code, message=message))

    def rename(self, path: str, name: str) -> None:
        """The target cannot hold a name."""
        self._renamed += 1
        if len(self.renamed) < _KEPT:
            self.renamed.append((path, name))

    def lose(self, what: str, path: str) -> None:
        """Something of a file was not kept. ``what``: a sentence without the file."""
        count, first = self._lost.get(what, (0, path))
        self._lost[what] = (count + 1, first)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not kept, a line each."""
        lines = [f"{what}: {count}, the first {path!r}" for what, (count, path) in self._lost.items()]
        if self._renamed:
            lines.append(f"names that the target cannot hold, written in another way: {self._renamed}")
        return tuple(lines)


def beside(node: nodes.Node) -> nodes.Node:
    """What an alternate data stream is as a file of its own, beside the one that it belongs to."""
    return dataclasses.replace(node, format=stat.S_IFREG, mode=None, xattrs=(), flags=(), created=0)


class Content:
    """The bytes of one stream of a file."""

    def __init__(self, browser: browsing.Browser, node: nodes.Node, stream: str, meter: meters.Meter) -> None:
        self.size = dict(node.streams)[stream] if stream else node.size
        self._browser, self._node, self._stream, self._meter = browser, node, stream, meter

    def extents(self) -> Iterator[tuple[int, int]]:
        """Offset and length of what may hold data, in order and apart; the rest is zeros."""
        if not self.size:
            return
        for one in self._browser.extents(self._node, self._stream):
            length = min(one.length, self.size - one.offset)
            if length > 0:
                yield one.offset, length

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises ``GuestUnreadable``, ``UnitError`` or ``Cancelled``."""
        self._meter.check()
        try:
            data = self._browser.read(self._node, offset, length, self._stream)
        except OSError as error:
            raise errors.UnitError(f"the copies of the image cannot be read: {error.strerror}") from error
        if len(data) != length:
            # A file that says it is longer than it is: what a mount gives there is zeros.
            data += bytes(length - len(data))
        self._meter.add(scanned=length)
        return data

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        """A range piece by piece, with the offset of each."""
        end = offset + length
        while offset < end:
            step = min(PIECE, end - offset)
            yield offset, self.read(offset, step)
            offset += step


class Sink(Protocol):
    """Where files go. Names are those of the image; every call but ``leave`` is about the folder entered last.

    Calls raise ``OSError``, ``TargetExists`` and ``TargetError`` where the target refuses, and what reading raises.
    """

    def directory(self, name: str, node: nodes.Node, path: str) -> None:
        """Make a folder and enter it; of ``PLAIN`` the name alone. ``path``: of the image, for messages."""

    def leave(self) -> None:
        """Finish the folder entered last, and leave it."""

    def file(self, name: str, node: nodes.Node, content: Content, path: str) -> None:
        """A file, whole or not at all."""

    def stream(self, name: str, stream: str, node: nodes.Node, content: Content, path: str) -> None:
        """An alternate data stream of a file that is there, or for no name of the folder entered last."""

    def link(self, name: str, first: tuple[str, ...], node: nodes.Node, path: str) -> bool:
        """Another name of a file; False where the target knows no such thing, so that it has to be written again.

        ``first``: names of folders and file from the target's root that lead to it.
        """

    def symlink(self, name: str, node: nodes.Node, path: str) -> None:
        """A symbolic link."""

    def special(self, name: str, node: nodes.Node, path: str) -> bool:
        """A device, pipe or socket; whether it was made."""

    def finish(self) -> None:
        """All is there: make it durable."""
