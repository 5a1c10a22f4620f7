"""A clock that a test sets from within its own process."""

from __future__ import annotations

import datetime as dt

from reconciler.base import clocks


class MovedClock(clocks.Clock):
    """Shows what it was set to; the boot clock moves along."""

    steps_are_time = True

    def __init__(self, moment: dt.datetime) -> None:
        self.moment = moment

    def now(self) -> dt.datetime:
        """What was set."""
        return self.moment

    def boot(self) -> float:
        """Moved along."""
        return self.moment.timestamp()
