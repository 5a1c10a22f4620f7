"""A machine's screen as QEMU dumps it (PPM) turned into a PNG of bounded size.

QEMU writes PNG itself only from 7.1 on and where it was built so; the plain format it always has. ``emulators`` calls
this; pure, so that tests need no machine for it.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

#: Bytes that a picture may have; larger ones are halved until they fit.
MOST: Final = 2 << 20
_HEADER: Final = re.compile(rb"P6\s(\d{1,5})\s(\d{1,5})\s255\s")
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def png(ppm: bytes, most: int = MOST) -> bytes | None:
    """The picture as PNG of at most ``most`` bytes, halved as often as that takes; None for what is no whole PPM."""
    header = _HEADER.match(ppm)
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    pixels = ppm[header.end() :]
    if not width or not height or len(pixels) < 3 * width * height:
        return None
    rows = [pixels[3 * width * row : 3 * width * (row + 1)] for row in range(height)]
    while len(found := _encoded(rows, width)) > most and width > 1:
        rows = [_halved(row) for row in rows[::2]]
        width = len(rows[0]) // 3
    return found


def _halved(row: bytes) -> bytes:
    """Every second pixel."""
    kept = bytearray(len(row[::6]) * 3)
    for channel in range(3):
        kept[channel::3] = row[channel::6]
    return bytes(kept)


def _encoded(rows: list[bytes], width: int) -> bytes:
    shape = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    # Each row is led by its filter, 0 for none.
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 6)
    return _SIGNATURE + _chunk(b"IHDR", shape) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
