"""The inodes of XFS: what they say of a file, where its blocks lie, and what a directory holds.

Used by the other ``xfs`` modules. Extents must rise strictly and every node of a tree must hold something, so that
nothing a hostile volume says costs more than the runs it hands over.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import stretches, trees, xfs_shapes

_KINDS = {0x4000: "directory", 0x8000: "file", 0xA000: "symlink"}
LOCAL, EXTENTS, TREE = 1, 2, 3
_REALTIME = 0x1
_BIG_TIME, _MANY = 0x8, 0x10
#: Seconds between the first moment of late dates and 1970.
_EARLIEST = 1 << 31
_DEEPEST = 9
_LARGEST = 1 << 62
#: Bytes of a directory before which its entries lie; hashes and free space come behind.
_ENTRIES = 32 << 30
_MOST_DIRECTORY = 1 << 30
#: Extents of a file that are looked at where a change of them is not at its end.
_MOST_CHANGED = 1 << 20

Damaged = xfs_shapes.Damaged


class Run(NamedTuple):
    """Blocks of a file that lie in a row: bytes in the file, on the volume and in all."""

    offset: int
    place: int
    length: int
    #: Whether they were allocated and never written: they read as zeros.
    unwritten: bool


class Inode:
    """One inode, its core read. Raises ``Damaged``."""

    def __init__(self, stretch: stretches.Stretch, shape: xfs_shapes.Shape, number: int, data: bytes) -> None:
        self._stretch = stretch
        self._shape = shape
        self._data = data
        mode, version, self.format = struct.unpack_from(">HBB", data, 2)
        if data[:2] != b"IN" or version not in (1, 2, 3) or (version == 3) != shape.v5:
            raise Damaged(f"inode {number} is none")
        self._v3 = version == 3
        if self._v3 and int.from_bytes(data[152:160], "big") != number:
            raise Damaged(f"inode {number} is another")
        self.number = number
        self.used = mode != 0
        self.kind = _KINDS.get(mode & 0xF000, "other")
        self.links = int.from_bytes(data[16:20], "big") if version > 1 else int.from_bytes(data[6:8], "big")
        self.size = int.from_bytes(data[56:64], "big")
        #: Type and permissions, owner and group, and blocks held.
        self.mode = mode
        self.uid, self.gid = struct.unpack_from(">II", data, 8)
        self.held = int.from_bytes(data[64:72], "big")
        self._core = 176 if self._v3 else 100
        self._fork = 8 * data[82]
        self.attribute_format = data[83]
        self._flags2 = int.from_bytes(data[120:128], "big") if self._v3 else 0
        #: Immutable, append-only and the like; and whether its content lies on another device.
        self.flags = int.from_bytes(data[90:92], "big")
        self.elsewhere = bool(self.flags & _REALTIME)
        #: Blocks that hold the maps, bytes of the volume; complete after the runs were read.
        self.own_blocks: list[int] = []

    @property
    def resident(self) -> bool:
        """Whether the content lies in the inode itself."""
        return bool(self.format == LOCAL)

    def times(self) -> tuple[int, int, int, int]:
        """Created, modified, changed and accessed, nanoseconds since 1970; created is 0 where it is not kept."""
        accessed, modified, changed = (self._time(at) for at in (32, 40, 48))
        return (self._time(144) if self._v3 else 0), modified, changed, accessed

    def _time(self, at: int) -> int:
        if self._flags2 & _BIG_TIME:
            return int.from_bytes(self._data[at : at + 8], "big") - _EARLIEST * 1_000_000_000
        seconds, nanoseconds = struct.unpack_from(">iI", self._data, at)
        return int(seconds * 1_000_000_000 + min(nanoseconds, 999_999_999))

    def local(self) -> bytes:
        """The content that lies in the inode."""
        end = self._core + self._fork if self._fork else len(self._data)
        return self._data[self._core : min(end, self._core + self.size)]

    def attributes(self) -> bytes:
        """What of its extended attributes, or of where they lie, the inode holds; empty where it has none."""
        return self._data[self._core + self._fork :] if self._fork else b""

    def device(self) -> int:
        """The device numbers of a device node, as ``os.makedev`` packs them."""
        packed = int.from_bytes(self._data[self._core : self._core + 4], "big")
        return os.makedev(packed >> 18, packed & 0x3FFFF)

    def runs(self) -> Iterator[Run]:
        """The runs of the content in order, holes left out. Raises ``Damaged`` and ``Truncated``."""
        if self.elsewhere:
            return iter(())
        many = self._flags2 & _MANY
        count = int.from_bytes(self._data[24:32] if many else self._data[76:80], "big")
        end = self._core + self._fork if self._fork else len(self._data)
        found = self._read(self._data[self._core : end], self.format, count)
        changes = self._shape.changes.get(self.number)
        return iter(self._changed(found, changes)) if changes else found

    def _changed(self, found: Iterator[Run], changes: list[xfs_shapes.Change]) -> list[Run]:
        """The runs after what the log began is at its end."""
        block = self._shape.block
        runs = list(itertools.islice(found, _MOST_CHANGED + 1))
        if len(runs) > _MOST_CHANGED:
            raise Damaged(
                f"inode {self.number} has more than {_MOST_CHANGED} extents, and a change of them is not at its end"
            )
        for first, count, place, unwritten in changes:
            start, end = first * block, (first + count) * block
            runs = [piece for run in runs for piece in _without(run, start, end)]
            if place is not None:
                runs.append(Run(start, self._shape.place(place, count), end - start, unwritten))
                runs.sort()
        return runs

    def attribute_runs(self) -> Iterator[Run]:
        """The runs of the extended attributes. Raises ``Damaged`` and ``Truncated``."""
        if not self._fork:
            return iter(())
        many = self._flags2 & _MANY
        count = int.from_bytes(self._data[76:80] if many else self._data[80:82], "big")
        return self._read(self.attributes(), self.attribute_format, count)

    def _read(self, fork: bytes, kind: int, count: int) -> Iterator[Run]:
        if kind == EXTENTS:
            if 16 * count > len(fork):
                raise Damaged(f"inode {self.number} has more extents than room")
            return self._extents([fork[: 16 * count]])
        if kind == TREE:
            level, entries = struct.unpack_from(">HH", fork)
            most = (len(fork) - 4) // 16
            if not 0 < level <= _DEEPEST or not 0 < entries <= most:
                raise Damaged(f"the root of the extents of inode {self.number} is not readable")
            pointers = struct.unpack_from(f">{entries}Q", fork, 4 + 8 * most)
            return self._extents(self._leaves(pointers, level - 1, [-1]))
        return iter(())

    def _leaves(self, pointers: tuple[int, ...], level: int, last: list[int]) -> Iterator[bytes]:
        """The extents in the leaves below some nodes; the first of each node must lie behind ``last``."""
        head = 72 if self._shape.v5 else 24
        size = self._shape.block
        for pointer in pointers:
            place = self._shape.place(pointer)
            self.own_blocks.append(place)
            data = self._stretch.exactly(place, size)
            its_level, count = struct.unpack_from(">HH", data, 4)
            most = (size - head) // 16
            first = int.from_bytes(data[head : head + 8], "big")
            first = first if level else first >> 9 & (1 << 54) - 1
            if data[:4] != (b"BMA3" if self._shape.v5 else b"BMAP") or its_level != level or not 0 < count <= most:
                raise Damaged(f"a node of the extents of inode {self.number} is none")
            if level:
                yield from self._leaves(struct.unpack_from(f">{count}Q", data, head + 8 * most), level - 1, last)
                continue
            if first <= last[0]:
                raise Damaged(f"the extents of inode {self.number} are not in order")
            last[0] = first
            yield data[head : head + 16 * count]

    def _extents(self, leaves: Iterator[bytes] | list[bytes]) -> Iterator[Run]:
        block = self._shape.block
        following = 0
        for leaf in leaves:
            for high, low in struct.iter_unpack(">QQ", leaf):
                first, count = high >> 9 & (1 << 54) - 1, low & 0x1FFFFF
                if first < following or not count or (first + count) * block > _LARGEST:
                    raise Damaged(f"the extents of inode {self.number} are not in order")
                following = first + count
                place = self._shape.place((high & 0x1FF) << 43 | low >> 21, count)
                yield Run(first * block, place, count * block, bool(high >> 63))

    def entries(self) -> Iterator[tuple[int, str]]:
        """Numbers and names in this directory, itself and its parent left out. Raises ``Damaged`` and ``Truncated``."""
        if self.resident:
            return self._short()
        return trees.below(entry for block in self._blocks() for entry in self._block(block))

    def look(self, name: str) -> int | None:
        """The number of one name in this directory, None where there is none. Raises as ``entries`` does."""
        wanted = name.encode("utf-8", "surrogateescape")
        if self.resident:
            return next((number for number, text in self._short() if text == name), None)
        for block in self._blocks():
            # Most blocks do not hold these bytes at all.
            if wanted in block:
                for number, text in self._block(block):
                    if text == name:
                        return number
        return None

    def _blocks(self) -> Iterator[bytes]:
        """The blocks of entries of this directory."""
        held, total = b"", 0
        size = self._shape.directory
        for run in self.runs():
            if run.offset >= _ENTRIES:
                return
            total += run.length
            if total > _MOST_DIRECTORY:
                raise Damaged("it is too long")
            # A directory's block can be several of the volume's, which need not lie in a row.
            held += self._stretch.exactly(run.place, run.length)
            while len(held) >= size:
                yield held[:size]
                held = held[size:]

    def _short(self) -> Iterator[tuple[int, str]]:
        data = self.local()
        if len(data) < 6:
            raise Damaged("it is too short")
        width = 8 if data[1] else 4
        at = 2 + width
        for _ in range(data[0] if not data[1] else max(data[0], data[1])):
            end = at + 3 + data[at] if at < len(data) else len(data)
            inode = end + self._shape.ftype
            if inode + width > len(data):
                raise Damaged("an entry in it does not fit")
            yield int.from_bytes(data[inode : inode + width], "big"), _text(data[at + 3 : end])
            at = inode + width

    def _block(self, data: bytes) -> Iterator[tuple[int, str]]:
        magic = data[:4]
        if magic not in (b"XDB3", b"XDD3", b"XD2B", b"XD2D"):
            raise Damaged("a block of it is none")
        end = len(data)
        if magic in (b"XDB3", b"XD2B"):
            end -= 8 + 8 * int.from_bytes(data[-8:-4], "big")
        at = 64 if self._shape.v5 else 16
        while at + 12 <= end:
            if data[at : at + 2] == b"\xff\xff":
                length = int.from_bytes(data[at + 2 : at + 4], "big")
            else:
                letters = data[at + 8]
                length = -(-(11 + letters + self._shape.ftype) // 8) * 8
                name = data[at + 9 : at + 9 + letters]
                if at + length > end:
                    raise Damaged("an entry in it does not fit")
                yield int.from_bytes(data[at : at + 8], "big"), _text(name)
            if length < 8 or length % 8:
                raise Damaged("an entry in it does not fit")
            at += length


def _without(run: Run, start: int, end: int) -> Iterator[Run]:
    """What lies of a run before and behind a range of its file."""
    after = run.offset + run.length
    if run.offset < start:
        yield run._replace(length=min(after, start) - run.offset)
    if after > end:
        skipped = max(end - run.offset, 0)
        yield Run(run.offset + skipped, run.place + skipped, run.length - skipped, run.unwritten)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def at(stretch: stretches.Stretch, shape: xfs_shapes.Shape, number: int) -> Inode:
    """The inode ``number``, in use or not. Raises ``Damaged`` and ``Truncated``."""
    block, index = number >> shape.inode_bits, number & ((1 << shape.inode_bits) - 1)
    place = shape.place(block) + index * shape.inode
    return Inode(stretch, shape, number, stretch.exactly(place, shape.inode))
