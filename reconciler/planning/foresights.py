"""When the promises that ``Keep`` made would have ended, if every slot succeeds: for the page that ``plan`` prints.

No decision depends on it, so the loop never asks; ``cli`` does, and only where few copies are held. Found as
``explanations`` finds when a copy leaves: by asking the promised rule again with the images of the next slots.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator
from typing import Final

from reconciler.api import lifecycles as kinds
from reconciler.planning import (
    actions,
    configuration,
    desired,
    expiry,
    explanations,
    histories,
    observed,
    retention,
)

#: Of more copies, or of more series, nothing is foreseen: a plan has to stay fast.
_COPIES: Final = 300
_SERIES: Final = 20
#: Slots ahead that are tried; what stays longer has no date.
_AHEAD: Final = 512

_Place = tuple[str, int]


def dated(plan: actions.Plan, wanted: desired.Desired, seen: observed.Observed) -> actions.Plan:
    """The plan, its destructive part with the ends of the promises that ``Keep`` made, as far as they can be told."""
    undated = {(item.image, item.copy) for item in plan.destruction.items if item.expires_before is None}
    if not undated or len(undated) > _COPIES:
        return plan
    ids = {image for image, _ in undated}
    judge = expiry.Judge(configuration.effective(wanted, seen.applied), seen, plan.now)
    found: dict[_Place, dt.datetime] = {}
    touched = 0
    for series in configuration.renames(judge.wanted).follow(seen.series):
        if not ids.isdisjoint(image.id for image in series.images):
            touched += 1
            if touched > _SERIES:
                return plan
            found.update(_Series(judge, seen, series).ends())
    items = tuple(
        dataclasses.replace(item, expires_before=item.expires_before or found.get((item.image, item.copy)))
        for item in plan.destruction.items
    )
    return dataclasses.replace(plan, destruction=dataclasses.replace(plan.destruction, items=items))


class _Series:
    """One series and its next slots."""

    def __init__(self, judge: expiry.Judge, seen: observed.Observed, series: observed.Series) -> None:
        self._judge = judge
        self._series = series
        self._history = histories.History(series, judge.now)
        policy = judge.wanted.policies.get(series.policy)
        self._slots: list[tuple[dt.datetime, bool]] = []
        if policy is not None and not judge.wanted.is_orphaned("BackupPolicy", policy.name):
            fulls = {one.name for one in policy.spec.schedules if one.type == "Full"}
            slots = itertools.islice(explanations.slots(judge.wanted, seen, series, judge.now), _AHEAD)
            self._slots = [(slot, schedule in fulls) for slot, schedule in slots]

    def ends(self) -> Iterator[tuple[_Place, dt.datetime]]:
        """The end of each promise of Keep that alone holds a copy, where one of the next slots brings it."""
        together: dict[int, tuple[kinds.Keep, list[expiry.Verdict]]] = {}
        for verdict in self._judge.verdicts(self._history):
            rule = verdict.held.before if verdict.held is not None and len(verdict.held.holding) == 1 else None
            if isinstance(rule, kinds.Keep):
                together.setdefault(id(rule), (rule, []))[1].append(verdict)
        for rule, verdicts in together.values():
            yield from self._pushed_out(rule, verdicts)

    def _pushed_out(self, rule: kinds.Keep, verdicts: list[expiry.Verdict]) -> Iterator[tuple[_Place, dt.datetime]]:
        """By bisecting over the coming slots; what one look says of all copies is remembered."""
        looks: dict[int, dict[str, retention.Decision]] = {}

        def kept(image: str, count: int) -> bool:
            if count not in looks:
                looks[count] = retention.keep(rule, self._candidates(verdicts[0], count), self._slots[count - 1][0])
            return image not in looks[count] or looks[count][image].keeps

        for verdict in verdicts:
            low, high = 0, 1
            while high < len(self._slots) and kept(verdict.image.id, high):
                low, high = high, high * 2
            high = min(high, len(self._slots))
            if not high or kept(verdict.image.id, high):
                continue
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if kept(verdict.image.id, middle) else (low, middle)
            yield (verdict.image.id, verdict.copy.number), self._slots[high - 1][0]

    def _candidates(self, verdict: expiry.Verdict, count: int) -> list[retention.Candidate]:
        """The images of an operation as they are, and those of the next slots."""
        name, lifecycle = self._judge.book.operation, verdict.image.lifecycle
        operation = name(lifecycle, verdict.copy.operation)
        there = [
            retention.Candidate(one.id, one.time, one.sequence, one.type == "Full")
            for one in self._history.sound
            if one.lifecycle == lifecycle
            and any(c.state in observed.GOOD and name(lifecycle, c.operation) == operation for c in one.copies)
        ]
        last = max((one.sequence for one in self._series.images), default=0)
        coming = [
            retention.Candidate(f"coming-{number}", slot, last + number, full)
            for number, (slot, full) in enumerate(self._slots[:count], 1)
        ]
        return [*there, *coming]
