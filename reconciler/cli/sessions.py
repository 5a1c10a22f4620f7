"""Opening the catalog, for reading or writing; signals; who is acting. Light, for commands that only look."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from reconciler.base import errors, meters
from reconciler.catalog import database, servers
from reconciler.cli import settings

_LOGGER = logging.getLogger(__name__)

_T = TypeVar("_T")


def actor() -> str:
    """Who the audit log names: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read(chosen: settings.Settings, function: Callable[[database.Database], _T]) -> _T:
    """What ``function`` reads from the catalog, leaving no trace; it is called again if a writer came in between.

    Raises ``NotFound`` where there is no catalog.
    """
    # Boxed, so that a function whose value is None is told from a catalog that is not there.
    found = database.read(chosen.catalog, lambda db: (function(db),))
    if found is None:
        raise _nowhere(chosen)
    return found[0]


def _nowhere(chosen: settings.Settings) -> errors.NotFound:
    return errors.NotFound(
        f"there is no catalog at {servers.shown(chosen.catalog)}",
        hint="the first holdfast apply makes it; one that was lost, holdfast catalog rebuild --from UNIT...",
    )


@contextlib.contextmanager
def writing(chosen: settings.Settings, *, create: bool = False) -> Iterator[database.Database]:
    """The catalog, opened for writing. Raises ``NotFound`` where there is none and ``create`` does not make it."""
    if create:
        chosen.state.mkdir(parents=True, exist_ok=True)
    elif database.read(chosen.catalog, lambda _db: True) is None:
        raise _nowhere(chosen)
    with contextlib.closing(database.open_writing(chosen.catalog)) as db:
        yield db


@contextlib.contextmanager
def stopping(*also: signal.Signals) -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT and the signals named set; a second SIGINT interrupts at once."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, *also)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_logging() -> None:
    """Warnings and worse of every module, on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="holdfast: %(message)s")


@contextlib.contextmanager
def cancelling(meter: meters.Meter) -> Iterator[None]:
    """SIGTERM and SIGINT cancel the work of a meter, so that it ends in order and leaves nothing behind."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        meter.cancel()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unstopped(what: str) -> Iterator[None]:
    """A catalog that refuses to record ``what`` stops nothing here: a restore needs it least when it is needed most."""
    try:
        yield
    except errors.CatalogError as error:
        _LOGGER.error("the catalog does not say %s: %s", what, error)
