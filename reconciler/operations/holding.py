"""The holding area: a machine is copied to a local folder at full speed, let go, and only then stored.

``backups`` calls ``hold`` between its freeze and its first byte on a unit. What it gets back is a reading like any
other, over local files: the snapshot is gone, the after hooks have run, and the unit may take all the time it needs.
Only what the backup will read is copied. Whoever reads anything else meets ``NotHeld``, never zeros, and the backup
begins anew, as a whole.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Final

from reconciler.api import policies
from reconciler.base import crashes, digests, disks, errors, extents, files, meters, quantities
from reconciler.operations import reservations
from reconciler.sources import machines
from reconciler.sources.diskimages import raw
from reconciler.storage import blocks

#: Reads of one disk that are under way, and by how many threads.
_READ_AHEAD: Final = 8
_READERS: Final = 4
#: Bytes written after which the kernel begins to write them out, so that memory does not fill with them.
_WRITE_BEHIND: Final = 32 << 20


class NotHeld(errors.SourceError):
    """Bytes were asked for that were not copied: the machine must be frozen anew and read as a whole."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """Where to, and how much."""

    path: Path
    #: Bytes that all machines together may occupy.
    max_size: int
    #: Disks that are copied at the same time.
    streams: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a backup is going to read of one disk."""

    #: Ranges that may differ from the parent, None for the whole disk.
    changed: extents.Extents | None
    #: Ranges that the image leaves out.
    hidden: extents.Extents = ()
    #: What the source said of changes, None where nobody asks.
    told: machines.DiskChanges | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Who holds, and how it is told to stop."""

    #: Such as ``j-000123``.
    id: str
    #: ``check`` raises ``Cancelled``; its counters are left alone, because what is held is not stored yet.
    meter: meters.Meter
    log: Callable[[str], None]


def area(policy: policies.BackupPolicy) -> Area | None:
    """The holding area that a policy's machines go through, if any."""
    source = policy.spec.source.vmware
    if source is None or source.holding_area is None:
        return None
    return Area(
        path=Path(source.holding_area.path),
        max_size=quantities.parse_size(source.holding_area.max_size),
        streams=policy.spec.limits.max_streams_per_client,
    )


def areas(declared: Iterable[policies.BackupPolicy]) -> frozenset[Path]:
    """The folders of all holding areas."""
    found = (area(policy) for policy in declared)
    return frozenset(one.path for one in found if one is not None)


class HeldDisk(disks.Closing):
    """A disk of which the ``copied`` ranges lie in a local file. Thread-safe."""

    def __init__(self, disk: disks.Disk, path: Path, copied: extents.Extents, data: extents.Extents) -> None:
        """``data``: what of the disk may hold data; all else of it reads as zero. Raises ``SourceError``."""
        self.name, self.size, self.sector = disk.name, disk.size, disk.sector
        self._file = raw.RawDisk(disk.name, path)
        self._data = data
        self._known = extents.normalise([*copied, *extents.subtract(((0, self.size),), data)])
        self._starts = [offset for offset, _ in self._known]

    def extents(self) -> extents.Extents:
        """What may hold data, on the disk as it was frozen: held or not."""
        return self._data

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """The bytes. Raises ``NotHeld`` where one of them was not copied."""
        if length and extents.within(self._known, self._starts, offset, length) != ((offset, length),):
            raise NotHeld(
                f"{self.name}: {length} bytes at {offset} are not in the holding area",
                hint="the next attempt reads the machine as a whole",
            )
        return self._file.pread(offset, length)

    def close(self) -> None:
        """Close the local file."""
        self._file.close()


class Held:
    """A machine in the holding area. Implements ``machines.Reading``; made by ``hold``."""

    def __init__(self, reservation: reservations.Reservation) -> None:
        self.disks: Sequence[disks.Disk] = ()
        self.missing: Sequence[machines.Found] = ()
        self._reservation = reservation
        self._told: Mapping[str, machines.DiskChanges] = {}
        self._verdict: machines.Verdict | None = None
        self._state: Mapping[str, str] = {}
        self._configuration: str | None = None
        self._late: errors.HoldfastError | None = None

    def take(
        self,
        live: machines.Reading,
        held: Sequence[HeldDisk],
        lost: Sequence[machines.Found],
        needs: Mapping[str, Need | machines.Found],
    ) -> None:
        """Remember all that ``live`` has to say. Raises ``SourceChanged`` where its bytes are worth nothing."""
        self.disks = tuple(held)
        self.missing = (*live.missing, *lost)
        asked = {name: need.told for name, need in needs.items() if isinstance(need, Need)}
        self._told = {name: told for name, told in asked.items() if told is not None}
        self._verdict = live.finish()
        self._state = dict(live.state())
        self._configuration = live.configuration()

    def release(self, live: machines.Reading) -> None:
        """Let the machine go. What fails in that is told at ``close``, as it would be without a holding area."""
        try:
            live.close()
        except errors.HoldfastError as error:
            self._late = error

    def changes(self, disk: str, parent: Mapping[str, str]) -> machines.DiskChanges:  # noqa: ARG002  was asked before
        """What the source said while the machine was frozen."""
        found = self._told.get(disk)
        if found is None:
            raise NotHeld(f"{disk}: nobody asked what changed while it was frozen")
        return found

    def finish(self) -> machines.Verdict:
        """The source's last word, said when the copy was complete."""
        if self._verdict is None:
            raise ValueError("the machine was not taken yet")
        return self._verdict

    def state(self) -> Mapping[str, str]:
        """What the next incremental needs to know."""
        return self._state

    def configuration(self) -> str | None:
        """What is needed beside the disks."""
        return self._configuration

    def close(self) -> None:
        """Remove the copy. Idempotent. Raises what letting go of the machine raised."""
        late, self._late = self._late, None
        with contextlib.ExitStack() as stack:
            stack.callback(self._reservation.close)
            disks.close_all(self.disks)
        if late is not None:
            raise late


def hold(live: machines.Reading, area: Area, needs: Mapping[str, Need | machines.Found], job: Job) -> Held:
    """Copy what ``needs`` says of each disk of ``live``, by name, and close it; it may say why a disk is left out.

    A disk that cannot be read to its end is missing in what comes back. Raises ``HoldingAreaFull``, ``SourceError`` or
    ``Cancelled``; then nothing is left, and ``live`` is still open.
    """
    plans: dict[str, tuple[extents.Extents, extents.Extents]] = {}
    lost: list[machines.Found] = []
    for disk in live.disks:
        try:
            need = needs[disk.name]
            if isinstance(need, Need):
                plans[disk.name] = _ranges(disk, need)
            else:
                lost.append(need)
        except errors.SourceError as error:
            lost.append(unreadable(disk, error))
    readable = [disk for disk in live.disks if disk.name in plans]
    reservation = reservations.reserve(
        area.path, area.max_size, job.id, sum(extents.total(wanted) for wanted, _ in plans.values())
    )
    held = Held(reservation)
    try:
        began = time.monotonic()
        copies, torn = _copy_all(readable, plans, reservation.folder, area.streams, job)
        lost += torn
        if not copies:
            raise errors.SourceError("; ".join(found.message for found in lost) or "no disk could be held")
        crashes.passing("holding.copied")
        held.take(live, copies, lost, needs)
        count = sum(extents.total(plans[disk.name][0]) for disk in copies)
        job.log(f"held {rate(count, time.monotonic() - began)}; the machine is let go")
        held.release(live)
        crashes.passing("holding.released")
        return held
    except BaseException:
        held.close()
        raise


def unreadable(disk: disks.Disk, error: errors.SourceError) -> machines.Found:
    """Why a disk is left out."""
    message = str(error)
    return machines.Found(code=error.code, message=message if disk.name in message else f"{disk.name}: {message}")


def rate(count: int, seconds: float) -> str:
    """Bytes and time for people: ``12.0 GiB in 40.1 s, 306 MiB/s``."""
    shown = f"{quantities.show_size(count)} in {quantities.show_seconds(seconds)}"
    return f"{shown}, {quantities.show_size(int(count / seconds))}/s" if seconds > 0 else shown


def _ranges(disk: disks.Disk, need: Need) -> tuple[extents.Extents, extents.Extents]:
    """What is copied of a disk, in the whole blocks that units read; and what of it may hold data."""
    data = disk.extents()
    shown = extents.align(extents.subtract(data, need.hidden), digests.BLOCK, disk.size)
    if need.changed is None:
        return shown, data
    return extents.intersect(shown, extents.align(need.changed, digests.BLOCK, disk.size)), data


def _copy_all(
    live: Sequence[disks.Disk],
    plans: Mapping[str, tuple[extents.Extents, extents.Extents]],
    folder: Path,
    streams: int,
    job: Job,
) -> tuple[list[HeldDisk], list[machines.Found]]:
    """The disks that could be copied, in order, and what became of the others."""
    stop = threading.Event()

    def check() -> None:
        job.meter.check()
        if stop.is_set():
            raise errors.Cancelled("another disk could not be held")

    def one(number: int, disk: disks.Disk) -> machines.Found | None:
        try:
            _copy(disk, folder / f"{number}.raw", plans[disk.name][0], check)
        except _Unreadable as error:
            return unreadable(disk, error.reason)
        return None

    with futures.ThreadPoolExecutor(min(streams, len(live)) or 1, thread_name_prefix=f"{job.id}-hold") as pool:
        pending = [pool.submit(one, number, disk) for number, disk in enumerate(live)]
        done, _ = futures.wait(pending, return_when=futures.FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            stop.set()
        failures = [future.exception() for future in pending]
    causes = [error for error in failures if error is not None]
    # The failure that came first is the cause; the stops that follow it are not.
    for error in sorted(causes, key=lambda cause: isinstance(cause, errors.Cancelled)):
        raise error
    lost = [found for future in pending if (found := future.result()) is not None]
    return _opened(live, [future.result() is None for future in pending], plans, folder), lost


def _opened(
    live: Sequence[disks.Disk],
    whole: Sequence[bool],
    plans: Mapping[str, tuple[extents.Extents, extents.Extents]],
    folder: Path,
) -> list[HeldDisk]:
    copies: list[HeldDisk] = []
    try:
        for number, disk in enumerate(live):
            if whole[number]:
                copies.append(HeldDisk(disk, folder / f"{number}.raw", *plans[disk.name]))
    except BaseException:
        disks.close_all(copies)
        raise
    return copies


class _Unreadable(Exception):
    """The source gave out; told apart from a holding area that did."""

    def __init__(self, reason: errors.SourceError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _copy(disk: disks.Disk, path: Path, wanted: extents.Extents, check: Callable[[], None]) -> None:
    """Copy ranges of a disk into a sparse file. Raises ``_Unreadable``, ``SourceError`` or ``Cancelled``."""
    with reservations.told(path.parent.parent):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, disk.size)
            with futures.ThreadPoolExecutor(_READERS, thread_name_prefix="holding") as readers:
                _pump(disk, handle, wanted, check, readers)
        finally:
            os.close(handle)


def _pump(
    disk: disks.Disk, handle: int, wanted: extents.Extents, check: Callable[[], None], readers: futures.Executor
) -> None:
    coming: collections.deque[tuple[int, futures.Future[disks.Buffer]]] = collections.deque()
    pieces = extents.pieces(wanted, digests.BLOCK)
    written = 0
    try:
        while True:
            while len(coming) < _READ_AHEAD and (piece := next(pieces, None)) is not None:
                check()
                coming.append((piece[0], readers.submit(_read, disk, *piece)))
            if not coming:
                return
            offset, future = coming.popleft()
            data = future.result()
            if not blocks.is_zero(data):
                files.pwrite_all(handle, data, offset)
                written += len(data)
            if written >= _WRITE_BEHIND:
                # On pages not yet written this starts the writing and drops nothing.
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                written = 0
    finally:
        for _, future in coming:
            future.cancel()


def _read(disk: disks.Disk, offset: int, length: int) -> disks.Buffer:
    try:
        data = disk.pread(offset, length)
    except errors.SourceError as error:
        raise _Unreadable(error) from error
    except OSError as error:
        raise _Unreadable(errors.SourceError(f"read at {offset}: {error.strerror}")) from error
    if len(data) != length:
        raise _Unreadable(errors.SourceError(f"read at {offset} gave {len(data)} of {length} bytes"))
    return data
