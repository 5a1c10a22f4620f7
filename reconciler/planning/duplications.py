"""Duplications: which owed copy can be made now, from which good copy, onto which unit, or what it waits for.

Called by ``planner`` for the images of one series. A child waits for its parent's copy; the nearest good copy is the
parent's, then any other. A copy never goes onto a unit that holds the image already. Failed duplications are tried
again without end, an hour apart at most: a debt does not lapse. One that somebody cancelled rests until the policy's
next slot.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from reconciler.base import times
from reconciler.planning import (
    actions,
    calendars,
    desired,
    histories,
    lifecycles,
    nevers,
    observed,
    placements,
    retries,
)


def address(image: str, operation: str) -> str:
    """The address of a duplication."""
    return f"duplicate/{image}/{operation}"


class Desk:
    """Duplications of one desired state at one time; ``answer`` speaks of one series."""

    def __init__(self, rules: nevers.Rules, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime) -> None:
        self._rules = rules
        self._units: placements.Units = rules.units
        self._wanted = wanted
        self._attempts = seen.attempts
        self._live = {job.address for job in seen.jobs}
        self._now = now

    def answer(self, history: histories.History, debts: lifecycles.Debts, slug: str) -> Iterator[actions.Action]:
        """Every copy that the images of a series still owe, oldest image first."""
        for image in history.images:
            unpaid = debts.unpaid(image)
            root = debts.damaged_root(image)
            missing = {one.name for one in unpaid}
            for one in (*((root,) if root is not None else ()), *unpaid):
                yield self._action(history, debts, image, one, one.source in missing, slug)

    def _action(
        self,
        history: histories.History,
        debts: lifecycles.Debts,
        image: observed.Image,
        one: lifecycles.Owed,
        follows: bool,
        slug: str,
    ) -> actions.Action:
        place = address(image.id, one.name)
        policy = self._wanted.policies.get(history.series.policy)
        source, candidates, refusal = self._ends(history, image, one, debts.broken_chains(image, one.name))
        attempts = self._attempts.get(place)
        if follows:
            reason = actions.Reason(code="AfterDuplicate", message=f"follows operation {one.source}")
            state, at = actions.State.WAITING, None
        else:
            state, at, reason = self._state(history, image, one, refusal, attempts, place)
        return actions.Action(
            address=place,
            type=actions.Type.DUPLICATE,
            state=state,
            at=at,
            reason=reason,
            after=(address(image.id, one.source or ""),) if follows else (),
            policy=history.series.policy,
            schedule=image.schedule,
            client=slug,
            client_id=history.series.client,
            image=image.id,
            copy=source.number if source is not None else None,
            operation=one.name,
            unit=candidates[0] if candidates else None,
            candidates=candidates,
            storage=one.storage,
            source_unit=source.unit if source is not None else None,
            parent=self._chained_to(history, image, candidates),
            bytes=source.stored_bytes if source is not None else None,
            priority=policy.spec.priority if policy is not None else 0,
            attempt=retries.number(attempts),
        )

    def _state(
        self,
        history: histories.History,
        image: observed.Image,
        one: lifecycles.Owed,
        refusal: actions.Reason | None,
        attempts: observed.Attempts | None,
        place: str,
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
        healing = any(
            c.state in ("Damaged", "Lost") and self._rules.book.operation(image.lifecycle, c.operation) == one.name
            for c in image.copies
        )
        said = (
            actions.Reason(code="Healing", message=f"the copy of {one.name} is damaged or lost")
            if healing
            else actions.Reason(
                code="CopyOwed", message=f"the image of {times.show_minutes(image.time)} owes {one.name}"
            )
        )
        if place in self._live:
            return (
                actions.State.DUE,
                image.time,
                actions.Reason(code="Running", message=f"it is running: {said.message}"),
            )
        if refusal is not None:
            return actions.State.BLOCKED, image.time, refusal
        opening = self._opening(one, self._now)
        if opening is None or opening > self._now:
            return self._closed(one, opening)
        standing = retries.standing(attempts, None, self._now)
        if standing.state == "Cancelled" and attempts is not None:
            rest = self._next_slot(history.series.policy, attempts.last_finished)
            if rest is not None and rest > self._now:
                words = f"it was cancelled; it starts again with the slot of {times.show_minutes(rest)}"
                return actions.State.WAITING, rest, actions.Reason(code="Cancelled", message=words)
        if standing.state == "Waiting" and standing.until is not None and attempts is not None:
            until = self._opening(one, standing.until) or standing.until
            words = f"attempt {retries.number(attempts)} follows at {times.show_minutes(until)}: {attempts.message}"
            return actions.State.WAITING, until, actions.Reason(code="Retry", message=words)
        return actions.State.DUE, image.time, said

    def _opening(self, one: lifecycles.Owed, at: dt.datetime) -> dt.datetime | None:
        window = self._wanted.windows.get(one.window) if one.window is not None else None
        return calendars.next_opening(window.spec, at) if window is not None else at

    def _closed(
        self, one: lifecycles.Owed, opening: dt.datetime | None
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
        if opening is None:
            reason = actions.Reason(code="WindowNeverOpens", message=f"window {one.window} never opens")
            return actions.State.BLOCKED, None, reason
        words = f"window {one.window} opens at {times.show_minutes(opening)}"
        return actions.State.WAITING, opening, actions.Reason(code="OutsideWindow", message=words)

    def _next_slot(self, policy_name: str, after: dt.datetime) -> dt.datetime | None:
        policy = self._wanted.policies.get(policy_name)
        slots: list[dt.datetime | None] = []
        for one in policy.spec.schedules if policy is not None else ():
            if one.every is not None:
                slots.append(after + one.every.approximate)
            elif one.cron is not None:
                slots.append(calendars.following(one.cron, one.time_zone, after))
        return min((slot for slot in slots if slot is not None), default=None)

    # -- from where, to where ------------------------------------------------------------------------------------------

    def _ends(
        self, history: histories.History, image: observed.Image, one: lifecycles.Owed, broken: tuple[str, ...]
    ) -> tuple[observed.Copy | None, tuple[str, ...], actions.Reason | None]:
        """The copy to read, the units that may take the new one in order of preference, and why not, if not."""
        name = self._rules.book.operation
        good = history.good(image)
        if not good:
            words = f"no good copy of image {image.id} is left to read"
            return None, (), actions.Reason(code="NoGoodCopy", message=words)
        good.sort(key=lambda copy: (name(image.lifecycle, copy.operation) != one.source, copy.number))
        members = self._free(image, one)
        if not members:
            words = f"{one.storage} has no unit without a copy of the image"
            return good[0], (), actions.Reason(code="SameUnit", message=words)
        refusal: actions.Reason | None = None
        for copy in good:
            unreadable = self._units.refuses_read(copy.unit)
            if unreadable is not None:
                refusal = refusal or unreadable
                continue
            able, unable = self._units.able(members, copy.unit)
            if able:
                return copy, self._ordered(history, image, one, able, broken), None
            refusal = unable or refusal
        return good[0], (), refusal

    def _free(self, image: observed.Image, one: lifecycles.Owed) -> list[str]:
        name = self._rules.book.operation
        taken = {
            copy.unit
            for copy in image.copies
            if copy.state in histories.TANGIBLE
            # What is damaged, or was left half written, is written anew in the same place.
            and (copy.state not in ("Damaged", "Writing") or name(image.lifecycle, copy.operation) != one.name)
        }
        return [unit for unit in self._units.members(one.storage) if unit not in taken]

    def _chained_to(self, history: histories.History, image: observed.Image, candidates: tuple[str, ...]) -> str | None:
        """The image on which the new copy will be built where it lands on a chain."""
        parent = history.by_id(image.parent)
        if parent is None or not candidates or self._units.standalone(candidates[0]):
            return None
        return parent.id if history.on_unit(parent, candidates[0]) is not None else None

    def _ordered(
        self,
        history: histories.History,
        image: observed.Image,
        one: lifecycles.Owed,
        able: tuple[str, ...],
        broken: tuple[str, ...],
    ) -> tuple[str, ...]:
        """A broken chain is healed where it is, and a whole one goes on where it is; otherwise the group chooses."""
        ordered = self._units.preferred(one.storage, able)
        if any(unit in broken for unit in ordered):
            return tuple(unit for unit in ordered if unit in broken)
        parent = history.by_id(image.parent)
        if parent is None:
            return ordered
        there = [u for u in ordered if not self._units.standalone(u) and history.on_unit(parent, u) is not None]
        return tuple(there) or ordered
