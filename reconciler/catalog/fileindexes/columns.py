"""Many entries as columns: the names of one folder after the other, and numbers in columns that compress well.

Used by ``pages`` (what lies on a unit) and ``blocks`` (what lies in the cache). What is decoded may come from a unit
that somebody else wrote to: every length, number and name is checked, and anything odd is ``Malformed``.
"""

from __future__ import annotations

import itertools
import operator
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import zstandard

from reconciler.catalog.fileindexes import entries

_LENGTHS = struct.Struct("<III")
#: Bytes: what one packed piece may come to.
MOST: Final = 64 << 20
#: Volumes of one disk, and characters of a path.
VOLUMES: Final = 1_000
_PATH = 32_768
_CLIMBING = frozenset(("", ".", ".."))
_KINDS = (*entries.KINDS, entries.GONE)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
#: Every combination of flags, by its number.
_FLAGS = tuple(
    tuple(flag for bit, flag in enumerate(entries.FLAGS) if number >> bit & 1)
    for number in range(1 << len(entries.FLAGS))
)
_FLAG_CODES = {flags: code for code, flags in enumerate(_FLAGS)}
_NUMBERS = 6


class Malformed(Exception):
    """What was read is no index; the message says why."""


def pack(data: bytes, level: int) -> bytes:
    """Compress; the size of the content is written in front."""
    return zstandard.ZstdCompressor(level=level).compress(data)


class Unpacker:
    """Undoes ``pack`` any number of times, in one thread: making one takes as long as using it."""

    def __init__(self) -> None:
        self._tool = zstandard.ZstdDecompressor()

    def unpack(self, data: bytes) -> bytes:
        """One piece. Raises ``Malformed``."""
        try:
            size = zstandard.frame_content_size(data)
            if not 0 <= size <= MOST:
                raise Malformed("a piece does not say how large it is, or is too large")
            return self._tool.decompress(data) if size else b""
        except zstandard.ZstdError as error:
            raise Malformed(f"a piece cannot be unpacked: {error}") from error


def unpack(data: bytes) -> bytes:
    """Undo ``pack``. Raises ``Malformed``."""
    return Unpacker().unpack(data)


def numbers(values: Iterable[int]) -> bytes:
    """64-bit integers, their first bytes first, then their second ones, and so on."""
    column = array("q", values)
    if sys.byteorder == "big":
        column.byteswap()
    data = column.tobytes()
    return b"".join(data[byte::8] for byte in range(8))


def integers(data: bytes, count: int) -> array[int]:
    """Undo ``numbers``. Raises ``Malformed``."""
    if len(data) != 8 * count:
        raise Malformed("a column has another length than its names")
    mixed = bytearray(len(data))
    for byte in range(8):
        mixed[byte::8] = data[byte * count : (byte + 1) * count]
    column = array("q")
    column.frombytes(bytes(mixed))
    if sys.byteorder == "big":
        column.byteswap()
    return column


def encode_names(rows: Sequence[entries.Entry]) -> bytes:
    """Folders and names of entries that are in order of their keys. ``split_names`` undoes it."""
    groups: list[str] = []
    names: list[str] = []
    for (disk, volume, folder), members in itertools.groupby(rows, key=_place):
        before = len(names)
        for row in members:
            name = row.path[len(folder) + 1 :] if folder else row.path
            names.append(f"{name}/{row.stream}" if row.stream else name)
        groups += (disk, str(volume), folder, str(len(names) - before))
    head = _text("\0".join(groups))
    body = _text("\0" + "".join(f"{name}\0" for name in names))
    return _LENGTHS.pack(len(rows), len(head), len(body)) + head + body


def _place(row: entries.Entry) -> tuple[str, int, str]:
    return row.disk, row.volume, row.path.rpartition("/")[0]


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def encode_numbers(rows: Sequence[entries.Entry]) -> bytes:
    """All of entries but their names."""
    return _encoded(rows, lambda inodes: map(operator.sub, inodes, (0, *inodes[:-1])))


def encode_rows(rows: Sequence[entries.Entry]) -> bytes:
    """As ``encode_numbers``, so that each entry can be read alone."""
    return _encoded(rows, lambda inodes: inodes)


def _encoded(rows: Sequence[entries.Entry], told: Callable[[Sequence[int]], Iterable[int]]) -> bytes:
    if not rows:
        return b""
    _, _, _, _, kinds, sizes, inodes, links, created, modified, changed, flags = zip(*rows, strict=True)
    codes = bytes(_CODES[kind] | _FLAG_CODES[flag] << 3 for kind, flag in zip(kinds, flags, strict=True))
    return codes + b"".join(
        (
            numbers(sizes),
            numbers(told(inodes)),
            numbers(links),
            numbers(modified),
            numbers(map(operator.xor, created, modified)),
            numbers(map(operator.xor, changed, modified)),
        )
    )


#: A folder in packed names: disk, volume, path, how many names follow.
Group = tuple[str, int, str, int]


def split_names(data: bytes) -> tuple[list[Group], str]:
    """The folders, and the text of all names: each between two NULs, as ``name`` or ``name/stream``.

    Raises ``Malformed``.
    """
    try:
        count, head, body = _LENGTHS.unpack_from(data)
        if len(data) != _LENGTHS.size + head + body:
            raise Malformed("names have another length than they say")
        text = data[_LENGTHS.size + head :].decode("utf-8", "surrogatepass")
        fields = data[_LENGTHS.size : _LENGTHS.size + head].decode("utf-8", "surrogatepass").split("\0")
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed(f"names cannot be read: {error}") from error
    if text.count("\0") != count + 1 or text[0] != "\0" or text[-1] != "\0":
        raise Malformed("there are more or fewer names than it says")
    return _groups(fields if head else [], count), text


def _groups(fields: list[str], count: int) -> list[Group]:
    if len(fields) % 4:
        raise Malformed("a folder is not whole")
    groups: list[Group] = []
    for disk, volume, folder, members in zip(*[iter(fields)] * 4, strict=True):
        groups.append((disk, number(volume, VOLUMES), proper(folder), number(members, count + 1)))
    if sum(group[3] for group in groups) != count:
        raise Malformed("the folders hold more or fewer names than there are")
    return groups


def number(text: str, below: int) -> int:
    """A number in words that is below a bound. Raises ``Malformed``."""
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < below):
        raise Malformed("a number in the names is out of its bounds")
    return int(text)


def proper(folder: str) -> str:
    """The path of a folder, if it can be one. Raises ``Malformed``."""
    if folder and (len(folder) > _PATH or not _CLIMBING.isdisjoint(folder.split("/"))):
        raise Malformed("a folder has an impossible path")
    return folder


def decode(names: bytes, values: bytes) -> list[entries.Entry]:
    """Undo ``encode_names`` and ``encode_numbers``. Raises ``Malformed``."""
    groups, text = split_names(names)
    fields = text[1:-1].split("\0") if len(text) > 1 else []
    codes, columns = _columns(values, len(fields))
    try:
        columns[1] = array("q", itertools.accumulate(columns[1]))
    except OverflowError as error:
        raise Malformed("an entry has an impossible inode") from error
    return _rows(groups, fields, codes, columns)


def decode_rows(groups: list[Group], fields: list[str], values: bytes) -> list[entries.Entry]:
    """Undo ``encode_rows``; ``fields``: the names, as ``name`` or ``name/stream``. Raises ``Malformed``."""
    return _rows(groups, fields, *_columns(values, len(fields)))


def _rows(groups: list[Group], fields: list[str], codes: bytes, columns: list[array[int]]) -> list[entries.Entry]:
    sizes, inodes, links, modified, created, changed = columns
    disks, volumes, paths, streams = _spread(groups, fields)
    rows = map(
        entries.Entry,
        disks,
        volumes,
        paths,
        streams,
        [_KINDS[code & 7] for code in codes],
        sizes,
        inodes,
        links,
        map(operator.xor, created, modified),
        modified,
        map(operator.xor, changed, modified),
        [_FLAGS[code >> 3] for code in codes],
    )
    return list(rows)


def decode_row(group: Group, field: str, code: int, numbers: Sequence[int]) -> entries.Entry:
    """One of ``decode_rows``: its folder, its name, its kind with flags, its six numbers. Raises ``Malformed``."""
    size, inode, links, modified, created, changed = numbers
    if code >= len(_FLAGS) << 3 or code & 7 >= len(_KINDS):
        raise Malformed("an entry is of no known kind")
    if size < 0 or links < 0:
        raise Malformed("an entry has an impossible size")
    disk, volume, folder, _ = group
    name, _, stream = field.partition("/")
    path = f"{folder}/{name}" if folder else name
    if name in _CLIMBING or len(path) > _PATH:
        raise Malformed("an entry has an impossible name")
    return entries.Entry(
        disk,
        volume,
        path,
        stream,
        _KINDS[code & 7],
        size,
        inode,
        links,
        created ^ modified,
        modified,
        changed ^ modified,
        _FLAGS[code >> 3],
    )


def _columns(values: bytes, count: int) -> tuple[bytes, list[array[int]]]:
    """Kinds with flags, and the columns of numbers. Raises ``Malformed``."""
    if len(values) != count * (1 + 8 * _NUMBERS):
        raise Malformed("there are more or fewer numbers than names")
    codes, at = values[:count], count
    columns: list[array[int]] = []
    for _ in range(_NUMBERS):
        columns.append(integers(values[at : at + 8 * count], count))
        at += 8 * count
    if count and (max(codes) >= len(_FLAGS) << 3 or any(code & 7 >= len(_KINDS) for code in set(codes))):
        raise Malformed("an entry is of no known kind")
    if count and (min(columns[0]) < 0 or min(columns[2]) < 0):
        raise Malformed("an entry has an impossible size")
    return codes, columns


def _spread(groups: list[Group], fields: list[str]) -> tuple[list[str], list[int], list[str], list[str]]:
    """Disk, volume, path and stream of every name."""
    disks: list[str] = []
    volumes: list[int] = []
    paths: list[str] = []
    streams: list[str] = []
    at = 0
    for disk, volume, folder, members in groups:
        disks += [disk] * members
        volumes += [volume] * members
        above = f"{folder}/" if folder else ""
        for field in fields[at : at + members]:
            name, _, stream = field.partition("/")
            if name in _CLIMBING or len(name) + len(above) > _PATH:
                raise Malformed("an entry has an impossible name")
            paths.append(above + name)
            streams.append(stream)
        at += members
    return disks, volumes, paths, streams
