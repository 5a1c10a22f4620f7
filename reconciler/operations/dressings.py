"""What is known of a restored file beside its content: owner, rights, attributes and times, given to it in a folder.

Called by ``foldersinks`` for everything it makes; separate because what a target keeps of it, and what it only seems to
keep, is a matter of its own. What was not kept goes to the report, and nothing here fails a file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final

from reconciler.guests import nodes
from reconciler.operations import filecontents, ntfstargets

#: What the extended attributes of NTFS-3G hold.
_WINDOWS: Final = {
    ntfstargets.ACCESS: "owners and access control lists of Windows",
    ntfstargets.EXTENDED: "extended attributes of Windows",
    ntfstargets.TIMES: "times of creation",
    ntfstargets.ATTRIBUTES: "attributes of Windows",
}


class Dresser:
    """Gives files what the image knows of them."""

    def __init__(self, report: filecontents.Report, root: int) -> None:
        """``root``: the folder that all goes into, open."""
        #: Whether owners can be set and devices made.
        self.owner = os.geteuid() == 0
        self.mask = os.umask(0)
        os.umask(self.mask)
        self.ntfs = ntfstargets.Target(root)
        self._report = report

    def dress(self, handle: int, node: nodes.Node, path: str, *, folder: bool = False) -> None:
        """Owner, rights, attributes and times of an open file, in the order in which none undoes another."""
        if self.owner and node.uid is not None and node.gid is not None:
            self._try(path, "owners were not kept", lambda: os.fchown(handle, node.uid or 0, node.gid or 0))
        mode = self._mode(node, path, folder=folder)
        if node.mode is not None:
            _disinherit(handle)
        self._try(path, "rights were not kept", lambda: os.fchmod(handle, mode))
        self._attributes(handle, node, path)
        self._tell(node, path)
        if ntfstargets.dated(node):
            moments = (node.accessed or node.modified, node.modified)
            self._try(path, "times were not kept", lambda: os.utime(handle, ns=moments))
        self._windows(handle, node, path)
        self._look(os.fstat(handle), node, mode, path)

    def dress_at(self, here: int, name: str, node: nodes.Node, path: str) -> None:
        """The same for a link or a special file in the folder ``here``, which cannot be opened."""
        if self.owner and node.uid is not None and node.gid is not None:
            uid, gid = node.uid, node.gid
            self._try(
                path, "owners were not kept", lambda: os.chown(name, uid, gid, dir_fd=here, follow_symlinks=False)
            )
        if node.kind != "symlink":
            mode = self._mode(node, path, folder=False)
            if node.mode is not None:
                _disinherit(f"/proc/self/fd/{here}/{name}")
            self._try(path, "rights were not kept", lambda: os.chmod(name, mode, dir_fd=here))
        self._attributes(f"/proc/self/fd/{here}/{name}", node, path)
        self._tell(node, path)
        if ntfstargets.dated(node):
            moments = (node.accessed or node.modified, node.modified)
            self._try(
                path,
                "times were not kept",
                lambda: os.utime(name, ns=moments, dir_fd=here, follow_symlinks=False),
            )
        self._windows(f"/proc/self/fd/{here}/{name}", node, path)

    def _look(self, about: os.stat_result, node: nodes.Node, mode: int, path: str) -> None:
        """Say what the target took without a word and does not show."""
        if self.ntfs.held and ntfstargets.EXTENDED in dict(node.xattrs):
            # There the Linux of Windows keeps owner and rights, and now does again.
            return
        if self.owner and node.uid is not None and (about.st_uid, about.st_gid) != (node.uid, node.gid):
            self._report.lose("the target does not keep owners", path)
        if node.mode is not None and stat.S_IMODE(about.st_mode) != mode:
            self._report.lose("the target does not keep rights", path)
        if self.ntfs.held and node.created:
            # They were set all at once, to the last digit; what is shown of those before 1970 is not quite that.
            return
        if ntfstargets.dated(node) and about.st_mtime_ns // 1000 != node.modified // 1000:
            self._report.lose("the target keeps times less exactly, or not that far away", path)

    def _mode(self, node: nodes.Node, path: str, *, folder: bool) -> int:
        if node.mode is None:
            return (0o777 if folder else 0o666) & ~self.mask
        mode = stat.S_IMODE(node.mode)
        if not self.owner:
            if mode & (stat.S_ISUID | stat.S_ISGID) and not folder:
                self._report.lose("bits that run a file as its owner were not kept, for its owner is another", path)
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        return mode

    def _attributes(self, where: int | str, node: nodes.Node, path: str) -> None:
        for key, value in node.xattrs:
            if not key.startswith(ntfstargets.PREFIX):
                kind = "access control lists" if "acl" in key else f"extended attributes {key.partition('.')[0]}.*"
                self._attribute(where, key, value, f"{kind} were not kept", path)

    def _windows(self, where: int | str, node: nodes.Node, path: str) -> None:
        if self.ntfs.held:
            for key, value in ntfstargets.facts(node):
                self._attribute(where, key, value, f"{_WINDOWS[key]} were not kept", path)
            return
        known = dict(node.xattrs)
        lost: list[str] = [key for key in (ntfstargets.ACCESS, ntfstargets.EXTENDED) if key in known]
        if node.created and (node.mode is None or ntfstargets.TIMES in known):
            lost.append(ntfstargets.TIMES)
        for key in lost:
            self._report.lose(f"{_WINDOWS[key]} were not kept, which only NTFS by NTFS-3G holds", path)

    def _attribute(self, where: int | str, key: str, value: bytes, what: str, path: str) -> None:
        follow = isinstance(where, int)

        def act() -> None:
            os.setxattr(where, key, value, follow_symlinks=follow)
            if self.ntfs.held and not key.startswith(ntfstargets.PREFIX):
                # It takes lists that it ignores, and attributes of pipes and links that it never shows.
                os.getxattr(where, key, follow_symlinks=follow)

        self._try(path, what, act)

    def settle(self, folder: int, name: str, node: nodes.Node, path: str, *, last: bool) -> None:
        """Set again what a name or a stream has changed of a file; ``last``: nothing more will, so seal it."""
        where = f"/proc/self/fd/{folder}/{name}"
        for key, value in ntfstargets.changing(node) if self.ntfs.held else ():
            self._attribute(where, key, value, f"{_WINDOWS[key]} were not kept", path)
        if last:
            self.seal(where, node, path)

    def seal(self, where: int | str, node: nodes.Node, path: str) -> None:
        """Set a descriptor of Windows, after which nothing else may be allowed any more."""
        for key, value in node.xattrs if self.ntfs.held else ():
            if key == ntfstargets.ACCESS:
                self._attribute(where, key, value, f"{_WINDOWS[key]} were not kept", path)

    def _tell(self, node: nodes.Node, path: str) -> None:
        """Say what has no place in any folder of Linux."""
        if ntfstargets.cut(node) and not (self.ntfs.held and ntfstargets.TIMES in dict(node.xattrs)):
            self._report.lose("times after the year 2262 are not read, and not kept", path)
        if not self.owner and node.uid is not None:
            self._report.lose("owners were not kept, which only root may set", path)
        for flag in node.flags:
            if flag in ("immutable", "append"):
                self._report.lose(f"files are not {flag} again; chattr sets that", path)
            elif flag in ("hidden", "system", "readonly") and not self.ntfs.held:
                self._report.lose(f"the Windows attribute {flag} was not kept", path)
            elif flag == "compressed" and self.ntfs.held:
                self._report.lose("files that NTFS had compressed are not compressed again", path)

    def _try(self, path: str, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, OverflowError) as error:
            self._report.lose(f"{what} ({getattr(error, 'strerror', None) or error})", path)


def _disinherit(where: int | str) -> None:
    """Take away the access control lists that a folder has given to what was made in it."""
    for key in ("system.posix_acl_access", "system.posix_acl_default"):
        with contextlib.suppress(OSError):
            os.removexattr(where, key)
