"""The index of files: built while a backup still has its disks, kept beside the image.

``backups`` makes one ``Indexing`` for each image it writes, has it look at each disk that was stored and attaches what
came of it before the commit. Nothing in here ever fails a backup: what cannot be read or kept is a warning on it.
What nobody changed is not read again: a disk whose changes touch nothing that the last listing read keeps its files.
``filelessons`` teaches the search cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from reconciler.base import disks, errors, extents, meters
from reconciler.catalog.fileindexes import entries, indexes, pages
from reconciler.guests import listings, scans
from reconciler.operations import holding, listdisks
from reconciler.sources import machines
from reconciler.storage import units

#: Names of one disk; with more it is browsed, not indexed. About 500 bytes of memory each while a backup ends.
MOST: Final = 2_000_000
#: Codes of the warnings that come from here; an image with one is as whole as without.
NOT_INDEXED: Final = "FilesNotIndexed"
PARTLY_INDEXED: Final = "FilesPartlyIndexed"
CODES: Final = frozenset((NOT_INDEXED, PARTLY_INDEXED))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """What one disk holds."""

    disk: pages.Disk
    #: In order of their keys.
    rows: Sequence[entries.Entry]
    #: At most one.
    warnings: tuple[machines.Found, ...] = ()


class Attaching(Protocol):
    """Where an index goes: an image that is being written, or one whose index is made anew."""

    def attach(self, name: str, pages: Iterable[bytes], *, parent: str | None = None) -> None:
        """As ``units.ImageWriter`` says."""


class Indexing:
    """The index of one image that is being written. ``look`` may be called by several threads. A context manager."""

    def __init__(self, unit: units.StorageUnit, parent: str | None, meter: meters.Meter, *, wanted: bool) -> None:
        """``parent``: the image on the unit that this one is written against. Unless ``wanted`` nothing happens."""
        self._wanted = wanted
        self._unit = unit
        self._parent = parent
        self._meter = meter
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._opened = False
        self._stored: units.StoredImage | None = None
        self._index: indexes.Index | None = None
        self._below: dict[str, list[entries.Entry]] | None = None

    def __enter__(self) -> Indexing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self, disk: disks.Disk, changed: extents.Extents | None, *, known: bool, quiesced: bool) -> Looked | None:
        """The files of a disk that was just stored. Raises ``Cancelled`` alone.

        ``changed``: where it differs from the parent, None where it was not written against one. ``known``: whether the
        source said so and was read there alone; the rest is then read from the unit.
        """
        if not self._wanted:
            return None
        try:
            return self._look(disk, changed, known=known, quiesced=quiesced)
        except errors.Cancelled:
            raise
        except holding.NotHeld:
            return _blank(disk, "what its file systems say of their files is not in the holding area")
        except (errors.HoldfastError, OSError) as error:
            return _blank(disk, str(error))

    def _look(self, disk: disks.Disk, changed: extents.Extents | None, *, known: bool, quiesced: bool) -> Looked:
        stored, index = self._opened_parent() if changed is not None else (None, None)
        if changed is not None and index is not None:
            before = next((one for one in index.head.disks if one.name == disk.name), None)
            if before is not None and before.reads is not None and not extents.intersect(before.reads, changed):
                return Looked(disk=before, rows=self._rows_below(index).get(disk.name, []))
        if changed is not None and known and stored is not None:
            with contextlib.closing(stored.disk(disk.name)) as below:
                return self._list(listdisks.OverlaidDisk(disk, below, changed), quiesced)
        return self._list(disk, quiesced)

    def _list(self, disk: disks.Disk, quiesced: bool) -> Looked:
        watched = listdisks.WatchedDisk(disk)
        if not listings.plausible(watched):
            return Looked(disk=pages.Disk(name=disk.name, volumes=(), reads=watched.reads()), rows=())
        with listings.list_files(watched, quiesced=quiesced, meter=self._meter) as listing:
            rows = list(itertools.islice(_entries(disk.name, listing), MOST + 1))
            if len(rows) > MOST:
                return _blank(disk, f"it holds more than {MOST:,} names")
            volumes = tuple(
                pages.Volume(filesystem=one.filesystem, label=one.label, offset=one.offset, length=one.length)
                for one in listing.volumes
            )
            told = listing.warnings
        # A reader that was cut short would have gone on reading.
        reads = None if told else watched.reads()
        found = pages.Disk(name=disk.name, volumes=volumes, warnings=told, reads=reads)
        return Looked(disk=found, rows=indexes.ordered(rows), warnings=_partly(disk.name, told))

    def _opened_parent(self) -> tuple[units.StoredImage | None, indexes.Index | None]:
        """The parent, and its index where it has one."""
        with self._lock:
            if not self._opened and self._parent is not None:
                self._opened = True
                with contextlib.suppress(errors.UnitError, errors.FormatTooNew):
                    self._stored = self._stack.enter_context(contextlib.closing(self._unit.open(self._parent)))
                    self._index = index_of(self._stored)
            return self._stored, self._index

    def _rows_below(self, index: indexes.Index) -> dict[str, list[entries.Entry]]:
        """The parent's entries, by disk."""
        with self._lock:
            if self._below is None:
                by_disk = itertools.groupby(index, key=_disk_of)
                self._below = {name: list(rows) for name, rows in by_disk}
            return self._below

    def attach(self, writer: Attaching, looked: Iterable[Looked]) -> tuple[machines.Found, ...]:
        """Keep the index beside the image, where there is anything to say; the warnings. Raises ``Cancelled``."""
        found = sorted(looked, key=lambda one: one.disk.name)
        warnings = tuple(warning for one in found for warning in one.warnings)
        if not any(volume.filesystem for one in found for volume in one.disk.volumes):
            return warnings
        rows = list(itertools.chain.from_iterable(one.rows for one in found))
        about = [one.disk for one in found]
        _, parent = self._opened_parent()
        try:
            try:
                writer.attach(entries.ATTACHMENT, indexes.build(rows, about, parent), parent=self._parent)
            except (errors.UnitError, errors.FormatTooNew):
                if parent is None:
                    raise
                # What the parent says may be what cannot be read.
                writer.attach(entries.ATTACHMENT, indexes.build(rows, about), parent=self._parent)
        except (errors.UnitError, errors.FormatTooNew, ValueError) as error:
            # A page that is too long: thousands of volumes, each of a name that does not compress, are nobody's guest.
            told = machines.Found(code=NOT_INDEXED, message=f"the index of its files was not kept: {error}")
            return (*warnings, told)
        return warnings


def index_of(stored: units.StoredImage) -> indexes.Index | None:
    """The index of an image that is open; None where it carries none.

    Raises ``ImageDamaged``, ``FormatTooNew`` or ``UnitError``.
    """
    if entries.ATTACHMENT not in stored.attachments():
        return None
    return indexes.Index(stored.label.id, stored.attachment(entries.ATTACHMENT))


def _entries(disk: str, files: Iterable[scans.File]) -> Iterator[entries.Entry]:
    for file in files:
        # No file system has such a stream; a volume that was made to deceive may.
        if "\0" in file.stream:
            continue
        flags = tuple(flag for flag in entries.FLAGS if flag in file.flags)
        yield entries.Entry(
            disk,
            file.volume,
            file.path,
            file.stream,
            file.kind,
            file.size,
            file.inode,
            file.links,
            file.created,
            file.modified,
            file.changed,
            flags,
        )


def _disk_of(row: entries.Entry) -> str:
    return row.disk


def _blank(disk: disks.Disk, why: str) -> Looked:
    found = machines.Found(code=NOT_INDEXED, message=f"the files of disk {disk.name} are not indexed: {why}")
    return Looked(
        disk=pages.Disk(name=disk.name, volumes=(), warnings=((found.code, why),)), rows=(), warnings=(found,)
    )


def _partly(disk: str, told: Sequence[scans.Warning_]) -> tuple[machines.Found, ...]:
    if not told:
        return ()
    more = f"; and {len(told) - 1} more" if len(told) > 1 else ""
    words = f"the index of the files of disk {disk} may lack some: {told[0][1]}{more}"
    return (machines.Found(code=PARTLY_INDEXED, message=words),)
