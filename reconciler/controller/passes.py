"""One turn of the loop: read the tree, observe, plan, put the configuration in force, start what may start.

``Controller`` holds what outlives a turn. The loop and ``apply`` use the same turn; they differ only in when they stop.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from reconciler.base import crashes, diagnostics, errors, times
from reconciler.catalog import approvals, database, inventories, jobs, leases, requests
from reconciler.controller import bindings, handovers, jumps, notifications, observations, safekeeping, standing
from reconciler.intake import estates
from reconciler.jobs import engines
from reconciler.operations import holding, recovery, reservations, sites
from reconciler.planning import actions, alarms, configuration, desired, dispatch, identities, observed, planner
from reconciler.planning import approvals as consents
from reconciler.storage import opening

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """What a reading of the estate came to."""

    #: The revision's objects, or those in force where the tree has errors.
    wanted: desired.Desired
    problems: tuple[diagnostics.Diagnostic, ...]
    #: Whether the tree itself is good; a bad one leaves the configuration frozen.
    valid: bool


@dataclasses.dataclass(slots=True)
class Tally:
    """What a pass did so far."""

    finished: list[engines.Finished] = dataclasses.field(default_factory=list)
    configuration: int = 0
    _told: int = 0

    def untold(self) -> list[engines.Finished]:
        """What finished since the last time this was asked."""
        fresh, self._told = self.finished[self._told :], len(self.finished)
        return fresh


class Controller:
    """The one process that decides for a catalog. Not thread-safe: one thread turns it."""

    def __init__(
        self,
        *,
        site: sites.Site,
        engine: engines.Engine,
        lease: leases.Lease,
        state: Path,
        estate: Path | None,
        notifier: notifications.Notifier,
    ) -> None:
        self.site = site
        self.engine = engine
        self.estate = estate
        self.tally = Tally()
        #: How many jobs the last turn started.
        self.started = 0
        self._vigil = jumps.Vigil(site.clock)
        #: Units on their way down to their low water mark.
        self._emptying: Mapping[str, int] = {}
        self._lease = lease
        self._state = state
        self._notifier = notifier
        #: The last plan, for as long as nothing changes.
        self._standing: standing.Standing | None = None
        #: What the last turn found.
        self._situation: bindings.Situation | None = None
        self._tree: Tree | None = None
        self._surveyed: dict[str, observed.Inventory] = {}
        #: Whether the catalog has not been told of the last survey yet.
        self._unseen = True
        self._jumps = jumps.JumpWatch(site.clock, site.db)
        #: By unit: the mark of the dump that this process wrote onto it.
        self._dumped: dict[str, int] = {}
        #: Whether one of these shows jobs that were at work.
        self._dumped_at_work = False
        self._checked: set[str] = set()
        #: Holding areas that were freed of what dead jobs left.
        self._cleared: set[Path] = set()
        #: Before this moment of the monotonic clock no dump is made while work goes on.
        self._dump_again = 0.0
        #: By action address: when its window closes and ends the job.
        self._ends: dict[str, dt.datetime] = {}

    # -- reading -----------------------------------------------------------------------------------------------------

    def reload(self) -> Tree:
        """Read the estate and ask the sources anew."""
        now = self.site.clock.now()
        self._tree = read_tree(self.estate, self.site.db)
        effective = effective_now(self._tree.wanted, self.site.db, now)
        self._surveyed = observations.survey(effective, inventories.inventories(self.site.db), now, self.site.db.id)
        self._unseen = True
        self.site.units.declare(observations.declared_units(effective))
        return self._tree

    def plan(self, *, horizon: dt.timedelta | None = None) -> tuple[actions.Plan, desired.Desired, observed.Observed]:
        """Observe and decide, now; nothing is changed."""
        tree = self._tree or self.reload()
        now = self.site.clock.now()
        # Units that only the catalog still holds are looked at too: what lies on them goes on living.
        wanted = effective_now(tree.wanted, self.site.db, now)
        # Asked before anything is read: what is written while this plan is made is news to the next one.
        changes, jump, watching = self.site.db.changes(), self._jumps.message(now), self._vigil.since(now)
        units = observations.look(self.site.db, wanted, self.site.units)
        glance = standing.glance(
            catalog=changes, tree=tree, jump=jump, emptying=self._emptying, surveyed=self._surveyed, units=units
        )
        if horizon is None and self._standing is not None and self._standing.holds(glance, now):
            return self._standing.at(now)
        seen = observations.gather(self.site.db, wanted, self._surveyed, units, jump)
        seen = dataclasses.replace(seen, watching=watching, emptying=self._emptying)
        plan = decide(tree, seen, now, horizon)
        if horizon is None:
            glance = dataclasses.replace(glance, emptying=plan.emptying)
            self._standing = standing.Standing(glance=glance, plan=plan, wanted=wanted, seen=seen)
        self._emptying = plan.emptying
        return plan, wanted, seen

    # -- acting ------------------------------------------------------------------------------------------------------

    def turn(self, *, until: dt.datetime | None = None) -> actions.Plan:
        """Plan, apply the configuration, start what may start; the plan that stands afterwards.

        ``until``: backups whose slot lies later are left alone, so that one pass ends. Raises ``Superseded``.
        """
        # One that was succeeded must not sit there as if it still kept the estate.
        self._lease.require()
        self.tally.finished.extend(self.engine.finished())
        plan, wanted, seen = self.plan()
        changed = False
        if plan.configuration or self._unseen:
            changed = self._put_in_force(plan, wanted)
            if changed:
                plan, wanted, seen = self.plan()
        self._first_uses(wanted)
        if self._settle(seen, wanted):
            plan, wanted, seen = self.plan()
        if plan.releases:
            # Before any copy goes, so that a process that dies half way leaves none that is neither held nor let go.
            approvals.release(
                self.site.db, plan.releases, self.site.clock.now(), self.site.actor, fence=self._lease.token
            )
            crashes.passing("approval.recorded")
            plan, wanted, seen = self.plan()
            changed = True
        # Before any job runs: once a job was cancelled, its unit must not change for what happened before it.
        self._dump_at_work(changed)
        situation = bindings.Situation(site=self.site, wanted=wanted, seen=seen, fence=self._lease.token)
        self._situation = situation
        self.started = 0
        load = dispatch.Load(last_used=plan.last_used)
        starts = dispatch.choose(startable(plan, until), seen.jobs, wanted, seen, plan.now, load=load)
        for _, together in itertools.groupby(starts, key=lambda one: one.batch or one.action.address):
            self._start(situation, list(together))
        return plan

    def _start(self, situation: bindings.Situation, starts: list[dispatch.Start]) -> None:
        live = self.engine.live()
        tasks = [bindings.task(situation, start) for start in starts if start.action.address not in live]
        self._ends.update({one.action.address: end for one in starts if (end := one.action.stop_at) is not None})
        if len(tasks) > 1:
            self.started += len(self.engine.start_batch(tasks))
            return
        for task in tasks:
            try:
                self.engine.start(task)
                self.started += 1
            except (jobs.AddressTaken, jobs.CopyLeaving) as error:
                # The world moved between observing and starting; the next turn plans from what is there then.
                _log.info("not started: %s", error)

    def stop_overruns(self) -> None:
        """Stop the work whose window has closed (``overrun: Stop``)."""
        now = self.site.clock.now()
        over = {address: self._ends.pop(address) for address, end in list(self._ends.items()) if end <= now}
        for job in jobs.live(self.site.db) if over else ():
            if job.address in over:
                words = f"its window closed at {times.show_minutes(over[job.address])}"
                self.engine.cancel(job.id, engines.Failure(code=engines.WINDOW_CLOSED, message=words))

    def _put_in_force(self, plan: actions.Plan, wanted: desired.Desired) -> bool:
        """Whether decisions may come out otherwise now."""
        now = self.site.clock.now()
        if plan.configuration:
            inventories.apply_configuration(
                self.site.db,
                revision=plan.revision,
                objects=[item for item in wanted.objects() if item.key not in wanted.orphaned],
                changes=plan.configuration,
                now=now,
                actor=self.site.actor,
                fence=self._lease.token,
            )
            crashes.passing("configuration.recorded")
            for question in plan.questions:
                if question.what == "Configuration" and question.approved:
                    approvals.spend(self.site.db, question.digest, now, self.site.actor)
            self.tally.configuration += len(plan.configuration)
        changed = bool(plan.configuration)
        claimed = identities.contested(wanted, self._surveyed)
        for policy, inventory in self._surveyed.items():
            if inventory.unreachable is None:
                seen = inventory.machines
                changed |= inventories.see_machines(self.site.db, policy, seen, inventory.seen, claimed)
        manifests = {name: one for name, one in wanted.legal_holds.items() if not wanted.is_orphaned(one.kind, name)}
        changed |= inventories.settle_holds(self.site.db, manifests, now, self.site.actor)
        self._unseen = False
        return changed

    def _first_uses(self, wanted: desired.Desired) -> None:
        """Give a unit its identity the first time it is in force and its folder is there."""
        known = inventories.known_units(self.site.db)
        for name, declared in observations.declared_units(wanted).items():
            if name in known or wanted.is_orphaned("StorageUnit", name):
                continue
            look = opening.look(declared, known_id=None, owner=self.site.db.id)
            if look.state == "Offline":
                continue
            try:
                identity = look.identity or opening.prepare(declared, self.site.db.id)
            except errors.UnitError as error:
                _log.warning("%s", error)
                continue
            inventories.learn_unit(
                self.site.db,
                inventories.KnownUnit(name=name, id=identity.id, type=identity.type, path=str(declared.path)),
                self.site.clock.now(),
                self.site.actor,
            )

    def _settle(self, seen: observed.Observed, wanted: desired.Desired) -> bool:
        """Finish what dead processes left, and compare each unit with the catalog once; whether anything moved."""
        for area in holding.areas(wanted.policies.values()) - self._cleared:
            reservations.sweep(area)
            self._cleared.add(area)
        online = frozenset(name for name, unit in seen.units.items() if unit.state == "Online")
        known = frozenset(inventories.known_units(self.site.db)) & online
        moved = recovery.settle(self.site, known)
        for name in known - self._checked:
            recovery.sweep(self.site, name)
            moved += recovery.missing_copies(self.site, name)
            self._checked.add(name)
        self._checked &= known
        return bool(moved)

    # -- ending a pass -----------------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether no job of this controller is alive."""
        return not self.engine.live()

    def answer_requests(self, plan: actions.Plan) -> None:
        """Finish the backup requests that ``plan`` knew of and whose work is over, one way or the other."""
        still_open = {request for action in plan.actions for request in (action.request, *action.requests)}
        # What came after the turn looked is for the next turn: it stands in no action yet.
        known = {one.id for one in self._situation.seen.requests} if self._situation is not None else set()
        for row in requests.pending(self.site.db, "Backup"):
            if row.id in known and row.id not in still_open:
                requests.finish(self.site.db, row.id, handovers.backup_answer(self.site.db, row), self.site.clock.now())

    def answer_reloads(self, asked: Iterable[requests.RequestRow]) -> None:
        """Finish requests to look again: the turn that follows them has."""
        for row in asked:
            if row.kind == "Reload":
                requests.finish(self.site.db, row.id, {"message": "looked again"}, self.site.clock.now())

    def tell(self, plan: actions.Plan) -> None:
        """Let somebody hear of the alarms that stand after the turn that made ``plan``; waits for nobody."""
        if self._situation is not None:
            valid = self._tree is None or self._tree.valid
            self._notifier.tell(alarms.alarms(plan, self._situation.wanted, self._situation.seen, valid=valid))

    def dump(self) -> None:
        """A compact copy of the catalog onto every unit that is online and has not the present one."""
        tree = self._tree or self.reload()
        wanted = effective_now(tree.wanted, self.site.db, self.site.clock.now())
        idle, before = self.idle(), dict(self._dumped)
        # How a job ends is no change worth a dump by itself, but it shall not stand there as Running for ever.
        safekeeping.write_dumps(self.site.db, wanted, self._dumped, anew=idle and self._dumped_at_work)
        if idle:
            self._dumped_at_work = False
        elif self._dumped != before:
            self._dumped_at_work = True

    def _dump_at_work(self, changed: bool) -> None:
        """A dump between the jobs of a pass; a large catalog's takes long, and work goes on four fifths of the time."""
        began = time.monotonic()
        if changed or began >= self._dump_again:
            self.dump()
            self._dump_again = time.monotonic() + 4 * (time.monotonic() - began)


def startable(plan: actions.Plan, until: dt.datetime | None) -> tuple[actions.Action, ...]:
    """The due actions; with ``until`` without the backups whose slot lies later, so that one pass ends."""
    return tuple(
        action
        for action in plan.in_state(actions.State.DUE)
        if until is None or action.type is not actions.Type.BACKUP or action.slot is None or action.slot <= until
    )


def effective_now(wanted: desired.Desired, db: database.Database | None, now: dt.datetime) -> desired.Desired:
    """The desired state that decisions are made from, with the approvals that the manifests and the catalog give."""
    given = approvals.approvals(db) if db is not None else ()
    consenting = consents.consenting(wanted, given, now)
    return configuration.effective(consenting, inventories.applied(db) if db is not None else {})


def read_tree(estate: Path | None, db: database.Database | None) -> Tree:
    """Read an estate; without one, or where it has errors, what is in force stands."""
    applied = inventories.applied(db) if db is not None else {}
    in_force = inventories.in_force(db) if db is not None else None
    kept = desired.gather(in_force or "none", [item.object for item in applied.values() if not item.orphaned])
    if estate is None:
        return Tree(wanted=kept, problems=(), valid=True)
    loaded = estates.load(estate)
    if loaded.desired is None:
        return Tree(wanted=kept, problems=loaded.diagnostics, valid=False)
    return Tree(wanted=loaded.desired, problems=loaded.diagnostics, valid=True)


def decide(tree: Tree, seen: observed.Observed, now: dt.datetime, horizon: dt.timedelta | None = None) -> actions.Plan:
    """``planner.plan`` with the tree's own problems in front."""
    plan = planner.plan(tree.wanted, seen, now, **({"horizon": horizon} if horizon else {}))
    return dataclasses.replace(plan, problems=(*tree.problems, *plan.problems))
