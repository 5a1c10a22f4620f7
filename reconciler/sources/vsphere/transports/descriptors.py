"""The text beside a flat disk that says which files hold its sectors, read with suspicion.

Only a disk that stands alone and whose sectors lie in flat files of the same folder, one behind the other, is taken.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Final

from reconciler.base import errors

SECTOR: Final = 512
#: Bytes that a descriptor may have: those of a disk in thousands of pieces.
LARGEST: Final = 1 << 20
_PAIR: Final = re.compile(r'\s*([A-Za-z0-9_.]+)\s*=\s*"?([^"\n]*?)"?\s*')
_EXTENT: Final = re.compile(
    r'\s*(RW|RDONLY|NOACCESS)\s+(\d{1,16})\s+([A-Z0-9_]+)(?:\s+"([^"]*)"(?:\s+(\d{1,16}))?)?\s*'
)
_FLAT: Final = ("FLAT", "VMFS")


class Unreadable(errors.SourceError):
    """The descriptor describes something else than a flat disk that stands alone."""

    retryable = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A range of the disk, in bytes, and where it lies."""

    start: int
    length: int
    #: Name of the file, beside the descriptor.
    file: str
    #: Where the range begins in the file.
    offset: int


def flat(doing: str, text: bytes, size: int) -> tuple[Piece, ...]:
    """The pieces of a disk of ``size`` bytes, in order and without gaps. Raises ``Unreadable``; ``doing`` begins it."""
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{doing}: its descriptor is no text, so it is no flat disk") from error
    if not lines or lines[0].strip() != "# Disk DescriptorFile":
        raise Unreadable(f"{doing}: this is no descriptor of a disk")
    pairs: dict[str, str] = {}
    pieces: list[Piece] = []
    start = 0
    for line in lines:
        extent = _EXTENT.fullmatch(line)
        if extent is not None:
            piece = _piece(doing, extent, start)
            pieces.append(piece)
            start += piece.length
        elif (pair := _PAIR.fullmatch(line)) is not None:
            pairs.setdefault(pair[1].lower(), pair[2])
        elif line.strip() and not line.lstrip().startswith("#"):
            raise Unreadable(f"{doing}: its descriptor has a line that is not known: {line.strip()[:100]}")
    _alone(doing, pairs)
    if start != size:
        raise Unreadable(f"{doing}: its descriptor describes {start} bytes, the disk has {size}")
    return tuple(pieces)


def _alone(doing: str, pairs: Mapping[str, str]) -> None:
    parent = pairs.get("parentcid", "").lower()
    if parent != "ffffffff" or "parentfilenamehint" in pairs:
        raise Unreadable(
            f"{doing}: its descriptor names a parent ({parent or 'no parentCID'}): its files alone are not the disk",
            hint="another snapshot lies below; consolidate it, or read by nbdkit-vddk",
        )
    filters = pairs.get("ddb.iofilters", "")
    if "crypt" in filters.lower() or any(key.startswith("encryption") for key in pairs):
        raise Unreadable(f"{doing}: it is encrypted: its files do not hold what the guest sees", hint="use nbdkit-vddk")


def _piece(doing: str, extent: re.Match[str], start: int) -> Piece:
    access, sectors, kind, file, offset = extent.groups()
    if kind not in _FLAT or access == "NOACCESS":
        raise Unreadable(f"{doing}: it is made of {access} {kind} extents, only flat ones can be read")
    if not file or "/" in file or "\\" in file or file in (".", "..") or "\0" in file:
        raise Unreadable(f"{doing}: its extent {file or 'without a name'!r} does not lie beside its descriptor")
    return Piece(start=start, length=int(sectors) * SECTOR, file=file, offset=int(offset or 0) * SECTOR)
