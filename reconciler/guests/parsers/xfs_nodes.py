"""XFS for a browser: files by the number of their inode, directories block by block."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from reconciler.guests import scans
from reconciler.guests.parsers import outputs, served, stretches, xfs_attributes, xfs_inodes, xfs_replays, xfs_shapes

_IMMUTABLE, _APPEND = 0x8, 0x10
_ELSEWHERE = "its content lies on the real-time device, which is another disk"
_LONGEST_LINK, _LINK_HEADER = 1024, 56
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


class Files:
    """The files of one volume; see ``served.FileSystem``."""

    def __init__(self, stretch: stretches.Stretch, limits: scans.Limits) -> None:
        del limits
        self._plain = stretch
        newest = xfs_replays.replayed(stretch, xfs_shapes.shape(stretch))
        self.stretch = newest.stretch
        self._shape = newest.shape
        self._problem = newest.problem
        self.root = self._shape.root

    def facts(self) -> outputs.Facts:
        """Label and state. Raises ``Damaged`` and ``Truncated``."""
        shape = self._shape
        unclean = xfs_shapes.unclean(self._plain, shape)
        reason = f"{unclean}: {self._problem}" if self._problem else unclean
        reason = "it needs repair" if shape.needs_repair else reason
        return outputs.Facts(filesystem="xfs", label=shape.label, clean=not unclean, reason=reason, cluster=shape.block)

    def _inode(self, number: int) -> xfs_inodes.Inode:
        shape = self._shape
        if number in shape.own or not shape.holds(number):
            raise served.Missing(f"inode {number} is no file")
        found = xfs_inodes.at(self.stretch, shape, number)
        if not found.used or not found.links:
            raise served.Missing(f"inode {number} is not in use")
        return found

    def node(self, number: int, version: int = 0) -> served.Node:
        """See ``served.FileSystem``."""
        del version
        inode = self._inode(number)
        form = stat.S_IFMT(inode.mode)
        node = served.Node(
            inode=number,
            format=form,
            links=inode.links,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            times=inode.times(),
        )
        if form == stat.S_IFREG:
            node.size = inode.size
            node.problem = _ELSEWHERE if inode.elsewhere else ""
        elif form == stat.S_IFLNK:
            node.size = inode.size
            node.target = self._target(inode)
        elif form in _DEVICES:
            node.device = inode.device()
        sparse = form == stat.S_IFREG and inode.held * self._shape.block < inode.size
        known = ((inode.flags & _APPEND, "append"), (inode.flags & _IMMUTABLE, "immutable"), (sparse, "sparse"))
        node.flags = tuple(word for there, word in known if there)
        served.add_xattrs(
            node,
            xfs_attributes.read(inode, self.stretch, self._shape),
            (xfs_shapes.Damaged, stretches.Truncated),
        )
        return node

    def _target(self, inode: xfs_inodes.Inode) -> str:
        if inode.size > _LONGEST_LINK:
            raise xfs_shapes.Damaged("the link leads too far")
        data = inode.local() if inode.resident else b""
        if not inode.resident:
            for run in inode.runs():
                piece = self.stretch.exactly(run.place, min(run.length, _LONGEST_LINK + _LINK_HEADER))
                if self._shape.v5 and piece[:4] != b"XSLM":
                    raise xfs_shapes.Damaged("the target of the link is none")
                data += piece[_LINK_HEADER:] if self._shape.v5 else piece
        if len(data) < inode.size:
            raise xfs_shapes.Damaged("the end of the link's target is missing")
        return data[: inode.size].decode("utf-8", "surrogateescape")

    def _directory(self, number: int) -> xfs_inodes.Inode:
        inode = self._inode(number)
        if inode.kind != "directory":
            raise served.Refused("it is no directory")
        return inode

    def names(self, number: int) -> Iterator[served.Name]:
        """See ``served.FileSystem``."""
        for child, text in self._directory(number).entries():
            yield served.Name(text, child)

    def look(self, number: int, name: str) -> served.Name:
        """See ``served.FileSystem``."""
        found = self._directory(number).look(name)
        if found is None:
            raise served.absent(name)
        return served.Name(name, found)

    def content(self, number: int, stream: str) -> served.Content:
        """See ``served.FileSystem``."""
        inode = self._inode(number)
        if stream:
            raise served.Missing("files of XFS have no streams")
        if inode.kind != "file":
            raise served.Refused("it is no file")
        if inode.elsewhere:
            raise served.Refused(_ELSEWHERE)
        if inode.format not in (xfs_inodes.EXTENTS, xfs_inodes.TREE):
            raise xfs_shapes.Damaged("its content is kept in an unknown way")
        return served.Content(inode.size, self._runs(inode))

    def _runs(self, inode: xfs_inodes.Inode) -> Iterator[served.Run]:
        for run in inode.runs():
            if run.offset >= inode.size:
                return
            if not run.unwritten:
                yield run.offset, run.place, run.length
