"""The watch over a reading: a snapshot that grows too old, or a datastore that runs full, ends it.

Threads of their own look every few seconds, because those who read may hang. Their questions keep the session alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from reconciler.api import vcenters
from reconciler.base import errors, meters, quantities
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.reading import guards, spaces

#: Seconds between two looks at the datastores, at most, and between two at the clock and the meter.
_LOOK: Final = 15.0
_GLANCE: Final = 0.25


class SnapshotTooOld(errors.SourceError):
    """A snapshot of ours was open for longer than the VCenter's ``maxSnapshotAge``."""


class Watch:
    """Looks until it is ended. ``guard`` is stopped with what it finds, and then ``found`` is called, once."""

    def __init__(
        self,
        session: sessions.Session,
        datastores: Sequence[Any],
        guard: guards.Guard,
        meter: meters.Meter,
        *,
        words: str,
        found: Callable[[errors.HoldfastError], None],
        log: Callable[[str], None],
        since: float,
    ) -> None:
        """``words``: the machine, for messages; ``since``: when the snapshot was made, on the monotonic clock."""
        self._session = session
        self._datastores = datastores
        self._guard = guard
        self._meter = meter
        self._words = words
        self._found = found
        self._log = log
        self._since = since
        self._ended = threading.Event()
        self._once = threading.Lock()
        # Two, because a vCenter may hang as well, and somebody who cancels is heard all the same.
        for name, run in (("vsphere-watch", self._glance), ("vsphere-space", self._look)):
            threading.Thread(target=run, name=name, daemon=True).start()

    def end(self) -> None:
        """No more looks; one that is under way finds nothing more. Idempotent."""
        self._ended.set()

    def _glance(self) -> None:
        while not self._ended.wait(_GLANCE):
            if self._meter.cancelled:
                # Who waits for a read looks at the meter before it and after it only. Who waits for something else is
                # watched on: the snapshot grows all the same.
                self._guard.stop(errors.Cancelled("cancelled on request"))
            self._tell(self._aged(self._session.spec))

    def _look(self) -> None:
        spec = self._session.spec
        every = min(_LOOK, spec.max_snapshot_age.approximate.total_seconds() / 4)
        while not self._ended.wait(every):
            self._tell(self._filled(spec))

    def _tell(self, error: errors.HoldfastError | None) -> None:
        """The first thing that is found ends the reading, and the watch."""
        if error is None:
            return
        with self._once:
            if self._ended.is_set():
                return
            self._ended.set()
        self._guard.stop(error)
        self._found(error)

    def _aged(self, spec: vcenters.VCenterSpec) -> errors.HoldfastError | None:
        age = time.monotonic() - self._since
        if age <= spec.max_snapshot_age.approximate.total_seconds():
            return None
        return SnapshotTooOld(
            f"{self._words}: its snapshot was open for {quantities.show_seconds(age)}, longer than maxSnapshotAge "
            f"{spec.max_snapshot_age}",
            hint="see what reads so slowly, read more disks at a time, or raise the VCenter's maxSnapshotAge",
        )

    def _filled(self, spec: vcenters.VCenterSpec) -> errors.HoldfastError | None:
        doing = f"{self._words}: read"
        share = quantities.parse_percent(spec.datastore_free_space)
        try:
            found = spaces.look(self._session, self._datastores, doing)
            spaces.require(found, share / 2, f"half of {spec.datastore_free_space}", doing)
        except spaces.DatastoreFull as error:
            return error
        except errors.SourceError as error:
            self._log(f"{error}; the free space of its datastores is not known")
        return None
