"""What somebody should hear of: the alarms that stand, from one plan and what it was made from.

``controller.notifications`` sends them, ``holdfast status`` shows them; ``tellings`` says who has heard of which one.
An alarm goes by what is no longer safe (the age of the last success, expiry that a brake holds), not by each failure on
the way. Keys: ``Overdue``, ``Failing``, ``LostCopies``, ``DamagedCopies``, ``CopyOverdue``, ``ExpiryHeld``,
``ClockDoubtful``, ``UnitFull``, ``SelectionShrunk``, ``SnapshotOld``, ``ServiceLevelMissed``, ``VerificationFailed``,
``RestoreFailing``, ``ConfigurationFrozen``, each followed by what it is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from reconciler.base import diagnostics, quantities, times
from reconciler.planning import actions, configuration, desired, observed, placements

CRITICAL: Final = "Critical"
WARNING: Final = "Warning"
#: What the keys begin with of alarms that only a reading of the manifests can raise.
FROZEN: Final = "ConfigurationFrozen/"
_STARTS: Final = frozenset({actions.State.DUE, actions.State.WAITING})
_FREES: Final = frozenset({actions.Type.EXPIRE, actions.Type.RECLAIM})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One thing that is no longer safe."""

    #: Stable while the trouble lasts: ``CODE/what it is about``.
    key: str
    #: Critical (data is, or will be, missing) or Warning.
    severity: str
    #: A line.
    title: str
    #: Sentences, the last of them with the next step.
    message: str


def alarms(
    plan: actions.Plan, wanted: desired.Desired, seen: observed.Observed, *, valid: bool = True
) -> tuple[Alarm, ...]:
    """The alarms that stand, ordered by key. ``wanted`` and ``seen`` are what the plan was made from; ``valid``:
    whether the tree of manifests could be read without errors."""
    found = (
        *_frozen(plan, valid),
        *_overdue(plan, seen),
        *_drift(plan),
        *_late(plan),
        *_held(plan, seen),
        *_doubted(plan, seen),
        *_full(plan, wanted, seen),
    )
    return tuple(sorted(found, key=lambda alarm: alarm.key))


def _frozen(plan: actions.Plan, valid: bool) -> Iterator[Alarm]:
    errors = [one for one in plan.problems if one.severity is diagnostics.Severity.ERROR]
    guarded = next((one for one in errors if one.code == configuration.GONE), None)
    if not valid:
        first = f"; the first: {errors[0]}" if errors else ""
        yield Alarm(
            key=f"{FROZEN}errors",
            severity=WARNING,
            title="the configuration is frozen: the manifests have errors",
            message=f"{len(errors)} errors{first}. What was in force stays in force; holdfast validate shows them all.",
        )
    if guarded is not None:
        yield Alarm(
            key=f"{FROZEN}guard",
            severity=WARNING,
            title="the configuration is frozen: too much would go at once",
            message=f"{guarded.message}. Next: {guarded.hint}.",
        )


def _overdue(plan: actions.Plan, seen: observed.Observed) -> Iterator[Alarm]:
    failing = {one.object.removeprefix("BackupPolicy/"): one.message for one in plan.drift if one.code == "Failing"}
    away = {one.object.removeprefix("Client/") for one in plan.drift if one.code == "UnprotectedClient"}
    backups = [one for one in plan.actions if one.type is actions.Type.BACKUP]
    # In plan order what is due comes before what is planned; the first one speaks.
    said = {(one.policy, one.client): one.reason.message for one in reversed(backups)}
    for one in plan.overdue:
        series = f"{one.policy}/{one.client}"
        if one.newest is not None:
            title = f"{one.client} has had no success under {one.policy} since {times.show_minutes(one.newest)}"
        elif one.succeeded:
            title = f"{one.client} has no image under {one.policy} that can be read"
        else:
            title = f"{one.client} never had a success under {one.policy}"
        inventory = seen.inventories.get(one.policy)
        why = failing.get(series) or said.get((one.policy, one.client), "no backup is due")
        if inventory is not None and inventory.unreachable is not None:
            why = f"its source cannot be reached: {inventory.unreachable[1]}"
        if one.client in away:
            why = "no policy matches the machine any more; bring it back, or holdfast retire it"
        yield Alarm(
            key=f"Overdue/{series}",
            severity=CRITICAL,
            title=title,
            message=f"The objective of {times.span(one.objective)} passed {times.show_minutes(one.since)}. "
            f"Because: {why}. Next: holdfast explain client {one.client}.",
        )


def _drift(plan: actions.Plan) -> Iterator[Alarm]:
    for one in plan.drift:
        about = one.object.partition("/")[2]
        if one.code == "Failing":
            policy, _, client = about.partition("/")
            title = f"backups of {client} under {policy} fail"
            yield _told(one, about, WARNING, title, f"Next: holdfast get jobs --client {client} --job-state Failed.")
        elif one.code == "SelectionShrunk":
            title = f"policy {about} lost many of its clients at once"
            yield _told(one, about, WARNING, title, "Next: bring them back, or approve it; holdfast plan says how.")
        elif one.code == "SnapshotOld":
            title = f"a snapshot of {about} stands for too long"
            rest = "It grows with what the machine writes until its datastore is full."
            yield _told(one, about, WARNING, title, f"{rest} Next: holdfast explain client {about}.")
        elif one.code == "ServiceLevelMissed":
            series = one.message.partition(":")[0]
            title = f"{series} falls short of ServiceLevel {about}"
            policy = series.partition("/")[0]
            rest = f"Next: holdfast explain policy {policy}, and of what is to be proven holdfast get verifications."
            yield _told(one, f"{about}/{series}", WARNING, title, rest)
        elif one.code == "VerificationFailed":
            kind = one.message.partition(" ")[0]
            title = f"the last backup of {about} that was tried cannot be relied on ({kind.lower()})"
            rest = "The newest image that did not fail is kept beside it."
            next = f"Next: holdfast get verifications --client {about}."
            yield _told(one, f"{about}/{kind}", CRITICAL, title, f"{rest} {next}")
        elif one.code == "RestoreFailing":
            title = f"the restore {about} fails"
            yield _told(one, about, WARNING, title, f"Next: holdfast describe restore {about}.")
        elif one.code in ("LostCopies", "DamagedCopies"):
            title = f"copies on {about} are {'lost' if one.code == 'LostCopies' else 'damaged'}"
            yield _told(one, about, CRITICAL, title, f"Next: holdfast get copies --unit {about}.")


def _told(drift: actions.Drift, about: str, severity: str, title: str, rest: str) -> Alarm:
    """The alarm that a drift is: its own words, and what to do."""
    return Alarm(key=f"{drift.code}/{about}", severity=severity, title=title, message=f"{drift.message}. {rest}")


def _late(plan: actions.Plan) -> Iterator[Alarm]:
    for one in plan.late:
        many = f"{one.copies} {'copy' if one.copies == 1 else 'copies'}"
        yield Alarm(
            key=f"CopyOverdue/{one.policy}/{one.operation}",
            severity=WARNING,
            title=f"{many} of {one.policy} onto {one.storage} should have been made by now",
            message=f"The oldest image that owes one is of {times.show_minutes(one.oldest)}; until then its source copy"
            f" stays. Because: {one.reason.message}. Next: holdfast explain policy {one.policy}.",
        )


def _held(plan: actions.Plan, seen: observed.Observed) -> Iterator[Alarm]:
    if plan.destruction.approved:
        return
    by_unit: dict[str, list[actions.Destroyed]] = {}
    for item in plan.destruction.items:
        by_unit.setdefault(item.unit, []).append(item)
    about = "about " if plan.destruction.estimated else ""
    for unit, items in sorted(by_unit.items()):
        size = quantities.show_size(sum(item.bytes for item in items))
        many = f"{len(items)} {'copy' if len(items) == 1 else 'copies'}"
        yield Alarm(
            key=f"ExpiryHeld/{unit}",
            severity=WARNING,
            title=f"a brake holds {many} on {unit}",
            message=f"They take {about}{size}; {_fill(unit, seen)}. A brake that nobody answers fills the unit. "
            f"Next: review holdfast plan, then holdfast approve {plan.destruction.digest}, or take the change back.",
        )


def _doubted(plan: actions.Plan, seen: observed.Observed) -> Iterator[Alarm]:
    count = sum(one.reason.code == "ClockJump" for one in plan.actions)
    if seen.clock_jump is None or not count:
        return
    yield Alarm(
        key="ClockDoubtful/expiry",
        severity=WARNING,
        title=f"the clock may be wrong, and {count} {'copy waits' if count == 1 else 'copies wait'} to expire",
        message=f"{seen.clock_jump}. A wrong clock makes restore points look old."
        " Next: compare the machine's clock with one that is right.",
    )


def _full(plan: actions.Plan, wanted: desired.Desired, seen: observed.Observed) -> Iterator[Alarm]:
    units = placements.Units(wanted, seen)
    freed = {
        unit for one in plan.actions if one.type in _FREES and one.state in _STARTS and (unit := one.unit) is not None
    }
    for name in sorted(wanted.units):
        refusal = units.refuses_new(name)
        if refusal is None or refusal.code != "UnitFull" or name in freed:
            continue
        yield Alarm(
            key=f"UnitFull/{name}",
            severity=CRITICAL,
            title=f"unit {name} is over its high water mark and nothing on it may go",
            message=f"{refusal.message}; it takes no new copies. Next: add space, shorten a retention, or approve what"
            " a brake holds.",
        )


def _fill(unit: str, seen: observed.Observed) -> str:
    known = seen.units.get(unit)
    if known is None or not known.total_bytes:
        return "how full the unit is nobody knows"
    filled = known.total_bytes - known.free_bytes
    return f"the unit is {100 * filled // known.total_bytes}% full"
