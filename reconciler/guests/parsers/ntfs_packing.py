"""What NTFS compresses: LZNT1, in units of some clusters of which the fewer are kept.

A unit without clusters is all zeros, one with all of them is stored as it is, anything between is packed. Used by
``ntfs_nodes``; separate because only files that somebody marked as compressed need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reconciler.guests.parsers import ntfs_records as records

_LZNT1 = 1
_CHUNK = 4096
_PACKED, _LENGTH = 0x8000, 0x0FFF
#: Bytes a unit may have: 16 clusters of 64 KiB; Windows compresses clusters of up to 4 KiB.
_LARGEST = 1 << 20


class Unpacked:
    """A compressed stream, as its bytes."""

    def __init__(
        self, one: records.Attribute, cluster: int, read: Callable[[list[records.Run], int, int], bytes]
    ) -> None:
        """``read`` gives bytes by clusters, from an offset on. Raises ``Damaged`` where units are impossible."""
        self._one = one
        self._cluster = cluster
        self._read = read
        self._unit = cluster << one.unit
        if one.flags & records.COMPRESSED != _LZNT1 or not 0 < one.unit <= 8 or self._unit > _LARGEST:
            raise records.Damaged("it is compressed in an unknown way")
        self._last: tuple[int, bytes] = (-1, b"")

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Offset, 0 and length of what may hold data, in whole units."""
        each, written = 1 << self._one.unit, self._one.initialized
        start = end = 0
        for vcn, _, count in self._one.runs:
            first, last = vcn // each * each, -(-(vcn + count) // each) * each
            if first > end:
                if end > start and start * self._cluster < written:
                    yield start * self._cluster, 0, min((end - start) * self._cluster, written - start * self._cluster)
                start = first
            end = last
        if end > start and start * self._cluster < written:
            yield start * self._cluster, 0, min((end - start) * self._cluster, written - start * self._cluster)

    def unpack(self, offset: int, length: int) -> bytes:
        """Bytes of the stream. Raises ``Damaged`` and ``Truncated``."""
        pieces: list[bytes] = []
        end = offset + length
        while offset < end:
            number, at = divmod(offset, self._unit)
            if self._last[0] != number:
                self._last = number, self._one_unit(number)
            piece = self._last[1][at : at + end - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def _one_unit(self, number: int) -> bytes:
        first, each = number << self._one.unit, 1 << self._one.unit
        own = []
        count = 0
        for vcn, lcn, clusters in self._one.runs:
            start, stop = max(vcn, first), min(vcn + clusters, first + each)
            if start < stop:
                own.append((count, lcn + start - vcn, stop - start))
                count += stop - start
        if not count:
            return bytes(self._unit)
        data = self._read(own, 0, count * self._cluster)
        return data if count == each else expand(data, self._unit)


def expand(data: bytes, size: int) -> bytes:
    """The ``size`` bytes that some LZNT1 stands for; zeros where it ends early. Raises ``Damaged``."""
    out = bytearray()
    at = 0
    while at + 2 <= len(data) and len(out) < size:
        header = int.from_bytes(data[at : at + 2], "little")
        if not header:
            break
        end = at + 3 + (header & _LENGTH)
        if end > len(data):
            raise records.Damaged("its compressed data end too early")
        start = len(out)
        if header & _PACKED:
            _chunk(data, at + 2, end, out)
        else:
            out += data[at + 2 : end]
        if len(out) > start + _CHUNK:
            raise records.Damaged("its compressed data are too long")
        # Every chunk stands for 4 KiB; what one leaves out is zero.
        out += bytes(start + _CHUNK - len(out))
        at = end
    return bytes(out[:size]) + bytes(max(size - len(out), 0))


def _chunk(data: bytes, at: int, end: int, out: bytearray) -> None:
    """Append what one chunk stands for."""
    piece = bytearray()
    while at < end:
        literals, rest = _STEPS[data[at]]
        at += 1
        for count in literals:
            if count:
                piece += data[at : min(at + count, end)]
                at += count
            if at >= end:
                break
            size = len(piece)
            if at + 2 > end or not 0 < size <= _CHUNK:
                raise records.Damaged("its compressed data end too early")
            pair = data[at] | data[at + 1] << 8
            at += 2
            bits = _BITS[size]
            back, length = (pair >> bits) + 1, (pair & (1 << bits) - 1) + 3
            here = size - back
            if here < 0:
                raise records.Damaged("its compressed data point outside of themselves")
            if back >= length:
                piece += piece[here : here + length]
            else:
                piece += (piece[here:] * (length // back + 1))[:length]
        if rest:
            piece += data[at : min(at + rest, end)]
            at += rest
        if len(piece) > _CHUNK:
            raise records.Damaged("its compressed data are too long")
    out += piece


def _steps(kinds: int) -> tuple[tuple[int, ...], int]:
    counts, count = [], 0
    for bit in range(8):
        count += 1
        if kinds >> bit & 1:
            counts.append(count - 1)
            count = 0
    return tuple(counts), count


#: For every byte that says what follows: how many literals stand before each reference, and behind the last.
_STEPS = tuple(_steps(kinds) for kinds in range(256))
#: The more bytes stand before a reference, the more of its bits say how far back, and the fewer (these) how many.
_BITS = (0, *(16 - max((size - 1).bit_length(), 4) for size in range(1, _CHUNK + 1)))
