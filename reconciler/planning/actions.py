"""What a plan holds: actions with a stable address, a state and a reason, and the plan around them. Plain values.

``planfile`` turns them into the documents that ``api.documents`` describes; ``controller`` turns due actions into jobs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Mapping

from reconciler.base import diagnostics
from reconciler.planning import sightings, worktypes

MOUNT = worktypes.MOUNT
Type = worktypes.Type


class State(enum.StrEnum):
    """Where an action stands."""

    #: Nothing but limits keeps it from starting.
    DUE = "Due"
    #: Starts by itself later: a window, a retry, an action before it.
    WAITING = "Waiting"
    #: Needs somebody, or something, to change first.
    BLOCKED = "Blocked"
    #: Falls due later, within the horizon.
    PLANNED = "Planned"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why: a CamelCase code and a sentence."""

    code: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One thing to do."""

    #: Unique and stable: the same need has the same address in every plan.
    address: str
    type: Type
    state: State
    #: When it was, or will be, due; for Waiting ones, until when.
    at: dt.datetime | None
    reason: Reason
    #: Addresses of actions that must succeed first.
    after: tuple[str, ...] = ()
    policy: str | None = None
    schedule: str | None = None
    #: Client slug, as users see it.
    client: str | None = None
    client_id: str | None = None
    image: str | None = None
    #: Copy number to expire, or to read from.
    copy: int | None = None
    operation: str | None = None
    #: Unit written to, or freed; a group's member as it would be chosen now.
    unit: str | None = None
    #: Units that may take it, in order of preference (one, or a group's members).
    candidates: tuple[str, ...] = ()
    #: The unit or group that the lifecycle names; a group's selection chooses among the candidates.
    storage: str | None = None
    source_unit: str | None = None
    #: Duplicate: numbers of the copies that are read together, because none of them is good; then ``copy`` is None.
    pieces: tuple[int, ...] = ()
    #: Expected bytes, None where unknown.
    bytes: int | None = None
    #: What it is expected to add to its unit, None where nothing says so.
    adds: int | None = None
    #: Backup: Full, Incremental or Cumulative.
    backup_type: str | None = None
    #: The image on which this one is built: a Backup asks for the changes since, a Duplicate goes on with its chain.
    parent: str | None = None
    #: Backup: the slot that it serves.
    slot: dt.datetime | None = None
    #: Backup: the request that it answers.
    request: str | None = None
    #: Backup: every request that it answers.
    requests: tuple[str, ...] = ()
    #: Verify: Content, Files or Boot; None for a pool's scrub.
    proof: str | None = None
    #: Restore: digest of the manifest's spec, which it is done once for.
    digest: str | None = None
    priority: int = 0
    #: Which attempt this would be, from 1.
    attempt: int = 1
    #: When a window with ``overrun: Stop`` ends this action, if one does.
    stop_at: dt.datetime | None = None
    #: Expire: how long the copy can be taken back once this is decided; its deletion is another action then.
    grace: dt.timedelta | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FieldChange:
    """One field of an object that a revision changes; values are JSON."""

    path: str
    before: object
    after: object


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConfigurationChange:
    """One object that a revision changes."""

    #: Create, Update, Orphan or Adopt.
    change: str
    kind: str
    name: str
    fields: tuple[FieldChange, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Something in the world that the manifests do not account for."""

    code: str
    object: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Destroyed:
    """A copy that would go before its promise."""

    image: str
    copy: int
    unit: str
    bytes: int
    expires_before: dt.datetime | None
    expires_after: dt.datetime | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OldestPoint:
    """How a client's oldest restore point moves."""

    client: str
    before: dt.datetime | None
    after: dt.datetime | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Destruction:
    """The destructive part of a plan."""

    digest: str | None = None
    approved: bool = False
    #: What would really come back, where the units were asked; None: what the copies took when they were made.
    bytes: int | None = None
    #: Whether the byte counts are estimates.
    estimated: bool = False
    items: tuple[Destroyed, ...] = ()
    clients: tuple[OldestPoint, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Something that waits for an approval, or has one."""

    digest: str
    #: Destruction, Configuration or Selection.
    what: str
    #: How many copies would go; none of a Configuration or a Selection.
    copies: int
    #: What would go, in a few words.
    message: str
    approved: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CopyDecision:
    """What a retention rule says of one copy, for ``get copies`` and explanation."""

    image: str
    copy: int
    #: When it leaves if nothing else changes, None where that cannot be said.
    expires_at: dt.datetime | None
    reason: Reason


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Overdue:
    """A series whose newest image that can be read is older than its policy's objective."""

    policy: str
    #: Client slug.
    client: str
    #: Time of that image, None where no image can be read.
    newest: dt.datetime | None
    #: Whether the series ever had a complete image.
    succeeded: bool
    objective: dt.timedelta
    #: When it became so.
    since: dt.datetime


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Late:
    """Copies of one operation that are owed for too long."""

    policy: str
    operation: str
    #: Unit or group that should hold them.
    storage: str
    copies: int
    #: Time of the oldest image that owes one.
    oldest: dt.datetime
    #: Why that image's copy is not made yet.
    reason: Reason


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What would be done, and why."""

    now: dt.datetime
    horizon: dt.datetime
    revision: str
    in_force: str | None
    problems: tuple[diagnostics.Diagnostic, ...] = ()
    drift: tuple[Drift, ...] = ()
    configuration: tuple[ConfigurationChange, ...] = ()
    actions: tuple[Action, ...] = ()
    destruction: Destruction = Destruction()
    #: What waits for an approval, or has one.
    questions: tuple[Question, ...] = ()
    #: Promises that approvals end; to be recorded before any of these expiries starts.
    releases: tuple[sightings.Release, ...] = ()
    #: Series past their objective, by policy and client.
    overdue: tuple[Overdue, ...] = ()
    #: Copies past their time, by policy and operation.
    late: tuple[Late, ...] = ()
    #: By unit name: when a copy was last sent there, for the round-robin choice between a group's members.
    last_used: Mapping[str, dt.datetime] = dataclasses.field(default_factory=dict)
    #: By unit name: down to how many bytes it is being emptied, for the next turn.
    emptying: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def in_state(self, *states: State) -> tuple[Action, ...]:
        """The actions in any of ``states``, in plan order."""
        return tuple(action for action in self.actions if action.state in states)

    @property
    def changes(self) -> bool:
        """Whether anything is to be done now: a configuration change or a due action."""
        return bool(self.configuration) or any(action.state is State.DUE for action in self.actions)

    @property
    def next_event(self) -> dt.datetime | None:
        """The earliest moment after ``now`` at which an action may begin."""
        moments = [
            a.at
            for a in self.actions
            if a.at is not None and a.at > self.now and a.state in (State.WAITING, State.PLANNED)
        ]
        return min(moments, default=None)
