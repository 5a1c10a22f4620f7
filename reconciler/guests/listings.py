"""The files of a disk, one after the other as its file systems name them, for browsing and restoring single ones.

Called by ``operations``. Like ``scanning`` it parses in a child process, but hands out names, and hands them out while
the child still reads: nothing is held but one batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from reconciler.base import disks, meters
from reconciler.guests import conversations, receipts, scans, wires

#: Volumes of one disk; a child that reports more is not believed.
_VOLUMES = 1_000
#: Warnings that are kept.
_KEPT = 200
#: Bytes at the start and at the end of a disk in which the marks of tables and file systems lie.
_HEAD, _TAIL = 8 << 10, 8 << 10
_MARKS = (b"NTFS    ", b"EXFAT   ", b"XFSB", b"EFI PART", b"LABELONE", b"LUKS\xba\xbe", b"\xfc\x4e\x2b\xa9")
#: Marks that lie further in: of ISO 9660 and UDF, and of Btrfs.
_FAR = ((0x8001, 5, (b"CD001", b"BEA01")), (0x10040, 8, (b"_BHRfS_M",)))


class Listing:
    """An iterator of files. ``volumes`` and ``warnings`` are complete once it has ended. A context manager."""

    def __init__(self, disk: disks.Disk, limits: scans.Limits, meter: meters.Meter | None, quiesced: bool) -> None:
        self._disk = disk
        self._limits = limits
        self._meter = meter
        self._quiesced = quiesced
        self._volumes: list[scans.Volume] = []
        self._warnings: list[scans.Warning_] = []
        self._open = False
        self._count = 0
        self._part: scans.File | None = None
        self._files = self._run()

    @property
    def volumes(self) -> tuple[scans.Volume, ...]:
        """The volumes read so far; ``File.volume`` is an index into them."""
        return tuple(self._volumes)

    @property
    def warnings(self) -> tuple[scans.Warning_, ...]:
        """What could not be read so far, as (code, message)."""
        return tuple(self._warnings)

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[scans.File]:
        return self

    def __next__(self) -> scans.File:
        return next(self._files)

    def close(self) -> None:
        """End the child. Idempotent."""
        self._files.close()

    def _run(self) -> Generator[scans.File, None, None]:
        try:
            with conversations.Conversation(
                self._disk, limits=self._limits, meter=self._meter, files=True, quiesced=self._quiesced
            ) as conversation:
                for kind, payload in conversation.frames():
                    if kind == wires.FILES and self._open:
                        yield from self._take(payload)
                    else:
                        self._note(kind, payload)
        except (conversations.Failed, wires.Broken) as error:
            reason = f"the file systems of disk {self._disk.name} could not be read to their end: {error}"
            self._warnings.append(("GuestUnreadable", reason))

    def _take(self, payload: bytes) -> Iterator[scans.File]:
        for file, more in receipts.files(payload, self._disk.size, len(self._volumes)):
            self._count += len(file.extents) + 1
            if self._count > self._limits.files + self._limits.runs:
                raise wires.Broken("more files than the limits allow")
            if self._part is not None:
                if (file.path, file.stream) != (self._part.path, self._part.stream):
                    raise wires.Broken("a file's parts do not follow each other")
                file = file._replace(extents=self._part.extents + file.extents)
            self._part = file if more else None
            if not more:
                yield file

    def _note(self, kind: int, payload: bytes) -> None:
        if kind == wires.WARNING:
            warning = receipts.warning(payload)
            if len(self._warnings) < _KEPT:
                self._warnings.append(warning)
        elif kind == wires.BEGIN and not self._open and len(self._volumes) < _VOLUMES:
            receipts.volume(payload, self._disk.size)
            self._open = True
        elif kind == wires.COMMIT and self._open:
            self._volumes.append(receipts.volume(payload, self._disk.size))
            self._open = False
            self._part = None
        elif kind != wires.ABANDON or not self._open:
            raise wires.Broken(f"a frame of kind {kind} is out of turn")


def list_files(
    disk: disks.Disk,
    *,
    limits: scans.Limits = scans.DEFAULT,
    quiesced: bool = False,
    meter: meters.Meter | None = None,
) -> Listing:
    """The files of ``disk``, volume after volume, every name and every alternate data stream of each.

    Never raises for what the disk contains: the listing then ends early and its ``warnings`` say so. Raises what
    ``pread`` raises, and ``Cancelled`` when ``meter`` says so. Close it, or exhaust it, to end the child.
    """
    return Listing(disk, limits, meter, quiesced)


def plausible(disk: disks.Disk) -> bool:
    """Whether it is worth the while to look for file systems: no disk that holds one lacks all their marks, nor one
    that holds what is told and not read.

    Raises what ``pread`` raises.
    """
    head = bytes(disk.pread(0, min(_HEAD, disk.size)))
    if head[510:512] == b"\x55\xaa" or head[1080:1082] == b"\x53\xef" or any(mark in head for mark in _MARKS):
        return True
    for at, length, marks in _FAR:
        if disk.size > at + length and bytes(disk.pread(at, length)) in marks:
            return True
    start = max(disk.size - _TAIL, 0)
    return b"EFI PART" in bytes(disk.pread(start, disk.size - start))
