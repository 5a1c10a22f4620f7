"""Random access to the files of a disk: nodes by path or number, the entries of a directory, the bytes of a stream.

Called by ``operations`` to restore single files, to mount a tree and to prove samples. A child process parses, as for
``listings``, and goes on answering; only the bytes of plain streams are read here, straight from the disk, where the
child says they lie. A child that dies, lies or hangs costs the request it was asked: the next one gets a fresh child.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import NoReturn, Self, TypeVar

from reconciler.base import disks, errors, meters
from reconciler.guests import conversations, nodes, receipts, scans, wires

#: What one request may take; the processor's time is that of one child, which is replaced in time.
DEFAULT = scans.Limits(seconds=60.0, processor=240, read=16 << 30)
#: Volumes of one disk, and warnings kept.
_VOLUMES, _WARNINGS = 1_000, 200
#: Streams whose places are kept; each takes up to 800 KB.
_STREAMS = 32
#: Bytes of packed content that are asked for at once.
_PACKED = 1 << 20
#: Bytes of one answer.
_ANSWER = 32 << 20

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """What is known of a stream: where its bytes lie between two offsets."""

    size: int
    #: From which offset on, and up to which.
    since: int
    until: int
    #: All of it, where it is small.
    data: bytes | None
    #: In order and apart: offset in the stream, on the disk (-1 where only the child can make the bytes), length.
    offsets: array[int]
    places: array[int]
    lengths: array[int]


class Browser:
    """The files of one disk. Thread-safe. A context manager; the disk stays open and is the caller's to close."""

    def __init__(self, disk: disks.Disk, limits: scans.Limits, meter: meters.Meter | None) -> None:
        self._disk = disk
        self._limits = limits
        self._meter = meter
        self._lock = threading.Lock()
        self._conversation: conversations.Conversation | None = None
        self._worked = 0.0
        self._closed = False
        self._volumes: tuple[scans.Volume, ...] | None = None
        self._warnings: list[scans.Warning_] = []
        self._windows: collections.OrderedDict[tuple[int, int, str], _Window] = collections.OrderedDict()
        try:
            with self._lock:
                self._start()
        except (conversations.Failed, wires.Broken) as error:
            self.close()
            raise errors.GuestUnreadable(f"the volumes of disk {disk.name} cannot be read: {error}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child. Idempotent; nothing can be asked afterwards."""
        with self._lock:
            self._closed = True
            self._drop()

    @property
    def volumes(self) -> tuple[scans.Volume, ...]:
        """The volumes of the disk, numbered as in listings; one that cannot be read says so in its ``reason``."""
        return self._volumes or ()

    @property
    def warnings(self) -> tuple[scans.Warning_, ...]:
        """What was wrong with the disk's tables and volumes, as (code, message)."""
        return tuple(self._warnings)

    def root(self, volume: int) -> nodes.Node:
        """The root directory of a volume. Raises ``NotFound`` and ``GuestUnreadable``."""
        return self._one(volume, f"the root of volume {volume}", "root", volume)

    def node(self, volume: int, inode: int) -> nodes.Node:
        """A file by the number that nodes and listings give. Raises ``NotFound`` and ``GuestUnreadable``."""
        return self._one(volume, f"file {inode} of volume {volume}", "node", volume, inode)

    def find(self, volume: int, path: str) -> nodes.Node:
        """A file by its path, spelled as listings do, ``""`` for the root; links are not followed.

        Raises ``NotFound`` and ``GuestUnreadable``.
        """
        if not wires.proper(path):
            raise errors.NotFound(f"disk {self._disk.name} has no file {path!r}")
        return self._one(volume, f"{path or '/'} of volume {volume}", "find", volume, path)

    def names(self, node: nodes.Node) -> Iterator[tuple[str, int]]:
        """Names and numbers in a directory, in no particular order; cheaper than ``children``. Raises as it does."""
        return self._rows(node, "names", receipts.named)

    def children(
        self, node: nodes.Node, nameless: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, nodes.Node]]:
        """Names and nodes in a directory, in no particular order. A file that is damaged has a ``problem``.

        ``nameless`` is told at the end how many entries were left out, since no file can bear their names.
        Raises ``GuestUnreadable``, also behind those entries that could be read, and ``NotFound``.
        """
        volume = node.volume
        return filter(None, self._rows(node, "children", lambda row: receipts.child(row, volume), nameless))

    def walk(self, node: nodes.Node) -> Iterator[tuple[str, nodes.Node]]:
        """Everything below a directory with its path from there, directories before what they hold.

        Every directory is entered once, whatever leads to it, so that no circle of a hostile volume is one. A directory
        that cannot be read to its end comes with a ``problem`` a second time, behind what it holds. Raises
        ``GuestUnreadable`` for ``node`` itself alone.
        """
        seen = {node.inode}
        waiting = [("", node)]
        while waiting:
            above, directory = waiting.pop()
            below: list[tuple[str, nodes.Node]] = []
            try:
                for name, child in self.children(directory):
                    path = f"{above}/{name}" if above else name
                    yield path, child
                    if child.kind == "directory" and not child.problem and child.inode not in seen:
                        seen.add(child.inode)
                        below.append((path, child))
            except (errors.GuestUnreadable, errors.NotFound) as error:
                if directory is node:
                    raise
                yield above, dataclasses.replace(directory, problem=error.message)
            waiting += reversed(below)

    def extents(self, node: nodes.Node, stream: str = "") -> Iterator[nodes.Extent]:
        """Where a stream may hold data, in order and apart. Raises as ``read`` does."""
        offset = 0
        while True:
            window = self._window(node, stream, offset)
            if window.data is not None:
                if window.data:
                    yield nodes.Extent(0, window.size, None)
                return
            for start, place, length in zip(window.offsets, window.places, window.lengths, strict=True):
                if start >= offset:
                    yield nodes.Extent(start, length, place if place >= 0 else None)
            if window.until >= window.size:
                return
            offset = window.until

    def read(self, node: nodes.Node, offset: int, length: int, stream: str = "") -> bytes:
        """``length`` bytes of a stream as a mount would give them, fewer at its end; holes are zeros.

        Raises ``GuestUnreadable`` where they cannot be had, ``NotFound`` where there is no such stream, ``Cancelled``,
        and what the disk's ``pread`` raises.
        """
        if offset < 0 or length < 0:
            raise ValueError(f"a read of {length} bytes at {offset}")
        pieces: list[disks.Buffer] = []
        window = self._window(node, stream, offset)
        end = min(offset + length, window.size)
        while offset < end:
            if not window.since <= offset < window.until:
                window = self._window(node, stream, offset)
            upto = min(end, window.until)
            pieces += self._pieces(window, node, stream, offset, upto)
            offset = upto
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _pieces(self, window: _Window, node: nodes.Node, stream: str, offset: int, end: int) -> Iterator[disks.Buffer]:
        """The bytes from ``offset`` to ``end``, which the window knows."""
        if window.data is not None:
            yield window.data[offset:end]
            return
        number = max(bisect.bisect_right(window.offsets, offset) - 1, 0)
        while offset < end:
            if number == len(window.offsets):
                yield bytes(end - offset)
                return
            start, place, count = window.offsets[number], window.places[number], window.lengths[number]
            step = min(end, start + count) - offset
            if offset < start:
                step = min(end, start) - offset
                yield bytes(step)
            elif step > 0:
                if place >= 0:
                    yield self._pread(place + offset - start, step)
                else:
                    yield from self._unpacked(node, stream, offset, step)
            else:
                step, number = 0, number + 1
            offset += step

    def _pread(self, offset: int, length: int) -> disks.Buffer:
        if self._meter is not None:
            self._meter.check()
        data = self._disk.pread(offset, length)
        if len(data) != length:
            raise errors.SourceError(f"disk {self._disk.name}: {len(data)} of {length} bytes at {offset} were read")
        return data

    def _unpacked(self, node: nodes.Node, stream: str, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        while offset < end:
            step = min(_PACKED, end - offset)
            frames = self._ask(self._words(node, stream), "unpack", node.volume, node.inode, stream, offset, step)
            data = b"".join(payload for kind, payload in frames if kind == wires.BYTES)
            with self._checked():
                if len(data) != step:
                    raise wires.Broken(f"{len(data)} of {step} bytes came")
            yield data
            offset += step

    def _window(self, node: nodes.Node, stream: str, offset: int) -> _Window:
        """What is known of a stream around ``offset``."""
        if node.problem and not stream:
            raise errors.GuestUnreadable(f"{self._words(node, stream)} cannot be read: {node.problem}")
        key = node.volume, node.inode, stream
        with self._lock:
            known = self._windows.get(key)
            if known is not None and (known.since <= offset < known.until or offset >= known.size):
                self._windows.move_to_end(key)
                return known
        frames = self._ask(self._words(node, stream), "content", *key, offset)
        with self._checked():
            found = self._take_window(frames, offset)
        with self._lock:
            self._windows[key] = found
            self._windows.move_to_end(key)
            if len(self._windows) > _STREAMS:
                self._windows.popitem(last=False)
        return found

    def _take_window(self, frames: list[tuple[int, bytes]], offset: int) -> _Window:
        if [kind for kind, _ in frames] not in ([wires.CONTENT, wires.BYTES], [wires.CONTENT, wires.EXTENTS]):
            raise wires.Broken("a stream is not answered with one")
        (_, about), (_, payload) = frames
        size, until, whole = receipts.content(about)
        columns = [array("q"), array("q"), array("q")]
        if whole != (frames[1][0] == wires.BYTES) or (whole and (len(payload) != size or until != size)):
            raise wires.Broken("a stream is not as long as it should be")
        if not whole:
            columns = receipts.stream_runs(payload, size, self._disk.size)
        if until <= offset < size:
            raise wires.Broken("a stream is not told where it was asked for")
        offsets, places, lengths = columns
        return _Window(
            size=size,
            # The runs begin with the one that holds the offset; before it nothing is known.
            since=0 if whole else min(offset, offsets[0]) if offsets else offset,
            until=until,
            data=payload if whole else None,
            offsets=offsets,
            places=places,
            lengths=lengths,
        )

    def _words(self, node: nodes.Node, stream: str = "") -> str:
        """How a node is called in messages."""
        return f"{f'stream {stream!r} of ' if stream else ''}file {node.inode} of volume {node.volume}"

    def _one(self, volume: int, what: str, *request: object) -> nodes.Node:
        frames = self._ask(what, *request)
        with self._checked():
            rows = [row for kind, payload in frames if kind == wires.NODES for row in receipts.rows(payload)]
            if len(rows) != 1:
                raise wires.Broken("not one node came")
            return receipts.node(rows[0], volume)

    def _rows(
        self,
        node: nodes.Node,
        what: str,
        take: Callable[[list[object]], _T],
        nameless: Callable[[int], None] | None = None,
    ) -> Iterator[_T]:
        """Every row of a directory, taken; asked for batch by batch up to an empty one."""
        if node.problem:
            raise errors.GuestUnreadable(f"{self._words(node)} cannot be read: {node.problem}")
        count = 0
        while True:
            frames = self._ask(self._words(node), what, node.volume, node.inode, count)
            with self._checked():
                rows = [row for kind, payload in frames if kind == wires.NODES for row in receipts.rows(payload)]
                taken = [take(row) for row in rows]
                count += len(rows)
                if count > self._limits.files:
                    raise wires.Broken("a directory holds more files than the limits allow")
                left = sum(
                    receipts.number(wires.unpack_json(payload)) for kind, payload in frames if kind == wires.NAMELESS
                )
            if left and nameless is not None:
                nameless(left)
            if not taken:
                return
            yield from taken

    def _ask(self, what: str, *request: object) -> list[tuple[int, bytes]]:
        """The frames that answer a request. ``what`` names the file in messages."""
        with self._lock:
            if self._closed:
                raise ValueError("the browser is closed")
            # The child's processor time is limited over its whole life, so it is replaced before that is used up.
            if self._worked > self._limits.processor / 2:
                self._drop()
            started = time.monotonic()
            try:
                conversation = self._conversation or self._start()
                started = time.monotonic()
                frames = self._bounded(conversation.ask(*request))
            except (conversations.Failed, wires.Broken) as error:
                self._drop()
                raise errors.GuestUnreadable(f"{what} of disk {self._disk.name} cannot be read: {error}") from error
            except BaseException:
                self._drop()
                raise
            self._worked += time.monotonic() - started
        for kind, payload in frames:
            if kind == wires.FAULT:
                self._raise(what, payload)
        return frames

    def _raise(self, what: str, payload: bytes) -> NoReturn:
        with self._checked():
            kind, reason = receipts.warning(payload)
        if kind == "missing":
            raise errors.NotFound(f"{what} of disk {self._disk.name} does not exist: {reason}")
        raise errors.GuestUnreadable(f"{what} of disk {self._disk.name} cannot be read: {reason}")

    @staticmethod
    def _bounded(frames: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        taken: list[tuple[int, bytes]] = []
        size = 0
        for kind, payload in frames:
            size += len(payload) + 64
            if size > _ANSWER:
                raise wires.Broken("an answer is too long")
            taken.append((kind, payload))
        return taken

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """What a child says that is not in order ends it."""
        try:
            yield
        except wires.Broken as error:
            with self._lock:
                self._drop()
            raise errors.GuestUnreadable(f"the files of disk {self._disk.name} cannot be read: {error}") from error

    def _drop(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.close()

    def _start(self) -> conversations.Conversation:
        """A fresh child, its volumes taken. Raises ``Failed`` and ``Broken``."""
        self._conversation = conversation = conversations.Conversation(
            self._disk, limits=self._limits, meter=self._meter, serve=True
        )
        self._worked = 0.0
        volumes: list[scans.Volume] = []
        warnings: list[scans.Warning_] = []
        for kind, payload in conversation.frames():
            if kind == wires.COMMIT and len(volumes) < _VOLUMES:
                volumes.append(receipts.volume(payload, self._disk.size))
            elif kind == wires.WARNING:
                warnings += [receipts.warning(payload)] if len(warnings) < _WARNINGS else []
            elif kind not in (wires.BEGIN, wires.ABANDON):
                raise wires.Broken(f"a frame of kind {kind} is out of turn")
        if self._volumes is not None and tuple(volumes) != self._volumes:
            raise wires.Broken("the volumes of the disk changed")
        self._volumes, self._warnings = tuple(volumes), warnings
        return conversation


def browse(disk: disks.Disk, *, limits: scans.Limits = DEFAULT, meter: meters.Meter | None = None) -> Browser:
    """The files of ``disk``, as its volumes hold them; see ``Browser``. Close it to end the child.

    Raises ``GuestUnreadable`` where not even the volumes can be told, what ``pread`` raises, and ``Cancelled`` when
    ``meter`` says so, here and with every request.
    """
    return Browser(disk, limits, meter)
