"""What a mounted image shows, by path: ``disks/<disk>.img`` and ``files/<disk>/<volume>/...``, read-only.

Names are bytes, as the kernel has them. An ``Item`` is one file or folder; what it cannot give it raises: ``OSError``
with a number where the path is to blame, ``HoldfastError`` where bytes cannot be had. File systems are opened when
somebody first looks into them, by the confined parser of ``guests``. Separate from ``fusing`` so that it can be read
and tested without a mount.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from reconciler.base import disks, errors
from reconciler.guests import browsing, nodes, scans
from reconciler.operations import fileplaces
from reconciler.sources import targets

#: Paths whose items are remembered beside those of the largest folder that was listed: who lists one asks for each of
#: its entries next, and to look for one by name in a large folder takes as long as reading it.
KEPT: Final = 50_000
#: Bytes of a named stream that is shown as an extended attribute: what the kernel takes.
_XATTR: Final = 64 << 10
#: Bits of an inode number that are the guest's own; above them stands the volume.
_OWN: Final = 48
_FOLDER: Final = stat.S_IFDIR | 0o555
_FILE: Final = stat.S_IFREG | 0o444


class Item(abc.ABC):
    """One file or folder. Thread-safe; what it says never changes."""

    __slots__ = ()

    @abc.abstractmethod
    def stat(self) -> dict[str, int]:
        """Fields of ``os.stat_result`` by name; times in nanoseconds."""

    def children(self) -> Iterator[tuple[bytes, Item]]:
        """What a folder holds, in no particular order."""
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def child(self, name: bytes) -> Item:
        """One entry of a folder. Raises ``FileNotFoundError``."""
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)

    def read(self, offset: int, length: int) -> disks.Buffer:
        """Bytes of a file, fewer at its end."""
        raise IsADirectoryError(errno.EISDIR, f"no {length} bytes at {offset}: {os.strerror(errno.EISDIR)}")

    def target(self) -> bytes:
        """Where a symbolic link leads."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def xattrs(self) -> Mapping[bytes, Callable[[], bytes]]:
        """Extended attributes by name, each with what gives its value."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What items share that come from no guest."""

    #: When the image was taken, nanoseconds since the epoch.
    time: int
    #: Who mounts.
    uid: int
    gid: int

    def stat(self, mode: int, size: int, inode: int) -> dict[str, int]:
        """Of something that Holdfast made up."""
        return {
            "st_mode": mode, "st_size": size, "st_nlink": 2 if stat.S_ISDIR(mode) else 1, "st_ino": inode,
            "st_uid": self.uid, "st_gid": self.gid, "st_blocks": -(-size // 512), "st_blksize": 128 << 10,
            "st_mtime": self.time, "st_ctime": self.time, "st_atime": self.time,
        }  # fmt: skip


class Folder(Item):
    """A folder whose entries are known."""

    def __init__(self, setting: Setting, inode: int, entries: Mapping[bytes, Item]) -> None:
        self._setting, self._inode, self._entries = setting, inode, entries

    def stat(self) -> dict[str, int]:
        return self._setting.stat(_FOLDER, 0, self._inode)

    def children(self) -> Iterator[tuple[bytes, Item]]:
        yield from self._entries.items()

    def child(self, name: bytes) -> Item:
        try:
            return self._entries[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


class RawDisk(Item):
    """A disk as one raw file."""

    def __init__(self, setting: Setting, inode: int, disk: disks.Disk) -> None:
        self._setting, self._inode, self._disk = setting, inode, disk

    def stat(self) -> dict[str, int]:
        return self._setting.stat(_FILE, self._disk.size, self._inode)

    def read(self, offset: int, length: int) -> disks.Buffer:
        length = min(length, self._disk.size - offset)
        return self._disk.pread(offset, length) if length > 0 else b""


class Volumes(Item):
    """The volumes of one disk, by label or number. The disk is looked into when somebody asks for them."""

    def __init__(self, setting: Setting, inode: int, disk: disks.Disk, first: int) -> None:
        """``first``: number of the disk's first volume among those of the image, for inode numbers."""
        self._setting, self._inode, self._disk, self._first = setting, inode, disk, first
        self._lock = threading.Lock()
        self._browser: browsing.Browser | None = None
        self._named: dict[bytes, int] = {}
        self._closed = False

    def stat(self) -> dict[str, int]:
        return self._setting.stat(_FOLDER, 0, self._inode)

    def children(self) -> Iterator[tuple[bytes, Item]]:
        browser = self._opened()
        for name, number in self._named.items():
            yield name, self._root(browser, number)

    def child(self, name: bytes) -> Item:
        browser = self._opened()
        # Every volume has its number for a name, too, though a folder lists it once.
        names = {b"v%d" % number: number for number in self._named.values()} | self._named
        if name not in names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._root(browser, names[name])

    def close(self) -> None:
        """End the parser. Idempotent."""
        with self._lock:
            self._closed = True
            browser, self._browser = self._browser, None
        if browser is not None:
            browser.close()

    def _root(self, browser: browsing.Browser, number: int) -> Item:
        base = ((self._first + number) & 0xFFFF) << _OWN
        try:
            return Guest(self._setting, browser, browser.root(number), "", base)
        except (errors.GuestUnreadable, errors.NotFound) as error:
            return Unreadable(self._setting, base, errors.GuestUnreadable(error.message))

    def _opened(self) -> browsing.Browser:
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self._browser is None:
                self._browser = browsing.browse(self._disk)
                self._named = _volume_names(self._disk.name, self._browser.volumes)
            return self._browser


def _volume_names(disk: str, volumes: Sequence[scans.Volume]) -> dict[bytes, int]:
    """The volumes that hold files, as ``holdfast files`` calls them: by label where it is their own, else ``vN``."""
    found = [(disk, number, one.filesystem, one.label, one.length) for number, one in enumerate(volumes)]
    return {
        _bytes(one.name if "/" not in one.name else f"v{one.number}"): one.number for one in fileplaces.named(found)
    }


class Unreadable(Item):
    """A volume that cannot be opened: it is there, and whoever enters it is told why."""

    def __init__(self, setting: Setting, inode: int, error: errors.HoldfastError) -> None:
        self._setting, self._inode, self._error = setting, inode, error

    def stat(self) -> dict[str, int]:
        return self._setting.stat(_FOLDER, 0, self._inode)

    def children(self) -> Iterator[tuple[bytes, Item]]:
        raise self._error

    def child(self, name: bytes) -> Item:
        raise errors.GuestUnreadable(f"no {os.fsdecode(name)} here: {self._error.message}") from self._error


class Guest(Item):
    """One file, folder or link of a guest."""

    __slots__ = ("_base", "_browser", "_node", "_path", "_setting")

    def __init__(self, setting: Setting, browser: browsing.Browser, node: nodes.Node, path: str, base: int) -> None:
        """``path``: within the volume, as the browser spells it; ``base``: what its inode numbers are added to."""
        self._setting, self._browser, self._node, self._path, self._base = setting, browser, node, path, base

    def stat(self) -> dict[str, int]:
        node = self._node
        mode = node.mode
        if mode is None:
            mode = (node.format or stat.S_IFREG) | (0o555 if node.kind in ("directory", "symlink") else 0o444)
        return {
            "st_mode": mode, "st_size": node.size, "st_nlink": max(node.links, 1), "st_ino": self._base + node.inode,
            "st_uid": self._setting.uid if node.uid is None else node.uid,
            "st_gid": self._setting.gid if node.gid is None else node.gid,
            "st_blocks": -(-node.size // 512), "st_blksize": 128 << 10, "st_rdev": node.device or 0,
            "st_mtime": node.modified, "st_ctime": node.changed, "st_atime": node.accessed,
        }  # fmt: skip

    def children(self) -> Iterator[tuple[bytes, Item]]:
        self._require_directory()
        for name, node in self._browser.children(self._node):
            found = _bytes(name)
            if found and b"/" not in found and b"\0" not in found and found not in (b".", b".."):
                yield found, self._with(name, node)

    def child(self, name: bytes) -> Item:
        self._require_directory()
        spelled = _words(name)
        try:
            return self._with(spelled, self._browser.find(self._node.volume, self._below(spelled)))
        except errors.NotFound:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    def read(self, offset: int, length: int) -> disks.Buffer:
        if self._node.kind == "directory":
            return super().read(offset, length)
        return self._browser.read(self._node, offset, length)

    def target(self) -> bytes:
        if self._node.target is None:
            return super().target()
        return _bytes(self._node.target)

    def xattrs(self) -> Mapping[bytes, Callable[[], bytes]]:
        """Those of the file, and its named streams as ``user.NAME``."""
        found: dict[bytes, Callable[[], bytes]] = {}
        for name, size in self._node.streams:
            if size <= _XATTR:
                found[b"user." + _bytes(name)] = lambda name=name, size=size: self._browser.read(  # type: ignore[misc]
                    self._node, 0, size, name
                )
        for name, value in self._node.xattrs:
            found[_bytes(name)] = lambda value=value: value  # type: ignore[misc]
        return found

    def _require_directory(self) -> None:
        if self._node.kind != "directory":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _below(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name

    def _with(self, name: str, node: nodes.Node) -> Guest:
        return Guest(self._setting, self._browser, node, self._below(name), self._base)


def _bytes(name: str) -> bytes:
    """A guest's name as the kernel takes it. Bytes that are no characters are surrogates, as everywhere in Python."""
    return name.encode("utf-8", "surrogateescape")


def _words(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class Tree:
    """Everything of one image. Thread-safe. The disks are the caller's to close, after the tree."""

    def __init__(self, chosen: Sequence[disks.Disk], setting: Setting, *, kept: int = KEPT) -> None:
        names = targets.restored_names([disk.name for disk in chosen], "raw")
        self._volumes = {
            os.fsencode(disk.name.replace("/", "%2F")): Volumes(setting, 2000 + number, disk, number * 1000 + 1)
            for number, disk in enumerate(chosen)
        }
        raw = {
            os.fsencode(names[disk.name]): RawDisk(setting, 1000 + number, disk) for number, disk in enumerate(chosen)
        }
        top = {b"disks": Folder(setting, 2, raw), b"files": Folder(setting, 3, self._volumes)}
        self._root = Folder(setting, 1, top)
        self._known: collections.OrderedDict[bytes, Item] = collections.OrderedDict()
        self._kept = self._most = kept
        self._lock = threading.Lock()

    def look(self, path: bytes) -> Item:
        """The item at an absolute path. Raises ``OSError`` or what reading folders raises."""
        if path == b"/":
            return self._root
        with self._lock:
            known = self._known.get(path)
            if known is not None:
                self._known.move_to_end(path)
                return known
        above, _, name = path.rpartition(b"/")
        found = self.look(above or b"/").child(name)
        self._keep(path, found)
        return found

    def list(self, path: bytes) -> Iterator[tuple[bytes, Item]]:
        """Names and items of a folder."""
        for number, (name, item) in enumerate(self.look(path).children(), start=1):
            self._keep((path if path != b"/" else b"") + b"/" + name, item, number)
            yield name, item

    def _keep(self, path: bytes, item: Item, listed: int = 0) -> None:
        with self._lock:
            self._known[path] = item
            self._known.move_to_end(path)
            self._most = max(self._most, self._kept + listed)
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def close(self) -> None:
        """End the parsers of guests."""
        for volumes in self._volumes.values():
            volumes.close()
