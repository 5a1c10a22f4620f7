"""The temporary file of a disk being restored, beside its final name, locked while its writer lives.

What a killed restore left is found again by the next one: it is continued where it is of the very same disk of the same
image in the same form, which its name tells, and removed where it is of another. Its content is believed in neither
case; whoever continues it proves what is there. One that a living restore holds is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from reconciler.base import crashes, digests, errors, files
from reconciler.sources.nbd import servers


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Say which target a failure concerns."""
    try:
        yield
    except servers.ServerFailed as error:
        raise failed(path, error.number, error.message) from error
    except OSError as error:
        raise failed(path, error.errno or errno.EIO, error.strerror or str(error)) from error


def failed(path: Path, number: int, message: str) -> errors.TargetError:
    """The error of a target that cannot be written."""
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return errors.TargetError(
            f"{path}: no space left for this disk", hint="free space or restore to another folder"
        )
    return errors.TargetError(f"{path}: {message}", hint="check the folder's permissions and its device")


def exists(path: Path) -> errors.TargetExists:
    """The error of a name that is taken."""
    return errors.TargetExists(f"{path} exists", hint="restore to another folder, or give --force to replace it")


def reusable(path: Path) -> int:
    """Bytes of space that what dead restores of ``path`` left takes: the next one continues or removes it."""
    found = 0
    with contextlib.suppress(OSError):  # no folder, or one that cannot be read: then nothing is known of it
        for left in path.parent.iterdir():
            if left.name.startswith(_stem(path)):
                found += left.stat(follow_symlinks=False).st_blocks * 512
    return found


def half_named(path: Path, identity: str | None) -> bool:
    """Whether ``path`` is what a dead restore of the same disk had named already when it died before its end."""
    if identity is None or not os.path.lexists(path):
        return False
    there = path.stat(follow_symlinks=False)
    names = _stem(path) + _own(identity)
    left = (one.stat(follow_symlinks=False) for one in path.parent.iterdir() if one.name.startswith(names))
    return any((one.st_dev, one.st_ino) == (there.st_dev, there.st_ino) for one in left)


def _own(identity: str) -> str:
    return digests.digest(identity.encode()).hex()[:16] + "-"


def _stem(path: Path) -> str:
    # The name may be as long as the file system allows, so only its beginning is repeated.
    return f"{files.TEMPORARY_PREFIX}{path.name[:40]}-{digests.digest(os.fsencode(path.name)).hex()[:16]}-"


class Unfinished:
    """One temporary file, open and locked."""

    def __init__(self, path: Path, identity: str | None) -> None:
        """``identity``: what the disk is, so that another attempt at the same may go on; None where none may."""
        self.final = path
        stem = _stem(path)
        own = "" if identity is None else _own(identity)
        #: Whether an earlier attempt's file is continued.
        self.continued = False
        for left in sorted(path.parent.iterdir()):
            if left.name.startswith(stem):
                self._take(left, bool(own) and left.name.startswith(stem + own))
        while not self.continued:
            self.path = path.with_name(stem + own + secrets.token_hex(4)).absolute()
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.handle, fcntl.LOCK_EX)
            if os.fstat(self.handle).st_nlink:
                return
            os.close(self.handle)  # swept by another restore before it was locked

    def _take(self, left: Path, same: bool) -> None:
        """Continue or remove what is left of a dead attempt."""
        with contextlib.suppress(OSError):  # another restore's, or gone already: then it is not ours
            handle = os.open(left, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(handle)
                ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
                if same and ours and not self.continued:
                    self.path, self.handle, self.continued = left.absolute(), handle, True
                    handle = -1
                else:
                    left.unlink()
            finally:
                if handle >= 0:
                    os.close(handle)

    def begin_anew(self) -> None:
        """Forget what an earlier attempt left in the file. Raises ``OSError``."""
        os.ftruncate(self.handle, 0)
        self.continued = False

    def publish(self, *, force: bool, keep: bool = False) -> None:
        """Take the final name, durably; the content is durable already. Raises ``OSError`` or ``TargetExists``.

        ``keep``: without ``force``, stay under the temporary name too, so that whoever comes after a crash knows whose
        it is (``half_named``), until ``close`` removes that.
        """
        crashes.passing("restore.before-rename")
        if force:
            self.path.replace(self.final)
        else:
            self._link(keep)
        files.sync_folder(self.final.parent)

    def _link(self, keep: bool) -> None:
        """A rename that fails where the name was taken since; where links are not supported, a look must do."""
        try:
            os.link(self.path, self.final, follow_symlinks=False)
        except FileExistsError as error:
            raise exists(self.final) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.path.lexists(self.final):
                raise exists(self.final) from error
            self.path.rename(self.final)
            return
        if not keep:
            self.path.unlink()

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and remove it unless it was published."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.handle)
