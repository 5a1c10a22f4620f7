"""The one decision: ``plan(desired, observed, now)`` says what is wrong, what changes, and what is to be done.

``holdfast plan``, the controller's loop and a saved plan's check all call it; a dry run is not calling anything else.
It reads the series once and asks, for each: what may leave (``expirations``), which copies are owed (``duplications``),
and for the machine behind it: which backup is due (``backups``). Where somebody has approved what a brake holds
(``destructions``), it asks once more with those promises ended. With the clock held still and no job failing, doing
what is Due and planning again ends with nothing Due.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from reconciler.base import diagnostics
from reconciler.planning import (
    actions,
    approvals,
    backups,
    clients,
    configuration,
    delays,
    desired,
    destructions,
    dispatch,
    drifts,
    drills,
    duplications,
    evictions,
    expirations,
    expiry,
    histories,
    holds,
    identities,
    lifecycles,
    observed,
    restorations,
    schedules,
    scrubs,
    servicelevels,
    snapshots,
    verifications,
)

#: How far ahead a plan looks unless told otherwise.
HORIZON: Final = dt.timedelta(hours=24)
_STATES: Final = tuple(actions.State)
_TYPES: Final = tuple(actions.Type)
_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


def plan(
    wanted: desired.Desired, seen: observed.Observed, now: dt.datetime, *, horizon: dt.timedelta = HORIZON
) -> actions.Plan:
    """What would be done now and until ``now + horizon``, and why. Pure: it changes nothing and reads no clock."""
    wanted = approvals.consenting(wanted, seen.approvals, now)
    made = _Pass(wanted, seen, now, horizon)
    first = latest = made.run()
    known = approvals.consents(made.wanted, seen.approvals)
    live = [one for one in known if one.until > now]
    grants: list[destructions.Granted] = []
    # While a clock jump is unexplained nobody can say which approvals still stand.
    while live and seen.clock_jump is None:
        granted = made.ledger.part.granted(live)
        if granted is None:
            break
        live.remove(granted.consent)
        grants.append(granted)
        # What an approval lets go is judged like everything else, with the promises it ends out of the way.
        ended = (*seen.releases, *(release for one in grants for release in one.releases))
        made = _Pass(wanted, dataclasses.replace(seen, releases=ended), now, horizon)
        latest = made.run()
    return _answered(first, latest, grants, made, known)


def _answered(
    first: actions.Plan,
    latest: actions.Plan,
    grants: Sequence[destructions.Granted],
    made: _Pass,
    known: Sequence[approvals.Consent],
) -> actions.Plan:
    """The plan with what approvals let go, what still waits for one, and those that do nothing."""
    destruction = latest.destruction
    questions = [*latest.questions, *(one.question() for one in grants)]
    if destruction.digest is not None:
        questions.append(destructions.question(destruction.digest, len(destruction.items), approved=False))
    elif grants:
        destruction = dataclasses.replace(first.destruction, approved=True)
    used = {one.digest for one in questions if one.approved}
    idle = [one.digest for one in known if one.digest not in used]
    waiting = made.ledger.part.beginnings() if idle else {}
    waiting = {**waiting, **{one.digest: one.copies for one in questions if not one.approved}}
    drift = (*latest.drift, *approvals.drift(known, waiting, used, made.seen.releases, made.now))
    return dataclasses.replace(
        latest,
        destruction=destruction,
        questions=tuple(sorted(questions, key=lambda one: (one.what, one.digest))),
        releases=tuple(release for one in grants for release in one.releases),
        drift=tuple(sorted(drift, key=_by_object)),
    )


class _Pass:
    """One plan in the making."""

    def __init__(
        self, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime, horizon: dt.timedelta
    ) -> None:
        self.manifests = wanted
        self.wanted = configuration.effective(wanted, seen.applied)
        self.renames = configuration.renames(self.wanted)
        self.seen = seen
        self.now = now
        self.horizon = now + horizon
        self.judge = expiry.Judge(self.wanted, seen, now)
        self.ledger = expirations.Ledger(self.wanted, seen, self.judge.units, now)
        self.copier = duplications.Desk(self.judge, self.wanted, seen, now, promised=self.judge.promised)
        self.drills = drills.Desk(seen, self.judge, now, self.horizon)
        self.restores = restorations.Desk(self.judge, self.wanted, seen, now)
        self.problems: list[diagnostics.Diagnostic] = []
        self.questions: list[actions.Question] = []
        self.drift: list[actions.Drift] = []
        self.actions: list[actions.Action] = []
        self.desks: dict[str, backups.Desk] = {}
        #: (policy, client id) -> machine, as far as backups may be made of it.
        self.machines: dict[tuple[str, str], observed.Machine] = {}
        self.matched: dict[str, list[str]] = {}
        #: Client id -> policy -> machine, whatever its problem.
        self.shown: dict[str, dict[str, observed.Machine]] = {}
        #: Client id -> the machines that claim it, where they are several.
        self.claimed = identities.contested(self.wanted, self._inventories_now())
        self.slugs = {id: client.slug for id, client in seen.clients.items()}
        self.protected: dict[str, set[str]] = {}
        self.orphaned: dict[str, tuple[int, int]] = {}
        self.lost: dict[tuple[str, str], int] = {}
        self.overdue: list[actions.Overdue] = []
        self.owings = delays.Owings(self.wanted, seen, now)
        #: (policy, client id) of the series that have images.
        self.imaged: set[tuple[str, str]] = set()
        #: Copies that due actions read or build on.
        self.used: dict[tuple[str, int], str] = {}
        self.emptying: Mapping[str, int] = {}

    def run(self) -> actions.Plan:
        """Put the six parts together."""
        guarded = configuration.guard(self.manifests, self.seen.applied)
        if guarded is not None:
            self.problems.append(guarded)
        self.questions.extend(configuration.questions(self.manifests, self.seen.applied))
        self.problems.extend(holds.problems(self.wanted, self.judge.register.holds))
        self._inventories()
        for series in self.renames.follow(self.seen.series):
            self._series(series)
        for policy, client in sorted(self.machines):
            self.actions.extend(self._machine(policy, client, None))
        self._make_room()
        self.actions.extend(self.ledger.reclaim())
        self.actions.extend(self.restores.asked(self.slugs))
        self.actions.extend(scrubs.scrubs(self.wanted, self.seen, self.judge.units, self.now, self.horizon))
        self.actions.extend(snapshots.removals(self.wanted, self.seen, self.slugs, self.now))
        self._imageless()
        self._drift()
        self._held()
        return actions.Plan(
            now=self.now,
            horizon=self.horizon,
            revision=self.manifests.revision,
            in_force=self.seen.in_force,
            problems=tuple(sorted(self.problems, key=lambda one: (one.code, one.object or "", one.message))),
            drift=tuple(sorted(dict.fromkeys(self.drift), key=_by_object)),
            configuration=configuration.changes(self.manifests, self.seen.applied),
            actions=tuple(sorted(self.actions, key=_order)),
            destruction=self.ledger.destruction(),
            questions=tuple(self.questions),
            overdue=tuple(sorted(self.overdue, key=lambda one: (one.policy, one.client))),
            late=self.owings.late(),
            last_used=self.seen.last_used,
            emptying=self.emptying,
        )

    # -- sources -------------------------------------------------------------------------------------------------------

    def _inventories(self) -> None:
        taken = set(self.slugs.values())
        for name, policy in sorted(self.wanted.policies.items()):
            if self.wanted.is_orphaned("BackupPolicy", name):
                continue
            desk = backups.Desk(policy, self.wanted, self.seen, self.judge.units, self.now)
            if not desk.usable:
                self._problem("HF491", name, f"lifecycle {policy.spec.lifecycle} does not exist; nothing is backed up")
            inventory = self._inventory(name)
            if inventory is None:
                continue
            self.drift.extend(drifts.sources(name, inventory, self.now))
            self.desks[name] = desk
            for machine in self._distinct(name, inventory):
                self.matched.setdefault(machine.id, []).append(name)
                self.shown.setdefault(machine.id, {})[name] = machine
                if machine.id not in self.slugs:
                    slug = self.slugs[machine.id] = clients.slug(machine.name, taken)
                    taken.add(slug)
                if machine.problem is None and desk.usable:
                    self.machines[name, machine.id] = machine

    def _inventories_now(self) -> dict[str, observed.Inventory]:
        """By policy, as far as anything is known of what it matches."""
        found = ((name, self._inventory(name)) for name in self.wanted.policies)
        return {name: inventory for name, inventory in found if inventory is not None}

    def _inventory(self, policy: str) -> observed.Inventory | None:
        spec = self.wanted.policies[policy].spec
        for name in (policy, *spec.previous_names):
            if name in self.seen.inventories:
                return self.seen.inventories[name]
        return None

    def _distinct(self, policy: str, inventory: observed.Inventory) -> Iterator[observed.Machine]:
        """Machines by id; two under one id are a problem, and neither is guessed."""
        told = set()
        for machine in sorted(inventory.machines, key=lambda one: (one.name, one.id)):
            claimed = self.claimed.get(machine.id)
            if claimed is None:
                yield machine
            elif machine.id not in told:
                told.add(machine.id)
                self.matched.setdefault(machine.id, []).append(policy)
                self.problems.append(identities.problem(policy, machine.id, claimed))

    def _problem(self, code: str, policy: str, message: str) -> None:
        self.problems.append(
            diagnostics.Diagnostic(
                severity=diagnostics.Severity.ERROR, code=code, message=message, object=f"BackupPolicy/{policy}"
            )
        )

    # -- series --------------------------------------------------------------------------------------------------------

    def _series(self, series: observed.Series) -> None:
        history = histories.History(series, self.now)
        slug = self.slugs.get(series.client) or clients.slug(series.client, ())
        debts = lifecycles.Debts(self.judge.book, history, self.now)
        made = [*self.copier.answer(history, debts, slug), *self._machine(series.policy, series.client, history)]
        self.actions.extend(made)
        self.owings.add(history, made)
        self._age(series.policy, series.client, history)
        used = {**_used(history, made), **self.restores.look(history)}
        self.used.update(used)
        verdicts = self.judge.verdicts(history, until=self.horizon, used=used)
        self.actions.extend(self.ledger.expire(history, verdicts, slug))
        leaving = {(one.image.id, one.copy.number) for one in verdicts if one.state == "Due"}
        proofs = self.drills.answer(history, slug)
        self.actions.extend(one for one in proofs if (one.image, one.copy) not in leaving)
        if not self.judge.register.retired(series.client):
            self._promises(history, slug)
        self.drift.extend(drifts.unproven(history, self.judge.asked(series.policy), self.seen, slug))
        self._count(series, history)

    def _promises(self, history: histories.History, slug: str) -> None:
        """What ServiceLevels promise and a series does not keep: once for each of them."""
        missed: dict[str, list[str]] = {}
        for level, reason in servicelevels.shortfalls(self.wanted, self.judge.units, history, self.now):
            missed.setdefault(level, []).append(reason.message)
        asked = self.judge.asked(history.series.policy)
        for level, lacking in verifications.shortfalls(asked, self.seen, history, self.now):
            missed.setdefault(level, []).append(lacking)
        for level, words in missed.items():
            self.drift.append(drifts.missed(level, history.series.policy, slug, words))

    def _age(self, policy: str, client: str, history: histories.History | None) -> None:
        """Whether a series is past its objective; what somebody decided to leave alone is not."""
        self.imaged.add((policy, client))
        known, tables = self.seen.clients.get(client), self.desks[policy].tables if policy in self.desks else ()
        elsewhere = policy not in self.matched.get(client, (policy,))
        if not tables or known is None or elsewhere or self.judge.register.retired(client):
            return
        if delays.suspended(self.wanted, policy, self.now):
            return
        begun = max(self.seen.believed(known.first_seen, self.now), min(table.anchor for table in tables))
        found = delays.overdue(self.judge, history, policy, self.slugs[client], begun, self.now)
        if found is not None:
            self.overdue.append(found)

    def _imageless(self) -> None:
        """Machines without images under a policy that matches them, whatever keeps them from being backed up."""
        for client, names in sorted(self.matched.items()):
            for policy in sorted(set(names)):
                if (policy, client) not in self.imaged:
                    self._age(policy, client, None)

    def _make_room(self) -> None:
        """Decided over all series: what goes because its unit is too full."""
        followed = self.renames.follow(self.seen.series)
        outcome = evictions.decide(self.judge, followed, self.seen, self.now, used=self.used)
        self.emptying = outcome.emptying
        self.actions.extend(self.ledger.evict(outcome.evicted, self.slugs))
        self.drift.extend(outcome.drift)

    def _count(self, series: observed.Series, history: histories.History) -> None:
        policy = series.policy
        counted = collections.Counter(history.images.shapes)
        present = sum(n for shape, n in counted.items() if any(part.state != "Expired" for part in shape.parts))
        if present:
            self.protected.setdefault(policy, set()).add(series.client)
        if (policy not in self.wanted.policies or self.wanted.is_orphaned("BackupPolicy", policy)) and present:
            images, owners = self.orphaned.get(policy, (0, 0))
            self.orphaned[policy] = (images + present, owners + 1)
        for shape, count in counted.items():
            for part in shape.parts:
                if part.state in ("Lost", "Damaged"):
                    key = (part.unit, part.state)
                    self.lost[key] = self.lost.get(key, 0) + count

    def _machine(self, policy: str, client: str, history: histories.History | None) -> Iterator[actions.Action]:
        machine = self.machines.get((policy, client)) if history is None else self.machines.pop((policy, client), None)
        if machine is None:
            return
        desk, slug = self.desks[policy], self.slugs[client]
        known = self.seen.clients.get(client)
        record = schedules.record(history, known.first_seen if known is not None else self.now)
        inventory = self._inventory(policy)
        unreachable = inventory.unreachable if inventory is not None else None
        for action in desk.answer(machine, slug, record, history, unreachable=unreachable, horizon=self.horizon):
            yield action
            if action.state in (actions.State.DUE, actions.State.WAITING):
                yield from backups.dependents(action, desk.policy, self.judge.book, self.judge.units)
        failing = desk.failing(slug, record, history)
        if failing is not None:
            self.drift.append(drifts.failing(policy, slug, failing))
        if history is not None:
            self.drift.extend(drifts.removed_disks(history, machine, slug, policy))

    def _drift(self) -> None:
        register = self.judge.register
        for name in self.desks:
            inventory = self._inventory(name)
            if inventory is not None:
                left = self.protected.get(name, set()) - register.all_retired()
                self._selection(name, drifts.selection(name, inventory, left))
                if not left:
                    self.drift.extend(drifts.empty(name, inventory, self.now))
        self.drift.extend(drifts.left_out(self.shown, self.slugs))
        self.drift.extend(drifts.notes(self.shown, self.slugs))
        self.drift.extend(drifts.vcenters(self.wanted))
        self.drift.extend(snapshots.drift(self.wanted, self.seen, self.slugs, self.now))
        self.drift.extend(drifts.never(self.overdue))
        self.drift.extend(drifts.suspensions(self.wanted, self.now))
        self.drift.extend(drifts.clients(self.seen.clients, self.matched, self.slugs, register.all_retired()))
        self.drift.extend(register.drift(self.wanted, self.seen))
        self.drift.extend(drifts.orphans(self.orphaned))
        self.drift.extend(drifts.losses(self.lost))
        self.drift.extend(drifts.units(self.wanted, self.seen))
        self.drift.extend(drifts.restoring(self.restores.failing()))
        self.drift.extend(drifts.restored(self.restores.made))
        self.drift.extend(drifts.drains(self.copier.drain.left))

    def _held(self) -> None:
        """What a VCenter's limits or a restore in place hold back says so; all else that is due just waits its turn."""
        restores = any(one.type == actions.Type.RESTORE for one in self.seen.jobs) or any(self.wanted.restores)
        if not self.wanted.vcenters and not restores:
            return
        held = dispatch.held(self.actions, self.seen.jobs, self.wanted, self.seen, self.now)
        for place, action in enumerate(self.actions):
            reason = held.get(action.address)
            if reason is not None:
                words = f"{action.reason.message}; it waits: {reason.message}"
                reason = dataclasses.replace(reason, message=words)
                self.actions[place] = dataclasses.replace(action, reason=reason)

    def _selection(self, name: str, question: actions.Question | None) -> None:
        if question is None:
            return
        # Nothing is let go by it, so that an approval of it has no end: it answers an alarm for good.
        answers = approvals.consents(self.wanted, self.seen.approvals)
        approved = any(one.digest == question.digest for one in answers)
        self.questions.append(dataclasses.replace(question, approved=approved))
        if not approved:
            self.drift.append(drifts.shrunk(name, question))


def _used(history: histories.History, made: list[actions.Action]) -> dict[tuple[str, int], str]:
    """Copies that due actions read or build on, as (image id, number) -> address: they do not expire meanwhile."""
    result: dict[tuple[str, int], str] = {}
    for action in made:
        if action.state is not actions.State.DUE:
            continue
        if action.image is not None:
            read = action.pieces if action.copy is None else (action.copy,)
            result.update(((action.image, number), action.address) for number in read)
        parent = history.by_id(action.parent)
        for unit in action.candidates if parent is not None else ():
            copy = history.on_unit(parent, unit) if parent is not None else None
            if parent is not None and copy is not None:
                result[parent.id, copy.number] = action.address
    return result


def _by_object(one: actions.Drift) -> tuple[str, str, str]:
    return (one.code, one.object, one.message)


def _order(action: actions.Action) -> tuple[int, dt.datetime, int, str]:
    """Due, Waiting, Blocked, Planned; then by time, type and address."""
    return (_STATES.index(action.state), action.at or _NEVER, _TYPES.index(action.type), action.address)
