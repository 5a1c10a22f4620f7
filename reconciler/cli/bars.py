"""The bars of ``progress``, for a terminal: bytes, rate and time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich import console, progress

from reconciler.base import meters
from reconciler.jobs import engines


def _bars() -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}", table_column=None),
        progress.BarColumn(bar_width=16),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(file=sys.stderr),
        transient=True,
    )


@contextlib.contextmanager
def shown(engine: engines.Engine) -> Iterator[Callable[[], None]]:
    """A function that draws the engine's running jobs; to be called now and then."""
    tasks: dict[str, progress.TaskID] = {}
    with _bars() as bars:

        def refresh() -> None:
            running = dict(engine.readings())
            for address in [known for known in tasks if known not in running]:
                bars.remove_task(tasks.pop(address))
            for address, reading in running.items():
                if address not in tasks:
                    tasks[address] = bars.add_task(address[:38], total=None)
                bars.update(tasks[address], completed=reading.scanned, total=reading.total or None)

        yield refresh


@contextlib.contextmanager
def metered(meter: meters.Meter, label: str) -> Iterator[None]:
    """Draw one meter while the block runs in this thread, refreshed by the library's own thread."""
    with _bars() as bars:
        task = bars.add_task(label[:38], total=None)

        class _Follow(progress.ProgressColumn):
            def render(self, _task: progress.Task) -> str:
                reading = meter.reading()
                bars.update(task, completed=reading.scanned, total=reading.total or None)
                return ""

        bars.columns = (*bars.columns, _Follow())
        yield
