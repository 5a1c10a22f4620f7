"""exFAT: the clusters of every file, its allocation bitmap, and the names.

The number of a file is that of its entry: the byte of the volume where that lies, by 32.
"""

from __future__ import annotations

import struct
from array import array

from reconciler.guests.parsers import bitmaps, chains, exfat_shapes, outputs, stretches

#: Path, entries, and where these lie on the volume.
_Directory = tuple[str, bytes, list[tuple[int, int, int]]]


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated``, ``Damaged`` and ``TooMuch``."""
    shape = exfat_shapes.shape(stretch)
    reader = _Reader(stretch, shape, output)
    reader.walk()
    return reader.facts()


class _Reader:
    def __init__(self, stretch: stretches.Stretch, shape: exfat_shapes.Shape, output: outputs.Output) -> None:
        if shape.last * 4 > 4 * output.limits.bitmap:
            raise outputs.TooMuch(f"a table of more than {4 * output.limits.bitmap} bytes")
        table = array("I", stretch.exactly(shape.table, 4 * (shape.last + 1)))
        self._shape = shape
        self._output = output
        self._clusters = chains.Clusters(
            stretch, table, last=shape.last, end=exfat_shapes.END, base=shape.base, unit=shape.unit
        )
        self._number = 0
        self._damaged = 0
        self._label = ""
        self._bits: bytearray | None = None
        self._claimed: list[chains.Run] = []

    def walk(self) -> None:
        """All directories from the root down; each has clusters of its own, so that none is met twice."""
        try:
            runs = self._clusters.chain(self._shape.root)
        except chains.Damaged as error:
            raise stretches.Truncated(f"the root of exFAT cannot be read: {error}") from None
        self._hand_over(runs)
        waiting = [("", self._clusters.content(runs, chains.MOST_DIRECTORY), list(self._clusters.extents(runs)))]
        while waiting:
            above, data, places = waiting.pop()
            below: list[_Directory] = []
            for found in exfat_shapes.entries(data):
                if isinstance(found, exfat_shapes.Found):
                    path = outputs.under(above, found.name)
                    entry = self._take(path, chains.place(places, found.at) // chains.ENTRY, found)
                    below += [entry] if entry is not None else []
                elif found is None:
                    self._damaged += 1
                    self._output.warn("FileSkipped", f"an entry in /{above[:200]} is damaged")
                elif not above:
                    self._own(found)
            waiting += reversed(below)

    def _hand_over(self, runs: list[chains.Run]) -> None:
        self._number += 1
        self._claimed += runs
        if self._output.want_runs:
            for offset, place, length in self._clusters.extents(runs):
                self._output.run(self._number, offset, place, length)

    def _take(self, path: str, inode: int, found: exfat_shapes.Found) -> _Directory | None:
        """Hand over one file; its content where it is a directory."""
        try:
            runs = exfat_shapes.runs(self._clusters, found, take=True)
        except chains.Damaged as error:
            self._damaged += 1
            self._output.warn("FileSkipped", f"{path[:200]!a} cannot be read: {error}")
            return None
        self._hand_over(runs)
        if self._output.want_files:
            self._output.file(self._entry(path, inode, found, runs))
        if not found.folder:
            return None
        content = self._clusters.content(runs, min(found.size, chains.MOST_DIRECTORY))
        return path, content, list(self._clusters.extents(runs))

    def _entry(self, path: str, inode: int, found: exfat_shapes.Found, runs: list[chains.Run]) -> outputs.Entry:
        entry = outputs.Entry(
            path=path,
            kind="directory" if found.folder else "file",
            size=0 if found.folder else found.size,
            inode=inode,
            resident=not runs,
        )
        if not found.folder:
            entry.runs = exfat_shapes.written(self._clusters, found, runs)
        entry.created, entry.modified, entry.changed, entry.accessed = found.times()
        return entry

    def _own(self, raw: bytes) -> None:
        """Entries of the root that describe the volume."""
        first, size = struct.unpack_from("<IQ", raw, 20)
        own = raw[0] == exfat_shapes.BITMAP and bool(raw[1] & 1) == self._shape.second
        if raw[0] == exfat_shapes.LABEL:
            self._label = exfat_shapes.label(raw)
        elif raw[0] == exfat_shapes.UPCASE or own:
            try:
                runs = self._clusters.chain(first)
            except chains.Damaged as error:
                self._damaged += 1
                self._output.warn("FileSkipped", f"a table of the volume cannot be read: {error}")
                return
            self._claimed += runs
            if own and self._output.want_space:
                if size > self._output.limits.bitmap:
                    raise outputs.TooMuch(f"a bitmap of more than {self._output.limits.bitmap} bytes")
                self._bits = bytearray(self._clusters.content(runs, size))

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where its bitmap is believed."""
        unclean = self._shape.reason
        reason = "" if unclean == exfat_shapes.MOUNTED and self._output.quiesced else unclean
        if self._damaged:
            reason = f"{self._damaged} files cannot be read"
        if self._output.want_space and not reason:
            reason = self._free()
        return outputs.Facts(
            filesystem="exfat", label=self._label, clean=not unclean, reason=reason, cluster=self._shape.unit
        )

    def _free(self) -> str:
        count = self._shape.last - 1
        if self._bits is None or len(self._bits) * 8 < count:
            return "its bitmap is missing or too short"
        bitmap = bitmaps.Bitmap(self._bits, count=count, unit=self._shape.unit, base=self._shape.base)
        for first, many in self._claimed:
            bitmap.mark(first - chains.FIRST, many, True)
        for offset, length in bitmap.free():
            self._output.free(offset, length)
        return ""
