"""Duplications: which owed copy can be made now, from which good copy, onto which unit, or what it waits for.

Called by ``planner`` for the images of one series. A child waits for its parent's copy; the nearest good copy is the
parent's, then any other. Where no copy is good, all that hold anything are read together, for one of them only: the
others follow it. What was found to be on none of them is tried again after a week. A copy never goes onto a unit that
holds the image already, and prefers one that does not fail together with the image's other copies; on chain units a
base goes before what builds on it. Copies of a unit that is being drained are made anew elsewhere in the same way.
Failed duplications are tried again without end, an hour apart at most: a debt does not lapse. One that somebody
cancelled rests until the policy's next slot.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Iterator, Sequence
from typing import Final

from reconciler.base import errors, times
from reconciler.planning import (
    actions,
    calendars,
    capacities,
    desired,
    drains,
    histories,
    lifecycles,
    nevers,
    observed,
    placements,
    retries,
    sightings,
)

#: The code of an attempt that found bytes which are on no copy, and how long it rests then.
MISSING: Final = errors.BlocksMissing.__name__
REST: Final = dt.timedelta(days=7)


def address(image: str, operation: str) -> str:
    """The address of a duplication."""
    return f"duplicate/{image}/{operation}"


class Desk:
    """Duplications of one desired state at one time; ``answer`` speaks of one series."""

    def __init__(
        self, rules: nevers.Rules, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime,
        *, promised: drains.Promised,
    ) -> None:  # fmt: skip
        self._rules = rules
        self._units: placements.Units = rules.units
        self._wanted = wanted
        self._attempts = seen.attempts
        self._live = {job.address for job in seen.jobs}
        self._now = now
        self.drain = drains.Drain(rules, promised)

    def answer(self, history: histories.History, debts: lifecycles.Debts, slug: str) -> Iterator[actions.Action]:
        """Every copy that the images of a series still owe, oldest image first; then those that have to move."""
        made: dict[tuple[str, str], actions.Action] = {}
        for image in debts.open():
            wanted = debts.to_make(image)
            missing = {one.name for one in debts.unpaid(image)}
            first, sound = None, bool(history.good(image))
            reading, lost = (None, None) if sound else (self._reading(image), self._lost(image, wanted))
            for one in wanted:
                follows = one.source if one.source in missing else first
                action = self._action(history, debts, image, one, follows, slug, lost=lost)
                if reading is not None and action.address not in self._live:
                    words = f"its copies are being read together for operation {reading}"
                    reason = actions.Reason(code="Busy", message=words)
                    action = dataclasses.replace(action, state=actions.State.WAITING, at=None, reason=reason, after=())
                made[image.id, one.name] = action = self._in_order(image, action, made)
                if not sound and action.state is not actions.State.BLOCKED:
                    # Read once, together: what follows has a good copy then.
                    first = first or one.name
                yield action
        for image, copy, one in self.drain.moves(history, debts):
            if (image.id, one.name) not in made:
                action = self._action(history, debts, image, one, None, slug, moved=copy)
                made[image.id, one.name] = action = self._in_order(image, action, made)
                yield action

    def _in_order(
        self, image: observed.Image, action: actions.Action, made: dict[tuple[str, str], actions.Action]
    ) -> actions.Action:
        """On chain units a copy waits for that of the image it builds on, or it would have to be written as a whole."""
        base = made.get((image.parent or "", action.operation or ""))
        if base is None or action.state is not actions.State.DUE or action.address in self._live:
            return action
        chained = action.parent is None and action.unit is not None and not self._units.standalone(action.unit)
        if not chained or base.state is actions.State.BLOCKED or not set(base.candidates) & set(action.candidates):
            return action
        reason = actions.Reason(code="AfterBase", message=f"builds on {image.parent}, whose copy is made first")
        return dataclasses.replace(
            action, state=actions.State.WAITING, at=None, reason=reason, after=(*action.after, base.address)
        )

    def _action(
        self,
        history: histories.History,
        debts: lifecycles.Debts,
        image: observed.Image,
        one: lifecycles.Owed,
        follows: str | None,
        slug: str,
        moved: observed.Copy | None = None,
        lost: observed.Attempts | None = None,
    ) -> actions.Action:
        """One copy to make. ``follows``: the operation whose copy comes first; ``lost``: what was found to be on no
        copy of the image, not long ago."""
        place = address(image.id, one.name)
        policy = self._wanted.policies.get(history.series.policy)
        one = self._where(image, one)
        broken = debts.broken_chains(image, one.name) if moved is None else ()
        good = history.good(image)
        pieces = () if good else self._pieces(image)
        source, candidates, refusal = self._ends(history, image, one, broken, moved, good or pieces)
        if pieces and lost is not None:
            again = times.show_minutes(lost.last_finished + REST)
            refusal = actions.Reason(code=MISSING, message=f"{lost.message}; it is tried again at {again}")
        attempts = self._attempts.get(place)
        if follows is not None:
            reason = actions.Reason(code="AfterDuplicate", message=f"follows operation {follows}")
            state, at = actions.State.WAITING, None
        else:
            said = self._said(image, one, moved, pieces)
            state, at, reason = self._state(history, image, one, refusal, attempts, place, said)
        return actions.Action(
            address=place,
            type=actions.Type.DUPLICATE,
            state=state,
            at=at,
            reason=reason,
            after=(address(image.id, follows),) if follows is not None else (),
            policy=history.series.policy,
            schedule=image.schedule,
            client=slug,
            client_id=history.series.client,
            image=image.id,
            copy=source.number if source is not None and not pieces else None,
            pieces=tuple(copy.number for copy in pieces),
            operation=one.name,
            unit=candidates[0] if candidates else None,
            candidates=candidates,
            storage=one.storage,
            source_unit=source.unit if source is not None else None,
            parent=self._chained_to(history, image, candidates),
            bytes=source.stored_bytes if source is not None else None,
            adds=self._adds(image, source, candidates),
            priority=policy.spec.priority if policy is not None else 0,
            attempt=retries.number(attempts),
            stop_at=self._stop(one) if state is actions.State.DUE else None,
        )

    def _state(
        self,
        history: histories.History,
        image: observed.Image,
        one: lifecycles.Owed,
        refusal: actions.Reason | None,
        attempts: observed.Attempts | None,
        place: str,
        said: actions.Reason,
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
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

    def _said(
        self, image: observed.Image, one: lifecycles.Owed, moved: observed.Copy | None, pieces: Sequence[observed.Copy]
    ) -> actions.Reason:
        if moved is not None:
            words = f"unit {moved.unit} is being emptied: its copy of {one.name} moves"
            return actions.Reason(code="Draining", message=words)
        if pieces:
            places = " and ".join(f"copy {copy.number} on {copy.unit}" for copy in pieces)
            words = f"no copy is good: that of {one.name} is made of what is whole of {places}, every block proven"
            return actions.Reason(code="Salvaging", message=words)
        name = self._rules.book.operation
        if any(c.state in ("Damaged", "Lost") and name(image.lifecycle, c.operation) == one.name for c in image.copies):
            return actions.Reason(code="Healing", message=f"the copy of {one.name} is damaged or lost")
        words = f"the image of {times.show_minutes(image.time)} owes {one.name}"
        return actions.Reason(code="CopyOwed", message=words)

    def _opening(self, one: lifecycles.Owed, at: dt.datetime) -> dt.datetime | None:
        window = self._wanted.windows.get(one.window) if one.window is not None else None
        return calendars.next_opening(window.spec, at) if window is not None else at

    def _stop(self, one: lifecycles.Owed) -> dt.datetime | None:
        """When the operation's window ends what starts now, if it does."""
        window = self._wanted.windows.get(one.window) if one.window is not None else None
        stops = window is not None and window.spec.overrun == "Stop"
        return calendars.closing(window.spec, self._now) if stops and window is not None else None

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

    def _where(self, image: observed.Image, one: lifecycles.Owed) -> lifecycles.Owed:
        """An operation whose units are all being emptied goes where the newest revision puts it."""
        if self.drain.units.issuperset(self._units.members(one.storage)):
            return one._replace(storage=self._rules.book.storage(image, one.name) or one.storage)
        return one

    def _adds(self, image: observed.Image, source: observed.Copy | None, candidates: tuple[str, ...]) -> int | None:
        if source is None or not candidates:
            return None
        return capacities.of_copy(image, source, candidates[0], self._units.standalone)

    def _lost(self, image: observed.Image, owed: Sequence[lifecycles.Owed]) -> observed.Attempts | None:
        """The last attempt at any copy of an image that found bytes which no copy has, unless that is long ago."""
        for one in owed:
            found = self._attempts.get(address(image.id, one.name))
            if found is None or found.code != MISSING:
                continue
            if sightings.believed(found.last_finished, self._now) > self._now - REST:
                return found
        return None

    def _reading(self, image: observed.Image) -> str | None:
        """The operation for which a live job writes a copy of the image."""
        for copy in image.copies:
            name = self._rules.book.operation(image.lifecycle, copy.operation)
            if copy.state == "Writing" and address(image.id, name) in self._live:
                return name
        return None

    def _pieces(self, image: observed.Image) -> tuple[observed.Copy, ...]:
        """Copies of an image without a good one that together may hold all of it; none where there is but one."""
        found = [
            copy
            for copy in image.copies
            if copy.state in observed.READABLE and self._units.refuses_read(copy.unit) is None
        ]
        return tuple(found) if len(found) > 1 else ()

    def _unreadable(self, image: observed.Image) -> actions.Reason:
        """Why no copy can be made of an image without a good one, and without pieces."""
        words = f"no good copy of image {image.id} is left to read"
        there = [copy for copy in image.copies if copy.state in observed.READABLE]
        for copy in there if len(there) > 1 else ():
            away = self._units.refuses_read(copy.unit)
            if away is not None:
                words += f", and copy {copy.number} on {copy.unit} may have what is missing: {away.message}"
                break
        else:
            if there:
                only = "the only one that holds anything of it"
                words += f": copy {there[0].number} on {there[0].unit} is {only}, and is damaged"
        if there:
            words += "; holdfast restore --salvage reads what is whole of it"
        return actions.Reason(code="NoGoodCopy", message=words)

    def _ends(
        self, history: histories.History, image: observed.Image, one: lifecycles.Owed, broken: tuple[str, ...],
        moved: observed.Copy | None, readable: Sequence[observed.Copy],
    ) -> tuple[observed.Copy | None, tuple[str, ...], actions.Reason | None]:  # fmt: skip
        """The copy to read first, the units that may take the new one in order of preference, and why not, if not."""
        name = self._rules.book.operation
        if not readable:
            return None, (), self._unreadable(image)
        nearest = one.source if moved is None else one.name
        good = sorted(readable, key=lambda copy: (name(image.lifecycle, copy.operation) != nearest, copy.number))
        members = self._free(image, one, moved)
        if not members:
            words = f"{one.storage} has no unit without a copy of the image"
            if moved is not None:
                words += f": give operation {one.name} another unit, and apply that"
            return good[0], (), actions.Reason(code="SameUnit", message=words)
        refusal: actions.Reason | None = None
        for copy in good:
            unreadable = self._units.refuses_read(copy.unit)
            if unreadable is not None:
                refusal = refusal or unreadable
                continue
            need = functools.partial(capacities.of_copy, image, copy, standalone=self._units.standalone)
            able, unable = self._units.able(members, copy.unit, need)
            if able:
                return copy, self._ordered(history, image, one, able, broken), None
            refusal = unable or refusal
        return good[0], (), refusal

    def _free(self, image: observed.Image, one: lifecycles.Owed, moved: observed.Copy | None) -> list[str]:
        name = self._rules.book.operation
        taken = {
            copy.unit
            for copy in image.copies
            if _occupies(copy, name(image.lifecycle, copy.operation) == one.name, moved is not None)
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
        """A broken chain is healed where it is, and a whole one goes on where it is; otherwise the group chooses among
        the units that do not fail together with the image's other copies, if it has such."""
        ordered = self._units.preferred(one.storage, able)
        if any(unit in broken for unit in ordered):
            return tuple(unit for unit in ordered if unit in broken)
        parent = history.by_id(image.parent)
        there = [
            unit
            for unit in ordered
            if parent is not None and not self._units.standalone(unit) and history.on_unit(parent, unit) is not None
        ]
        name = self._rules.book.operation
        others = (
            copy.unit
            for copy in image.copies
            if copy.state in histories.TANGIBLE and name(image.lifecycle, copy.operation) != one.name
        )
        return tuple(there) or self._units.apart(ordered, others)


def _occupies(copy: observed.Copy, same: bool, moving: bool) -> bool:
    """Whether a copy keeps its unit from taking another one; ``same``: it is of the same operation."""
    if copy.state == "Writing" or (copy.state == "Damaged" and not moving):
        return not same  # what is damaged, or was left half written, is written anew in the same place
    # Where a copy moves, nothing is written in the place of a damaged or lost one, which is about to go.
    return copy.state in histories.TANGIBLE or (moving and copy.state == "Lost")
