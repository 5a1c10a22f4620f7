"""Lists of block digests: one entry, what of a disk is data by its list alone, and a stored list proven.

Read through ``blocks``, which makes such lists and proves blocks by them.
"""

from __future__ import annotations

from reconciler.base import digests, errors, extents
from reconciler.storage import units


def entry(block_digests: bytes | bytearray | memoryview, index: int) -> bytes:
    """The digest of block ``index`` in a list."""
    return bytes(block_digests[index * digests.DIGEST_SIZE : (index + 1) * digests.DIGEST_SIZE])


def data_extents(block_digests: bytes, size: int) -> extents.Extents:
    """The blocks of a list that are not zero, as merged ranges."""
    lengths = ((index, digests.block_length(index, size)) for index in range(digests.block_count(size)))
    return extents.normalise(
        (index * digests.BLOCK, length)
        for index, length in lengths
        if entry(block_digests, index) != digests.zero_digest(length)
    )


def check_list(block_digests: bytes, record: units.DiskRecord, image: str) -> bytes:
    """A stored digest list, proven against the record's digest. Raises ``ImageDamaged``."""
    if (
        len(block_digests) != digests.block_count(record.size) * digests.DIGEST_SIZE
        or digests.disk_digest(block_digests) != record.digest
    ):
        raise errors.ImageDamaged(
            f"image {image}, disk {record.name}: its list of block digests is damaged",
            hint="use another copy of the image",
        )
    return block_digests
