"""The journal of ext3 and ext4: what a crash left in it, laid over the volume as mounting it would write it back.

A snapshot that was not quiesced is a volume after a crash: the newest metadata stand in its journal alone. Names and
single files are read through ``replayed``. Nothing is written; whoever looks for free space looks at the bare volume,
which is not clean. What ``fast_commit`` adds is not read, which is said; a journal on another disk and sums
of blocks are not looked at.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import ext_groups, ext_inodes, ext_names, overlays, stretches

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _REVOKE = 1, 2, 5
_SUPERBLOCKS = (3, 4)
_WIDE, _SUMS2, _SUMS3, _FAST = 0x2, 0x8, 0x10, 0x20
#: Revoking, wide numbers, late sums, and the two kinds of sums; fast commits.
_KNOWN = 0x3F
#: The tag that begins the fast commits behind one transaction: tag, bytes, features, number of the transaction.
_FAST_HEAD = struct.Struct("<HHII")
_HEAD_TAG = 9
_ESCAPED, _SAME, _LAST = 1, 2, 8
#: Blocks of a journal that are looked at: 8 GiB of 4 KiB each.
_MOST = 2 << 20
_DAMAGE = (ext_inodes.Damaged, stretches.Truncated)


class Replayed(overlays.Patched):
    """A volume with newer copies of some of its blocks, which lie elsewhere on it."""

    def __init__(self, stretch: stretches.Stretch, block: int, newer: dict[int, tuple[int, bool]]) -> None:
        """``newer``: by block the one that holds its copy, and whether that begins with zeros for the magic number."""
        super().__init__(stretch, block, newer)
        self._newer = newer

    def _copy(self, number: int) -> bytes:
        copy, escaped = self._newer[number]
        newer = self._plain.exactly(copy * self._block, self._block)
        return _MAGIC.to_bytes(4, "big") + newer[4:] if escaped else newer

    def places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Disk ranges of a range of the volume, in order: of a block with a newer copy, the copy's."""
        end, block = min(offset + length, self.size), self._block
        for number in self._within(offset, end - offset):
            yield from self._plain.places(offset, max(number * block - offset, 0))
            offset = max(offset, number * block)
            step = min((number + 1) * block, end) - offset
            yield from self._plain.places(self._newer[number][0] * block + offset - number * block, step)
            offset += step
        yield from self._plain.places(offset, end - offset)

    def masked(self, offset: int, length: int) -> bool:
        """Whether a range holds a block whose copy is not what the block should be, so that only ``read`` knows it."""
        return any(self._newer[number][1] for number in self._within(offset, length))


class Newest(NamedTuple):
    """A volume with what its journal holds of it."""

    #: As mounting it would make it; the volume itself where nothing waits, or the journal cannot be read.
    stretch: stretches.Stretch
    #: What of the journal is left out, empty where that is nothing.
    unread: str


def replayed(stretch: stretches.Stretch, shape: ext_groups.Shape) -> Newest:
    """The volume and its journal put together."""
    if not shape.journal:
        return Newest(stretch, "")
    try:
        journal = _open(stretch, shape)
    except _DAMAGE as error:
        return Newest(stretch, f"that is not read: {error}")
    newest = stretch
    # The volume says that it needs recovery; as it is, it is still better than nothing.
    with contextlib.suppress(*_DAMAGE):
        if newer := journal.newer():
            newest = Replayed(stretch, shape.block, newer)
    try:
        return Newest(newest, "its fast commits are not read" if journal.has_fast_commits() else "")
    except _DAMAGE as error:
        return Newest(newest, f"that is not read: {error}")


def _open(stretch: stretches.Stretch, shape: ext_groups.Shape) -> _Journal:
    names = ext_names.Names(stretch, shape, list(ext_groups.read(stretch, shape)))
    runs = list(ext_inodes.Map(stretch, shape, names.inode(shape.journal)).runs())
    return _Journal(stretch, shape, runs)


class _Journal:
    def __init__(self, stretch: stretches.Stretch, shape: ext_groups.Shape, runs: list[ext_inodes.Run]) -> None:
        self._stretch = stretch
        self._size = shape.block
        self._blocks = [at for run in runs for at in range(run.place, run.place + run.blocks)][:_MOST]
        head = self._read(0)
        magic, kind, _, block, most, self._first, self._sequence, self._start = struct.unpack_from(">8I", head)
        features = int.from_bytes(head[40:44], "big") if kind == _SUPERBLOCKS[1] else 0
        if magic != _MAGIC or kind not in _SUPERBLOCKS or block != shape.block or features & ~_KNOWN:
            raise ext_inodes.Damaged("its journal is not readable")
        fast = int.from_bytes(head[84:88], "big") or 256 if features & _FAST else 0
        self._fast = fast
        self._end = min(most, len(self._blocks)) - fast
        if self._start and not 0 < self._first <= self._start < self._end:
            raise ext_inodes.Damaged("its journal is not readable")
        self._wide = bool(features & _WIDE)
        self._sums = features & (_SUMS2 | _SUMS3)

    def _read(self, number: int) -> bytes:
        if number >= len(self._blocks):
            raise ext_inodes.Damaged("its journal is too short")
        return self._stretch.exactly(self._blocks[number] * self._size, self._size)

    def newer(self) -> dict[int, tuple[int, bool]]:
        """By block, the block that holds what whole transactions have last made of it."""
        found: dict[int, tuple[int, bool]] = {}
        written: list[tuple[int, int, int, bool]] = []
        revoked: dict[int, int] = {}
        for sequence, blocks, withdrawn in self._transactions():
            written += [(sequence, *one) for one in blocks]
            revoked.update(dict.fromkeys(withdrawn, sequence))
        for sequence, block, at, escaped in written:
            # What was revoked in the same transaction or later has become something else since.
            if revoked.get(block, -1) < sequence:
                found[block] = self._blocks[at], escaped
        return found

    def has_fast_commits(self) -> bool:
        """Whether something was committed fast behind the last whole transaction."""
        if not self._fast:
            return False
        following = self._sequence
        for sequence, _, _ in self._transactions():
            following = sequence + 1
        # The block between the transactions and the fast commits is nobody's.
        tag, _, _, number = _FAST_HEAD.unpack_from(self._read(self._end + 1))
        return bool(tag == _HEAD_TAG and number == following & 0xFFFFFFFF)

    def _transactions(self) -> Iterator[tuple[int, list[tuple[int, int, bool]], list[int]]]:
        """Number, blocks (which, where in the journal, escaped) and what is revoked of every whole transaction."""
        at, sequence = self._start, self._sequence
        blocks: list[tuple[int, int, bool]] = []
        revoked: list[int] = []
        count = 0
        for _ in range(self._end if self._start else 0):
            data = self._read(at)
            magic, kind, number = struct.unpack_from(">3I", data)
            if magic != _MAGIC or number != sequence & 0xFFFFFFFF:
                return
            at = self._after(at)
            if kind == _DESCRIPTOR:
                for block, escaped in self._tags(data):
                    blocks.append((block, at, escaped))
                    at = self._after(at)
                    count += 1
                    if count > self._end:
                        return
            elif kind == _REVOKE:
                revoked += self._revoked(data)
            elif kind == _COMMIT:
                yield sequence, blocks, revoked
                sequence, blocks, revoked = sequence + 1, [], []
            else:
                return

    def _after(self, at: int) -> int:
        return at + 1 if at + 1 < self._end else self._first

    def _tags(self, data: bytes) -> Iterator[tuple[int, bool]]:
        """Every block that a descriptor names, and whether its copy is escaped."""
        end = len(data) - (4 if self._sums else 0)
        length = 16 if self._sums & _SUMS3 else 8 + (2 if self._sums & _SUMS2 else 0) + (4 if self._wide else 0)
        at = 12
        while at + length <= end:
            block = int.from_bytes(data[at : at + 4], "big")
            if self._sums & _SUMS3:
                flags, high = struct.unpack_from(">II", data, at + 4)
            else:
                flags = int.from_bytes(data[at + 6 : at + 8], "big")
                high = int.from_bytes(data[at + 8 : at + 12], "big") if self._wide else 0
            yield block | (high << 32 if self._wide else 0), bool(flags & _ESCAPED)
            at += length + (0 if flags & _SAME else 16)
            if flags & _LAST:
                return

    def _revoked(self, data: bytes) -> list[int]:
        width = 8 if self._wide else 4
        end = min(int.from_bytes(data[12:16], "big"), len(data) - (4 if self._sums else 0))
        return [int.from_bytes(data[at : at + width], "big") for at in range(16, end - width + 1, width)]
