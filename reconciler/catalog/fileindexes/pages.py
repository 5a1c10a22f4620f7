"""The pages of an index: a head that says what was looked at, and pages of entries behind it.

Entries lie in layers: the first holds all of them in order of their keys, each further one what changed since, newer
over older. Within a layer the cuts follow the names themselves, so that a tree that changed in one place has changed
pages in that place alone; across layers an incremental in which little changed stores little, wherever that is. The
``files`` attachment of an image is the list of these pages; ``indexes`` decides which there are.

A page is one byte of format, then zstd. The head is JSON. Pages may come from a unit that somebody else wrote to.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from reconciler.base import errors, extents
from reconciler.catalog.fileindexes import columns, entries

#: The format that is written. Readers refuse newer ones.
FORMAT: Final = 1
_LEVEL = 9
#: Entries of a page: at least, at most, and the mask whose hit ends one; about 1,300 on average.
_LEAST, _MOST, _MASK = 256, 4_096, 0x3FF
#: Characters of names in a page, about: the page stays far under 1 MiB.
_TEXT = 300_000
#: Warnings of one disk that a head keeps, and their characters.
_WARNINGS, _WORDS = 20, 500
_DISKS, _VOLUMES, _LAYERS, _RANGES = 10_000, 1_000, 10_000, 10_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """One stretch of a disk; ``Entry.volume`` is its index."""

    #: ``ntfs``, ``ext``, ``fat``, ``exfat``, ``xfs``, ``swap``; None where nothing was recognised.
    filesystem: str | None
    label: str
    #: Byte offset on the disk.
    offset: int
    #: Bytes.
    length: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """One disk as it was looked at."""

    name: str
    volumes: tuple[Volume, ...]
    #: What could not be read, as (code, message).
    warnings: tuple[tuple[str, str], ...] = ()
    #: Ranges of the disk that hold all that was read to list the files: while these stay, the list does. None where
    #: that is not known.
    reads: extents.Extents | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Some pages in a row."""

    #: Counts.
    pages: int
    entries: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What the first page says."""

    disks: tuple[Disk, ...]
    #: Oldest first.
    layers: tuple[Layer, ...]
    #: How many entries there are in all, with the layers laid over each other.
    entries: int


def encode_head(head: Head) -> bytes:
    """The first page."""
    disks = [
        {
            "name": disk.name,
            "volumes": [[v.filesystem, v.label, v.offset, v.length] for v in disk.volumes],
            "warnings": [[code, message[:_WORDS]] for code, message in disk.warnings[:_WARNINGS]],
            "reads": None if disk.reads is None else [list(one) for one in disk.reads],
        }
        for disk in head.disks
    ]
    layers = [[layer.pages, layer.entries] for layer in head.layers]
    text = json.dumps({"disks": disks, "layers": layers, "entries": head.entries}, separators=(",", ":"))
    return bytes([FORMAT]) + columns.pack(text.encode("ascii"), _LEVEL)


def decode_head(page: bytes) -> Head:
    """Undo ``encode_head``. Raises ``Malformed`` and ``FormatTooNew``."""
    try:
        value = json.loads(_opened(page))
    except (ValueError, RecursionError) as error:
        raise columns.Malformed(f"the head of the index is no JSON: {error}") from error
    value = _as(dict, value)
    disks = tuple(_disk(_as(dict, one)) for one in _rows(value.get("disks"), _DISKS))
    layers = tuple(_layer(_as(list, one)) for one in _rows(value.get("layers"), _LAYERS))
    if len({disk.name for disk in disks}) != len(disks):
        raise columns.Malformed("a disk is in the index twice")
    return Head(disks=disks, layers=layers, entries=_count(value.get("entries")))


def _disk(value: dict[str, Any]) -> Disk:
    volumes = tuple(_volume(_as(list, one)) for one in _rows(value.get("volumes"), _VOLUMES))
    warnings = [_as(list, one) for one in _rows(value.get("warnings"), _WARNINGS)]
    if any(len(one) != 2 for one in warnings):
        raise columns.Malformed("a warning is not a pair")
    told = tuple((_as(str, code), _as(str, message)) for code, message in warnings)
    reads = None if value.get("reads") is None else _ranges(_rows(value["reads"], _RANGES))
    return Disk(name=_as(str, value.get("name")), volumes=volumes, warnings=told, reads=reads)


def _ranges(rows: list[Any]) -> extents.Extents:
    pairs = [_as(list, one) for one in rows]
    if any(len(one) != 2 for one in pairs):
        raise columns.Malformed("a range is not a pair")
    return extents.normalise((_count(offset), _count(length)) for offset, length in pairs)


def _volume(value: list[Any]) -> Volume:
    if len(value) != 4:
        raise columns.Malformed("a volume is described in impossible terms")
    kind, label, offset, length = value
    filesystem = None if kind is None else _as(str, kind)
    return Volume(filesystem=filesystem, label=_as(str, label), offset=_count(offset), length=_count(length))


def _layer(value: list[Any]) -> Layer:
    if len(value) != 2:
        raise columns.Malformed("a layer is described in impossible terms")
    return Layer(pages=_count(value[0]), entries=_count(value[1]))


def _as(kind: type, value: object) -> Any:
    if not isinstance(value, kind):
        raise columns.Malformed(f"the head of the index holds no {kind.__name__} where it should")
    return value


def _rows(value: object, most: int) -> list[Any]:
    rows: list[Any] = _as(list, value)
    if len(rows) > most:
        raise columns.Malformed("the head of the index is too long")
    return rows


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise columns.Malformed("a number in the head of the index is out of its bounds")
    return value


def cut(rows: Iterable[entries.Entry]) -> Iterator[list[entries.Entry]]:
    """Entries in order of their keys, as many at a time as make a page; the cuts depend on names near them alone."""
    page: list[entries.Entry] = []
    text, above = 0, None
    for row in rows:
        page.append(row)
        folder = row.path.rpartition("/")[0]
        text += len(row.path) + len(row.stream) - (len(folder) if folder == above else 0)
        above = folder
        count = len(page)
        if count < _LEAST and text < _TEXT:
            continue
        if count >= _MOST or text >= _TEXT or not _hash(row) & _MASK:
            yield page
            page, text, above = [], 0, None
    if page:
        yield page


def _hash(row: entries.Entry) -> int:
    return zlib.crc32(f"{row.volume}/{row.path}/{row.stream}".encode("utf-8", "surrogatepass"))


def encode(rows: list[entries.Entry]) -> bytes:
    """One page of entries, which are in order of their keys."""
    names = columns.encode_names(rows)
    body = len(names).to_bytes(4, "little") + names + columns.encode_numbers(rows)
    return bytes([FORMAT]) + columns.pack(body, _LEVEL)


def decode(page: bytes) -> list[entries.Entry]:
    """Undo ``encode``. Raises ``Malformed`` and ``FormatTooNew``."""
    body = _opened(page)
    length = int.from_bytes(body[:4], "little")
    if len(body) < 4 + length:
        raise columns.Malformed("a page of entries is not whole")
    return columns.decode(body[4 : 4 + length], body[4 + length :])


def _opened(page: bytes) -> bytes:
    if not page or page[0] == 0:
        raise columns.Malformed("a page of the index has no format")
    if page[0] > FORMAT:
        raise errors.FormatTooNew(
            f"the index of files has format {page[0]}, and this Holdfast reads up to {FORMAT}",
            hint="upgrade Holdfast, or browse the image itself",
        )
    return columns.unpack(page[1:])
