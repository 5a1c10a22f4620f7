"""The wall clock that decisions, slots and stamps use, and the boot clock that tells a jump from the passing of time.

Leases, heartbeats, timeouts and rates use ``time.monotonic`` directly, never these.
With ``HOLDFAST_TEST=1``, ``HOLDFAST_CLOCK`` moves both: a time at which the wall clock starts with the process, or
``@FILE``, whose one line is the time as of the file's mtime (followed while running; ``jump `` before the time leaves
the boot clock where it is, and says that it may be wrong).
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from pathlib import Path
from typing import Protocol

from reconciler.base import errors, times


class Clock(Protocol):
    """Where ``now`` comes from, at the edge; pure code gets the value."""

    @property
    def steps_are_time(self) -> bool:
        """Whether a step between two processes is surely the passing of time, as only a test can say."""

    def now(self) -> dt.datetime:
        """The wall clock, UTC."""

    def boot(self) -> float:
        """Seconds that pass while the machine runs, suspend included; only differences mean something."""


class SystemClock:
    """The machine's clocks."""

    steps_are_time = False

    def now(self) -> dt.datetime:
        """The wall clock, UTC."""
        return dt.datetime.now(times.UTC)

    def boot(self) -> float:
        """CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class ShiftedClock:
    """A wall clock that started at a given time and runs on at normal speed."""

    steps_are_time = True

    def __init__(self, start: dt.datetime) -> None:
        self._system = SystemClock()
        self._shift = start - self._system.now()

    def now(self) -> dt.datetime:
        """The shifted wall clock."""
        return self._system.now() + self._shift

    def boot(self) -> float:
        """The machine's boot clock."""
        return self._system.boot()


class FileClock:
    """A wall clock that a file sets: one line, the time as of the file's mtime. Processes that share it agree."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._system = SystemClock()
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._wall_shift = dt.timedelta()
        self._boot_shift = 0.0
        self._jumped = False
        self._follow()

    @property
    def steps_are_time(self) -> bool:
        """Whether the file says no other."""
        with self._lock:
            self._follow()
            return not self._jumped

    def _follow(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            line = self._path.read_text().strip()
        except FileNotFoundError as error:
            if self._stamp is not None:
                return  # between an unlink and a rename of the test: the last reading goes on
            raise errors.UsageError(f"HOLDFAST_CLOCK: {self._path} does not exist") from error
        jump = line.startswith("jump ")
        try:
            moment = times.parse(line.removeprefix("jump "))
        except ValueError as error:
            if self._stamp is not None:
                return  # caught in the middle of a write
            raise errors.UsageError(f"HOLDFAST_CLOCK: {self._path}: {error}") from error
        shift = moment - dt.datetime.fromtimestamp(found.st_mtime, times.UTC)
        if not jump and self._stamp is not None:
            self._boot_shift += (shift - self._wall_shift).total_seconds()
        self._wall_shift, self._stamp, self._jumped = shift, stamp, jump

    def now(self) -> dt.datetime:
        """The time of the file plus what passed since it was written."""
        with self._lock:
            self._follow()
            return self._system.now() + self._wall_shift

    def boot(self) -> float:
        """The machine's boot clock, moved along with every step that is no jump."""
        with self._lock:
            self._follow()
            return self._system.boot() + self._boot_shift


def from_environment() -> Clock:
    """The clock this process was told to use. Raises ``UsageError`` for a ``HOLDFAST_CLOCK`` that cannot be read."""
    setting = os.environ.get("HOLDFAST_CLOCK", "")
    if os.environ.get("HOLDFAST_TEST") != "1" or not setting:
        return SystemClock()
    if setting.startswith("@"):
        return FileClock(Path(setting[1:]))
    try:
        return ShiftedClock(times.parse(setting))
    except ValueError as error:
        raise errors.UsageError(f"HOLDFAST_CLOCK: {error}") from error
