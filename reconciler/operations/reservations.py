"""Space in a holding area: who has how much of it, and what dead jobs left in it.

Every job that holds a machine has a sub-folder with the file ``reservation`` in it: its size in bytes, under a lock
that lives as long as the job. So any process that uses the area, of any catalog, sees what is promised to whom; a
reservation that nobody locks is a dead job's, and its folder goes. The area's own lock is held only while one is made
or swept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from reconciler.base import errors, quantities

_log = logging.getLogger(__name__)

_LOCK: Final = ".holdfast.lock"
_RESERVATION: Final = "reservation"
#: Seconds between two looks of who waits.
_PAUSE: Final = 1.0
#: Ours are named after the job, with some letters that tell catalogs apart which share an area.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*\.[0-9a-f]{8}")


class HoldingAreaFull(errors.SourceError):
    """There is no room in the holding area now; ``need`` bytes are."""

    def __init__(self, message: str, *, hint: str | None = None, need: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.need = need


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What an area holds now; in bytes."""

    #: Promised to living jobs.
    promised: int
    #: What of it they have not written yet.
    coming: int
    #: Free on the file system.
    free: int
    #: How many jobs have a promise.
    jobs: int


class Reservation:
    """A folder with a promise of space. Close it to give both back."""

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self._handle = handle

    def close(self) -> None:
        """Remove the folder, then the lock. Idempotent. Raises nothing: what cannot be removed is swept later."""
        if self._handle >= 0:
            _remove(self.folder)
            os.close(self._handle)
            self._handle = -1


def reserve(area: Path, limit: int, job: str, need: int) -> Reservation:
    """Promise ``need`` bytes of ``area``, of which all jobs together get at most ``limit``.

    Raises ``HoldingAreaFull``, or ``SourceError`` where the area cannot be used at all.
    """
    with _locked(area):
        _require(area, limit, need, _look(area))
        folder = area / f"{job}.{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        handle = os.open(folder / _RESERVATION, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(handle, json.dumps({"job": job, "bytes": need}).encode())
        except BaseException:
            os.close(handle)
            _remove(folder)
            raise
        return Reservation(folder, handle)


def wait(area: Path, limit: int, need: int, check: Callable[[], None], log: Callable[[str], None]) -> None:
    """Wait until ``need`` bytes would fit, as long as jobs live that will give theirs back.

    ``check`` raises ``Cancelled``. Raises as ``reserve`` does where there is nobody to wait for.
    """
    told = False
    while True:
        check()
        found = usage(area)
        try:
            _require(area, limit, need, found)
            return
        except HoldingAreaFull as error:
            if need > limit or not found.jobs:
                raise
            if not told:
                log(f"waits, with nothing frozen: {error.message}")
                told = True
        time.sleep(_PAUSE)


def _require(area: Path, limit: int, need: int, found: Usage) -> None:
    if found.promised + need > limit:
        _refuse(area, need, limit - found.promised, f"maxSize is {quantities.show_size(limit)}", need > limit)
    if found.coming + need > found.free:
        size = quantities.show_size(found.free)
        _refuse(area, need, found.free - found.coming, f"its file system has {size} free", False)


def usage(area: Path) -> Usage:
    """What the area holds, after removing what dead jobs left. Raises ``SourceError``."""
    with _locked(area):
        return _look(area)


def sweep(area: Path) -> None:
    """Remove what dead jobs left. An area that cannot be used now is left to the jobs that need it, to complain of."""
    try:
        usage(area)
    except errors.SourceError as error:
        _log.info("not swept: %s", error)


def _refuse(area: Path, need: int, left: int, why: str, never: bool) -> None:
    raise HoldingAreaFull(
        f"holding area {area}: {quantities.show_size(need)} are needed, {quantities.show_size(max(left, 0))} are left;"
        f" {why}",
        hint="raise maxSize: this machine alone needs more" if never else "it goes on when other jobs have ended",
        need=need,
    )


@contextlib.contextmanager
def _locked(area: Path) -> Iterator[None]:
    """Alone in the area. What the file system refuses becomes a ``SourceError``."""
    with told(area):
        handle = os.open(area / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@contextlib.contextmanager
def told(area: Path) -> Iterator[None]:
    """Turn what the operating system says while the area is used into the words of ``errors``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HoldingAreaFull(
                f"holding area {area}: no space left on its file system",
                hint="something else fills it; free space there, it is tried again",
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise errors.SourceError(
                f"holding area {area}: there is no such folder", hint="make it, or mount it"
            ) from error
        raise errors.SourceError(
            f"holding area {area}: {error.strerror}: {error.filename or 'an open file'}",
            hint="check mount options and permissions",
        ) from error


def _look(area: Path) -> Usage:
    promised = coming = jobs = 0
    for folder in sorted(area.iterdir()):
        if folder.is_dir() and not folder.is_symlink() and _NAME.fullmatch(folder.name):
            size = _living(folder)
            if size is not None:
                jobs += 1
                promised += size
                coming += max(size - _occupied(folder), 0)
    return Usage(promised=promised, coming=coming, free=free(area), jobs=jobs)


def free(area: Path) -> int:
    """Bytes that are free on the area's file system. Raises ``OSError``."""
    system = os.statvfs(area)
    return system.f_bavail * system.f_frsize


def _living(folder: Path) -> int | None:
    """What is promised to a folder's job; None where that is dead, and then the folder is gone."""
    try:
        handle = os.open(folder / _RESERVATION, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Whoever makes one holds the area's lock, as we do: it died before it wrote a byte, or was half removed.
        # A folder that is not empty and was never a reservation is somebody else's.
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(json.loads(os.pread(handle, 4096, 0))["bytes"])
        _remove(folder)
        return None
    finally:
        os.close(handle)


def _occupied(folder: Path) -> int:
    found = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its job ended meanwhile
            found += path.lstat().st_blocks * 512
    return found


def _remove(folder: Path) -> None:
    """The reservation goes last: as long as anything is left, the folder is known as ours."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != _RESERVATION:
                path.unlink()
        (folder / _RESERVATION).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
