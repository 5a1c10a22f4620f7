"""How the names of a block lie: folders in one run of bytes and names in another, each item between two NULs.

``patterns`` searches both as they are; a block in which nothing is found is never taken apart, and of one in which
something is, only the names found become text. ``blocks`` puts the numbers beside it. Folders are written with a slash
before each part, the root as nothing, so that a part of a path can be told from a piece of its name. Everything that
is taken out is checked, and anything odd is ``columns.Malformed``.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Sequence
from typing import Final

from reconciler.catalog.fileindexes import columns, entries

#: Names, folders, bytes of the roots and of the folders' paths.
_HEAD = struct.Struct("<IIII")
#: Between roots, and of what each consists.
_ROOT: Final = 3


def encode(rows: Sequence[entries.Entry]) -> bytes:
    """The names of entries that are in order of their keys."""
    roots: list[str] = []
    folders: list[str] = []
    counts: list[int] = []
    names: list[str] = []
    for (disk, volume), some in itertools.groupby(rows, key=_root):
        before = len(folders)
        for folder, members in itertools.groupby(some, key=_folder):
            start = len(names)
            cut = len(folder) + 1 if folder else 0
            names += [f"{row.path[cut:]}/{row.stream}" if row.stream else row.path[cut:] for row in members]
            folders.append(f"/{folder}" if folder else "")
            counts.append(len(names) - start)
        roots += (disk, str(volume), str(len(folders) - before))
    root, above, body = "\0".join(roots).encode("utf-8", "surrogatepass"), _run(folders), _run(names)
    return b"".join(
        (_HEAD.pack(len(rows), len(folders), len(root), len(above)), root, columns.numbers(counts), above, body)
    )


def _root(row: entries.Entry) -> tuple[str, int]:
    return row.disk, row.volume


def _folder(row: entries.Entry) -> str:
    return row.path.rpartition("/")[0]


def _run(items: list[str]) -> bytes:
    return ("\0" + "".join(f"{item}\0" for item in items)).encode("utf-8", "surrogatepass")


def text(data: bytes) -> str:
    """An item as text. Raises ``Malformed``."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise columns.Malformed(f"names cannot be read: {error}") from error


class Names:
    """The names of one block. Making one, and whatever is asked of it, raises ``Malformed``."""

    def __init__(self, data: bytes) -> None:
        """``data``: what ``encode`` made."""
        if len(data) < _HEAD.size:
            raise columns.Malformed("names have no head")
        self.count, folders, roots, paths = _HEAD.unpack_from(data)
        counts = _HEAD.size + roots
        start = counts + 8 * folders
        #: The runs of the folders' paths and of the names; both begin and end with a NUL.
        self.paths = data[start : start + paths]
        self.body = data[start + paths :]
        self._roots = data[_HEAD.size : counts]
        self._counts = data[counts:start]
        self._ends: list[int] | None = None
        for run in (self.paths, self.body):
            if run[:1] != b"\0" or run[-1:] != b"\0":
                raise columns.Malformed("names have another length than they say")

    @property
    def ends(self) -> list[int]:
        """The number of the first name behind each folder."""
        if self._ends is None:
            counts = columns.integers(self._counts, len(self._counts) // 8)
            if sum(counts) != self.count or (counts and min(counts) < 0):
                raise columns.Malformed("the folders hold more or fewer names than there are")
            self._ends = list(itertools.accumulate(counts))
        return self._ends

    def above(self, number: int) -> int:
        """The number of the folder that a name lies in."""
        return bisect.bisect_right(self.ends, number)

    def groups(self, chosen: Sequence[int] | None = None) -> list[columns.Group]:
        """All folders, or some by their numbers, rising; ``Group``'s last value is how many names follow."""
        ends, roots = self.ends, self._spread()
        # The first is what lies before the first NUL, the last what lies behind the last one.
        paths = self.paths.split(b"\0")
        if len(paths) != len(ends) + 2:
            raise columns.Malformed("there are more or fewer folders than it says")
        groups: list[columns.Group] = []
        for number in range(len(ends)) if chosen is None else chosen:
            path = text(paths[number + 1])
            if path and path[0] != "/":
                raise columns.Malformed("a folder has an impossible path")
            root = next(one for one in roots if number < one[2])
            count = ends[number] - (ends[number - 1] if number else 0)
            groups.append((root[0], root[1], columns.proper(path[1:]), count))
        return groups

    def _spread(self) -> list[tuple[str, int, int]]:
        """Disk, volume, and the number of the first folder behind those of it."""
        fields = text(self._roots).split("\0") if self._roots else []
        if len(fields) % _ROOT:
            raise columns.Malformed("a root is not whole")
        found: list[tuple[str, int, int]] = []
        end = 0
        for disk, volume, count in zip(*[iter(fields)] * _ROOT, strict=True):
            end += columns.number(count, len(self.ends) + 1)
            found.append((disk, columns.number(volume, columns.VOLUMES), end))
        if end != len(self.ends):
            raise columns.Malformed("the roots hold more or fewer folders than there are")
        return found

    def fields(self) -> list[str]:
        """All names, as ``name`` or ``name/stream``."""
        return text(self.body[1:-1]).split("\0") if self.count else []
