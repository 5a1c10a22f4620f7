"""ext2, ext3 and ext4 for a browser: files by the number of their inode, directories block by block."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from reconciler.guests import scans
from reconciler.guests.parsers import (
    ext_attributes,
    ext_groups,
    ext_inodes,
    ext_journals,
    ext_names,
    outputs,
    served,
    stretches,
)

_ROOT = 2
_IMMUTABLE, _APPEND, _ALL_BLOCKS = 0x10, 0x20, 0x40000
_ENCRYPTED = "it is encrypted (fscrypt)"
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_LONGEST_LINK = 65_536

#: What something damaged raises.
DAMAGE = (ext_inodes.Damaged, stretches.Truncated)


class Files:
    """The files of one volume; see ``served.FileSystem``."""

    root = _ROOT

    def __init__(self, stretch: stretches.Stretch, limits: scans.Limits) -> None:
        del limits
        self._shape = ext_groups.shape(stretch)
        self.stretch, self._unread = ext_journals.replayed(stretch, self._shape)
        groups = list(ext_groups.read(self.stretch, self._shape))
        self._names = ext_names.Names(self.stretch, self._shape, groups)

    def facts(self) -> outputs.Facts:
        """Label and state."""
        shape = self._shape
        reason = f"{shape.unclean}: {self._unread}" if self._unread else shape.unclean
        return outputs.Facts(
            filesystem="ext", label=shape.label, clean=not shape.unclean, reason=reason, cluster=shape.cluster
        )

    def _inode(self, number: int) -> bytes:
        shape = self._shape
        own = number < shape.first_inode and number != _ROOT
        if own or not 0 < number <= shape.inodes:
            raise served.Missing(f"inode {number} is no file")
        inode = self._names.raw(number)
        if not ext_inodes.alive(inode, 0) or ext_inodes.flags(inode) & ext_inodes.VALUE:
            raise served.Missing(f"inode {number} is not in use")
        return inode

    def node(self, number: int, version: int = 0) -> served.Node:
        """See ``served.FileSystem``."""
        del version
        inode = self._inode(number)
        mode = int.from_bytes(inode[:2], "little")
        form = stat.S_IFMT(mode)
        node = served.Node(
            inode=number,
            format=form,
            links=ext_inodes.links(inode),
            mode=mode,
            uid=int.from_bytes(inode[2:4] + inode[120:122], "little"),
            gid=int.from_bytes(inode[24:26] + inode[122:124], "little"),
            times=ext_inodes.times(inode),
            flags=self._flags(inode),
        )
        if ext_inodes.flags(inode) & ext_inodes.ENCRYPTED:
            node.problem = _ENCRYPTED
        if form == stat.S_IFREG:
            node.size = ext_inodes.size(inode)
        elif form == stat.S_IFLNK:
            node.size = ext_inodes.size(inode)
            if not node.problem:
                node.target = self._target(inode)
        elif form in _DEVICES:
            node.device = _device(inode)
        served.add_xattrs(node, self._attributes(inode), (*DAMAGE, served.Missing))
        return node

    def _flags(self, inode: bytes) -> tuple[str, ...]:
        bits = ext_inodes.flags(inode)
        held = int.from_bytes(inode[28:32] + inode[116:118], "little")
        held *= self._shape.block if bits & _ALL_BLOCKS else 512
        sparse = ext_inodes.kind(inode) == "file" and not ext_inodes.resident(inode) and held < ext_inodes.size(inode)
        known = (
            (bits & _APPEND, "append"),
            (bits & ext_inodes.ENCRYPTED, "encrypted"),
            (bits & _IMMUTABLE, "immutable"),
            (sparse, "sparse"),
        )
        return tuple(word for there, word in known if there)

    def _target(self, inode: bytes) -> str:
        size = ext_inodes.size(inode)
        if size > _LONGEST_LINK:
            raise ext_inodes.Damaged("the link leads too far")
        if ext_inodes.flags(inode) & ext_inodes.INLINE:
            data = inode[40:100] + ext_attributes.inline(inode)
        elif ext_inodes.resident(inode):
            data = inode[40:100]
        else:
            data = self._read(inode, size)
        return data[:size].decode("utf-8", "surrogateescape")

    def _read(self, inode: bytes, size: int) -> bytes:
        """The first bytes of an inode's blocks; holes are zeros."""
        data = bytearray(size)
        for offset, place, length in self._runs(inode, size):
            length = min(length, size - offset)
            data[offset : offset + length] = self.stretch.exactly(place, length)
        return bytes(data)

    def _runs(self, inode: bytes, size: int) -> Iterator[served.Run]:
        block = self._shape.block
        if not ext_inodes.has_blocks(inode):
            return
        for run in ext_inodes.Map(self.stretch, self._shape, inode).runs():
            if run.first * block >= size:
                return
            if not run.unwritten:
                yield run.first * block, run.place * block, run.blocks * block

    def _attributes(self, inode: bytes) -> Iterator[tuple[str, bytes]]:
        at = ext_inodes.attribute_block(inode)
        block = self.stretch.exactly(at * self._shape.block, self._shape.block) if at else b""
        return ext_attributes.read(inode, block, self._value)

    def _value(self, number: int, length: int) -> bytes:
        """The value of an extended attribute that has an inode of its own."""
        inode = self._names.inode(number)
        if not ext_inodes.flags(inode) & ext_inodes.VALUE:
            raise ext_inodes.Damaged(f"inode {number} holds no extended attribute")
        return self._read(inode, length)

    def _directory(self, number: int) -> bytes:
        inode = self._inode(number)
        if ext_inodes.kind(inode) != "directory":
            raise served.Refused("it is no directory")
        if ext_inodes.flags(inode) & ext_inodes.ENCRYPTED:
            raise served.Refused(_ENCRYPTED)
        return inode

    def names(self, number: int) -> Iterator[served.Name]:
        """See ``served.FileSystem``."""
        for child, text in self._names.children(number, self._directory(number)):
            yield served.Name(text, child)

    def look(self, number: int, name: str) -> served.Name:
        """See ``served.FileSystem``."""
        found = self._names.look(self._directory(number), name)
        if found is None:
            raise served.absent(name)
        return served.Name(name, found)

    def content(self, number: int, stream: str) -> served.Content:
        """See ``served.FileSystem``."""
        inode = self._inode(number)
        if stream:
            raise served.Missing("files of ext have no streams")
        if ext_inodes.kind(inode) != "file":
            raise served.Refused("it is no file")
        if ext_inodes.flags(inode) & ext_inodes.ENCRYPTED:
            raise served.Refused(_ENCRYPTED)
        size = ext_inodes.size(inode)
        if not ext_inodes.flags(inode) & ext_inodes.INLINE:
            runs = list(self._runs(inode, size))
            newest = self.stretch
            if isinstance(newest, ext_journals.Replayed) and any(newest.masked(at, count) for _, at, count in runs):
                return served.Content(size, runs, unpack=_Reader(newest, runs).read)
            return served.Content(size, runs)
        data = inode[40:100] + ext_attributes.inline(inode)
        if size > len(data):
            raise ext_inodes.Damaged("the end of its content is missing")
        return served.Content(size, [], data[:size])


class _Reader:
    """Bytes of a file that the disk does not hold as they are."""

    def __init__(self, stretch: stretches.Stretch, runs: list[served.Run]) -> None:
        self._stretch = stretch
        self._runs = runs

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``; holes are zeros. Raises ``Truncated``."""
        data = bytearray(length)
        for first, place, count in self._runs:
            start, end = max(first, offset), min(first + count, offset + length)
            if start < end:
                data[start - offset : end - offset] = self._stretch.exactly(place + start - first, end - start)
        return bytes(data)


def _device(inode: bytes) -> int:
    """Device numbers are kept in one of two ways, in the place of the first or of the second block."""
    old, new = int.from_bytes(inode[40:44], "little"), int.from_bytes(inode[44:48], "little")
    if old:
        return os.makedev(old >> 8 & 0xFF, old & 0xFF)
    return os.makedev(new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)
