"""The six nevers: deletions that no manifest can order, as one function.

1 the last good copy of a series' newest complete image, and of its three newest while the newest is older than the
objective; 2 a copy that still owes a child, or one of several damaged ones that may make one whole; 3 a copy in use; 4
a locked one; 5 the last good copy of a held image; 6 a copy that another copy on its unit needs as base. A retired
client has no first never, a waived copy no second.
``expiry`` asks when planning and again, through ``expiry.check_delete``, inside the catalog's deleting transaction.
The objective is that of the policy's ServiceLevels; without one it is twice the longest gap of the most frequent
schedule, and nothing is recent enough for a policy that nobody knows. An image that failed a verification is not the
last good one: the newest that did not fail stays beside it, and the one from before a drill that failed or is due
until a later one has passed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator, Set
from typing import Final

from reconciler.base import times
from reconciler.planning import (
    actions,
    calendars,
    desired,
    histories,
    lifecycles,
    observed,
    placements,
    rulings,
    servicelevels,
    verifications,
)

#: Copy states that still hold something of the image.
_REMAINS: Final = frozenset({"Complete", "Damaged"})


class Rules:
    """One desired state over one observed one, at one time."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime) -> None:
        self.wanted = wanted
        self.now = now
        self.register = rulings.Register(wanted, seen)
        self.book = lifecycles.Book(wanted, seen.owed, self.register.waived, self.register.orders())
        self.units = placements.Units(wanted, seen)
        self._objectives: dict[str, dt.timedelta] = {}
        self._asked: dict[str, tuple[verifications.Asked, ...]] = {}
        self._seen = seen
        self._unordered: Rules | None = None

    @property
    def unordered(self) -> Rules:
        """The same rules as if nobody had ordered any image to go."""
        if self._unordered is None:
            rest = tuple(one for one in self._seen.rulings if one.kind != "Expire")
            self._unordered = Rules(self.wanted, dataclasses.replace(self._seen, rulings=rest), self.now)
        return self._unordered

    def asked(self, policy: str) -> tuple[verifications.Asked, ...]:
        """What is to be verified of every series of a policy."""
        if policy not in self._asked:
            self._asked[policy] = verifications.asked(self.wanted, policy)
        return self._asked[policy]

    def failure(self, history: histories.History, image: str) -> observed.Verification | None:
        """The last drill of an image of a series, if the last one of some kind failed."""
        return verifications.failure(history, self._seen, image)

    def unanswered(self, history: histories.History) -> tuple[observed.Verification, ...]:
        """The last drill of each kind of a series, where it failed or the next one is due: what is younger is in doubt.

        A failure of an image that is gone counts while another drill is to come.
        """
        asked = self.asked(history.series.policy)
        found = []
        for kind in verifications.DRILLS:
            coming = [one for one in asked if one.kind == kind]
            last = verifications.last(history, self._seen, kind, None, remembered=bool(coming))
            tried = history.by_id(last.image) if last is not None else None
            # Seen from the image, which expires by its own time and not by that of the drill.
            due = tried is not None and any(verifications.due(one, tried.time) <= self.now for one in coming)
            if last is not None and (last.state == "Failed" or due):
                found.append(last)
        return tuple(found)

    def follows(self, history: histories.History, image: observed.Image, last: observed.Verification) -> bool:
        """Whether an image came after the one that was drilled, and no drill of that kind has passed for it."""
        before = history.by_id(last.image)
        later = image.sequence > before.sequence if before is not None else image.time > last.at
        own = self._seen.verifications.get(image.id, ())
        return later and not any(one.kind == last.kind and one.state == "Passed" for one in own)

    def proven(self, history: histories.History) -> Iterator[observed.Image]:
        """The images that can be read and failed no verification, the newest first."""
        return (image for image in history.newest() if self.failure(history, image.id) is None)

    def objective(self, policy: str) -> dt.timedelta:
        """How old the newest image may be before more of the past is kept."""
        if policy not in self._objectives:
            known = self.wanted.policies.get(policy)
            gaps = [
                gap
                for one in (known.spec.schedules if known is not None else ())
                if (gap := calendars.interval(one.cron, one.every, one.time_zone)) is not None
            ]
            asked = servicelevels.objective(self.wanted, policy)
            self._objectives[policy] = asked or 2 * min(gaps, default=dt.timedelta())
        return self._objectives[policy]


def forbids(
    rules: Rules,
    history: histories.History,
    debts: lifecycles.Debts,
    image: observed.Image,
    copy: observed.Copy,
    leaving: Set[tuple[str, int]] = frozenset(),
) -> actions.Reason | None:
    """The never that keeps a copy, or None; ``leaving`` are copies that go before it, as (image id, number)."""
    base = _base_of(history, image, copy, leaving)
    if copy.state == "Lost":
        # Only the record of it goes: the unit was seen without it. Where others need it, it is to be healed.
        # Where another copy of it lies there, that one is their base.
        again = any(
            one.number != copy.number and one.unit == copy.unit and one.state in histories.TANGIBLE
            for one in image.copies
        )
        return None if again else base
    if image.id in history.doubtful and rules.register.ordered(image.id) is None:
        return actions.Reason(code="DoubtfulTime", message="its time is later than now, or contradicts its sequence")
    operation = rules.book.operation(image.lifecycle, copy.operation)
    owing = debts.owing(image, operation)
    if owing and not _stands_in(rules, history, image, copy, operation, leaving):
        return actions.Reason(code="OwesCopy", message=f"it still owes {', '.join(owing)}")
    piecing = debts.piecing(image, copy)
    if piecing:
        words = f"no copy is whole, and {', '.join(piecing)} may be made anew with what is whole of this one"
        return actions.Reason(code="OwesCopy", message=words)
    if copy.busy or copy.state == "Writing":
        return actions.Reason(code="Busy", message="a running job reads it or builds on it")
    locked = locked_until(rules.wanted, copy)
    if locked is not None and locked > rules.now:
        return actions.Reason(code="Immutable", message=f"its unit locks it until {times.show_minutes(locked)}")
    if base is not None:
        return base
    why = must_stay(rules, history, image)
    if why is None or _another_stays(rules, history, image, copy, leaving):
        return None
    return why


def must_stay(rules: Rules, history: histories.History, image: observed.Image) -> actions.Reason | None:
    """Why at least one good copy of an image must stay, by the fifth or the first never; or None."""
    held = rules.register.keeps(history.series.client, image)
    if held is not None:
        return held
    why = protected(rules, history).get(image.id)
    return actions.Reason(code="NewestImage", message=f"the last good copy of {why}") if why is not None else None


def _base_of(
    history: histories.History, image: observed.Image, copy: observed.Copy, leaving: Set[tuple[str, int]]
) -> actions.Reason | None:
    """The sixth never."""
    for dependent, needing in history.dependents(image, copy.unit):
        if (dependent.id, needing.number) not in leaving:
            return actions.Reason(code="Base", message=f"base of {dependent.id}")
    return None


def _stands_in(
    rules: Rules,
    history: histories.History,
    image: observed.Image,
    copy: observed.Copy,
    operation: str,
    leaving: Set[tuple[str, int]],
) -> bool:
    """Whether another good copy of the same operation can pay the debt."""
    return any(
        other.number != copy.number
        and (image.id, other.number) not in leaving
        and rules.book.operation(image.lifecycle, other.operation) == operation
        for other in history.good(image)
    )


def locked_until(wanted: desired.Desired, copy: observed.Copy) -> dt.datetime | None:
    """When the immutability lock of a copy's unit ends; None without a lock."""
    unit = wanted.units.get(copy.unit)
    if unit is None or unit.spec.immutability is None:
        return None
    try:
        return unit.spec.immutability.period.after(copy.created_at)
    except OverflowError:
        return dt.datetime.max.replace(tzinfo=times.UTC)


def _another_stays(
    rules: Rules,
    history: histories.History,
    image: observed.Image,
    copy: observed.Copy,
    leaving: Set[tuple[str, int]],
) -> bool:
    """Whether the image can be read from another copy that stays."""
    for other in image.copies:
        remains = other.number != copy.number and (image.id, other.number) not in leaving
        if remains and history.readable(image, other) and not rules.units.offline(other.unit):
            return True
    return False


def protected(rules: Rules, history: histories.History) -> dict[str, str]:
    """Ids of images that must keep a good copy, and what they are; worked out once per history."""
    found = history.protected
    if found is None:
        found = history.protected = _find_protected(rules, history)
    return found


def _find_protected(rules: Rules, history: histories.History) -> dict[str, str]:
    result: dict[str, str] = {}
    if rules.register.retired(history.series.client):
        return result
    # An image that somebody declared wrong protects nobody, itself least, as long as there is another.
    wrong = rules.register.orders()
    if wrong and all(image.id in wrong for image in history.newest()):
        wrong = frozenset()
    newest = list(itertools.islice((i for i in rules.proven(history) if i.id not in wrong), 3))
    if newest and rules.now - newest[0].time > rules.objective(history.series.policy):
        result.update({image.id: "one of the three newest images of an overdue series" for image in newest})
    # Where the newest cannot be read just now, or not at all, more than one image counts as the newest.
    sound = (i for i in reversed(history.sound) if i.id not in wrong)
    complete = next((i for i in sound if any(c.state in _REMAINS for c in i.copies)), None)
    right = (i for i in history.newest() if i.id not in wrong)
    reachable = next((i for i in right if any(not rules.units.offline(c.unit) for c in history.good(i))), None)
    # A verification may fail for reasons that are not the image's: the newest stays whatever it found.
    untested = next((i for i in history.newest() if i.id not in wrong), None)
    for image_or_none in (complete, *newest[:1], untested, reachable):
        if image_or_none is not None:
            result[image_or_none.id] = "the series' newest complete image"
    answered = next((i for i in _answered(rules, history) if i.id not in wrong), None)
    if answered is not None:
        result.setdefault(
            answered.id, "the newest image from before a drill that failed or is due, until a later one passes"
        )
    return result


def _answered(rules: Rules, history: histories.History) -> Iterator[observed.Image]:
    """The images that failed no verification and have none to answer for, the newest first; none without any doubt.

    One that was made since a drill failed, or that the next one is due for, may be bad until it was tried itself, which
    is done only once it is there.
    """
    last = rules.unanswered(history)
    for image in rules.proven(history) if last else ():
        if not any(rules.follows(history, image, one) for one in last):
            yield image
