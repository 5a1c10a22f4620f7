"""Two revisions over one catalog: what a reviewer asks before merging.

``plan --from --to`` calls ``compare``. For every copy that is there, the decision of one revision is held against that
of the other: one that may leave now, or on an earlier day, leaves earlier. Between two dates there is an order; a copy
that ``Keep`` keeps today has none yet, so moving between a date and such a rule is Undated; ``Forever`` is later than
all. Series are read one client at a time and only where the two revisions can differ about them. Pure.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from reconciler.base import diagnostics
from reconciler.planning import (
    actions,
    clients,
    configuration,
    desired,
    expiry,
    histories,
    observed,
    schedules,
    standpoints,
)

#: Copies that are listed one by one; all are counted.
LISTED: Final = 100_000
#: Images of one unit that are remembered by id, for those who measure what would come back.
MEASURED: Final = 10_000
#: Copy states that a rule decides about.
_DECIDED: Final = frozenset({"Complete", "Damaged"})
_ENDLESS: Final = frozenset({"Forever", "NoRule"})


class End(NamedTuple):
    """When a copy leaves, as one revision decides."""

    #: Whether it may leave now.
    leaves: bool
    #: When it will, None where that cannot be said or is never.
    at: dt.datetime | None
    endless: bool
    code: str
    message: str


class Moved(NamedTuple):
    """One copy about whose end the two revisions differ."""

    image: str
    copy: int
    client: str
    policy: str
    lifecycle: str
    operation: str
    unit: str
    #: Earlier, Later or Undated.
    change: str
    before: End
    after: End


@dataclasses.dataclass(slots=True)
class Group:
    """Copies of one policy and lifecycle operation, counted."""

    policy: str
    lifecycle: str
    operation: str
    earlier: int = 0
    later: int = 0
    undated: int = 0
    #: Of the earlier ones, those that may leave now.
    leaving: int = 0


@dataclasses.dataclass(slots=True)
class Freed:
    """What one unit loses at once under one revision and not under the other."""

    #: Image ids, the first ``MEASURED``.
    images: list[str] = dataclasses.field(default_factory=list)
    copies: int = 0
    #: What the copies took when they were made.
    stored_bytes: int = 0

    def add(self, image: str, stored: int) -> None:
        """Count one copy."""
        if self.copies < MEASURED:
            self.images.append(image)
        self.copies += 1
        self.stored_bytes += stored


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Protection:
    """How the backing up of one client changes."""

    client: str
    #: Gain, Lose or Change.
    change: str
    policies_before: tuple[str, ...]
    policies_after: tuple[str, ...]
    #: When its next backup may begin, None where none would.
    next_before: dt.datetime | None
    next_after: dt.datetime | None
    #: How old its newest image may become.
    objective_before: dt.timedelta | None
    objective_after: dt.timedelta | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything in which two revisions differ over one catalog."""

    now: dt.datetime
    before: str
    after: str
    in_force: str | None
    #: Those that only the later revision has.
    problems: tuple[diagnostics.Diagnostic, ...]
    configuration: tuple[actions.ConfigurationChange, ...]
    groups: tuple[Group, ...]
    moved: tuple[Moved, ...]
    #: How many more copies moved than are listed.
    unlisted: int
    #: By unit: copies that may leave now under the later revision alone.
    freed: Mapping[str, Freed]
    #: By unit: copies that may leave now under the earlier revision alone.
    kept: Mapping[str, Freed]
    clients: tuple[actions.OldestPoint, ...]
    protection: tuple[Protection, ...]

    @property
    def changes(self) -> bool:
        """Whether there is any difference."""
        return bool(self.configuration or self.groups or self.clients or self.protection or self.problems)


def compare(
    before: standpoints.Revision,
    after: standpoints.Revision,
    seen: observed.Observed,
    now: dt.datetime,
    *,
    listed: int = LISTED,
) -> Comparison:
    """Hold ``after`` against ``before``. Neither needs to be in force; ``revisions`` makes their effective states."""
    desk = _Desk(before, after, seen, now, listed)
    desk.walk()
    known = {_problem(one) for one in standpoints.problems(before, None, seen, now)}
    applied = standpoints.as_applied(before.effective, seen.applied, now)
    return Comparison(
        now=now,
        before=before.manifests.revision,
        after=after.manifests.revision,
        in_force=seen.in_force,
        problems=tuple(
            one
            for one in standpoints.problems(after, before.effective, seen, now)
            if _problem(one) not in known
        ),
        configuration=configuration.changes(after.manifests, applied),
        groups=tuple(desk.groups[key] for key in sorted(desk.groups)),
        moved=tuple(sorted(desk.moved, key=lambda one: (one.image, one.copy))),
        unlisted=desk.unlisted,
        freed=desk.freed,
        kept=desk.kept,
        clients=tuple(sorted(desk.clients, key=lambda one: one.client)),
        protection=tuple(sorted(desk.protection, key=lambda one: one.client)),
    )  # fmt: skip


def _problem(one: diagnostics.Diagnostic) -> tuple[object, ...]:
    # Not by its place: lines move whenever somebody writes above them.
    return (one.severity, one.code, one.object, one.path, one.message)


class _Judged(NamedTuple):
    """What one standpoint says of a client's series."""

    #: (image id, copy number) -> series' policy, image, copy, end.
    ends: dict[tuple[str, int], tuple[str, observed.Image, observed.Copy, End]]
    oldest: dt.datetime | None


class _Desk:
    """One comparison in the making."""

    def __init__(
        self,
        before: standpoints.Revision,
        after: standpoints.Revision,
        seen: observed.Observed,
        now: dt.datetime,
        listed: int,
    ) -> None:
        self.sides = (standpoints.Standpoint(before, seen, now), standpoints.Standpoint(after, seen, now))
        self.seen = seen
        self.now = now
        self.listed = listed
        self.groups: dict[tuple[str, str, str], Group] = {}
        self.moved: list[Moved] = []
        self.unlisted = 0
        self.freed: dict[str, Freed] = {}
        self.kept: dict[str, Freed] = {}
        self.clients: list[actions.OldestPoint] = []
        self.protection: list[Protection] = []
        self._differ = _Differences(*self.sides)

    def walk(self) -> None:
        """Read every series once, one client at a time."""
        turned = self._differ.machines()
        for client, group in itertools.groupby(self.seen.series, key=lambda one: one.client):
            series = tuple(group)
            if any(self._differ.about(one) for one in series):
                self._judge(client, series)
            if client in turned:
                turned.discard(client)
                self._protect(client, series)
        for client in turned:
            self._protect(client, ())

    def _slug(self, client: str) -> str:
        known = self.seen.clients.get(client)
        if known is not None:
            return known.slug
        return clients.slug(next((side.names[client] for side in self.sides if client in side.names), client), ())

    # -- copies ------------------------------------------------------------------------------------------------------

    def _judge(self, client: str, series: tuple[observed.Series, ...]) -> None:
        before, after = (self._judged(side, series) for side in self.sides)
        for key in sorted(before.ends.keys() & after.ends.keys()):
            _, _, _, was = before.ends[key]
            policy, image, copy, will = after.ends[key]
            change = _change(was, will)
            if change is not None:
                self._move(client, policy, image, copy, change, was, will)
        if before.oldest != after.oldest:
            point = actions.OldestPoint(client=self._slug(client), before=before.oldest, after=after.oldest)
            self.clients.append(point)

    def _judged(self, side: standpoints.Standpoint, series: tuple[observed.Series, ...]) -> _Judged:
        ends = {}
        oldest: dt.datetime | None = None
        for one in side.renames.follow(series):
            history = histories.History(one, self.now)
            for verdict in side.judge.verdicts(history, everything=True):
                if verdict.copy.state in _DECIDED:
                    end = _end(verdict, self.now)
                    ends[verdict.image.id, verdict.copy.number] = (one.policy, verdict.image, verdict.copy, end)
            first = _oldest(history, ends)
            oldest = min((m for m in (oldest, first) if m is not None), default=None)
        return _Judged(ends, oldest)

    def _move(
        self, client: str, policy: str, image: observed.Image, copy: observed.Copy, change: str, was: End, will: End
    ) -> None:
        key = (policy, image.lifecycle, copy.operation)
        group = self.groups.setdefault(key, Group(*key))
        group.earlier += change == "Earlier"
        group.later += change == "Later"
        group.undated += change == "Undated"
        if will.leaves:
            group.leaving += 1
            self.freed.setdefault(copy.unit, Freed()).add(image.id, copy.stored_bytes)
        elif was.leaves:
            self.kept.setdefault(copy.unit, Freed()).add(image.id, copy.stored_bytes)
        if len(self.moved) >= self.listed:
            self.unlisted += 1
            return
        slug = self._slug(client)
        self.moved.append(
            Moved(image.id, copy.number, slug, policy, image.lifecycle, copy.operation, copy.unit, change, was, will)
        )

    # -- machines ----------------------------------------------------------------------------------------------------

    def _protect(self, client: str, series: tuple[observed.Series, ...]) -> None:
        policies = [tuple(side.protected.get(client, ())) for side in self.sides]
        starts = [self._next(side, client, series) for side in self.sides]
        objectives = [side.objective(client) for side in self.sides]
        if bool(policies[0]) != bool(policies[1]):
            change = "Gain" if policies[1] else "Lose"
        elif (policies[0], starts[0], objectives[0]) != (policies[1], starts[1], objectives[1]):
            change = "Change"
        else:
            return
        slug = self._slug(client)
        self.protection.append(
            Protection(
                client=slug, change=change, policies_before=policies[0], policies_after=policies[1],
                next_before=starts[0], next_after=starts[1], objective_before=objectives[0],
                objective_after=objectives[1],
            )
        )  # fmt: skip

    def _next(
        self, side: standpoints.Standpoint, client: str, series: tuple[observed.Series, ...]
    ) -> dt.datetime | None:
        known = self.seen.clients.get(client)
        first_seen = known.first_seen if known is not None else self.now
        by_policy = {one.policy: one for one in side.renames.follow(series)}
        starts = []
        for policy in side.protected.get(client, ()):
            one = by_policy.get(policy)
            history = histories.History(one, self.now) if one is not None else None
            record = schedules.record(history, first_seen)
            starts.append(side.desks[policy].next_start(self._slug(client), record))
        return min((one for one in starts if one is not None), default=None)


class _Differences:
    """About which series, and which machines, two standpoints can differ: the others need no second look."""

    def __init__(self, before: standpoints.Standpoint, after: standpoints.Standpoint) -> None:
        self._before, self._after = before, after
        one, other = before.wanted, after.wanted
        #: Whether something differs that may matter to any series.
        self._everywhere = (
            one.units != other.units
            or one.groups != other.groups
            or one.media_servers != other.media_servers
            or one.legal_holds != other.legal_holds
            or one.approvals != other.approvals
            or before.renames != after.renames
        )
        self._lifecycles = _different(one.lifecycles, other.lifecycles)
        self._policies = _different(one.policies, other.policies) | {
            name for kind, name in one.orphaned ^ other.orphaned if kind == "BackupPolicy"
        }
        windows = _different(one.windows, other.windows)
        self._timing = self._policies | {
            name
            for name, policy in other.policies.items()
            if any(schedule.window in windows for schedule in policy.spec.schedules)
        }

    def about(self, series: observed.Series) -> bool:
        """Whether the decisions about a series may differ."""
        if self._everywhere or series.policy in self._policies:
            return True
        policy = self._after.wanted.policies.get(series.policy)
        if policy is not None and policy.spec.lifecycle in self._lifecycles:
            return True
        return bool(self._lifecycles) and any(image.lifecycle in self._lifecycles for image in series.images)

    def machines(self) -> set[str]:
        """Clients whose backing up may differ."""
        before, after = self._before.protected, self._after.protected
        return {
            client
            for client in before.keys() | after.keys()
            if before.get(client) != after.get(client) or not self._timing.isdisjoint(after.get(client, ()))
        }


def _different(one: Mapping[str, object], other: Mapping[str, object]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _end(verdict: expiry.Verdict, now: dt.datetime) -> End:
    if verdict.state == "Due" or verdict.code == "AfterDependents":
        return End(True, None, False, verdict.code, verdict.message)
    at = verdict.held.until if verdict.held is not None else verdict.at
    if at is not None and at <= now:
        at = None
    return End(False, at, verdict.code in _ENDLESS, verdict.code, verdict.message)


def _change(before: End, after: End) -> str | None:
    """Earlier, Later or Undated; None where nothing moves."""
    if before.leaves != after.leaves:
        return "Earlier" if after.leaves else "Later"
    if before.leaves or (before.at, before.endless) == (after.at, after.endless):
        return None
    if before.endless != after.endless:
        return "Earlier" if before.endless else "Later"
    if before.at is None or after.at is None:
        return "Undated"
    return "Earlier" if after.at < before.at else "Later"


def _oldest(
    history: histories.History, ends: Mapping[tuple[str, int], tuple[str, observed.Image, observed.Copy, End]]
) -> dt.datetime | None:
    """The oldest restore point that is left once what may leave has left."""
    for image in history.sound:
        for copy in history.good(image):
            found = ends.get((image.id, copy.number))
            if found is None or not found[3].leaves:
                return image.time
    return None


def revisions(
    before: desired.Desired, after: desired.Desired, applied: configuration.Applied, now: dt.datetime
) -> Iterator[tuple[desired.Desired, desired.Desired]]:
    """For both: the manifests, and the state that decisions would be made from."""
    state = standpoints.in_place(before, applied)
    yield before, state
    yield after, standpoints.follows(after, state, now)
