"""Every write that a job's life makes to the catalog, with patience.

A catalog that another process keeps busy is worth waiting for: the work goes on, and losing a finished backup's row to
a lock would be absurd. A catalog that is gone is not: an open SQLite file that somebody removed or replaced still takes
writes, into nowhere, so the file itself is looked at before each one. ``runs`` and ``heartbeats`` write through here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from reconciler.base import clocks, errors, meters
from reconciler.catalog import database, jobs, workers
from reconciler.jobs import engines

#: Seconds for which a write is tried again, and for which a heartbeat may fail, before the catalog counts as lost.
PATIENCE = 60.0
_PAUSE = 0.5

_Value = TypeVar("_Value")


class Rows:
    """The rows of this process's jobs. Thread-safe."""

    def __init__(
        self, db: database.Database, *, clock: clocks.Clock, patience: float = PATIENCE, wait: float | None = None
    ) -> None:
        """``wait``: seconds that one write is tried again, as long as the patience by default."""
        self.clock = clock
        #: Seconds.
        self.patience = patience
        self._wait = patience if wait is None else wait
        self._db = db
        self._file = None if "://" in db.location else Path(db.location)
        self._inode = self._look()
        self._worker = workers.this()

    def _look(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return (found.st_dev, found.st_ino)

    def gone(self) -> errors.CatalogError | None:
        """What to say if the catalog's file is no longer the one that was opened."""
        if self._file is None or self._look() == self._inode:
            return None
        return errors.CatalogError(
            f"{self._file}: the catalog was removed or replaced while jobs ran",
            hint="put the file back with its -wal beside it, or start again on what is there; "
            "storage units know what they hold",
        )

    def lost(self, error: Exception) -> errors.CatalogError:
        """What to say of a catalog that failed for good with ``error``."""
        if isinstance(error, errors.CatalogError):
            return error
        return errors.CatalogError(f"{self._db.location}: the catalog cannot be written: {error}")

    def enqueue(self, order: engines.Order) -> str:
        """A new row for ``order``, ``Queued``; its job id. Raises ``CatalogError`` at once where the address is live
        or the fence is stale."""
        if (reason := self.gone()) is not None:
            raise reason
        return jobs.enqueue(
            self._db,
            address=order.address,
            type=order.type,
            attempt=order.attempt,
            worker=self._worker,
            client_id=order.client_id,
            policy=order.policy,
            image=order.image,
            copy=order.copy,
            unit=order.unit,
            source_unit=order.source_unit,
            media_server=order.media_server,
            parent=order.parent,
            expected_bytes=order.expected_bytes,
            batch=order.batch,
            now=self.clock.now(),
            fence=order.fence,
        )

    def start(self, job_id: str) -> bool:
        """The row becomes ``Running``; False if it had ended already. Raises ``CatalogError``."""
        return self._patiently(lambda: jobs.start(self._db, job_id, self.clock.now()))

    def beat(self, readings: Sequence[tuple[str, meters.Reading]]) -> jobs.Beat:
        """Write counters and heartbeat of all jobs in one transaction; what was heard of them. Tried once.
        Raises ``CatalogError``."""
        if (reason := self.gone()) is not None:
            raise reason
        return jobs.progress(self._db, readings, self.clock.now())

    def log(self, job_id: str, line: str) -> None:
        """Add a line to the job's log. Raises ``CatalogError``."""
        self._patiently(lambda: jobs.log(self._db, job_id, line, self.clock.now()))

    def annotate(self, job_id: str, *, image: str | None, copy: int | None, unit: str | None) -> None:
        """Say what the job works on; None leaves a field as it is. Raises ``CatalogError``."""
        self._patiently(lambda: jobs.annotate(self._db, job_id, image=image, copy=copy, unit=unit))

    def finish(
        self,
        job_id: str,
        *,
        state: engines.State,
        failure: engines.Failure | None,
        reading: meters.Reading,
        wall_seconds: float,
    ) -> bool:
        """The row's last state and counters; False if it had ended already. Raises ``CatalogError``."""
        error = None if failure is None else (failure.code, failure.message)
        return self._patiently(
            lambda: jobs.finish(
                self._db,
                job_id,
                state=state.value,
                error=error,
                reading=reading,
                wall_seconds=wall_seconds,
                now=self.clock.now(),
            )
        )

    def _patiently(self, write: Callable[[], _Value]) -> _Value:
        deadline = time.monotonic() + self._wait
        while True:
            if (reason := self.gone()) is not None:
                raise reason
            try:
                return write()
            except errors.CatalogError:
                if time.monotonic() + _PAUSE > deadline:
                    raise
            time.sleep(_PAUSE)
