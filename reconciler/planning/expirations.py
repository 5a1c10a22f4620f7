"""Expire and Reclaim actions, and the destructive part of a plan, from what ``expiry`` says of the copies.

Called by ``planner`` series by series; ``Ledger`` adds up. Here a verdict meets the present: a unit that cannot delete
now, a clock that jumped, a deletion that failed before. What a brake holds goes into ``destructions.Part``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from reconciler.planning import (
    actions,
    clients,
    desired,
    destructions,
    duplications,
    evictions,
    expiry,
    histories,
    observed,
    placements,
    retries,
)

_STATES: Final[Mapping[str, actions.State]] = {
    "Due": actions.State.DUE,
    "Waiting": actions.State.WAITING,
    "Blocked": actions.State.BLOCKED,
    "Planned": actions.State.PLANNED,
}


def address(image: str, number: int) -> str:
    """The address of an expiry."""
    return f"expire/{image}/{number}"


class Ledger:
    """Adds up expiries over all series of one plan."""

    def __init__(
        self, wanted: desired.Desired, seen: observed.Observed, units: placements.Units, now: dt.datetime
    ) -> None:
        self._wanted = wanted
        self._seen = seen
        self._units = units
        self._now = now
        self._live = {job.address for job in seen.jobs}
        #: What a brake holds.
        self.part = destructions.Part(seen.rebuilt)
        self._freeing: dict[str, list[str]] = {}

    def expire(self, history: histories.History, verdicts: list[expiry.Verdict], slug: str) -> Iterator[actions.Action]:
        """The actions of one series; what is held goes into the destructive part."""
        held = set()
        for verdict in verdicts:
            if verdict.held is not None:
                held.add((verdict.image.id, verdict.copy.number))
                self.part.add(verdict, verdict.held, history.series.client, slug)
            yield self._action(history.series.policy, history.series.client, verdict, slug)
        self._restore_points(history, held, slug)

    def evict(self, evicted: Iterable[evictions.Evicted], slugs: Mapping[str, str]) -> Iterator[actions.Action]:
        """The actions for copies that go to make room; ``slugs`` are by client id."""
        for one in evicted:
            yield self._action(
                one.policy, one.client, one.verdict, slugs.get(one.client) or clients.slug(one.client, ())
            )

    def _action(self, policy: str, client: str, verdict: expiry.Verdict, slug: str) -> actions.Action:
        image, copy = verdict.image, verdict.copy
        place = address(image.id, copy.number)
        state, at, reason = self._state(verdict, place)
        goes = state is actions.State.DUE or (state is actions.State.WAITING and verdict.code == "AfterDependents")
        if goes and verdict.grace is None and self._units.standalone(copy.unit):
            self._freeing.setdefault(copy.unit, []).append(place)
        after = [address(*one) for one in verdict.after]
        after += [duplications.address(image.id, operation) for operation in verdict.owes]
        after += [verdict.used_by] if verdict.used_by is not None else []
        return actions.Action(
            address=place,
            type=actions.Type.EXPIRE,
            state=state,
            at=at,
            reason=reason,
            after=tuple(after),
            policy=policy,
            schedule=image.schedule,
            client=slug,
            client_id=client,
            image=image.id,
            copy=copy.number,
            operation=copy.operation,
            unit=copy.unit,
            bytes=copy.stored_bytes,
            attempt=retries.number(self._seen.attempts.get(place)),
            grace=verdict.grace,
        )

    def _state(self, verdict: expiry.Verdict, place: str) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
        state = _STATES[verdict.state]
        said = actions.Reason(code=verdict.code, message=verdict.message)
        if state is not actions.State.DUE and verdict.code != "AfterDependents":
            return state, verdict.at, said
        if place in self._live:
            words = actions.Reason(code="Running", message=f"it is running: {verdict.message}")
            return actions.State.DUE, verdict.at, words
        if self._seen.clock_jump is not None and verdict.code != "Interrupted":
            return actions.State.BLOCKED, verdict.at, actions.Reason(code="ClockJump", message=self._seen.clock_jump)
        refusal = self._units.refuses_delete(verdict.copy.unit)
        if refusal is not None:
            return actions.State.BLOCKED, verdict.at, refusal
        return self._retried(place, state, verdict.at or self._now, said)

    def _retried(
        self, place: str, state: actions.State, at: dt.datetime | None, said: actions.Reason
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
        resting = retries.resting(self._seen.attempts.get(place), self._now)
        if resting is not None:
            return actions.State.WAITING, *resting
        return state, at, said

    def reclaim(self) -> Iterator[actions.Action]:
        """One Reclaim per unit that has something to give back, or will have once its expiries are done."""
        for unit in sorted(self._wanted.units):
            seen = self._seen.units.get(unit)
            place = f"reclaim/{unit}"
            after = tuple(sorted(self._freeing.get(unit, ())))
            at: dt.datetime | None = self._now
            if after:
                state, at = actions.State.WAITING, None
                reason = actions.Reason(code="AfterExpire", message=f"follows {len(after)} expiries")
            elif seen is not None and seen.reclaimable_bytes > 0:
                reason = actions.Reason(code="Reclaimable", message="expired copies left bytes that nothing needs")
                state, at, reason = self._retried(place, actions.State.DUE, at, reason)
                refusal = self._units.refuses_delete(unit)
                if place in self._live:
                    state, reason = actions.State.DUE, actions.Reason(code="Running", message="it is running")
                elif refusal is not None:
                    state, reason = actions.State.BLOCKED, refusal
            else:
                continue
            yield actions.Action(
                address=place,
                type=actions.Type.RECLAIM,
                state=state,
                at=at,
                reason=reason,
                after=after,
                unit=unit,
                bytes=seen.reclaimable_bytes if seen is not None else None,
                attempt=retries.number(self._seen.attempts.get(place)),
            )

    # -- the destructive part ------------------------------------------------------------------------------------------

    def _restore_points(self, history: histories.History, held: set[tuple[str, int]], slug: str) -> None:
        before = after = None
        for place in history.sound.places:
            if not history.has_good(place):
                continue
            image = history.images[place]
            if before is None:
                before = image.time
            if any((image.id, copy.number) not in held for copy in history.good(image)):
                after = image.time
                break
        self.part.restore_points(slug, before, after, bool(held))

    def destruction(self) -> actions.Destruction:
        """Everything that a brake holds."""
        return self.part.whole(self._units)
