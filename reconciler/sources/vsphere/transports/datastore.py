"""Flat disks read as files of their datastore, by ranges over the vCenter's HTTP service: nothing to install.

The file of a disk is the disk only while nothing lies below it: a disk whose snapshot has a parent, a sparse one, or
one on a datastore that keeps objects instead of files is refused, never half read. So is a file whose descriptor or
size says anything else than the snapshot's configuration.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import posixpath
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Final

from reconciler.base import disks, errors, extents
from reconciler.sources.vsphere.transports import descriptors, ports, ranges

#: Bytes of one request at most, and so of what is read ahead.
LARGEST: Final = 4 << 20
#: Readers of one disk that are followed at the same time, each with its read-ahead.
_FOLLOWED: Final = 4
_FILE_SYSTEMS: Final = ("VMFS", "NFS", "NFS41")
_KINDS: Final = {
    "Sparse": "a sparse disk, whose file does not hold its sectors in order",
    "SeSparse": "a sparse disk, whose file does not hold its sectors in order",
    "RawVirtual": "a raw device mapping",
    "RawPhysical": "a raw device mapping",
    "Other": "of a kind that is not known",
}


def request(datacenter: str, datastore: str, path: str) -> str:
    """What to ask the service for."""
    query = urllib.parse.urlencode({"dcPath": datacenter, "dsName": datastore}, quote_via=urllib.parse.quote)
    return f"/folder/{urllib.parse.quote(path)}?{query}"


class Datastore:
    """The transport ``datastore``."""

    name = "datastore"

    def __init__(self, *, patience: float = ranges.PATIENCE, pauses: Sequence[float] = ranges.PAUSES) -> None:
        """``patience``: seconds of silence before a request is given up; ``pauses``: before it is repeated."""
        self._patience = patience
        self._pauses = tuple(pauses)

    def refuses(self, frozen: ports.Frozen) -> str | None:
        """What the snapshot's configuration says against it."""
        disk = frozen.disk
        if disk.kind != "Flat":
            return f"the disk is {_KINDS[disk.kind]}"
        if disk.parent is not None:
            return (
                "the disk stands on another file: another snapshot was there first, and its file alone is not the disk"
            )
        local = frozen.datastore_type == "OTHER" and frozen.datastore_local
        if frozen.datastore_type not in _FILE_SYSTEMS and not local:
            return f"its datastore is of type {frozen.datastore_type or 'unknown'}, which gives no flat files"
        if not disk.datastore or not disk.path:
            return f"the name of its file is not understood: {disk.file!r}"
        return None

    def open(self, frozen: ports.Frozen) -> disks.Disk:
        """The disk, after its descriptor and the sizes of its files were found right."""
        reason = self.refuses(frozen)
        if reason is not None:
            raise errors.SourceError(f"{frozen.words}: {reason}", hint="name another transport")
        doing = f"{frozen.words}: {frozen.disk.file}"
        service = ranges.Ranges(frozen.session, frozen.meter, doing, patience=self._patience, pauses=self._pauses)
        with ranges.opened(service):
            place = request(frozen.datacenter, frozen.disk.datastore, frozen.disk.path)
            text = service.small(place, descriptors.LARGEST)
            return FlatDisk(frozen.disk.label, frozen.disk.size, service, _files(frozen, doing, service, text))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A range of the disk in a file."""

    start: int
    length: int
    request: str
    offset: int
    #: Bytes of the whole file.
    total: int


def _files(frozen: ports.Frozen, doing: str, service: ranges.Ranges, text: bytes) -> tuple[_File, ...]:
    folder = posixpath.dirname(frozen.disk.path)
    pieces = descriptors.flat(doing, text, frozen.disk.size)
    wanted: dict[str, int] = {}
    for piece in pieces:
        wanted[piece.file] = max(wanted.get(piece.file, 0), piece.offset + piece.length)
    places = {file: request(frozen.datacenter, frozen.disk.datastore, posixpath.join(folder, file)) for file in wanted}
    for file, size in wanted.items():
        found = service.size(places[file])
        if found != size:
            raise errors.SourceError(
                f"{doing}: {file} has {found} bytes, its descriptor says {size}",
                hint="the disk is damaged, or another program changes it",
            )
    return tuple(
        _File(
            start=piece.start,
            length=piece.length,
            request=places[piece.file],
            offset=piece.offset,
            total=wanted[piece.file],
        )
        for piece in pieces
    )


@dataclasses.dataclass(kw_only=True, slots=True)
class _Reader:
    """One that reads on and on: bytes it has asked for so far, and what was read ahead for it."""

    read: int
    ahead: memoryview


class FlatDisk(disks.Closing):
    """A disk in flat files of a datastore. Thread-safe; who reads on is read ahead for, more and more."""

    sector = descriptors.SECTOR

    def __init__(self, name: str, size: int, service: ranges.Ranges, files: Sequence[_File]) -> None:
        self.name = name
        self.size = size
        self._service = service
        self._files = files
        self._starts = [file.start for file in files]
        self._lock = threading.Lock()
        #: By where each is expected to go on.
        self._readers: collections.OrderedDict[int, _Reader] = collections.OrderedDict()

    def extents(self) -> extents.Extents:
        """The whole disk: files tell nothing of what was never written."""
        return ((0, self.size),) if self.size else ()

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``SourceError`` with the service's own words."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        with self._lock:
            reader = self._readers.pop(offset, None) or _Reader(read=0, ahead=memoryview(b""))
        data, rest = reader.ahead[:length], reader.ahead[length:]
        if len(data) < length:
            missing = length - len(data)
            start = offset + len(data)
            more = min(max(missing, min(reader.read, LARGEST)), self.size - start)
            fetched = self._fetch(start, more)
            rest = fetched[missing:]
            data = fetched[:missing] if not data else memoryview(b"".join((data, fetched[:missing])))
        with self._lock:
            self._readers[offset + length] = _Reader(read=reader.read + length, ahead=rest)
            if len(self._readers) > _FOLLOWED:
                self._readers.popitem(last=False)
        return data

    def _fetch(self, offset: int, length: int) -> memoryview:
        view = memoryview(bytearray(length))
        filled = 0
        while filled < length:
            file = self._files[bisect.bisect_right(self._starts, offset + filled) - 1]
            inside = offset + filled - file.start
            step = min(length - filled, file.length - inside, LARGEST)
            self._service.read(file.request, file.offset + inside, view[filled : filled + step], file.total)
            filled += step
        return view

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._service.close()
        with self._lock:
            self._readers.clear()
