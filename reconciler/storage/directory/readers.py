"""Reading one image from a Directory unit, through whatever chain lies under it.

A disk of an incremental holds only its changed blocks; the others are its parent's, which may again be an
incremental. Which image of the chain holds which block is resolved once per opened disk into an array of four bytes
per 1 MiB block; the files that hold any stay open, so that a block is one ``pread``. Every block is proven against
the digest list of the image asked for, never against that of the image it lies in.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from reconciler.base import buffers, digests, disks, errors, extents, files, meters
from reconciler.storage import attachments, blocks, memories, units
from reconciler.storage.directory import attachments as directory_attachments
from reconciler.storage.directory import formats

#: Folder and ``image.json`` of a committed image. Raises ``ImageMissing``, ``ImageDamaged`` or ``FormatTooNew``.
Finder = Callable[[str], tuple[Path, formats.Document]]


class DirectoryImage(disks.Closing):
    """An image opened for reading; see ``units.StoredImage``."""

    def __init__(
        self, *, unit: str, folder: Path, document: formats.Document, find: Finder, memory: int | None = None
    ) -> None:
        self.label = document.label
        self.base = document.base
        self._unit = unit
        self._folder = folder
        self._stored = {disk.name: disk for disk in document.disks}
        self._records = {record.name: record for record in document.label.disks}
        self._find = find
        self._memory: memories.Memory[tuple[str, int]] | None = None if memory is None else memories.Memory(memory)
        self._lock = threading.Lock()
        self._attached = {attached.name: attached for attached in document.attachments}
        self._open: list[_Chain | directory_attachments.DirectoryAttachment] = []

    def disk(self, name: str, *, block_digests: bytes | None = None) -> blocks.ProvenDisk:
        """One disk, whole. Raises ``NotFound``, or ``ImageDamaged`` where an image of its chain is not there."""
        self._require(name)
        record = self._records[name]
        if block_digests is None:
            block_digests = self.block_digests(name)
        else:
            blocks.check_list(block_digests, record, self.label.id)
        with files.unit_errors(self._unit):
            chain = _Chain(record=record, image=self.label.id, members=self._members(name))
        with self._lock:
            self._open.append(chain)
        return blocks.ProvenDisk(
            image=self.label.id,
            record=record,
            block_digests=block_digests,
            load=chain.load,
            peek=chain.peek if self._memory is not None else None,
            release=chain.close,
            memory=self._memory,
        )

    def changed(self, name: str, parent: str) -> extents.Extents | None:
        """The ranges that this image stores of a disk, where ``parent`` is its direct base; else None."""
        stored = self._require(name)
        if stored.parent != parent:
            return None
        with files.unit_errors(self._unit):
            return formats.read_ranges(self._folder, stored)

    def block_digests(self, name: str) -> bytes:
        """The disk's list of block digests, proven. Raises ``NotFound`` or ``ImageDamaged``."""
        stored = self._require(name)
        with files.unit_errors(self._unit):
            return blocks.check_list(formats.read_digests(self._folder, stored), self._records[name], self.label.id)

    def attachments(self) -> tuple[str, ...]:
        """The names of its attachments."""
        return tuple(self._attached)

    def attachment(self, name: str) -> directory_attachments.DirectoryAttachment:
        """One attachment, through the chain. Raises ``NotFound``, or ``ImageDamaged`` where its list is."""
        if name not in self._attached:
            raise attachments.missing(self.label.id, name, self._attached)

        def find(image_id: str) -> tuple[Path, formats.StoredAttachment | None]:
            folder, document = self._find(image_id)
            return folder, next((one for one in document.attachments if one.name == name), None)

        found = directory_attachments.DirectoryAttachment(
            unit=self._unit, image=self.label.id, folder=self._folder, stored=self._attached[name], find=find
        )
        with self._lock:
            self._open.append(found)
        return found

    def verify(self, name: str, meter: meters.Meter) -> tuple[units.Damage, ...]:
        """Prove every block of one disk, and that what should be a hole in its own file is none but zeros."""
        size = self._records[name].size
        try:
            with self.disk(name) as disk:
                found = blocks.prove(disk, image=self.label.id, meter=meter)
                return found + self._stray(name, disk, meter)
        except (errors.ImageDamaged, errors.ImageMissing) as error:
            return (units.Damage(image=self.label.id, disk=name, offset=0, length=size, message=error.message),)

    def close(self) -> None:
        """Close every file of every disk and attachment that was handed out."""
        with self._lock:
            opened, self._open = self._open, []
        for one in opened:
            one.close()

    def _require(self, name: str) -> formats.StoredDisk:
        if name not in self._stored:
            raise errors.NotFound(f"image {self.label.id} has no disk {name}", hint=f"it has {', '.join(self._stored)}")
        return self._stored[name]

    def _members(self, name: str) -> list[tuple[Path, formats.StoredDisk]]:
        """The images that hold the disk's blocks, youngest first, the last one whole."""
        members = [(self._folder, self._require(name))]
        seen = {self.label.id}
        while (parent := members[-1][1].parent) is not None:
            if parent in seen:
                raise errors.ImageDamaged(f"image {self.label.id}, disk {name}: its chain comes back to {parent}")
            seen.add(parent)
            members.append(self._member(parent, name))
        return members

    def _member(self, image_id: str, name: str) -> tuple[Path, formats.StoredDisk]:
        try:
            folder, document = self._find(image_id)
        except (errors.ImageMissing, errors.ImageDamaged) as error:
            raise errors.ImageDamaged(
                f"image {self.label.id}, disk {name}: its base {image_id} cannot be used: {error.message}",
                hint="use another copy of the image; the next backup of this series must be a full",
            ) from error
        for record, stored in zip(document.label.disks, document.disks, strict=True):
            if stored.name == name and record.size == self._records[name].size:
                return folder, stored
        raise errors.ImageDamaged(f"image {self.label.id}, disk {name}: its base {image_id} has no such disk")

    def _stray(self, name: str, disk: blocks.ProvenDisk, meter: meters.Meter) -> tuple[units.Damage, ...]:
        """Bytes in what should be holes: the digests never ask for them, but whoever mounts the raw file sees them."""
        stored = self._stored[name]
        if stored.parent is not None:
            return ()
        found: list[units.Damage] = []
        with files.unit_errors(self._unit), (self._folder / stored.data).open("rb", buffering=0) as file:
            for offset, length in extents.pieces(_data_ranges(file.fileno(), disk.size), digests.BLOCK):
                meter.check()
                if disk.is_hole(offset // digests.BLOCK) and not blocks.is_zero(
                    os.pread(file.fileno(), length, offset)
                ):
                    message = f"image {self.label.id}, disk {name}: data at offset {offset}, where the disk is zero"
                    found.append(
                        units.Damage(image=self.label.id, disk=name, offset=offset, length=length, message=message)
                    )
        return tuple(found)


class _Chain:
    """Which file holds which block of a disk, and those files, open."""

    def __init__(self, *, record: units.DiskRecord, image: str, members: list[tuple[Path, formats.StoredDisk]]) -> None:
        self._size = record.size
        self._owners = _owners(record.size, members)
        self._files: dict[int, io.FileIO] = {}
        try:
            for owner in sorted(set(self._owners)):
                folder, stored = members[owner]
                self._files[owner] = _open(folder / stored.data, image, record.name)
        except BaseException:
            self.close()
            raise

    def load(self, indices: Sequence[int]) -> list[disks.Buffer]:
        """The bytes of blocks as they lie there; the caller proves them. Raises ``OSError``."""
        return [self._load(index) for index in indices]

    def peek(self, offset: int, length: int) -> bytes:
        """Bytes within one block as they lie there. Raises ``OSError``."""
        return os.pread(self._files[self._owners[offset // digests.BLOCK]].fileno(), length, offset)

    def _load(self, index: int) -> disks.Buffer:
        handle = self._files[self._owners[index]].fileno()
        block = buffers.aligned(digests.block_length(index, self._size))
        return block[: os.preadv(handle, [block], index * digests.BLOCK)]

    def close(self) -> None:
        """Close the files. Idempotent."""
        for file in self._files.values():
            file.close()


def _owners(size: int, members: list[tuple[Path, formats.StoredDisk]]) -> array[int]:
    """For each block the position of the image in ``members`` that holds it."""
    last = len(members) - 1
    owners = array("I", [last]) * digests.block_count(size)
    for position in range(last - 1, -1, -1):
        for offset, length in formats.read_ranges(*members[position]):
            first, end = offset // digests.BLOCK, digests.block_count(offset + length)
            if end > len(owners):
                raise errors.ImageDamaged(f"disk {members[position][1].name}: changes beyond its end")
            owners[first:end] = array("I", [position]) * (end - first)
    return owners


def _open(path: Path, image: str, disk: str) -> io.FileIO:
    try:
        return io.FileIO(path)
    except FileNotFoundError as error:
        raise errors.ImageDamaged(
            f"image {image}, disk {disk}: {path} is missing", hint="use another copy of the image"
        ) from error


def _data_ranges(handle: int, size: int) -> extents.Extents:
    """Where a sparse file has data. Raises ``OSError``."""
    result: list[extents.Extent] = []
    position = 0
    end = min(size, os.fstat(handle).st_size)
    while position < end:
        try:
            start = os.lseek(handle, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        position = os.lseek(handle, start, os.SEEK_HOLE)
        result.append((start, min(position, end) - start))
    return tuple(result)
