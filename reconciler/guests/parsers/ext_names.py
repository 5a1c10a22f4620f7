"""The names of an ext volume, from its root directory down.

Hashed directories need no hashing to be read: their inner nodes look like blocks of one unused entry.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.guests.parsers import ext_attributes, ext_groups, ext_inodes, outputs, stretches, trees

_ROOT = 2
_MOST_DIRECTORY = 1 << 30


class Names:
    """The names of a volume, for ``trees.hand_over``."""

    root = _ROOT
    errors = (ext_inodes.Damaged, stretches.Truncated)

    def __init__(self, stretch: stretches.Stretch, shape: ext_groups.Shape, groups: list[ext_groups.Group]) -> None:
        self._stretch = stretch
        self._shape = shape
        self._groups = groups

    def inode(self, number: int) -> bytes:
        """An inode in use. Raises ``Damaged`` and ``Truncated``."""
        inode = self.raw(number)
        if not inode[0] and not inode[1]:
            raise ext_inodes.Damaged(f"inode {number} is not in use")
        return inode

    def raw(self, number: int) -> bytes:
        """An inode, in use or not. Raises ``Damaged`` and ``Truncated``."""
        shape = self._shape
        group, index = divmod(number - 1, shape.group_inodes)
        if not 0 < number <= shape.inodes:
            raise ext_inodes.Damaged(f"there is no inode {number}")
        return self._stretch.exactly(
            self._groups[group].table * shape.block + index * shape.inode_size, shape.inode_size
        )

    def entry(self, path: str, number: int, inode: bytes) -> outputs.Entry:
        """One name. Raises ``Damaged`` and ``Truncated``."""
        kind = ext_inodes.kind(inode)
        entry = outputs.Entry(path=path, kind=kind, size=0, inode=number, links=max(ext_inodes.links(inode), 1))
        entry.created, entry.modified, entry.changed, entry.accessed = ext_inodes.times(inode)
        entry.resident = ext_inodes.resident(inode)
        flags = ext_inodes.flags(inode)
        encrypted = ("encrypted",) * bool(flags & ext_inodes.ENCRYPTED)
        entry.flags = encrypted
        if kind in ("file", "symlink"):
            entry.size = ext_inodes.size(inode)
            entry.runs = self._runs(inode)
            covered = sum(length for _, _, length in entry.runs)
            sparse = not entry.resident and covered < entry.size
            entry.flags = ("sparse",) * sparse + encrypted
        return entry

    def _runs(self, inode: bytes) -> list[tuple[int, int, int]]:
        """The written runs in bytes. Those behind the end of the file were laid out ahead and are none of it."""
        if not ext_inodes.has_blocks(inode):
            return []
        block, end = self._shape.block, ext_inodes.size(inode)
        return [
            (run.first * block, run.place * block, run.blocks * block)
            for run in ext_inodes.Map(self._stretch, self._shape, inode).runs()
            if not run.unwritten and run.first * block < end
        ]

    def children(self, number: int, inode: bytes) -> Iterator[tuple[int, str]]:
        """Inode numbers and names in a directory, none of an encrypted one. Raises ``Damaged`` and ``Truncated``."""
        del number
        if ext_inodes.flags(inode) & ext_inodes.ENCRYPTED:
            return iter(())
        return trees.below(entry for block in self._blocks(inode) for entry in self._parse(block))

    def look(self, inode: bytes, name: str) -> int | None:
        """The inode number of one name in a directory, None where there is none. Raises as ``children`` does."""
        wanted = name.encode("utf-8", "surrogateescape")
        for block in self._blocks(inode):
            # Most blocks do not hold these bytes at all.
            if wanted in block:
                for number, text in self._parse(block):
                    if text == name:
                        return number
        return None

    def _blocks(self, inode: bytes) -> Iterator[bytes]:
        if ext_inodes.flags(inode) & ext_inodes.INLINE:
            yield inode[44:100]
            yield ext_attributes.inline(inode)
            return
        block = self._shape.block
        total = 0
        for run in ext_inodes.Map(self._stretch, self._shape, inode).runs():
            for at in range(run.place, run.place + run.blocks):
                total += block
                if total > _MOST_DIRECTORY:
                    raise ext_inodes.Damaged("it is too long")
                yield self._stretch.exactly(at * block, block)

    def _parse(self, data: bytes) -> Iterator[tuple[int, str]]:
        at = 0
        while at + 8 <= len(data):
            number = int.from_bytes(data[at : at + 4], "little")
            length = int.from_bytes(data[at + 4 : at + 6], "little")
            # In blocks of 64 KiB a length of the whole block does not fit into its two bytes.
            length = 65_536 if length in (0, 65_535) and len(data) == 65_536 else length
            letters = data[at + 6] if self._shape.filetype else int.from_bytes(data[at + 6 : at + 8], "little")
            if length < 8 or length % 4 or at + length > len(data) or letters + 8 > length:
                raise ext_inodes.Damaged("an entry in it does not fit")
            name = data[at + 8 : at + 8 + letters]
            if number:
                yield number, name.decode("utf-8", "surrogateescape")
            at += length
