"""FAT for a browser: files by the place of their entry, chains followed where somebody asks for them."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from reconciler.guests import scans
from reconciler.guests.parsers import chains, fat_shapes, outputs, served, stretches

_ROOT = 0
_MASK = 0x0FFFFFFF
_FLAGS = ((0x20, "archive"), (0x02, "hidden"), (0x01, "readonly"), (0x04, "system"))


def flags(attributes: int) -> tuple[str, ...]:
    """The words for the attributes of a file."""
    return tuple(word for bit, word in _FLAGS if attributes & bit)


class Files:
    """The files of one volume; see ``served.FileSystem``."""

    root = _ROOT

    def __init__(self, stretch: stretches.Stretch, limits: scans.Limits) -> None:
        self.stretch = stretch
        self._shape = shape = fat_shapes.shape(stretch)
        self._table: chains.Entries = (
            chains.Pages(stretch, shape.table, shape.last + 1, _MASK)
            if shape.bits == 32
            else fat_shapes.table(stretch, shape, 4 * limits.bitmap)
        )
        self._clusters = chains.Clusters(
            stretch, self._table, last=shape.last, end=shape.end, base=shape.base, unit=shape.unit
        )

    def facts(self) -> outputs.Facts:
        """Label and state. Raises ``Damaged`` and ``Truncated``."""
        shape = self._shape
        named = next((found for found in self._entries(_ROOT)[0] if found.label), None)
        reason = shape.reason(self._table[1])
        return outputs.Facts(
            filesystem="fat",
            label=fat_shapes.label(named.raw) if named is not None else shape.label,
            clean=not reason,
            reason=reason,
            cluster=shape.unit,
        )

    def _find(self, number: int) -> fat_shapes.Found:
        """The entry ``number``, under its short name."""
        shape, place = self._shape, number * chains.ENTRY
        inside = shape.root <= place < shape.root + shape.root_length if not shape.root_cluster else False
        if not inside and self._clusters.holding(place) is None:
            raise served.Missing(f"there is no entry {number}")
        raw = self.stretch.exactly(place, chains.ENTRY)
        if fat_shapes.free(raw):
            raise served.Missing(f"entry {number} is no file")
        return fat_shapes.entry(raw, 0, shape.bits == 32)

    def node(self, number: int, version: int = 0) -> served.Node:
        """See ``served.FileSystem``."""
        del version
        if number == _ROOT:
            return served.Node(inode=number, format=stat.S_IFDIR)
        found = self._find(number)
        return served.Node(
            inode=number,
            format=stat.S_IFDIR if found.folder else stat.S_IFREG,
            size=0 if found.folder else found.size,
            times=found.times(),
            flags=flags(found.attributes),
        )

    def _entries(self, number: int) -> tuple[Iterator[fat_shapes.Found], list[served.Run]]:
        """What a directory holds, and where its bytes lie."""
        shape = self._shape
        if number == _ROOT and not shape.root_cluster:
            data = self.stretch.exactly(shape.root, shape.root_length)
            return fat_shapes.entries(data, wide=False), [(0, shape.root, shape.root_length)]
        cluster = shape.root_cluster
        if number != _ROOT:
            found = self._find(number)
            if not found.folder:
                raise served.Refused("it is no directory")
            cluster = found.cluster
        runs = self._clusters.chain(cluster, take=False)
        data = self._clusters.content(runs, chains.MOST_DIRECTORY)
        return fat_shapes.entries(data, shape.bits == 32), list(self._clusters.extents(runs))

    def names(self, number: int) -> Iterator[served.Name]:
        """See ``served.FileSystem``."""
        found, places = self._entries(number)
        for one in found:
            if not one.label:
                yield served.Name(one.name, chains.place(places, one.at) // chains.ENTRY)

    def look(self, number: int, name: str) -> served.Name:
        """See ``served.FileSystem``."""
        return served.named(self.names(number), name)

    def content(self, number: int, stream: str) -> served.Content:
        """See ``served.FileSystem``."""
        found = self._find(number) if number != _ROOT else None
        if stream:
            raise served.Missing("files of FAT have no streams")
        if found is None or found.folder:
            raise served.Refused("it is no file")
        runs = self._clusters.chain(found.cluster, take=False) if found.size else []
        if sum(count for _, count in runs) * self._clusters.unit < found.size:
            raise chains.Damaged("the end of its content is missing")
        return served.Content(found.size, self._clusters.extents(runs))
