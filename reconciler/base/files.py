"""Durable file operations: what is said to be written survives a power cut, and a reader never sees half a file."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from reconciler.base import errors

#: Names of unfinished files begin with this, so that sweeping and listing know them.
TEMPORARY_PREFIX = ".tmp-"
#: Of Linux: names are relative to the working folder; two names change places.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(target: Path) -> Path:
    """A fresh unfinished name beside ``target``."""
    return target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{secrets.token_hex(4)}")


def exchange(one: Path, other: Path) -> None:
    """Let two names of one file system change places, in one step; their folders are not synced.

    Raises ``OSError``, with ``EINVAL`` or ``ENOSYS`` where the file system knows no such step, as NFS.
    """
    system = ctypes.CDLL(None, use_errno=True)
    if system.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def write_atomically(target: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write, fsync, rename over ``target``, fsync the folder. Nothing is left behind on failure."""
    temporary = temporary_name(target)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that is not there yet, and fsync it; its name is durable once its folder is."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        pwrite_all(handle, data, 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def pwrite_all(handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``, however many calls that takes."""
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


@contextlib.contextmanager
def unit_errors(unit: str) -> Iterator[None]:
    """Turn what the operating system says while a unit is used into the words of ``errors``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.UnitFull(
                f"storage unit {unit}: no space left",
                hint="free space, or let copies expire, then the next attempt goes on",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise errors.UnitReadOnly(
                f"storage unit {unit}: {error.strerror}: {error.filename or 'an open file'}",
                hint="check mount options and permissions",
            ) from error
        raise errors.UnitError(f"storage unit {unit}: {error.strerror}: {error.filename or 'an open file'}") from error
