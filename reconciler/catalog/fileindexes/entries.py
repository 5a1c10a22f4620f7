"""One name of a file inside an image, as the index knows it.

Made by ``operations.fileindexing`` from what a guest's file systems list; packed by ``columns``, found by ``caches``.
A named tuple and no dataclass: an index has hundreds of thousands of them, and they are compared and sorted as such.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: The name of the attachment.
ATTACHMENT: Final = "files"
KINDS: Final = ("file", "directory", "symlink", "other")
#: Only in a layer over another one: the name is there no more.
GONE: Final = "gone"
FLAGS: Final = ("sparse", "compressed", "encrypted")

#: Orders entries: disk, volume, folder, name, stream. What lies in one folder lies together.
Key = tuple[str, int, str, str, str]


class Entry(NamedTuple):
    """One name of a file, or one of its alternate data streams."""

    #: The disk's name within its machine.
    disk: str
    #: Which of the disk's volumes it lies on, an index from 0.
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
    #: Nanoseconds since the epoch, UTC; 0 where unknown. ``changed`` is when the record was.
    created: int
    modified: int
    changed: int
    #: Of ``FLAGS``, in their order.
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The path of what it lies in, empty for the root."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def key(entry: Entry) -> Key:
    """What an entry is found and ordered by."""
    folder, _, name = entry.path.rpartition("/")
    return entry.disk, entry.volume, folder, name, entry.stream


def gone(entry: Entry) -> Entry:
    """The mark that hides ``entry`` in a layer below."""
    return Entry(entry.disk, entry.volume, entry.path, entry.stream, GONE, 0, 0, 0, 0, 0, 0, ())
