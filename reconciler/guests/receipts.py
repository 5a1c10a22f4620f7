"""Checking what a child claims: every number, name and range in its frames, before anything is made of it.

A child may have been taken over by the disk it parses. It can lie about its own guest, which costs that guest's
reduction and nothing else; it cannot hand over a range outside the disk, an unordered layout, or more than was asked.
"""

from __future__ import annotations

import base64
import itertools
import operator
import stat
from array import array
from typing import TypeGuard

from reconciler.base import extents
from reconciler.guests import nodes, scans, wires

_TEXT = 1_000
_SCHEMES = frozenset(("gpt", "mbr", "none", "lvm2"))
_CODE = 60
_FILE_KINDS = frozenset(("file", "directory", "symlink", "other"))
_FLAGS = frozenset(("sparse", "compressed", "encrypted"))
_FORMATS = {
    0: "other",
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    **dict.fromkeys((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK), "other"),
}
#: The largest ``st_mode``, user number, and device number.
_MODE, _USER, _DEVICE = (1 << 16) - 1, (1 << 32) - 1, (1 << 63) - 1


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
    created, modified, changed, accessed = _moments(times)
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


def _moments(values: list[object]) -> list[int]:
    found = [value for value in values if type(value) is int and -wires.MOST_MOMENT <= value <= wires.MOST_MOMENT]
    if len(found) != len(values):
        raise wires.Broken("a time is out of its bounds")
    return found


def _extents(runs: object, size: int) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(runs, list) or len(runs) % 3:
        raise wires.Broken("a file's runs are no rows")
    for value in runs:
        number(value)
    rows = tuple(zip(runs[::3], runs[1::3], runs[2::3], strict=True))
    if not all(length and place + length <= size for _, place, length in rows):
        raise wires.Broken("a run lies outside the disk")
    return rows


def rows(payload: bytes) -> list[list[object]]:
    """A batch of rows. Raises ``Broken``."""
    value = wires.unpack_json(payload)
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise wires.Broken("a batch is not a list of rows")
    return value


def name(value: object) -> str:
    """The name of a file in its directory. Raises ``Broken``."""
    if not isinstance(value, str) or not wires.bearable(value):
        raise wires.Broken("a file has no proper name")
    return value


def named(row: list[object]) -> tuple[str, int]:
    """A name and the number behind it. Raises ``Broken``."""
    if len(row) != 2:
        raise wires.Broken("a name is not a pair")
    return name(row[0]), number(row[1])


def child(row: list[object], volume: int) -> tuple[str, nodes.Node] | None:
    """A name and the node behind it; None where it leads to nothing. Raises ``Broken``."""
    if not row:
        raise wires.Broken("a child is none")
    return (name(row[0]), node(row[1:], volume)) if len(row) > 1 else None


def node(row: list[object], volume: int) -> nodes.Node:
    """A file of the volume with the index ``volume``. Raises ``Broken``."""
    if len(row) != 18:
        raise wires.Broken("a node is not a row")
    inode, form, size, links, mode, uid, gid, *moments, flags, streams, target, device, xattrs, problem, lost = row
    if not isinstance(form, int) or form not in _FORMATS or not _target(target):
        raise wires.Broken("a node is described in impossible terms")
    if not isinstance(flags, list) or not nodes.FLAGS.issuperset(map(str, flags)) or len(flags) > len(nodes.FLAGS):
        raise wires.Broken("a node has unknown flags")
    created, modified, changed, accessed = _moments(moments)
    return nodes.Node(
        volume=volume,
        inode=number(inode),
        kind=_FORMATS[form],
        format=form,
        size=number(size),
        links=number(links),
        mode=_small(mode, _MODE),
        uid=_small(uid, _USER),
        gid=_small(gid, _USER),
        created=created,
        modified=modified,
        changed=changed,
        accessed=accessed,
        flags=tuple(map(str, flags)),
        streams=tuple((_stream(key), number(length)) for key, length in _pairs(streams)),
        target=target,
        device=_small(device, _DEVICE),
        xattrs=tuple((_stream(key), _bytes(value)) for key, value in _pairs(xattrs)),
        problem=text(problem),
        incomplete=text(lost),
    )


def _target(value: object) -> TypeGuard[str | None]:
    return value is None or (isinstance(value, str) and "\x00" not in value and len(value) <= 2 * wires.MOST_PATH)


def _small(value: object, most: int) -> int | None:
    if value is None:
        return None
    if number(value) > most:
        raise wires.Broken("a number is out of its bounds")
    return number(value)


def _pairs(value: object) -> list[list[object]]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise wires.Broken("pairs are none")
    return value


def _stream(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > wires.MOST_PATH or "\x00" in value:
        raise wires.Broken("a stream has no proper name")
    return value


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except ValueError as error:
        raise wires.Broken("a value is no bytes") from error


def content(payload: bytes) -> tuple[int, int, bool]:
    """Of a stream: its size, up to which byte its runs are told, and whether its bytes follow. Raises ``Broken``."""
    value = wires.unpack_json(payload)
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], bool):
        raise wires.Broken("a stream is described in impossible terms")
    size, until = number(value[0]), number(value[1])
    if until > size:
        raise wires.Broken("a stream ends before its runs")
    return size, until, value[2]


def stream_runs(payload: bytes, size: int, disk: int) -> list[array[int]]:
    """The three columns of a stream of ``size`` bytes on a disk of ``disk`` bytes, in order. Raises ``Broken``."""
    columns = _columns(payload, 3)
    following = 0
    for offset, place, length in zip(*columns, strict=True):
        if offset < following or length <= 0 or offset + length > size or place < -1 or place + length > disk:
            raise wires.Broken("a run of a stream lies outside of it or the disk")
        following = offset + length
    return columns
