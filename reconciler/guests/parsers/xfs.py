"""XFS: the blocks of every inode in use, what its groups call free, and the names.

Free space is what the trees of free extents hold, so everything they do not name is kept: headers, trees, the log and
blocks held in reserve. It is believed where the log is empty and no inode in use claims what a tree calls free. Names
are those that a mount would show: what the log holds is read as if it were written back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from reconciler.guests.parsers import bitmaps, outputs, stretches, trees, xfs_inodes, xfs_replays, xfs_shapes

_CHUNK = 64
_HEADERS = 4


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated``, ``Damaged`` and ``TooMuch``."""
    shape = xfs_shapes.shape(stretch)
    reader = _Reader(stretch, shape, output)
    if output.want_runs or output.want_space:
        reader.walk()
    if output.want_files:
        newest = xfs_replays.replayed(stretch, shape)
        if newest.problem:
            output.warn("LogNotReplayed", f"the newest names and sizes may be missing: {newest.problem}")
        trees.hand_over(_Names(newest.stretch, newest.shape), output)
    return reader.facts()


class _Names:
    """What ``trees`` walks."""

    errors = (xfs_shapes.Damaged, stretches.Truncated)

    def __init__(self, stretch: stretches.Stretch, shape: xfs_shapes.Shape) -> None:
        self._stretch = stretch
        self._shape = shape
        self.root = shape.root

    def inode(self, number: int) -> xfs_inodes.Inode:
        """An inode in use. Raises ``Damaged`` and ``Truncated``."""
        found = xfs_inodes.at(self._stretch, self._shape, number)
        if not found.used:
            raise xfs_shapes.Damaged(f"inode {number} is not in use")
        return found

    def entry(self, path: str, number: int, inode: xfs_inodes.Inode) -> outputs.Entry:
        """One name. Raises ``Damaged`` and ``Truncated``."""
        entry = outputs.Entry(path=path, kind=inode.kind, size=0, inode=number, links=max(inode.links, 1))
        entry.created, entry.modified, entry.changed, entry.accessed = inode.times()
        entry.resident = inode.resident
        if inode.kind in ("file", "symlink"):
            entry.size = inode.size
            entry.runs = [
                (run.offset, run.place, run.length)
                for run in inode.runs()
                if not run.unwritten and run.offset < inode.size
            ]
            covered = sum(length for _, _, length in entry.runs)
            entry.flags = ("sparse",) if not entry.resident and covered < entry.size else ()
        return entry

    def children(self, number: int, inode: xfs_inodes.Inode) -> Iterator[tuple[int, str]]:
        """What a directory holds. Raises ``Damaged`` and ``Truncated``."""
        del number
        return inode.entries()


class _Reader:
    errors = (xfs_shapes.Damaged, stretches.Truncated)

    def __init__(self, stretch: stretches.Stretch, shape: xfs_shapes.Shape, output: outputs.Output) -> None:
        self._stretch = stretch
        self._shape = shape
        self._output = output
        self._damaged = 0
        self._reason = ""
        self._bitmap = self._load() if output.want_space else None

    def _load(self) -> bitmaps.Bitmap:
        shape = self._shape
        length = -(-shape.blocks // 8)
        if length > self._output.limits.bitmap:
            raise outputs.TooMuch(f"a bitmap of more than {self._output.limits.bitmap} bytes")
        bitmap = bitmaps.Bitmap(bytearray(b"\xff" * length), count=shape.blocks, unit=shape.block, base=0)
        for group in range(shape.groups):
            free = 0
            header = xfs_shapes.header(self._stretch, shape, group, 1, b"XAGF")
            root, levels = int.from_bytes(header[16:20], "big"), int.from_bytes(header[28:32], "big")
            end = 0
            for record in xfs_shapes.records(self._stretch, shape, group, root, levels, (b"ABTB", b"AB3B"), (8, 8)):
                first, count = struct.unpack(">II", record)
                if first < end or first + count > shape.group_length(group):
                    raise xfs_shapes.Damaged(f"the free space of group {group} is not readable")
                end = first + count
                free += count
                bitmap.mark(group * shape.group_blocks + first, count, False)
            if free != int.from_bytes(header[52:56], "big"):
                self._reason = f"the free space of group {group} and its count disagree"
            bitmap.claim(shape.byte(group, 0), _HEADERS * shape.sector)
        return bitmap

    def _inodes(self) -> Iterator[xfs_inodes.Inode]:
        """All inodes in use, in order; those that may have changed where nothing else is of interest.

        Raises ``Damaged`` and ``Truncated`` where a tree cannot be read.
        """
        shape = self._shape
        bits = shape.group_bits + shape.inode_bits
        for group in range(shape.groups):
            header = xfs_shapes.header(self._stretch, shape, group, 2, b"XAGI")
            root, levels = int.from_bytes(header[20:24], "big"), int.from_bytes(header[24:28], "big")
            for record in xfs_shapes.records(self._stretch, shape, group, root, levels, (b"IABT", b"IAB3"), (16, 4)):
                first, holes, _, free = struct.unpack(">IHHQ", record)
                if not self._touched(group << bits | first):
                    continue
                for number in range(_CHUNK):
                    hole = shape.sparse and holes >> number // 4 & 1
                    if not hole and not free >> number & 1:
                        found = self._try(group << bits | first + number)
                        if found is not None and found.used:
                            yield found

    def _touched(self, number: int) -> bool:
        """Whether any of the inodes from ``number`` on that are kept together may have changed."""
        shape = self._shape
        place = shape.place(number >> shape.inode_bits)
        return not self._stretch.partly or self._stretch.touched(place, _CHUNK * shape.inode)

    def _try(self, number: int) -> xfs_inodes.Inode | None:
        try:
            return xfs_inodes.at(self._stretch, self._shape, number)
        except self.errors as error:
            self._skip(number, error)
            return None

    def _skip(self, number: int, error: Exception) -> None:
        self._damaged += 1
        self._output.warn("FileSkipped", f"inode {number} cannot be read: {error}")

    def walk(self) -> None:
        """Hand over the runs of all inodes and of their extended attributes; claim the blocks of their maps."""
        for inode in self._inodes():
            try:
                content, attributes = list(inode.runs()), list(inode.attribute_runs())
            except self.errors as error:
                self._skip(inode.number, error)
                continue
            for key, runs in ((2 * inode.number, content), (2 * inode.number + 1, attributes)):
                for run in runs:
                    if self._output.want_runs:
                        self._output.run(key, run.offset, run.place, run.length)
                    elif self._bitmap is not None:
                        self._bitmap.claim(run.place, run.length)
            if self._bitmap is not None:
                self._bitmap.claim(self._shape.place(inode.number >> self._shape.inode_bits), self._shape.block)
                for place in inode.own_blocks:
                    self._bitmap.claim(place, self._shape.block)

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where it is believed."""
        shape = self._shape
        unclean = xfs_shapes.unclean(self._stretch, shape)
        reason = "" if self._output.quiesced else unclean
        if shape.needs_repair:
            reason = "it needs repair"
        if not reason and self._damaged:
            reason = f"{self._damaged} inodes cannot be read"
        reason = reason or self._reason
        if self._bitmap is not None and not reason:
            for offset, length in self._bitmap.free():
                self._output.free(offset, length)
        return outputs.Facts(filesystem="xfs", label=shape.label, clean=not unclean, reason=reason, cluster=shape.block)
