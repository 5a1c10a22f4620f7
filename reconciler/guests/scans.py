"""What a look into a disk's file systems brings back: its volumes, the layout of their files, the space nobody uses.

Made by ``guests.scanning`` and ``guests.listings`` from what a child process reports; read by ``operations``, which
hands the layout to the segmenter and the ranges to the copy. These are values alone, so that nobody who holds one
needs the parsers behind it.
"""

from __future__ import annotations

import dataclasses
from array import array
from typing import Final, NamedTuple

from reconciler.base import extents, layouts

#: A warning: a CamelCase code and one sentence for people.
Warning_ = tuple[str, str]
#: What is said of a volume that was in use, of its journal or its log: either is read all the same.
JOURNAL: Final = "its journal needs recovery"
LOG: Final = "its log needs recovery"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much of this machine a look into one disk may take. Beyond any of them the disk is cut by offset alone."""

    #: Seconds on the wall from start to end, reading included.
    seconds: float = 300.0
    #: Seconds of processor time of the child.
    processor: int = 240
    #: Bytes of address space of the child; what it really uses is a fraction.
    memory: int = 1 << 30
    #: Bytes of disk the child may read, a bound on what circular metadata can cost.
    read: int = 256 << 30
    #: Runs of files, a count; 32 bytes each are held here.
    runs: int = 8_000_000
    #: Free ranges, a count, over all volumes.
    ranges: int = 1_000_000
    #: Bytes of one volume's allocation bitmap: 128 MiB are 4 TiB of clusters of 4 KiB.
    bitmap: int = 128 << 20
    #: Files that may be listed, a count.
    files: int = 50_000_000


DEFAULT = Limits()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """One stretch of a disk that holds, or could hold, a file system."""

    #: Byte offset on the disk; of a logical volume, where its first byte lies.
    offset: int
    #: Bytes.
    length: int
    #: How the volume was found: ``gpt``, ``mbr``, ``none`` (the whole disk) or ``lvm2``.
    scheme: str
    #: ``ntfs``, ``ext``, ``fat``, ``exfat``, ``xfs``, ``swap``; None where nothing was recognised.
    filesystem: str | None
    #: The file system's label, or the logical volume's name where it has none; may be empty.
    label: str
    #: Whether the file system calls itself clean.
    clean: bool
    #: Why its bitmap is not believed, empty where it is.
    reason: str
    #: Bytes per cluster or block, 0 where unknown.
    cluster: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """Everything one look at a disk brought back; empty where nothing could be read."""

    #: In order of their place in the partition table, logical volumes last.
    volumes: tuple[Volume, ...] = ()
    #: The runs of all allocated entries.
    layout: layouts.Layout
    #: Disk ranges that a believed bitmap calls free and nothing claims; only filled on request.
    free: extents.Extents = ()
    #: Disk ranges of page files that nothing else claims; only filled on request.
    page_files: extents.Extents = ()
    #: Disk ranges of swap volumes, their header pages left out.
    swap: extents.Extents = ()
    #: What could not be read or believed, as (code, message).
    warnings: tuple[Warning_, ...] = ()
    #: Seconds the look took.
    seconds: float = 0.0


class File(NamedTuple):
    """One name of a file, or one of its alternate data streams."""

    #: Which of the volumes it lies on, an index.
    volume: int
    #: From the volume's root, parts separated by ``/``, without a leading one; undecodable bytes as surrogates.
    path: str
    #: Name of the alternate data stream, empty for the file itself.
    stream: str
    #: ``file``, ``directory``, ``symlink`` or ``other``.
    kind: str
    #: Bytes.
    size: int
    #: The same for all names and streams of a file of a volume.
    inode: int
    #: How many names the file has.
    links: int
    #: Whether the content lies in the file's own record and occupies no cluster.
    resident: bool
    #: Nanoseconds since the epoch, UTC; 0 where unknown. ``changed`` is when the record was.
    created: int
    modified: int
    changed: int
    accessed: int
    #: Of ``sparse``, ``compressed``, ``encrypted``.
    flags: tuple[str, ...]
    #: File offset, disk offset, bytes; in the order of the file. Whole clusters, except where the rest of one was
    #: never written; what is left out reads as zeros.
    extents: tuple[tuple[int, int, int], ...]


def empty_layout() -> layouts.Layout:
    """A layout without runs."""
    return layouts.Layout(file=array("q"), file_offset=array("q"), disk_offset=array("q"), length=array("q"))
