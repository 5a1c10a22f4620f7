"""The frame of an ext2, ext3 or ext4 file system: its superblock, its block groups, and where its own records lie.

Used by the other ``ext`` modules; separate because nothing here knows of files. All numbers of the superblock are
checked against each other before anybody counts or reads by them; byte offsets are on the volume.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests import scans
from reconciler.guests.parsers import stretches

MAGIC = 0xEF53
#: Bytes of group descriptors: 16 million groups of 64 bytes would be a volume of 2 PiB.
_MOST_DESCRIPTORS = 64 << 20

_JOURNAL, _RESIZE, _SPARSE2 = 0x4, 0x10, 0x200
_FILETYPE, RECOVER, _JOURNAL_DEVICE, _META_BG, _64BIT, _MMP = 0x2, 0x4, 0x8, 0x10, 0x80, 0x100
_SPARSE, _GDT_CHECKSUM, _BIGALLOC, _CHECKSUMS, _ORPHANS = 0x1, 0x10, 0x200, 0x400, 0x10000
#: Incompatible features this reader knows; data with any other may be laid out in another way.
_KNOWN = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
_VALID, _ERRORS = 1, 2

INODES_UNUSED, BLOCKS_UNUSED = 1, 2
#: Why a volume is not clean that is merely in use; a quiesced snapshot of it can be believed all the same.
MOUNTED = "it was not unmounted"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the superblock says, checked."""

    #: Bytes per block, and per bit of the bitmaps.
    block: int
    cluster: int
    #: Blocks of the file system, and the number of the first one that belongs to a group.
    blocks: int
    first: int
    groups: int
    group_blocks: int
    group_inodes: int
    #: How many inodes there are, and bytes of each.
    inodes: int
    inode_size: int
    #: The first inode that is not one of the file system's own.
    first_inode: int
    #: Bytes of a group descriptor.
    descriptor: int
    #: The first descriptor block that lies in its own group; None where all lie together.
    meta_bg: int | None
    reserved: int
    #: Groups with a copy of the superblock; None where all have one, empty where the usual ones have.
    copies: tuple[int, ...] | None
    #: Whether a group's flags and count of unused inodes can be used.
    flagged: bool
    filetype: bool
    #: Inode of the journal where that holds something to be written back, else 0.
    journal: int
    #: Block of the multi-mount protection, 0 if none.
    mmp: int
    label: str
    #: Why it is not clean, empty where it is.
    unclean: str


class Group(NamedTuple):
    """One block group; block numbers."""

    number: int
    block_bitmap: int
    inode_bitmap: int
    table: int
    #: Free clusters, a count.
    free: int
    flags: int
    #: Inodes at the table's end that were never used, a count.
    unused: int


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _unclean(data: bytes, state: int, ro_compat: int, incompat: int) -> str:
    if incompat & RECOVER:
        return scans.JOURNAL
    if state & _ERRORS or _u32(data, 0x194):
        return "it has recorded errors"
    if not state & _VALID:
        return MOUNTED
    if ro_compat & _ORPHANS:
        return "it has orphans to clear"
    return ""


def shape(stretch: stretches.Stretch) -> Shape:
    """The superblock of a volume. Raises ``Truncated`` where it is none, or is not consistent in itself."""
    data = stretch.exactly(1024, 1024)
    compat, incompat, ro_compat = struct.unpack_from("<III", data, 0x5C)
    if _u16(data, 0x38) != MAGIC or _u32(data, 0x18) > 6:
        raise stretches.Truncated("no superblock of ext")
    dynamic = _u32(data, 0x4C) >= 1
    if not dynamic:
        compat = incompat = ro_compat = 0
    if incompat & ~_KNOWN:
        raise stretches.Truncated(f"unknown features of ext: {incompat & ~_KNOWN:#x}")
    block = 1024 << _u32(data, 0x18)
    bigalloc = bool(ro_compat & _BIGALLOC)
    ratio = _u32(data, 0x1C) - _u32(data, 0x18) if bigalloc else 0
    if not 0 <= ratio <= 20:
        raise stretches.Truncated("impossible clusters of ext")
    wide = bool(incompat & _64BIT)
    descriptor = _u16(data, 0xFE) if wide else 32
    blocks = _u32(data, 0x04) | (_u32(data, 0x150) << 32 if wide else 0)
    first, per = _u32(data, 0x14), _u32(data, 0x20)
    groups = -(-(blocks - first) // per) if per and blocks > first else 0
    inode_size = _u16(data, 0x58) if dynamic else 128
    found = Shape(
        block=block,
        cluster=block << ratio,
        blocks=blocks,
        first=first,
        groups=groups,
        group_blocks=per,
        group_inodes=_u32(data, 0x28),
        inodes=_u32(data, 0),
        inode_size=inode_size,
        first_inode=_u32(data, 0x54) if dynamic else 11,
        descriptor=descriptor,
        meta_bg=_u32(data, 0x104) if incompat & _META_BG else None,
        reserved=_u16(data, 0xCE) if compat & _RESIZE else 0,
        copies=_copies(data, compat, ro_compat),
        flagged=bool(ro_compat & (_GDT_CHECKSUM | _CHECKSUMS)),
        filetype=bool(incompat & _FILETYPE),
        journal=_u32(data, 0xE0) if compat & _JOURNAL and incompat & RECOVER else 0,
        mmp=int.from_bytes(data[0x168:0x170], "little") if incompat & _MMP else 0,
        label=data[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        unclean=_unclean(data, _u16(data, 0x3A), ro_compat, incompat),
    )
    _check(found)
    return found


def _copies(data: bytes, compat: int, ro_compat: int) -> tuple[int, ...] | None:
    if compat & _SPARSE2:
        return (0, *(number for number in struct.unpack_from("<II", data, 0x24C) if number))
    return () if ro_compat & _SPARSE else None


def _check(shape: Shape) -> None:
    per_group = shape.group_blocks * shape.block // shape.cluster
    sound = (
        shape.first <= 1
        and shape.groups > 0
        and 0 < per_group <= 8 * shape.block
        and per_group % 8 == 0
        and shape.group_blocks % (shape.cluster // shape.block) == 0
        and 0 < shape.group_inodes <= 8 * shape.block
        and 0 < shape.inodes <= shape.groups * shape.group_inodes
        and 128 <= shape.inode_size <= shape.block
        and shape.inode_size & (shape.inode_size - 1) == 0
        and 32 <= shape.descriptor <= shape.block
        and shape.descriptor & (shape.descriptor - 1) == 0
        and shape.groups * shape.descriptor <= _MOST_DESCRIPTORS
    )
    if not sound:
        raise stretches.Truncated("the superblock of ext is not consistent")


def _has_copy(shape: Shape, group: int) -> bool:
    """Whether a group starts with a copy of the superblock."""
    if shape.copies is None or (group <= 1 and not shape.copies):
        return True
    if shape.copies:
        return group in shape.copies
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _start(shape: Shape, group: int) -> int:
    """The first block of a group."""
    return shape.first + group * shape.group_blocks


def _own_descriptors(shape: Shape, group: int) -> int:
    """The block of descriptors that a group keeps for its neighbours, behind its copy of the superblock if any."""
    shifted = group == 0 and shape.block == 1024 and shape.first == 0
    return _start(shape, group) + _has_copy(shape, group) + shifted


def _together(shape: Shape) -> int:
    """How many blocks of descriptors lie behind the superblock and every copy of it."""
    blocks = -(-shape.groups * shape.descriptor // shape.block)
    return blocks if shape.meta_bg is None else min(blocks, shape.meta_bg)


def read(stretch: stretches.Stretch, shape: Shape) -> Iterator[Group]:
    """All groups in order. Raises ``Truncated`` where their descriptors lie outside the volume."""
    each = shape.block // shape.descriptor
    base = 1024 // shape.block + 1
    together = _together(shape)
    high = shape.descriptor >= 64
    for number in range(shape.groups):
        if number % each == 0:
            index = number // each
            place = base + index if index < together else _own_descriptors(shape, number)
            data = stretch.exactly(place * shape.block, shape.block)
        at = number % each * shape.descriptor
        bits, inodes, table, free, _, _, flags = struct.unpack_from("<IIIHHHH", data, at)
        unused = _u16(data, at + 0x1C)
        if high:
            top = struct.unpack_from("<IIIHHHH", data, at + 0x20)
            bits, inodes, table = bits | top[0] << 32, inodes | top[1] << 32, table | top[2] << 32
            free, unused = free | top[3] << 16, unused | top[6] << 16
        if not shape.flagged:
            flags = unused = 0
        yield Group(number, bits, inodes, table, free, flags, min(unused, shape.group_inodes))


def claims(shape: Shape, groups: list[Group]) -> Iterator[tuple[int, int]]:
    """Every range that the file system keeps for itself, whatever its bitmap says: (offset, length) in bytes."""
    size = shape.block
    yield 0, max(2048, (shape.first + 1) * size)
    if shape.mmp:
        yield shape.mmp * size, size
    each = size // shape.descriptor
    together = _together(shape)
    table = -(-shape.group_inodes * shape.inode_size // size)
    for group in groups:
        number = group.number
        if _has_copy(shape, number):
            extra = 1 if number == 0 else 0
            yield _start(shape, number) * size, (1 + extra + together + shape.reserved) * size
        if number // each >= together and number % each in (0, 1, each - 1):
            yield _own_descriptors(shape, number) * size, size
        yield group.block_bitmap * size, size
        yield group.inode_bitmap * size, size
        yield group.table * size, table * size
