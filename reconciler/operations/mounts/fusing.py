"""A tree at a mount point, read-only, by FUSE.

``mount`` returns when the folder can be used; libfuse serves in threads of this process. ``close`` unmounts, a folder
that somebody still stands in too, so that nobody waits. When this process dies, ``fusermount3``, which waits for that,
unmounts. What cannot be read is ``EIO`` for who reads it, and a line in the log that names file and reason. The one
importer of mfusepy: a mount without FUSE in the system is an error that names the package, and all else works.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from reconciler.base import errors
from reconciler.operations import fileplaces, ntfstargets
from reconciler.operations.mounts import trees

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")
#: Names of libfuse's third version, the newest first.
_LIBRARIES: Final = ("libfuse3.so.4", "libfuse3.so.3")
_INSTALL: Final = "install the Debian package fuse3"
#: Seconds until a mount that does not answer counts as failed, and for its end.
_PATIENCE: Final = 30.0
_GRACE: Final = 3.0
#: Seconds for which the kernel may keep what it was told: nothing ever changes.
_LASTING: Final = 3600
#: Reasons that are logged at most.
_MANY: Final = 1000


class _Operations:
    """What libfuse calls, by the names it knows. Paths come as Latin-1, which stands for any bytes."""

    use_ns = True

    def __init__(self, tree: trees.Tree, ready: Callable[[], None]) -> None:
        self._tree, self._ready = tree, ready
        self._told: set[tuple[str, str]] = set()

    def init_with_config(self, _connection: Any, _config: Any) -> None:
        self._ready()

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        return self._ask(path, lambda item: item.stat())

    def readlink(self, path: str) -> str:
        return self._ask(path, lambda item: item.target()).decode("latin-1")

    def opendir(self, _path: str) -> int:
        return 0

    def readdir(self, path: str, _handle: int) -> Iterator[tuple[str, dict[str, int], int]]:
        yield ".", {}, 0
        yield "..", {}, 0
        with self._answering(path):
            for name, item in self._tree.list(path.encode("latin-1")):
                yield name.decode("latin-1"), item.stat(), 0

    def releasedir(self, _path: str, _handle: int) -> int:
        return 0

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._ask(path, lambda item: item.stat())
        return 0

    def read(self, path: str, size: int, offset: int, _handle: int) -> bytes:
        return bytes(self._ask(path, lambda item: item.read(offset, size)))

    def release(self, _path: str, _handle: int) -> int:
        return 0

    def listxattr(self, path: str) -> list[str]:
        # As NTFS-3G does: who asks for one by its name is told, and who copies all copies none that no target takes.
        names = (name.decode("latin-1") for name in self._ask(path, lambda item: item.xattrs()))
        return [name for name in names if not name.startswith(ntfstargets.PREFIX)]

    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        wanted = name.encode("latin-1")

        def value(item: trees.Item) -> bytes:
            try:
                return item.xattrs()[wanted]()
            except KeyError:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

        return self._ask(path, value)

    def statfs(self, _path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255, "f_flag": os.ST_RDONLY}

    def _ask(self, path: str, what: Callable[[trees.Item], _T]) -> _T:
        with self._answering(path):
            return what(self._tree.look(path.encode("latin-1")))

    @contextlib.contextmanager
    def _answering(self, path: str) -> Iterator[None]:
        """Turns what went wrong into what the reader is told, and into a line of the log."""
        try:
            yield
        except errors.NotFound as error:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        except (errors.HoldfastError, ValueError) as error:
            shown = fileplaces.readable(os.fsdecode(path.encode("latin-1")))
            if (shown, str(error)) not in self._told and len(self._told) < _MANY:
                self._told.add((shown, str(error)))
                _LOGGER.error("%s: %s", shown, error)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


class Mount:
    """A tree at its mount point. Thread-safe; ``close`` is idempotent."""

    def __init__(self, tree: trees.Tree, folder: Path, name: str) -> None:
        self.folder = folder
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._closed = False
        self._failure: BaseException | None = None
        library = _library()
        self._made = _require_free(folder)
        self._thread = threading.Thread(
            target=self._serve, args=(library, _Operations(tree, self._started), name), name="fuse", daemon=True
        )
        self._thread.start()
        if not self._ready.wait(_PATIENCE) or self._ended.is_set():
            self.close()
            raise errors.TargetError(
                f"{folder} cannot be mounted: {self._failure or 'FUSE does not answer'}",
                hint="check that /dev/fuse exists and that this user may mount",
            )

    @property
    def alive(self) -> bool:
        """Whether it is mounted."""
        return not self._ended.is_set()

    def close(self) -> None:
        """Unmount. Whoever still has something open there gets errors from now on."""
        if self._closed:
            return
        self._closed = True
        if not self._ended.is_set() and not _unmount(self.folder):
            _LOGGER.warning("%s is in use and was detached; what is open there gives errors from now on", self.folder)
            _unmount(self.folder, lazily=True)
        self._thread.join(_GRACE)
        if self._made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _started(self) -> None:
        self._ready.set()

    def _serve(self, library: Any, operations: _Operations, name: str) -> None:
        try:
            library.FUSE(
                operations,
                # The library encodes all that it is given alike.
                os.fsencode(self.folder).decode("latin-1"),
                encoding="latin-1",
                foreground=True,
                ro=True,
                # What outlives a kill -9 of this process is a helper, which then unmounts.
                auto_unmount=True,
                fsname=name.replace(",", "_"),
                subtype="holdfast",
                # Without it libfuse 3.14 complains of its own default.
                max_idle_threads=10,
                use_ino=True,
                kernel_cache=True,
                entry_timeout=_LASTING,
                attr_timeout=_LASTING,
                negative_timeout=_LASTING,
            )
        except (OSError, RuntimeError) as error:
            self._failure = error
        finally:
            self._ended.set()
            self._ready.set()


def mount(tree: trees.Tree, folder: Path, name: str) -> Mount:
    """Show ``tree`` at ``folder``, which is made if need be; ``name`` is what ``mount`` lists as its source.

    Raises ``TargetError`` where FUSE is missing or refuses, or where the mount of somebody who died is left, and
    ``TargetExists`` where the folder holds something.
    """
    return Mount(tree, folder.absolute(), name)


def missing() -> str | None:
    """Which package is missing to mount anything; None if nothing is."""
    try:
        _library()
    except errors.TargetError as error:
        return str(error)
    return None


def _library() -> Any:
    """The module mfusepy, over libfuse 3. Raises ``TargetError`` that names the package."""
    if shutil.which("fusermount3") is None:
        raise errors.TargetError("a folder of files needs FUSE", hint=_INSTALL)
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            os.environ.setdefault("FUSE_LIBRARY_PATH", name)
            break
    try:
        # The library looks for libfuse while it is imported, and fails where there is none.
        import mfusepy
    except (ImportError, OSError, AttributeError) as error:
        raise errors.TargetError(f"a folder of files needs libfuse 3: {error}", hint=_INSTALL) from error
    return mfusepy


def _require_free(folder: Path) -> bool:
    """Make the folder; whether it had to be made."""
    try:
        folder.mkdir(parents=True)
        return True
    except FileExistsError:
        _require_empty(folder)
        return False
    except OSError as error:
        raise errors.TargetError(f"{folder} cannot be made: {error.strerror}") from error


def _require_empty(folder: Path) -> None:
    try:
        if any(os.scandir(folder)):
            raise errors.TargetExists(f"{folder} is not empty", hint="mount at an empty folder, or at a new one")
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise errors.TargetError(
                f"{folder} is a mount whose server has died", hint=f"take it away: fusermount3 -uz {folder}"
            ) from error
        raise errors.TargetError(f"{folder} cannot be mounted at: {error.strerror}") from error


def _unmount(folder: Path, *, lazily: bool = False) -> bool:
    command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=_PATIENCE)
    return done.returncode == 0
