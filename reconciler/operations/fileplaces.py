"""Where a file lies inside an image, as people spell it: a path, with the volume's name in front where that is needed.

``/`` lists the volumes of a machine that has several; each is called by its label, where that is its own, and always
``DISK/vN``. A path without a volume in front means the one volume that holds it; Windows users may write backslashes, a
drive letter in front, and letters in either case. ``cachedtrees`` and ``browsedtrees`` are the two trees that paths are
looked up in; this module knows neither.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from reconciler.base import errors

#: File systems in which upper and lower case are one.
FOLDING: Final = frozenset(("ntfs", "fat", "exfat"))
_DRIVE = re.compile(r"[A-Za-z]:")
_WILD = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_SHOWN = 8


class Volume(NamedTuple):
    """One file system of an image."""

    disk: str
    #: Among that disk's volumes, an index.
    number: int
    filesystem: str
    label: str
    #: Bytes.
    size: int
    #: How it is called: its label, or ``DISK/vN``.
    name: str

    @property
    def alias(self) -> str:
        """The name that every volume has."""
        return f"{self.disk}/v{self.number}"


class Row(NamedTuple):
    """One file as a tree shows it; None is what the tree does not know."""

    #: Within its volume, parts separated by ``/``; empty for the root.
    path: str
    #: ``file``, ``directory``, ``symlink`` or ``other``.
    kind: str
    #: Bytes.
    size: int
    #: Nanoseconds since the epoch, UTC; 0 where unknown.
    modified: int
    created: int
    changed: int
    links: int
    inode: int
    flags: tuple[str, ...]
    #: Name and bytes of each alternate data stream.
    streams: tuple[tuple[str, int], ...]
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    target: str | None = None
    #: Why it cannot be read; empty where it can, or where the tree does not know.
    problem: str = ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class Place(NamedTuple):
    """A path of one volume."""

    volume: Volume
    #: Empty for its root.
    path: str


class Tree(Protocol):
    """The files of one image."""

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """Its file systems, in order of disks."""

    def unread(self) -> Sequence[str]:
        """What is wrong with its disks, or lies there and is not read, such as an encrypted volume; a sentence each."""

    def row(self, place: Place) -> Row:
        """One file. Raises ``NotFound``, or what reading raises."""

    def folder(self, place: Place) -> tuple[Row, ...]:
        """What lies in a folder, by name. Raises ``NotFound``, or what reading raises."""


def named(found: Sequence[tuple[str, int, str | None, str, int]]) -> tuple[Volume, ...]:
    """Volumes with their names, from (disk, number, file system, label, bytes); what holds no files is left out."""
    kept = [one for one in found if one[2] not in (None, "swap")]
    labels = [label.casefold() for _, _, _, label, _ in kept]
    made = []
    for disk, number, filesystem, label, size in kept:
        own = labels.count(label.casefold()) == 1 and label.strip() == label and label not in ("", ".", "..")
        name = label if own and "/" not in label and label.isprintable() else f"{disk}/v{number}"
        made.append(Volume(disk, number, filesystem or "", label, size, name))
    return tuple(made)


def show(volumes: Sequence[Volume], place: Place) -> str:
    """The path that leads to a place of this image."""
    if len(volumes) == 1:
        return f"/{place.path}"
    return f"/{place.volume.name}/{place.path}".rstrip("/")


def resolve(tree: Tree, text: str) -> Place | None:
    """The place that a path means; None for the list of volumes. Raises ``NotFound`` and ``UsageError``."""
    if not tree.volumes:
        why = "; ".join(tree.unread()[:_SHOWN])
        raise errors.NotFound(f"the image holds no file system that can be read{f': {why}' if why else ''}")
    try:
        found = places(tree.volumes, text, lambda place: _found(tree, place))
    except errors.NotFound as error:
        link = _link(tree, text)
        if link is None:
            raise
        hint = f"{link} is a symbolic link; name the path that it leads to"
        raise errors.NotFound(error.message, hint=hint) from error
    if found is not None:
        return found
    if len(tree.volumes) == 1:
        return Place(tree.volumes[0], "")
    return None


def places(volumes: Sequence[Volume], text: str, exists: Callable[[Place], str | None]) -> Place | None:
    """As ``resolve``. ``exists``: the path of a place as it is really spelled, None where there is nothing."""
    for spelling in _spellings(text):
        parts = [part for part in spelling.split("/") if part not in ("", ".")]
        if not parts:
            return None
        if ".." in parts:
            raise errors.UsageError(f"{text}: paths lead down from a volume's root, without ..")
        if parts[0] and _DRIVE.fullmatch(parts[0]) and not any(v.name == parts[0] for v in volumes):
            parts = parts[1:]
            if not parts:
                return None
        found = _candidates(volumes, parts, exists)
        if len(found) > 1:
            ways = [f"/{one.volume.alias}/{one.path}".rstrip("/") for one in found]
            raise errors.UsageError(f"{text} may mean {len(found)} files", hint=f"say {', or '.join(ways[:_SHOWN])}")
        if found:
            return found[0]
    known = ", ".join(f"/{one.name}" for one in volumes[:_SHOWN])
    hint = (
        f"its volumes are {known}"
        if len(volumes) > 1
        else "holdfast files ls lists an image, holdfast files find searches all"
    )
    raise errors.NotFound(f"there is no {text}", hint=hint)


def _spellings(text: str) -> list[str]:
    """What a text may mean, the likeliest first: itself, what ``readable`` made it from, a path of Windows."""
    if "\\" not in text:
        return [text]
    return list(dict.fromkeys((text, _unescaped(text), text.replace("\\", "/"))))


def _unescaped(text: str) -> str:
    plain = _ESCAPED.sub(lambda found: os.fsdecode(bytes([int(found[1], 16)])), text)
    return os.fsdecode(os.fsencode(plain))


def shown_as(text: str) -> list[str]:
    """What ``readable`` shows as this text, the text itself first."""
    plain = _unescaped(text)
    return [text, plain] if plain != text == readable(plain) and "\0" not in plain else [text]


def readable(text: str) -> str:
    """A name or path for people and documents: ``\\xNN`` for bytes that are no text, and for control characters."""
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
        for letter in text
    )


def _candidates(volumes: Sequence[Volume], parts: Sequence[str], exists: Callable[[Place], str | None]) -> list[Place]:
    """Everything that the parts of a path may mean."""
    for volume in volumes:
        rest = _behind(parts, volume.alias)
        if rest is not None and (path := exists(Place(volume, rest))) is not None:
            return [Place(volume, path)]
    asked = []
    if len(volumes) == 1 and (path := exists(plain := Place(volumes[0], "/".join(parts)))) is not None:
        return [plain._replace(path=path)]
    for volume in volumes:
        if (rest := _behind(parts, volume.name)) is not None:
            asked.append(Place(volume, rest))
        asked.append(Place(volume, "/".join(parts)))
    found: dict[Place, None] = {}
    for place in asked:
        if (path := exists(place)) is not None:
            found[Place(place.volume, path)] = None
    return list(found)


def _behind(parts: Sequence[str], name: str) -> str | None:
    """The path behind a volume's name, None where the parts do not begin with it."""
    words = name.split("/")
    if [part.casefold() for part in parts[: len(words)]] != [word.casefold() for word in words]:
        return None
    return "/".join(parts[len(words) :])


def _found(tree: Tree, place: Place) -> str | None:
    """The path as the volume spells it, None where there is no such file."""
    with contextlib.suppress(errors.NotFound, errors.GuestUnreadable):
        return tree.row(place).path
    if place.volume.filesystem not in FOLDING:
        return None
    above = ""
    for part in place.path.split("/"):
        try:
            rows = tree.folder(Place(place.volume, above))
        except (errors.NotFound, errors.GuestUnreadable):
            return None
        same = [row for row in rows if row.name == part] or [
            row for row in rows if row.name.casefold() == part.casefold()
        ]
        if len(same) != 1:
            return None
        above = same[0].path
    return above


def _link(tree: Tree, text: str) -> str | None:
    """A symbolic link on the way to a path that is not there."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    for end in range(1, len(parts)):
        above = "/".join(parts[:end])
        for volume in tree.volumes:
            path = above if len(tree.volumes) == 1 else _behind(parts[:end], volume.name) or above
            with contextlib.suppress(errors.NotFound, errors.GuestUnreadable):
                if tree.row(Place(volume, path)).kind == "symlink":
                    return f"/{above}"
    return None


def expand(tree: Tree, text: str) -> list[Place]:
    """The places that a path or pattern means: ``*``, ``?`` and ``[...]`` within a name, ``**`` any number of folders.

    A path that exists as it is written means itself; what lies in a folder that fits comes with it. Raises ``NotFound``
    and ``UsageError``.
    """
    try:
        place = resolve(tree, text)
        return [place] if place is not None else [Place(volume, "") for volume in tree.volumes]
    except errors.NotFound:
        if not _WILD.search(text):
            raise
    spelling = text.replace("\\", "/") if "/" not in text else text
    parts = [part for part in spelling.split("/") if part not in ("", ".")]
    if parts and _DRIVE.fullmatch(parts[0]):
        parts = parts[1:]
    plain = next(number for number, part in enumerate(parts) if _WILD.search(part))
    base = resolve(tree, "/".join(parts[:plain]))
    bases = [base] if base is not None else [Place(volume, "") for volume in tree.volumes]
    found: dict[Place, None] = {}
    for one in bases:
        fold = one.volume.filesystem in FOLDING
        found.update(dict.fromkeys(_matches(tree, one, parts[plain:], fold=fold)))
    if not found:
        raise errors.NotFound(f"nothing fits {text}", hint="holdfast files find searches all images")
    return [place for place in found if not any(above in found for above in _above(place))]


def _above(place: Place) -> Iterator[Place]:
    """The folders that a place lies in, its volume's root among them."""
    path = place.path
    while path:
        path = path.rpartition("/")[0]
        yield Place(place.volume, path)


def _matches(tree: Tree, place: Place, parts: Sequence[str], *, fold: bool) -> Iterator[Place]:
    if not parts:
        yield place
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        for folder in _below(tree, place):
            yield from _matches(tree, folder, rest or ("*",), fold=fold)
        return
    pattern = _translated(first, fold=fold)
    for row in _rows(tree, place):
        if pattern.fullmatch(row.name) and (not rest or row.kind == "directory"):
            yield from _matches(tree, Place(place.volume, row.path), rest, fold=fold)


def _rows(tree: Tree, place: Place) -> tuple[Row, ...]:
    """What lies in a folder; nothing where that cannot be read."""
    try:
        return tree.folder(place)
    except (errors.NotFound, errors.GuestUnreadable):
        return ()


def _below(tree: Tree, place: Place) -> Iterator[Place]:
    """A folder and all below it, each before what it holds, and once, so that no circle of a damaged volume is one."""
    seen: set[int] = set()
    waiting = [place]
    while waiting:
        folder = waiting.pop()
        yield folder
        rows = [row for row in _rows(tree, folder) if row.kind == "directory" and row.inode not in seen]
        seen.update(row.inode for row in rows if row.inode)
        waiting += [Place(place.volume, row.path) for row in reversed(rows)]


def _translated(part: str, *, fold: bool) -> re.Pattern[str]:
    """A regular expression for one name; a bracket that is not closed is itself."""
    made, at = "", 0
    while at < len(part):
        letter, at = part[at], at + 1
        end = part.find("]", at + 1) if letter == "[" else -1
        if letter == "*":
            made += ".*"
        elif letter == "?":
            made += "."
        elif end > 0:
            inside = part[at:end].replace("\\", r"\\").replace("[", r"\[").replace("&&", r"&\&")
            inside = f"^{inside[1:]}" if inside[0] == "!" else rf"\{inside}" if inside[0] == "^" else inside
            made, at = f"{made}[{inside}]", end + 1
        else:
            made += re.escape(letter)
    try:
        return re.compile(made, re.DOTALL | (re.IGNORECASE if fold else 0))
    except re.error as error:
        raise errors.UsageError(f"{part} is no pattern: {error}") from error
