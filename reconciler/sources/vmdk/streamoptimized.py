"""Stream-optimised VMDK, the form in which leases give and take disks: written and read from end to end, never sought.

In order, in sectors of 512 bytes: a header, a text descriptor, then compressed grains, each behind a marker that names
its place; behind the grains of each table the table; behind the last table their directory; a footer, which is the
header again and knows where the directory lies; an end marker. Files of qemu-img have directory and tables in front
instead, and end without a word. ``packs`` and ``write`` make the first kind; ``unpack`` reads both, and believes a
stream only when every grain that its tables name has come, and no other: one that is cut short is never a disk.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from reconciler.base import disks, errors, extents, meters
from reconciler.sources.vmdk import graintables

SECTOR: Final = 512
#: Bytes of one grain, and of what one table covers, in what is written here.
GRAIN: Final = 128 * SECTOR
_COVERED: Final = graintables.ENTRIES * GRAIN
_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_MARKER: Final = struct.Struct("<QII")
_MAGIC: Final = b"KDMV"
_NEWLINES: Final = b"\n \r\n"
_COMPRESSED: Final = 3 << 16  # compressed grains, with markers
_AT_END: Final = (1 << 64) - 1
_DESCRIPTOR: Final = 20
_OVERHEAD: Final = 128
_END, _TABLE, _DIRECTORY, _FOOTER = range(4)
#: 62 TiB, the largest disk that VMware makes.
_LARGEST: Final = 62 << 40
#: What a hostile header may make us keep: 64 MiB of tables in front hold a disk of 1 TiB.
_MOST_OVERHEAD: Final = (2 * 64 << 20) // SECTOR
_LEVEL: Final = 1
_ZERO: Final = bytes(GRAIN)


class NotAStream(errors.SourceError):
    """The bytes are no stream-optimised VMDK, contradict themselves, or end before it does."""


class Readable(Protocol):
    """Where a stream comes from."""

    def read(self, amount: int, /) -> bytes:
        """Up to ``amount`` bytes; none at the end."""


# -- writing ---------------------------------------------------------------------------------------------------------


def write(disk: disks.Disk, sink: Callable[[bytes], object], meter: meters.Meter) -> int:
    """Hand a disk to ``sink`` as a stream, piece by piece; returns the bytes that were handed over.

    Raises what reading the disk or ``sink`` raises, ``Cancelled``, or ``ValueError`` for a disk of more than 62 TiB.
    """
    written = 0
    for piece in packs(disk, meter):
        sink(piece)
        written += len(piece)
    return written


def packs(disk: disks.Disk, meter: meters.Meter) -> Iterator[bytes]:
    """The pieces of ``write``, for those who pull. Grains of zeros are left out; the virtual size is whole sectors.

    The meter counts bytes of the disk as ``scanned`` and packed bytes as ``sent``.
    """
    # A disk of no bytes is one sector of zeros: none has less.
    capacity = max(-(-disk.size // SECTOR), 1)
    if capacity * SECTOR > _LARGEST:
        raise ValueError(f"{disk.name}: no VMDK can have {disk.size} bytes")
    opening = _header(capacity, _AT_END) + _descriptor(disk.name, capacity)
    tables = _Tables(-(-capacity * SECTOR // _COVERED))
    yield tables.placed(opening.ljust(_OVERHEAD * SECTOR, b"\0"))
    covered = 0
    for offset, packed in _packed_grains(disk, meter):
        yield tables.before(offset)
        piece = tables.grain(offset, packed)
        end = min(offset + GRAIN, disk.size)
        meter.add(scanned=end - covered, sent=len(piece))
        covered = end
        yield piece
    meter.add(scanned=disk.size - covered)
    yield tables.before(None)
    directory = tables.position + 1
    yield _section(_DIRECTORY, graintables.packed(tables.directory))
    yield _section(_FOOTER, _header(capacity, directory)) + bytes(SECTOR)


class _Tables:
    """What a stream being written must say of itself at its end."""

    def __init__(self, count: int) -> None:
        #: Sectors so far.
        self.position = 0
        #: Sector of each table.
        self.directory = [0] * count
        self._number: int | None = None
        self._table = [0] * graintables.ENTRIES

    def placed(self, piece: bytes) -> bytes:
        self.position += len(piece) // SECTOR
        return piece

    def before(self, offset: int | None) -> bytes:
        """What comes before the grain at ``offset``, or before the end: the table of the grains so far, or nothing."""
        number = None if offset is None else offset // _COVERED
        piece = b""
        if self._number is not None and self._number != number:
            self.directory[self._number] = self.position + 1
            piece = self.placed(_section(_TABLE, graintables.packed(self._table)))
            self._table = [0] * graintables.ENTRIES
        self._number = number
        return piece

    def grain(self, offset: int, packed: bytes) -> bytes:
        if self.position >= 1 << 32:
            raise errors.TargetError(
                "packed it is larger than 2 TiB, more than a stream can hold", hint="restore this disk by another way"
            )
        self._table[offset % _COVERED // GRAIN] = self.position
        return self.placed(_padded(struct.pack("<QI", offset // SECTOR, len(packed)) + packed))


def _packed_grains(disk: disks.Disk, meter: meters.Meter) -> Iterator[tuple[int, bytes]]:
    """Grains that are not zero, in order, compressed by a few threads that run a little ahead."""
    workers = min(4, os.cpu_count() or 1)
    waiting: collections.deque[concurrent.futures.Future[list[tuple[int, bytes]]]] = collections.deque()
    wanted = extents.align(disk.extents(), GRAIN, disk.size)
    with concurrent.futures.ThreadPoolExecutor(workers, "pack") as pool:
        try:
            for offset, length in extents.pieces(wanted, disks.READ_SIZE):
                meter.check()
                waiting.append(pool.submit(_packed, disk, offset, length))
                if len(waiting) > 2 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                meter.check()
                yield from waiting.popleft().result()
        finally:
            for unread in waiting:
                unread.cancel()


def _packed(disk: disks.Disk, offset: int, length: int) -> list[tuple[int, bytes]]:
    data = memoryview(disk.pread(offset, length)).cast("B")
    found = []
    for start in range(0, length, GRAIN):
        # A grain at the end of the disk is as long as the others.
        grain = bytes(data[start : start + GRAIN]).ljust(GRAIN, b"\0")
        if grain != _ZERO:
            found.append((offset + start, zlib.compress(grain, _LEVEL)))
    return found


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def _section(kind: int, content: bytes) -> bytes:
    """A marker and what it announces."""
    content = _padded(content)
    return _padded(_MARKER.pack(len(content) // SECTOR, 0, kind)) + content


def _header(capacity: int, directory: int) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        3,
        1 | _COMPRESSED,
        capacity,
        GRAIN // SECTOR,
        1,
        _DESCRIPTOR,
        graintables.ENTRIES,
        0,
        directory,
        _OVERHEAD,
        0,
        _NEWLINES,
        1,
    )


def _descriptor(name: str, capacity: int) -> bytes:
    printable = "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in name if letter.isascii())
    lines = (
        "# Disk DescriptorFile",
        "version=1",
        "CID=fffffffe",
        "parentCID=ffffffff",
        'createType="streamOptimized"',
        "",
        "# Extent description",
        f'RDONLY {capacity} SPARSE "{printable[:100] or "disk"}.vmdk"',
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.adapterType = "lsilogic"',
        f'ddb.geometry.cylinders = "{min(capacity // (255 * 63), 65535)}"',
        'ddb.geometry.heads = "255"',
        'ddb.geometry.sectors = "63"',
        'ddb.virtualHWVersion = "13"',
        "",
    )
    return "\n".join(lines).encode().ljust(_DESCRIPTOR * SECTOR, b"\0")


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What a header says, in sectors."""

    capacity: int
    grain: int
    directory: int
    overhead: int


def unpack(
    name: str, stream: Readable, put: Callable[[int, disks.Buffer], object], size: int, meter: meters.Meter
) -> int:
    """Read a stream to its end and ``put`` the grains that are not zero at their offsets; returns their bytes.

    ``name``: the disk, for messages; ``size``: bytes that it must have. Nothing may be believed before this returns.
    Raises ``NotAStream``, ``Cancelled``, and what ``stream`` and ``put`` raise.
    """
    return _Reader(name, stream, put, size, meter).run()


class _Reader:
    """One reading; ``_at`` counts sectors."""

    def __init__(
        self, name: str, stream: Readable, put: Callable[[int, disks.Buffer], object], size: int, meter: meters.Meter
    ) -> None:
        self._name = name
        self._stream = stream
        self._put = put
        self._size = size
        self._meter = meter
        self._at = 0
        self._data = 0
        self._grain_bytes = GRAIN
        self._zeros = _ZERO
        self._tables = graintables.Seen()
        self._directory: tuple[int, Sequence[int]] | None = None

    def _broken(self, what: str) -> NotAStream:
        return NotAStream(f"{self._name}: sector {self._at} of its stream: {what}", hint="the next attempt asks anew")

    def _exactly(self, length: int, *, may_end: bool = False) -> bytes:
        """``length`` bytes, whole sectors; none of them where the stream may end, and does."""
        pieces = []
        missing = length
        while missing:
            piece = self._stream.read(min(missing, 1 << 20))
            if not piece:
                if may_end and missing == length:
                    return b""
                raise self._broken("it is cut short")
            pieces.append(piece)
            missing -= len(piece)
        self._at += length // SECTOR
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def run(self) -> int:
        """See ``unpack``."""
        head = self._parsed(self._exactly(SECTOR))
        front = self._front(head)
        self._grain_bytes = head.grain * SECTOR
        self._zeros = bytes(self._grain_bytes)
        footer: _Header | None = None
        while True:
            self._meter.check()
            at = self._at
            sector = self._exactly(SECTOR, may_end=front is not None)
            value, size, kind = _MARKER.unpack_from(sector) if sector else (0, 0, _END)
            if size:
                self._grain(at, value, size, sector)
            elif kind == _END:
                break
            elif kind == _FOOTER:
                footer = self._parsed(self._content(value, most=1))
            elif kind == _TABLE:
                self._table(value)
            elif kind == _DIRECTORY:
                most = -(-self._size // (graintables.ENTRIES * self._grain_bytes)) * 4 // SECTOR + 1
                place = self._at
                self._directory = (place, graintables.parsed(self._content(value, most=most)))
            else:
                raise self._broken(f"a marker of unknown kind {kind}")
        self._padding()
        self._settle(head, front, footer)
        return self._data

    def _parsed(self, sector: bytes) -> _Header:
        magic, version, flags, capacity, grain, _, _, entries, _, directory, overhead, _, newlines, method = (
            _HEADER.unpack(sector)
        )
        if magic != _MAGIC:
            raise self._broken("no VMDK begins like this")
        if flags & 1 and newlines != _NEWLINES:
            raise self._broken("its line ends were converted on the way")
        if version not in (1, 2, 3) or flags & _COMPRESSED != _COMPRESSED or method != 1:
            raise self._broken(f"a VMDK of another kind (version {version}, flags {flags:#x}, compression {method})")
        if entries != graintables.ENTRIES or not 8 <= grain <= 2048 or grain & (grain - 1):
            raise self._broken(f"grains of {grain} sectors, {entries} to a table")
        if not 0 < overhead <= _MOST_OVERHEAD:
            raise self._broken(f"{overhead} sectors before the first grain")
        if capacity * SECTOR != self._size:
            raise self._broken(f"it holds a disk of {capacity * SECTOR} bytes, the disk has {self._size}")
        return _Header(capacity=capacity, grain=grain, directory=directory, overhead=overhead)

    def _front(self, head: _Header) -> bytes | None:
        """What lies before the grains, if the tables do; else it is passed over."""
        if head.directory < head.overhead:
            return bytes(SECTOR) + self._exactly((head.overhead - 1) * SECTOR)
        for _ in range(head.overhead - 1):
            self._exactly(SECTOR)
        return None

    def _content(self, sectors: int, *, most: int) -> bytes:
        if not 0 < sectors <= most:
            raise self._broken(f"a marker that announces {sectors} sectors")
        return self._exactly(sectors * SECTOR)

    def _grain(self, at: int, place: int, size: int, sector: bytes) -> None:
        capacity, grain = self._size // SECTOR, self._grain_bytes // SECTOR
        if place % grain or place >= capacity:
            raise self._broken(f"a grain for sector {place} of {capacity}")
        if size > 2 * self._grain_bytes:
            raise self._broken(f"a grain packed into {size} bytes")
        rest = max(0, size - (SECTOR - 12))
        packed = sector[12:] + (self._exactly(-(-rest // SECTOR) * SECTOR) if rest else b"")
        unpacking = zlib.decompressobj()
        try:
            grown = unpacking.decompress(packed[:size], self._grain_bytes + 1)
        except zlib.error as error:
            raise self._broken(f"the grain of sector {place} is damaged: {error}") from error
        room = min(self._grain_bytes, self._size - place * SECTOR)
        if not unpacking.eof or not room <= len(grown) <= self._grain_bytes:
            raise self._broken(f"the grain of sector {place} does not hold {self._grain_bytes} bytes")
        if not self._tables.grain(place // grain, at):
            raise self._broken(f"the grain of sector {place} comes twice, or its tables do not come")
        if grown != self._zeros[: len(grown)]:
            self._put(place * SECTOR, memoryview(grown)[:room])
            self._data += room

    def _table(self, sectors: int) -> None:
        place = self._at
        if not self._tables.table(place, graintables.parsed(self._content(sectors, most=graintables.SECTORS))):
            raise self._broken("a table that names other grains than came")

    def _padding(self) -> None:
        while rest := self._stream.read(1 << 16):
            if rest.count(0) != len(rest):
                raise self._broken("there is more behind its end")

    def _settle(self, head: _Header, front: bytes | None, footer: _Header | None) -> None:
        """Hold the tables against the grains that came."""
        count = -(-head.capacity // (head.grain * graintables.ENTRIES))
        if front is not None:
            if not self._tables.fit_front(front, head.directory, count):
                raise self._broken("its tables name other grains than came")
            return
        if footer is None or self._directory is None:
            raise self._broken("it ends without its tables")
        place, directory = self._directory
        if footer.directory != place or footer.capacity != head.capacity or footer.grain != head.grain:
            raise self._broken("its footer contradicts it")
        if not self._tables.fit(directory, count):
            raise self._broken("its directory names other tables than came")
