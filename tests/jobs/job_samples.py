"""Tasks for the tests of job engines: callables that wait for a word, count until told to stop, or fail as asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from reconciler.jobs import engines

#: Seconds after which a wait in a test has failed.
LONG = 20.0

Work = Callable[[engines.JobContext], engines.Outcome]


def task(address: str, run: Work, **fields: object) -> engines.Task:
    """A task of type Backup."""
    return engines.Task(address=address, type="Backup", run=run, **fields)  # type: ignore[arg-type]


def succeed(context: engines.JobContext) -> engines.Outcome:
    """Do nothing, well."""
    return engines.Outcome()


def raising(error: BaseException) -> Work:
    """Work that raises ``error``."""

    def run(context: engines.JobContext) -> engines.Outcome:
        raise error

    return run


def counting(context: engines.JobContext) -> engines.Outcome:
    """Scan 4 KiB every 5 ms until asked to stop."""
    while True:
        context.meter.check()
        context.meter.add(scanned=4096)
        time.sleep(0.005)


class Gate:
    """Work that says when it is entered and returns, or notices a stop, only when let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, context: engines.JobContext) -> engines.Outcome:
        self.entered.set()
        assert self.opened.wait(LONG)
        context.meter.check()
        return engines.Outcome()


def until(met: Callable[[], object], seconds: float = LONG) -> None:
    """Wait until ``met`` is true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def all_finished(engine: engines.Engine, count: int) -> dict[str, engines.Finished]:
    """The next ``count`` jobs to end, by address."""
    told: dict[str, engines.Finished] = {}
    deadline = time.monotonic() + LONG
    while len(told) < count:
        assert time.monotonic() < deadline, f"only {sorted(told)} ended"
        engine.wait(1.0)
        told.update({finished.address: finished for finished in engine.finished()})
    return told
