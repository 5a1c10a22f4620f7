"""One look at a disk: its volumes, the layout of its files and, on request, the space nobody uses.

Called by ``operations`` once per disk and backup. A guest that cannot be read is never an error: what is returned then
is empty and says why, and the disk is cut by offset.
"""

from __future__ import annotations

import time
from array import array

from reconciler.base import disks, extents, layouts, meters
from reconciler.guests import conversations, receipts, scans, wires

DEFAULT = scans.DEFAULT
Limits = scans.Limits

#: Volumes and warnings of one disk; a child that reports more is not believed.
_VOLUMES = 1_000
_WARNINGS = 10_000
#: Warnings that are kept.
_KEPT = 200
_KINDS = (wires.FREE, wires.PAGES, wires.SWAP)


def scan(
    disk: disks.Disk,
    *,
    limits: scans.Limits = scans.DEFAULT,
    want_space: bool = False,
    quiesced: bool = False,
    within: extents.Extents | None = None,
    meter: meters.Meter | None = None,
) -> scans.Scan:
    """Look into ``disk``. ``quiesced``: it is a snapshot for which the guest had written everything back.

    ``within``: ranges outside which the disk did not change; then files whose own record did not change either may be
    missing in the layout, and most of the work is saved. Not to be used with ``want_space``.

    Never raises for what the disk contains: ``warnings`` then holds ``GuestUnreadable``, and the rest is empty. Raises
    what ``pread`` raises, and ``Cancelled`` when ``meter`` says so.
    """
    if want_space and within is not None:
        raise ValueError("the space of a volume is known from all of it alone")
    start = time.monotonic()
    collected = _Collected(disk.size, limits)
    try:
        with conversations.Conversation(
            disk, limits=limits, meter=meter, runs=True, space=want_space, quiesced=quiesced, within=within
        ) as conversation:
            for kind, payload in conversation.frames():
                collected.take(kind, payload)
    except (conversations.Failed, wires.Broken) as error:
        reason = f"the file systems of disk {disk.name} could not be read: {error}"
        warnings = (*collected.warnings, ("GuestUnreadable", reason))
        return scans.Scan(layout=scans.empty_layout(), warnings=warnings, seconds=time.monotonic() - start)
    return collected.scan(start)


class _Collected:
    """What a child reported, volume by volume; a volume counts from its COMMIT on."""

    def __init__(self, size: int, limits: scans.Limits) -> None:
        self._size = size
        self._limits = limits
        self._volumes: list[scans.Volume] = []
        self._columns = [array("q") for _ in range(4)]
        self._ranges: dict[int, list[extents.Extent]] = {kind: [] for kind in _KINDS}
        self._warnings: list[scans.Warning_] = []
        self._told = 0
        self._counted = dict.fromkeys((wires.RUNS, wires.FREE), 0)
        #: Lengths of the columns and lists when the open volume began; None while none is open.
        self._began: tuple[int, dict[int, int]] | None = None

    @property
    def warnings(self) -> tuple[scans.Warning_, ...]:
        """What the child warned of so far."""
        return tuple(self._warnings)

    def take(self, kind: int, payload: bytes) -> None:
        """One frame. Raises ``Broken`` where it is not in order."""
        if kind == wires.WARNING:
            self._warn(payload)
        elif kind == wires.BEGIN:
            self._begin(payload)
        elif self._began is None:
            raise wires.Broken(f"a frame of kind {kind} belongs to no volume")
        elif kind == wires.RUNS:
            self._runs(payload)
        elif kind in _KINDS:
            found = receipts.ranges(payload, self._size)
            self._count(wires.FREE, len(found), self._limits.ranges)
            self._ranges[kind] += found
        elif kind == wires.ABANDON:
            self._abandon(self._began)
        elif kind == wires.COMMIT:
            self._volumes.append(receipts.volume(payload, self._size))
            self._began = None
        else:
            raise wires.Broken(f"a frame of unknown kind {kind}")

    def _warn(self, payload: bytes) -> None:
        self._told += 1
        if self._told > _WARNINGS:
            raise wires.Broken("too many warnings")
        warning = receipts.warning(payload)
        if len(self._warnings) < _KEPT:
            self._warnings.append(warning)

    def _begin(self, payload: bytes) -> None:
        receipts.volume(payload, self._size)
        if self._began is not None or len(self._volumes) >= _VOLUMES:
            raise wires.Broken("a volume began out of turn")
        self._began = len(self._columns[0]), {kind: len(self._ranges[kind]) for kind in _KINDS}

    def _abandon(self, began: tuple[int, dict[int, int]]) -> None:
        count, lengths = began
        for column in self._columns:
            del column[count:]
        for kind, length in lengths.items():
            del self._ranges[kind][length:]

    def _runs(self, payload: bytes) -> None:
        files = self._columns[0]
        columns = receipts.runs(payload, self._size, files[-1] if files else 0)
        self._count(wires.RUNS, len(columns[0]), self._limits.runs)
        if files and len(columns[0]) and columns[0][0] == files[-1] and columns[1][0] < self._columns[1][-1]:
            raise wires.Broken("the runs are not in order")
        for column, more in zip(self._columns, columns, strict=True):
            column.extend(more)

    def _count(self, kind: int, count: int, most: int) -> None:
        self._counted[kind] += count
        if self._counted[kind] > most:
            raise wires.Broken(f"more than {most} rows of kind {kind}")

    def scan(self, start: float) -> scans.Scan:
        """Everything collected, with what must not be left out taken out of the ranges; ``start`` on the clock."""
        file, file_offset, disk_offset, length = self._columns
        free, pages, swap = (extents.normalise(self._ranges[kind]) for kind in _KINDS)
        if free or pages or swap:
            once, twice = _claims(disk_offset, length)
            free = extents.subtract(free, once)
            pages = extents.subtract(pages, twice)
            swap = extents.subtract(swap, once)
        layout = layouts.Layout(file=file, file_offset=file_offset, disk_offset=disk_offset, length=length)
        return scans.Scan(
            volumes=tuple(self._volumes),
            layout=layout,
            free=free,
            page_files=pages,
            swap=swap,
            warnings=self.warnings,
            seconds=time.monotonic() - start,
        )


def _claims(offsets: array[int], lengths: array[int]) -> tuple[extents.Extents, extents.Extents]:
    """What of the disk runs claim at least once, and what at least twice; both ordered and disjoint."""
    once: list[extents.Extent] = []
    twice: list[extents.Extent] = []
    end = 0
    for start, length in sorted(zip(offsets, lengths, strict=True)):
        if start < end:
            twice.append((start, min(start + length, end) - start))
        if start == end and once:
            once[-1] = (once[-1][0], once[-1][1] + length)
            end = start + length
        elif start + length > end:
            fresh = max(start, end)
            once.append((fresh, start + length - fresh))
            end = start + length
    return tuple(once), extents.normalise(twice)
