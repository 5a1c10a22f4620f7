"""CRC-32C, the checksum of the log of XFS, which the standard library does not have.

Two bytes a step by a table of 65,536 values; the table is made when the first sum is asked for.
"""

from __future__ import annotations

import functools
import struct

_POLYNOMIAL = 0x82F63B78
_WORDS = 1 << 16


@functools.cache
def _table() -> list[int]:
    single: list[int] = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        single.append(value)
    firsts = [single[word & 255] ^ word >> 8 for word in range(_WORDS)]
    return [single[first & 255] ^ first >> 8 for first in firsts]


def crc32c(data: bytes) -> int:
    """The checksum of some bytes."""
    table = _table()
    value = 0xFFFFFFFF
    even = len(data) & ~1
    for word in struct.unpack(f"<{even // 2}H", data[:even]):
        value = table[(value ^ word) & 0xFFFF] ^ value >> 16
    for byte in data[even:]:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value ^ 0xFFFFFFFF
