"""What is, one thing at a time: clients, images, copies, units, jobs and what people ruled of them, as values.

Made by the catalog and ``controller.observations``; ``observed`` puts them beside what the manifests say and passes
their names on to the decisions. Separate from it because a command that only looks things up in the catalog needs
none of the manifests' kinds, which take a while to load.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Final, NamedTuple

from reconciler.base import times

#: Copy states in which a copy can be read and counts as good.
GOOD = frozenset({"Complete"})
#: Copy states in which a restore may read: every block is proven as it is read, so a damaged copy is worth trying.
READABLE = frozenset({"Complete", "Damaged"})
#: Copy states that still occupy their unit.
PRESENT = frozenset({"Complete", "Damaged", "Expiring", "Writing"})
#: How far ahead of now a time may lie and still count as now: clocks of two hosts, or of two processes, differ.
AHEAD: Final = dt.timedelta(minutes=15)
#: The kinds of proof: every digest is read again, a sample of the files, the machine is started.
CONTENT: Final = "Content"
FILES: Final = "Files"
BOOT: Final = "Boot"
#: Those that try what an image is good for, rather than whether a copy is what was written.
DRILLS: Final = (FILES, BOOT)


def believed(moment: dt.datetime, now: dt.datetime) -> dt.datetime:
    """A time that was written down; where it lies clearly ahead of now, the clock was wrong then, and it counts as long
    past: nothing may wait until the clock gets there."""
    return moment if moment <= now + AHEAD else times.EPOCH


class Copy(NamedTuple):
    """One image on one storage unit."""

    #: From 1 within the image.
    number: int
    #: Name of the lifecycle operation that owes it.
    operation: str
    #: Name of the storage unit.
    unit: str
    #: Writing, Complete, Damaged, Lost, Expiring or Expired.
    state: str
    created_at: dt.datetime
    stored_bytes: int
    #: Image on the same unit that this copy needs to be readable, None where it stands alone.
    base: str | None
    #: Being read, or serving as base or parent of a running job.
    busy: bool = False
    #: Came back through adoption of a unit: its expiry waits for an approval.
    imported: bool = False
    #: Expiring copies: until when it can be taken back; None once its deletion has begun, or where no grace was given.
    until: dt.datetime | None = None


class Image(NamedTuple):
    """One backup of one client at one time."""

    id: str
    schedule: str
    #: Full, Incremental or Cumulative.
    type: str
    #: Complete or Partial.
    state: str
    #: When the source was frozen, UTC.
    time: dt.datetime
    #: Orders images; unique within the catalog.
    sequence: int
    #: The slot that it served, UTC.
    slot: dt.datetime
    #: Name of the lifecycle it was made under; its retention follows that lifecycle's newest revision.
    lifecycle: str
    #: Key into ``Observed.owed``: the lifecycle spec of the revision that made it, which fixes the copies it is owed.
    owed: str
    #: Image id it is relative to, None for a full.
    parent: str | None
    size_bytes: int
    copies: tuple[Copy, ...]
    #: Names of its disks, in order.
    disks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """All images of one client under one policy, ordered by sequence."""

    client: str
    policy: str
    #: Values, or ``columns.Columns`` that make them when they are asked for.
    images: Sequence[Image]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """A machine the catalog knows."""

    #: Stable identity, such as ``diskimages:/srv/guests/oblVM1``.
    id: str
    #: Safe as a file name, unique, never changed; addresses use it.
    slug: str
    name: str
    source: str
    first_seen: dt.datetime


def lies_at(client: str, folder: str) -> bool:
    """Whether the machine of this identity is the one whose disks lie in ``folder``, by the folder's real path."""
    kind, _, here = client.partition(":")
    return kind == "diskimages" and here == folder


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine as a policy's source shows it."""

    id: str
    name: str
    source: str
    disks: tuple[str, ...]
    #: Code and message of what keeps it from being backed up, if anything.
    problem: tuple[str, str] | None = None
    #: Names beside its disks that look like disks and that the policy selects not.
    left_out: tuple[str, ...] = ()
    #: Codes and messages worth telling although it can be backed up.
    notes: tuple[tuple[str, str], ...] = ()
    #: Where it runs and lies, for limits; None and empty where a source has no such thing.
    host: str | None = None
    datastores: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A snapshot of ours at a source: noted before it was made, or seen there, or both."""

    #: A UUID of ours.
    id: str
    vcenter: str
    #: Client id of the machine.
    client: str
    #: Display name of the machine.
    machine: str
    #: The job that it was made for.
    job: str
    #: The vCenter's own names of the machine and of the snapshot; None where it may never have been made.
    place: str
    reference: str | None
    #: When it was noted, or, where only the source knows it, when it was made; None where that one does not say.
    since: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What a policy's selection matches."""

    machines: tuple[Machine, ...]
    #: When these machines were seen; older than now while the source is unreachable.
    seen: dt.datetime
    #: Codes and messages worth telling of the selection.
    notes: tuple[tuple[str, str], ...] = ()
    #: Snapshots of ours that the source shows, of any machine.
    snapshots: tuple[Snapshot, ...] = ()
    #: Code and message, while the source cannot be asked.
    unreachable: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A storage unit as it is now."""

    name: str
    #: Online, Offline or ReadOnly: what its folder and identity say, not what the manifest asks.
    state: str
    #: Its UUID as its folder says; None before first use, or where that cannot be read.
    id: str | None = None
    #: Why, where it is not Online: a sentence with the next step.
    message: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    #: What reclaim would give back.
    reclaimable_bytes: int = 0
    #: Whether that could be told; nothing is deleted to make room on a unit of which it cannot.
    surveyed: bool = True
    #: Whether each image stands alone (a pool) or chains are kept (a Directory).
    standalone: bool = False
    #: When a pool's last scrub ended, or was gone on with, or the pool was made; None for any other unit, and before
    #: first use.
    proven: dt.datetime | None = None
    #: Whether a scrub has been begun and is not through.
    proving: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """A legal hold as it was resolved when it was first applied; it stands until it is released."""

    #: Of its manifest, such as ``case-4711``.
    name: str
    #: Client ids; of each, images with a time in ``[since, until)`` are held, also those that come later.
    clients: frozenset[str]
    #: Single images.
    images: frozenset[str]
    since: dt.datetime | None
    until: dt.datetime | None
    reason: str
    #: Words of its manifest that matched something and are done with, such as ``clients/oblVM3``.
    words: frozenset[str] = frozenset()
    #: Who applied it, and when; empty and None for one that is not in force yet.
    by: str = ""
    at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """What somebody decided about one thing, by command: who, when and why."""

    #: Hold (an image stays), Expire (an image is wrong and goes), Retire (a client needs no copy any more), Waive (a
    #: copy need not make its children).
    kind: str
    #: Image id, client id, or ``IMAGE/NUMBER`` of a copy.
    object: str
    by: str
    at: dt.datetime
    reason: str
    #: Expire: how long it can be taken back once it was approved.
    grace: dt.timedelta | None = None


class Verification(NamedTuple):
    """What came of proving one copy in one way, the last time."""

    #: Image id.
    image: str
    #: Copy number.
    copy: int
    #: Content (every digest), Files (a sample of files) or Boot (the machine started).
    kind: str
    #: Passed or Failed.
    state: str
    at: dt.datetime
    message: str = ""


class Trial(NamedTuple):
    """The last verification of its operation and kind in a series, of those whose image or copy has expired since."""

    #: The operation that had made the copy.
    operation: str
    found: Verification


class Restoring(NamedTuple):
    """A ``Restore`` of the manifests that was begun at least once."""

    #: Of the manifest.
    name: str
    #: Of the spec that it was begun for.
    digest: str
    #: Running, Verified, Partial (salvaged, as far as that goes) or Failed.
    state: str
    #: When it ended, or began where it has not.
    at: dt.datetime
    message: str = ""
    #: The image that the last attempt read; None where that is not known.
    image: str | None = None


class Standing(NamedTuple):
    """What people ruled, as a deleting transaction reads it."""

    holds: tuple[Hold, ...]
    rulings: tuple[Ruling, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """Consent by command to the part of a plan that has this digest; those in manifests are in ``Desired``."""

    digest: str
    #: How many copies may go at most.
    copies: int
    by: str
    until: dt.datetime
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A promise that an approval has ended, for the images of one client up to a sequence number."""

    lifecycle: str
    operation: str
    #: Canonical JSON of the promised retention; ``null`` for copies that came back through adoption.
    before: str
    #: Client id.
    client: str
    up_to: int
    #: Of the destructive part that was approved.
    digest: str
    #: Who approved it.
    by: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Somebody asked for a backup now, through the policy."""

    id: str
    policy: str
    #: Client id.
    client: str
    at: dt.datetime
    #: Sequence of the newest image there was; None where an older Holdfast asked.
    after: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A live job (Queued or Running)."""

    id: str
    address: str
    type: str
    state: str
    policy: str | None = None
    client: str | None = None
    image: str | None = None
    unit: str | None = None
    source_unit: str | None = None
    media_server: str | None = None
    #: When it started or was queued, UTC.
    since: dt.datetime | None = None
    #: What it was expected to add to its unit when it was started, None where nothing said so.
    expected_bytes: int | None = None
    #: What it added so far.
    stored_bytes: int = 0
    #: Jobs of one batch follow one another in one slot; None for a job with a slot of its own.
    batch: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Attempts:
    """What came of an action's earlier attempts."""

    #: All that did not succeed: Failed, Partial, Cancelled and Lost.
    failed: int
    #: Those of them that were Lost; they do not count against the retries.
    lost: int
    last_finished: dt.datetime
    #: State of the last attempt: Failed, Partial, Cancelled, Lost or Overrun.
    last_state: str
    message: str
    #: Why the last attempt ended so, in CamelCase; empty where nobody says.
    code: str = ""
    #: Those of the lost whose process was asked to stop, and did.
    stopped: int = 0
    #: Those that a closing window stopped; ``last_state`` is Overrun after one. They do not count against the retries.
    overran: int = 0
