"""Answering a browser: requests for nodes, names and streams, one after the other, for as long as it asks.

Every answer ends with ``END``, also that of a request that failed: ``FAULT`` says why, and the next one is answered.
Volumes are opened when the browser starts; what is kept between requests is bounded, whatever a volume holds.
"""

from __future__ import annotations

import base64
import bisect
import collections
import itertools
import json
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from reconciler.guests import scans, wires
from reconciler.guests.parsers import filesystems, outputs, served, stretches, volumes

#: Bytes of JSON per frame of nodes, roughly, and nodes and names per answer.
_FRAME = 1 << 20
_NODES, _NAMES = 500, 10_000
#: Names of a directory that are put in order at once.
_ORDERED = 30_000
#: Runs per answer.
_RUNS = 32_768
#: Streams and half-read directories that are kept.
_STREAMS, _LISTS = 16, 8
#: Bytes of packed content per answer.
_PACKED = 4 << 20

#: A directory, and how many of its names were handed out.
_Place = tuple[int, int, int]


class _Stream:
    """A stream with its runs on the disk, in columns."""

    def __init__(self, content: served.Content, stretch: stretches.Stretch, most: int) -> None:
        self.size = content.size
        self.data = content.data
        self.unpack = content.unpack
        self._offsets, self._places, self._lengths = array("q"), array("q"), array("q")
        following = 0
        for offset, place, length in content.runs:
            length = min(length, self.size - offset)
            if length <= 0:
                continue
            if offset < following:
                raise stretches.Truncated("its runs are not in order")
            following = offset + length
            for at, count in [(-1, length)] if self.unpack else stretch.places(place, length):
                self._add(offset, at, count)
                offset += count
            if offset != following:
                raise stretches.Truncated("a run lies outside the volume")
            if len(self._offsets) > most:
                raise outputs.TooMuch(f"it lies in more than {most} pieces")

    def _add(self, offset: int, place: int, length: int) -> None:
        if self._offsets and offset == self._offsets[-1] + self._lengths[-1]:
            before = self._places[-1]
            if place == before == -1 or (before >= 0 and place == before + self._lengths[-1]):
                self._lengths[-1] += length
                return
        self._offsets.append(offset)
        self._places.append(place)
        self._lengths.append(length)

    def window(self, offset: int) -> tuple[bytes, int]:
        """Some runs from the one that holds or follows ``offset``, and up to which byte they say all."""
        first = max(bisect.bisect_right(self._offsets, offset) - 1, 0)
        last = first + _RUNS
        rows = array("q")
        for row in zip(self._offsets[first:last], self._places[first:last], self._lengths[first:last], strict=True):
            rows.extend(row)
        return rows.tobytes(), self._offsets[last] if last < len(self._offsets) else self.size


class _Names:
    """The names of a directory that files can bear, in the order they are handed out, and how many others it has."""

    def __init__(self, found: Iterator[served.Name]) -> None:
        #: Those passed over so far.
        self.impossible = 0
        self.left = _by_number(self._possible(found))

    def _possible(self, found: Iterator[served.Name]) -> Iterator[served.Name]:
        for name in found:
            if _proper(name):
                yield name
            else:
                self.impossible += 1


class Server:
    """All volumes of a disk, opened."""

    def __init__(self, line: stretches.Line, limits: scans.Limits) -> None:
        self._line = line
        self._limits = limits
        self._volumes: list[tuple[served.FileSystem | None, stretches.Stretch, str]] = []
        self._streams: collections.OrderedDict[tuple[int, int, str], _Stream] = collections.OrderedDict()
        self._lists: collections.OrderedDict[_Place, _Names] = collections.OrderedDict()

    def open(self, found: volumes.Found) -> outputs.Facts | None:
        """Open the next volume; None where its file system is not known. Raises anything where it is damaged."""
        try:
            kind = filesystems.recognise(found.stretch)
            if kind is None:
                self._volumes.append((None, found.stretch, filesystems.unread(found.stretch)))
                return None
            opened, facts = filesystems.serve(kind, found.stretch, self._limits)
        except Exception as error:
            self._volumes.append((None, found.stretch, f"its file system cannot be read: {error}"))
            raise
        stretch = opened.stretch if opened is not None else found.stretch
        self._volumes.append((opened, stretch, f"{kind} holds no files"))
        return facts

    def serve(self) -> None:
        """Answer until the browser hangs up."""
        while True:
            try:
                kind, length, _ = wires.HEADER.unpack(self._line.receive(wires.HEADER.size))
            except EOFError:
                return
            if kind != wires.REQUEST or length > wires.MOST:
                raise wires.Broken("a request is none")
            what, *arguments = json.loads(self._line.receive(length))
            self._answer(what, arguments)
            self._line.send(wires.pack(wires.END))

    def _answer(self, what: str, arguments: list[Any]) -> None:
        answers: dict[str, Callable[..., None]] = {
            "root": self._root,
            "node": self._node,
            "find": self._find,
            "names": self._names,
            "children": self._children,
            "content": self._content,
            "unpack": self._unpack,
        }
        try:
            answers[what](*arguments)
        except served.Missing as error:
            self._fault("missing", str(error))
        except served.Refused as error:
            self._fault("refused", str(error))
        except (MemoryError, OSError, EOFError):
            # Nobody can say what is left of it; the browser starts another one.
            raise
        except Exception as error:  # noqa: BLE001  whatever a hostile volume provokes costs that request alone
            self._fault("damaged", str(error) or type(error).__name__)

    def _fault(self, kind: str, message: str) -> None:
        self._line.send(wires.pack_json(wires.FAULT, [kind, message[:1000]]))

    def _volume(self, number: int) -> served.FileSystem:
        if not 0 <= number < len(self._volumes):
            raise served.Missing(f"the disk has no volume {number}")
        opened, _, reason = self._volumes[number]
        if opened is None:
            raise served.Refused(reason)
        return opened

    def _root(self, volume: int) -> None:
        found = self._volume(volume)
        self._send_nodes([_row(found.node(found.root))])

    def _node(self, volume: int, inode: int) -> None:
        self._send_nodes([_row(self._volume(volume).node(inode))])

    def _find(self, volume: int, path: str) -> None:
        found = self._volume(volume)
        at = served.Name("", found.root)
        for name in path.split("/") if path else ():
            at = found.look(at.number, name)
        self._send_nodes([_row(found.node(at.number, at.version))])

    def _send_nodes(self, rows: list[list[object]]) -> None:
        self._line.send(wires.pack_json(wires.NODES, rows))

    def _names(self, volume: int, inode: int, first: int) -> None:
        taken, _ = self._next(volume, inode, first, _NAMES)
        self._send_nodes([[name.text, name.number] for name in taken])

    def _children(self, volume: int, inode: int, first: int) -> None:
        found = self._volume(volume)
        rows: list[list[object]] = []
        size = 0
        taken, impossible = self._next(volume, inode, first, _NODES)
        for name in taken:
            node = _try(found, name)
            rows.append([name.text, *(_row(node) if node is not None else ())])
            size += 500 + (sum(len(value) for _, value in node.xattrs) if node is not None else 0)
            if size > _FRAME:
                self._send_nodes(rows)
                rows, size = [], 0
        self._send_nodes(rows)
        if not taken and impossible:
            self._line.send(wires.pack_json(wires.NAMELESS, impossible))

    def _next(self, volume: int, inode: int, first: int, most: int) -> tuple[list[served.Name], int]:
        """The names of a directory from number ``first`` on, at most ``most``, none at its end; how many are no names.

        Goes on where an answer ended; where that is forgotten, it is counted off again.
        """
        names = self._lists.pop((volume, inode, first), None)
        if names is None:
            names = _Names(self._volume(volume).names(inode))
            names.left = itertools.islice(names.left, first, None)
        taken, names.left = _take(names.left, most)
        if taken:
            self._lists[volume, inode, first + len(taken)] = names
            if len(self._lists) > _LISTS:
                self._lists.popitem(last=False)
        return taken, names.impossible

    def _stream(self, volume: int, inode: int, name: str) -> _Stream:
        key = volume, inode, name
        known = self._streams.get(key)
        if known is None:
            content = self._volume(volume).content(inode, name)
            known = self._streams[key] = _Stream(content, self._volumes[volume][1], self._limits.runs)
            if len(self._streams) > _STREAMS:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(key)
        return known

    def _content(self, volume: int, inode: int, name: str, offset: int) -> None:
        stream = self._stream(volume, inode, name)
        rows, until = stream.window(offset)
        self._line.send(wires.pack_json(wires.CONTENT, [stream.size, until, stream.data is not None]))
        if stream.data is not None:
            self._line.send(wires.pack(wires.BYTES, stream.data))
        else:
            self._line.send(wires.pack(wires.EXTENTS, rows))

    def _unpack(self, volume: int, inode: int, name: str, offset: int, length: int) -> None:
        stream = self._stream(volume, inode, name)
        if stream.unpack is None:
            raise served.Refused("it is not packed")
        self._line.send(wires.pack(wires.BYTES, stream.unpack(offset, min(length, _PACKED))))


def _by_number(names: Iterator[served.Name]) -> Iterator[served.Name]:
    """The same names, piece by piece in order of their files.

    A large directory is kept by the digests of its names: in that order nearly every file costs a read elsewhere in the
    table of files.
    """
    taken, names = _take(names, _ORDERED)
    while taken:
        yield from sorted(taken, key=lambda name: name.number)
        taken, names = _take(names, _ORDERED)


def _take(names: Iterator[served.Name], most: int) -> tuple[list[served.Name], Iterator[served.Name]]:
    """The next names, at most ``most`` and none at the end, and those that follow.

    What goes wrong behind a name is told to who asks for more: what came before it is handed out first.
    """
    taken: list[served.Name] = []
    try:
        taken.extend(itertools.islice(names, most))
    except (MemoryError, OSError, EOFError):
        raise
    except Exception as error:
        if not taken:
            raise
        names = _raising(error)
    return taken, names


def _raising(error: Exception) -> Iterator[served.Name]:
    raise error
    yield


def _proper(name: served.Name) -> bool:
    """Whether a file can bear this name, and this number; damage alone makes others."""
    return wires.bearable(name.text) and 0 <= name.number <= wires.MOST_NUMBER


def _try(found: served.FileSystem, name: served.Name) -> served.Node | None:
    """A node that may be damaged; None where a name leads to nothing: left by a crash, or a lie."""
    try:
        return found.node(name.number, name.version)
    except served.Missing:
        return None
    except (MemoryError, OSError, EOFError):
        raise
    except Exception as error:  # noqa: BLE001  one damaged file costs no other
        return served.Node(inode=name.number, format=0, problem=str(error) or type(error).__name__)


def _named(name: str) -> bool:
    """Whether a stream or an attribute can bear this name."""
    return bool(name) and "\0" not in name and len(name) <= wires.MOST_PATH


def _row(node: served.Node) -> list[object]:
    """A node as it goes over the wire, without what no file can have: damage must not cost its neighbours."""
    return [
        node.inode,
        node.format,
        max(outputs.bounded(node.size), 0),
        node.links,
        node.mode,
        node.uid,
        node.gid,
        *map(outputs.moment, node.times),
        node.flags,
        [(name, min(size, wires.MOST_NUMBER)) for name, size in node.streams if _named(name)],
        # As in C, a target ends with its first zero.
        node.target if node.target is None else node.target.split("\0", 1)[0],
        node.device if node.device is not None and node.device <= wires.MOST_NUMBER else None,
        [(name, base64.b64encode(value).decode("ascii")) for name, value in node.xattrs if _named(name)],
        node.problem[:1000],
        node.incomplete[:1000],
    ]
