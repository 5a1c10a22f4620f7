"""The default engine: jobs are threads of the calling process, under rows of its catalog; a batch is one thread.

``controller`` holds one ``Engine`` as long as it leads; commands that work without a controller (restore) run in the
foreground under a row of their own, so that others see their progress, can cancel them, and keep their hands off the
copies they read. Nothing is installed and nothing survives the process: a killed one leaves rows that name it as their
worker, and ``catalog.jobs.lose_dead`` declares those ``Lost``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from reconciler.base import clocks, errors, meters
from reconciler.catalog import database, jobs
from reconciler.jobs import engines, heartbeats, rows, runs

_LOGGER = logging.getLogger(__name__)
_UNRECORDED = "job %s (%s) ended %s, which its row does not say: %s"

#: Seconds that a command waits for a catalog that refuses, before it goes on without it.
_AT_ONCE = 5.0
#: Seconds that leaving ``with Engine(...)`` gives its jobs.
GRACE = 30.0


class Engine:
    """Implements ``engines.Engine``. As a context manager it stops at the end of the block."""

    def __init__(
        self,
        db: database.Database,
        *,
        clock: clocks.Clock,
        interval: float = heartbeats.INTERVAL,
        patience: float = rows.PATIENCE,
    ) -> None:
        """``interval`` and ``patience`` are seconds between beats, and until a catalog that refuses counts as lost."""
        self._rows = rows.Rows(db, clock=clock, patience=patience)
        self._heartbeat = heartbeats.Heartbeat(self._rows, self._lose, interval=interval)
        self._changed = threading.Condition()
        self._live: dict[str, runs.Run] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._told: list[engines.Finished] = []
        self._draining = False
        self._lost: errors.CatalogError | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address in self.stop(GRACE):
            _LOGGER.error("job %s has not stopped within %.0f s; the process ends when it does", address, GRACE)

    def start(self, task: engines.Task) -> str:
        """See ``engines.Engine.start``."""
        self._require_open(task)
        run = runs.Run(self._rows.enqueue(task), task, self._rows)
        self._begin([(run, task)])
        return run.id

    def start_batch(self, tasks: Sequence[engines.Task]) -> tuple[str, ...]:
        """See ``engines.Engine.start_batch``."""
        made: list[tuple[runs.Run, engines.Task]] = []
        for task in tasks:
            if not made:
                self._require_open(task)
            try:
                made.append((runs.Run(self._rows.enqueue(task), task, self._rows), task))
            except (jobs.AddressTaken, jobs.CopyLeaving) as error:
                _LOGGER.info("not started: %s", error)
            except errors.CatalogError as error:
                if not made:
                    raise
                _LOGGER.warning("a batch ends before %s: %s", task.address, error)
                break
        self._begin(made)
        return tuple(run.id for run, _ in made)

    def _require_open(self, task: engines.Task) -> None:
        with self._changed:
            if self._lost is not None:
                raise self._lost
            if self._draining:
                raise errors.CatalogError(f"{task.address}: the engine is stopping and begins nothing more")

    def _begin(self, made: Sequence[tuple[runs.Run, engines.Task]]) -> None:
        """Work through rows that exist, one after another, in a thread."""
        if not made:
            return
        thread = threading.Thread(target=self._work, args=(made,), name=f"holdfast-{made[0][0].id}")
        with self._changed:
            for run, _ in made:
                self._live[run.id] = run
                self._threads[run.id] = thread
                if self._draining:  # stop came while the row was written
                    run.ask(runs.STOPPED)
        for run, _ in made[1:]:
            self._heartbeat.watch(run)  # who waits for its turn can be cancelled, and is not taken for dead
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left: the rows must not stay live
            reason = f"no thread could be started: {error}"
            for run, _ in made:
                self._end(run, runs.ended(engines.State.FAILED, engines.UNEXPECTED, reason))

    def live(self) -> frozenset[str]:
        """See ``engines.Engine.live``."""
        with self._changed:
            return frozenset(run.order.address for run in self._live.values())

    def readings(self) -> tuple[tuple[str, meters.Reading], ...]:
        """See ``engines.Engine.readings``."""
        with self._changed:
            runs_now = tuple(self._live.values())
        return tuple((run.order.address, run.meter.reading()) for run in runs_now)

    def wait(self, timeout: float) -> bool:
        """See ``engines.Engine.wait``."""
        with self._changed:
            self._changed.wait_for(lambda: self._told or (self._lost is not None and not self._live), timeout)
            if not self._told and self._lost is not None and not self._live:
                raise self._lost
            return bool(self._told)

    def finished(self) -> tuple[engines.Finished, ...]:
        """See ``engines.Engine.finished``."""
        with self._changed:
            told, self._told = tuple(self._told), []
            return told

    def cancel(self, job_id: str, failure: engines.Failure | None = None) -> None:
        """See ``engines.Engine.cancel``."""
        with self._changed:
            run = self._live.get(job_id)
        if run is not None:
            ending = runs.CANCELLED if failure is None else runs.Ending(state=engines.State.CANCELLED, failure=failure)
            run.ask(ending)

    def drain(self) -> None:
        """See ``engines.Engine.drain``."""
        with self._changed:
            self._draining = True

    def stop(self, grace: float) -> tuple[str, ...]:
        """See ``engines.Engine.stop``."""
        self.drain()
        self._ask_all(runs.STOPPED)
        deadline = time.monotonic() + grace
        with self._changed:
            self._changed.wait_for(lambda: not self._live, grace)
            threads = list(self._threads.values())
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return tuple(sorted(self.live()))

    def _ask_all(self, ending: runs.Ending) -> None:
        with self._changed:
            live = list(self._live.values())
        for run in live:
            run.ask(ending)

    def _lose(self, reason: errors.CatalogError) -> None:
        """The catalog is lost: work that nobody can record, and nobody can protect from expiry, must not go on."""
        with self._changed:
            self._lost = reason
            self._draining = True
            self._changed.notify_all()
        self._ask_all(runs.ended(engines.State.LOST, reason.code, str(reason)))

    def _work(self, made: Sequence[tuple[runs.Run, engines.Task]]) -> None:
        for run, task in made:
            self._end(run, _attempt(run, task, self._heartbeat))

    def _end(self, run: runs.Run, ending: runs.Ending) -> None:
        """Record how ``run`` ended, and tell."""
        try:
            ending = run.record(ending)
        except Exception as error:
            reason = self._rows.lost(error)
            surprise = None if error is reason else error
            _LOGGER.error(_UNRECORDED, run.id, run.order.address, ending.state, reason, exc_info=surprise)
            self._lose(reason)
            ending = runs.ended(engines.State.LOST, reason.code, str(reason))
        finally:
            self._heartbeat.forget(run)
        told = engines.Finished(
            job_id=run.id,
            address=run.order.address,
            type=run.order.type,
            state=ending.state,
            failure=ending.failure,
            wall_seconds=run.wall_seconds,
        )
        with self._changed:
            del self._live[run.id]
            del self._threads[run.id]
            self._told.append(told)
            self._changed.notify_all()


def _attempt(run: runs.Run, task: engines.Task, heartbeat: heartbeats.Heartbeat) -> runs.Ending:
    """Call the callable and say how it ended. Catches everything: a row must never outlive its thread."""
    try:
        run.begin()
        heartbeat.watch(run)
        run.meter.check()  # stopped before it began
        outcome = task.run(run)
        return runs.Ending(state=outcome.state, failure=outcome.failure)
    except BaseException as error:
        ending = run.ending(error)
        run.explain(error, ending)
        if ending.failure is not None and ending.failure.code == engines.UNEXPECTED:
            _LOGGER.error("job %s (%s) failed unexpectedly", run.id, task.address, exc_info=error)
        return ending


@contextlib.contextmanager
def foreground(
    db: database.Database,
    order: engines.Order,
    *,
    clock: clocks.Clock,
    interval: float = heartbeats.INTERVAL,
    patience: float = rows.PATIENCE,
    outcome: Callable[[], engines.Outcome] = engines.Outcome,
) -> Iterator[engines.JobContext]:
    """Run the block as a job of the calling process; its context. What the block raises is recorded and raised on.
    ``outcome`` says how far it came, once it has ended and raised nothing.

    Unlike an engine's jobs, the block goes on when the catalog is lost while it runs, or its row was ended by somebody
    who took this process for dead, and succeeds without it:
    a restore needs the catalog least when it is needed most. Raises ``CatalogError`` where the row cannot be made.
    """
    job_rows = rows.Rows(db, clock=clock, patience=patience, wait=min(patience, _AT_ONCE))

    def alone(reason: errors.CatalogError) -> None:
        _LOGGER.error("%s goes on without its row in the catalog: %s", order.address, reason)

    heartbeat = heartbeats.Heartbeat(job_rows, alone, interval=interval, obeys=False)
    run = runs.Run(job_rows.enqueue(order), order, job_rows)
    ending = runs.Ending(state=engines.State.SUCCEEDED)
    try:
        try:
            run.begin()
        except errors.CatalogError as error:
            alone(error)
        else:
            heartbeat.watch(run)
        yield run
        done = outcome()
        ending = runs.Ending(state=done.state, failure=done.failure)
    except BaseException as error:
        if run.meter.cancelled:  # by a heartbeat, which said so, or by a signal handler, which could not
            run.ask(runs.INTERRUPTED)
        ending = run.ending(error)
        run.explain(error, ending)
        raise
    finally:
        try:
            run.record(ending)
        except errors.CatalogError as error:
            _LOGGER.error(_UNRECORDED, run.id, order.address, ending.state, error)
        finally:
            heartbeat.forget(run)
