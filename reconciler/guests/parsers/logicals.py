"""Logical volumes: the label and text metadata of LVM2, as far as they describe linear volumes on this one disk.

A volume that is striped, mirrored, thin, or reaches onto another disk is named in a problem and not read. The text is
read by a tokeniser without recursion, and only from an area whose digests hold.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

from reconciler.guests.parsers import stretches

#: magic, this sector, CRC from here on, bytes from the label to the header, type.
_LABEL = struct.Struct("<8sQII8s")
#: CRC, magic, version, start, size, then the first locator: offset, size, CRC, flags.
_AREA = struct.Struct("<I16sIQQQQII")
_AREA_MAGIC = b" LVM2 x[5A%r0N*>"
_AREA_HEADER = 512
#: LVM2 starts its CRC with this value and does not invert the result.
_CRC = 0xF597A6CF
#: LVM2 counts in sectors of 512 bytes on every disk.
_SECTOR = 512
_MOST_TEXT = 16 << 20
_MOST_AREAS = 8
_MOST_DEPTH = 8
_MOST_SEGMENTS = 100_000
_TOKEN = re.compile(r'\s+|#[^\n]*|"((?:[^"\\]|\\.)*)"|([A-Za-z0-9_.+-]+)|([={}\[\],])')

Section = dict[str, object]
#: What the metadata say of a physical volume, and where it is.
_Member = tuple[Section, stretches.Stretch]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What the head of a physical volume says."""

    #: 32 characters, no dashes.
    identity: str
    #: Byte offset and length of the areas that hold metadata.
    areas: list[tuple[int, int]]


def _crc(data: bytes) -> int:
    return zlib.crc32(data, _CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def label(stretch: stretches.Stretch) -> Label | None:
    """The label of a physical volume in one of the first four sectors; None where there is none that holds."""
    for number in range(4):
        sector = stretch.read(number * _SECTOR, _SECTOR)
        if len(sector) < _SECTOR or sector[:8] != b"LABELONE":
            continue
        _, place, crc, offset, kind = _LABEL.unpack_from(sector)
        if place != number or kind != b"LVM2 001" or _crc(sector[20:]) != crc or not 32 <= offset <= 400:
            continue
        identity = sector[offset : offset + 32].decode("ascii", "replace")
        _, at = _locations(sector, offset + 40)
        areas, _ = _locations(sector, at)
        return Label(identity=identity, areas=areas[:_MOST_AREAS])
    return None


def _locations(sector: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """A list of (offset, size) that ends with zeros, and where the next one starts."""
    found: list[tuple[int, int]] = []
    while at + 16 <= len(sector):
        offset, size = struct.unpack_from("<QQ", sector, at)
        at += 16
        if offset == 0:
            break
        found.append((offset, size))
    return found, at


def find(
    disk: stretches.Disk, physical: list[tuple[stretches.Stretch, Label]]
) -> tuple[list[tuple[str, stretches.Stretch]], list[str]]:
    """All linear logical volumes on these physical ones, as (group/volume, stretch), and what was not read."""
    homes = {label.identity: stretch for stretch, label in physical}
    groups: dict[str, tuple[int, str, Section]] = {}
    problems: list[str] = []
    for stretch, head in physical:
        texts = [text for area in head.areas if (text := _text(stretch, area)) is not None]
        if not texts:
            problems.append(f"the physical volume at byte {stretch.pieces[0][0]} has no readable metadata")
        for text in texts:
            try:
                name, group = _group(parse(text))
                serial = _number(group, "seqno")
            except stretches.Truncated as error:
                problems.append(f"metadata of the physical volume at byte {stretch.pieces[0][0]}: {error}")
                continue
            key = str(group.get("id"))
            if key not in groups or groups[key][0] < serial:
                groups[key] = (serial, name, group)
    volumes: list[tuple[str, stretches.Stretch]] = []
    for _, name, group in groups.values():
        for volume, pieces, problem in _volumes(group, homes):
            if problem:
                problems.append(f"logical volume {name}/{volume}: {problem}")
            else:
                volumes.append((f"{name}/{volume}", stretches.Stretch(disk, pieces)))
    return volumes, problems


def _text(stretch: stretches.Stretch, area: tuple[int, int]) -> str | None:
    """The newest text in a metadata area, which is a ring behind its header."""
    start, _ = area
    header = stretch.read(start, _AREA_HEADER)
    if len(header) < _AREA_HEADER:
        return None
    crc, magic, _, mine, size, offset, length, text_crc, flags = _AREA.unpack_from(header)
    if magic != _AREA_MAGIC or mine != start or _crc(header[4:]) != crc or flags & 1:
        return None
    if not (_AREA_HEADER <= offset < size <= stretch.size and 0 < length <= min(_MOST_TEXT, size - _AREA_HEADER)):
        return None
    head = min(length, size - offset)
    data = stretch.read(start + offset, head) + stretch.read(start + _AREA_HEADER, length - head)
    if len(data) != length or _crc(data) != text_crc:
        return None
    return data.rstrip(b"\x00").decode("utf-8", "replace")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Kind (``string``, ``word`` or ``mark``) and text of every token. Raises ``Truncated`` on anything else."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise stretches.Truncated(f"unexpected character {text[at]!r}")
        at = match.end()
        kind = match.lastindex
        if kind is not None:
            yield ("string", "word", "mark")[kind - 1], match.group(kind)


def parse(text: str) -> Section:
    """The sections and values of a text. Raises ``Truncated`` where it does not follow LVM2's grammar."""
    root: Section = {}
    stack = [root]
    tokens = _tokens(text)
    for kind, token in tokens:
        if (kind, token) == ("mark", "}") and len(stack) > 1:
            stack.pop()
            continue
        if kind == "mark":
            raise stretches.Truncated(f"unexpected {token!r}")
        mark = next(tokens, ("", ""))
        if mark == ("mark", "{") and len(stack) < _MOST_DEPTH:
            section: Section = {}
            stack[-1][token] = section
            stack.append(section)
        elif mark == ("mark", "="):
            stack[-1][token] = _value(tokens)
        else:
            raise stretches.Truncated(f"neither a section nor a value follows {token[:80]!r}")
    if len(stack) != 1:
        raise stretches.Truncated("it ends inside a section")
    return root


def _value(tokens: Iterator[tuple[str, str]]) -> object:
    kind, token = next(tokens, ("", ""))
    if (kind, token) != ("mark", "["):
        return _scalar(kind, token)
    values: list[object] = []
    for kind, token in tokens:
        if (kind, token) == ("mark", "]"):
            return values
        if (kind, token) != ("mark", ","):
            values.append(_scalar(kind, token))
    raise stretches.Truncated("it ends inside a list")


def _scalar(kind: str, token: str) -> object:
    if kind == "string":
        return token
    if kind == "word":
        return int(token) if re.fullmatch(r"-?[0-9]{1,18}", token) else token
    raise stretches.Truncated("a value is missing")


def _sections(section: Section, name: str | None = None) -> Iterator[tuple[str, Section]]:
    inner = section.get(name) if name is not None else section
    for key, value in inner.items() if isinstance(inner, dict) else ():
        if isinstance(value, dict):
            yield key, value


def _number(section: Section, name: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or value < 0:
        raise stretches.Truncated(f"{name} is not a number")
    return value


def _group(root: Section) -> tuple[str, Section]:
    for name, section in _sections(root):
        return name, section
    raise stretches.Truncated("it names no volume group")


def _volumes(group: Section, homes: dict[str, stretches.Stretch]) -> Iterator[tuple[str, list[tuple[int, int]], str]]:
    """Name, pieces of the disk, and why it cannot be read, of every visible logical volume."""
    here: dict[str, _Member] = {}
    for name, member in _sections(group, "physical_volumes"):
        home = homes.get(str(member.get("id")).replace("-", ""))
        if home is not None:
            here[name] = member, home
    for name, volume in _sections(group, "logical_volumes"):
        status = volume.get("status")
        if not isinstance(status, list) or "VISIBLE" not in status:
            continue
        segments = [segment for key, segment in _sections(volume) if re.fullmatch(r"segment[0-9]+", key)]
        if _is_elsewhere(segments, here):
            continue
        try:
            yield name, _pieces(group, segments, here), ""
        except stretches.Truncated as error:
            yield name, [], str(error)


def _is_elsewhere(segments: list[Section], here: dict[str, _Member]) -> bool:
    """Whether nothing of a volume lies on this disk: then it is the affair of the disks that hold it."""
    found = [segment.get("stripes") for segment in segments]
    names = [str(one) for stripes in found if isinstance(stripes, list) for one in stripes[::2]]
    return bool(names) and all(isinstance(stripes, list) for stripes in found) and here.keys().isdisjoint(names)


def _pieces(group: Section, segments: list[Section], here: dict[str, _Member]) -> list[tuple[int, int]]:
    """Where on the disk a volume's bytes lie, in its order. Raises ``Truncated`` where they are not all here."""
    extent = _number(group, "extent_size") * _SECTOR
    segments = sorted(segments, key=lambda segment: _number(segment, "start_extent"))
    if not segments or len(segments) > _MOST_SEGMENTS or extent == 0:
        raise stretches.Truncated("it has no segments")
    pieces: list[tuple[int, int]] = []
    position = 0
    for segment in segments:
        if segment.get("type") != "striped" or segment.get("stripe_count") != 1:
            raise stretches.Truncated(f"segments of type {segment.get('type')!s:.40} are not read")
        stripes = segment.get("stripes")
        if not isinstance(stripes, list) or len(stripes) != 2 or not isinstance(stripes[1], int):
            raise stretches.Truncated("a segment names no place")
        if str(stripes[0]) not in here:
            raise stretches.Truncated("it lies on another disk")
        member, home = here[str(stripes[0])]
        start = _number(member, "pe_start") * _SECTOR + stripes[1] * extent
        length = _number(segment, "extent_count") * extent
        places = list(home.places(start, length))
        if _number(segment, "start_extent") != position or sum(count for _, count in places) != length:
            raise stretches.Truncated("its segments do not fit")
        position += length // extent
        pieces += places
    return pieces
