"""Why, in words: why a copy stays and when it leaves, why a machine was not backed up and when it will be.

Nothing is decided here. Each ``Sentence`` repeats what ``expiry`` or the plan says now, and the time it names is found
by asking the same judge again at that time: under a fixed period with the catalog as it is, under ``Keep`` with the
images that the policy's next slots would bring. Pure: called by ``holdfast explain``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from reconciler.api import lifecycles as kinds
from reconciler.base import times
from reconciler.planning import (
    actions,
    calendars,
    configuration,
    desired,
    expiry,
    histories,
    hypervisors,
    observed,
    placements,
    retention,
    rulings,
    schedules,
    sieves,
    snapshots,
)

#: Slots ahead that are tried to find when ``Keep`` lets a copy go.
_SLOTS: Final = 8192
#: How many of them are tried first.
_FEW: Final = 16

#: What would release a copy that nothing but this keeps.
_RELEASES: Final = {
    "NewestImage": "a newer complete image of the series",
    "Base": "the copies built on it leave first",
    "Busy": "the job that uses it ends",
    "Writing": "the job that writes it ends",
    "Forever": "another retention in the lifecycle",
    "NoRule": "a lifecycle that says how long it stays",
    "CapacityManaged": "its unit gets fuller than its high water mark, oldest first",
    "DoubtfulTime": "the clock passes its time",
    "Partial": "a newer complete image of the series, and seven days",
    "RebuiltCatalog": "an approval, as it came back with its unit",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One statement about an object."""

    #: What of it, such as ``copy 1 on fast`` or ``policy gold``.
    about: str
    #: Kept, Due, Waiting, Blocked, Planned, Expired or Fact.
    state: str
    code: str
    message: str
    #: When that changes, None where time alone does not change it.
    at: dt.datetime | None = None
    #: What would change it, or what becomes of it at that time; empty where nothing is to be said.
    release: str = ""


# -- images ------------------------------------------------------------------------------------------------------------


def image(
    wanted: desired.Desired,
    seen: observed.Observed,
    series: observed.Series,
    image_id: str,
    now: dt.datetime,
    plan: actions.Plan | None = None,
) -> tuple[Sentence, ...]:
    """Each copy of one image of ``series``: why it is there, until when, and what would release it.

    With ``plan``, also what goes because its unit is too full, which is decided over all series, and what becomes of
    copies that are to be made.
    """
    foresight = _Foresight(wanted, seen, series, now)
    found = next(one for one in foresight.series.images if one.id == image_id)
    leaving = evicted(plan) if plan is not None else {}
    told = tuple(
        _making_room(foresight.copy(found, copy), leaving.get((image_id, copy.number)), now) for copy in found.copies
    )
    made = (one for one in plan.actions if _makes(one, image_id)) if plan is not None and broken(found) else ()
    return (*told, *(_made(one) for one in made))


def broken(image: observed.Image) -> bool:
    """Whether a copy of an image is damaged or lost, so that it takes a plan to say what becomes of it."""
    return any(copy.state in sieves.MISSING for copy in image.copies)


def _makes(action: actions.Action, image_id: str) -> bool:
    return action.type is actions.Type.DUPLICATE and action.image == image_id


def _made(action: actions.Action) -> Sentence:
    """A copy that is to be made, or made anew."""
    return Sentence(
        about=f"copy of {action.operation} on {action.unit or action.storage}", state=action.state.value,
        code=action.reason.code, message=action.reason.message,
    )  # fmt: skip


def evicted(plan: actions.Plan) -> dict[tuple[str, int], actions.Action]:
    """Expiries of a plan by image id and copy number: what goes to make room is among them."""
    return {
        (one.image, one.copy): one
        for one in plan.actions
        if one.type is actions.Type.EXPIRE and one.image is not None and one.copy is not None
    }


def _making_room(said: Sentence, action: actions.Action | None, now: dt.datetime) -> Sentence:
    """A copy that its rule keeps as long as there is room, and that has to make some; or one that other work needs."""
    if action is not None and action.reason.code == "InUse":
        return dataclasses.replace(
            said, state=action.state.value, code="InUse", message=action.reason.message, at=None,
            release="what needs it is done",
        )  # fmt: skip
    if action is None or said.code != "CapacityManaged" or said.state != "Kept":
        return said
    goes = action.state is actions.State.DUE
    return dataclasses.replace(
        said, state=action.state.value, message=action.reason.message, at=now if goes else action.at,
        release="the next pass deletes it" if goes else "the copies built on it leave first",
    )  # fmt: skip


class _Foresight:
    """The judge of one series, now and later."""

    def __init__(
        self, wanted: desired.Desired, seen: observed.Observed, series: observed.Series, now: dt.datetime
    ) -> None:
        self._seen, self._now = seen, now
        self._wanted = configuration.effective(wanted, seen.applied)
        (self.series,) = configuration.renames(self._wanted).follow((series,))
        self._verdicts = self._judged(self.series, now)

    def _judged(self, series: observed.Series, at: dt.datetime) -> dict[tuple[str, int], expiry.Verdict]:
        judge = expiry.Judge(self._wanted, self._seen, at)
        found = judge.verdicts(histories.History(series, at), everything=True)
        return {(one.image.id, one.copy.number): one for one in found}

    def copy(self, image: observed.Image, copy: observed.Copy) -> Sentence:
        """What is to be said of one copy."""
        told = f" ({copy.state})" if copy.state in sieves.MISSING else ""
        about = f"copy {copy.number} on {copy.unit}{told}"
        if copy.state == "Expired":
            return Sentence(about=about, state="Expired", code="Expired", message="it is gone")
        verdict = self._verdicts[image.id, copy.number]
        at, release = self._released(verdict)
        return Sentence(
            about=about, state=verdict.state, code=verdict.code, message=verdict.message, at=at, release=release
        )

    def _released(self, verdict: expiry.Verdict) -> tuple[dt.datetime | None, str]:
        if verdict.state == "Due":
            return self._now, "the next pass deletes it" if verdict.grace is None else "the next pass begins its grace"
        if verdict.code in ("LegalHold", "Held"):
            return None, self._holds(verdict)
        if verdict.code == "Grace":
            return verdict.at, f"it leaves then; until then holdfast hold {verdict.image.id} brings it back"
        if verdict.held is not None and verdict.held.order is not None:
            return None, f"an approval, or holdfast expire {verdict.image.id} --undo"
        if verdict.held is not None:
            return verdict.held.until, "its promise ends" if verdict.held.until else "an approval"
        if verdict.owes:
            return None, f"{' and '.join(verdict.owes)} made and proven"
        if verdict.used_by is not None:
            return None, f"{verdict.used_by} is done"
        if verdict.after:
            return None, "the copies built on it leave first"
        if verdict.code == "Keep":
            return self._pushed_out(verdict)
        if verdict.at is not None and verdict.at > self._now:
            return verdict.at, self._then(self._judged(self.series, verdict.at), verdict)
        return None, _RELEASES.get(verdict.code, "")

    def _then(self, later: dict[tuple[str, int], expiry.Verdict], verdict: expiry.Verdict) -> str:
        """What becomes of a copy at a later time, if nothing else happens."""
        then = later[verdict.image.id, verdict.copy.number]
        if then.state in ("Due", "Planned") or (then.state == "Waiting" and then.after):
            return "it leaves then"
        return f"it stays then too, {then.message.partition(': ')[2]}, until {self._why_longer(then)}"

    def _why_longer(self, then: expiry.Verdict) -> str:
        if then.code in ("LegalHold", "Held"):
            return self._holds(then)
        if then.owes:
            return f"{' and '.join(then.owes)} are made"
        return _RELEASES.get(then.code, "that changes")

    def _holds(self, verdict: expiry.Verdict) -> str:
        """What ends a hold."""
        return rulings.Register(self._wanted, self._seen).release(self.series.client, verdict.image)

    # -- Keep ----------------------------------------------------------------------------------------------------------

    def _pushed_out(self, verdict: expiry.Verdict) -> tuple[dt.datetime | None, str]:
        """At which of the next slots newer images push a copy out, if every slot succeeds."""
        coming: list[observed.Image] = []
        ahead, low = itertools.islice(self._coming(verdict), _SLOTS), 0
        # Twice as many each time: most copies leave within a few slots, and thousands take half a second.
        while more := list(itertools.islice(ahead, len(coming) or _FEW)):
            low = len(coming)
            coming += more
            if not self._kept_with(verdict, coming):
                break
        else:
            return None, "newer images push it out" if coming else "another retention in the lifecycle"
        high = len(coming)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._kept_with(verdict, coming[:middle]) else (low, middle)
        at = coming[high - 1].time
        later = self._judged(self._with(coming[:high]), at)
        return at, f"if every slot succeeds, {self._then(later, verdict)}"

    def _kept_with(self, verdict: expiry.Verdict, coming: Sequence[observed.Image]) -> bool:
        """Whether the rule keeps a copy once these images are there too."""
        judge = expiry.Judge(self._wanted, self._seen, coming[-1].time)
        name = judge.book.operation
        lifecycle, operation = verdict.image.lifecycle, name(verdict.image.lifecycle, verdict.copy.operation)
        rule = judge.book.rule(verdict.image, operation)
        if not isinstance(rule, kinds.Keep):
            return True
        candidates = [
            retention.Candidate(one.id, one.time, one.sequence, one.type == "Full")
            for one in (*histories.History(self.series, self._now).sound, *coming)
            if one.lifecycle == lifecycle
            and any(c.state in observed.GOOD and name(lifecycle, c.operation) == operation for c in one.copies)
        ]
        decided = retention.keep(rule, candidates, coming[-1].time).get(verdict.image.id)
        return decided is None or decided.keeps

    def _with(self, coming: Sequence[observed.Image]) -> observed.Series:
        return dataclasses.replace(self.series, images=(*self.series.images, *coming))

    def _coming(self, verdict: expiry.Verdict) -> Iterator[observed.Image]:
        """The images that the next slots would bring onto the operation of a copy, as copies of the newest ones."""
        policy = self._wanted.policies.get(self.series.policy)
        if policy is None or self._wanted.is_orphaned("BackupPolicy", policy.name):
            return
        sequence = max(one.sequence for one in self.series.images)
        for slot, schedule in slots(self._wanted, self._seen, self.series, self._now):
            model = next((one for one in reversed(self.series.images) if one.schedule == schedule), verdict.image)
            sequence += 1
            copy = verdict.copy._replace(number=1, state="Complete", created_at=slot, base=None, busy=False)
            yield verdict.image._replace(
                id=f"coming-{sequence}", schedule=schedule, type=model.type, state="Complete", time=slot, slot=slot,
                sequence=sequence, parent=None, copies=(copy,),
            )  # fmt: skip


def slots(
    wanted: desired.Desired,
    seen: observed.Observed,
    series: observed.Series,
    now: dt.datetime,
) -> Iterator[tuple[dt.datetime, str]]:
    """The next slots of a policy for one series, each with its schedule, in order."""
    client = seen.clients.get(series.client)
    record = schedules.record(histories.History(series, now), client.first_seen if client is not None else now)
    tables = schedules.timetables(wanted, wanted.policies[series.policy], seen, now)

    def one(table: schedules.Timetable) -> Iterator[tuple[dt.datetime, str]]:
        at = schedules.following(table, record, now)
        while at is not None:
            yield at, table.schedule.name
            at = schedules.following(table, record, at)

    return heapq.merge(*(one(table) for table in tables))


# -- clients, policies, units, vCenters --------------------------------------------------------------------------------


def client(
    wanted: desired.Desired,
    seen: observed.Observed,
    plan: actions.Plan,
    slug: str,
    all_series: Iterable[observed.Series],
    now: dt.datetime,
) -> tuple[Sentence, ...]:
    """Whether and why one machine is backed up: drift that names it, what the plan does for it, its next slots."""
    effective = configuration.effective(wanted, seen.applied)
    places = {one.source for one in seen.clients.values() if one.slug == slug}
    said = [
        Sentence(about=one.object, state="Fact", code=one.code, message=one.message)
        for one in plan.drift
        if slug in (one.object, one.object.partition("/")[2], one.object.rpartition("/")[2]) or one.object in places
    ]
    said += [_of_action(one) for one in plan.actions if one.client == slug and one.type is not actions.Type.EXPIRE]
    planned = {one.policy for one in plan.actions if one.client == slug and one.type is actions.Type.BACKUP}
    for series in all_series:
        if series.policy in planned:
            continue
        if series.policy not in effective.policies or effective.is_orphaned("BackupPolicy", series.policy):
            message = f"no manifest describes policy {series.policy}; nothing new is backed up"
            said.append(Sentence(about=f"policy {series.policy}", state="Blocked", code="Orphaned", message=message))
            continue
        slot = next(slots(effective, seen, series, now), None)
        if slot is not None:
            said.append(_next_slot(f"policy {series.policy}", *slot))
    return tuple(said)


def policy(
    wanted: desired.Desired, seen: observed.Observed, plan: actions.Plan, name: str, now: dt.datetime
) -> tuple[Sentence, ...]:
    """What one policy does next, and what keeps it from it."""
    effective = configuration.effective(wanted, seen.applied)
    known = effective.policies[name]
    said = [
        Sentence(about=one.object, state="Fact", code=one.code, message=one.message)
        for one in plan.drift
        if name in (one.object, one.object.partition("/")[0], one.object.rpartition("/")[2])
    ]
    if effective.is_orphaned("BackupPolicy", name):
        message = "its manifest is gone: nothing new is backed up, what exists keeps its expiry"
        return (*said, Sentence(about=f"policy {name}", state="Blocked", code="Orphaned", message=message))
    for table in schedules.timetables(effective, known, seen, now):
        said.append(_schedule(table, now))
    mine = [one for one in plan.actions if one.policy == name and one.type is actions.Type.BACKUP]
    return (*said, *(_of_action(one) for one in mine))


def _schedule(table: schedules.Timetable, now: dt.datetime) -> Sentence:
    spec = table.schedule
    about = f"schedule {spec.name}"
    rhythm = f"every {spec.every}" if spec.every is not None else f"cron {spec.cron} in {spec.time_zone}"
    if spec.cron is None:
        message = f"{spec.type}, {rhythm} after the slot that was served last"
        return Sentence(about=about, state="Fact", code="Schedule", message=message)
    at = calendars.following(spec.cron, spec.time_zone, now)
    opening = calendars.next_opening(table.window, at) if table.window is not None and at is not None else at
    late = f", started when its window opens {times.show_minutes(opening)}" if opening != at and opening else ""
    return Sentence(about=about, state="Planned", code="NextSlot", message=f"{spec.type}, {rhythm}{late}", at=at)


def unit(wanted: desired.Desired, seen: observed.Observed, plan: actions.Plan, name: str) -> tuple[Sentence, ...]:
    """What one storage unit takes, gives and loses, and why not."""
    effective = configuration.effective(wanted, seen.applied)
    units = placements.Units(effective, seen)
    questions = (
        ("new copies", "it takes new copies", units.refuses_new(name)),
        ("reading", "copies on it can be read", units.refuses_read(name)),
        ("deleting", "copies on it can be deleted", units.refuses_delete(name)),
    )
    said = [
        Sentence(about=about, state="Blocked", code=refusal.code, message=refusal.message)
        if refusal is not None
        else Sentence(about=about, state="Fact", code="Able", message=able)
        for about, able, refusal in questions
    ]
    said += [_of_action(one) for one in plan.actions if one.unit == name and one.policy is None]
    leaving = [one for one in plan.actions if one.unit == name and one.type is actions.Type.EXPIRE]
    for state in actions.State:
        chosen = [one for one in leaving if one.state is state]
        if chosen:
            message = f"{len(chosen)} of its copies would leave"
            first = min((one.at for one in chosen if one.at is not None), default=None)
            said.append(Sentence(about="expiry", state=state.value, code="Expiry", message=message, at=first))
    return tuple(said)


def vcenter(wanted: desired.Desired, seen: observed.Observed, plan: actions.Plan, name: str) -> tuple[Sentence, ...]:
    """What one VCenter is asked for, how busy it is, and which snapshots of ours stand on it."""
    effective = configuration.effective(wanted, seen.applied)
    said = [
        Sentence(about=one.object, state="Fact", code=one.code, message=one.message)
        for one in plan.drift
        if one.object == f"VCenter/{name}"
    ]
    if effective.is_orphaned("VCenter", name):
        message = "its manifest is gone: nothing new is backed up from it, and nothing on it is touched"
        said.append(Sentence(about=f"vcenter {name}", state="Blocked", code="Orphaned", message=message))
    users = [
        policy.name
        for _, policy in sorted(effective.policies.items())
        if policy.spec.source.vmware is not None and policy.spec.source.vmware.vcenter == name
    ]
    said += [_asking(policy, seen.inventories.get(policy)) for policy in users]
    floor = hypervisors.Hypervisors(effective, seen)
    for job in seen.jobs:
        floor.take(job, job.client)
    said.append(Sentence(about="limits", state="Fact", code="Limits", message=floor.load(name)))
    ours = {id: one for id, one in snapshots.known(seen).items() if one.vcenter == name}
    over = snapshots.left(seen)
    for id, one in ours.items():
        if id not in over:
            old = f", since {times.show_minutes(one.since)}" if one.since is not None else ""
            message = f"of {one.machine}, in use by {one.job}{old}"
            said.append(Sentence(about=f"snapshot {id}", state="Fact", code="SnapshotInUse", message=message))
    for action in plan.actions:
        removes = action.type is actions.Type.REMOVE_SNAPSHOT and snapshots.named(action.address) in ours
        waits = action.reason.code in hypervisors.CODES and floor.vcenter(action) == name
        if removes or waits:
            said.append(_of_action(action))
    return tuple(said)


def _asking(policy: str, inventory: observed.Inventory | None) -> Sentence:
    about = f"policy {policy}"
    if inventory is None:
        return Sentence(about=about, state="Fact", code="NeverAsked", message="has not asked it for its machines yet")
    count = f"{len(inventory.machines)} {'machine' if len(inventory.machines) == 1 else 'machines'}"
    message = f"matches {count}, as of {times.show_minutes(inventory.seen)}"
    if inventory.unreachable is not None:
        words = f"{message}; since then: {inventory.unreachable[1]}"
        return Sentence(about=about, state="Blocked", code="UnreachableSource", message=words)
    return Sentence(about=about, state="Fact", code="Policy", message=message)


def _of_action(action: actions.Action) -> Sentence:
    return Sentence(
        about=action.address,
        state=action.state.value,
        code=action.reason.code,
        message=action.reason.message,
        at=action.at if action.state in (actions.State.PLANNED, actions.State.WAITING) else None,
    )


def _next_slot(about: str, at: dt.datetime, schedule: str) -> Sentence:
    message = f"next slot of {schedule}: {times.show_minutes(at)}"
    return Sentence(about=about, state="Planned", code="NextSlot", message=message, at=at)
