"""Has the wall clock jumped? While running it is held against the boot clock, at start against what the catalog noted.

A jump holds expiry only: a wrong clock must never make restore points look old. A clock that was believed too early
destroys them for good, one that is believed a day late costs a day's space: so what was noted since a leap counts for
nothing until a day has passed, in which somebody may see that the clock is wrong.
"""

from __future__ import annotations

import datetime as dt
import time

from reconciler.base import clocks, times
from reconciler.catalog import audits, database, images
from reconciler.planning import schedules

#: How far the two clocks may drift apart between two looks.
TOLERANCE = dt.timedelta(minutes=5)
#: How far the wall clock may be ahead of what was noted before, at start.
AHEAD = dt.timedelta(days=14)
#: How far it may be behind, at start: small steps back are what time servers do.
BEHIND = dt.timedelta(hours=1)
#: How long a clock that leapt must have gone on before it is believed.
SETTLED = dt.timedelta(days=1)


class JumpWatch:
    """Remembers the last look at both clocks. Not thread-safe."""

    def __init__(self, clock: clocks.Clock, db: database.Database) -> None:
        self._clock = clock
        self._db = db
        self._boot = clock.boot()
        self._wall = clock.now()
        #: Why the start is in doubt, and until when at least; None where it never was.
        self._doubt: str | None = None
        self._until: dt.datetime | None = None
        self._believed = False

    def message(self, now: dt.datetime) -> str | None:
        """Why expiry waits, or None. A jump holds it until the wall clock is back where it should be."""
        boot = self._clock.boot()
        expected = self._wall + dt.timedelta(seconds=boot - self._boot)
        if abs(now - expected) > TOLERANCE:
            return (
                f"the clock jumped from {times.show_minutes(expected)} to {times.show_minutes(now)};"
                " expiry waits until it is right again or the controller is started anew"
            )
        self._boot, self._wall = boot, now
        return self._of_start(now)

    def _of_start(self, now: dt.datetime) -> str | None:
        """Images that this process makes at a doubtful time are no proof of it, whatever clock it is."""
        if self._believed:
            return None
        said = at_start(self._db, self._clock, now)
        if said is not None:
            self._doubt, self._until = said, self._until or now + SETTLED
        self._believed = said is None and (self._until is None or now >= self._until)
        return None if self._believed else self._doubt


class Vigil:
    """Since when somebody has been looking without a gap, so that no slot has passed unseen. Not thread-safe.

    While a machine is suspended, or where its clock leaps ahead, time passes in which nobody looks: the monotonic clock
    stands still then.
    """

    def __init__(self, clock: clocks.Clock) -> None:
        self._since = self._wall = clock.now()
        self._passed = time.monotonic()

    def since(self, now: dt.datetime) -> dt.datetime:
        """The answer as of this look."""
        passed = time.monotonic()
        unseen = now - self._wall - dt.timedelta(seconds=passed - self._passed)
        self._wall, self._passed = now, passed
        self._since = now if unseen > schedules.GRACE else min(self._since, now)
        return self._since


def at_start(db: database.Database, clock: clocks.Clock, now: dt.datetime) -> str | None:
    """Why expiry waits at start: the clock is far from the newest image, or leapt within the last day.

    ``now``: what ``clock`` said.
    """
    newest = images.newest_time(db)
    if newest is not None and now > newest + AHEAD:
        return (
            f"the newest image is of {times.show_minutes(newest)}, more than {AHEAD.days} days ago; in case the clock"
            " is wrong, expiry waits until a day after the next backup"
        )
    leap = None if clock.steps_are_time else _leap(db, now)
    if leap is None:
        return None
    before, after = leap
    way = "ahead" if after > before else "back"
    return (
        f"the clock went {way} from {times.show_minutes(before)} to {times.show_minutes(after)}; in case it is wrong,"
        f" expiry waits until {times.show_minutes(after + SETTLED)}"
    )


def _leap(db: database.Database, now: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
    """The last leap of the times that controllers noted, one after the other, if the clock has not gone on for a day
    since: what was noted before it and, as the clock said it, when it was met first."""
    after = now
    for before in audits.times_back(db):
        if not -BEHIND <= after - before <= AHEAD:
            return before, after
        if before <= now - SETTLED:
            break
        after = min(after, before)
    return None
