"""The frame of an XFS file system: superblock, allocation groups, their B-trees, and whether its log is empty.

Used by the other ``xfs`` modules; nothing here knows of files. Numbers are big-endian; byte offsets are on the volume.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests import scans
from reconciler.guests.parsers import stretches

_V5 = 5
_FTYPE, _SPARSE = 0x1, 0x2
_OWN_UUID, _NEEDS_REPAIR = 0x4, 0x10
#: Features that change what this reader must understand: file types, sparse chunks, UUIDs, late dates, many extents,
#: exchanged ranges, pointers to parents.
_KNOWN = 0xFF
_FTYPE_V4 = 0x200
_NONE = 0xFFFFFFFF
_BASIC = 512
_RECORD = 0xFEEDBABE
_UNMOUNT = 0x20
#: Basic blocks of the longest record of a log, header included.
_LONGEST = 520


class Damaged(Exception):
    """A structure contradicts itself or points outside the volume."""


class Change(NamedTuple):
    """What a log began to do to the map of a file."""

    #: The first block in the file, and how many they are.
    first: int
    length: int
    #: The block of the file system that they begin with then; None where they become a hole.
    block: int | None
    unwritten: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the superblock says, checked; and what a log that was replayed adds to it."""

    v5: bool
    #: Bytes per block, sector, inode and directory block.
    block: int
    sector: int
    inode: int
    directory: int
    blocks: int
    groups: int
    group_blocks: int
    #: Bits of a block number that count within its group, and of an inode number within its block.
    group_bits: int
    inode_bits: int
    root: int
    #: First block of the log, and how many; the first is 0 where the log lies on another device.
    log: int
    log_blocks: int
    ftype: bool
    sparse: bool
    label: str
    needs_repair: bool
    #: What the log and what structures bear as the volume's identity: the same unless it was changed.
    uuid: bytes
    own_uuid: bytes
    #: Blocks to which chunks of inodes are aligned.
    alignment: int
    #: Features that change what a reader of the log must understand.
    log_features: int
    #: Inodes of the file system's own files.
    own: frozenset[int]
    #: Changes of files that mounting would end, by inode, in order.
    changes: dict[int, list[Change]] = dataclasses.field(default_factory=dict)

    def group_length(self, group: int) -> int:
        """Blocks of one group; the last is shorter."""
        return min(self.group_blocks, self.blocks - group * self.group_blocks)

    def byte(self, group: int, block: int) -> int:
        """Where a block of a group starts."""
        return (group * self.group_blocks + block) * self.block

    def holds(self, inode: int) -> bool:
        """Whether an inode of this number can lie on the volume."""
        number = inode >> self.inode_bits
        group, block = number >> self.group_bits, number & ((1 << self.group_bits) - 1)
        return 0 <= group < self.groups and 0 < block < self.group_length(group)

    def place(self, number: int, count: int = 1) -> int:
        """Where ``count`` blocks from the file system's block ``number`` start, bytes. Raises ``Damaged``."""
        group, block = number >> self.group_bits, number & ((1 << self.group_bits) - 1)
        if group >= self.groups or not block or block + count > self.group_length(group):
            raise Damaged(f"blocks from {number} lie outside the volume")
        return self.byte(group, block)


def shape(stretch: stretches.Stretch) -> Shape:
    """The superblock of a volume. Raises ``Truncated`` where it is not consistent in itself."""
    data = stretch.exactly(0, 512)
    block, blocks = struct.unpack_from(">IQ", data, 4)
    log, root = struct.unpack_from(">QQ", data, 48)
    group_blocks, groups, log_blocks = struct.unpack_from(">II4xI", data, 84)
    version, sector, inode, per_block = struct.unpack_from(">HHHH", data, 100)
    inode_bits, group_bits, in_progress, directory_bits = data[123], data[124], data[126], data[192]
    features2, incompat = int.from_bytes(data[200:204], "big"), int.from_bytes(data[216:220], "big")
    v5 = version & 15 == _V5
    if version & 15 not in (4, _V5) or (v5 and incompat & ~_KNOWN):
        raise stretches.Truncated(f"XFS of version {version & 15} with features {incompat:#x} is not known")
    sound = (
        block in (1 << bit for bit in range(9, 17))
        and sector in (1 << bit for bit in range(9, 16))
        and inode in (256, 512, 1024, 2048)
        and per_block == block // inode == 1 << inode_bits
        and groups
        and 64 <= group_blocks <= 1 << 31
        and group_bits < 32
        and 1 << group_bits >= group_blocks > 1 << group_bits >> 1
        and (groups - 1) * group_blocks < blocks <= groups * group_blocks
        and blocks * block <= stretch.size
        and directory_bits <= 7
        and block << directory_bits <= 65_536
        and not in_progress
    )
    if not sound:
        raise stretches.Truncated("the superblock of XFS is not consistent")
    return Shape(
        v5=v5,
        block=block,
        sector=sector,
        inode=inode,
        directory=block << directory_bits,
        blocks=blocks,
        groups=groups,
        group_blocks=group_blocks,
        group_bits=group_bits,
        inode_bits=inode_bits,
        root=root,
        log=log,
        log_blocks=log_blocks,
        ftype=bool(incompat & _FTYPE if v5 else features2 & _FTYPE_V4),
        sparse=v5 and bool(incompat & _SPARSE),
        label=data[108:120].split(b"\0")[0].decode("utf-8", "replace"),
        needs_repair=v5 and bool(incompat & _NEEDS_REPAIR),
        uuid=data[32:48],
        own_uuid=data[248:264] if v5 and incompat & _OWN_UUID else data[32:48],
        alignment=int.from_bytes(data[180:184], "big"),
        log_features=int.from_bytes(data[220:224], "big") if v5 else 0,
        own=frozenset(int.from_bytes(data[at : at + 8], "big") for at in (64, 72, 160, 168, *((232,) if v5 else ()))),
    )


def header(stretch: stretches.Stretch, shape: Shape, group: int, number: int, magic: bytes) -> bytes:
    """The sector ``number`` of a group, which starts with ``magic``. Raises ``Damaged`` and ``Truncated``."""
    data = stretch.exactly(shape.byte(group, 0) + number * shape.sector, shape.sector)
    if data[:4] != magic:
        raise Damaged(f"group {group} has no {magic.decode()}")
    return data


def records(
    stretch: stretches.Stretch,
    shape: Shape,
    group: int,
    root: int,
    levels: int,
    magics: tuple[bytes, bytes],
    sizes: tuple[int, int],
) -> Iterator[bytes]:
    """The records of a group's B-tree, in order; ``sizes``: bytes of a record and of a key.

    Leaves are read by their links, and their first numbers must rise, so that no cycle is followed. Raises ``Damaged``.
    """
    head = 56 if shape.v5 else 16
    size, key = sizes
    most_pointers = (shape.block - head) // (key + 4)
    number, level = root, levels - 1
    if not 0 <= level < 10:
        raise Damaged(f"a tree of group {group} has {levels} levels")
    last = -1
    while number != _NONE:
        if not 0 < number < shape.group_length(group):
            raise Damaged(f"a tree of group {group} leaves it")
        data = stretch.exactly(shape.byte(group, number), shape.block)
        its_level, count, _, right = struct.unpack_from(">HHII", data, 4)
        if data[:4] != magics[shape.v5] or its_level != level:
            raise Damaged(f"block {number} of group {group} is not of its tree")
        if level:
            if not 0 < count <= most_pointers:
                raise Damaged(f"block {number} of group {group} is not readable")
            number = int.from_bytes(data[head + most_pointers * key :][:4], "big")
            level -= 1
            continue
        if count * size > shape.block - head:
            raise Damaged(f"block {number} of group {group} is not readable")
        for at in range(head, head + count * size, size):
            first = int.from_bytes(data[at : at + 4], "big")
            if first <= last:
                raise Damaged(f"a tree of group {group} is not in order")
            last = first
            yield data[at : at + size]
        if not count and right != _NONE:
            raise Damaged(f"block {number} of group {group} is empty")
        number = right


def unclean(stretch: stretches.Stretch, shape: Shape) -> str:
    """Why the volume is not clean, empty where it is. Raises ``Damaged`` and ``Truncated``."""
    if not shape.log:
        return "its log lies on another device"
    return "" if log_is_empty(stretch, shape) else scans.LOG


def log_is_empty(stretch: stretches.Stretch, shape: Shape) -> bool:
    """Whether the newest record of the log says that everything before it was written back, as unmounting does.

    The blocks of the log carry the number of the round in which they were written; where it changes is the head.
    Raises ``Damaged`` and ``Truncated``.
    """
    base = shape.place(shape.log, shape.log_blocks)
    total = shape.log_blocks * shape.block // _BASIC

    def cycle(number: int) -> int:
        first, second = struct.unpack(">II", stretch.exactly(base + number * _BASIC, 8))
        return int(second if first == _RECORD else first)

    low, high = 0, total
    if cycle(total - 1) != cycle(0):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cycle(middle) == cycle(0) else (low, middle)
    for back in range(1, min(_LONGEST, high) + 1):
        at = base + (high - back) * _BASIC
        if stretch.exactly(at, 4) == _RECORD.to_bytes(4, "big"):
            return _is_unmount(stretch, at, back)
    return False


def _is_unmount(stretch: stretches.Stretch, at: int, blocks: int) -> bool:
    """Whether the record at ``at``, ``blocks`` basic blocks before the head, is the one that unmounting leaves."""
    head = stretch.exactly(at, _BASIC)
    version, length = struct.unpack_from(">II", head, 8)
    operations, size = int.from_bytes(head[40:44], "big"), int.from_bytes(head[320:324], "big")
    headers = -(-size // 32_768) if version & 2 and size > 32_768 else 1
    if operations != 1 or blocks != headers + -(-length // _BASIC):
        return False
    return bool(stretch.exactly(at + headers * _BASIC, 16)[9] & _UNMOUNT)
