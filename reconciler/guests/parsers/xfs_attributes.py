"""The extended attributes of XFS: inside the inode, in leaves, and large values in blocks of their own.

Used by ``xfs_nodes``. Leaves are reached from the root of their tree and then by their links, none twice; the blocks
of values, which may hold anything, are never taken for leaves.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator

from reconciler.guests.parsers import acls, stretches, xfs_inodes, xfs_shapes

_ROOT, _SECURE, _PARENT, _INCOMPLETE = 0x02, 0x04, 0x08, 0x80
_LOCAL = 0x01
_LEAF, _NODE = (0xFBEE, 0x3BEE), (0xFEBE, 0x3EBE)
_ACLS = {b"SGI_ACL_FILE": acls.ACCESS, b"SGI_ACL_DEFAULT": acls.DEFAULT}
#: Bytes before the data of a block of a value, and of one value.
_HEADER, _LARGEST = 56, 64 << 10
_DEEPEST = 6
_MOST_LEAVES = 4096


def read(inode: xfs_inodes.Inode, stretch: stretches.Stretch, shape: xfs_shapes.Shape) -> Iterator[tuple[str, bytes]]:
    """Name and value of every attribute, as the kernel gives them. Raises ``Damaged`` and ``Truncated``."""
    fork = inode.attributes()
    if not fork:
        return
    found = _short(fork) if inode.attribute_format == xfs_inodes.LOCAL else _Tree(inode, stretch, shape).entries()
    for flags, name, value in found:
        if flags & (_PARENT | _INCOMPLETE):
            continue
        text = name.decode("utf-8", "surrogateescape")
        if flags & _ROOT and name in _ACLS:
            try:
                yield _ACLS[name], acls.xfs(value)
            except ValueError as error:
                raise xfs_shapes.Damaged(str(error)) from None
        else:
            yield ("trusted." if flags & _ROOT else "security." if flags & _SECURE else "user.") + text, value


def _short(fork: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    if len(fork) < 4:
        raise xfs_shapes.Damaged("its extended attributes do not fit")
    size, count = struct.unpack_from(">HB", fork)
    at = 4
    for _ in range(count):
        if at + 3 > min(size, len(fork)):
            raise xfs_shapes.Damaged("an extended attribute does not fit")
        letters, length, flags = fork[at], fork[at + 1], fork[at + 2]
        name = fork[at + 3 : at + 3 + letters]
        value = fork[at + 3 + letters : at + 3 + letters + length]
        if len(name) != letters or len(value) != length:
            raise xfs_shapes.Damaged("an extended attribute does not fit")
        yield flags, name, value
        at += 3 + letters + length


class _Tree:
    """The blocks of one inode's attributes, by their number."""

    def __init__(self, inode: xfs_inodes.Inode, stretch: stretches.Stretch, shape: xfs_shapes.Shape) -> None:
        self._stretch = stretch
        self._shape = shape
        self._number = inode.number
        self._runs = list(inode.attribute_runs())

    def _block(self, number: int) -> bytes:
        size = self._shape.block
        offset = number * size
        at = bisect.bisect_right(self._runs, offset, key=lambda run: run.offset) - 1
        if at < 0 or offset >= self._runs[at].offset + self._runs[at].length:
            raise xfs_shapes.Damaged(f"block {number} of its extended attributes is missing")
        return self._stretch.exactly(self._runs[at].place + offset - self._runs[at].offset, size)

    def _magic(self, block: bytes) -> int:
        return int.from_bytes(block[8:10], "big")

    def entries(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Flags, name and value of every attribute."""
        v5 = self._shape.v5
        if not self._runs:
            return
        block = self._block(0)
        for _ in range(_DEEPEST):
            if self._magic(block) != _NODE[v5]:
                break
            block = self._block(int.from_bytes(block[64 + 4 : 64 + 8] if v5 else block[16 + 4 : 16 + 8], "big"))
        seen: set[int] = set()
        while True:
            if self._magic(block) != _LEAF[v5]:
                raise xfs_shapes.Damaged("a leaf of its extended attributes is none")
            yield from self._leaf(block)
            onward = int.from_bytes(block[:4], "big")
            if not onward:
                return
            if onward in seen or len(seen) > _MOST_LEAVES:
                raise xfs_shapes.Damaged("the leaves of its extended attributes come round")
            seen.add(onward)
            block = self._block(onward)

    def _leaf(self, block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        head, first = (56, 80) if self._shape.v5 else (12, 32)
        count = int.from_bytes(block[head : head + 2], "big")
        if first + 8 * count > len(block):
            raise xfs_shapes.Damaged("a leaf of its extended attributes is not readable")
        for number in range(count):
            at, flags = struct.unpack_from(">HB", block, first + 8 * number + 4)
            if flags & _INCOMPLETE:
                continue
            if flags & _LOCAL:
                length, letters = struct.unpack_from(">HB", block, at) if at + 3 <= len(block) else (0, 0)
                start = at + 3
                value = block[start + letters : start + letters + length]
            else:
                where, length, letters = struct.unpack_from(">IIB", block, at) if at + 9 <= len(block) else (0, 0, 0)
                start = at + 9
                value = self._value(where, length)
            name = block[start : start + letters]
            if not letters or len(name) != letters or len(value) != length:
                raise xfs_shapes.Damaged("an extended attribute does not fit")
            yield flags, name, value

    def _value(self, number: int, length: int) -> bytes:
        if length > _LARGEST:
            raise xfs_shapes.Damaged("an extended attribute is too long")
        value = b""
        while len(value) < length:
            block = self._block(number)
            # They are written ahead of the log, so that a crash can leave those of another file.
            mine = (b"XARM", len(value), self._number)
            if self._shape.v5 and (block[:4], *struct.unpack_from(">I24xQ", block, 4)) != mine:
                raise xfs_shapes.Damaged("the value of an extended attribute is none")
            value += block[_HEADER:] if self._shape.v5 else block
            number += 1
        return value[:length]
