"""The log of XFS: where it begins and ends, its records, and the transactions that were written whole.

Used by ``xfs_replays`` alone. The log is a ring of basic blocks of 512 bytes. The first four bytes of each are the
number of the round in which it was written; what stood there is kept in the header of its record. A transaction is
spread over operations of one or more records, and counts once its commit is there. What a crash left half written at
the head is left out as the kernel leaves it out: by the rounds, and by the checksums of the newest records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests.parsers import checksums, stretches, xfs_shapes

BASIC = 512
_MAGIC = 0xFEEDBABE
_MAGIC_BYTES = _MAGIC.to_bytes(4, "big")
_TRANSACTION_MAGIC = 0x5452414E
#: Bytes of a record whose first words one block of its header can keep, and of the longest record.
_HEADER_REACH, _LONGEST = 32 << 10, 256 << 10
#: Basic blocks of the longest record with its header, and of all records that may be on their way to disk at once.
_SPAN, _FLIGHT = 520, 4096
#: Records that may be on their way at once.
_BUFFERS = 8
#: Bytes of a header that its checksum covers: with and without the padding of 64-bit machines; and of a further block.
_COVERED, _FURTHER = (328, 324), 260
_LITTLE_ENDIAN = 1
_CLIENTS = (0x69, 0xAA)
_START, _COMMIT, _CONTINUE, _WAS_CONTINUED, _END, _UNMOUNT = 1, 2, 4, 8, 16, 32
_MOST_REGIONS, _LONGEST_REGION = 257, 256 << 10
#: What is read of a log at most, the operations in it, and what transactions that are not complete may hold.
_MOST_READ, _MOST_OPERATIONS = 512 << 20, 16_000_000
_MOST_HELD, _MOST_HELD_REGIONS, _MOST_OPEN = 128 << 20, 1_000_000, 10_000

Damaged = xfs_shapes.Damaged


class Transaction(NamedTuple):
    """Everything that one commit made valid."""

    #: Where in the log it began: the round, and the basic block.
    sequence: int
    #: The regions of each item; the first begins with its type, and there are as many as it says.
    items: list[list[bytes | bytearray]]


class _Header(NamedTuple):
    #: The basic block it lies in, and how many it takes.
    at: int
    blocks: int
    length: int
    sequence: int
    #: Basic block of the oldest record that was not written back to its place.
    tail: int
    checksum: int
    operations: int
    #: Bytes of the buffer it was written from.
    size: int
    data: bytes

    @property
    def after(self) -> int:
        """The basic block behind the record, not yet wrapped."""
        return self.at + self.blocks + -(-self.length // BASIC)


class _Broken(Exception):
    """A record is not whole, as one torn by a crash."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


class Log:
    """The log of one volume, its ends found. Raises ``Damaged`` and ``Truncated``."""

    def __init__(self, stretch: stretches.Stretch, shape: xfs_shapes.Shape) -> None:
        self._stretch = stretch
        self._shape = shape
        self._base = shape.place(shape.log, shape.log_blocks)
        self._total = shape.log_blocks * shape.block // BASIC
        #: Whether the newest record says that everything was written back.
        self.clean = False
        #: The basic blocks where the next record would go and where the oldest one lies; bytes of a buffer.
        self._head = self._tail = self._size = 0
        if self._total < _SPAN:
            raise Damaged("its log is too short")
        self._find()

    def _read(self, at: int, count: int) -> bytes:
        """``count`` basic blocks from ``at`` on, around the end of the log."""
        at %= self._total
        first = min(count, self._total - at)
        data = self._stretch.exactly(self._base + at * BASIC, first * BASIC)
        return data if first == count else data + self._stretch.exactly(self._base, (count - first) * BASIC)

    def _cycles(self, at: int, count: int) -> Iterator[int]:
        """The rounds in which basic blocks were written."""
        data = self._read(at, count)
        for offset in range(0, len(data), BASIC):
            first, second = struct.unpack_from(">II", data, offset)
            yield second if first == _MAGIC else first

    def _cycle(self, at: int) -> int:
        return next(self._cycles(at, 1))

    def _header(self, at: int) -> _Header:
        """The header of the record at a basic block. Raises ``_Broken``."""
        at %= self._total
        data = self._read(at, 1)
        magic, _, version, length, sequence, tail = struct.unpack_from(">4IQQ", data)
        (checksum,) = struct.unpack_from("<I", data, 32)
        (operations,) = struct.unpack_from(">I", data, 40)
        (size,) = struct.unpack_from(">I", data, 320)
        wide = version & 2 and size > _HEADER_REACH
        most = min(size, _LONGEST) if version & 2 and size else _HEADER_REACH
        # What mkfs writes may be longer than the buffer it names.
        most = _LONGEST if operations == 1 else most
        if magic != _MAGIC or not version or version & ~3 or not 0 < length <= most or size > _LONGEST:
            raise _Broken(at, "a record of its log is none")
        blocks = -(-size // _HEADER_REACH) if wide else 1
        if blocks * _HEADER_REACH < length:
            raise _Broken(at, "a record of its log is longer than its header can tell")
        further = self._read(at + 1, blocks - 1) if blocks > 1 else b""
        place = tail & 0xFFFFFFFF
        return _Header(at, blocks, length, sequence, place, checksum, operations, size, data + further)

    def _body(self, header: _Header) -> bytes:
        """What a record holds, as it lies on disk."""
        return self._read(header.at + header.blocks, -(-header.length // BASIC))

    def _verify(self, header: _Header) -> None:
        """Raises ``_Broken`` where the checksum of a record says that it is not whole; not all of them have one."""
        if not header.checksum:
            return
        # Only blocks of the header that this length needs are covered, though there may be more of them.
        end = -(-header.length // _HEADER_REACH) * BASIC
        further = b"".join(header.data[at : at + _FURTHER] for at in range(BASIC, end, BASIC))
        rest = further + self._body(header)[: header.length]
        for covered in _COVERED:
            first = header.data[:32] + bytes(4) + header.data[36:covered]
            if checksums.crc32c(first + rest) == header.checksum:
                return
        raise _Broken(header.at, "a record of its log does not match its checksum")

    def _unpacked(self, header: _Header) -> bytes:
        """What a record holds, as it was before it was stamped with its round."""
        data = bytearray(self._body(header))
        for number in range(len(data) // BASIC):
            block, word = divmod(number, _HEADER_REACH // BASIC)
            at = block * BASIC + (4 if block else 44) + 4 * word
            data[number * BASIC : number * BASIC + 4] = header.data[at : at + 4]
        return bytes(data[: header.length])

    def _find(self) -> None:
        """Find where the log begins and ends."""
        if not self._cycle(0):
            return
        try:
            head = self._whole(self._newest_round())
            self._set_ends(head, self._header(self._before(head)))
            if not self.clean:
                self._leave_torn()
        except _Broken as error:
            raise Damaged(str(error)) from None

    def _newest_round(self) -> int:
        """The basic block from which on the newest round was not written."""
        total = self._total
        first, last = self._cycle(0), self._cycle(total - 1)
        low, head, stop = 0, total, last - 1
        if first != last:
            stop = last
            while head - low > 1:
                middle = (low + head) // 2
                low, head = (low, middle) if self._cycle(middle) == last else (middle, head)
        scan = min(total, _FLIGHT)
        if head >= scan:
            return self._first(head - scan, scan, stop, head)
        # Writes that were under way together may have left holes, also before the end of the ring.
        start = total - (scan - head)
        found = self._first(start, scan - head, stop - 1, total)
        return found if found < total else self._first(0, head, stop, head)

    def _first(self, at: int, count: int, cycle: int, otherwise: int) -> int:
        """The first of some basic blocks that was written in one round."""
        return next((at + number for number, one in enumerate(self._cycles(at, count)) if one == cycle), otherwise)

    def _whole(self, head: int) -> int:
        """The head, put before the last record where not all of it was written."""
        try:
            last = self._header(self._before(head))
            if last.after % self._total != head % self._total:
                head = last.at
        except _Broken as error:
            head = error.at
        return head % self._total

    def _before(self, at: int) -> int:
        """The basic block where the record before another one begins. Raises ``Damaged``."""
        data = self._read(at - _SPAN, _SPAN)
        for offset in range(len(data) - BASIC, -1, -BASIC):
            if _starts(data, offset):
                return (at - _SPAN + offset // BASIC) % self._total
        raise Damaged("its log holds no record before its head")

    def _set_ends(self, head: int, last: _Header) -> None:
        if last.tail >= self._total:
            raise Damaged("the oldest record of its log lies outside of it")
        self._head, self._tail, self._size = head, last.tail, last.size
        self.clean = False
        if last.after % self._total == head and last.operations == 1:
            self.clean = bool(self._read(last.at + last.blocks, 1)[9] & _UNMOUNT)

    def _leave_torn(self) -> None:
        """Put the head before the first of the newest records that is not whole."""
        at = self._head
        for _ in range(_BUFFERS):
            if at == self._tail:
                break
            try:
                at = self._before(at)
            except Damaged:
                # A young log.
                break
        try:
            self._check(at)
        except _Broken as error:
            self._set_ends(error.at, self._header(self._before(error.at)))

    def _check(self, tail: int) -> None:
        """Read all records from a basic block to the head. Raises ``_Broken``."""
        for header in self._headers(tail):
            self._verify(header)

    def _headers(self, tail: int) -> Iterator[_Header]:
        """The headers of all records from a basic block to the head. Raises ``_Broken``."""
        at, left = tail, (self._head - tail) % self._total
        if left * BASIC > _MOST_READ:
            raise Damaged(f"more than {_MOST_READ >> 20} MiB of its log are not written back")
        while left > 0:
            header = self._header(at)
            yield header
            left -= header.after - header.at
            at = header.after

    def check(self) -> None:
        """Look through the whole log once; where its oldest records were overwritten by torn ones, begin behind them.

        Raises ``Damaged``.
        """
        while True:
            try:
                self._check(self._tail)
            except _Broken as error:
                # The tail was moved before it was overwritten; what would have told so is what was torn.
                reach = _BUFFERS * max(self._size, _HEADER_REACH) // BASIC
                if (error.at - self._head) % self._total > reach:
                    raise Damaged(str(error)) from None
                self._tail = self._next(error.at)
            else:
                return

    def _next(self, at: int) -> int:
        """The basic block of the next record, or the head."""
        while at != self._head:
            at = (at + 1) % self._total
            if _starts(self._read(at, 1), 0):
                break
        return at

    def transactions(self) -> Iterator[Transaction]:
        """All whole transactions, in the order of their commits. Raises ``Damaged`` and ``Truncated``."""
        pending = _Pending()
        try:
            for header in self._headers(self._tail):
                (order,) = struct.unpack_from(">I", header.data, 300)
                if order != _LITTLE_ENDIAN:
                    raise Damaged("its log was written by a machine of another byte order")
                if header.data[304:320] != self._shape.uuid:
                    raise Damaged("its log belongs to another volume")
                yield from pending.take(header.sequence, self._unpacked(header), header.operations)
        except _Broken as error:
            raise Damaged(str(error)) from None


def _starts(data: bytes, offset: int) -> bool:
    return data[offset : offset + 4] == _MAGIC_BYTES


class _Collected:
    """A transaction that is not complete."""

    __slots__ = ("items", "sequence", "started")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.started = False
        self.items: list[list[bytes | bytearray]] = []


class _Pending:
    """The transactions that were begun, by their number."""

    def __init__(self) -> None:
        self._open: dict[int, _Collected] = {}
        self._held = self._regions = self._operations = 0

    def take(self, sequence: int, data: bytes, count: int) -> Iterator[Transaction]:
        """Work off the operations of one record. Raises ``Damaged``."""
        at, end = 0, len(data)
        while at + 12 <= end and count:
            number, length, client, flags = struct.unpack_from(">IIBB", data, at)
            at += 12
            count -= 1
            self._operations += 1
            if client not in _CLIENTS or at + length > end or self._operations > _MOST_OPERATIONS:
                raise Damaged("an operation in its log is not readable")
            found = self._open.get(number)
            if found is not None:
                done = self._operate(number, found, flags, data[at : at + length])
                if done is not None:
                    yield done
            elif flags & _START:
                self._open[number] = _Collected(sequence)
                if len(self._open) > _MOST_OPEN:
                    raise Damaged("too many transactions of its log are not complete")
            at += length

    def _operate(self, number: int, found: _Collected, flags: int, data: bytes) -> Transaction | None:
        flags &= ~_END
        if flags & _WAS_CONTINUED:
            flags &= ~_CONTINUE
        if flags in (0, _CONTINUE):
            self._add(found, data)
        elif flags == _WAS_CONTINUED:
            self._lengthen(found, data)
        elif flags in (_COMMIT, _UNMOUNT):
            self._release(self._open.pop(number))
            if flags == _COMMIT:
                if found.items and len(found.items[-1]) != _regions(found.items[-1]):
                    raise Damaged("an item in its log is not complete")
                return Transaction(found.sequence, found.items)
        else:
            raise Damaged("an operation in its log is not known")
        return None

    def _add(self, found: _Collected, data: bytes) -> None:
        """A new region, or the header of the transaction."""
        if not data:
            return
        if not found.started:
            if data[:4] != _TRANSACTION_MAGIC.to_bytes(4, "little") or len(data) > 16:
                raise Damaged("a transaction in its log is none")
            found.started = len(data) == 16
            return
        if not found.items or len(found.items[-1]) == _regions(found.items[-1]):
            if len(data) < 4 or not 0 < _regions([data]) <= _MOST_REGIONS:
                raise Damaged("an item in its log is not readable")
            found.items.append([])
        found.items[-1].append(data)
        self._regions += 1
        self._hold(len(data))

    def _lengthen(self, found: _Collected, data: bytes) -> None:
        """The rest of a region that did not fit into its record."""
        if not found.started:
            found.started = True
            return
        if not found.items:
            raise Damaged("an operation in its log continues nothing")
        regions = found.items[-1]
        last = regions[-1]
        if not isinstance(last, bytearray):
            last = regions[-1] = bytearray(last)
        last += data
        if len(last) > _LONGEST_REGION:
            raise Damaged("an item in its log is too long")
        self._hold(len(data))

    def _hold(self, count: int) -> None:
        self._held += count
        if self._held > _MOST_HELD or self._regions > _MOST_HELD_REGIONS:
            raise Damaged("a transaction in its log is too long")

    def _release(self, found: _Collected) -> None:
        self._held -= sum(len(region) for item in found.items for region in item)
        self._regions -= sum(len(item) for item in found.items)


def _regions(item: list[bytes | bytearray]) -> int:
    """How many regions an item has, as its first one says."""
    return int.from_bytes(item[0][2:4], "little")
