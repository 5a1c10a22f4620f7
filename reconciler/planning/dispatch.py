"""Which of the due actions start now, on which unit, through which media server: under all limits at once.

Called by the controller's loop with the due actions of a plan and the jobs that are alive. Limits: a unit's jobs
(source and target; restores have one slot more, and verifications, which nobody waits for, half at most), a policy's, a
media server's, a VCenter's (``hypervisors``), one backup, restore in place, drill or removal of a snapshot per machine
over all policies, one machine that is started, and the room of a unit: each start reserves what it is expected to add,
so that two large jobs do not both take the last space. Restores and removals of snapshots go first, then priority, then
what has been due longest. An action that does not fit is passed over, not waited for, so that others with room go on.
What small work is left over then joins a start of its kind as a batch, done one after another in that one slot:
thousands of small images need no turn each. Deterministic: equal input, equal choice.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from reconciler.base import times
from reconciler.planning import actions, desired, hypervisors, observed, placements, restorations, verifications

#: A duplication of fewer bytes is small; a batch holds so many jobs, and so many bytes, at most.
SMALL: Final = 8 << 30
BATCH_JOBS: Final = 50
BATCH_BYTES: Final = 100 << 30

_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)
#: Work of which a machine bears one at a time.
_ON_MACHINE = frozenset({actions.Type.BACKUP, actions.Type.REMOVE_SNAPSHOT})
#: The ends of the addresses of drills.
_DRILLS = tuple(f"/{kind.lower()}" for kind in (verifications.FILES, verifications.BOOT))
_BOOT = f"/{verifications.BOOT.lower()}"
_FIRST = frozenset({actions.Type.RESTORE, actions.Type.REMOVE_SNAPSHOT})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How busy things are, beyond the running jobs; every part may be left out."""

    #: By media server: from 0 (idle) up, such as CPU, memory and I/O together.
    servers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    #: By unit: when a copy was last sent there (``Plan.last_used``), for RoundRobin.
    last_used: Mapping[str, dt.datetime] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One action to start now."""

    action: actions.Action
    #: The unit chosen for it, None for work without a target unit.
    unit: str | None
    media_server: str
    #: Starts with the same one are done one after another, in this order, in one slot.
    batch: str | None = None


def choose(
    ready: Iterable[actions.Action],
    running: Iterable[observed.Job],
    wanted: desired.Desired,
    seen: observed.Observed,
    now: dt.datetime,
    *,
    load: Load | None = None,
) -> tuple[Start, ...]:
    """The due actions of ``ready`` that all limits allow now, in the order in which they should start."""
    floor, starts, left = _fitted(ready, running, wanted, seen, now, load or Load())
    return tuple(_batched(floor, starts, left, now))


def held(
    ready: Iterable[actions.Action],
    running: Iterable[observed.Job],
    wanted: desired.Desired,
    seen: observed.Observed,
    now: dt.datetime,
) -> dict[str, actions.Reason]:
    """By address: which limit of a VCenter keeps a due backup or restore from starting; ``choose`` decides the same."""
    load = Load(last_used=seen.last_used)
    floor, _, left = _fitted(ready, running, wanted, seen, now, load)
    return {one.address: reason for one in left if (reason := floor.held(one)) is not None}


def _fitted(
    ready: Iterable[actions.Action],
    running: Iterable[observed.Job],
    wanted: desired.Desired,
    seen: observed.Observed,
    now: dt.datetime,
    load: Load,
) -> tuple[_Floor, list[Start], list[actions.Action]]:
    """What starts on its own, and what is left, each in order of urgency."""
    floor = _Floor(wanted, seen, now, load)
    for job in running:
        floor.occupy(job)
    due = {a.address: a for a in ready if a.state is actions.State.DUE and a.address not in floor.live}
    starts = []
    left = []
    for action in sorted(due.values(), key=_urgency):
        start = floor.fit(action)
        if start is not None:
            starts.append(start)
        else:
            left.append(action)
    return floor, starts, left


def _boots(work: observed.Job | actions.Action) -> bool:
    """Whether it starts a machine."""
    return work.type == actions.Type.VERIFY and work.address.endswith(_BOOT)


class _Batch:
    """A start and what follows it in its slot."""

    def __init__(self, start: Start, now: dt.datetime) -> None:
        self.starts = [start]
        self.bytes = start.action.bytes or 0
        self.name = f"{start.action.address} {times.show(now)}"

    def takes(self, action: actions.Action, floor: _Floor) -> bool:
        """Whether ``action`` may follow; it does then."""
        first, size = self.starts[0], action.bytes or 0
        if len(self.starts) == BATCH_JOBS or self.bytes + size > BATCH_BYTES or not floor.joins(action, first.unit):
            return False
        self.starts.append(dataclasses.replace(first, action=action))
        self.bytes += size
        return True

    def whole(self) -> list[Start]:
        """The starts, marked as one batch where they are several."""
        return [dataclasses.replace(one, batch=self.name) for one in self.starts] if self.starts[1:] else self.starts


def _batched(floor: _Floor, starts: list[Start], left: list[actions.Action], now: dt.datetime) -> Iterator[Start]:
    """The starts, each with the left-over actions that join it; what waits for a unit is not overtaken there."""
    open_to: dict[tuple[str | None, ...], list[_Batch]] = {}
    batches = [_Batch(start, now) for start in starts]
    for batch in batches:
        if _small(batch.starts[0].action):
            open_to.setdefault(_kind(batch.starts[0].action), []).append(batch)
    waited_for: set[str | None] = set()
    for action in left if open_to else ():
        touched = {action.unit, action.source_unit, *action.candidates} - {None}
        joined = None
        if _small(action) and not touched & waited_for:
            # The shortest first, so that all slots get their share.
            likely = sorted(open_to.get(_kind(action), ()), key=lambda one: len(one.starts))
            joined = next((one for one in likely if one.takes(action, floor)), None)
        if joined is None and not _small(action):
            waited_for |= touched
    for batch in batches:
        yield from batch.whole()


def _small(action: actions.Action) -> bool:
    if action.type is actions.Type.EXPIRE:
        return True
    return action.type is actions.Type.DUPLICATE and action.bytes is not None and action.bytes < SMALL


def _kind(action: actions.Action) -> tuple[str | None, ...]:
    """What the starts of a batch have in common."""
    if action.type is actions.Type.EXPIRE:
        return (action.type.value, action.unit)
    return (action.type.value, action.policy, action.source_unit)


def _urgency(action: actions.Action) -> tuple[int, int, dt.datetime, str]:
    return (0 if action.type in _FIRST else 1, -action.priority, action.at or _NEVER, action.address)


class _Floor:
    """What is taken, and what is left."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime, load: Load) -> None:
        self.live: set[str] = set()
        self._wanted = wanted
        self._units = placements.Units(wanted, seen)
        self._now = now
        self._load = load
        self._last_used = dict(load.last_used)
        self._on_unit: collections.Counter[str] = collections.Counter()
        self._restores: collections.Counter[str] = collections.Counter()
        self._proofs: collections.Counter[str] = collections.Counter()
        self._of_policy: collections.Counter[str] = collections.Counter()
        self._on_server: collections.Counter[str] = collections.Counter()
        #: Client ids of machines that bear no other work now, and those of them that are written over.
        self._machines: set[str] = set()
        self._restored: set[str] = set()
        self._hypervisors = hypervisors.Hypervisors(wanted, seen)
        #: By unit: bytes that the starts of this turn will add.
        self._reserved: collections.Counter[str] = collections.Counter()
        #: Images on their way onto units: a unit holds an image once.
        self._arriving: set[tuple[str, str]] = set()
        self._batches: set[str] = set()
        self._begun = 0
        #: Machines that are being started: each takes memory that nobody set aside.
        self._boots = 0

    def occupy(self, job: observed.Job) -> None:
        """Count a job that is alive."""
        self.live.add(job.address)
        if job.type == actions.MOUNT:
            # It lasts as long as somebody looks: backups do not wait for that.
            return
        touched = {self._units.name(unit) for unit in (job.unit, job.source_unit) if unit is not None}
        if job.type == actions.Type.DUPLICATE and job.image is not None and job.unit is not None:
            self._arriving.add((job.image, self._units.name(job.unit)))
        if job.unit is not None and job.since is not None:
            unit = self._units.name(job.unit)
            # One that began while this was being decided would be later than all that is chosen now.
            since = min(job.since, self._now)
            self._last_used[unit] = max(since, self._last_used.get(unit, since))
        if job.batch is not None and job.batch in self._batches:
            return
        self._batches.add(job.batch or "")
        self._take(touched, job, job.media_server or placements.LOCAL, job.client)

    def _take(self, units: set[str], work: observed.Job | actions.Action, server: str, client: str | None) -> None:
        type, policy = work.type, work.policy
        counter = self._restores if type == actions.Type.RESTORE else self._on_unit
        counter.update(units)
        if type == actions.Type.VERIFY:
            self._proofs.update(units)
        if policy is not None and type in (actions.Type.BACKUP, actions.Type.DUPLICATE):
            self._of_policy[policy] += 1
        if client is not None and self._on_machine(work, client):
            self._machines.add(client)
            if type == actions.Type.RESTORE:
                self._restored.add(client)
        self._boots += _boots(work)
        self._hypervisors.take(work, client)
        self._on_server[server] += 1

    def _on_machine(self, work: observed.Job | actions.Action, client: str | None) -> bool:
        """Whether a machine bears no other such work meanwhile."""
        if work.type == actions.Type.RESTORE:
            return restorations.in_place(self._wanted, work.address, client)
        return work.type in _ON_MACHINE or (work.type == actions.Type.VERIFY and work.address.endswith(_DRILLS))

    def fit(self, action: actions.Action) -> Start | None:
        """Start ``action`` if every limit allows it, and count it; None if it has to wait."""
        if action.client_id in self._machines and self._on_machine(action, action.client_id):
            return None
        if _boots(action) and self._boots:
            return None
        if not self._policy_allows(action):
            return None
        if self._hypervisors.refuses(action):
            return None
        if action.source_unit is not None and not self._unit_allows(action.source_unit, action.type):
            return None
        for unit in self._targets(action):
            if unit is not None and not (self._unit_allows(unit, action.type) and self._room(unit, action)):
                continue
            arrival = (action.image or "", unit or "")
            if action.type is actions.Type.DUPLICATE and arrival in self._arriving:
                continue
            touched = {name for name in (unit, action.source_unit) if name is not None}
            # A removal moves no data: it waits for no media server.
            removes = action.type is actions.Type.REMOVE_SNAPSHOT
            server = placements.LOCAL if removes else self._server(touched)
            if server is None:
                continue
            self._take(touched, action, server, action.client_id)
            if unit is not None and action.type in (actions.Type.BACKUP, actions.Type.DUPLICATE):
                # A little later each time: the starts of one turn are an order, too.
                self._begun += 1
                self._last_used[unit] = self._now + dt.timedelta(microseconds=self._begun)
                self._reserved[unit] += action.adds or 0
                self._arriving.add(arrival)
            return Start(action=action, unit=unit, media_server=server)
        return None

    def held(self, action: actions.Action) -> actions.Reason | None:
        """Why a backup or restore that did not fit has to wait, as far as its machine or hypervisor is the reason."""
        virtual, restores = self._hypervisors.vcenter(action) is not None, action.type is actions.Type.RESTORE
        busy = action.client_id in self._machines and (restores or action.type is actions.Type.BACKUP)
        if (
            busy
            and (virtual or restores or action.client_id in self._restored)
            and self._on_machine(action, action.client_id)
        ):
            words = (
                "another job is at the machine; one backup, restore in place or removal of a snapshot goes on at a time"
            )
            return actions.Reason(code="MachineBusy", message=words)
        return self._hypervisors.refuses(action) if virtual else None

    def joins(self, action: actions.Action, unit: str | None) -> bool:
        """Whether an action may use the slot of another one that goes to ``unit``; it is counted then."""
        if action.type is actions.Type.EXPIRE:
            return True
        arrival = (action.image or "", unit or "")
        if unit not in action.candidates or arrival in self._arriving or not self._room(unit, action):
            return False
        self._reserved[unit] += action.adds or 0
        self._arriving.add(arrival)
        return True

    def _policy_allows(self, action: actions.Action) -> bool:
        policy = self._wanted.policies.get(action.policy or "")
        if policy is None or action.type not in (actions.Type.BACKUP, actions.Type.DUPLICATE):
            return True
        limit = policy.spec.limits.max_concurrent_jobs
        return limit is None or self._of_policy[policy.name] < limit

    def _unit_allows(self, unit: str, type: actions.Type) -> bool:
        declared = self._wanted.units.get(unit)
        limit = declared.spec.max_concurrent_jobs if declared is not None else 0
        if limit == 0:
            return False
        if type is actions.Type.RESTORE:
            # One slot more than the rest may take: a restore never queues behind nothing but backups.
            return self._restores[unit] < 1 or self._restores[unit] + self._on_unit[unit] < limit + 1
        if type is actions.Type.VERIFY and self._proofs[unit] >= max(1, limit // 2):
            return False
        return self._on_unit[unit] + max(0, self._restores[unit] - 1) < limit

    def _room(self, unit: str, action: actions.Action) -> bool:
        if action.adds is None or action.type not in (actions.Type.BACKUP, actions.Type.DUPLICATE):
            return True
        return self._units.lacks(unit, self._reserved[unit] + action.adds) is None

    def _targets(self, action: actions.Action) -> tuple[str | None, ...]:
        """Units to try, in order."""
        if action.type not in (actions.Type.BACKUP, actions.Type.DUPLICATE):
            return (action.unit,)
        names = action.candidates or ((action.unit,) if action.unit is not None else ())
        storage = action.storage or ""
        ordered = self._units.preferred(storage, names, running=self._on_unit, last_used=self._last_used)
        # Failover uses the first member that is up, however busy it is.
        return ordered[:1] if self._units.selection(storage) == "Failover" else ordered

    def _server(self, units: set[str]) -> str | None:
        """The media server with room that reaches all units and is the least loaded."""
        best: tuple[float, float, str] | None = None
        for name, declared in placements.servers(self._wanted, units):
            if declared is None:
                return name
            limit = declared.spec.max_concurrent_jobs
            if self._on_server[name] < limit:
                rank = (self._on_server[name] / limit, self._load.servers.get(name, 0.0), name)
                best = min(best, rank) if best is not None else rank
        return best[2] if best is not None else None
