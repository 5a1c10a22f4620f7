"""What earlier attempts at an action mean for the next one.

Called for every action that would start. Lost attempts are repeated at once and do not count, until five of them show
that the action kills its worker (one that was stopped in order shows nothing); failures wait longer each time; a
cancelled action rests until its next slot. One that its closing window stopped goes on when the window opens again; a
second time it is given up until its next slot, if it has one.
"""

from __future__ import annotations

import datetime as dt
from typing import Final, NamedTuple

from reconciler.planning import actions, observed

#: From this many attempts on whose worker died, each counts as a failure.
PATIENCE: Final = 5
#: This many times a closing window stops an attempt at a slot before the slot is given up.
SHORT: Final = 2
#: How long a cancelled action rests that has no slot.
REST: Final = dt.timedelta(days=1)
_FIRST: Final = dt.timedelta(minutes=1)
_LONGEST: Final = dt.timedelta(hours=1)


class Standing(NamedTuple):
    """Whether an action may start."""

    #: Ready, Waiting, Exhausted or Cancelled.
    state: str
    #: Waiting: until when.
    until: dt.datetime | None
    #: Attempts that count.
    failures: int


READY: Final = Standing("Ready", None, 0)


def backoff(failures: int) -> dt.timedelta:
    """How long to wait after so many failures: 1, 5, 25 minutes, then an hour."""
    factor: int = 5 ** min(failures - 1, 5)
    return min(_FIRST * factor, _LONGEST)


def standing(attempts: observed.Attempts | None, limit: int | None, now: dt.datetime) -> Standing:
    """Judge by the attempts so far; ``limit`` is how many further ones a failure allows, None for any number."""
    if attempts is None:
        return READY
    if attempts.last_state == "Cancelled":
        return Standing("Cancelled", None, 0)
    deaths = attempts.lost - attempts.stopped
    failures = attempts.failed - attempts.lost - attempts.overran + max(0, deaths - PATIENCE + 1)
    if limit is not None and attempts.overran >= SHORT:
        return Standing("Exhausted", None, failures)
    if failures <= 0:
        return READY
    if limit is not None and failures > limit:
        return Standing("Exhausted", None, failures)
    until = attempts.last_finished + backoff(failures)
    at_once = attempts.last_state == "Overrun" or (attempts.last_state == "Lost" and deaths < PATIENCE)
    if at_once or _lies_ahead(attempts, now) or until <= now:
        return Standing("Ready", None, failures)
    return Standing("Waiting", until, failures)


def resting(attempts: observed.Attempts | None, now: dt.datetime) -> tuple[dt.datetime | None, actions.Reason] | None:
    """Until when an action rests that no slot asks for, and why; None where it may start."""
    found = standing(attempts, None, now)
    if attempts is None:
        return None
    if found.state == "Cancelled" and not _lies_ahead(attempts, now) and attempts.last_finished + REST > now:
        words = actions.Reason(code="Cancelled", message="it was cancelled, and rests for a day")
        return attempts.last_finished + REST, words
    if found.state == "Waiting":
        return found.until, actions.Reason(code="Retry", message=f"the last attempt failed: {attempts.message}")
    return None


def _lies_ahead(attempts: observed.Attempts, now: dt.datetime) -> bool:
    """Whether the last attempt is seen from a clock that was set back: it must not hold the next one up for so long."""
    return attempts.last_finished > now + _FIRST


def number(attempts: observed.Attempts | None) -> int:
    """Which attempt the next one is, from 1."""
    return attempts.failed + 1 if attempts is not None else 1
