"""exFAT for a browser: files by the place of their entry, chains followed where somebody asks for them."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from reconciler.guests import scans
from reconciler.guests.parsers import chains, exfat_shapes, fat_nodes, outputs, served, stretches

_ROOT = 0
_MASK = 0xFFFFFFFF


class Files:
    """The files of one volume; see ``served.FileSystem``."""

    root = _ROOT

    def __init__(self, stretch: stretches.Stretch, limits: scans.Limits) -> None:
        del limits
        self.stretch = stretch
        self._shape = shape = exfat_shapes.shape(stretch)
        table = chains.Pages(stretch, shape.table, shape.last + 1, _MASK)
        self._clusters = chains.Clusters(
            stretch, table, last=shape.last, end=exfat_shapes.END, base=shape.base, unit=shape.unit
        )

    def facts(self) -> outputs.Facts:
        """Label and state. Raises ``Damaged`` and ``Truncated``."""
        label = ""
        for one in exfat_shapes.entries(self._directory(_ROOT)[0]):
            if isinstance(one, bytes) and one[0] == exfat_shapes.LABEL:
                label = exfat_shapes.label(one)
        reason = self._shape.reason
        return outputs.Facts(filesystem="exfat", label=label, clean=not reason, reason=reason, cluster=self._shape.unit)

    def _find(self, number: int) -> exfat_shapes.Found:
        place = number * chains.ENTRY
        cluster = self._clusters.holding(place)
        if cluster is None:
            raise served.Missing(f"there is no entry {number}")
        raw = self.stretch.exactly(place, chains.ENTRY)
        if raw[0] != exfat_shapes.FILE:
            raise served.Missing(f"entry {number} is no file")
        for group in self._groups(place, chains.ENTRY * (raw[1] + 1), cluster):
            if exfat_shapes.sound(group):
                found = exfat_shapes.file(group, 0)
                if found is not None:
                    return found
        raise chains.Damaged(f"entry {number} is damaged")

    def _groups(self, place: int, length: int, cluster: int) -> Iterator[bytes]:
        """The group of entries that starts at ``place``; where it goes on in another cluster, both that may be it."""
        end = self._clusters.place(cluster) + self._clusters.unit
        head = self.stretch.exactly(place, min(length, end - place))
        if len(head) == length:
            yield head
            return
        # Only the directory's own entry says whether its clusters are chained or lie in a row; the sum tells.
        for following in (self._clusters.next(cluster), cluster + 1):
            if following is not None and self._clusters.place(following) + self._clusters.unit <= self.stretch.size:
                yield head + self.stretch.exactly(self._clusters.place(following), length - len(head))

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
            flags=fat_nodes.flags(found.raw[4]),
        )

    def _directory(self, number: int) -> tuple[bytes, list[served.Run]]:
        """The entries of a directory, and where they lie."""
        if number == _ROOT:
            runs = self._clusters.chain(self._shape.root, take=False)
            return self._clusters.content(runs, chains.MOST_DIRECTORY), list(self._clusters.extents(runs))
        found = self._find(number)
        if not found.folder:
            raise served.Refused("it is no directory")
        runs = exfat_shapes.runs(self._clusters, found, take=False)
        data = self._clusters.content(runs, min(found.size, chains.MOST_DIRECTORY))
        return data, list(self._clusters.extents(runs))

    def names(self, number: int) -> Iterator[served.Name]:
        """See ``served.FileSystem``."""
        data, places = self._directory(number)
        for found in exfat_shapes.entries(data):
            if isinstance(found, exfat_shapes.Found):
                yield served.Name(found.name, chains.place(places, found.at) // chains.ENTRY)

    def look(self, number: int, name: str) -> served.Name:
        """See ``served.FileSystem``."""
        return served.named(self.names(number), name)

    def content(self, number: int, stream: str) -> served.Content:
        """See ``served.FileSystem``."""
        found = self._find(number) if number != _ROOT else None
        if stream:
            raise served.Missing("files of exFAT have no streams")
        if found is None or found.folder:
            raise served.Refused("it is no file")
        runs = exfat_shapes.runs(self._clusters, found, take=False)
        if sum(count for _, count in runs) * self._clusters.unit < found.size:
            raise chains.Damaged("the end of its content is missing")
        return served.Content(found.size, exfat_shapes.written(self._clusters, found, runs))
