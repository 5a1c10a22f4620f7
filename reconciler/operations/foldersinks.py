"""Restored files in a folder of this machine: never outside of it, never half, never over what is there.

``filerestores`` tells it what to write. Folders are held open and everything is named relative to them, and no link is
ever followed, so neither an image nor somebody else at work in the folder leads a write elsewhere. A file is written
without a name and gets its name when it is whole; where the file system cannot do that, it has a temporary one before.

What a folder has no place for: an alternate data stream becomes the file ``NAME:STREAM`` beside its file (a name that
Windows itself cannot have) where the folder is no NTFS, and a name that it cannot hold is written with ``%XX`` for
bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from reconciler.base import crashes, errors, files
from reconciler.guests import nodes
from reconciler.operations import dressings, filecontents, filenames, fileplaces, ntfstargets

#: What a file system says to a name that it cannot hold; exFAT by FUSE the last.
_UNNAMEABLE: Final = frozenset((errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.ENOENT))
#: What it says where files cannot be without a name.
_NAMELESS: Final = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL))
_NO_LINKS: Final = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV))
#: Files that are made durable one by one; more of them all at once at the end.
_ONE_BY_ONE: Final = 16
#: What is said of a stream that has become one, by whether the folder is NTFS.
_BESIDE: Final = {
    False: "alternate data streams are files of their own beside theirs, named NAME:STREAM",
    True: "alternate data streams of over 64 KiB, or of names that are refused, are files of their own beside theirs, "
    "named NAME:STREAM; a mount with streams_interface=windows holds them",
}
_OPEN: Final = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclasses.dataclass(slots=True)
class _Level:
    """A folder that is open."""

    handle: int
    #: What it is to be in the end; None for the target itself.
    node: nodes.Node | None
    path: str
    #: Whether it was there before.
    old: bool
    #: Names that were made in it, and the same without regard to case.
    made: set[str] = dataclasses.field(default_factory=set)
    folded: set[str] = dataclasses.field(default_factory=set)


class FolderSink:
    """Implements ``filecontents.Sink``. A context manager."""

    def __init__(self, root: Path, report: filecontents.Report, *, force: bool) -> None:
        """``root`` is made if need be. ``force``: write over files that are there. Raises ``TargetError``."""
        self._report = report
        self._force = force
        self._nameless = True
        self._count = 0
        #: Names as they were given, by folder and name of the image.
        self._given: dict[tuple[str, ...], str] = {}
        self._names: list[str] = []
        try:
            root.mkdir(parents=True, exist_ok=True)
            handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.TargetError(f"{root}: {error.strerror}", hint="choose another folder with --to") from error
        self._dresser = dressings.Dresser(report, handle)
        self._levels = [_Level(handle, None, "", True)]

    def __enter__(self) -> FolderSink:
        return self

    def __exit__(self, *_: object) -> None:
        for level in self._levels:
            os.close(level.handle)
        self._levels.clear()

    @property
    def _here(self) -> int:
        return self._levels[-1].handle

    def require_free(self, names: tuple[str, ...]) -> None:
        """Raise ``TargetExists`` where something of this name is there already, and ``force`` was not given."""
        if self._force:
            return
        handle = os.dup(self._levels[0].handle)
        try:
            for name in names[:-1]:
                try:
                    below = os.open(filenames.plain(name), os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=handle)
                except FileNotFoundError:
                    return
                os.close(handle)
                handle = below
            if names:
                os.stat(filenames.plain(names[-1]), dir_fd=handle, follow_symlinks=False)
            elif not any(os.scandir(handle)):
                return
        except FileNotFoundError:
            return
        except OSError as error:
            # A name that the folder cannot hold is not there; the one that it gets instead is looked at then.
            if error.errno in _UNNAMEABLE:
                return
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
        finally:
            os.close(handle)
        raise errors.TargetExists(
            f"{fileplaces.readable('/'.join(names)) or 'the folder'} is there already", hint="--force writes over it"
        )

    # -- what a walk calls ------------------------------------------------------------------------------------------

    def directory(self, name: str, node: nodes.Node, path: str) -> None:
        """As ``filecontents.Sink`` says. A folder that is there is entered."""
        old = False

        def make(given: str) -> None:
            nonlocal old
            try:
                os.mkdir(given, 0o700, dir_fd=self._here)
            except FileExistsError:
                old = True
                if self._is_variant(given):
                    self._report.lose("folders became one, for the target does not tell their names apart", path)

        given = self._name(name, path, make)
        try:
            handle = os.open(given, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=self._here)
        except (NotADirectoryError, OSError) as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise errors.TargetExists("something that is no folder is in its place") from error
            raise
        self._levels.append(_Level(handle, node, path, old))
        self._names.append(name)

    def leave(self) -> None:
        """As ``filecontents.Sink`` says."""
        level = self._levels.pop()
        self._names.pop()
        try:
            # Nothing was asked of a folder that only stands above.
            if level.node is not None and level.node is not filecontents.PLAIN and (not level.old or self._force):
                self._dresser.dress(level.handle, level.node, level.path, folder=True)
                self._dresser.seal(level.handle, level.node, level.path)
            elif not level.old:
                os.fchmod(level.handle, 0o777 & ~self._dresser.mask)
        except OSError as error:
            self._report.lose(f"times or rights of a folder were not set ({error.strerror})", level.path)
        finally:
            os.close(level.handle)

    def file(self, name: str, node: nodes.Node, content: filecontents.Content, path: str) -> None:
        """As ``filecontents.Sink`` says."""
        with self._unnamed() as (handle, temporary):
            self._fill(handle, content)
            self._dresser.dress(handle, node, path)
            self._settle(handle)
            crashes.passing("files.before-name")
            given = self._name(name, path, lambda given: self._publish(handle, temporary, given))
        self._dresser.settle(self._here, given, node, path, last=not node.streams)

    def stream(self, name: str, stream: str, node: nodes.Node, content: filecontents.Content, path: str) -> None:
        """As ``filecontents.Sink`` says: of its file where that can have one, else a file beside."""
        if name:
            try:
                self._stream(name, stream, node, content, path)
            finally:
                last = stream == node.streams[-1][0]
                self._dresser.settle(self._here, self._given_name(name), node, path, last=last)
            return
        level, name = self._levels.pop(), self._names.pop()
        try:
            self._stream(name, stream, node, content, path)
        finally:
            self._levels.append(level)
            self._names.append(name)

    def _stream(self, name: str, stream: str, node: nodes.Node, content: filecontents.Content, path: str) -> None:
        if self._dresser.ntfs.stream(self._here, self._given_name(name), stream, content):
            return
        self.file(f"{name}:{stream}", filecontents.beside(node), content, path)
        self._report.lose(_BESIDE[self._dresser.ntfs.held], path)

    def _given_name(self, name: str) -> str:
        return self._given.get((*self._names, name), name)

    def link(self, name: str, first: tuple[str, ...], node: nodes.Node, path: str) -> bool:
        """As ``filecontents.Sink`` says."""
        handle = os.dup(self._levels[0].handle)
        try:
            for end in range(1, len(first)):
                given = self._given.get(first[:end], first[end - 1])
                below = os.open(given, os.O_PATH | os.O_DIRECTORY | _OPEN, dir_fd=handle)
                os.close(handle)
                handle = below
            source = self._given.get(first, first[-1])
            given = self._name(name, path, lambda given: self._over(given, lambda new: self._link(source, handle, new)))
            self._dresser.settle(self._here, given, node, path, last=False)
        except OSError as error:
            # A folder that was finished may let nobody in but root.
            if error.errno not in (*_NO_LINKS, errno.EACCES):
                raise
            why = "its folder lets nobody in" if error.errno == errno.EACCES else "the target links none"
            self._report.lose(f"further names of a file became files of their own, for {why}", path)
            return False
        finally:
            os.close(handle)
        return True

    def _link(self, source: str, folder: int, new: str) -> None:
        os.link(source, new, src_dir_fd=folder, dst_dir_fd=self._here, follow_symlinks=False)

    def symlink(self, name: str, node: nodes.Node, path: str) -> None:
        """As ``filecontents.Sink`` says."""
        if node.target is None or node.problem:
            raise errors.GuestUnreadable(f"where the link leads cannot be read: {node.problem}")
        target = node.target
        self._make(name, node, path, lambda new, here: os.symlink(target, new, dir_fd=here))

    def special(self, name: str, node: nodes.Node, path: str) -> bool:
        """As ``filecontents.Sink`` says."""
        device = node.format in (stat.S_IFBLK, stat.S_IFCHR)
        if node.format not in (stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK):
            self._report.lose("files of a kind that Linux does not know were left out", path)
            return False
        if device and not self._dresser.owner:
            self._report.lose("device nodes were left out, which only root may make", path)
            return False

        self._make(
            name, node, path, lambda new, here: os.mknod(new, node.format | 0o600, node.device or 0, dir_fd=here)
        )
        return True

    def _make(self, name: str, node: nodes.Node, path: str, create: Callable[[str, int], None]) -> None:
        """Make what is no file and no folder, by ``create`` under a name in an open folder, and dress it."""
        here = self._here

        def make(new: str) -> None:
            if self._dresser.ntfs.link(here, new, node, lambda: self._dresser.dress_at(here, new, node, path)):
                return
            with _refusing(here, new):
                create(new, here)
            self._dresser.dress_at(here, new, node, path)

        given = self._name(name, path, lambda given: self._over(given, make))
        self._dresser.settle(here, given, node, path, last=True)

    def finish(self) -> None:
        """As ``filecontents.Sink`` says."""
        handle = self._levels[0].handle
        if self._count > _ONE_BY_ONE:
            # Not os.sync, which waits for every file system of the machine.
            if ctypes.CDLL(None, use_errno=True).syncfs(handle):
                code = ctypes.get_errno()
                raise errors.TargetError(f"what was restored was not written out: {os.strerror(code)}")
        else:
            os.fsync(handle)

    # -- files -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _unnamed(self) -> Iterator[tuple[int, str | None]]:
        """A new file without a name; where that is not to be had with a temporary one, which does not stay."""
        handle, temporary = -1, None
        if self._nameless:
            try:
                handle = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._here)
            except OSError as error:
                if error.errno not in _NAMELESS:
                    raise
                self._nameless = False
        if handle < 0:
            temporary = filenames.temporary()
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=self._here)
        try:
            yield handle, temporary
        finally:
            os.close(handle)
            if temporary is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._here)

    @staticmethod
    def _fill(handle: int, content: filecontents.Content) -> None:
        for start, length in content.extents():
            for offset, data in content.pieces(start, length):
                files.pwrite_all(handle, data, offset)
        os.ftruncate(handle, content.size)

    def _settle(self, handle: int) -> None:
        self._count += 1
        if self._count <= _ONE_BY_ONE:
            os.fsync(handle)

    def _publish(self, handle: int, temporary: str | None, given: str) -> None:
        """Give a whole file its name."""
        if temporary is None:

            def name_it(new: str) -> None:
                os.link(f"/proc/self/fd/{handle}", new, dst_dir_fd=self._here, follow_symlinks=True)

            self._over(given, name_it)
            return
        try:
            self._over(given, lambda new: self._link(temporary, self._here, new))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._require_absent(given)
            os.rename(temporary, given, src_dir_fd=self._here, dst_dir_fd=self._here)

    def _require_absent(self, given: str) -> None:
        try:
            os.stat(given, dir_fd=self._here, follow_symlinks=False)
        except FileNotFoundError:
            return
        self._require_old(given)

    def _require_old(self, given: str) -> None:
        """Raise ``TargetExists`` unless what has a name may be written over: with ``force``, and none of our own."""
        if not self._force or given in self._levels[-1].made or self._is_variant(given):
            raise errors.TargetExists("something is in its place")

    def _is_variant(self, given: str) -> bool:
        """Whether a name that is taken stands for one that this restore made in another case: there are folders that
        do not tell them apart."""
        level = self._levels[-1]
        if given in level.made or given.casefold() not in level.folded:
            return False
        with os.scandir(level.handle) as entries:
            return all(entry.name != given for entry in entries)

    def _over(self, given: str, make: Callable[[str], None]) -> None:
        """Make something under a name: if that is taken, instead of what has it with ``force``, else not at all."""
        try:
            make(given)
            return
        except FileExistsError:
            self._require_old(given)
        temporary = filenames.temporary()
        make(temporary)
        try:
            if self._dresser.ntfs.held and len(given) > ntfstargets.LONGEST:
                os.unlink(given, dir_fd=self._here)
            os.rename(temporary, given, src_dir_fd=self._here, dst_dir_fd=self._here)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise errors.TargetExists("a folder is in its place") from error
            raise
        finally:
            # Renaming to another name of the same file leaves both.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._here)

    def _name(self, name: str, path: str, act: Callable[[str], None]) -> str:
        """Do something under a name, or under one that the target can hold; the name it got."""
        given = filenames.plain(name)
        try:
            act(given)
        except OSError as error:
            if error.errno not in _UNNAMEABLE:
                raise
            given = filenames.escaped(name, long=error.errno == errno.ENAMETOOLONG)
            if given == filenames.plain(name):
                raise
            act(given)
        self._levels[-1].made.add(given)
        self._levels[-1].folded.add(given.casefold())
        if given != name:
            self._given[(*self._names, name)] = given
            self._report.rename(path, given)
        return given


@contextlib.contextmanager
def _refusing(here: int, name: str) -> Iterator[None]:
    """A folder by FUSE that holds no links or special files may say that its device failed, and make a file instead."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        # Had something been there before, the answer would have been another.
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=here)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from error
