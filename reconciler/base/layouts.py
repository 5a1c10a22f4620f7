"""What a guest's file system says about a disk: files and their extents, as plain arrays.

Made once per disk by ``operations`` through ``guests``, handed to the segmenter and to the file index alike, so that
``storage`` never needs to import ``guests``.
"""

from __future__ import annotations

import dataclasses
from array import array


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The runs of all files of one disk, parallel arrays ordered by (volume, inode, file offset)."""

    #: Which file each run belongs to: an index that only groups runs.
    file: array[int]
    #: Byte offset of the run within its file.
    file_offset: array[int]
    #: Byte offset of the run on the disk.
    disk_offset: array[int]
    #: Bytes in the run.
    length: array[int]
