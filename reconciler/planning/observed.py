"""Observed state: what the catalog, the sources and the storage units say, as values.

Made by ``controller.observations`` and by tests; read by every decision. The single things that it is made of are
``sightings``, and go by their names here too. Images come one series at a time through
``Observed.series``, which may be walked again and again, so that a large catalog is never held as objects all at once.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping

from reconciler.api import lifecycles, models
from reconciler.planning import desired, sightings

GOOD = sightings.GOOD
READABLE = sightings.READABLE
PRESENT = sightings.PRESENT
Copy = sightings.Copy
Image = sightings.Image
Series = sightings.Series
Client = sightings.Client
Machine = sightings.Machine
Snapshot = sightings.Snapshot
Inventory = sightings.Inventory
Unit = sightings.Unit
Hold = sightings.Hold
Ruling = sightings.Ruling
Verification = sightings.Verification
Trial = sightings.Trial
Restoring = sightings.Restoring
Standing = sightings.Standing
Approval = sightings.Approval
Release = sightings.Release
Request = sightings.Request
Job = sightings.Job
Attempts = sightings.Attempts


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """An object in force, or orphaned, as the catalog keeps it."""

    object: models.Object
    since: dt.datetime
    orphaned: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """A retention that images up to a sequence number were promised before a revision changed it."""

    lifecycle: str
    operation: str
    retention: lifecycles.Retention
    #: Covers images with this sequence number and below.
    up_to: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """Everything decisions are made from."""

    series: Iterable[Series] = ()
    #: By client id.
    clients: Mapping[str, Client] = dataclasses.field(default_factory=dict)
    #: By policy name.
    inventories: Mapping[str, Inventory] = dataclasses.field(default_factory=dict)
    #: By unit name.
    units: Mapping[str, Unit] = dataclasses.field(default_factory=dict)
    #: By (kind, name).
    applied: Mapping[desired.Key, Applied] = dataclasses.field(default_factory=dict)
    #: Revision in force, None before the first apply.
    in_force: str | None = None
    #: When each (policy, schedule) was first applied with its present timing; slots count from then.
    anchors: Mapping[tuple[str, str], dt.datetime] = dataclasses.field(default_factory=dict)
    promises: tuple[Promise, ...] = ()
    holds: tuple[Hold, ...] = ()
    rulings: tuple[Ruling, ...] = ()
    approvals: tuple[Approval, ...] = ()
    releases: tuple[Release, ...] = ()
    #: Names the last time that the catalog was rebuilt; empty where it never was.
    rebuilt: str = ""
    #: Lifecycle specs by digest, as the images' revisions had them.
    owed: Mapping[str, lifecycles.StorageLifecyclePolicySpec] = dataclasses.field(default_factory=dict)
    #: By image id: the last result of each copy and kind; images that were never verified are not in it.
    verifications: Mapping[str, tuple[Verification, ...]] = dataclasses.field(default_factory=dict)
    #: By client id and policy: what is remembered of what has expired.
    trials: Mapping[tuple[str, str], tuple[Trial, ...]] = dataclasses.field(default_factory=dict)
    restores: tuple[Restoring, ...] = ()
    requests: tuple[Request, ...] = ()
    jobs: tuple[Job, ...] = ()
    #: Snapshots that the catalog has noted and that are not known to be gone; ``inventories`` hold those seen.
    snapshots: tuple[Snapshot, ...] = ()
    #: By action address; only actions whose last attempt did not succeed.
    attempts: Mapping[str, Attempts] = dataclasses.field(default_factory=dict)
    #: By unit name: when a copy was last sent there; asked for where a RoundRobin group has to choose.
    last_used: Mapping[str, dt.datetime] = dataclasses.field(default_factory=dict)
    #: Expiry waits while a clock jump is unexplained: the sentence, or None.
    clock_jump: str | None = None
    #: Units that are being emptied, and down to how many bytes, as the last plan of this controller left it.
    emptying: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: Since when somebody has been planning without a gap; under ``catchUp: None`` slots since then are not missed.
    watching: dt.datetime | None = None
    #: What the clock says, where a plan is worked out for a moment that has passed; None for now.
    present: dt.datetime | None = None

    def believed(self, moment: dt.datetime, now: dt.datetime) -> dt.datetime:
        """A time that was written down, as ``sightings.believed`` has it: no clock was wrong for being past ``now``."""
        return sightings.believed(moment, max(now, self.present or now))
