"""The whole planner over whole lives: manifests edited, jobs failing and torn, units and clocks going astray.

A world of two policies is led by Hypothesis through edits, accidents and time. After every step the plan is the same
when it is made again, every refusal has a reason and every wait an end, and no never is violated; whenever the world
has come to rest, what ``looks`` asks holds too. Every deletion is judged by ``witnesses`` at its moment. Some images are
sick: no proof finds them good, and one that is must stay beside them.
Here are sixty lives of thirty steps; ``hack/soak planner`` leads it through as many steps as you like, 50,000 unless told.
"""

from __future__ import annotations

import collections
import datetime as dt
import re
from typing import Any

import edits
import estates
import hypothesis
import looks
import planning_samples as samples
import witnesses
import worlds
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reconciler.planning import actions, configuration, desired

MACHINES = tuple(samples.machine(f"diskimages:/srv/oblVM{number}") for number in (1, 2, 3))
OUTCOMES = ("Failed", "Lost", "Partial", "Cancelled", "Stopped", "Torn", "Unheard", "SourceDamaged", "Running")
#: What happened over all examples of this process, by kind.
TALLY: collections.Counter[str] = collections.Counter()

hours = st.sampled_from((0.02, 0.5, 3.0, 11.0, 24.0, 24.0, 25.0, 60.0, 240.0))
units = st.sampled_from(estates.UNITS)
picks = st.integers(0, 1000)
fates = st.lists(st.sampled_from((*OUTCOMES, "Succeeded", "Succeeded", "Succeeded")), max_size=8)


class Life(RuleBasedStateMachine):
    """One world."""

    def __init__(self) -> None:
        super().__init__()
        self.world = worlds.World(now=samples.NOW, wanted=samples.estate(), machines={})
        #: Violations that an accident brought, not a decision.
        self.known: set[str] = set()
        self.gone: list[Any] = []
        #: Ids of images that no proof finds good.
        self.sick: set[str] = set()

    @initialize(wanted=estates.estates(), watched=st.integers(1, 3), age=st.sampled_from((0, 3, 9)))
    def begin(self, wanted: desired.Desired, watched: int, age: int) -> None:
        """An estate is applied for the first time, and lives for some days."""
        self.world.wanted = wanted
        self.world.machines = {"gold": MACHINES[:watched], "silver": MACHINES[:2]}
        self.world.turn()
        self._days(age)

    # -- time and work -------------------------------------------------------------------------------------------------

    @rule(hours=hours, outcomes=fates)
    def live(self, hours: float, outcomes: list[str]) -> None:
        """Time passes, and what falls due is done, not always well."""
        self.world.pass_by(hours=hours)
        self._settle(outcomes)

    @rule(outcomes=fates, pick=picks, look=st.sampled_from(looks.LOOKS))
    def night(self, outcomes: list[str], pick: int, look: looks.Look) -> None:
        """A day on, with its troubles, and then rest."""
        self.world.pass_by(hours=24)
        self._settle(outcomes)
        self.rest(pick, look)

    @rule(days=st.integers(2, 9), pick=picks, look=st.sampled_from(looks.LOOKS))
    def days(self, days: int, pick: int, look: looks.Look) -> None:
        """Days in which nothing happens."""
        self._days(days)
        self.rest(pick, look)

    def _days(self, days: int) -> None:
        for _ in range(days):
            self.world.pass_by(hours=24)
            self._settle([])

    @rule(outcomes=fates)
    def turn(self, outcomes: list[str]) -> None:
        """One pass."""
        self.world.turn(self._fate(outcomes))

    @precondition(lambda self: self.world.running)
    @rule(outcome=st.sampled_from(("Succeeded", "Failed", "Torn", "Unheard", "Cancelled")))
    def jobs_end(self, outcome: str) -> None:
        """What runs ends."""
        self.world.end_jobs(outcome)

    @rule(pick=picks, look=st.sampled_from(looks.LOOKS))
    def rest(self, pick: int, look: looks.Look) -> None:
        """Everything comes to rest, and is looked at closely."""
        self.world.end_jobs()
        self._settle([])
        plan = self.world.plan()
        due = [one for one in plan.in_state(actions.State.DUE) if not self._stuck(one)]
        assert not due, f"not at rest: {due}"
        assert not plan.configuration or plan.problems
        TALLY[f"look {look.__name__}"] += 1
        look(self.world, pick)

    @precondition(lambda self: self.world.images)
    @rule(pick=picks, count=st.integers(0, 4), hours=hours)
    def images_are_sick(self, pick: int, count: int, hours: float) -> None:
        """What proofs will find of some images; of none from now on."""
        known = sorted({image for image, _ in self.world.copies()}, key=lambda one: int(one.removeprefix("img-")))
        self.sick = set(known[-count - pick % 2 :][:count]) if count else set()
        self.live(hours, [])

    @precondition(lambda self: self.world.images)
    @rule(pick=picks)
    def restore_begins(self, pick: int) -> None:
        """Somebody reads a copy, until everything rests."""
        copies = self.world.copies()
        if copies:
            image, number = copies[pick % len(copies)]
            found = self.world.find(image)[2]
            if any(copy.number == number and copy.state == "Complete" for copy in found.copies):
                self.world.reading.add((image, number))

    @rule(back=st.sampled_from((0.5, 30.0, 100.0)))
    def clock_goes_back(self, back: float) -> None:
        """The wall clock is set back, and nobody says so."""
        self.world.pass_by(hours=-back)

    @rule(days=st.sampled_from((-40, 40)))
    def clock_jumps(self, days: int) -> None:
        """The wall clock jumps, and that is seen: expiry waits until it is right again."""
        world = self.world
        if world.jump is None:
            world.jump = "the clock jumped; expiry waits until it is right again"
            world.pass_by(days=days)
            world.settle()
            world.pass_by(days=-days)
            world.jump = None

    # -- accidents -----------------------------------------------------------------------------------------------------

    @rule(unit=units, state=st.sampled_from(("Offline", "ReadOnly", "Online", "Online")))
    def unit_changes(self, unit: str, state: str) -> None:
        """A unit goes away, or comes back."""
        self.world.units[unit] = state

    @rule(unit=units, share=st.sampled_from((0, 0, 90, 99)))
    def unit_fills(self, unit: str, share: int) -> None:
        """Other people's bytes come and go."""
        self.world.foreign[unit] = share * worlds.UNIT_BYTES // 100

    @precondition(lambda self: self.world.images)
    @rule(pick=picks, state=st.sampled_from(("Damaged", "Lost")), outcomes=fates)
    def copy_is_damaged(self, pick: int, state: str, outcomes: list[str]) -> None:
        """A copy is found damaged or missing."""
        copies = self.world.copies()
        if copies:
            self.world.damage(*copies[pick % len(copies)], state)
            self.known |= set(self.world.violations())
            self.world.turn(self._fate(outcomes))

    @rule(policy=st.sampled_from(("gold", "silver")), lost=st.booleans())
    def source_is_silent(self, policy: str, lost: bool) -> None:
        """A source stops answering, or answers again."""
        (self.world.unreachable.add if lost else self.world.unreachable.discard)(policy)

    @rule(policy=st.sampled_from(("gold", "silver")), count=st.integers(0, 3))
    def machines_change(self, policy: str, count: int) -> None:
        """Machines come and go."""
        if policy in self.world.machines:
            self.world.machines[policy] = MACHINES[:count]

    @rule(spare=st.sampled_from((-1, 0, 0, 3)), outcomes=fates)
    def what_is_held_is_approved(self, spare: int, outcomes: list[str]) -> None:
        """Somebody approves the destructive part, for too few copies, enough, or more: it goes whole or not at all."""
        world = self.world
        if world.jump is not None or world.running:
            return
        held = {(item.image, item.copy) for item in world.plan().destruction.items}
        allowed = world.approve(spare)
        TALLY["approved"] += allowed
        plan = world.plan()
        still = {(item.image, item.copy) for item in plan.destruction.items if not plan.destruction.approved}
        assert not allowed or not still, f"approved, and held all the same: {still}"
        assert spare >= 0 or still == held
        self._settle(outcomes)

    @rule(policy=st.sampled_from(("gold", "silver")), pick=st.integers(0, 2))
    def request(self, policy: str, pick: int) -> None:
        """Somebody asks for a backup."""
        self.world.ask(policy, MACHINES[pick].id)

    # -- rulings -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.images)
    @rule(pick=picks, word=st.sampled_from(("hold", "hold", "release", "order", "order", "take back", "waive")))
    def somebody_rules(self, pick: int, word: str) -> None:
        """Somebody holds an image, orders one to go, takes that back, or waives what a copy owes."""
        world, copies = self.world, self.world.copies()
        image, number = copies[pick % len(copies)] if copies else ("none", 0)
        (key, _, found) = world.find(image)
        TALLY[f"ruled {word}"] += 1
        if word == "hold" and any(copy.state in ("Complete", "Expiring") for copy in found.copies):
            world.take_back(image)
            world.end_ruling("Expire", image)
            world.rule("Hold", image)
        elif word == "release":
            for one in [one for one in world.rulings if one.kind == "Hold"][:1]:
                world.end_ruling("Hold", one.object)
        elif word == "order" and not witnesses.held(world, key[0], found):
            world.rule("Expire", image, dt.timedelta(days=2) if pick % 2 else None)
        elif word == "take back":
            for one in [one for one in world.rulings if one.kind == "Expire"][:1]:
                world.end_ruling("Expire", one.object)
                world.approved_orders.discard(one.object)
                world.take_back(one.object)
        elif word == "waive":
            world.rule("Waive", f"{image}/{number}")

    @rule(pick=st.integers(0, 2), back=st.booleans())
    def client_is_retired(self, pick: int, back: bool) -> None:
        """A machine is gone for good, or after all it is not."""
        world, client = self.world, MACHINES[pick].id
        if back:
            world.end_ruling("Retire", client)
        elif not any(machine.id == client for machines in world.machines.values() for machine in machines):
            world.rule("Retire", client)
            world.retired.add(client)

    @rule(name=st.sampled_from(("case-1", "case-2")), pick=st.integers(0, 2), span=st.sampled_from((None, 3, 30)))
    def law_holds(self, name: str, pick: int, span: int | None) -> None:
        """A legal hold is applied, or widened."""
        since = None if span is None else self.world.now - dt.timedelta(days=span)
        self._apply(edits.legal_hold(self.world.wanted, name, MACHINES[pick].name, since))

    @rule(name=st.sampled_from(("case-1", "case-2")))
    def law_releases(self, name: str) -> None:
        """A legal hold is released by its manifest."""
        self._apply(edits.release_hold(self.world.wanted, name, self.world.now))

    # -- edits ---------------------------------------------------------------------------------------------------------

    @rule(lifecycle=estates.lifecycles())
    def lifecycle_is_replaced(self, lifecycle: Any) -> None:
        """Another lifecycle under the same name."""
        self._apply(edits.put(self.world.wanted, lifecycle))

    @rule(pick=picks, retention=st.sampled_from(estates.RETENTIONS))
    def retention_changes(self, pick: int, retention: dict[str, Any]) -> None:
        """One operation keeps longer or shorter."""
        self._apply(edits.retention(self.world.wanted, pick, retention))

    @rule(pick=picks, more=estates.operations())
    def operation_is_added(self, pick: int, more: dict[str, Any]) -> None:
        """One more copy is owed."""
        self._apply(edits.add_operation(self.world.wanted, pick, more))

    @rule(pick=picks)
    def operation_is_removed(self, pick: int) -> None:
        """A leaf of the tree goes."""
        self._apply(edits.remove_operation(self.world.wanted, pick))

    @rule(pick=picks)
    def operation_is_renamed(self, pick: int) -> None:
        """An operation gets another name."""
        self._apply(edits.rename_operation(self.world.wanted, pick))

    @rule(items=estates.policies())
    def policies_are_replaced(self, items: list[Any]) -> None:
        """Other schedules; perhaps one policy more or less."""
        self._apply(edits.put(edits.drop(self.world.wanted, "BackupPolicy"), *items))

    @rule(pick=picks, word=st.sampled_from(("policy", "schedule")))
    def name_changes(self, pick: int, word: str) -> None:
        """A policy or a schedule gets another name, which it says."""
        changed = (edits.rename_policy if word == "policy" else edits.rename_schedule)(self.world.wanted, pick)
        self._apply(changed)

    @rule(unit=units)
    def unit_is_renamed(self, unit: str) -> None:
        """A unit gets another name; what names it follows."""
        self._apply(edits.rename_unit(self.world.wanted, unit))

    @rule(pick=picks, days=st.sampled_from((-1, 2, 30)))
    def policy_is_suspended(self, pick: int, days: int) -> None:
        """A policy pauses, or goes on."""
        self._apply(edits.suspend(self.world.wanted, pick, self.world.now, days))

    @rule(pick=picks, change=st.sampled_from(estates.UNIT_CHANGES))
    def unit_is_edited(self, pick: int, change: dict[str, Any]) -> None:
        """A unit's manifest changes."""
        self._apply(edits.unit(self.world.wanted, pick, change))

    @rule(pick=picks)
    def object_is_removed(self, pick: int) -> None:
        """A manifest disappears."""
        objects = list(self.world.wanted.objects())
        if objects:
            chosen = objects[pick % len(objects)]
            if chosen.kind in ("BackupPolicy", "MediaServer", "BackupWindow", "StorageUnit", "LegalHold"):
                self.gone.append(chosen)
                self._apply(edits.without(self.world.wanted, chosen))

    @precondition(lambda self: self.gone)
    @rule()
    def objects_come_back(self) -> None:
        """What disappeared is there again."""
        back, self.gone = self.gone, []
        known = {item.key for item in self.world.wanted.objects()}
        self._apply(edits.put(self.world.wanted, *(item for item in back if item.key not in known)))

    @rule(item=st.one_of(estates.restores(), estates.restores(), estates.service_levels()), gone=st.booleans())
    def something_is_promised_or_restored(self, item: Any, gone: bool) -> None:
        """A Restore or a ServiceLevel is written, changed, or taken away."""
        known = {one.key for one in self.world.wanted.objects()}
        if not gone:
            self._apply(edits.put(self.world.wanted, item))
        elif item.key in known:
            self._apply(edits.without(self.world.wanted, item))

    @rule(share=st.sampled_from((2, 100)), hours=hours)
    def half_the_tree_is_gone(self, share: int, hours: float) -> None:
        """By accident; it is brought back after a while. Nothing changes meanwhile."""
        world, before = self.world, self.world.wanted
        applied = dict(world.applied)
        if configuration.changes(before, applied):
            return
        world.wanted = edits.fewer(before, share)
        if configuration.guard(world.wanted, applied) is not None:
            TALLY["guarded"] += 1
            world.pass_by(hours=hours)
            world.settle()
            assert world.applied == applied
        world.wanted = before

    # -- what holds after every step -----------------------------------------------------------------------------------

    @invariant()
    def nothing_is_violated(self) -> None:
        """No never, whatever happened."""
        TALLY["steps"] += 1
        fresh = set(self.world.violations()) - self.known
        assert not fresh, sorted(fresh)

    @invariant()
    def plans_are_reasoned(self) -> None:
        """A plan made twice is the same; refusals have reasons, waits have ends, what comes first is in the plan."""
        plan = self.world.plan()
        assert plan == self.world.plan()
        places = samples.by_address(plan)
        for place, action in places.items():
            assert re.fullmatch(r"[A-Z][A-Za-z]+", action.reason.code), action
            assert action.reason.message and not action.reason.message.endswith("."), action
            missing = [one for one in action.after if one not in places]
            assert not missing, f"{place} waits for {missing}, which nobody does"
            if action.state is actions.State.WAITING:
                assert action.after or (action.at is not None and action.at > plan.now) or self._busy(action), action
            TALLY[f"{action.type} {action.state} {action.reason.code}"] += 1

    # -- ways ----------------------------------------------------------------------------------------------------------

    def _settle(self, outcomes: list[str]) -> None:
        self.world.settle(self._fate(outcomes))

    def _fate(self, outcomes: list[str]) -> worlds.Fate:
        left = list(outcomes)

        def fate(action: actions.Action) -> str:
            outcome = left.pop(0) if left else "Succeeded"
            if action.proof is not None and action.image in self.sick:
                outcome = "Failed"
            if outcome == "Partial" and action.type is not actions.Type.BACKUP:
                outcome = "Failed"
            TALLY[f"done {action.type} {outcome}"] += 1
            return outcome

        return fate

    def _apply(self, wanted: desired.Desired | None) -> None:
        if wanted is not None:
            self.world.wanted = wanted
            self.world.turn()
            self.known |= {one for one in self.world.violations() if one.startswith("2")}

    @staticmethod
    def _busy(action: actions.Action) -> bool:
        return action.reason.code == "Busy"

    def _stuck(self, action: actions.Action) -> bool:
        return False


def test_lives() -> None:
    run_state_machine_as_test(
        Life, settings=hypothesis.settings(max_examples=45, stateful_step_count=30, deadline=None)
    )
