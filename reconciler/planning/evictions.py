"""What leaves a unit that is too full: the oldest ``CapacityManaged`` copies, until its low water mark is reached.

Called by ``planner`` after all series, because a unit's copies are those of many series. A unit is emptied once it is
above its high water mark, or once a job waits for more room than it has; then it goes on down to the low mark (or until
the job fits), which ``Observed.emptying`` remembers between the turns of the loop. First go copies past the ``desired``
time of their rule, oldest first, then the others, oldest first; on a chain unit a base goes with all that is built on
it. No copy goes that a never, a promise or a due action holds. What a copy frees in a pool is an estimate: the unit is
looked at again after each deletion, with what a collection would give back counted as free. Pure.
"""

from __future__ import annotations

import collections
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from reconciler.api import lifecycles as kinds
from reconciler.base import quantities
from reconciler.planning import actions, capacities, desired, expiry, histories, lifecycles, nevers, observed

_PRESENT: Final = frozenset({"Complete", "Damaged"})
#: Why a copy stays, in the few words of a list.
_WORDS: Final[Mapping[str, str]] = {
    "NewestImage": "of newest images", "OwesCopy": "owing a copy", "Busy": "in use", "InUse": "in use",
    "Immutable": "locked", "Base": "needed as base", "Held": "promised or held",
}  # fmt: skip


class Goal(NamedTuple):
    """A unit that is to be emptied; all in bytes."""

    unit: str
    #: Taken now.
    filled: int
    total: int
    #: Down to which it is emptied.
    goal: int
    #: The sentence, without the rule's name.
    why: str
    #: Whether it takes nothing new until some of it is gone.
    pressing: bool


class Group(NamedTuple):
    """Copies of one unit that go together: one, and what is built on it there."""

    #: 0 past the desired time, 1 before it.
    rank: int
    #: Image time of the oldest of them.
    time: dt.datetime
    sequence: int
    unit: str
    #: Newest first.
    copies: tuple[tuple[observed.Image, observed.Copy], ...]
    bytes: int
    policy: str
    client: str
    #: The rule's desired time, where it has not passed.
    desired: str


class Evicted(NamedTuple):
    """One copy that goes."""

    policy: str
    client: str
    verdict: expiry.Verdict


class Outcome(NamedTuple):
    """What a look at all units came to."""

    evicted: tuple[Evicted, ...] = ()
    drift: tuple[actions.Drift, ...] = ()
    #: Goals that are not reached yet, by unit, for the next turn.
    emptying: Mapping[str, int] = {}


Used = Mapping[tuple[str, int], str]


def decide(
    judge: expiry.Judge,
    all_series: Iterable[observed.Series],
    seen: observed.Observed,
    now: dt.datetime,
    *,
    used: Used,
) -> Outcome:
    """The copies that go to make room. ``used``: copies that due actions read or build on, as ``Judge.verdicts``."""
    if not managed(judge.wanted, seen):
        return Outcome()
    goals = {one.unit: one for one in _goals(judge, seen)}
    drift = list(_unsure(judge, seen))
    if not goals:
        return Outcome(drift=tuple(drift))
    tally = _Tally(judge, frozenset(goals), now, used)
    groups = [group for series in all_series for group in tally.groups(histories.History(series, now))]
    groups.sort(key=lambda one: (one.rank, one.time, one.sequence, one.client, one.policy))
    evicted: list[Evicted] = []
    emptying: dict[str, int] = {}
    for unit, goal in sorted(goals.items()):
        over = goal.filled - tally.going[unit] - goal.goal
        chosen = list(_until(over, [one for one in groups if one.unit == unit]))
        evicted += [one for group in chosen for one in _verdicts(group, goal, now)]
        left = over - sum(one.bytes for one in chosen)
        if chosen or (over <= 0 < goal.filled - goal.goal):
            emptying[unit] = goal.goal
        if left > 0 and goal.pressing and tally.met[unit]:
            drift.append(_cannot(goal, left, tally.held[unit]))
    return Outcome(tuple(evicted), tuple(drift), emptying)


def managed(wanted: desired.Desired, seen: observed.Observed) -> bool:
    """Whether any copy may be ``CapacityManaged``, now or by the revision that made it."""
    specs = (*(one.spec for one in wanted.lifecycles.values()), *seen.owed.values())
    return any(isinstance(one.retention, kinds.CapacityManaged) for spec in specs for one in spec.operations)


def _goals(judge: expiry.Judge, seen: observed.Observed) -> Iterator[Goal]:
    for name, declared in judge.wanted.units.items():
        found = seen.units.get(name)
        room = capacities.space(found) if found is not None and found.surveyed else None
        if room is None or judge.units.refuses_delete(name) is not None:
            continue
        high = quantities.parse_percent(declared.spec.high_water_mark)
        low = quantities.parse_percent(declared.spec.low_water_mark)
        floor, percent = low * room.total // 100, 100 * room.filled // room.total
        need, carried = judge.units.wanting.get(name), seen.emptying.get(name)
        if 100 * room.filled > high * room.total:
            why = f"{name} is {percent}% full, over its {high}% mark, down to {low}%"
            yield Goal(name, room.filled, room.total, floor, why, True)
        elif need is not None and room.total - need < room.filled > floor:
            free = quantities.show_size(room.free)
            why = f"{name} has {free} free, and {quantities.show_size(need)} are expected"
            yield Goal(name, room.filled, room.total, max(floor, room.total - need), why, True)
        elif carried is not None and carried < room.filled:
            why = f"{name} is {percent}% full, on its way down to {100 * carried // room.total}%"
            yield Goal(name, room.filled, room.total, carried, why, False)


class _Tally:
    """What could go, what goes anyway, and what is held, over all series."""

    def __init__(self, judge: expiry.Judge, units: frozenset[str], now: dt.datetime, used: Used) -> None:
        self._judge = judge
        self._units = units
        self._now = now
        self._used = used
        #: By unit: bytes of copies that leave for another reason.
        self.going: collections.Counter[str] = collections.Counter()
        #: By unit: how many copies are under ``CapacityManaged`` at all.
        self.met: collections.Counter[str] = collections.Counter()
        #: By unit: why copies stay, counted.
        self.held: dict[str, collections.Counter[str]] = {unit: collections.Counter() for unit in units}

    def groups(self, history: histories.History) -> list[Group]:
        """What of one series could go, in the order in which it would."""
        if not any(copy.unit in self._units for image in history.images for copy in image.copies):
            return []
        leaving = set()
        for one in self._judge.verdicts(history, used=self._used):
            if one.state == "Due" or one.code == "AfterDependents":
                leaving.add((one.image.id, one.copy.number))
                self.going[one.copy.unit] += one.copy.stored_bytes
        found = list(self._candidates(history, leaving))
        if not found:
            return []
        return list(_Order(self._judge, history, found, leaving, self._used, self.held).groups())

    def _candidates(self, history: histories.History, leaving: set[tuple[str, int]]) -> Iterator[_Candidate]:
        holds = self._judge.holder(history)
        for image in history.images:
            for copy in image.copies:
                if copy.unit not in self._units or copy.state not in _PRESENT or (image.id, copy.number) in leaving:
                    continue
                operation = self._judge.book.operation(image.lifecycle, copy.operation)
                rule = self._judge.book.rule(image, operation)
                if not isinstance(rule, kinds.CapacityManaged) or image.state != "Complete":
                    continue
                self.met[copy.unit] += 1
                if holds(image, copy):
                    self.held[copy.unit]["Held"] += 1
                    continue
                early = _early(rule, image, self._now)
                yield _Candidate(image, copy, 1 if early else 0, str(rule.desired) if early else "")


class _Candidate(NamedTuple):
    image: observed.Image
    copy: observed.Copy
    rank: int
    desired: str


def _early(rule: kinds.CapacityManaged, image: observed.Image, now: dt.datetime) -> bool:
    if rule.desired is None:
        return False
    try:
        return rule.desired.after(image.time) > now
    except OverflowError:
        return True


class _Order:
    """The groups of one series, each judged as if those before it had gone."""

    def __init__(
        self,
        judge: expiry.Judge,
        history: histories.History,
        found: list[_Candidate],
        leaving: set[tuple[str, int]],
        used: Used,
        held: dict[str, collections.Counter[str]],
    ) -> None:
        self._judge = judge
        self._history = history
        self._debts = lifecycles.Debts(judge.book, history, judge.now)
        self._found = {(one.image.id, one.copy.number): one for one in found}
        self._leaving = leaving
        self._used = used
        self._held = held

    def groups(self) -> Iterator[Group]:
        """First those past their desired time, oldest first."""
        for rank in (0, 1):
            for key, one in list(self._found.items()):
                if key in self._leaving or one.rank > rank:
                    continue
                members, reason = self._together(one, rank)
                if reason is None:
                    self._leaving.update((image.id, copy.number) for image, copy in members)
                    yield self._group(one, rank, members)
                elif rank == 1:
                    self._held[one.copy.unit][reason] += 1

    def _group(self, one: _Candidate, rank: int, members: list[tuple[observed.Image, observed.Copy]]) -> Group:
        series, size = self._history.series, sum(copy.stored_bytes for _, copy in members)
        wish = next((w for image, copy in members if (w := self._found[image.id, copy.number].desired)), "")
        return Group(
            rank, one.image.time, one.image.sequence, one.copy.unit, tuple(members), size, series.policy,
            series.client, wish,
        )  # fmt: skip

    def _together(self, one: _Candidate, rank: int) -> tuple[list[tuple[observed.Image, observed.Copy]], str | None]:
        """A copy and all that is built on it on its unit, newest first; or why they cannot go."""
        members = {(one.image.id, one.copy.number): (one.image, one.copy)}
        waiting = [one.image]
        while waiting:
            for image, copy in self._history.dependents(waiting.pop(), one.copy.unit):
                key = (image.id, copy.number)
                if key in self._leaving or key in members:
                    continue
                candidate = self._found.get(key)
                if candidate is None or candidate.rank > rank:
                    return [], "Base"
                members[key] = (image, copy)
                waiting.append(image)
        ordered = sorted(members.values(), key=lambda entry: entry[0].sequence, reverse=True)
        tentative = set(self._leaving)
        for image, copy in ordered:
            if (image.id, copy.number) in self._used:
                return [], "InUse"
            reason = nevers.forbids(self._judge, self._history, self._debts, image, copy, tentative)
            if reason is not None:
                return [], reason.code
            tentative.add((image.id, copy.number))
        return ordered, None


def _until(over: int, groups: list[Group]) -> Iterator[Group]:
    """As many as are needed, and not one more."""
    for group in groups:
        if over <= 0:
            return
        over -= group.bytes
        yield group


def _verdicts(group: Group, goal: Goal, now: dt.datetime) -> Iterator[Evicted]:
    wish = f", before its desired {group.desired}" if group.desired else ""
    message = f"expires: CapacityManaged{wish}, {goal.why}"
    for image, copy in group.copies:
        after = tuple((other.id, built.number) for other, built in group.copies if built.base == image.id)
        state, code = ("Waiting", "AfterDependents") if after else ("Due", "CapacityManaged")
        yield Evicted(group.policy, group.client, expiry.Verdict(image, copy, state, code, message, now, after))


def _cannot(goal: Goal, left: int, held: collections.Counter[str]) -> actions.Drift:
    reasons: collections.Counter[str] = collections.Counter()
    for code, count in held.items():
        reasons[_WORDS.get(code, "held")] += count
    listed = ", ".join(f"{count} {words}" for words, count in sorted(reasons.items()))
    stay = f"; copies stay that are {listed}" if listed else ""
    percent = 100 * goal.filled // goal.total
    return actions.Drift(
        code="CannotMakeSpace",
        object=f"StorageUnit/{goal.unit}",
        message=(
            f"{percent}% full, and {quantities.show_size(left)} more than CapacityManaged can give would have to"
            f" go{stay}; add space, or shorten another retention"
        ),
    )


def _unsure(judge: expiry.Judge, seen: observed.Observed) -> Iterator[actions.Drift]:
    """Pools of which nobody can say what deleting would free: nothing is deleted there in vain."""
    for name, declared in sorted(judge.wanted.units.items()):
        found = seen.units.get(name)
        room = capacities.space(found) if found is not None and not found.surveyed else None
        if room is not None and capacities.over(declared.spec, room):
            words = "it is too full, but what a collection would give back cannot be told; holdfast pool check says why"
            yield actions.Drift(code="CannotMakeSpace", object=f"StorageUnit/{name}", message=words)
