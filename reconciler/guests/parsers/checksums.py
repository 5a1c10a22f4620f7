"""CRC-32C, the checksum of the log of XFS, which the standard library does not have.

Byte after byte it would take longer than all else that is done with a log. So the data are cut into many short rows,
whose sums are worked out side by side: all first bytes at once, then all second ones, as long numbers. The sums of the
rows are put together at the end: what stands before a row of zeros changes a sum in a way that a table tells.
"""

from __future__ import annotations

import functools
import struct

_POLYNOMIAL = 0x82F63B78
#: Bytes of a row.
_ROW = 64
_FULL = 0xFFFFFFFF


@functools.cache
def _single() -> list[int]:
    """By the lowest byte of a sum, what the next byte makes of it."""
    found: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return found


@functools.cache
def _columns() -> list[bytes]:
    """The same, its four bytes apart, the lowest first."""
    return [bytes(value >> shift & 255 for value in _single()) for shift in (0, 8, 16, 24)]


@functools.cache
def _passed() -> list[list[int]]:
    """By each of the four bytes of a sum, what a row of zeros makes of it."""
    found: list[list[int]] = []
    for shift in (0, 8, 16, 24):
        found.append([_plain(byte << shift, bytes(_ROW)) for byte in range(256)])
    return found


def _plain(value: int, data: bytes) -> int:
    table = _single()
    for byte in data:
        value = table[(value ^ byte) & 255] ^ value >> 8
    return value


def _rows(data: bytes) -> tuple[int, ...]:
    """The sum of each row by itself, begun with zero."""
    count = len(data) // _ROW
    columns = _columns()
    state = [0, 0, 0, 0]
    for number in range(_ROW):
        mixed = (state[0] ^ int.from_bytes(data[number::_ROW], "little")).to_bytes(count, "little")
        state = [
            after ^ int.from_bytes(mixed.translate(column), "little")
            for after, column in zip((*state[1:], 0), columns, strict=True)
        ]
    sums = bytearray(4 * count)
    for number, one in enumerate(state):
        sums[number::4] = one.to_bytes(count, "little")
    return struct.unpack(f"<{count}I", sums)


def crc32c(data: bytes) -> int:
    """The checksum of some bytes."""
    even = len(data) // _ROW * _ROW
    value = _FULL
    first, second, third, fourth = _passed()
    for one in _rows(data[:even]):
        value = first[value & 255] ^ second[value >> 8 & 255] ^ third[value >> 16 & 255] ^ fourth[value >> 24] ^ one
    return _plain(value, data[even:]) ^ _FULL
