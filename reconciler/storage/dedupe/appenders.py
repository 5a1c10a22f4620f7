"""Containers being filled: one open container per kind, shared by every writer of the process.

Sharing is what lets two jobs that read alike machines at the same time store each segment once: a segment in an
open container is found in ``pending`` before the index knows it. A full container is sealed in the background, in the
order ``FORMAT.md`` gives. Each writer's ``Claims`` say which containers it relies on: its commit waits for the
open ones, and a collection leaves all of them alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import os
import secrets
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from reconciler.base import crashes, disks, errors, files
from reconciler.storage.dedupe import containers, registrations

#: Sealing containers of one kind at a time; more makes writers wait for the disk.
_SEALING: Final = 2

#: Fingerprint, encoding, payload, raw length.
NewRecord = tuple[bytes, int, disks.Buffer, int]


class OpenContainer:
    """A container that is being filled or sealed."""

    def __init__(self, folder: Path, pool: uuid.UUID, kind: int) -> None:
        self.id = int.from_bytes(secrets.token_bytes(8), "little")
        self.kind = kind
        self.builder = containers.Builder(pool, self.id, kind)
        #: Done when the container is durable and indexed, or failed.
        self.outcome: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.target = containers.path(folder, self.id, kind)
        if not self.target.parent.is_dir():
            self.target.parent.mkdir(exist_ok=True)
            files.sync_folder(folder)
        self._temporary = files.temporary_name(self.target)
        self._handle = _create_locked(self._temporary)
        try:
            files.pwrite_all(self._handle, self.builder.header, 0)
        except BaseException:
            self.drop()
            raise

    def append(self, records: list[NewRecord]) -> None:
        """Write records at the end. Raises ``OSError``."""
        offset = self.builder.size
        files.pwrite_all(self._handle, self.builder.add(records), offset)

    def seal(self) -> containers.Footer:
        """Make the container complete, durable and visible. Raises ``OSError``."""
        end = self.builder.end()
        files.pwrite_all(self._handle, end, self.builder.size)
        os.fsync(self._handle)
        crashes.passing("pool.container-written")
        self._temporary.rename(self.target)
        files.sync_folder(self.target.parent)
        crashes.passing("pool.container-renamed")
        self._close()
        return containers.parse_footer(self.builder, end)

    def drop(self) -> None:
        """Remove the unfinished file. Idempotent."""
        self._temporary.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def _create_locked(path: Path) -> int:
    """A new file under flock. A sweep may have taken it for a leftover in between; then a second one is made."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)


class Claims:
    """What one writer relies on, and what its writing came to. Thread-safe."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.registration: registrations.Registration | None = None
        self._lock = threading.Lock()
        self._open: set[OpenContainer] = set()
        self._used: set[int] = set()
        #: Bytes of records appended for this writer.
        self.stored = 0
        self.lookups = 0
        self.hits = 0

    def need(self, container: OpenContainer) -> None:
        """Rely on a container that is not sealed yet."""
        with self._lock:
            self._open.add(container)

    def use(self, found: Iterable[int]) -> None:
        """Rely on containers that are in place."""
        with self._lock:
            self._used.update(found)

    def count(self, *, stored: int = 0, lookups: int = 0, hits: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self.stored, self.lookups, self.hits = self.stored + stored, self.lookups + lookups, self.hits + hits

    def needs(self, container: OpenContainer) -> bool:
        """Whether this writer relies on an open container."""
        with self._lock:
            return container in self._open

    def opened(self) -> list[OpenContainer]:
        """The containers that were open when they were claimed."""
        with self._lock:
            return list(self._open)

    def kinds(self) -> dict[int, int]:
        """Kind of each container of ``opened``."""
        return {container.id: container.kind for container in self.opened()}

    def all(self) -> set[int]:
        """Ids of all containers this writer relies on."""
        with self._lock:
            return self._used | {container.id for container in self._open}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """What storing some segments came to."""

    #: Bytes before compression.
    raw: int = 0
    #: Bytes that files grew by.
    stored: int = 0
    #: Segments, a count.
    segments: int = 0


class Appender:
    """The open container of one kind. Thread-safe."""

    def __init__(
        self,
        *,
        folder: Path,
        pool: uuid.UUID,
        kind: int,
        target: int,
        sealed: Callable[[containers.Footer], None],
        room: Callable[[int], None],
        indexed: Callable[[int, Sequence[bytes], Claims], set[bytes]],
        executor: concurrent.futures.Executor,
    ) -> None:
        """``sealed`` makes a container known; ``room`` raises ``UnitFull`` where so many bytes more do not fit;
        ``indexed`` tells which segments of a kind are in place, and claims them."""
        self._folder, self._pool, self._kind, self._target = folder, pool, kind, target
        self._sealed, self._room, self._indexed, self._executor = sealed, room, indexed, executor
        #: Containers sealed so far, a count.
        self.seals = 0
        #: Held while the open container is written to or changed for another.
        self._writing = threading.Lock()
        #: Guards ``_pending``.
        self._lock = threading.Lock()
        self._pending: dict[bytes, OpenContainer] = {}
        self._current: OpenContainer | None = None
        self._sealing: collections.deque[OpenContainer] = collections.deque()

    def pending(self, fingerprints: Iterable[bytes], claims: Claims) -> set[bytes]:
        """Which of these lie in containers that the index does not know yet; they are claimed."""
        with self._lock:
            found = {
                fingerprint: self._pending[fingerprint] for fingerprint in fingerprints if fingerprint in self._pending
            }
            for container in set(found.values()):
                claims.need(container)
        return set(found)

    def append(self, records: list[NewRecord], claims: Claims, seals: int) -> Added:
        """Store records that were missing when ``seals`` was read; what was really added. Raises ``OSError``."""
        with self._writing:
            fresh = self._still_missing(records, claims, seals)
            if not fresh:
                return Added()
            stored = sum(containers.OVERHEAD + len(record[2]) for record in fresh)
            self._room(stored)
            current = self._current or self._begin()
            self._current = current
            try:
                current.append(fresh)
            except BaseException as error:
                self._current = None
                self._fail(current, error)
                raise
            claims.need(current)
            with self._lock:
                self._pending.update((record[0], current) for record in fresh)
            if current.builder.size >= self._target:
                self._submit(current)
        return Added(raw=sum(record[3] for record in fresh), stored=stored, segments=len(fresh))

    def _still_missing(self, records: list[NewRecord], claims: Claims, seals: int) -> list[NewRecord]:
        """Another writer may have brought the same segments since they were looked up."""
        known = self.pending((record[0] for record in records), claims)
        if self.seals != seals:
            rest = [record[0] for record in records if record[0] not in known]
            known |= self._indexed(self._kind, rest, claims)
        return [record for record in records if record[0] not in known]

    def flush(self, claims: Claims) -> None:
        """Begin to seal the open container if ``claims`` rely on it."""
        with self._writing:
            if self._current is not None and claims.needs(self._current):
                self._submit(self._current)

    def discard(self, users: Iterable[Claims]) -> None:
        """Drop the open container unless one of ``users`` relies on it."""
        with self._writing, self._lock:
            current = self._current
            if current is None or any(claims.needs(current) for claims in users):
                return
            self._current = None
            self._withdraw(current)
            current.drop()
            current.outcome.cancel()

    def _begin(self) -> OpenContainer:
        while len(self._sealing) >= _SEALING:
            # Its own writers learn of a failure at their commit.
            concurrent.futures.wait([self._sealing.popleft().outcome])
        return OpenContainer(self._folder, self._pool, self._kind)

    def _submit(self, container: OpenContainer) -> None:
        self._current = None
        self._sealing.append(container)
        self._executor.submit(self._seal, container)

    def _seal(self, container: OpenContainer) -> None:
        try:
            self._sealed(container.seal())
            crashes.passing("pool.container-indexed")
        except BaseException as error:  # noqa: BLE001  every writer that relies on it gets it at its commit
            self._fail(container, error)
            return
        with self._lock:
            self.seals += 1
            self._withdraw(container)
        container.outcome.set_result(None)

    def _fail(self, container: OpenContainer, error: BaseException) -> None:
        with self._lock:
            self._withdraw(container)
        with contextlib.suppress(OSError):
            container.drop()
        container.outcome.set_exception(error)

    def _withdraw(self, container: OpenContainer) -> None:
        for fingerprint in container.builder.fingerprints:
            if self._pending.get(fingerprint) is container:
                del self._pending[fingerprint]


def wait(claims: Claims, unit: str) -> None:
    """Wait until every container that ``claims`` rely on is durable. Raises ``UnitFull`` or ``UnitError``."""
    for container in claims.opened():
        try:
            error = container.outcome.exception()
        except concurrent.futures.CancelledError:
            error = errors.UnitError(f"storage unit {unit}: a container was discarded while it was needed")
        if error is not None:
            with files.unit_errors(unit):
                raise error
