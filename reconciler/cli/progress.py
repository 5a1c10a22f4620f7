"""Progress of running jobs: bytes, rate and time left on a terminal; nothing where there is none.

``bars`` draws it, and is loaded only where somebody sees it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from reconciler.base import meters
from reconciler.cli import commands
from reconciler.jobs import engines


def shown(engine: engines.Engine) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """A function that draws the engine's running jobs; to be called now and then."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext(_nothing)
    drawn: contextlib.AbstractContextManager[Callable[[], None]] = commands.load("bars").shown(engine)
    return drawn


def metered(meter: meters.Meter, label: str) -> contextlib.AbstractContextManager[None]:
    """Draw one meter while the block runs in this thread, refreshed by the library's own thread."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    drawn: contextlib.AbstractContextManager[None] = commands.load("bars").metered(meter, label)
    return drawn


def _nothing() -> None:
    return None
