"""FAT12, FAT16 and FAT32: the chains of every file, the clusters whose entry in the table is zero, and the names.

Names are long ones where there are, checked by the sum of the short one; times have no zone and are taken as UTC. The
number of a file is that of its entry: the byte of the volume where that lies, by 32.
"""

from __future__ import annotations

from reconciler.guests.parsers import bitmaps, chains, fat_shapes, outputs, stretches

#: Path, entries, and where these lie on the volume.
_Directory = tuple[str, bytes, list[tuple[int, int, int]]]


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated``, ``Damaged`` and ``TooMuch``."""
    shape = fat_shapes.shape(stretch)
    reader = _Reader(stretch, shape, output)
    reader.walk()
    return reader.facts()


class _Reader:
    def __init__(self, stretch: stretches.Stretch, shape: fat_shapes.Shape, output: outputs.Output) -> None:
        self._stretch = stretch
        self._shape = shape
        self._output = output
        self._table = fat_shapes.table(stretch, shape, 4 * output.limits.bitmap)
        self._clusters = chains.Clusters(
            stretch, self._table, last=shape.last, end=shape.end, base=shape.base, unit=shape.unit
        )
        self._number = 0
        self._damaged = 0
        self._label = shape.label

    def walk(self) -> None:
        """All directories from the root down; each has clusters of its own, so that none is met twice."""
        waiting = [self._root()]
        while waiting:
            above, data, places = waiting.pop()
            below: list[_Directory] = []
            for found in fat_shapes.entries(data, self._shape.bits == 32):
                if found.label:
                    self._label = self._label if above else fat_shapes.label(found.raw)
                    continue
                path = outputs.under(above, found.name)
                entry = self._take(path, chains.place(places, found.at) // chains.ENTRY, found)
                below += [entry] if entry is not None else []
            waiting += reversed(below)

    def _root(self) -> _Directory:
        shape = self._shape
        if not shape.root_cluster:
            data = self._stretch.exactly(shape.root, shape.root_length)
            return "", data, [(0, shape.root, shape.root_length)]
        try:
            runs = self._clusters.chain(shape.root_cluster)
        except chains.Damaged as error:
            raise stretches.Truncated(f"the root of FAT cannot be read: {error}") from None
        self._hand_over(runs)
        return "", self._clusters.content(runs, chains.MOST_DIRECTORY), list(self._clusters.extents(runs))

    def _hand_over(self, runs: list[chains.Run]) -> None:
        self._number += 1
        if self._output.want_runs:
            for offset, place, length in self._clusters.extents(runs):
                self._output.run(self._number, offset, place, length)

    def _take(self, path: str, inode: int, found: fat_shapes.Found) -> _Directory | None:
        """Hand over one entry; its content where it is a directory."""
        runs: list[chains.Run] = []
        try:
            if found.cluster:
                runs = self._clusters.chain(found.cluster)
        except chains.Damaged as error:
            self._damaged += 1
            self._output.warn("FileSkipped", f"{path[:200]!a} cannot be read: {error}")
            return None
        self._hand_over(runs)
        places = list(self._clusters.extents(runs))
        if self._output.want_files:
            entry = outputs.Entry(
                path=path,
                kind="directory" if found.folder else "file",
                size=0 if found.folder else found.size,
                inode=inode,
                resident=not runs,
            )
            entry.runs = [] if found.folder else places
            entry.created, entry.modified, entry.changed, entry.accessed = found.times()
            self._output.file(entry)
        return (path, self._clusters.content(runs, chains.MOST_DIRECTORY), places) if found.folder else None

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where the table is believed."""
        shape = self._shape
        unclean = shape.reason(self._table[1])
        reason = "" if unclean == fat_shapes.MOUNTED and self._output.quiesced else unclean
        if self._damaged:
            reason = f"{self._damaged} files cannot be read"
        if self._output.want_space and not reason:
            self._free()
        return outputs.Facts(filesystem="fat", label=self._label, clean=not unclean, reason=reason, cluster=shape.unit)

    def _free(self) -> None:
        count = self._shape.last - 1
        bits = bytearray(-(-count // 8))
        bitmap = bitmaps.Bitmap(bits, count=count, unit=self._shape.unit, base=self._shape.base)
        first = 0
        table = self._table
        # Zeros of the table as runs: whatever is not zero is in use, bad or reserved.
        for at in range(chains.FIRST, self._shape.last + 1):
            if not table[at]:
                continue
            first = at - chains.FIRST
            bits[first >> 3] |= 1 << (first & 7)
        for offset, length in bitmap.free():
            self._output.free(offset, length)
