"""Has the wall clock jumped? While running it is held against the boot clock, at start against the newest catalog time.

A jump holds expiry only: a wrong clock must never make restore points look old.
"""

from __future__ import annotations

import datetime as dt

from reconciler.base import clocks, times
from reconciler.catalog import database, images

#: How far the two clocks may drift apart between two looks.
TOLERANCE = dt.timedelta(minutes=5)
#: How far the wall clock may be ahead of everything the catalog knows, at start.
AHEAD = dt.timedelta(days=14)
#: How far it may be behind, at start: small steps back are what time servers do.
BEHIND = dt.timedelta(hours=1)


class JumpWatch:
    """Remembers the last look at both clocks. Not thread-safe."""

    def __init__(self, clock: clocks.Clock, newest_known: dt.datetime | None) -> None:
        self._clock = clock
        self._boot = clock.boot()
        self._wall = clock.now()
        self._held = at_start(self._wall, newest_known)

    def message(self, now: dt.datetime) -> str | None:
        """Why expiry waits, or None. Once held, it stays held until the wall clock is back where it should be."""
        boot = self._clock.boot()
        expected = self._wall + dt.timedelta(seconds=boot - self._boot)
        if abs(now - expected) > TOLERANCE:
            self._held = (
                f"the clock jumped from {times.show_minutes(expected)} to {times.show_minutes(now)};"
                " expiry waits until it is right again or the controller is started anew"
            )
            return self._held
        self._boot, self._wall = boot, now
        if self._held and self._held.startswith("the clock jumped"):
            self._held = None
        return self._held


def at_start(now: dt.datetime, newest_known: dt.datetime | None) -> str | None:
    """Why expiry waits at start, judged by the newest time the catalog knows."""
    if newest_known is None:
        return None
    if now > newest_known + AHEAD:
        return (
            f"the clock says {times.show_minutes(now)}, {(now - newest_known).days} days after the newest image;"
            " expiry waits until a backup has succeeded and Holdfast was started again"
        )
    if now < newest_known - BEHIND:
        known = times.show_minutes(newest_known)
        return f"the clock says {times.show_minutes(now)}, before the newest image ({known}); expiry waits"
    return None


def newest(db: database.Database) -> dt.datetime | None:
    """The newest image time of the catalog."""
    return images.newest_time(db)
