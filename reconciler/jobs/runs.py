"""One attempt at work in this process: its meter, who asked it to stop, and how it ended.

``embedded`` makes a ``Run`` for each job, ``heartbeats`` reads its meter and passes on cancel flags, and the callable
sees it as its ``JobContext``. Separate from the engine because the mapping from exceptions to states is the part of a
job that users see.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import traceback
from typing import Final

from reconciler.base import clocks, errors, meters
from reconciler.jobs import engines, rows

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a job ends: the last state of its row, and why."""

    state: engines.State
    failure: engines.Failure | None = None


def ended(state: engines.State, code: str, message: str) -> Ending:
    """An ending with a reason."""
    return Ending(state=state, failure=engines.Failure(code=code, message=message))


#: Somebody asked for this very job to stop.
CANCELLED: Final = ended(engines.State.CANCELLED, "Cancelled", "cancelled on request")
#: Somebody stopped the command that ran the job in the foreground.
INTERRUPTED: Final = ended(engines.State.CANCELLED, "Interrupted", "the command was interrupted")
#: The engine stops, and the job with it.
STOPPED: Final = ended(engines.State.LOST, engines.STOPPED, "the process was asked to stop; the work is planned again")
#: Somebody took this process for dead and ended the row: the address may be live elsewhere already.
TAKEN: Final = ended(engines.State.LOST, "Taken", "another process ended the job's row while this one still ran")


class Run:
    """One job at work; the ``JobContext`` of its callable. Thread-safe."""

    def __init__(self, job_id: str, order: engines.Order, job_rows: rows.Rows) -> None:
        self.id = job_id
        self.order = order
        self.meter = meters.Meter()
        self._rows = job_rows
        self._lock = threading.Lock()
        self._asked: Ending | None = None
        self._begun = time.monotonic()

    @property
    def clock(self) -> clocks.Clock:
        """The clock that the engine was given."""
        return self._rows.clock

    def log(self, line: str) -> None:
        """Add a line to the job's log. Raises ``CatalogError``."""
        self._rows.log(self.id, line)

    def annotate(self, *, image: str | None = None, copy: int | None = None, unit: str | None = None) -> None:
        """Say what the job works on. Raises ``CatalogError``."""
        self._rows.annotate(self.id, image=image, copy=copy, unit=unit)

    def begin(self) -> None:
        """Mark the row ``Running`` and start the watch. A row that ended meanwhile counts as a request to stop.
        Raises ``CatalogError``."""
        self._begun = time.monotonic()
        if not self._rows.start(self.id):
            self.ask(TAKEN)

    @property
    def wall_seconds(self) -> float:
        """Seconds since ``begin``."""
        return time.monotonic() - self._begun

    def ask(self, ending: Ending) -> None:
        """Ask the work to stop, and to end as ``ending``. The first to ask says why, except that a person's wish
        for this job outranks a stop of the whole engine."""
        with self._lock:
            if self._asked is None or (
                self._asked.state is engines.State.LOST and ending.state is engines.State.CANCELLED
            ):
                self._asked = ending
        self.meter.cancel()

    def ending(self, error: BaseException) -> Ending:
        """What ``error``, raised by the work, makes of the job.

        A stopped job often dies of its stopping in other words (a closed pipe, a server that went first), so a
        passing trouble after a request counts as the request obeyed; damage and bugs keep their own names.
        """
        with self._lock:
            asked = self._asked
        if isinstance(error, errors.HoldfastError):
            if asked is not None and (isinstance(error, errors.Cancelled) or error.retryable):
                return asked
            return ended(engines.State.FAILED, error.code, str(error))
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        sentence = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return ended(engines.State.FAILED, engines.UNEXPECTED, sentence)

    def explain(self, error: BaseException, ending: Ending) -> None:
        """Put into the job's log what its row has no room for: tracebacks, and errors that a request covered up."""
        if ending.failure is None:
            return
        if ending.failure.code == engines.UNEXPECTED:
            text = "".join(traceback.format_exception(error))
        elif not isinstance(error, errors.Cancelled | KeyboardInterrupt) and ending.failure.message != str(error):
            text = f"while stopping: {error}"
        else:
            return
        try:
            self.log(text)
        except errors.HoldfastError as trouble:
            _LOGGER.error("job %s (%s): its log cannot be written (%s): %s", self.id, self.order.address, trouble, text)

    def record(self, ending: Ending) -> Ending:
        """Give the row its last state, and return it: ``TAKEN`` where the row had ended already.
        Raises ``CatalogError`` when the catalog stays unwritable."""
        recorded = self._rows.finish(
            self.id,
            state=ending.state,
            failure=ending.failure,
            reading=self.meter.reading(),
            wall_seconds=self.wall_seconds,
        )
        if not recorded:
            _LOGGER.error("job %s (%s) ended %s: %s", self.id, self.order.address, ending.state, TAKEN.failure)
        return ending if recorded else TAKEN
