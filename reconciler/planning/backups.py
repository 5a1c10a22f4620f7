"""Backups: what is due for one machine under one policy, as what type, onto which unit, or until when it waits.

Called by ``planner`` for every machine that a policy's source shows. Several due slots become one action: the
strongest type whose window is open runs once and serves them all. An incremental needs an earlier image that can be
read where the new one lands; without one, or where that unit takes nothing new, it is a full and says why.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from reconciler.api import policies
from reconciler.base import times
from reconciler.planning import (
    actions,
    calendars,
    capacities,
    desired,
    histories,
    lifecycles,
    observed,
    placements,
    retries,
    schedules,
)


class _Entry(NamedTuple):
    """One due slot of one schedule."""

    table: schedules.Timetable
    slot: dt.datetime
    #: When its window, or the end of a suspension, lets it start; now or later.
    opening: dt.datetime
    request: str | None = None


class _Kind(NamedTuple):
    """What a backup is made as, and where."""

    type: str
    parent: str | None
    candidates: tuple[str, ...]
    #: Why it is a full although an incremental was asked for.
    change: actions.Reason | None
    #: Why it cannot be made at all.
    blocked: actions.Reason | None


class Failing(NamedTuple):
    """Why a series fails."""

    #: RetriesExhausted or WindowTooShort.
    reason: str
    message: str
    since: dt.datetime


def address(policy: str, slug: str, slot: dt.datetime) -> str:
    """The address of a backup."""
    return f"backup/{policy}/{slug}@{times.show_minutes(slot)}"


class Desk:
    """One policy's backups at one time; ``answer`` speaks of one machine."""

    def __init__(
        self,
        policy: policies.BackupPolicy,
        wanted: desired.Desired,
        seen: observed.Observed,
        units: placements.Units,
        now: dt.datetime,
    ) -> None:
        self.policy = policy
        self.tables = schedules.timetables(wanted, policy, seen, now)
        self._seen = seen
        self._units = units
        self._now = now
        self._live = {job.address for job in seen.jobs}
        #: Images that were ordered to go: what was built on one would keep it.
        self._wrong = frozenset(one.object for one in seen.rulings if one.kind == "Expire")
        lifecycle = wanted.lifecycles.get(policy.spec.lifecycle)
        roots = [one for one in lifecycle.spec.operations if one.type == "Backup"] if lifecycle is not None else []
        self._root = roots[0] if roots else None
        self._members = units.members(self._root.storage) if self._root is not None else ()
        self._requests: dict[str, list[observed.Request]] = {}
        for request in sorted(seen.requests, key=lambda one: (one.at, one.id)):
            if request.policy in (policy.name, *policy.spec.previous_names):
                self._requests.setdefault(request.client, []).append(request)
        self._stopped: dict[str, list[observed.Attempts]] | None = None
        suspend = policy.spec.suspend
        self._suspended = suspend if suspend is not None and suspend.until > now else None
        self._earliest = max(now, suspend.until) if suspend is not None else now

    @property
    def usable(self) -> bool:
        """Whether the policy's lifecycle is there."""
        return self._root is not None

    def answer(
        self, machine: observed.Machine, slug: str, record: schedules.Record, history: histories.History | None,
        *, unreachable: tuple[str, str] | None, horizon: dt.datetime,
    ) -> Iterator[actions.Action]:  # fmt: skip
        """The backup that is due or waits, if any, and the next slot within the horizon."""
        emitted = None
        entries = [*self._due(slug, record), *self._requested(machine.id, record, history)]
        if entries:
            # A schedule whose window is closed does not hold back another one whose window is open.
            first = min(entry.opening for entry in entries)
            together = [entry for entry in entries if entry.opening == first]
            action = self._action(machine, slug, record, history, together, unreachable)
            if action is not None:
                emitted = action.address
                yield action
        planned = self._next(machine, slug, record, horizon)
        if planned is not None and planned.address != emitted:
            yield planned

    def failing(self, slug: str, record: schedules.Record, history: histories.History | None) -> Failing | None:
        """Why a series fails: its window keeps stopping it, or the retries of the slot that is due are used up."""
        short = self._too_short(slug, history)
        if short is not None:
            return short
        entries = list(self._due(slug, record))
        if not entries:
            return None
        slot = max(entry.slot for entry in entries)
        attempts = self._seen.attempts.get(address(self.policy.name, slug, slot))
        if attempts is None:
            return None
        if retries.standing(attempts, self.policy.spec.retries.count, self._now).state != "Exhausted":
            return None
        tried = "1 attempt" if attempts.failed == 1 else f"{attempts.failed} attempts"
        words = f"{tried} did not succeed, the last at {times.show_minutes(attempts.last_finished)}"
        message = f"{words}: {attempts.message}; it is tried again at its next slot"
        return Failing("RetriesExhausted", message, attempts.last_finished)

    def _too_short(self, slug: str, history: histories.History | None) -> Failing | None:
        """Whether closing windows have stopped the series twice since its last success, at whatever slots."""
        after = history.sound[-1].time if history is not None and history.sound else None
        found = [one for one in self._overruns().get(slug, ()) if after is None or one.last_finished > after]
        count = sum(one.overran for one in found)
        if count < retries.SHORT:
            return None
        last = max(one.last_finished for one in found)
        names = sorted({one.schedule.window for one in self.tables if one.schedule.window is not None})
        window = f"window {names[0]}" if len(names) == 1 else "its window"
        message = (
            f"{window} closed before the backup was done, {count} times, last at {times.show_minutes(last)}; "
            "make it longer, or set overrun: Finish"
        )
        return Failing("WindowTooShort", message, last)

    def _overruns(self) -> Mapping[str, list[observed.Attempts]]:
        """Attempts of the policy that a closing window stopped, by slug; looked for once, and seldom there."""
        if self._stopped is None:
            self._stopped = {}
            stem = f"backup/{self.policy.name}/"
            for place, attempts in self._seen.attempts.items():
                if attempts.overran and place.startswith(stem):
                    slug = place.removeprefix(stem).rpartition("@")[0]
                    self._stopped.setdefault(slug, []).append(attempts)
        return self._stopped

    def next_start(self, slug: str, record: schedules.Record) -> dt.datetime | None:
        """When the next backup of a series may begin, however far ahead: now where a slot is due; None for never."""
        starts = [entry.opening for entry in self._due(slug, record)]
        for table in self.tables:
            slot = schedules.following(table, record, self._now)
            if slot is not None and record.begun and self._slept(table, slot):
                slot = schedules.following(table, record, self._earliest - schedules.GRACE - dt.timedelta.resolution)
            opening = self._opening(table, slot) if slot is not None else None
            if slot is not None and opening is not None and not schedules.past_deadline(table, slot, opening):
                starts.append(opening)
        return min(starts, default=None)

    # -- which slots ---------------------------------------------------------------------------------------------------

    def _due(self, slug: str, record: schedules.Record) -> Iterator[_Entry]:
        for table in self.tables:
            slot = schedules.due(table, record, self._now)
            if slot is None:
                continue
            attempted = address(self.policy.name, slug, slot) in self._seen.attempts
            initial = not record.begun
            watching = self._seen.watching
            if not attempted and schedules.missed(table, slot, self._now, initial=initial, watching=watching):
                continue
            if not attempted and not initial and self._slept(table, slot):
                continue
            opening = self._opening(table)
            if opening is None:
                continue
            if opening > self._now:
                # By then a later slot may have come; it is the one that will be served.
                slot = schedules.due(table, record, opening) or slot
                if not attempted and not initial and schedules.past_deadline(table, slot, opening):
                    continue
            yield _Entry(table, slot, opening)

    def _slept(self, table: schedules.Timetable, slot: dt.datetime) -> bool:
        """Whether a slot passes, or passed, during a suspension, and nothing catches it up."""
        suspend = self.policy.spec.suspend
        return suspend is not None and table.schedule.catch_up == "None" and slot + schedules.GRACE < suspend.until

    def _requested(self, client: str, record: schedules.Record, history: histories.History | None) -> Iterator[_Entry]:
        """A request is a slot at its own time, through the policy: its weakest schedule, in that one's window.

        Any image made since serves it, whatever the clock said then: it may have been set back in between. One made
        before does not, though its slot may lie in the same second or, where more than one was asked for within a
        second or the clock was set back, in a later one: then the request takes the next second for its own.
        """
        for request in self._requests.get(client, ()):
            if history is not None and _serves(history, record, request):
                continue
            slot, served = schedules.whole(request.at), record.served[1]
            if served is not None:
                slot = max(slot, served + dt.timedelta(seconds=1))
            table = min(self.tables, key=lambda one: (one.strength, one.place))
            opening = self._opening(table)
            if opening is not None:
                yield _Entry(table, slot, opening, request.id)

    def _opening(self, table: schedules.Timetable, at: dt.datetime | None = None) -> dt.datetime | None:
        moment = max(at or self._now, self._earliest)
        return calendars.next_opening(table.window, moment) if table.window is not None else moment

    # -- what becomes of them ------------------------------------------------------------------------------------------

    def _action(
        self, machine: observed.Machine, slug: str, record: schedules.Record, history: histories.History | None,
        entries: list[_Entry], unreachable: tuple[str, str] | None,
    ) -> actions.Action | None:  # fmt: skip
        top = max(entries, key=lambda entry: (entry.table.strength, entry.slot, -entry.table.place))
        slot = max(entry.slot for entry in entries)
        place = address(self.policy.name, slug, slot)
        attempts = self._seen.attempts.get(place)
        standing = retries.standing(attempts, self.policy.spec.retries.count, self._now)
        if standing.state in ("Exhausted", "Cancelled"):
            return None
        kind = self._kind(top.table, slot, record, history)
        state, at, reason = self._state(top, slot, record, kind, standing, attempts, unreachable, place)
        asked = tuple(entry.request for entry in entries if entry.request is not None)
        window = top.table.window
        stops = window is not None and window.overrun == "Stop" and state is actions.State.DUE
        newest = history.sound[-1].size_bytes if history is not None and history.sound else None
        return actions.Action(
            address=place,
            type=actions.Type.BACKUP,
            state=state,
            at=at,
            reason=reason,
            policy=self.policy.name,
            schedule=top.table.schedule.name,
            client=slug,
            client_id=machine.id,
            operation=self._root.name if self._root is not None else None,
            unit=kind.candidates[0] if kind.candidates else None,
            candidates=kind.candidates,
            storage=self._root.storage if self._root is not None else None,
            bytes=newest if kind.type == "Full" else None,
            adds=self._adds(history, kind.type, kind.candidates[0]) if kind.candidates else None,
            backup_type=kind.type,
            parent=kind.parent,
            slot=slot,
            request=asked[0] if asked else None,
            requests=asked,
            priority=self.policy.spec.priority,
            attempt=retries.number(attempts),
            stop_at=calendars.closing(window, self._now) if stops and window is not None else None,
        )

    def _state(
        self, top: _Entry, slot: dt.datetime, record: schedules.Record, kind: _Kind, standing: retries.Standing,
        attempts: observed.Attempts | None, unreachable: tuple[str, str] | None, place: str,
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason]:  # fmt: skip
        said = self._why(top, slot, record, kind)
        if place in self._live:
            return actions.State.DUE, slot, actions.Reason(code="Running", message=f"it is running: {said.message}")
        if top.opening > self._now:
            return actions.State.WAITING, top.opening, self._closed(top)
        if standing.state == "Waiting" and standing.until is not None and attempts is not None:
            opening = self._opening(top.table, standing.until) or standing.until
            words = f"attempt {retries.number(attempts)} follows at {times.show_minutes(opening)}: {attempts.message}"
            return actions.State.WAITING, opening, actions.Reason(code="Retry", message=words)
        if unreachable is not None:
            words = f"its source cannot be reached: {unreachable[1]}"
            return actions.State.BLOCKED, slot, actions.Reason(code="SourceUnreachable", message=words)
        if kind.blocked is not None:
            return actions.State.BLOCKED, slot, kind.blocked
        return actions.State.DUE, slot, said

    def _closed(self, top: _Entry) -> actions.Reason:
        until = times.show_minutes(top.opening)
        if self._suspended is not None:
            words = f"policy {self.policy.name} is suspended until {times.show_minutes(self._suspended.until)}"
            return actions.Reason(code="Suspended", message=f"{words}: {self._suspended.reason}")
        return actions.Reason(code="OutsideWindow", message=f"window {top.table.schedule.window} opens at {until}")

    def _why(self, top: _Entry, slot: dt.datetime, record: schedules.Record, kind: _Kind) -> actions.Reason:
        name, at = top.table.schedule.name, times.show_minutes(slot)
        if not record.begun:
            return actions.Reason(code="FirstBackup", message=f"the series has no complete image yet ({name}, {at})")
        if top.request is not None:
            code, words = "Requested", f"asked for at {at}"
        else:
            code, words = "SlotDue", f"{name} is due since {at}"
        if kind.change is not None:
            return actions.Reason(code=kind.change.code, message=f"{words}; a Full, because {kind.change.message}")
        return actions.Reason(code=code, message=words)

    def _kind(
        self, table: schedules.Timetable, slot: dt.datetime, record: schedules.Record, history: histories.History | None
    ) -> _Kind:
        type, change = table.schedule.type, None
        base = None
        if type != "Full" and history is not None:
            base = history.base(self._members, full=type == "Cumulative", beside=self._wrong)
        period = table.schedule.full_every
        if type == "Full":
            base = None
        elif base is None:
            storage = self._root.storage if self._root is not None else ""
            change = actions.Reason(code="NoBase", message=f"no earlier image can be read on {storage}")
        elif period is not None and (record.full is None or period.after(record.full) <= slot):
            change = actions.Reason(code="FullEvery", message=f"the last full is {period} old or older")
        else:
            there, refusal = self._units.able(base[1:], need=lambda unit: self._adds(history, type, unit))
            if refusal is None:
                return _Kind(type, base[0].id, there, None, None)
            change = actions.Reason(code="BaseUnitRefuses", message=refusal.message)
            if self._members == base[1:]:
                return _Kind(type, base[0].id, (), None, refusal)
        able, refusal = self._units.able(self._members, need=lambda unit: self._adds(history, "Full", unit))
        blocked = refusal if not able else None
        storage_name = self._root.storage if self._root is not None else ""
        return _Kind("Full", None, self._units.preferred(storage_name, able), change, blocked)

    def _adds(self, history: histories.History | None, type: str, unit: str) -> int | None:
        return capacities.of_backup(history, type, unit, self._units.standalone)

    def _next(
        self, machine: observed.Machine, slug: str, record: schedules.Record, horizon: dt.datetime
    ) -> actions.Action | None:
        coming: list[tuple[dt.datetime, int, int, schedules.Timetable, dt.datetime]] = []
        for table in self.tables:
            slot = schedules.following(table, record, self._now)
            opening = self._opening(table, slot) if slot is not None else None
            if slot is None or opening is None or opening > horizon:
                continue
            if not schedules.past_deadline(table, slot, opening):
                coming.append((slot, -table.strength, table.place, table, opening))
        if not coming:
            return None
        slot, _, _, table, opening = min(coming, key=lambda one: one[:3])
        return actions.Action(
            address=address(self.policy.name, slug, slot),
            type=actions.Type.BACKUP,
            state=actions.State.PLANNED,
            at=opening,
            reason=actions.Reason(
                code="NextSlot", message=f"next slot of {table.schedule.name}: {times.show_minutes(slot)}"
            ),
            policy=self.policy.name,
            schedule=table.schedule.name,
            client=slug,
            client_id=machine.id,
            operation=self._root.name if self._root is not None else None,
            candidates=self._members,
            backup_type=table.schedule.type,
            slot=slot,
            priority=self.policy.spec.priority,
        )


def _serves(history: histories.History, record: schedules.Record, request: observed.Request) -> bool:
    """Whether a backup has been made since a request."""
    if request.after is None:
        served = record.served[1]
        late = served is not None and served > schedules.whole(request.at)  # the clock may have been set back since
        return late or (bool(history.sound) and history.sound[-1].time >= request.at)
    newest = next((image for image in reversed(history.images) if image.state == "Complete"), None)
    return newest is not None and newest.sequence > request.after


def dependents(
    action: actions.Action, policy: policies.BackupPolicy, book: lifecycles.Book, units: placements.Units
) -> Iterator[actions.Action]:
    """The duplications that follow a backup which is due or waits, each after its parent."""
    tree = book.future(policy.name, policy.spec.lifecycle, action.schedule or "")
    stem = action.address.removeprefix("backup/")
    for one in tree.operations:
        if one.source is None:
            continue
        root = any(other.name == one.source and other.source is None for other in tree.operations)
        members = [unit for unit in units.members(one.storage) if unit != action.unit]
        able, refusal = units.able(members)
        if able and action.unit is not None:
            able = units.apart(able, (action.unit,))
        if able:
            reason = actions.Reason(
                code="AfterBackup" if root else "AfterDuplicate", message=f"follows operation {one.source}"
            )
        else:
            reason = refusal or actions.Reason(code="SameUnit", message=f"{one.storage} holds the image already")
        yield actions.Action(
            address=f"duplicate/{stem}/{one.name}",
            type=actions.Type.DUPLICATE,
            state=actions.State.WAITING if able else actions.State.BLOCKED,
            at=None,
            reason=reason,
            after=(action.address if root else f"duplicate/{stem}/{one.source}",),
            policy=policy.name,
            schedule=action.schedule,
            client=action.client,
            client_id=action.client_id,
            operation=one.name,
            unit=able[0] if able else None,
            candidates=able,
            storage=one.storage,
            source_unit=action.unit if root else None,
            priority=action.priority,
        )
