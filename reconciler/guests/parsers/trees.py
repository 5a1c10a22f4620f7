"""Walking a tree of directories whose entries are inode numbers: what ext and XFS have in common.

Every directory is entered once, however many entries lead to it, so that no cycle of a hostile volume is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from reconciler.guests import wires
from reconciler.guests.parsers import outputs

Inode = TypeVar("Inode")


class Source(Protocol, Generic[Inode]):
    """A file system whose names can be walked; its methods raise only ``errors``."""

    @property
    def root(self) -> int:
        """Number of the root directory."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What is raised where something cannot be read."""

    def inode(self, number: int) -> Inode:
        """The inode ``number``, which is in use."""

    def entry(self, path: str, number: int, inode: Inode) -> outputs.Entry:
        """What is handed over for one name."""

    def children(self, number: int, inode: Inode) -> Iterator[tuple[int, str]]:
        """Numbers and names in a directory, itself and its parent left out."""


def hand_over(source: Source[Inode], output: outputs.Output) -> None:
    """Hand over every name below the root. Raises what ``source`` does for the root alone, and ``TooMuch``."""
    seen = {source.root}
    waiting = [("", source.root, source.inode(source.root))]
    while waiting:
        above, number, inode = waiting.pop()
        below: list[tuple[str, int, Inode]] = []
        try:
            for child, name in source.children(number, inode):
                path = outputs.under(above, name)
                found = _one(source, output, path, child)
                # A name that leads nowhere must not be the one by which a directory is known.
                if found is not None and child not in seen and wires.bearable(name):
                    seen.add(child)
                    below.append((path, child, found))
        except source.errors as error:
            output.warn("DirectorySkipped", f"directory {number} cannot be read to its end: {error}")
        waiting += reversed(below)


def below(found: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The entries of a directory that lists itself and its parent first, without these: one of each."""
    own = {".", ".."}
    for number, name in found:
        if name in own:
            own.remove(name)
        else:
            yield number, name


def _one(source: Source[Inode], output: outputs.Output, path: str, number: int) -> Inode | None:
    """Hand over one name; the inode where it is a directory."""
    try:
        inode = source.inode(number)
        entry = source.entry(path, number, inode)
    except source.errors as error:
        output.warn("FileSkipped", f"{path[:200]!a} cannot be listed: {error}")
        return None
    output.file(entry)
    return inode if entry.kind == "directory" else None
