"""The inodes of ext: what they say of a file, and the runs of blocks their extents or block maps stand for.

Used by the other ``ext`` modules. Logical blocks must rise strictly and every node of a tree must hold something, so
that no cycle or shared node of a hostile volume costs more than the runs it hands over.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import ext_groups, stretches

DIRECTORY, FILE, LINK = 0x4000, 0x8000, 0xA000
_KINDS = {DIRECTORY: "directory", FILE: "file", LINK: "symlink"}

#: ``VALUE``: it holds the value of an extended attribute.
ENCRYPTED, _EXTENTS, VALUE, INLINE = 0x800, 0x80000, 0x200000, 0x10000000
_EXTENT_MAGIC = 0xF30A
_UNWRITTEN = 32768
_DEEPEST = 5
_NO_DATA = (1 << 32) - 1


class Damaged(Exception):
    """An inode contradicts itself or points outside the volume."""


class Run(NamedTuple):
    """Blocks of a file that lie in a row: counted from the file's start, and on the volume."""

    first: int
    place: int
    blocks: int
    #: Whether they were allocated and never written: they read as zeros.
    unwritten: bool


def alive(table: bytes, at: int) -> bool:
    """Whether the inode at ``at`` has names and no time of deletion, whatever the bitmap says."""
    mode, links = int.from_bytes(table[at : at + 2], "little"), int.from_bytes(table[at + 26 : at + 28], "little")
    return bool(mode and links) and not any(table[at + 20 : at + 24])


def flags(inode: bytes) -> int:
    """The flags of an inode."""
    return int.from_bytes(inode[32:36], "little")


def size(inode: bytes) -> int:
    """Bytes of content."""
    low = int.from_bytes(inode[4:8], "little")
    return low | (int.from_bytes(inode[108:112], "little") << 32 if kind(inode) == "file" else 0)


def kind(inode: bytes) -> str:
    """``file``, ``directory``, ``symlink`` or ``other``."""
    return _KINDS.get(int.from_bytes(inode[:2], "little") & 0xF000, "other")


def links(inode: bytes) -> int:
    """How many names it has."""
    return int.from_bytes(inode[26:28], "little")


def attribute_block(inode: bytes) -> int:
    """The block of its extended attributes, 0 if none."""
    return int.from_bytes(inode[104:108], "little") | int.from_bytes(inode[118:120], "little") << 32


def resident(inode: bytes) -> bool:
    """Whether the content, if any, lies in the inode itself."""
    if flags(inode) & INLINE:
        return True
    return kind(inode) == "symlink" and size(inode) < 60 and not flags(inode) & _EXTENTS


def has_blocks(inode: bytes) -> bool:
    """Whether the inode maps blocks at all. Those of no known kind do where the file system keeps them for itself."""
    mode = int.from_bytes(inode[:2], "little") & 0xF000
    return mode in (0, DIRECTORY, FILE, LINK) and not resident(inode) and any(inode[40:100])


def times(inode: bytes) -> tuple[int, int, int, int]:
    """Created, modified, changed and accessed, nanoseconds since 1970; 0 where the inode has no room for one."""
    accessed, changed, modified = struct.unpack_from("<iii", inode, 8)
    extra = int.from_bytes(inode[128:130], "little") if len(inode) >= 160 else 0

    def precise(seconds: int, at: int) -> int:
        if 128 + extra < at + 4:
            return seconds * 1_000_000_000
        more = int.from_bytes(inode[at : at + 4], "little")
        return (seconds + ((more & 3) << 32)) * 1_000_000_000 + min(more >> 2, 999_999_999)

    created = precise(struct.unpack_from("<i", inode, 144)[0], 148) if 128 + extra >= 148 else 0
    return created, precise(modified, 136), precise(changed, 132), precise(accessed, 140)


class Map:
    """Where the blocks of one inode lie. ``own_blocks``, complete after ``runs``, hold the map itself."""

    def __init__(self, stretch: stretches.Stretch, shape: ext_groups.Shape, inode: bytes) -> None:
        self._stretch = stretch
        self._shape = shape
        self._inode = inode
        self._next = 0
        self.own_blocks: list[int] = []

    def runs(self) -> Iterator[Run]:
        """The runs in order, holes left out. Raises ``Damaged`` and ``Truncated``."""
        if flags(self._inode) & _EXTENTS:
            return self._extents(self._inode[40:100], None)
        return self._joined()

    def _place(self, first: int, count: int) -> int:
        if not first > 0 or first + count > self._shape.blocks:
            raise Damaged(f"blocks {first} to {first + count - 1} lie outside the volume")
        return first

    def _node(self, number: int) -> bytes:
        self._place(number, 1)
        self.own_blocks.append(number)
        return self._stretch.exactly(number * self._shape.block, self._shape.block)

    def _extents(self, node: bytes, depth: int | None) -> Iterator[Run]:
        magic, count, most, level = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or count > most or 12 * most + 12 > len(node) or level > _DEEPEST:
            raise Damaged("a node of its extents is none")
        if depth is not None and (level != depth or not count):
            raise Damaged("a node of its extents is out of place")
        for at in range(12, 12 + 12 * count, 12):
            if level:
                first, low, high = struct.unpack_from("<IIH", node, at)
                if first < self._next:
                    raise Damaged("its extents are not in order")
                yield from self._extents(self._node(low | high << 32), level - 1)
                continue
            first, length, high, low = struct.unpack_from("<IHHI", node, at)
            if first < self._next or not length:
                raise Damaged("its extents are not in order")
            unwritten = length > _UNWRITTEN
            length -= _UNWRITTEN if unwritten else 0
            self._next = first + length
            yield Run(first, self._place(low | high << 32, length), length, unwritten)

    def _joined(self) -> Iterator[Run]:
        """The runs of a block map, neighbours joined."""
        first = place = count = 0
        for logical, at in self._mapped():
            if count and logical == first + count and at == place + count:
                count += 1
                continue
            if count:
                yield Run(first, self._place(place, count), count, False)
            first, place, count = logical, at, 1
        if count:
            yield Run(first, self._place(place, count), count, False)

    def _mapped(self) -> Iterator[tuple[int, int]]:
        pointers = struct.unpack_from("<15I", self._inode, 40)
        for logical in range(12):
            if pointers[logical]:
                yield logical, pointers[logical]
        each = self._shape.block // 4
        first = 12
        for level in range(3):
            if pointers[12 + level]:
                yield from self._indirect(pointers[12 + level], level, first)
            first += each ** (level + 1)

    def _indirect(self, number: int, level: int, first: int) -> Iterator[tuple[int, int]]:
        pointers = array("I", self._node(number))
        step = len(pointers) ** level
        for index, pointer in enumerate(pointers):
            if not pointer:
                continue
            if level:
                yield from self._indirect(pointer, level - 1, first + index * step)
            elif first + index < _NO_DATA:
                yield first + index, pointer
