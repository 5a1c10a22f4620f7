"""A small simulated world: a catalog, units and sources in memory, in which the actions of a plan are really done.

``World.turn`` is one pass of the loop as the controller makes it: observe, plan, put the configuration in force,
dispatch, do. What happens to a started action is asked of ``fate``. Deletions go through ``expiry.check_delete`` on
what the catalog says at that moment, and ``violations`` looks at the result with rules of its own, written apart from
those under test.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import planning_samples as samples

from reconciler.api import lifecycles
from reconciler.planning import actions, clients, configuration, desired, dispatch, expiry, observed, planner

Fate = Callable[[actions.Action], str]
Key = tuple[str, str]


def succeed(_: actions.Action) -> str:
    """Everything works."""
    return "Succeeded"


@dataclasses.dataclass
class World:
    """The state of everything."""

    now: dt.datetime
    wanted: desired.Desired
    machines: dict[str, tuple[observed.Machine, ...]]
    images: dict[Key, list[observed.Image]] = dataclasses.field(default_factory=dict)
    units: dict[str, str] = dataclasses.field(default_factory=dict)
    reclaimable: dict[str, int] = dataclasses.field(default_factory=dict)
    clients: dict[str, observed.Client] = dataclasses.field(default_factory=dict)
    applied: dict[desired.Key, observed.Applied] = dataclasses.field(default_factory=dict)
    anchors: dict[Key, dt.datetime] = dataclasses.field(default_factory=dict)
    promises: list[observed.Promise] = dataclasses.field(default_factory=list)
    owed: dict[str, lifecycles.StorageLifecyclePolicySpec] = dataclasses.field(default_factory=dict)
    attempts: dict[str, observed.Attempts] = dataclasses.field(default_factory=dict)
    requests: list[observed.Request] = dataclasses.field(default_factory=list)
    in_force: str | None = None
    sequence: int = 0
    #: Copies that were found lost, as (image id, number): only their record could go.
    losses: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    #: Everything that was started: address and outcome.
    done: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    # -- looking -------------------------------------------------------------------------------------------------------

    def observe(self) -> observed.Observed:
        """What the catalog and the sources say now."""
        effective = configuration.effective(self.wanted, self.applied)
        return observed.Observed(
            series=[
                observed.Series(client=client, policy=policy, images=tuple(images))
                for (client, policy), images in sorted(self.images.items())
            ],
            clients=dict(self.clients),
            inventories={
                name: observed.Inventory(machines=machines, seen=self.now) for name, machines in self.machines.items()
            },
            units={name: self._unit(name, item) for name, item in effective.units.items()},
            applied=dict(self.applied),
            in_force=self.in_force,
            anchors=dict(self.anchors),
            promises=tuple(self.promises),
            owed=dict(self.owed),
            requests=tuple(self.requests),
            attempts=dict(self.attempts),
        )

    def _unit(self, name: str, item: Any) -> observed.Unit:
        return observed.Unit(
            name=name,
            state=self.units.get(name, "Online"),
            total_bytes=1000,
            free_bytes=500,
            reclaimable_bytes=self.reclaimable.get(name, 0),
            standalone=item.spec.type == "DedupePool",
        )

    def plan(self, **options: Any) -> actions.Plan:
        """The plan for now."""
        return planner.plan(self.wanted, self.observe(), self.now, **options)

    # -- acting --------------------------------------------------------------------------------------------------------

    def turn(self, fate: Fate = succeed) -> tuple[dispatch.Start, ...]:
        """One pass; what was started."""
        plan = self.plan()
        self._put_in_force(plan)
        plan, seen = self.plan(), self.observe()
        effective = configuration.effective(self.wanted, self.applied)
        load = dispatch.Load(last_used=plan.last_used)
        starts = dispatch.choose(plan.in_state(actions.State.DUE), (), effective, seen, self.now, load=load)
        for start in starts:
            outcome = fate(start.action)
            self.done.append((start.action.address, outcome))
            self._finish(start, outcome, effective)
        return starts

    def settle(self, fate: Fate = succeed, limit: int = 200) -> int:
        """Turn until nothing starts; how many turns that took."""
        for count in range(limit):
            if not self.turn(fate):
                return count
        raise AssertionError(f"no rest after {limit} turns; the last: {self.done[-5:]}")

    def pass_by(self, **passed: float) -> None:
        """Let time pass."""
        self.now += dt.timedelta(**passed)

    def _put_in_force(self, plan: actions.Plan) -> None:
        effective = configuration.effective(self.wanted, self.applied)
        if plan.configuration:
            self.promises += configuration.promises(effective, self.applied, self.sequence)
            seen = self.observe()
            anchors = {
                (policy.name, one.name): configuration.anchor(policy, one, seen, self.now)
                for policy in effective.policies.values()
                for one in policy.spec.schedules
            }
            self.applied = {
                item.key: observed.Applied(object=item, since=self.now, orphaned=item.key in effective.orphaned)
                for item in effective.objects()
            }
            self.anchors, self.in_force = anchors, plan.revision
            self._rename(configuration.renames(effective))
        for policy in sorted(self.machines):
            for machine in self.machines[policy]:
                if machine.id not in self.clients:
                    slug = clients.slug(machine.name, {one.slug for one in self.clients.values()})
                    self.clients[machine.id] = observed.Client(
                        id=machine.id, slug=slug, name=machine.name, source=machine.source, first_seen=self.now
                    )

    def _rename(self, renames: configuration.Renames) -> None:
        all_series = [observed.Series(client=c, policy=p, images=tuple(i)) for (c, p), i in self.images.items()]
        self.images = {(one.client, one.policy): list(one.images) for one in renames.follow(all_series)}
        for old, new in renames.policies.items():
            if old in self.machines:
                self.machines[new] = self.machines.pop(old)

    def _finish(self, start: dispatch.Start, outcome: str, effective: desired.Desired) -> None:
        address = start.action.address
        if outcome == "Succeeded":
            self._do(start, effective)
            self.attempts.pop(address, None)
            return
        before = self.attempts.get(address)
        self.attempts[address] = observed.Attempts(
            failed=(before.failed if before else 0) + 1,
            lost=(before.lost if before else 0) + (outcome == "Lost"),
            last_finished=self.now,
            last_state=outcome,
            message="the disk said no",
        )
        if outcome == "Partial":
            self._back_up(start, effective, "Partial")
        if outcome == "Lost" and start.action.type is actions.Type.EXPIRE:
            self._set(start.action, "Expiring")

    def _do(self, start: dispatch.Start, effective: desired.Desired) -> None:
        action = start.action
        if action.type is actions.Type.BACKUP:
            self._back_up(start, effective, "Complete")
        elif action.type is actions.Type.DUPLICATE:
            self._duplicate(start)
        elif action.type is actions.Type.EXPIRE:
            self._expire(action)
        elif action.type is actions.Type.RECLAIM:
            self.reclaimable.pop(str(action.unit), None)
        else:
            raise AssertionError(f"nobody asked for {action.type}")

    def _back_up(self, start: dispatch.Start, effective: desired.Desired, state: str) -> None:
        action, unit = start.action, str(start.unit)
        key = (str(action.client_id), str(action.policy))
        policy = effective.policies[key[1]]
        spec = effective.lifecycles[policy.spec.lifecycle].spec
        digest = samples.owed_key(spec)
        self.owed[digest] = spec
        self.sequence += 1
        base = action.parent if effective.units[unit].spec.type == "Directory" else None
        if base is not None:
            assert self._holds(key, base, unit), f"{action.address}: base {base} is not on {unit}"
        slot = action.slot
        assert slot is not None
        made = observed.Image(
            id=f"img-{self.sequence}", schedule=str(action.schedule), type=str(action.backup_type), state=state,
            time=self.now, sequence=self.sequence, slot=slot, lifecycle=policy.spec.lifecycle, owed=digest,
            parent=action.parent, size_bytes=100, disks=("disk.img",),
            copies=(observed.Copy(1, str(action.operation), unit, "Complete", self.now, 10, base),),
        )  # fmt: skip
        self.images.setdefault(key, []).append(made)

    def _holds(self, key: Key, image: str, unit: str) -> bool:
        return any(
            one.id == image and any(c.unit == unit and c.state == "Complete" for c in one.copies)
            for one in self.images[key]
        )

    def _duplicate(self, start: dispatch.Start) -> None:
        action, unit = start.action, str(start.unit)
        key, index, image = self._find(str(action.image))
        source = next(copy for copy in image.copies if copy.number == action.copy)
        assert source.state == "Complete", f"{action.address}: read from a copy that is {source.state}"
        directory = configuration.effective(self.wanted, self.applied).units[unit].spec.type == "Directory"
        parent = image.parent
        base = parent if directory and parent is not None and self._holds(key, parent, unit) else None
        copies = [
            copy
            for copy in image.copies
            if (copy.operation, copy.unit) != (action.operation, unit)
            or copy.state in ("Expired", "Expiring", "Complete")
        ]
        held = [copy for copy in copies if copy.unit == unit and copy.state != "Expired"]
        assert not [c for c in held if c.state != "Lost"], f"{action.address}: {unit} holds the image already"
        number = max(copy.number for copy in image.copies) + 1
        copies.append(observed.Copy(number, str(action.operation), unit, "Complete", self.now, 10, base))
        self.images[key][index] = image._replace(copies=tuple(copies))

    def _expire(self, action: actions.Action) -> None:
        key, _, image = self._find(str(action.image))
        fresh = observed.Series(client=key[0], policy=key[1], images=tuple(self.images[key]))
        before = next(copy for copy in image.copies if copy.number == action.copy)
        expiry.check_delete(
            self.wanted, self.observe(), fresh, image.id, before.number, self.now, code=action.reason.code
        )
        self._set(action, "Expired")
        if self.observe().units[before.unit].standalone:
            self.reclaimable[before.unit] = self.reclaimable.get(before.unit, 0) + before.stored_bytes

    def _set(self, action: actions.Action, state: str) -> None:
        key, index, image = self._find(str(action.image))
        copies = tuple(c._replace(state=state) if c.number == action.copy else c for c in image.copies)
        self.images[key][index] = image._replace(copies=copies)

    def _find(self, image: str) -> tuple[Key, int, observed.Image]:
        for key, images in self.images.items():
            for index, one in enumerate(images):
                if one.id == image:
                    return key, index, one
        raise AssertionError(f"no image {image}")

    # -- accidents -----------------------------------------------------------------------------------------------------

    def damage(self, image: str, number: int, state: str) -> None:
        """A copy turns out to be Damaged or Lost."""
        key, index, found = self._find(image)
        if state == "Lost":
            self.losses.add((image, number))
        copies = tuple(
            c._replace(state=state) if c.number == number and c.state == "Complete" else c for c in found.copies
        )
        self.images[key][index] = found._replace(copies=copies)

    # -- judging -------------------------------------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """What no world may come to, whatever was asked: judged from the bare facts."""
        result = []
        for (client, policy), images in self.images.items():
            there = {(i.id, c.unit) for i in images for c in i.copies if c.state not in ("Expired", "Lost")}
            for image in images:
                for copy in image.copies:
                    broken = copy.base is not None and copy.state == "Complete" and (copy.base, copy.unit) not in there
                    if broken and not self._lost(images, str(copy.base), copy.unit):
                        result.append(f"6: {image.id} on {copy.unit} lost its base {copy.base}")
                result += self._uncopied(image)
            complete = [image for image in images if image.state == "Complete"]
            if complete and all(copy.state == "Expired" for copy in complete[-1].copies):
                result.append(f"1: {client} {policy}: nothing is left of {complete[-1].id}")
        return result

    @staticmethod
    def _lost(images: list[observed.Image], id: str, unit: str) -> bool:
        return any(i.id == id and any(c.unit == unit and c.state == "Lost" for c in i.copies) for i in images)

    def _uncopied(self, image: observed.Image) -> list[str]:
        if image.state != "Complete":
            return []
        had = {copy.operation for copy in image.copies}
        gone = {
            copy.operation
            for copy in image.copies
            if copy.state == "Expired" and (image.id, copy.number) not in self.losses
        } - {copy.operation for copy in image.copies if copy.state == "Complete"}
        return [
            f"2: {image.id}: {one.source} went before {one.name} was made"
            for one in self.owed[image.owed].operations
            if one.source in gone and one.name not in had and one.schedules is None
        ]
