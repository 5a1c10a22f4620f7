"""Checking what a child claims: every number, name and range in its frames, before anything is made of it.

A child may have been taken over by the disk it parses. It can lie about its own guest, which costs that guest's
reduction and nothing else; it cannot hand over a range outside the disk, an unordered layout, or more than was asked.
"""

from __future__ import annotations

import itertools
import operator
from array import array

from reconciler.base import extents
from reconciler.guests import scans, wires

_TEXT = 1_000
_SCHEMES = frozenset(("gpt", "mbr", "none", "lvm2"))
_CODE = 60
_FILE_KINDS = frozenset(("file", "directory", "symlink", "other"))
_FLAGS = frozenset(("sparse", "compressed", "encrypted"))


def _columns(payload: bytes, count: int) -> list[array[int]]:
    values = array("q")
    if len(payload) % (count * values.itemsize):
        raise wires.Broken(f"a frame of {len(payload)} bytes holds no whole rows")
    values.frombytes(payload)
    return [values[number::count] for number in range(count)]


def _within(offsets: array[int], lengths: array[int], size: int) -> None:
    if len(offsets) == 0:
        return
    if min(offsets) < 0 or min(lengths) <= 0 or max(map(operator.add, offsets, lengths)) > size:
        raise wires.Broken("a range lies outside the disk")


def runs(payload: bytes, size: int, after: int) -> list[array[int]]:
    """The four columns of a layout. No file number is under ``after``. Raises ``Broken``."""
    columns = _columns(payload, 4)
    files, offsets, places, lengths = columns
    _within(places, lengths, size)
    if len(files) and (
        min(offsets) < 0 or max(offsets) > wires.MOST_NUMBER or files[0] < after or files[-1] > wires.MOST_NUMBER
    ):
        raise wires.Broken("a run has impossible numbers")
    rows = zip(files, offsets, strict=True)
    if not all(map(operator.le, rows, itertools.islice(zip(files, offsets, strict=True), 1, None))):
        raise wires.Broken("the runs are not in order")
    return columns


def ranges(payload: bytes, size: int) -> list[extents.Extent]:
    """Ranges of the disk, in any order. Raises ``Broken``."""
    offsets, lengths = _columns(payload, 2)
    _within(offsets, lengths, size)
    return list(zip(offsets, lengths, strict=True))


def text(value: object, most: int = _TEXT) -> str:
    """Text for people: cut to ``most`` characters, what cannot be printed replaced. Raises ``Broken``."""
    if not isinstance(value, str):
        raise wires.Broken("a text is not one")
    return "".join(c if c.isprintable() else "?" for c in value[:most])


def number(value: object) -> int:
    """A number from zero on. Raises ``Broken``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= wires.MOST_NUMBER:
        raise wires.Broken("a number is out of its bounds")
    return value


def volume(payload: bytes, size: int) -> scans.Volume:
    """A volume's description. Raises ``Broken``."""
    value = wires.unpack_json(payload)
    if not isinstance(value, dict):
        raise wires.Broken("a volume is not an object")
    offset, length = number(value.get("offset")), number(value.get("length"))
    scheme, kind, clean = value.get("scheme"), value.get("filesystem"), value.get("clean")
    if offset >= size or length > size or str(scheme) not in _SCHEMES or not isinstance(clean, bool):
        raise wires.Broken("a volume is described in impossible terms")
    return scans.Volume(
        offset=offset,
        length=length,
        scheme=str(scheme),
        filesystem=None if kind is None else text(kind, _CODE),
        label=text(value.get("label"), 256),
        clean=clean,
        reason=text(value.get("reason")),
        cluster=number(value.get("cluster")),
    )


def warning(payload: bytes) -> scans.Warning_:
    """A code and a sentence. Raises ``Broken``."""
    value = wires.unpack_json(payload)
    if not isinstance(value, list) or len(value) != 2:
        raise wires.Broken("a warning is not a pair")
    code = text(value[0], _CODE)
    if not code.isalnum():
        raise wires.Broken("a warning has no code")
    return code, text(value[1])


def files(payload: bytes, size: int, volume: int) -> list[tuple[scans.File, bool]]:
    """Files of the volume with the index ``volume``, each with whether more of its runs follow. Raises ``Broken``."""
    rows = wires.unpack_json(payload)
    if not isinstance(rows, list):
        raise wires.Broken("a batch of files is not a list")
    return [_file(row, size, volume) for row in rows]


def _file(row: object, size: int, volume: int) -> tuple[scans.File, bool]:
    if not isinstance(row, list) or len(row) != 14:
        raise wires.Broken("a file is not a row")
    path, kind, length, inode, links, stream, resident, *times, flags, runs, more = row
    if (
        not isinstance(path, str)
        or not isinstance(stream, str)
        or not wires.proper(path)
        or len(stream) > wires.MOST_PATH
    ):
        raise wires.Broken("a file has no proper name")
    if str(kind) not in _FILE_KINDS or not isinstance(resident, bool) or not isinstance(more, bool):
        raise wires.Broken("a file is described in impossible terms")
    if not isinstance(flags, list) or not _FLAGS.issuperset(map(str, flags)) or len(flags) > len(_FLAGS):
        raise wires.Broken("a file has unknown flags")
    for value in times:
        if type(value) is not int or not -wires.MOST_NUMBER <= value <= wires.MOST_NUMBER:
            raise wires.Broken("a time is out of its bounds")
    created, modified, changed, accessed = times
    return scans.File(
        volume=volume,
        path=path,
        stream=stream,
        kind=str(kind),
        size=number(length),
        inode=number(inode),
        links=number(links),
        resident=resident,
        created=created,
        modified=modified,
        changed=changed,
        accessed=accessed,
        flags=tuple(map(str, flags)),
        extents=_extents(runs, size) if runs else (),
    ), more


def _extents(runs: object, size: int) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(runs, list) or len(runs) % 3:
        raise wires.Broken("a file's runs are no rows")
    for value in runs:
        number(value)
    rows = tuple(zip(runs[::3], runs[1::3], runs[2::3], strict=True))
    if not all(length and place + length <= size for _, place, length in rows):
        raise wires.Broken("a run lies outside the disk")
    return rows
