"""Disks by 1 MiB blocks: reading a source once while its digests are made, and reading a stored disk with proof.

``BlockWalk`` is the way in. A unit's writer iterates over it and stores what it yields; the walk decides what has to
be read, knows zeros, fills the digest list, compares it with the parent's, counts on the meter and stops when asked.
``ProvenDisk`` is the way out. A unit gives it a function that loads one block; every block is proven against its
digest before a byte of it is handed on. ``prove`` is the same as a report. ``check_list`` proves a stored list itself.
Shared by all unit types, so that equal disks have equal digests wherever they lie.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from blake3 import blake3

from reconciler.base import digests, disks, errors, extents, meters
from reconciler.storage import digestlists, memories, pieces, readaheads, units

entry = digestlists.entry
data_extents = digestlists.data_extents
check_list = digestlists.check_list
#: On the left of a comparison a bytearray compares with any buffer as fast as memory can be read.
_ZEROS = bytearray(digests.BLOCK)
#: Zeros fed to the plain digest at once where the disk has a hole: 16 MiB.
_HOLE_STEP = 16 * digests.BLOCK
#: Bytes of holes, 64 GiB, beyond which a disk gets no plain digest: terabytes of zeros would be hashed for hours.
_HASHED_HOLES = 64 << 30
#: Blocks read before they are asked for, and by how many threads: while one is hashed the next ones come.
_READ_AHEAD = 4
_READERS = 2
#: Bytes of blocks a ``ProvenDisk`` keeps for reads smaller than a block, where nobody asks for more.
_KEPT = 4 * digests.BLOCK
#: Bytes of a read that is not worth a whole block, unless it goes on where another one ended.
_SMALL = 128 << 10
#: Blocks of a long read that are loaded in one go.
_AT_ONCE = 8
#: Ends of reads that are remembered.
_ENDS = 16
#: What the operating system says of a medium that lost bytes; anything else may be the way to it, and pass.
_LOST = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block that a unit has to store."""

    #: Position in the digest list.
    index: int
    #: Bytes from the start of the disk, a multiple of 1 MiB.
    offset: int
    #: Bytes in the block: 1 MiB, less in the last one.
    length: int
    #: The bytes, or None where they are all zero (yielded only where the parent's are not).
    data: disks.Buffer | None


def is_zero(data: disks.Buffer) -> bool:
    """Whether ``data`` holds nothing but zeros."""
    return (_ZEROS if len(data) == digests.BLOCK else bytearray(len(data))) == data


def is_damage(error: OSError) -> bool:
    """Whether the bytes themselves are lost; else the unit cannot be reached as it should, which is no damage."""
    return error.errno in _LOST


class BlockWalk:
    """One reading of one disk. Iterate it once, to the end; then ask for ``digests``, ``record`` and ``changed``.

    ``parent`` is the digest list of the same disk in the parent image, ``changed`` the ranges that may differ from
    it (used with ``parent`` only). Without ``parent`` every block that is not zero is yielded; with it, every block
    whose digest differs, zero ones included. Blocks come in ascending order and their ``data`` stays valid.
    On the meter: ``scanned`` is what was looked at (holes included; with ``changed`` the blocks around it only),
    ``non_zero`` the bytes of blocks that are not zero. ``sent`` and ``stored`` are left to the unit.
    """

    def __init__(
        self,
        disk: disks.Disk,
        *,
        meter: meters.Meter,
        parent: bytes | None = None,
        changed: extents.Extents | None = None,
    ) -> None:
        if parent is not None and len(parent) != digests.block_count(disk.size) * digests.DIGEST_SIZE:
            raise errors.UnitError(
                f"disk {disk.name}: the parent's digest list does not fit {disk.size} bytes",
                hint="a disk whose size changed is written without parent",
            )
        self._disk = disk
        self._meter = meter
        self._parent = parent
        self._ranges = None if parent is None or changed is None else extents.align(changed, digests.BLOCK, disk.size)
        self._list = digests.zero_list(disk.size) if self._ranges is None else bytearray(parent or b"")
        self._plain = blake3() if self._ranges is None else None
        self._changed: list[extents.Extent] = []
        self._finished = False

    @property
    def digests(self) -> bytes:
        """The disk's list of 32-byte block digests, after the walk."""
        self._require_finished()
        return bytes(self._list)

    @property
    def changed(self) -> extents.Extents | None:
        """The blocks that differ from the parent's, as ranges; None where there was no parent. After the walk."""
        self._require_finished()
        return None if self._parent is None else tuple(self._changed)

    def record(self) -> units.DiskRecord:
        """What the image's label says of the disk. After the walk."""
        self._require_finished()
        return units.DiskRecord(
            name=self._disk.name,
            size=self._disk.size,
            sector=self._disk.sector,
            digest=digests.disk_digest(self._list),
            blake3=None if self._plain is None else self._plain.hexdigest(),
        )

    def written(self) -> units.WrittenDisk:
        """What a unit's ``write`` returns. After the walk."""
        return units.WrittenDisk(record=self.record(), changed=self.changed)

    def __iter__(self) -> Iterator[Block]:
        """The blocks to store. Raises ``Cancelled``, and ``SourceError`` where the disk gives less than it promised."""
        size = self._disk.size
        try:
            data_ranges = extents.align(self._disk.extents(), digests.BLOCK, size)
        except OSError as error:
            raise errors.SourceError(f"disk {self._disk.name}: its extents cannot be read: {error.strerror}") from error
        if size - extents.total(data_ranges) > _HASHED_HOLES:
            self._plain = None
        steps = self._steps(((0, size),) if self._ranges is None else self._ranges, data_ranges)
        coming: collections.deque[tuple[int, int, futures.Future[disks.Buffer] | None]] = collections.deque()
        with futures.ThreadPoolExecutor(_READERS, thread_name_prefix="reader") as readers:
            try:
                for offset, length, data in steps:
                    self._meter.check()
                    ahead = readers.submit(self._disk.pread, offset, length) if data else None
                    coming.append((offset, length, ahead))
                    if len(coming) > _READ_AHEAD:
                        yield from self._come(*coming.popleft())
                while coming:
                    yield from self._come(*coming.popleft())
            finally:
                # Whoever closes the disk next must find nobody reading it.
                for _, _, ahead in coming:
                    if ahead is not None:
                        ahead.cancel()
        self._finished = True

    def _steps(self, ranges: extents.Extents, data_ranges: extents.Extents) -> Iterator[tuple[int, int, bool]]:
        """What is looked at, in order: offset, length, and whether it must be read; holes are in one piece."""
        for start, length in ranges:
            position = start
            for offset, run in extents.intersect(((start, length),), data_ranges):
                yield position, offset - position, False
                for piece, step in extents.pieces(((offset, run),), digests.BLOCK):
                    yield piece, step, True
                position = offset + run
            yield position, start + length - position, False

    def _come(self, offset: int, length: int, ahead: futures.Future[disks.Buffer] | None) -> Iterator[Block]:
        return self._hole(offset, offset + length) if ahead is None else self._read(offset, length, ahead)

    def _read(self, offset: int, length: int, ahead: futures.Future[disks.Buffer]) -> Iterator[Block]:
        self._meter.check()
        try:
            data = ahead.result()
        except OSError as error:
            raise errors.SourceError(f"disk {self._disk.name}: read at {offset}: {error.strerror}") from error
        if len(data) != length:
            raise errors.SourceError(f"disk {self._disk.name}: read at {offset} gave {len(data)} of {length} bytes")
        if self._plain is not None:
            self._plain.update(data)
        zero = is_zero(data)
        self._meter.add(scanned=length, non_zero=0 if zero else length)
        if self._differs(offset, length, digests.zero_digest(length) if zero else digests.digest(data), zero):
            yield Block(index=offset // digests.BLOCK, offset=offset, length=length, data=None if zero else data)

    def _hole(self, start: int, end: int) -> Iterator[Block]:
        for offset in range(start, end, _HOLE_STEP):
            self._meter.check()
            step = min(_HOLE_STEP, end - offset)
            if self._plain is not None:
                for _, length in extents.pieces(((offset, step),), digests.BLOCK):
                    self._plain.update(memoryview(_ZEROS)[:length])
            self._meter.add(scanned=step)
            if self._parent is not None:
                yield from self._emptied(offset, step)

    def _emptied(self, start: int, run: int) -> Iterator[Block]:
        first, count = start // digests.BLOCK, digests.block_count(run)
        known = (self._parent or b"")[first * digests.DIGEST_SIZE : (first + count) * digests.DIGEST_SIZE]
        if digests.zero_list(run) == known:
            return
        for offset, length in extents.pieces(((start, run),), digests.BLOCK):
            if self._differs(offset, length, digests.zero_digest(length), True):
                yield Block(index=offset // digests.BLOCK, offset=offset, length=length, data=None)

    def _differs(self, offset: int, length: int, found: bytes, zero: bool) -> bool:
        index = offset // digests.BLOCK
        self._list[index * digests.DIGEST_SIZE : (index + 1) * digests.DIGEST_SIZE] = found
        if self._parent is None:
            return not zero
        if entry(self._parent, index) == found:
            return False
        _extend(self._changed, offset, length)
        return True

    def _require_finished(self) -> None:
        if not self._finished:
            raise RuntimeError(f"disk {self._disk.name} has not been walked to its end")


#: Loads blocks that are not zero: ascending indices -> their bytes, in order. Raises ``OSError`` or ``UnitError``.
Loader = Callable[[Sequence[int]], Sequence[disks.Buffer]]
#: A few bytes within one block that are proven by less than the block: offset, length -> bytes. Raises as a ``Loader``.
Part = Callable[[int, int], disks.Buffer]


class ProvenDisk(disks.Closing):
    """A disk of a stored image. ``load`` is called for blocks that are not zero, from any thread, and never trusted.

    Blocks read in part stay in a small cache, so that many small reads in a row load and prove a block once.
    """

    def __init__(
        self,
        *,
        image: str,
        record: units.DiskRecord,
        block_digests: bytes,
        load: Loader,
        part: Part | None = None,
        peek: pieces.Peek | None = None,
        workers: futures.Executor | None = None,
        release: Callable[[], None] | None = None,
        memory: memories.Memory[tuple[str, int]] | None = None,
    ) -> None:
        """``workers`` load and prove the next blocks for a reader that goes forward; without them none are. ``part``
        serves those who jump about, where a unit proves less than a block at a time; ``peek`` where it does not, and
        can read less. ``memory`` keeps blocks by disk and index; without it a few are kept."""
        self.name = record.name
        self.size = record.size
        self.sector = record.sector
        self._image = image
        self._digests = block_digests
        self._load = load
        self._release = release
        self._ahead = None if workers is None else readaheads.ReadAhead(self._stretch, workers, self._next_data)
        self._kept = memory or memories.Memory(_KEPT)
        self._part_of = pieces.Pieces(peek, self._proven, record.size).part if peek is not None else part
        self._loading: dict[int, futures.Future[disks.Buffer]] = {}
        self._ends: collections.deque[int] = collections.deque(maxlen=_ENDS)
        self._lock = threading.Lock()

    def extents(self) -> extents.Extents:
        """The blocks that are not zero, merged; known from the digest list alone."""
        return data_extents(self._digests, self.size)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``ImageDamaged`` naming image, disk and offset, or ``UnitError``."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        first = offset // digests.BLOCK
        if length and offset + length <= first * digests.BLOCK + digests.block_length(first, self.size):
            return self._part(first, offset - first * digests.BLOCK, length)
        result = bytearray(length)
        for start, data in self.parts(offset, length):
            result[start - offset : start - offset + len(data)] = data
        return result

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, disks.Buffer]]:
        """The proven blocks of a range that are not zero, each with its offset. Raises as ``pread``."""
        for group, many in extents.pieces([(offset, length)], _AT_ONCE * digests.BLOCK):
            cut = [
                one
                for one in extents.pieces([(group, many)], digests.BLOCK)
                if not self.is_hole(one[0] // digests.BLOCK)
            ]
            # Blocks that are wanted whole are loaded in one go; what is wrong with one is told when it comes alone.
            whole = [start // digests.BLOCK for start, step in cut if self._is_news(start // digests.BLOCK, step)]
            found = self._stretch(whole) if len(whole) > 1 else {}
            for start, step in cut:
                data = found.pop(start // digests.BLOCK, None)
                yield start, data or self._part(start // digests.BLOCK, start % digests.BLOCK, step)

    def _is_news(self, index: int, length: int) -> bool:
        """Whether ``length`` bytes are all of a block, and it is not kept."""
        return length == digests.block_length(index, self.size) and self._kept.get((self.name, index)) is None

    def close(self) -> None:
        """Drop the cache and release what loading holds."""
        with self._lock:
            self._kept.clear()
            release, self._release = self._release, None
        if release is not None:
            release()

    def is_hole(self, index: int) -> bool:
        """Whether block ``index`` is known to be zero."""
        return entry(self._digests, index) == digests.zero_digest(digests.block_length(index, self.size))

    def block(self, index: int) -> disks.Buffer:
        """Block ``index``, loaded and proven, past the cache. Raises ``ImageDamaged`` or ``UnitError``."""
        if self.is_hole(index):
            return bytes(digests.block_length(index, self.size))
        found = None if self._ahead is None else self._ahead.take(index)
        return self._proven(index) if found is None else found

    def _next_data(self, index: int) -> int | None:
        """The first block from ``index`` on that is not zero."""
        count = digests.block_count(self.size)
        return next((number for number in range(index, count) if not self.is_hole(number)), None)

    def _proven(self, index: int) -> disks.Buffer:
        length = digests.block_length(index, self.size)
        with self._told(index):
            (data,) = self._load((index,))
        if len(data) != length:
            raise self._damaged(index, f"{len(data)} of {length} bytes are there")
        if digests.digest(data) != entry(self._digests, index):
            raise self._damaged(index, "the bytes contradict their digest")
        return data

    def _stretch(self, indices: Sequence[int]) -> dict[int, disks.Buffer]:
        """Those of the blocks that are good; what is wrong with the others is told when they are asked for alone."""
        try:
            found = zip(indices, self._load(indices), strict=True)
        except (OSError, errors.UnitError):
            return {}
        return {index: data for index, data in found if digests.digest(data) == entry(self._digests, index)}

    def _part(self, index: int, start: int, length: int) -> disks.Buffer:
        kept = self._kept.get((self.name, index))
        if kept is None and length <= _SMALL and not self._goes_on(index, start, length) and self._part_of is not None:
            return self._small(index, start, length)
        if kept is None:
            if length == digests.block_length(index, self.size):
                return self.block(index)
            kept = self._loaded(index)
        return kept if length == len(kept) else memoryview(kept)[start : start + length]

    def _loaded(self, index: int) -> disks.Buffer:
        """A block that is kept from now on; who asks while it is loaded waits for it."""
        with self._lock:
            kept, coming = self._kept.get((self.name, index)), self._loading.get(index)
            if kept is not None:
                return kept
            if coming is None:
                mine = self._loading[index] = futures.Future()
        if coming is not None:
            return coming.result()
        try:
            kept = self.block(index)
            self._kept.put((self.name, index), kept)
            mine.set_result(kept)
            return kept
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._loading[index]

    def _goes_on(self, index: int, start: int, length: int) -> bool:
        """Whether somebody read up to here before; notes where this read ends."""
        offset = index * digests.BLOCK + start
        found = offset in self._ends
        self._ends.append(offset + length)
        return found

    def _small(self, index: int, start: int, length: int) -> disks.Buffer:
        if self._part_of is None or self.is_hole(index):
            return bytes(length)
        with self._told(index):
            return self._part_of(index * digests.BLOCK + start, length)

    @contextlib.contextmanager
    def _told(self, index: int) -> Iterator[None]:
        """Turns what the operating system says into what it means for the image."""
        try:
            yield
        except OSError as error:
            if is_damage(error):
                raise self._damaged(index, error.strerror or str(error)) from error
            raise errors.UnitError(f"image {self._image}, disk {self.name}: {error.strerror}") from error

    def _damaged(self, index: int, cause: str) -> errors.ImageDamaged:
        return errors.ImageDamaged(
            f"image {self._image}, disk {self.name}: block at offset {index * digests.BLOCK} is damaged: {cause}",
            hint="use another copy of the image",
        )


def _extend(ranges: list[extents.Extent], offset: int, length: int) -> None:
    if ranges and sum(ranges[-1]) == offset:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
    else:
        ranges.append((offset, length))


def prove(disk: ProvenDisk, *, image: str, meter: meters.Meter) -> tuple[units.Damage, ...]:
    """Load every block that is not zero and prove it; adjacent damaged blocks are one finding.

    Raises ``Cancelled``, and ``UnitError`` where the unit cannot be reached, which proves nothing.
    """
    found: list[units.Damage] = []
    for index in range(digests.block_count(disk.size)):
        meter.check()
        length = digests.block_length(index, disk.size)
        offset = index * digests.BLOCK
        try:
            hole = disk.is_hole(index)
            if not hole:
                disk.block(index)
            meter.add(scanned=length, non_zero=0 if hole else length)
        except errors.ImageDamaged as error:
            if found and found[-1].offset + found[-1].length == offset:
                found[-1] = dataclasses.replace(found[-1], length=found[-1].length + length)
            else:
                found.append(
                    units.Damage(image=image, disk=disk.name, offset=offset, length=length, message=error.message)
                )
    return tuple(found)
