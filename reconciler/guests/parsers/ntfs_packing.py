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
    start = len(out)
    while at < end:
        kinds = data[at]
        at += 1
        if not kinds and at + 8 <= end:
            out += data[at : at + 8]
            at += 8
            continue
        for _ in range(8):
            if at >= end:
                return
            if not kinds & 1:
                out.append(data[at])
                at += 1
            else:
                if at + 2 > end:
                    raise records.Damaged("its compressed data end too early")
                pair = data[at] | data[at + 1] << 8
                at += 2
                # The more bytes stand before it, the more bits say how far back, and the fewer how many.
                bits = max((len(out) - start - 1).bit_length(), 4)
                back, length = (pair >> 16 - bits) + 1, (pair & (1 << 16 - bits) - 1) + 3
                here = len(out) - back
                if here < start or len(out) + length > start + _CHUNK:
                    raise records.Damaged("its compressed data point outside of themselves")
                if back >= length:
                    out += out[here : here + length]
                else:
                    out += (out[here:] * (length // back + 1))[:length]
            kinds >>= 1
