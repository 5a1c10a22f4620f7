"""A small simulated world: a catalog, units and sources in memory, in which the actions of a plan are really done.

``World.turn`` is one pass of the loop as the controller makes it: settle what dead processes left, observe, plan, put
the configuration in force, dispatch, do. What happens to a started action is asked of ``fate``: it ends in the state
that is named, or is torn in the middle (``Torn``), has done its work without anybody hearing of it (``Unheard``), or
goes on (``Running``). Deletions go through ``expiry.check_delete`` on what the catalog says at that moment; then
``witnesses`` judges each of them, and what came of it, by rules of its own.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import planning_samples as samples
import witnesses

from reconciler.api import lifecycles
from reconciler.base import errors
from reconciler.planning import (
    actions,
    clients,
    configuration,
    desired,
    dispatch,
    duplications,
    expiry,
    histories,
    holds,
    observed,
    planner,
    promises,
    verifications,
)

Fate = Callable[[actions.Action], str]
Key = tuple[str, str]

#: Bytes of each unit, and of each copy.
UNIT_BYTES, COPY_BYTES = 4000, 10
#: States in which a copy is written anew under its number.
_REWRITTEN = ("Damaged", "Lost", "Writing")
#: Outcomes of which the catalog hears only that the worker is gone.
_DEATHS = ("Lost", "Stopped", "Torn", "Unheard")
#: Work that leaves something behind although it failed.
_TELLING = (actions.Type.EXPIRE, actions.Type.VERIFY, actions.Type.RESTORE)


def succeed(_: actions.Action) -> str:
    """Everything works."""
    return "Succeeded"


class Job(NamedTuple):
    """A job that has begun."""

    start: dispatch.Start
    #: Series that it works on; None for work on a unit.
    key: Key | None
    #: Backup: the image as it will be committed.
    draft: observed.Image | None
    #: Duplicate: the copy that is written; Expire: the one that goes.
    number: int | None


@dataclasses.dataclass
class World:
    """The state of everything."""

    now: dt.datetime
    wanted: desired.Desired
    machines: dict[str, tuple[observed.Machine, ...]]
    images: dict[Key, list[observed.Image]] = dataclasses.field(default_factory=dict)
    units: dict[str, str] = dataclasses.field(default_factory=dict)
    reclaimable: dict[str, int] = dataclasses.field(default_factory=dict)
    #: Bytes of other people on a unit.
    foreign: dict[str, int] = dataclasses.field(default_factory=dict)
    #: Units with a size of their own.
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    emptying: dict[str, int] = dataclasses.field(default_factory=dict)
    clients: dict[str, observed.Client] = dataclasses.field(default_factory=dict)
    applied: dict[desired.Key, observed.Applied] = dataclasses.field(default_factory=dict)
    anchors: dict[Key, dt.datetime] = dataclasses.field(default_factory=dict)
    promises: list[observed.Promise] = dataclasses.field(default_factory=list)
    approvals: list[observed.Approval] = dataclasses.field(default_factory=list)
    releases: list[observed.Release] = dataclasses.field(default_factory=list)
    holds: list[observed.Hold] = dataclasses.field(default_factory=list)
    rulings: list[observed.Ruling] = dataclasses.field(default_factory=list)
    owed: dict[str, lifecycles.StorageLifecyclePolicySpec] = dataclasses.field(default_factory=dict)
    attempts: dict[str, observed.Attempts] = dataclasses.field(default_factory=dict)
    requests: list[observed.Request] = dataclasses.field(default_factory=list)
    in_force: str | None = None
    sequence: int = 0
    #: Why expiry waits, while the clock is not to be trusted.
    jump: str | None = None
    #: Policies whose source does not answer.
    unreachable: set[str] = dataclasses.field(default_factory=set)
    #: When each pool was last scrubbed.
    proven: dict[str, dt.datetime] = dataclasses.field(default_factory=dict)
    #: Copies that restores read, by image id and number.
    reading: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    #: The series as the plan of this turn saw them.
    planned: dict[Key, observed.Series] = dataclasses.field(default_factory=dict)
    running: list[Job] = dataclasses.field(default_factory=list)
    #: What a copy that is written anew was before, by image id and number.
    fallbacks: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    #: Backups that their unit has committed and the catalog has not heard of.
    unheard: list[Job] = dataclasses.field(default_factory=list)
    #: What each lifecycle said, and from which sequence number on: the witnesses' own memory of promises.
    eras: dict[str, list[witnesses.Era]] = dataclasses.field(default_factory=dict)
    #: What was approved, by client, lifecycle and operation: up to which sequence number, and which eras it ends.
    consented: dict[tuple[str, str, str], list[witnesses.Consented]] = dataclasses.field(default_factory=dict)
    #: Orders that an image goes which somebody approved: the witnesses' own memory.
    approved_orders: set[str] = dataclasses.field(default_factory=set)
    #: Images that such an order let go of at any time.
    ordered: set[str] = dataclasses.field(default_factory=set)
    #: What legal holds keep, by name, as the witnesses remember it.
    lawful: dict[str, witnesses.Lawful] = dataclasses.field(default_factory=dict)
    #: Clients that were retired at any time.
    retired: set[str] = dataclasses.field(default_factory=set)
    #: Copies that were found lost, as (image id, number): only their record could go.
    losses: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    #: The last result of each proof, by image id, copy number and kind.
    results: dict[tuple[str, int, str], observed.Verification] = dataclasses.field(default_factory=dict)
    #: Restores of manifests that were begun, by name and digest.
    restores: dict[tuple[str, str], observed.Restoring] = dataclasses.field(default_factory=dict)
    #: Copies that jobs of this pass found damaged, as (image id, number).
    struck: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    #: Everything that was started: address and outcome.
    done: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    # -- looking -------------------------------------------------------------------------------------------------------

    def observe(self) -> observed.Observed:
        """What the catalog and the sources say now."""
        effective = configuration.effective(self.wanted, self.applied)
        return observed.Observed(
            series=[self.series(key) for key in sorted(self.images)],
            clients=dict(self.clients),
            inventories={name: self._inventory(name) for name in self.machines},
            units={name: self._unit(name, item) for name, item in effective.units.items()},
            applied=dict(self.applied),
            in_force=self.in_force,
            anchors=dict(self.anchors),
            promises=tuple(self.promises),
            approvals=tuple(self.approvals),
            releases=tuple(self.releases),
            holds=tuple(self.holds),
            rulings=tuple(self.rulings),
            owed=dict(self.owed),
            requests=tuple(self.requests),
            jobs=tuple(self._job(index, one) for index, one in enumerate(self.running)),
            attempts=dict(self.attempts),
            clock_jump=self.jump,
            emptying=dict(self.emptying),
            last_used=self._last_used(),
            verifications=self.found(),
            trials=self.trials(),
            restores=tuple(self.restores.values()),
        )

    def found(self) -> dict[str, tuple[observed.Verification, ...]]:
        """The last results by image id; of contents as long as their copy is there, else as long as their image is."""
        result: dict[str, tuple[observed.Verification, ...]] = {}
        for one in self.results.values():
            if not self._outlived(one):
                result[one.image] = (*result.get(one.image, ()), one)
        return result

    def trials(self) -> dict[tuple[str, str], tuple[observed.Trial, ...]]:
        """The last of the other results by series: one of each operation and kind."""
        last: dict[tuple[tuple[str, str], str, str], observed.Verification] = {}
        for one in sorted(self.results.values(), key=lambda one: (one.at <= self.now + histories.AHEAD, one.at)):
            if self._outlived(one) and (one.kind, one.state) != (verifications.CONTENT, "Failed"):
                series, _, image = self.find(one.image)
                operation = next(copy.operation for copy in image.copies if copy.number == one.copy)
                last[series, operation, one.kind] = one
        result: dict[tuple[str, str], tuple[observed.Trial, ...]] = {}
        for (series, operation, _), one in last.items():
            result[series] = (*result.get(series, ()), observed.Trial(operation=operation, found=one))
        return result

    def _outlived(self, found: observed.Verification) -> bool:
        left = {copy.number for copy in self.find(found.image)[2].copies if copy.state != "Expired"}
        return found.copy not in left if found.kind == verifications.CONTENT else not left

    def _last_used(self) -> dict[str, dt.datetime]:
        result: dict[str, dt.datetime] = {}
        for copy in (copy for images in self.images.values() for image in images for copy in image.copies):
            result[copy.unit] = max(result.get(copy.unit, copy.created_at), copy.created_at)
        return result

    def series(self, key: Key) -> observed.Series:
        """One series, with what running jobs use marked busy."""
        images = self.images.get(key, [])
        used = {(job.start.action.image, job.start.action.copy) for job in self.running if not _is_expiry(job)}
        used |= self.reading | {
            (job.start.action.image, number) for job in self.running for number in job.start.action.pieces
        }
        parents = {(str(job.start.action.parent), self._place(job)) for job in self.running if job.start.action.parent}
        if any(used) or parents:
            images = [
                image._replace(
                    copies=tuple(
                        copy._replace(busy=(image.id, copy.unit) in parents or (image.id, copy.number) in used)
                        for copy in image.copies
                    )
                )
                for image in images
            ]
        return observed.Series(client=key[0], policy=key[1], images=tuple(images))

    def _inventory(self, policy: str) -> observed.Inventory:
        silent = ("SourceGone", "the folder does not answer") if policy in self.unreachable else None
        return observed.Inventory(machines=self.machines[policy], seen=self.now, unreachable=silent)

    def _unit(self, name: str, item: Any) -> observed.Unit:
        used = sum(
            copy.stored_bytes
            for images in self.images.values()
            for image in images
            for copy in image.copies
            if copy.unit == name and copy.state in observed.PRESENT
        )
        reclaimable = self.reclaimable.get(name, 0)
        size = self.sizes.get(name, UNIT_BYTES)
        return observed.Unit(
            name=name,
            state=self.units.get(name, "Online"),
            total_bytes=size,
            free_bytes=max(0, size - used - reclaimable - self.foreign.get(name, 0)),
            used_bytes=used + reclaimable,
            reclaimable_bytes=reclaimable,
            standalone=item.spec.type == "DedupePool",
            proven=self.proven.get(name),
        )

    def _job(self, index: int, job: Job) -> observed.Job:
        action = job.start.action
        return observed.Job(
            id=f"job-{index}", address=action.address, type=action.type.value, state="Running", policy=action.policy,
            client=action.client_id, image=action.image, unit=job.start.unit, source_unit=action.source_unit,
            media_server=job.start.media_server, since=self.now, expected_bytes=action.adds,
        )  # fmt: skip

    def plan(self, **options: Any) -> actions.Plan:
        """The plan for now."""
        return planner.plan(self.wanted, self.observe(), self.now, **options)

    def effective(self) -> desired.Desired:
        """What decisions are made from."""
        return configuration.effective(self.wanted, self.applied)

    # -- acting --------------------------------------------------------------------------------------------------------

    def turn(self, fate: Fate = succeed) -> tuple[dispatch.Start, ...]:
        """One pass; what was started."""
        self.recover()
        plan = self.plan()
        if self._put_in_force(plan):
            plan = self.plan()
        if plan.releases:
            self.releases += [one for one in plan.releases if one not in self.releases]
            plan = self.plan()
        seen, effective = self.observe(), self.effective()
        self.emptying = dict(plan.emptying)
        # Promises are judged as they were when the plan was made: what leaves with it still counts.
        self.planned = {one: self.series(one) for one in self.images}
        self.struck.clear()
        load = dispatch.Load(last_used=plan.last_used)
        due = plan.in_state(actions.State.DUE)
        starts = dispatch.choose(due, seen.jobs, effective, seen, self.now, load=load)
        for start in starts:
            self._run(start, fate(start.action), effective)
        return starts

    def approve(self, spare: int = 0) -> int:
        """Somebody approves what is held, for so many copies more or fewer; how many copies that lets go."""
        part = self.plan().destruction
        if part.digest is None or part.approved:
            return 0
        self.approvals.append(
            observed.Approval(
                digest=part.digest, copies=max(0, len(part.items) + spare), by="ann",
                until=self.now + dt.timedelta(hours=20), reason="no longer needed",
            )
        )  # fmt: skip
        if spare < 0:
            return 0
        for item in part.items:
            key, _, image = self.find(item.image)
            if any(one.kind == "Expire" and one.object == image.id for one in self.rulings):
                self.approved_orders.add(image.id)
                self.ordered.add(image.id)
                continue
            copy = next(one for one in image.copies if one.number == item.copy)
            place = (key[0], image.lifecycle, copy.operation)
            consented = witnesses.Consented(image.sequence, len(self.eras[image.lifecycle]) - 1)
            self.consented.setdefault(place, []).append(consented)
        return len(part.items)

    def ask(self, policy: str, client: str) -> None:
        """Somebody asks for a backup of a client (its id)."""
        name = f"r-{len(self.requests)}"
        asked = observed.Request(id=name, policy=policy, client=client, at=self.now, after=self.sequence)
        self.requests.append(asked)

    def settle(self, fate: Fate = succeed, limit: int = 200) -> int:
        """Turn until nothing starts; how many turns that took."""
        for count in range(limit):
            if not self.turn(fate):
                return count
        raise AssertionError(f"no rest after {limit} turns; the last: {self.done[-5:]}")

    def pass_by(self, **passed: float) -> None:
        """Let time pass."""
        self.now += dt.timedelta(**passed)

    def end_jobs(self, outcome: str = "Succeeded") -> None:
        """Everything that runs ends so; restores end too."""
        self.reading.clear()
        jobs, self.running = self.running, []
        for job in jobs:
            self._end(job, outcome)

    def recover(self) -> None:
        """Settle what dead processes left on units that are online: adopt first copies, discard other torn ones."""
        left, self.unheard = self.unheard, []
        for job in left:
            if self.units.get(self._place(job), "Online") == "Online":
                self._commit(job)
            else:
                self.unheard.append(job)
        writing = {(job.start.action.image, job.number) for job in self.running}
        torn = [
            (image.id, copy.number)
            for images in self.images.values()
            for image in images
            for copy in image.copies
            if copy.state == "Writing"
            and (image.id, copy.number) not in writing
            and self.units.get(copy.unit, "Online") == "Online"
        ]
        for image_id, number in torn:
            self._give_up(image_id, number)

    # -- the configuration ---------------------------------------------------------------------------------------------

    def _put_in_force(self, plan: actions.Plan) -> bool:
        """Whether anything changed by it."""
        effective = self.effective()
        if plan.configuration:
            self._promise(configuration.promises(effective, self.applied, self.sequence))
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
            self._rename(effective)
            for name, item in effective.lifecycles.items():
                witnesses.remember(self.eras.setdefault(name, []), item.spec, self.sequence)
                again = {(name, one.name, promises.written(one.retention)) for one in item.spec.operations}
                self.releases = [
                    one for one in self.releases if (one.lifecycle, one.operation, one.before) not in again
                ]
            self.holds = list(holds.standing(effective, self.observe()))
        witnesses.hold(self.lawful, effective, self.clients.values(), self.images)
        for name, unit in effective.units.items():
            if unit.spec.type == "DedupePool":
                self.proven.setdefault(name, self.now)
        known = len(self.clients)
        for policy in sorted(self.machines):
            for machine in self.machines[policy]:
                if machine.id not in self.clients and policy in effective.policies:
                    slug = clients.slug(machine.name, {one.slug for one in self.clients.values()})
                    self.clients[machine.id] = observed.Client(
                        id=machine.id, slug=slug, name=machine.name, source=machine.source, first_seen=self.now
                    )
        return bool(plan.configuration) or len(self.clients) != known

    def _promise(self, fresh: tuple[observed.Promise, ...]) -> None:
        for one in fresh if self.sequence else ():
            self.promises = [
                p
                for p in self.promises
                if (p.lifecycle, p.operation, p.retention) != (one.lifecycle, one.operation, one.retention)
            ]
            self.promises.append(one)

    def _rename(self, effective: desired.Desired) -> None:
        """What the catalog remembers by name gets the new name, as it does when a revision is put in force."""
        renames = configuration.renames(effective)
        all_series = [observed.Series(client=c, policy=p, images=tuple(i)) for (c, p), i in self.images.items()]
        self.images = {(one.client, one.policy): list(one.images) for one in renames.follow(all_series)}
        for old, new in renames.policies.items():
            if old in self.machines:
                self.machines[new] = self.machines.pop(old)
        for table in (self.units, self.reclaimable, self.foreign, self.proven, self.sizes, self.emptying):
            for old, new in renames.units.items():
                if old in table:
                    table[new] = table.pop(old)  # type: ignore[attr-defined]
        for name, item in effective.lifecycles.items():
            self._rename_operations(name, configuration.operation_names(item.spec))
        for name, policy in effective.policies.items():
            self._rename_schedules(name, configuration.schedule_names(policy))
        if renames.units:
            self._respell(lambda _: True, storage=renames.units)

    def _rename_operations(self, lifecycle: str, names: dict[str, str]) -> None:
        if not names:
            return
        for images in self.images.values():
            for index, image in enumerate(images):
                if image.lifecycle == lifecycle:
                    images[index] = image._replace(
                        copies=tuple(c._replace(operation=names.get(c.operation, c.operation)) for c in image.copies)
                    )
        self.promises = [
            dataclasses.replace(p, operation=names.get(p.operation, p.operation)) if p.lifecycle == lifecycle else p
            for p in self.promises
        ]
        self.releases = [
            dataclasses.replace(r, operation=names.get(r.operation, r.operation)) if r.lifecycle == lifecycle else r
            for r in self.releases
        ]
        self.consented = {
            (client, name, names.get(operation, operation) if name == lifecycle else operation): given
            for (client, name, operation), given in self.consented.items()
        }
        self._respell(lambda image: image.lifecycle == lifecycle, name=names, source=names)

    def _rename_schedules(self, policy: str, names: dict[str, str]) -> None:
        if not names:
            return
        for key, images in self.images.items():
            if key[1] == policy:
                self.images[key] = [i._replace(schedule=names.get(i.schedule, i.schedule)) for i in images]
        of_policy = {image.id for key, images in self.images.items() if key[1] == policy for image in images}
        self._respell(lambda image: image.id in of_policy, schedules=names)

    def _respell(self, chosen: Callable[[observed.Image], bool], **fields: Any) -> None:
        """Move the chosen images to lifecycle specs in which names are spelled anew."""
        for images in self.images.values():
            for index, image in enumerate(images):
                if chosen(image):
                    spec = witnesses.respelled(self.owed[image.owed], **fields)
                    key = samples.owed_key(spec)
                    self.owed[key] = spec
                    images[index] = image._replace(owed=key)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _run(self, start: dispatch.Start, outcome: str, effective: desired.Desired) -> None:
        self.done.append((start.action.address, outcome))
        if outcome == "Lost" or (outcome == "Failed" and start.action.type not in _TELLING):
            self._attempted(start.action, outcome)
            return
        if self._meets_damage(start.action):
            self._attempted(start.action, "Failed")
            return
        try:
            job = self._begin(start, effective)
        except errors.NeverViolated:
            # What ran before it in this pass changed what it was decided on; whoever decides now must see that, too.
            due = [(one.address, one.reason.code) for one in self.plan().in_state(actions.State.DUE)]
            if (start.action.address, start.action.reason.code) in due:
                raise
            self._attempted(start.action, "Failed")
            return
        if outcome == "Running":
            self.running.append(job)
        else:
            self._end(job, outcome)

    def _meets_damage(self, action: actions.Action) -> bool:
        """Whether it was to read, or to build on, a copy that a job before it in this pass found damaged."""
        if action.type is actions.Type.EXPIRE:
            return False
        return (action.image, action.copy) in self.struck or action.parent in {image for image, _ in self.struck}

    def _begin(self, start: dispatch.Start, effective: desired.Desired) -> Job:
        action = start.action
        if action.type is actions.Type.BACKUP:
            return self._draft(start, effective)
        if action.type is actions.Type.DUPLICATE:
            return self._begin_copy(start)
        if action.type is actions.Type.EXPIRE:
            key, _, image = self.find(str(action.image))
            begins = self._mark_expiring(key, image, action)
            return Job(start, key, None, action.copy if begins else None)
        if action.type is actions.Type.RESTORE or action.proof is not None:
            key, _, image = self.find(str(action.image))
            copy = next(one for one in image.copies if one.number == action.copy)
            assert copy.state == "Complete", f"{action.address}: read from a copy that is {copy.state}"
            if action.type is actions.Type.RESTORE:
                self._restored(action, "Running")
            elif action.proof != verifications.CONTENT:
                assert not self._tried(action, key, effective), f"{action.address}: its period is not over"
            return Job(start, key, None, None)
        assert action.type in (actions.Type.RECLAIM, actions.Type.VERIFY), f"nobody asked for {action.type}"
        return Job(start, None, None, None)

    def _tried(self, action: actions.Action, key: Key, effective: desired.Desired) -> bool:
        """Whether whoever asks for a drill has had it of this series a short while ago, of whatever image."""
        names = [str(one.id) for one in self.images[key]]
        for asked in verifications.asked(effective, key[1]):
            if asked.kind != action.proof or asked.operation not in (None, action.operation):
                continue
            last: observed.Verification | None = None
            for one in self.results.values():
                image = self.find(one.image)[2] if one.image in names and one.kind == action.proof else None
                made = next((copy.operation for copy in image.copies if copy.number == one.copy), "") if image else ""
                if image and one.at <= self.now + histories.AHEAD and asked.operation in (None, made):
                    last = one if last is None or one.at > last.at else last
            if last is None or last.state == "Failed" or asked.period.after(last.at) <= self.now:
                return False
        return True

    def _restored(self, action: actions.Action, state: str) -> None:
        name, digest = action.address.removeprefix("restore/").rpartition("@")[0], str(action.digest)
        self.restores[name, digest] = observed.Restoring(name=name, digest=digest, state=state, at=self.now)

    def _learned(self, action: actions.Action, outcome: str) -> None:
        """What a proof or a restore leaves in the catalog; a proof that failed is a fact like one that passed."""
        if action.type is actions.Type.RESTORE:
            if outcome not in ("Lost", "Stopped", "Torn"):
                self._restored(action, "Verified" if outcome in ("Succeeded", "Unheard") else "Failed")
        elif action.proof is not None and outcome in ("Succeeded", "Unheard", "Failed"):
            image, number = str(action.image), int(str(action.copy))
            state = "Failed" if outcome == "Failed" else "Passed"
            self.results[image, number, action.proof] = observed.Verification(
                image=image, copy=number, kind=action.proof, state=state, at=self.now, message="so it was found"
            )
            if outcome == "Failed" and action.proof == verifications.CONTENT:
                self.damage(image, number, "Damaged")

    def _end(self, job: Job, outcome: str) -> None:
        """What a job came to, in the catalog and on the units."""
        action = job.start.action
        self._learned(action, outcome)
        if outcome in ("Succeeded", "Partial"):
            self._commit(job, "Partial" if outcome == "Partial" else "Complete")
        elif outcome == "Unheard" and job.draft is not None:
            self.unheard.append(job)
        elif outcome == "SourceDamaged" and action.type is actions.Type.DUPLICATE:
            self._discard(job)
            if action.copy is not None:
                self.damage(str(action.image), action.copy, "Damaged")
        elif outcome not in _DEATHS:
            self._discard(job)
        if outcome == "Succeeded":
            self.attempts.pop(action.address, None)
        else:
            self._attempted(action, outcome)

    def _attempted(self, action: actions.Action, outcome: str) -> None:
        state = "Lost" if outcome in _DEATHS else "Failed" if outcome == "SourceDamaged" else outcome
        before = self.attempts.get(action.address)
        self.attempts[action.address] = observed.Attempts(
            failed=(before.failed if before else 0) + 1,
            lost=(before.lost if before else 0) + (state == "Lost"),
            stopped=(before.stopped if before else 0) + (outcome == "Stopped"),
            last_finished=self.now,
            last_state=state,
            message="the disk said no",
            # What is on none of several copies is found by reading all of them.
            code=duplications.MISSING if outcome == "SourceDamaged" and action.pieces else "",
        )

    def _commit(self, job: Job, state: str = "Complete") -> None:
        action = job.start.action
        if job.draft is not None and job.key is not None:
            key = self._present(job.key)
            image = job.draft._replace(
                state=state, copies=tuple(c._replace(unit=self._place(job)) for c in job.draft.copies)
            )
            self.images.setdefault(key, []).append(image)
            self.images[key].sort(key=lambda one: one.sequence)
        elif action.type is actions.Type.DUPLICATE:
            self._commit_copy(job)
        elif action.type is actions.Type.EXPIRE:
            if job.number is not None:
                self._expire(str(action.image), job.number)
        elif action.type is actions.Type.RECLAIM:
            self.reclaimable.pop(self._place(job), None)
        elif action.type is actions.Type.VERIFY and action.proof is None:
            self.proven[self._place(job)] = self.now

    def _discard(self, job: Job) -> None:
        if job.start.action.type is actions.Type.DUPLICATE:
            self._give_up(str(job.start.action.image), int(str(job.number)))

    def _give_up(self, image_id: str, number: int) -> None:
        """A copy that was not finished is what it was before: damaged, lost, or not there."""
        before = self.fallbacks.pop((image_id, number), None)
        if before is not None:
            self._set(image_id, number, state=before)
            return
        key, index, image = self.find(image_id)
        self.images[key][index] = image._replace(copies=tuple(c for c in image.copies if c.number != number))

    def _present(self, key: Key) -> Key:
        return key[0], configuration.renames(self.effective()).policies.get(key[1], key[1])

    def _place(self, job: Job) -> str:
        unit = str(job.start.unit)
        return configuration.renames(self.effective()).units.get(unit, unit)

    def _draft(self, start: dispatch.Start, effective: desired.Desired) -> Job:
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
            id=f"img-{self.sequence}", schedule=str(action.schedule), type=str(action.backup_type), state="Complete",
            time=self.now, sequence=self.sequence, slot=slot, lifecycle=policy.spec.lifecycle, owed=digest,
            parent=action.parent, size_bytes=100, disks=("disk.img",),
            copies=(observed.Copy(1, str(action.operation), unit, "Complete", self.now, COPY_BYTES, base),),
        )  # fmt: skip
        return Job(start, key, made, 1)

    def _holds(self, key: Key, image: str, unit: str) -> bool:
        return any(
            one.id == image and any(c.unit == unit and c.state == "Complete" for c in one.copies)
            for one in self.images[key]
        )

    def _begin_copy(self, start: dispatch.Start) -> Job:
        action, unit = start.action, str(start.unit)
        key, index, image = self.find(str(action.image))
        if action.pieces:
            self._is_pieced(action, key, image)
        else:
            source = next(copy for copy in image.copies if copy.number == action.copy)
            assert source.state == "Complete", f"{action.address}: read from a copy that is {source.state}"
        held = [c for c in image.copies if c.unit == unit and c.state not in ("Expired", "Lost", "Damaged")]
        assert not held, f"{action.address}: {unit} holds the image already"
        again = next(
            (c for c in image.copies if (c.operation, c.unit) == (action.operation, unit) and c.state in _REWRITTEN),
            None,
        )
        if again is not None:
            self.fallbacks[image.id, again.number] = again.state
            self._set(image.id, again.number, state="Writing")
            return Job(start, key, None, again.number)
        number = max(copy.number for copy in image.copies) + 1
        fresh = observed.Copy(number, str(action.operation), unit, "Writing", self.now, COPY_BYTES, None)
        self.images[key][index] = image._replace(copies=(*image.copies, fresh))
        return Job(start, key, None, number)

    def _is_pieced(self, action: actions.Action, key: Key, image: observed.Image) -> None:
        """Damaged copies are read together only where none is good, and then all of them, once at a time."""
        images = self.series(key).images
        states = {copy.number: copy.state for copy in image.copies}
        assert action.copy is None and len(action.pieces) > 1, f"{action.address}: of {action.pieces}"
        assert {states[number] for number in action.pieces} <= {"Complete", "Damaged"}, f"{action.address}: {states}"
        good = [copy.number for copy in image.copies if witnesses.readable(images, image, copy)]
        assert not good or self.struck, f"{action.address}: pieces of {image.id}, of which {good} are good"
        others = [job for job in self.running if job.start.action.image == image.id and job.start.action.pieces]
        assert not others, f"{action.address}: read twice at once"

    def _commit_copy(self, job: Job) -> None:
        unit, number = self._place(job), int(str(job.number))
        key, _, image = self.find(str(job.start.action.image))
        directory = self.effective().units[unit].spec.type == "Directory"
        parent = image.parent
        base = parent if directory and parent is not None and self._holds(key, parent, unit) else None
        self.fallbacks.pop((image.id, number), None)
        self.losses.discard((image.id, number))
        self._set(image.id, number, state="Complete", created_at=self.now, base=base)

    def _mark_expiring(self, key: Key, image: observed.Image, action: actions.Action) -> bool:
        """Whether the unit may begin to delete the copy."""
        copy = next(one for one in image.copies if one.number == action.copy)
        if copy.state == "Expired" or (copy.state == "Expiring" and copy.until is None):
            return True
        going = copy.state == "Expiring"
        assert not going or (copy.until is not None and copy.until <= self.now), f"{action.address}: in its grace"
        assert going or action.reason.code != "GraceOver", f"{action.address}: it was taken back"
        seen, fresh = self.observe(), self.series(key)
        expiry.check_delete(self.wanted, seen, fresh, image.id, copy.number, self.now, code=action.reason.code)
        witnesses.deletion(self, key, fresh, image.id, copy.number, action.grace)
        until = self.now + action.grace if action.grace is not None and not going else None
        self._set(image.id, copy.number, state="Expiring", until=until)
        return until is None

    def _expire(self, image_id: str, number: int) -> None:
        _, _, image = self.find(image_id)
        copy = next(one for one in image.copies if one.number == number)
        effective = self.effective()
        self._set(image_id, number, state="Expired")
        self.results = {key: one for key, one in self.results.items() if key[:2] != (image_id, number)}
        declared = effective.units.get(copy.unit)
        if declared is not None and declared.spec.type == "DedupePool":
            self.reclaimable[copy.unit] = self.reclaimable.get(copy.unit, 0) + copy.stored_bytes

    def _set(self, image_id: str, number: int, **fields: Any) -> None:
        key, index, image = self.find(image_id)
        copies = tuple(c._replace(**fields) if c.number == number else c for c in image.copies)
        self.images[key][index] = image._replace(copies=copies)

    def find(self, image: str) -> tuple[Key, int, observed.Image]:
        """An image, and where it is."""
        for key, images in self.images.items():
            for index, one in enumerate(images):
                if one.id == image:
                    return key, index, one
        raise AssertionError(f"no image {image}")

    # -- rulings -------------------------------------------------------------------------------------------------------

    def rule(self, kind: str, object: str, grace: dt.timedelta | None = None) -> None:
        """Somebody decides about one thing; twice is once."""
        if not any((one.kind, one.object) == (kind, object) for one in self.rulings):
            made = observed.Ruling(
                kind=kind, object=object, by="ann", at=self.now, reason="so it was said", grace=grace
            )
            self.rulings.append(made)

    def end_ruling(self, kind: str, object: str) -> None:
        """It is over."""
        self.rulings = [one for one in self.rulings if (one.kind, one.object) != (kind, object)]

    def take_back(self, image_id: str, unit: str | None = None) -> None:
        """Copies whose deletion has not begun are there again, and the bases that they need."""
        for images in list(self.images.values()):
            for image in [one for one in images if one.id == image_id]:
                for copy in image.copies:
                    if copy.state == "Expiring" and copy.until is not None and unit in (None, copy.unit):
                        self._set(image_id, copy.number, state="Complete", until=None)
                        if copy.base is not None:
                            self.take_back(copy.base, copy.unit)

    # -- accidents -----------------------------------------------------------------------------------------------------

    def damage(self, image: str, number: int, state: str) -> None:
        """A copy turns out to be Damaged or Lost."""
        _, _, found = self.find(image)
        copy = next(one for one in found.copies if one.number == number)
        if copy.state != "Complete":
            return
        self.struck.add((image, number))
        if state == "Lost":
            self.losses.add((image, number))
        self._set(image, number, state=state)

    def copies(self) -> list[tuple[str, int]]:
        """Every copy, as (image id, number)."""
        return [(i.id, c.number) for images in self.images.values() for i in images for c in i.copies]

    # -- judging -------------------------------------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """What no world may come to, whatever was asked: judged from the bare facts."""
        return witnesses.violations(self)


def _is_expiry(job: Job) -> bool:
    return job.start.action.type is actions.Type.EXPIRE


def shuffled(wanted: desired.Desired, seen: observed.Observed, seed: int) -> tuple[desired.Desired, observed.Observed]:
    """The same manifests and facts, given in another order."""
    dice = random.Random(seed)

    def mixed(value: Any) -> Any:
        items = list(value.items()) if isinstance(value, dict) else list(value)
        dice.shuffle(items)
        return dict(items) if isinstance(value, dict) else tuple(items)

    plain = [
        field.name
        for field in dataclasses.fields(seen)
        if isinstance(getattr(seen, field.name), dict | tuple | list) and field.name != "inventories"
    ]
    facts: dict[str, Any] = {name: mixed(getattr(seen, name)) for name in plain}
    facts["inventories"] = {
        name: dataclasses.replace(one, machines=mixed(one.machines))
        for name, one in mixed(dict(seen.inventories)).items()
    }
    objects = mixed(list(wanted.objects()))
    return samples.estate(*objects, revision=wanted.revision), dataclasses.replace(seen, **facts)
