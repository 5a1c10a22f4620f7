"""Verify actions for pools: what they store is read again and proven within the time that ``scrub.every`` says.

A scrub goes slice by slice, so that nothing waits long for its slot and no pass lasts as long as a large pool: while a
round is not through, the next slice begins an hour after the last one began.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Final

from reconciler.base import quantities, times
from reconciler.planning import actions, desired, observed, placements, retries

#: From the beginning of one slice to that of the next.
PAUSE: Final = dt.timedelta(hours=1)
#: Where a manifest says nothing.
DEFAULT: Final = quantities.Duration.parse("30d")


def scrubs(
    wanted: desired.Desired,
    seen: observed.Observed,
    units: placements.Units,
    now: dt.datetime,
    horizon: dt.datetime,
) -> Iterator[actions.Action]:
    """One Verify per pool whose time has come, or comes within the horizon."""
    live = {job.address for job in seen.jobs}
    for name, declared in sorted(wanted.units.items()):
        unit = seen.units.get(name)
        if declared.spec.type != "DedupePool" or unit is None or unit.proven is None:
            continue
        every = declared.spec.scrub.every if declared.spec.scrub is not None else DEFAULT
        proven = seen.believed(unit.proven, now)
        due = proven + PAUSE if unit.proving else every.after(proven)
        if due > horizon:
            continue
        place = address(name)
        attempts = seen.attempts.get(place)
        state, at, reason = _state(place in live, units.refuses_delete(name), attempts, due, now)
        yield actions.Action(
            address=place,
            type=actions.Type.VERIFY,
            state=state,
            at=at,
            reason=reason or _reason(unit, every),
            unit=name,
            attempt=retries.number(attempts),
        )


def _state(
    running: bool,
    refusal: actions.Reason | None,
    attempts: observed.Attempts | None,
    due: dt.datetime,
    now: dt.datetime,
) -> tuple[actions.State, dt.datetime | None, actions.Reason | None]:
    """What keeps a scrub from starting; no reason where nothing but its time does."""
    if running:
        return actions.State.DUE, due, actions.Reason(code="Running", message="it is running")
    if due > now:
        return actions.State.PLANNED, due, None
    if refusal is not None:
        return actions.State.BLOCKED, due, refusal
    resting = retries.resting(attempts, now)
    return (actions.State.WAITING, *resting) if resting is not None else (actions.State.DUE, due, None)


def address(unit: str) -> str:
    """The address of a pool's scrub."""
    return f"scrub/{unit}"


def _reason(unit: observed.Unit, every: quantities.Duration) -> actions.Reason:
    if unit.proving or unit.proven is None:
        return actions.Reason(code="ScrubUnfinished", message="a scrub was begun and is not through")
    return actions.Reason(code="ScrubDue", message=f"proven last {times.show(unit.proven)}, to be proven every {every}")
