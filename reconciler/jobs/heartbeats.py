"""The heartbeat of this process's jobs: one thread writes all their counters and picks up cancel flags.

One transaction per beat whatever the number of jobs, because each costs an fsync. The thread lives only while there is
a job to watch, so nothing has to be shut down. A catalog that is busy makes a beat late; one that cannot be written for
longer than the patience, or is gone, is lost, which is said once, and the owner of the jobs decides what then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from reconciler.base import errors
from reconciler.jobs import rows, runs

_LOGGER = logging.getLogger(__name__)

#: Seconds between two beats.
INTERVAL = 0.5


class Heartbeat:
    """Watches runs. ``lost`` is called from the heartbeat's thread, at most once per loss. Thread-safe."""

    def __init__(
        self,
        job_rows: rows.Rows,
        lost: Callable[[errors.CatalogError], None],
        *,
        interval: float = INTERVAL,
        obeys: bool = True,
    ) -> None:
        """``obeys``: whether work stops whose row somebody else has ended."""
        self._obeys = obeys
        self._rows = job_rows
        self._lost = lost
        self._interval = interval
        self._changed = threading.Condition()
        self._watched: dict[str, runs.Run] = {}
        self._thread: threading.Thread | None = None

    def watch(self, run: runs.Run) -> None:
        """Include ``run`` in the beats from now on."""
        with self._changed:
            self._watched[run.id] = run
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="holdfast-heartbeat")
                self._thread.start()

    def forget(self, run: runs.Run) -> None:
        """Leave ``run`` out from now on. The thread ends with the last one."""
        with self._changed:
            self._watched.pop(run.id, None)
            self._changed.notify_all()

    def _beat(self) -> None:
        last_good, telling = time.monotonic(), 0.0
        while (watched := self._next()) is not None:
            try:
                heard = self._rows.beat([(run.id, run.meter.reading()) for run in watched])
            except Exception as error:
                silent = time.monotonic() - last_good
                surprise = None if isinstance(error, errors.CatalogError) else error
                if silent >= telling:
                    _LOGGER.warning("heartbeat: none written for %.0f s: %s", silent, error, exc_info=surprise)
                    telling = 2 * silent
                if silent > self._rows.patience or self._rows.gone() is not None:
                    self._give_up(error)
                    return
                continue
            last_good, telling = time.monotonic(), 0.0
            for run in watched:
                if run.id in heard.cancelled:
                    run.ask(runs.CANCELLED)
                elif self._obeys and run.id in heard.ended:
                    run.ask(runs.TAKEN)

    def _next(self) -> tuple[runs.Run, ...] | None:
        """Sleep until the next beat; the runs to watch, or None when the thread has nothing left to do."""
        due = time.monotonic() + self._interval
        with self._changed:
            while self._watched and (left := due - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._watched:
                self._thread = None
                return None
            return tuple(self._watched.values())

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._watched.clear()
            self._thread = None
        reason = self._rows.lost(error)
        _LOGGER.error("heartbeat: %s", reason)
        self._lost(reason)
