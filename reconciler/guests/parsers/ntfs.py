"""NTFS: the clusters of every stream of every file, what its bitmap calls free, and its names.

One pass over the master file table, in order. The bitmap is believed where the volume is not marked dirty and its log
was closed, every record in use could be read, and no hibernated machine waits on it; claims beyond the streams that
are handed over are set in it before it is.
"""

from __future__ import annotations

from reconciler.guests.parsers import bitmaps, ntfs_names, ntfs_states, outputs, stretches
from reconciler.guests.parsers import ntfs_records as records

_BITMAP, _BAD = 6, 8
_PAGE_FILES = frozenset({"pagefile.sys", "swapfile.sys"})
_HIBERNATED = "hiberfil.sys"


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated``, ``Damaged`` and ``TooMuch``."""
    shape = records.shape(stretch)
    reader = _Reader(stretch, records.Table(stretch, shape), output)
    reader.walk()
    if output.want_files:
        reader.list()
    return reader.facts()


class _Reader:
    def __init__(self, stretch: stretches.Stretch, table: records.Table, output: outputs.Output) -> None:
        self._stretch = stretch
        self._table = table
        self._shape = table.shape
        self._output = output
        self._stream = 0
        self._damaged: dict[int, str] = {}
        self._hibernated = False
        self._tree = ntfs_names.Tree(table)
        self._bitmap = self._load() if output.want_space else None
        self._used = self._load_used()

    def _load(self) -> bitmaps.Bitmap:
        shape, limit = self._shape, self._output.limits.bitmap
        bitmap = self._table.own(_BITMAP, records.DATA)
        need = -(-shape.clusters // 8)
        if bitmap is None or bitmap.size < need:
            raise records.Damaged("the bitmap of NTFS is too short")
        if need > limit:
            raise outputs.TooMuch(f"a bitmap of more than {limit} bytes")
        bits = bytearray(self._table.value(bitmap, need))
        found = bitmaps.Bitmap(bits, count=shape.clusters, unit=shape.cluster, base=0)
        found.claim(0, 8192)
        found.claim(shape.mirror * shape.cluster, 4 * max(shape.record, 1024))
        return found

    def _load_used(self) -> bytes:
        """Which records of the table are in use as its own bitmap says."""
        own = self._table.own(0, records.BITMAP)
        return self._table.value(own, -(-self._table.count // 8)) if own is not None else b""

    def walk(self) -> None:
        """Hand over the runs of all files, in the table's order; note directories and what cannot be read."""
        size = self._shape.record
        # For a list of names alone the directories are enough: every other record is read when it is listed.
        flags = records.IN_USE | (0 if self._output.want_runs or self._bitmap is not None else records.DIRECTORY)
        for first, data in self._table.chunks():
            for number in range(first, first + len(data) // size):
                at = (number - first) * size
                if data[at : at + 4] != b"FILE":
                    self._check_unused(number, data[at : at + 4])
                elif data[at + 22] & flags == flags:
                    try:
                        self._record(number, records.mend(data[at : at + size]))
                    except records.Damaged as error:
                        self._damaged[number] = str(error)
                        self._output.warn("FileSkipped", f"record {number} cannot be read: {error}")

    def _check_unused(self, number: int, magic: bytes) -> None:
        """A record that is none but should be one may claim clusters nobody will hear of."""
        used = (
            number >= ntfs_names.FIRST and number // 8 < len(self._used) and self._used[number // 8] >> number % 8 & 1
        )
        if used or magic == b"BAAD":
            self._damaged[number] = "it is none"
            self._output.warn("FileSkipped", f"record {number} is in use and cannot be read")

    def _record(self, number: int, record: bytearray) -> None:
        if records.base(record):
            self._claim(record)
            return
        space = self._bitmap is not None
        wanted = (records.LIST, records.NAME) if space else (records.LIST,)
        found = self._table.gather(number, record, wanted)
        streams = records.streams(found)
        cluster, run = self._shape.cluster, self._output.run
        # The clusters that a disk called bad are nobody's content.
        if number == _BAD or not self._output.want_runs:
            self._claim(record)
        else:
            for stream in streams:
                self._stream += 1
                for vcn, lcn, count in stream.runs:
                    run(self._stream, vcn * cluster, lcn * cluster, count * cluster)
        if space:
            self._root_file(found, streams)
        if self._output.want_files and record[22] & records.DIRECTORY:
            self._tree.add(number, record)

    def _claim(self, record: bytearray) -> None:
        """Keep the clusters of a record whose runs are not handed over."""
        if self._bitmap is None:
            return
        for one in records.attributes(record, self._shape.clusters, ()):
            for _, lcn, count in one.runs:
                self._bitmap.mark(lcn, count, True)

    def _root_file(self, found: list[records.Attribute], streams: list[records.Attribute]) -> None:
        """Page files and the hibernated machine, told by their names in the root."""
        if not streams:
            return
        own = {name.text.lower() for name in ntfs_names.names(found) if name.parent == ntfs_names.ROOT}
        content = [one for one in streams if one.kind == records.DATA and not one.name]
        if not content or not own:
            return
        if own & _PAGE_FILES:
            for _, lcn, count in content[0].runs:
                self._output.page_file(lcn * self._shape.cluster, count * self._shape.cluster)
        if _HIBERNATED in own and self._table.value(content[0], 4).lower() == b"hibr":
            self._hibernated = True

    def list(self) -> None:
        """Hand over all names and streams, in the table's order."""
        size = self._shape.record
        for first, data in self._table.chunks():
            for number in range(max(first, ntfs_names.FIRST), first + len(data) // size):
                at = (number - first) * size
                if data[at : at + 4] != b"FILE" or not data[at + 22] & records.IN_USE or number in self._damaged:
                    continue
                self._list(number, data[at : at + size])

    def _list(self, number: int, data: bytes) -> None:
        try:
            record = records.mend(data)
            if records.base(record):
                return
            made = ntfs_names.entries(self._tree, number, record, self._table)
        except records.Damaged as error:
            self._damaged[number] = str(error)
            self._output.warn("FileSkipped", f"record {number} cannot be listed: {error}")
            return
        for entry in made:
            self._output.file(entry)

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where its bitmap is believed."""
        unclean, dirty = ntfs_states.state(self._table)
        reason = dirty or ("" if self._output.quiesced else unclean)
        if not reason and self._hibernated:
            reason = "a hibernated machine waits on it"
        if not reason and self._damaged:
            reason = f"{len(self._damaged)} records of files cannot be read"
        if self._bitmap is not None and not reason:
            for offset, length in self._bitmap.free():
                self._output.free(offset, length)
        return outputs.Facts(
            filesystem="ntfs",
            label=ntfs_states.label(self._table),
            clean=not (dirty or unclean),
            reason=reason,
            cluster=self._shape.cluster,
        )
