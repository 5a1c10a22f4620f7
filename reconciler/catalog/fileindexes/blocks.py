"""A row of the search cache: all versions of all names of some folders of one client, packed.

About a thousand versions to a block. Their names lie apart from the numbers, so that a search reads names alone, and
only what it finds is unpacked further. A folder lies in one block as a whole, however large it is.
"""

from __future__ import annotations

import itertools
import operator
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from reconciler.catalog.fileindexes import columns, entries, intervals, layouts

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


#: One row among the numbers: its kind with flags, the six numbers of ``columns.decode_row``, and its bounds.
_ROW = struct.Struct("<B8q")


class Block:
    """A block that is read. Raises ``Malformed`` where it makes no sense."""

    def __init__(self, names: bytes, unpacker: columns.Unpacker | None = None) -> None:
        """``names``: the packed names. ``unpacker``: for whoever reads many."""
        self._unpacker = columns.Unpacker() if unpacker is None else unpacker
        self.names = layouts.Names(self._unpacker.unpack(names))

    def found(self, numbers: bytes, wanted: Sequence[tuple[int, bytes]]) -> Iterator[Versions]:
        """What lies under some names, the versions of one name at a time; nothing else of the block is looked at.

        ``numbers``: the packed ones. ``wanted``: numbers of names, rising, and the names; not empty.
        """
        values, count = self._unpacker.unpack(numbers), self.names.count
        if len(values) != count * _ROW.size:
            raise columns.Malformed("there are more or fewer numbers than names")
        if wanted[-1][0] >= count:
            raise columns.Malformed("there are more names than numbers")
        placed = [(number, self.names.above(number), name) for number, name in wanted]
        above = sorted({folder for _, folder, _ in placed})
        groups = dict(zip(above, self.names.groups(above), strict=True))
        last: tuple[int, bytes] | None = None
        history: Versions = []
        for number, folder, name in placed:
            if last != (folder, name):
                if history:
                    yield history
                last, history = (folder, name), []
            code, *six, since, until = _ROW.unpack(values[number::count])
            entry = columns.decode_row(groups[folder], layouts.text(name), code, six)
            history.append(intervals.Version(entry, since, until))
        if history:
            yield history

    def _versions(self, numbers: bytes) -> Versions:
        values, count = self._unpacker.unpack(numbers), self.names.count
        bounds = len(values) - 16 * count
        if bounds < 0:
            raise columns.Malformed("a block has no bounds")
        since, until = (columns.integers(values[at : at + 8 * count], count) for at in (bounds, bounds + 8 * count))
        rows = columns.decode_rows(self.names.groups(), self.names.fields(), values[:bounds])
        return list(map(intervals.Version, rows, since, until))

    def folder(self, numbers: bytes, place: Place) -> list[intervals.Version]:
        """The versions of all names in one folder."""
        return self.folders(numbers).get(place, [])

    def folders(self, numbers: bytes) -> dict[Place, Versions]:
        """Everything in it, by folder."""
        every = self._versions(numbers)
        starts = (0, *self.names.ends)
        return {
            (disk, volume, folder): every[start:end]
            for (disk, volume, folder, _), start, end in zip(self.names.groups(), starts, self.names.ends, strict=False)
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
    values = columns.encode_rows(rows)
    bounds = [columns.numbers(map(operator.itemgetter(column), every)) for column in (1, 2)]
    names = columns.pack(layouts.encode(rows), _LEVEL)
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
