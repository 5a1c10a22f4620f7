"""Where a restore puts a disk: a raw, qcow2 or vmdk file that appears under its name only when it is whole.

``operations`` opens one target per disk, writes its data, flushes, reads it back to prove it, and calls ``finish``.
Everything is written under a temporary name beside the final one, so a crash leaves nothing that looks like a disk; the
next restore of the same disk sweeps it. qcow2 and vmdk are written through ``qemu-nbd`` into the image itself, so a
restore needs the space of the data once. Fresh images read as zeros, so zeros are not written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from reconciler.base import crashes, digests, disks, errors, files
from reconciler.sources.diskimages import converted, raw
from reconciler.sources.nbd import bindings, qemu, servers

#: Suffix of each format's files.
SUFFIXES: Final = {"raw": ".img", "qcow2": ".qcow2", "vmdk": ".vmdk"}
#: Runs of zeros of this size and alignment become holes.
_GRANULE = 1 << 16
_LARGEST_WRITE = 8 << 20
_ZEROS = bytearray(_GRANULE)
#: Seconds that a write or the final flush may take before the server counts as hung.
_WRITE_PATIENCE = 1800.0


class Target(Protocol):
    """One disk being restored. ``pwrite`` is thread-safe; each byte is written at most once; the rest reads as zero."""

    @property
    def path(self) -> Path:
        """Its final name."""

    def pwrite(self, offset: int, data: disks.Buffer) -> None:
        """Write ``data`` at ``offset``. Raises ``TargetError``."""

    def settle(self) -> disks.Disk | None:
        """Make durable what was written so far and give it to read, or None where that must wait for ``flush``.

        Writing may go on meanwhile. Raises ``TargetError`` or ``SourceError``.
        """

    def flush(self) -> None:
        """Make what was written durable under its temporary name; nothing may be written after it. Idempotent."""

    def read_back(self) -> disks.Disk:
        """After ``flush``: what was written, over exactly the disk's size. Raises ``SourceError``."""

    def finish(self) -> None:
        """Give it its final name, durably. Raises ``TargetError`` or ``TargetExists``, leaving nothing behind."""

    def abort(self) -> None:
        """Give up and leave nothing behind. Idempotent; does nothing after ``finish``."""


def restored_names(names: Sequence[str], format: str) -> dict[str, str]:
    """File names for the disks of one machine: each without its last suffix, with that of ``format``.

    Disks that would collide (``a.img`` and ``a.qcow2``) keep their whole name before the new suffix (``a.img.img`` and
    ``a.qcow2.img``). What would leave the folder or hide the file is percent-encoded: a slash, and a dot at the start.
    """
    suffix = SUFFIXES[format]
    short = {name: _safe(Path(name).stem if "/" not in name else name.rpartition(".")[0] or name) for name in names}
    long = {name: _safe(name) for name in names}
    chosen = dict(short)
    while True:
        taken = [name.casefold() for name in chosen.values()]
        colliding = [name for name in chosen if taken.count(chosen[name].casefold()) > 1 and chosen[name] != long[name]]
        if not colliding:
            return {name: base + suffix for name, base in chosen.items()}
        chosen |= {name: long[name] for name in colliding}


def _safe(name: str) -> str:
    quoted = name.replace("/", urllib.parse.quote("/", safe="")).replace("\0", "%00")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted or "%"


def open_target(format: str, path: Path, size: int, *, force: bool = False) -> Target:
    """Begin to write a disk of ``size`` bytes to ``path``.

    ``raw`` has exactly ``size`` bytes; ``qcow2`` and ``vmdk`` count in sectors, so their virtual size is rounded up to
    512 bytes with zeros. Raises ``TargetExists`` unless ``force``, ``TargetError``, or ``SourceError`` where qemu is
    missing.
    """
    if not force and os.path.lexists(path):
        raise _exists(path)
    return RawTarget(path, size, force=force) if format == "raw" else ImageTarget(format, path, size, force=force)


def read_back(format: str, path: Path, size: int) -> disks.Disk:
    """The first ``size`` bytes of a finished target as a Disk, to prove what was written. Raises ``SourceError``."""
    # What is still in memory would prove the memory; dropped pages are read from the device.
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if format == "raw":
        return raw.RawDisk(path.name, path, size=size)
    node = {"driver": format, "read-only": True, "file": {"driver": "file", "filename": str(path)}}
    return converted.ConvertedDisk(path.name, {**node, "backing": None}, size=size)


def _exists(path: Path) -> errors.TargetExists:
    return errors.TargetExists(f"{path} exists", hint="restore to another folder, or give --force to replace it")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Say which target a failure concerns."""
    try:
        yield
    except servers.ServerFailed as error:
        raise _failed(path, error.number, error.message) from error
    except OSError as error:
        raise _failed(path, error.errno or errno.EIO, error.strerror or str(error)) from error


def _failed(path: Path, number: int, message: str) -> errors.TargetError:
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return errors.TargetError(
            f"{path}: no space left for this disk", hint="free space or restore to another folder"
        )
    return errors.TargetError(f"{path}: {message}", hint="check the folder's permissions and its device")


def data_runs(data: disks.Buffer, offset: int) -> Iterator[tuple[int, memoryview]]:
    """The parts of ``data``, which lies at ``offset``, that are not aligned runs of zeros: (offset, bytes) each."""
    view = memoryview(data).cast("B")
    begin = -1
    position = 0
    while position < len(view):
        step = min(_GRANULE - (offset + position) % _GRANULE, len(view) - position)
        # A bytearray compares with any buffer by memcmp; a memoryview would compare byte by byte.
        zero = (_ZEROS if step == _GRANULE else bytearray(step)) == view[position : position + step]
        if zero and begin >= 0:
            yield offset + begin, view[begin:position]
            begin = -1
        elif not zero and begin < 0:
            begin = position
        position += step
    if begin >= 0:
        yield offset + begin, view[begin:]


class _Unfinished:
    """The temporary file of a target: locked while its writer lives, so that a later restore knows what to sweep."""

    def __init__(self, path: Path) -> None:
        self.final = path
        # The name may be as long as the file system allows, so only its beginning is repeated.
        stem = f"{files.TEMPORARY_PREFIX}{path.name[:40]}-{digests.digest(os.fsencode(path.name)).hex()[:16]}-"
        for left in path.parent.iterdir():
            if left.name.startswith(stem):
                self._sweep(left)
        while True:
            self.path = path.with_name(stem + secrets.token_hex(4)).absolute()
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.handle, fcntl.LOCK_EX)
            if os.fstat(self.handle).st_nlink:
                return
            os.close(self.handle)  # swept by another restore before it was locked

    @staticmethod
    def _sweep(left: Path) -> None:
        with contextlib.suppress(OSError):  # another restore's, or gone already: then it is not ours to remove
            handle = os.open(left, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)

    def publish(self, *, force: bool) -> None:
        """Take the final name, durably; the content is durable already. Raises ``OSError`` or ``TargetExists``."""
        crashes.passing("restore.before-rename")
        if force:
            self.path.replace(self.final)
        else:
            self._link()
        files.sync_folder(self.final.parent)

    def _link(self) -> None:
        """A rename that fails where the name was taken since; where links are not supported, a look must do."""
        try:
            os.link(self.path, self.final, follow_symlinks=False)
        except FileExistsError as error:
            raise _exists(self.final) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.path.lexists(self.final):
                raise _exists(self.final) from error
            self.path.rename(self.final)
            return
        self.path.unlink()

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and remove it unless it was published."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


class _Writing:
    """What both kinds of target share: the temporary file, its end, and the proof."""

    def __init__(self, format: str, path: Path, size: int, *, force: bool) -> None:
        self.path = path
        self._format = format
        self._size = size
        self._force = force
        self._lock = threading.RLock()
        self._sealed = self._done = False
        with _translated(path):
            self._file = _Unfinished(path)

    def _seal(self) -> None:
        """Hand everything to the file system, in order."""

    def _release(self) -> None:
        """Let go of whatever writes."""

    def flush(self) -> None:
        """Seal and sync the temporary file."""
        with self._lock, _translated(self.path):
            if not self._sealed:
                self._seal()
                os.fsync(self._file.handle)
                self._sealed = True

    def read_back(self) -> disks.Disk:
        """The temporary file as a Disk."""
        if not self._sealed:
            raise ValueError(f"{self.path} is still being written")
        return read_back(self._format, self._file.path, self._size)

    def finish(self) -> None:
        """Flush, rename, sync the folder; or remove the temporary file."""
        with self._lock:
            if self._done:
                raise ValueError(f"{self.path} is finished already")
            try:
                self.flush()
                with _translated(self.path):
                    self._file.publish(force=self._force)
            except BaseException:
                self.abort()
                raise
            self._done = True
            self._release()
            self._file.close(remove=False)

    def abort(self) -> None:
        """Let go, and remove the temporary file."""
        with self._lock:
            if not self._done:
                self._done = True
                self._release()
                self._file.close(remove=True)


class RawTarget(_Writing):
    """A sparse raw file of exactly the disk's size."""

    def __init__(self, path: Path, size: int, *, force: bool) -> None:
        """Make the temporary file. Raises ``TargetError``."""
        super().__init__("raw", path, size, force=force)
        try:
            with _translated(path):
                os.ftruncate(self._file.handle, size)
        except BaseException:
            self.abort()
            raise

    def pwrite(self, offset: int, data: disks.Buffer) -> None:
        """Write what is not zero."""
        with _translated(self.path):
            for position, run in data_runs(data, offset):
                files.pwrite_all(self._file.handle, run, position)

    def settle(self) -> disks.Disk:
        """What was written so far."""
        with _translated(self.path):
            os.fdatasync(self._file.handle)
        return read_back("raw", self._file.path, self._size)


class ImageTarget(_Writing):
    """A qcow2 or monolithic sparse vmdk, written through ``qemu-nbd``."""

    def __init__(self, format: str, path: Path, size: int, *, force: bool) -> None:
        """Make an empty image under the temporary name and serve it. Raises ``TargetError`` or ``SourceError``."""
        bindings.libnbd()
        super().__init__(format, path, size, force=force)
        self._server: servers.NbdServer | None = None
        try:
            self._server = self._serve(format, -(-size // 512) * 512)
        except BaseException:
            self.abort()
            raise

    def _serve(self, format: str, size: int) -> servers.NbdServer:
        done = converted.tool(["create", "-q", "-f", format, str(self._file.path), str(size)])
        if done.returncode:
            number = errno.ENOSPC if "No space left" in done.stderr else errno.EIO
            raise _failed(self.path, number, qemu.without_node(done.stderr))
        node: dict[str, Any] = {"driver": format, "file": {"driver": "file", "filename": str(self._file.path)}}
        with _translated(self.path):
            # Syncs in between would protect a file that a crash makes worthless anyway; `flush` syncs the whole of it.
            return qemu.serve(node, ["--cache=unsafe"], patience=_WRITE_PATIENCE, grace=_WRITE_PATIENCE)

    @property
    def _open_server(self) -> servers.NbdServer:
        if self._server is None:
            raise ValueError(f"{self.path} is finished already")
        return self._server

    def pwrite(self, offset: int, data: disks.Buffer) -> None:
        """Write what is not zero."""
        for position, run in data_runs(data, offset):
            for start in range(0, len(run), _LARGEST_WRITE):
                with _translated(self.path), self._open_server.connection() as handle:
                    handle.pwrite(run[start : start + _LARGEST_WRITE], position + start)

    def settle(self) -> None:
        """Another process could not read an image whose tables are still in the memory of its writer."""

    def _seal(self) -> None:
        server = self._open_server
        with server.connection() as handle:
            handle.flush()
        server.close()
        if server.exit_code != 0:
            raise servers.ServerFailed(f"qemu-nbd ended with {server.exit_code} instead of closing the image")
        self._server = None

    def _release(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
