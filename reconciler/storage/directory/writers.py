"""Writing one image onto a Directory unit: a temporary folder that becomes the image by one rename.

``unit`` makes a ``DirectoryWriter`` per image and gives it what it needs of the unit through ``Place``. Different
disks of one image may be written by different threads. Nothing outside the temporary folder changes before the
rename, so abort is the removal of that folder, and a crash leaves nothing but it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from reconciler.base import crashes, digests, disks, errors, extents, files, layouts, meters
from reconciler.storage import attachments, blocks, labels, units
from reconciler.storage.directory import attachments as directory_attachments
from reconciler.storage.directory import formats, places

#: Bytes after which the kernel is asked to begin writing, so that the fsync at the end has little left to do.
_WRITE_BEHIND: Final = 32 * digests.BLOCK


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a writer needs of its unit."""

    #: The unit's name, for errors.
    unit: str
    #: The unfinished image.
    folder: Path
    #: Where it goes at commit.
    target: Path
    #: The digest list and the size of a disk in a committed image; raises ``UnitError`` or ``NotFound``.
    parent_list: Callable[[str, str], tuple[bytes, int]]
    #: The digests of the pages that can be read of an attachment in a committed image, its name second.
    parent_pages: Callable[[str, str], Collection[bytes]]
    #: Whether the unit holds a committed image.
    holds: Callable[[str], bool]
    #: Reads an image back that may take another one's place; None where it may not.
    prove: Callable[[Path, formats.Document, meters.Meter], tuple[units.Damage, ...]] | None
    #: Called once when the writer ends either way, after its folder is gone or in place.
    ended: Callable[[], None]


class DirectoryWriter:
    """An image being written; see ``units.ImageWriter``."""

    def __init__(self, *, place: Place, label: units.ImageLabel, disk_names: Collection[str]) -> None:
        self._place = place
        self._label = label
        self._names = tuple(disk_names)
        self._lock = threading.Lock()
        self._started: set[str] = set()
        self._stored: dict[str, formats.StoredDisk] = {}
        self._records: dict[str, units.DiskRecord] = {}
        #: By name, in the order in which they were begun; None while one is being stored.
        self._attached: dict[str, formats.StoredAttachment | None] = {}
        self._bytes = 0
        self._base: str | None = None
        #: Where the image's files are now; None once the writer has ended.
        self._folder: Path | None = place.folder
        #: Whether what had the image's name lies in the unfinished one's place now.
        self._replaced = False

    def write(
        self,
        disk: disks.Disk,
        *,
        meter: meters.Meter,
        changed: extents.Extents | None = None,
        parent: str | None = None,
        layout: Callable[[], layouts.Layout] | None = None,  # noqa: ARG002  plain files have no use for it
    ) -> units.WrittenDisk:
        """Store one disk; see the port. Raises ``Cancelled``, ``SourceError`` or ``UnitError``."""
        if changed is not None and parent is None:
            raise errors.UnitError(f"image {self._label.id}, disk {disk.name}: changes relative to no parent")
        folder = self._start(disk.name, parent)
        stored = formats.stored_disk(self._names.index(disk.name), disk.name, parent)
        walk = blocks.BlockWalk(disk, meter=meter, parent=self._parent_digests(disk, parent), changed=changed)
        with files.unit_errors(self._place.unit):
            size = _write_blocks(folder / stored.data, disk.size, walk, meter)
            files.write_new(folder / stored.digests, walk.digests, mode=formats.FILE_MODE)
            size += len(walk.digests)
            if stored.changed is not None:
                ranges = formats.encode_ranges(walk.changed or ())
                files.write_new(folder / stored.changed, ranges, mode=formats.FILE_MODE)
                size += len(ranges)
                stored = dataclasses.replace(stored, changed_digest=formats.list_digest(ranges))
        crashes.passing("directory.disk-synced")
        written = walk.written()
        with self._lock:
            self._stored[disk.name] = stored
            self._records[disk.name] = written.record
            self._bytes += size
        return written

    def attach(self, name: str, pages: Iterable[bytes], *, parent: str | None = None) -> None:
        """Store a document beside the disks; see the port."""
        attachments.require_name(name)
        with self._lock:
            folder = self._require_open()
            if name in self._attached:
                raise errors.UnitError(f"image {self._label.id}: attachment {name} was written already")
            self._attached[name] = None
            # A page may be left to the base, which stays as long as this image; to no other image.
            base = parent if parent == self._base else None
        try:
            known = () if base is None else self._place.parent_pages(base, name)
            planned = formats.stored_attachment(name, base)
            stored, size = directory_attachments.write(self._place.unit, folder, planned, pages, known)
        except BaseException:
            with self._lock:
                del self._attached[name]
            raise
        crashes.passing("directory.attachment-synced")
        with self._lock:
            self._attached[name] = stored
            self._bytes += size

    def commit(self, label: units.ImageLabel, *, meter: meters.Meter | None = None) -> units.Commit:
        """Make the image visible by one rename; see the port. Raises ``UnitError``; the writer must then be aborted."""
        place = self._place
        with self._lock:
            folder = self._require_open()
            unfinished = self._started - self._records.keys()
            unfinished |= {name for name, stored in self._attached.items() if stored is None}
            if unfinished:
                raise errors.UnitError(f"image {label.id}: {', '.join(sorted(unfinished))} could not be written")
            if self._base is not None and not place.holds(self._base):
                raise errors.UnitError(f"image {label.id}: its base {self._base} is gone from unit {place.unit}")
            final = labels.complete(self._label, label, self._names, self._records)
            stored = tuple(self._stored[record.name] for record in final.disks)
            document = formats.Document(
                label=final,
                base=self._base,
                stored_bytes=self._bytes,
                disks=stored,
                attachments=tuple(one for one in self._attached.values() if one is not None),
            )
            with files.unit_errors(place.unit):
                formats.write(folder, document)
                if place.prove is not None:
                    files.sync_folder(folder)
                    labels.require_proven(place.unit, place.prove(folder, document, meter or meters.Meter()))
                crashes.passing("directory.before-rename")
                self._name(folder)
            crashes.passing("directory.after-rename")
            self._folder = None
        place.ended()
        return units.Commit(label=final, stored_bytes=self._bytes, base=self._base)

    def _name(self, folder: Path) -> None:
        """Give the image its name, durably; what had the name goes then."""
        place = self._place
        if place.prove is None or not place.target.exists():
            folder.rename(place.target)
        else:
            self._exchange(folder)
        self._folder = place.target
        files.sync_folder(place.target.parent)
        files.sync_folder(place.target.parent.parent)
        if self._replaced:
            with contextlib.suppress(OSError):  # the next sweep takes what is left of it
                places.remove_folder(place.folder)
                self._replaced = False

    def _exchange(self, folder: Path) -> None:
        try:
            files.exchange(folder, self._place.target)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise errors.UnitError(
                f"storage unit {self._place.unit}: its file system cannot put one image in another one's place at once",
                hint="give the operation another unit; the damaged copy stays, and restore reads what is whole of it",
            ) from error
        self._replaced = True

    def abort(self) -> None:
        """Remove what was written. After a commit that succeeded it does nothing."""
        with self._lock:
            folder = self._folder
            if folder is None:
                return
            try:
                with files.unit_errors(self._place.unit):
                    if folder == self._place.target:
                        # The rename is done and its fsync failed: nobody was told of the image, so it goes.
                        if self._replaced:
                            files.exchange(self._place.folder, folder)
                            self._folder = self._place.folder
                        else:
                            self._folder = folder.rename(self._place.folder)
                    places.remove_folder(self._place.folder)
                self._folder = None
            finally:
                self._place.ended()

    def _start(self, name: str, parent: str | None) -> Path:
        with self._lock:
            folder = self._require_open()
            if name not in self._names or name in self._started:
                what = "was written already" if name in self._started else "was not named at the start"
                raise errors.UnitError(f"image {self._label.id}: disk {name} {what}")
            if parent is not None and self._base not in (None, parent):
                raise errors.UnitError(f"image {self._label.id}: has two parents, {self._base} and {parent}")
            self._started.add(name)
            self._base = parent or self._base
            return folder

    def _require_open(self) -> Path:
        if self._folder is None:
            raise errors.UnitError(f"image {self._label.id}: its writer has ended")
        return self._folder

    def _parent_digests(self, disk: disks.Disk, parent: str | None) -> bytes | None:
        if parent is None:
            return None
        found, size = self._place.parent_list(parent, disk.name)
        if size != disk.size:
            raise errors.UnitError(
                f"image {self._label.id}, disk {disk.name}: {disk.size} bytes, in its parent {parent} {size}",
                hint="a disk whose size changed is written without parent",
            )
        return found


def _write_blocks(path: Path, size: int, walk: blocks.BlockWalk, meter: meters.Meter) -> int:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, formats.FILE_MODE)
    try:
        os.ftruncate(handle, size)
        total = behind = 0
        for block in walk:
            if block.data is None:
                continue
            files.pwrite_all(handle, block.data, block.offset)
            meter.add(sent=block.length, stored=block.length)
            total += block.length
            if total - behind >= _WRITE_BEHIND:
                # On pages not yet written this starts the writing and drops nothing.
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                behind = total
        os.fsync(handle)
    finally:
        os.close(handle)
    return total
