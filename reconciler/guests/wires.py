"""What passes between Holdfast and the child that parses a guest: frames over one socket, both directions.

The child asks for bytes of the disk (``READ``) and gets exactly those. Everything else it says goes one way: for each
volume ``BEGIN``, then runs, ranges or files, then ``COMMIT``, and ``END`` at last. A child that serves a browser goes
on: each ``REQUEST`` (JSON) is answered by frames up to an ``END``. Shared by both ends, and all the two have in common.
The child may have been taken over by what it parses, so the receiver trusts no length.
"""

from __future__ import annotations

import json
import struct

#: kind, bytes of payload (for READ: bytes wanted), value (for READ: offset on the disk).
HEADER = struct.Struct("<IIq")
#: Bytes: the largest payload of a frame.
MOST = 8 << 20
#: Bytes: the most one READ may ask for.
MOST_READ = 1 << 20

#: The longest path, a count of characters.
MOST_PATH = 32_768
#: No offset, size or number beyond this is believed.
MOST_NUMBER = 1 << 62
#: Nanoseconds from 1970: no moment further away is told, which is one of the year 2262.
MOST_MOMENT = (1 << 63) - 1
_CLIMBING = frozenset(("", ".", ".."))

READ = 1
#: A volume starts; the payload is its JSON description.
BEGIN = 2
#: Runs of files: four native 64-bit integers each: file, file offset, disk offset, length.
RUNS = 3
#: Free ranges: two native 64-bit integers each: disk offset, length.
FREE = 4
#: Ranges of page files, like FREE.
PAGES = 5
#: Ranges of swap, like FREE.
SWAP = 6
#: A batch of files, a JSON list.
FILES = 7
#: The volume that began is complete; the payload is its final JSON description.
COMMIT = 8
#: A JSON pair: code and message.
WARNING = 9
END = 10
#: What the volume that began has handed over is void; its COMMIT still follows.
ABANDON = 11
#: To the child: a JSON list, the name of what is wanted and its arguments.
REQUEST = 12
#: Nodes, a JSON list of rows; in answer to ``list`` each with its name.
NODES = 13
#: Where a stream lies, a JSON object; its runs follow as ``EXTENTS``.
CONTENT = 14
#: Runs of a stream: three native 64-bit integers each: offset in the file, on the disk (-1: only the child can make
#: the bytes), length.
EXTENTS = 15
#: Bytes of a stream.
BYTES = 16
#: The request cannot be answered; a JSON pair: ``missing``, ``refused`` or ``damaged``, and why.
FAULT = 17
#: Behind the last name of a directory: how many names in it no file can bear, a JSON number; absent where none.
NAMELESS = 18


class Broken(Exception):
    """What arrived is not what the two ends agreed on."""


def proper(path: str) -> bool:
    """Whether a path within a volume leads nowhere but down: no empty part, no ``.`` or ``..``; empty is the root."""
    if len(path) > MOST_PATH or "\x00" in path:
        return False
    return not path or _CLIMBING.isdisjoint(path.split("/"))


def bearable(name: str) -> bool:
    """Whether a file can have this name in its directory."""
    return bool(name) and "/" not in name and proper(name)


def pack(kind: int, payload: bytes = b"") -> bytes:
    """One frame with its payload."""
    return HEADER.pack(kind, len(payload), 0) + payload


def pack_json(kind: int, value: object) -> bytes:
    """One frame with a JSON payload; lone surrogates survive as escapes."""
    return pack(kind, json.dumps(value, separators=(",", ":")).encode("ascii"))


def ask(offset: int, length: int) -> bytes:
    """A frame that asks for ``length`` bytes of the disk at ``offset``."""
    return HEADER.pack(READ, length, offset)


def unpack_json(payload: bytes) -> object:
    """The value in a payload. Raises ``Broken`` on anything that is not JSON of sane depth."""
    try:
        value: object = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Broken(f"not JSON: {error}") from error
    return value
