"""ext2, ext3 and ext4: the blocks of every inode in use, what the bitmaps call free, and the names.

Inodes are read in the order of their tables. Whatever an inode in use, a block group or the superblock claims is
marked used before anything is called free; a group whose bitmap and count disagree makes the volume doubtful.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.guests.parsers import (
    bitmaps,
    ext_groups,
    ext_inodes,
    ext_journals,
    ext_names,
    outputs,
    stretches,
    trees,
)

_BAD_BLOCKS, _RESIZE = 1, 7
_TABLE_CHUNK = 1 << 20


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Read the volume and hand over its finds. Raises ``Truncated`` and ``TooMuch``."""
    shape = ext_groups.shape(stretch)
    reader = _Reader(stretch, shape, output)
    if output.want_runs or output.want_space:
        reader.walk()
    if output.want_files:
        newest = ext_journals.replayed(stretch, shape).stretch
        groups = reader.groups if newest is stretch else list(ext_groups.read(newest, shape))
        trees.hand_over(ext_names.Names(newest, shape, groups), output)
    return reader.facts()


class _Reader:
    def __init__(self, stretch: stretches.Stretch, shape: ext_groups.Shape, output: outputs.Output) -> None:
        self._stretch = stretch
        self._shape = shape
        self._output = output
        self._damaged = 0
        self._reason = ""
        self.groups = list(ext_groups.read(stretch, shape))
        self._bitmap = self._load() if output.want_space else None

    def _load(self) -> bitmaps.Bitmap:
        shape = self._shape
        each = shape.group_blocks * shape.block // shape.cluster // 8
        if each * shape.groups > self._output.limits.bitmap:
            raise outputs.TooMuch(f"bitmaps of more than {self._output.limits.bitmap} bytes")
        bits = bytearray(each * shape.groups)
        clusters = -(-(shape.blocks - shape.first) * shape.block // shape.cluster)
        for group in self.groups:
            if group.flags & ext_groups.BLOCKS_UNUSED:
                continue
            own = self._stretch.exactly(group.block_bitmap * shape.block, each)
            bits[group.number * each : (group.number + 1) * each] = own
            there = min(each * 8, clusters - group.number * each * 8)
            used = (int.from_bytes(own, "little") & ((1 << there) - 1)).bit_count()
            if there - used != group.free:
                self._reason = f"the bitmap of group {group.number} and its count of free blocks disagree"
        found = bitmaps.Bitmap(bits, count=clusters, unit=shape.cluster, base=shape.first * shape.block)
        for offset, length in ext_groups.claims(shape, self.groups):
            found.claim(offset, length)
        return found

    def _inodes(self) -> Iterator[tuple[int, bytes]]:
        """All inodes in use: their numbers and bytes. An inode is in use if its bitmap or its own fields say so.

        Only those that may have changed where nothing else is of interest.
        """
        shape = self._shape
        size, each = shape.inode_size, shape.group_inodes
        for group in self.groups:
            count = each - group.unused
            if group.flags & ext_groups.INODES_UNUSED or not self._stretch.touched(
                group.table * shape.block, count * size
            ):
                continue
            bits = self._stretch.exactly(group.inode_bitmap * shape.block, -(-each // 8))
            step = (stretches.GRAIN if self._stretch.partly else _TABLE_CHUNK) // size
            for first in range(0, count, step):
                many = min(step, count - first)
                place = group.table * shape.block + first * size
                if not self._stretch.touched(place, many * size):
                    continue
                table = self._stretch.exactly(place, many * size)
                for index in range(first, first + many):
                    at = (index - first) * size
                    if bits[index >> 3] >> (index & 7) & 1 or ext_inodes.alive(table, at):
                        yield group.number * each + index + 1, table[at : at + size]

    def walk(self) -> None:
        """Hand over the runs of all inodes; claim the blocks that hold their maps and extended attributes."""
        shape, output = self._shape, self._output
        block = shape.block
        for number, inode in self._inodes():
            try:
                if not ext_inodes.has_blocks(inode):
                    self._claim_attributes(inode)
                    continue
                inodes = ext_inodes.Map(self._stretch, shape, inode)
                found = list(inodes.runs())
            except (ext_inodes.Damaged, stretches.Truncated) as error:
                self._damaged += 1
                output.warn("FileSkipped", f"inode {number} cannot be read: {error}")
                continue
            self._claim_attributes(inode)
            if self._bitmap is not None:
                for at in inodes.own_blocks:
                    self._bitmap.claim(at * block, block)
            # Blocks the disk called bad and descriptors kept for growth are nobody's content.
            hand_over = output.want_runs and number not in (_BAD_BLOCKS, _RESIZE)
            for run in found:
                if hand_over:
                    output.run(number, run.first * block, run.place * block, run.blocks * block)
                elif self._bitmap is not None:
                    self._bitmap.claim(run.place * block, run.blocks * block)

    def _claim_attributes(self, inode: bytes) -> None:
        at = ext_inodes.attribute_block(inode)
        if at and self._bitmap is not None:
            self._bitmap.claim(at * self._shape.block, self._shape.block)

    def facts(self) -> outputs.Facts:
        """Label and state of the volume; hands over its free space where its bitmaps are believed."""
        unclean = self._shape.unclean
        reason = "" if unclean == ext_groups.MOUNTED and self._output.quiesced else unclean
        if not reason and self._damaged:
            reason = f"{self._damaged} inodes cannot be read"
        reason = reason or self._reason
        if self._bitmap is not None and not reason:
            for offset, length in self._bitmap.free():
                self._output.free(offset, length)
        return outputs.Facts(
            filesystem="ext", label=self._shape.label, clean=not unclean, reason=reason, cluster=self._shape.cluster
        )
