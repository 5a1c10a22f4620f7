"""Disks with a few instructions on it: guests that do one thing, within a moment of their start."""

from __future__ import annotations

import struct
from pathlib import Path

#: What the real machine shows, for want of a better place that every module may import.
NONCE = "c0ffee5eed"
_START = 0x7C00
_HALT = b"\xf4\xeb\xfd"
#: Writes what it runs from to the second sector of its disk, by the firmware's call.
WRITE = b"\xb8\x01\x03\xbb\x00\x7c\xb9\x02\x00\xba\x80\x00\xcd\x13"
#: Forgets where its interrupts go, and asks for one: a triple fault.
CRASH = b"\x0f\x01\x1e\x00\x05\xcc"
#: Switches the machine off as the operating systems of QEMU's default machine do, by the port of its power management.
OFF = b"\xba\x04\x06\xb8\x00\x20\xef"


#: Sends 20,000 letters to the first serial port without asking it whether it is ready.
BURST = (
    b"\xfc\x8e\xc0\xbf\x00\x80\xb0x\xb9\x20\x4e\xf3\xaa"  # that many x into memory
    b"\xba\xf8\x03\xb9\x20\x4e\xbe\x00\x80\xf3\x6e"  # and out
)
#: Waits for the first serial port and sends it one letter; in between the end of the text is looked for.
_SEND = b"\x88\xc4\xba\xfd\x03\xec\xa8\x20\x74\xfb\x88\xe0\xba\xf8\x03\xee"
_LOOP = b"\xac\x84\xc0\x74" + bytes([len(_SEND) + 2]) + _SEND + b"\xeb" + bytes([256 - len(_SEND) - 7])


def disk(path: Path, says: bytes = b"", then: bytes = _HALT, *, first: bytes = b"", size: int = 1 << 20) -> Path:
    """A raw disk that does ``first``, writes ``says`` to the first serial port, then does ``then``."""
    head = b"\x31\xc0\x8e\xd8" + first + b"\xbe"
    text = _START + len(head) + 2 + len(_LOOP) + len(then)
    code = head + struct.pack("<H", text) + _LOOP + then + says + b"\0"
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(size - 512))
    return path


#: For ``then``: says it again, for ever; jumps back over itself, the loop and what sets its start.
AGAIN = b"\xe9" + struct.pack("<h", -(3 + len(_LOOP) + 3))
