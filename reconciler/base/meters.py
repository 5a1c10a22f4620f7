"""Counting the work of a job while it runs, and stopping it when somebody asks.

One ``Meter`` per job, shared by its streams; the job engine reads it for progress and sets ``cancel``.
"""

from __future__ import annotations

import dataclasses
import threading

from reconciler.base import errors


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a meter shows at one moment; all counts in bytes unless said otherwise."""

    #: Bytes the work will cover, 0 while unknown.
    total: int = 0
    #: Bytes of the source covered, holes included.
    scanned: int = 0
    #: Bytes read that are not zero.
    non_zero: int = 0
    #: Bytes handed to the unit: after leaving out zeros, what the parent has, and what the pool already holds.
    sent: int = 0
    #: Bytes that the unit's files grew by.
    stored: int = 0
    #: Fingerprint lookups, a count.
    lookups: int = 0
    #: Lookups that found the segment, a count.
    hits: int = 0
    #: Streams at work at the same time, the most so far.
    streams: int = 0


class Meter:
    """Thread-safe counters with a stop flag."""

    def __init__(
        self, stop: threading.Event | None = None, *, above: Meter | None = None, shared: bool = False
    ) -> None:
        """``above``: a meter whose stop flag counts too, and with ``shared`` the one that counts."""
        self._lock = threading.Lock()
        self._reading = dict.fromkeys((field.name for field in dataclasses.fields(Reading)), 0)
        self._cancelled = stop or threading.Event()
        self._above = above
        self._counter = above if shared else None

    def aside(self) -> Meter:
        """Counters of their own under the same stop flag: for work, such as proving, that is not the job's progress."""
        return Meter(self._cancelled, above=self._above)

    def branch(self) -> Meter:
        """The same counters under one more stop flag: for pieces of work that end together when one of them fails."""
        return Meter(above=self, shared=True)

    def add(self, **counts: int) -> None:
        """Add to counters by name, such as ``add(scanned=4096, non_zero=512)``."""
        if self._counter is not None:
            self._counter.add(**counts)
            return
        with self._lock:
            for name, count in counts.items():
                self._reading[name] += count

    def reading(self) -> Reading:
        """The counters now."""
        if self._counter is not None:
            return self._counter.reading()
        with self._lock:
            return Reading(**self._reading)

    def cancel(self) -> None:
        """Ask the work to stop at its next check."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the work to stop."""
        return self._cancelled.is_set() or (self._above is not None and self._above.cancelled)

    def check(self) -> None:
        """Raise ``Cancelled`` if somebody asked. Work calls it before every block it reads or writes."""
        if self.cancelled:
            raise errors.Cancelled("cancelled on request")
