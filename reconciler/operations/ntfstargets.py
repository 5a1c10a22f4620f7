"""Folders that are NTFS by NTFS-3G, and what they hold of a file that no other folder of Linux does.

``dressings`` and ``foldersinks`` ask it; separate because only such a mount knows the extended attributes by which
security descriptors, DOS attributes, moments of creation and links of Windows are written, and each has its own order:
a new name of a file sets its archive attribute again, and what has become a link is no file or folder any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final

from reconciler.base import files
from reconciler.guests import nodes, wires
from reconciler.operations import filecontents

#: What the extended attributes begin with that only NTFS-3G knows.
PREFIX: Final = "system.ntfs_"
ACCESS: Final = PREFIX + "acl"
ATTRIBUTES: Final = PREFIX + "attrib_be"
CREATED: Final = PREFIX + "crtime_be"
TIMES: Final = PREFIX + "times_be"
EXTENDED: Final = PREFIX + "ea"
LINK: Final = PREFIX + "reparse_data"
#: Letters of a name that NTFS-3G replaces: it makes it longer by 19 first, and leaves one of over 255 behind, cut.
LONGEST: Final = 236
_BITS: Final = {"readonly": 0x1, "hidden": 0x2, "system": 0x4, "archive": 0x20}
_DIRECTORY: Final = 0x10
#: Between 1601 and 1970, in the file system's unit of 100 nanoseconds.
_EPOCH: Final = 116_444_736_000_000_000
#: Bytes of an extended attribute that the kernel passes on.
_MOST: Final = 64 << 10


def held(handle: int) -> bool:
    """Whether a folder that is open is NTFS, mounted by NTFS-3G: the kernel's own driver knows no such times, and would
    make attributes of a file out of all it does not know."""
    try:
        return len(os.getxattr(handle, TIMES)) == struct.calcsize(">4Q")
    except OSError:
        return False


def dated(node: nodes.Node) -> bool:
    """Whether it is known when a file was modified: NTFS says by a zero of its own that it is not."""
    return bool(node.modified or node.mode is not None or any(dict(node.xattrs).get(TIMES, b"")[8:16]))


def cut(node: nodes.Node) -> bool:
    """Whether a file was modified at a moment that is further away than what is told of any."""
    return abs(node.modified) >= wires.MOST_MOMENT


def facts(node: nodes.Node) -> Iterator[tuple[str, bytes]]:
    """What such a folder is to be told of a file before its descriptor, in order."""
    for key, value in node.xattrs:
        if key == EXTENDED:
            yield key, value
    yield from changing(node)


def changing(node: nodes.Node) -> Iterator[tuple[str, bytes]]:
    """What of it changes when the file gets another name or a stream: its times, all at once, and its attributes.

    Once times were set so, NTFS-3G forgets those that are set in the usual way.
    """
    own = dict(node.xattrs)
    if TIMES in own:
        # The last is when the record was changed, which nobody sets.
        yield TIMES, own[TIMES][:24]
    elif node.created:
        moments = (node.created, node.modified, node.accessed or node.modified)
        yield TIMES, struct.pack(">QQQ", *(max(moment // 100 + _EPOCH, 0) for moment in moments))
    if ATTRIBUTES in own:
        yield ATTRIBUTES, own[ATTRIBUTES]
    elif node.mode is None and node.created:
        yield ATTRIBUTES, struct.pack(">I", sum(_BITS.get(flag, 0) for flag in node.flags))


class Target:
    """The folder into which files are restored."""

    def __init__(self, root: int) -> None:
        """``root``: a folder that is open."""
        self.held = held(root)
        #: Whether streams are opened as ``NAME:STREAM``; else they are extended attributes.
        self._opened = False
        if self.held:
            with contextlib.suppress(OSError):
                os.getxattr(root, "ntfs.streams.list")
                self._opened = True

    def stream(self, folder: int, name: str, stream: str, content: filecontents.Content) -> bool:
        """Write a stream of a file that is there; False where the folder has no place for it, and nothing was done.

        Raises ``OSError`` and what reading raises.
        """
        if not self.held or (not self._opened and content.size > _MOST):
            return False
        try:
            if self._opened:
                self._fill(folder, f"{name}:{stream}", content)
                return True
            data = bytearray(content.size)
            for start, length in content.extents():
                for offset, piece in content.pieces(start, length):
                    data[offset : offset + len(piece)] = piece
            os.setxattr(_path(folder, name), f"user.{stream}", data)
        except OSError as error:
            # A name that it cannot have, or no streams at all; NTFS-3G finds no room for long ones so.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.ENAMETOOLONG):
                raise
            return False
        return True

    @staticmethod
    def _fill(folder: int, name: str, content: filecontents.Content) -> None:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            for start, length in content.extents():
                for offset, data in content.pieces(start, length):
                    files.pwrite_all(handle, data, offset)
            os.ftruncate(handle, content.size)
        finally:
            os.close(handle)

    def link(self, folder: int, name: str, node: nodes.Node, dress: Callable[[], None]) -> bool:
        """Make what leads elsewhere in the way of Windows; False where that is not to be had, and nothing was made.

        ``dress`` gives it all else, for what it was made as can be told nothing more afterwards.
        """
        own = dict(node.xattrs)
        if not self.held or LINK not in own:
            return False
        directory = bool(int.from_bytes(own.get(ATTRIBUTES, b""), "big") & _DIRECTORY)
        if directory:
            os.mkdir(name, 0o700, dir_fd=folder)
        else:
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=folder)
        try:
            dress()
            os.setxattr(_path(folder, name), LINK, own[LINK], follow_symlinks=False)
        except OSError:
            (os.rmdir if directory else os.unlink)(name, dir_fd=folder)
            return False
        # The kernel takes it for a file until it is asked again, and calls that an error once.
        with contextlib.suppress(OSError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True


def _path(folder: int, name: str) -> str:
    return f"/proc/self/fd/{folder}/{name}"
