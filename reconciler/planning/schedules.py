"""Which slots of a policy are due for one client, which are served, and which comes next.

A ``Timetable`` is one schedule of one policy, with what all its clients share worked out once; a ``Record`` is what the
images of one series have served. ``backups`` turns due slots into actions, ``conditions`` reads the same record.

A slot is served by an image of its type or a stronger one whose own slot is not earlier. A slot counts from the
schedule's anchor, so that an edit never starts a backup by itself; a series without an image begins at once under
``every`` and at its next slot under ``cron``. Under ``catchUp: None`` a slot is missed once ``GRACE`` has passed,
unless it was already attempted or somebody has been planning since it fell due (``Observed.watching``).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Final, NamedTuple

from reconciler.api import policies
from reconciler.base import times
from reconciler.planning import calendars, configuration, desired, histories, observed, sightings

#: Weakest first.
STRENGTH: Final[Mapping[str, int]] = {"Incremental": 1, "Cumulative": 2, "Full": 3}
#: How late a backup may begin under ``catchUp: None``.
GRACE: Final = dt.timedelta(minutes=10)


def whole(moment: dt.datetime) -> dt.datetime:
    """The moment to the second: what slots that begin at some event are rounded down to."""
    return moment.replace(microsecond=0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timetable:
    """One schedule of a policy."""

    schedule: policies.Schedule
    #: Place among the policy's schedules.
    place: int
    anchor: dt.datetime
    window: policies.BackupWindowSpec | None
    #: What the clock says.
    present: dt.datetime

    @property
    def strength(self) -> int:
        """Of the schedule's type."""
        return STRENGTH[self.schedule.type]


class Record(NamedTuple):
    """What the images of one series have served."""

    #: Newest slot by strength of the image: index 1 to 3; a stronger image serves the weaker ones too.
    served: tuple[dt.datetime | None, ...]
    #: Newest slot of a full image.
    full: dt.datetime | None
    #: Whether there is an image that satisfies anything.
    begun: bool
    #: From when a series without images counts: its client's first sight, UTC.
    seen: dt.datetime


def timetables(
    wanted: desired.Desired, policy: policies.BackupPolicy, seen: observed.Observed, now: dt.datetime
) -> tuple[Timetable, ...]:
    """The schedules of a policy, in order."""
    result = []
    for place, schedule in enumerate(policy.spec.schedules):
        window = wanted.windows.get(schedule.window) if schedule.window is not None else None
        anchor = whole(seen.believed(configuration.anchor(policy, schedule, seen, now), now))
        spec = window.spec if window is not None else None
        result.append(
            Timetable(schedule=schedule, place=place, anchor=anchor, window=spec, present=seen.present or now)
        )
    return tuple(result)


def record(history: histories.History | None, first_seen: dt.datetime) -> Record:
    """What a series has served; ``None`` for one without images."""
    newest: dict[int, dt.datetime] = {}
    if history is not None:
        images = history.images
        for type in {shape.type for shape in images.kinds}:
            places = history.sound_of(shape for shape in images.kinds if shape.type == type)
            if places:
                strength, slot = STRENGTH.get(type, 1), times.to_moment(max(images.slots[place] for place in places))
                newest[strength] = max(newest.get(strength, slot), slot)
    served = [max((slot for s, slot in newest.items() if s >= strength), default=None) for strength in range(4)]
    return Record(tuple(served), newest.get(3), bool(newest), whole(first_seen))


def due(table: Timetable, record: Record, at: dt.datetime) -> dt.datetime | None:
    """The latest slot at or before ``at`` that no image has served, deadlines and windows left aside; or None."""
    served = record.served[table.strength]
    base, first = _start(table, record)
    if table.schedule.every is not None:
        found = _latest_on_grid(table, base, first, at)
    else:
        found = calendars.latest(table.schedule.cron or "", table.schedule.time_zone, at)
        if found is None or found < base:
            found = base if first and base <= at else None
    if found is None or found < table.anchor or (served is not None and found <= served):
        return None
    return found


def following(table: Timetable, record: Record, after: dt.datetime) -> dt.datetime | None:
    """The next slot strictly after ``after``, whatever is due before it; or None."""
    base, first = _start(table, record)
    if first and base > after:
        return base
    if table.schedule.every is None:
        later = max(after, base - dt.timedelta(microseconds=1))
        return calendars.following(table.schedule.cron or "", table.schedule.time_zone, later)
    every = table.schedule.every
    slot = calendars.grid_following(base, every, after)
    while slot is not None and ((slot == base and not first) or slot < table.anchor):
        slot = calendars.grid_following(base, every, max(slot, table.anchor - dt.timedelta(microseconds=1)))
    return slot


def _start(table: Timetable, record: Record) -> tuple[dt.datetime, bool]:
    """From when the slots of a schedule count for a series, and whether that moment is itself a slot."""
    served = record.served[table.strength]
    if table.schedule.every is not None and served is not None:
        return served, False
    if record.begun:
        return table.anchor, False
    start = max(table.anchor, sightings.believed(record.seen, table.present))
    default = "Immediately" if table.schedule.every is not None else "NextSlot"
    return start, (table.schedule.initial_backup or default) == "Immediately"


def _latest_on_grid(table: Timetable, base: dt.datetime, first: bool, at: dt.datetime) -> dt.datetime | None:
    every = table.schedule.every
    slot = calendars.grid_latest(base, every, at) if every is not None else None
    return None if slot == base and not first else slot


def missed(
    table: Timetable, slot: dt.datetime, now: dt.datetime, *, initial: bool, watching: dt.datetime | None
) -> bool:
    """Whether it is too late for a slot that nobody has attempted yet. A series' first backup is never too late."""
    if initial:
        return False
    if past_deadline(table, slot, now):
        return True
    if table.schedule.catch_up == "Latest":
        return False
    # A closed window is no miss: the grace begins when it opens.
    ready = calendars.next_opening(table.window, slot) if table.window is not None else slot
    if ready is None:
        return True
    return now > ready + GRACE and (watching is None or watching > ready)


def past_deadline(table: Timetable, slot: dt.datetime, at: dt.datetime) -> bool:
    """Whether ``startingDeadline`` has passed for a slot."""
    deadline = table.schedule.starting_deadline
    if deadline is None:
        return False
    try:
        return at > deadline.after(slot)
    except OverflowError:
        return False
