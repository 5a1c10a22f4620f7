"""Disks by an export lease on their snapshot: whole, packed, and only for those who name this way.

While its lease lives a machine cannot be started, moved or removed, and neither can the snapshot. So a lease is held
for no longer than one disk takes to arrive: it is unpacked into a sparse file that has no name, and read from there. A
stream that breaks is asked for anew from its beginning, which is all that a lease allows.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import disks, errors, extents, files
from reconciler.sources.diskimages import raw
from reconciler.sources.vmdk import streamoptimized
from reconciler.sources.vsphere.connections import leases
from reconciler.sources.vsphere.transports import ports

#: Pauses before a stream is asked for anew, in seconds.
PAUSES: Final = (1.0, 5.0)
_SECTOR: Final = 512
#: The end of a file's key, such as ``ParaVirtualSCSIController0:1``.
_DEVICE: Final = re.compile(r"([A-Za-z]+?)(\d+):(\d+)")
_CONTROLLERS: Final = (("NVME", "nvme"), ("AHCI", "sata"), ("SATA", "sata"), ("IDE", "ide"), ("", "scsi"))


class Export:
    """The transport ``export``."""

    name = "export"

    def __init__(
        self, folder: Path | None = None, *, patience: float = leases.PATIENCE, pauses: Sequence[float] = PAUSES
    ) -> None:
        """``folder``: where disks wait to be read, TMPDIR or ``/var/tmp`` by default; ``patience``: seconds of silence
        before a transfer is given up."""
        self._folder = folder or Path(os.environ.get("TMPDIR") or "/var/tmp")
        self._patience, self._pauses = patience, tuple(pauses)

    def refuses(self, frozen: ports.Frozen) -> str | None:
        """Whether the disk is none that a lease gives."""
        if frozen.disk.kind == "RawPhysical":
            return "the disk is a raw device in physical compatibility, which no snapshot holds"
        return None

    def open(self, frozen: ports.Frozen) -> disks.Disk:
        """The disk, once all of it has arrived. Raises ``SourceError`` or ``Cancelled``."""
        reason = self.refuses(frozen)
        if reason is not None:
            raise errors.SourceError(f"{frozen.words}: {reason}", hint="name another transport")
        try:
            return self._leased(frozen)
        except leases.Ended:
            # Whoever ended it, or let it run out, need not do so again.
            return self._leased(frozen)

    def _leased(self, frozen: ports.Frozen) -> disks.Disk:
        doing = f"{frozen.words}: export"
        snapshot = frozen.session.object(vim.vm.Snapshot, frozen.snapshot)
        lease = frozen.session.act(doing, snapshot.ExportSnapshot)
        with leases.Lease(frozen.session, lease, doing, frozen.meter) as held:
            url = _file_of(held.urls, frozen, doing)
            _room(self._folder, min(frozen.disk.size, url.size or frozen.disk.size), doing)
            disk = SpooledDisk(frozen.disk.label, frozen.disk.size, self._folder, doing)
            try:
                self._fetch(held, url, frozen, disk)
            except BaseException:
                disk.close()
                raise
            # The disk is here and proven whole: a lease that cannot be told so is aborted instead.
            with contextlib.suppress(errors.SourceError):
                held.complete()
        return disk

    def _fetch(self, lease: leases.Lease, url: leases.Url, frozen: ports.Frozen, disk: SpooledDisk) -> None:
        for pause in (*self._pauses, None):
            disk.empty()
            try:
                self._unpack(lease, url, frozen, disk)
                return
            except (_NoRoom, leases.Ended):
                raise
            except errors.SourceError as error:
                ended = lease.why()
                if ended is not None or pause is None:
                    raise ended or error from error
                lease.progress(0.0)
            end = time.monotonic() + pause
            while (left := end - time.monotonic()) > 0:
                frozen.meter.check()
                time.sleep(min(left, 0.2))

    def _unpack(self, lease: leases.Lease, url: leases.Url, frozen: ports.Frozen, disk: SpooledDisk) -> None:
        doing = f"{frozen.words}: export"
        with lease.connection(url, self._patience) as (connection, path):
            ours = (connection.host, connection.port) == (frozen.session.spec.server, frozen.session.spec.port)
            # The session is the vCenter's and nobody else's business; hosts go by the ticket in the path.
            connection.request("GET", path, headers={"Cookie": frozen.session.cookie()} if ours else {})
            answer = connection.getresponse()
            if answer.status != 200:
                raise leases.refused(answer.status, answer.reason, answer.read(1 << 12), doing)
            body = _Body(answer, lease, url.size or frozen.disk.size)
            streamoptimized.unpack(frozen.words, body, disk.put, frozen.disk.size, frozen.meter)


class _Body:
    """What arrives; the lease hears of it."""

    def __init__(self, answer: http.client.HTTPResponse, lease: leases.Lease, expected: int) -> None:
        self._answer, self._lease, self._expected = answer, lease, max(expected, 1)
        self._arrived = 0

    def read(self, amount: int, /) -> bytes:
        piece = self._answer.read(amount)
        self._arrived += len(piece)
        self._lease.progress(min(1.0, self._arrived / self._expected))
        return piece


def _file_of(urls: Sequence[leases.Url], frozen: ports.Frozen, doing: str) -> leases.Url:
    """The file of the lease that is the disk."""
    candidates = [url for url in urls if url.disk]
    found = [url for url in candidates if frozen.disk.slot and _slot(url.key) == frozen.disk.slot]
    if len(found) == 1:
        return found[0]
    if len(candidates) == 1 and not found and _slot(candidates[0].key) is None:
        return candidates[0]
    shown = ", ".join(url.key for url in candidates) or "none"
    raise errors.SourceError(
        f"{doing}: the lease does not tell which of its disks is at {frozen.disk.slot or 'an unknown place'}: {shown}",
        hint="name another transport",
    )


def _slot(key: str) -> str | None:
    """``scsi0:1`` of ``/vm-7/ParaVirtualSCSIController0:1``; None of what names no place."""
    found = _DEVICE.fullmatch(key.rpartition("/")[2])
    if found is None:
        return None
    kind = next(word for part, word in _CONTROLLERS if part in found[1].upper())
    return f"{kind}{found[2]}:{found[3]}"


class _NoRoom(errors.SourceError):
    """The folder for what arrives has no space for it."""


def _room(folder: Path, wanted: int, doing: str) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise errors.SourceError(
            f"{doing}: {folder}: {error.strerror}", hint="set TMPDIR to a folder with space"
        ) from error
    if free < wanted:
        raise _NoRoom(
            f"{doing}: {folder} has {free} bytes free, the disk may need {wanted}",
            hint="set TMPDIR to a folder with space, or name another transport",
        )


class SpooledDisk(disks.Closing):
    """A disk in a sparse file without a name, which is gone when it is closed, however that comes. Thread-safe."""

    sector = _SECTOR

    def __init__(self, name: str, size: int, folder: Path, doing: str) -> None:
        """Make the file in ``folder``; ``doing`` begins messages. Raises ``SourceError``."""
        self.name = name
        self.size = size
        self._doing = doing
        self._folder = folder
        self._lock = threading.Lock()
        self._ranges: extents.Extents | None = None
        with self._translated():
            self._file: Any = tempfile.TemporaryFile(dir=folder, prefix="holdfast-export-")  # noqa: SIM115
        self.empty()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _NoRoom(
                    f"{self._doing}: {self._folder}: no space left",
                    hint="set TMPDIR to a folder with space, or name another transport",
                ) from error
            raise errors.SourceError(f"{self._doing}: {self._folder}: {error.strerror}") from error

    def empty(self) -> None:
        """Begin anew: all of it reads as zero."""
        with self._translated():
            os.ftruncate(self._file.fileno(), 0)
            os.ftruncate(self._file.fileno(), self.size)

    def put(self, offset: int, data: disks.Buffer) -> None:
        """Write what arrived."""
        with self._translated():
            files.pwrite_all(self._file.fileno(), data, offset)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``SourceError``."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        with self._translated():
            data = os.pread(self._file.fileno(), length, offset)
            while len(data) < length:
                more = os.pread(self._file.fileno(), length - len(data), offset + len(data))
                if not more:
                    raise errors.SourceError(f"{self._doing}: its file ends at {offset + len(data)}")
                data += more
        return data

    def close(self) -> None:
        """Give its space back. Idempotent."""
        self._file.close()

    def extents(self) -> extents.Extents:
        """What arrived, found at the first call."""
        with self._lock:
            if self._ranges is None:
                self._ranges = raw.data_ranges(self._file.fileno(), self.size)
            return self._ranges
