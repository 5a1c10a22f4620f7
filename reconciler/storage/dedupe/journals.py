"""The pool's lock and its log: who may change what images need, and a durable line before each such change.

A line is the intent: appended and fsynced with the lock held, then acted on. So a crash leaves at most the last line
unfinished, and whoever takes the lock next settles it before doing anything else. Marking compares the log with the
manifests, so a manifest that vanished stops a collection instead of costing its segments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from reconciler.base import clocks, crashes, digests, errors, files, times
from reconciler.storage.dedupe import manifests

LOCK_NAME: Final = "lock"
LOG_NAME: Final = "log"
_TAIL: Final = 64 << 10
_CHECK: Final = 16
#: Bytes that the log's first line has at most.
_FIRST: Final = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of the log."""

    #: Counted from 1.
    sequence: int
    generation: int
    #: ``create``, ``commit``, ``void``, ``delete``, ``condemn``, ``remove``, ``damage`` or ``collected``.
    do: str
    #: The image concerned, empty where the line concerns none.
    image: str
    #: Fingerprint lookups of the committed image's writing, a count.
    lookups: int
    #: Lookups that found their segment, a count.
    hits: int
    #: The last line that a finished collection took into account.
    through: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The log from its first line to its last."""

    #: Ids of the images that were committed and not deleted.
    images: frozenset[str]
    generation: int
    #: Over all commits, a count.
    lookups: int
    #: Over all commits, a count.
    hits: int
    #: Of the last line.
    sequence: int
    #: Whether an image was deleted since the last collection that left nothing to collect.
    owed: bool


class _Replay:
    """The log as far as it was read."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.position = self.sequence = 0
        self._generation = self._lookups = self._hits = self._deleted = self._collected = 0
        self._images: set[str] = set()

    def add(self, line: Line, size: int) -> None:
        """Take in the next line, of ``size`` bytes."""
        self.position += size
        self.sequence, self._generation = line.sequence, line.generation
        if line.do == "commit":
            self._images.add(line.image)
            self._lookups += line.lookups
            self._hits += line.hits
        elif line.do in ("void", "delete"):
            self._images.discard(line.image)
        if line.do == "delete":
            self._deleted = line.sequence
        elif line.do == "collected":
            self._collected = line.through

    def history(self) -> History:
        """What the lines so far come to."""
        return History(
            images=frozenset(self._images),
            generation=self._generation,
            lookups=self._lookups,
            hits=self._hits,
            sequence=self.sequence,
            owed=self._deleted > self._collected,
        )


class Journal:
    """The lock and the log of one pool. Thread-safe; the lock also excludes other processes of the host."""

    def __init__(self, root: Path, unit: str, clock: clocks.Clock) -> None:
        self._root = root
        self._unit = unit
        self._clock = clock
        self._mutex = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._last: Line | None = None
        self._replaying = threading.Lock()
        self._replay = _Replay(-1)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the pool's lock, with the log's last line settled. Raises ``UnitError``. Not to be nested."""
        with self._mutex, files.unit_errors(self._unit):
            handle = os.open(self._root / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._settle()
                yield
            finally:
                os.close(handle)

    @contextlib.contextmanager
    def alone(self, name: str, others: str) -> Iterator[None]:
        """Hold the lock ``name`` of the pool for long work. Raises ``UnitError`` where ``others`` (words) hold it."""
        handle = os.open(self._root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise errors.UnitError(f"storage unit {self._unit}: {others} runs", hint="wait for it") from error
            yield
        finally:
            os.close(handle)

    def create(self) -> None:
        """Make the lock, and the log with its first line, unless they are there. Raises ``OSError``."""
        (self._root / LOCK_NAME).touch()
        log = self._root / LOG_NAME
        if not log.exists():
            files.write_atomically(log, _encode({"sequence": 1, "generation": 1, "at": self._now(), "do": "create"}))

    def append(self, do: str, **fields: Any) -> Line:
        """Add a line, durably, with the lock held. ``condemn``, ``remove`` and ``damage`` raise the generation."""
        last = self.last()
        generation = last.generation + (do in ("condemn", "remove", "damage"))
        document = {"sequence": last.sequence + 1, "generation": generation, "at": self._now(), "do": do, **fields}
        handle = os.open(self._root / LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            before = os.fstat(handle).st_size
            try:
                _write_all(handle, _encode(document))
                os.fsync(handle)
            except OSError:
                # Half a line would be cut off by the next holder of the lock; better that it never sees one.
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
        return self.last()

    def last(self) -> Line:
        """The last line that is whole; read again only when the file changed. Raises ``UnitError`` or ``OSError``."""
        log = self._root / LOG_NAME
        try:
            found = log.stat()
        except FileNotFoundError as error:
            raise errors.UnitError(
                f"storage unit {self._unit}: {log} is missing",
                hint="put the pool's log back from where it went; nothing is written without it",
            ) from error
        stamp = (found.st_ino, found.st_size)
        last = self._last
        if last is None or stamp != self._stamp:
            last = self._read_last(log, found.st_size)
            self._last, self._stamp = last, stamp
        return last

    def replay(self) -> History:
        """Everything the log says. Raises ``UnitError`` where a line before the last is false or missing.

        What was read before is not read again: lines never change, and the log is never rewritten.
        """
        with self._replaying, (self._root / LOG_NAME).open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._replay.inode:
                self._replay = _Replay(inode)
            replay = self._replay
            file.seek(replay.position)
            for text in file:
                line = _decode(text)
                if line is None and not file.read(1):
                    break
                if line is None or line.sequence != replay.sequence + 1:
                    raise self._false(replay.sequence + 1)
                replay.add(line, len(text))
            if not replay.sequence:
                raise self._false(1)
            return replay.history()

    def _settle(self) -> None:
        log = self._root / LOG_NAME
        self._cut_tail(log)
        last = self.last()
        folder = self._root / "manifests"
        if last.do == "commit" and not manifests.path(folder, last.image).exists():
            self.append("void", image=last.image)
        elif last.do == "delete" and manifests.path(folder, last.image).exists():
            remove_manifest(folder, last.image)

    def _cut_tail(self, log: Path) -> None:
        """Remove a last line that a crash left unfinished: nothing was done on its behalf."""
        with contextlib.suppress(FileNotFoundError), log.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = _whole(file.fileno(), size)[0]
            if end != size:
                file.truncate(end)
                os.fsync(file.fileno())

    def _read_last(self, log: Path, size: int) -> Line:
        handle = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = _whole(handle, size)[1]
        finally:
            os.close(handle)
        if line is None:
            raise self._false(None)
        return line

    def _false(self, line: int | None) -> errors.UnitError:
        where = "its end" if line is None else f"line {line}"
        return errors.UnitError(
            f"storage unit {self._unit}: {self._root / LOG_NAME} is damaged at {where}",
            hint="nothing is collected until it is restored",
        )

    def _now(self) -> str:
        return times.show(self._clock.now())


def remove_manifest(folder: Path, image: str) -> None:
    """The act that a ``delete`` line announces. Raises ``OSError``."""
    manifests.path(folder, image).unlink(missing_ok=True)
    files.sync_folder(folder)
    crashes.passing("pool.manifest-removed")


def _whole(handle: int, size: int) -> tuple[int, Line | None]:
    """Where the last whole and true line of the file ends, and that line; only the very last line may be false."""
    reach = _TAIL
    while True:
        start = max(size - reach, 0)
        lines = os.pread(handle, size - start, start).splitlines(keepends=True)
        if start:
            lines = lines[1:]  # it began before what was read
        end = size
        for text in lines[:-3:-1]:
            line = _decode(text)
            if line is not None:
                return end, line
            end -= len(text)
        if start == 0:
            return size, None
        reach *= 8


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def made(root: Path) -> dt.datetime | None:
    """When the log of the pool under ``root`` was begun; None where it cannot be told."""
    try:
        with (root / LOG_NAME).open("rb") as log:
            first = log.readline(_FIRST)
        return times.parse(json.loads(first.partition(b" ")[2])["at"]) if _decode(first) is not None else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _encode(document: dict[str, Any]) -> bytes:
    text = digests.canonical_json(document)
    return blake3(text).hexdigest()[:_CHECK].encode() + b" " + text + b"\n"


def _decode(text: bytes) -> Line | None:
    check, _, body = text.partition(b" ")
    if not body.endswith(b"\n") or blake3(body[:-1]).hexdigest()[:_CHECK].encode() != check:
        return None
    try:
        document = json.loads(body)
        return Line(
            sequence=int(document["sequence"]),
            generation=int(document["generation"]),
            do=str(document["do"]),
            image=str(document.get("image", "")),
            lookups=int(document.get("lookups", 0)),
            hits=int(document.get("hits", 0)),
            through=int(document.get("through", 0)),
        )
    except (ValueError, KeyError, TypeError):
        return None
