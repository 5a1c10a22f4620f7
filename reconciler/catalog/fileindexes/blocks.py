"""A row of the search cache: all versions of all names of some folders of one client, packed.

About a thousand versions to a block. Their names lie apart from the numbers, so that a search reads names alone, and
only what it finds is unpacked further. A folder lies in one block as a whole, however large it is.
"""

from __future__ import annotations

import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from reconciler.catalog.fileindexes import columns, entries, intervals

#: Versions in a block that is filled, and the most in one that holds several folders; counts.
TARGET: Final = 1_000
MOST: Final = 2_500
_LEVEL = 9

#: Disk, volume, path of a folder.
Place = tuple[str, int, str]
#: All versions of all names in a folder, in order of the names' keys and then of time.
Versions = list[intervals.Version]
#: The versions of each name in a folder, by its key, in order.
Names = dict[entries.Key, Versions]


class Block:
    """A block that is read. Raises ``Malformed`` where it makes no sense."""

    def __init__(self, names: bytes) -> None:
        """``names``: the packed names."""
        self._names = columns.unpack(names)
        self.groups, self.text = columns.split_names(self._names)
        #: The number of the first name behind each folder.
        self.ends = list(itertools.accumulate(group[3] for group in self.groups))

    def versions(self, numbers: bytes, wanted: Sequence[int] | None = None) -> Versions:
        """Everything in it, or what lies under some of the names; ``numbers`` are the packed ones."""
        values, count = columns.unpack(numbers), self.ends[-1] if self.ends else 0
        since, until = self._bounds(values, count)
        rows = columns.decode(self._names, values[: -16 * count] if count else b"", wanted)
        if wanted is not None:
            since, until = (array("q", (column[number] for number in wanted)) for column in (since, until))
        return list(map(intervals.Version, rows, since, until))

    @staticmethod
    def _bounds(values: bytes, count: int) -> tuple[array[int], array[int]]:
        end = len(values)
        if end < 16 * count:
            raise columns.Malformed("a block has no bounds")
        since = columns.integers(values[end - 16 * count : end - 8 * count], count)
        return since, columns.integers(values[end - 8 * count :], count)

    def folder(self, numbers: bytes, place: Place) -> list[intervals.Version]:
        """The versions of all names in one folder."""
        start = 0
        for group, end in zip(self.groups, self.ends, strict=True):
            if group[:3] == place:
                return self.versions(numbers)[start:end]
            start = end
        return []

    def folders(self, numbers: bytes) -> dict[Place, Versions]:
        """Everything in it, by folder."""
        every = self.versions(numbers)
        starts = (0, *self.ends)
        return {
            (disk, volume, folder): every[start:end]
            for (disk, volume, folder, _), start, end in zip(self.groups, starts, self.ends, strict=False)
        }


def by_name(versions: Iterable[intervals.Version]) -> Names:
    """The versions in a folder, name by name."""
    names: Names = {}
    for one in versions:
        names.setdefault(entries.key(one.entry), []).append(one)
    return names


def in_order(names: Names) -> Versions:
    """Undo ``by_name``."""
    return [one for _, some in sorted(names.items()) for one in some]


def pack(folders: Mapping[Place, Versions]) -> tuple[int, bytes, bytes]:
    """How many versions there are, their names and their numbers, packed."""
    every = list(itertools.chain.from_iterable(folders[place] for place in sorted(folders)))
    rows = [one.entry for one in every]
    values = columns.encode_numbers(rows)
    bounds = [columns.numbers(map(operator.itemgetter(column), every)) for column in (1, 2)]
    names = columns.pack(columns.encode_names(rows), _LEVEL)
    return len(every), names, columns.pack(b"".join((values, *bounds)), _LEVEL)


def fill(folders: Mapping[Place, Versions]) -> Iterator[dict[Place, Versions]]:
    """Folders, as many at a time as fill a block."""
    block: dict[Place, Versions] = {}
    size = 0
    for place in sorted(folders):
        block[place] = folders[place]
        size += len(folders[place])
        if size >= TARGET:
            yield block
            block, size = {}, 0
    if block:
        yield block
