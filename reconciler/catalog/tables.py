"""The schema of the catalog as SQLModel tables; ``migrations`` builds the same, and a test compares the two.

Read by every module of this package and by nobody outside it. Columns keep times as integer microseconds since 1970
(``Moment``) and JSON as canonical text (``Document``), so that SQLite and PostgreSQL order and compare them alike.
The upper-case names at the end are the same tables for Core statements, which everything that touches sets uses.
Constraints carry names by convention, because SQLite can only change a table whose constraints are named.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import sqlalchemy as sa
from sqlmodel import Field

from reconciler.catalog import columns, prooftables
from reconciler.catalog.columns import Document, Moment, Row, RowNumber

METADATA: Final = columns.METADATA

VerificationRow = prooftables.VerificationRow
RestoreRow = prooftables.RestoreRow

#: Job states in which a job holds its address and keeps copies from expiring.
LIVE: Final = ("Queued", "Running")
_LIVE_CLAUSE: Final = "state IN ('Queued', 'Running')"


class Fact(Row, table=True):
    """Single facts of the catalog itself: its id, the revision in force."""

    __tablename__ = "facts"
    key: str = Field(primary_key=True)
    value: str


class Counter(Row, table=True):
    """Numbers that only grow."""

    __tablename__ = "counters"
    name: str = Field(primary_key=True)
    value: int = Field(sa_type=sa.BigInteger)


class ManifestObject(Row, table=True):
    """An object in force, or orphaned."""

    __tablename__ = "objects"
    kind: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    #: The whole manifest as users write it, defaults included.
    document: Any = Field(sa_type=Document)
    #: Since when this document is in force.
    since: dt.datetime = Field(sa_type=Moment)
    orphaned: bool
    revision: str


class Anchor(Row, table=True):
    """From when the slots of a schedule count."""

    __tablename__ = "anchors"
    policy: str = Field(primary_key=True)
    schedule: str = Field(primary_key=True)
    at: dt.datetime = Field(sa_type=Moment)


class RetentionPromise(Row, table=True):
    """A retention that a revision replaced, and the images it was promised to."""

    __tablename__ = "promises"
    __table_args__ = (sa.UniqueConstraint("lifecycle", "operation", "digest"),)
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    lifecycle: str
    operation: str
    #: Of ``retention``.
    digest: str
    retention: Any = Field(sa_type=Document)
    #: Sequence number of the newest image it covers.
    up_to: int = Field(sa_type=sa.BigInteger)


class HoldRecord(Row, table=True):
    """A legal hold as it was resolved at its first apply."""

    __tablename__ = "holds"
    name: str = Field(primary_key=True)
    #: Lists of client ids and of image ids.
    clients: Any = Field(sa_type=Document)
    images: Any = Field(sa_type=Document)
    since: dt.datetime | None = Field(sa_type=Moment)
    until: dt.datetime | None = Field(sa_type=Moment)
    reason: str
    #: Words of the manifest that matched something.
    words: Any = Field(sa_type=Document)
    by: str
    at: dt.datetime = Field(sa_type=Moment)
    #: Object of by, at and reason once it was released.
    released: Any = Field(default=None, sa_type=Document, nullable=True)


class RulingRecord(Row, table=True):
    """What somebody decided about one image, copy or client, and whether that still stands."""

    __tablename__ = "rulings"
    __table_args__ = (sa.Index(None, "kind", "object"),)
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    #: Hold, Expire, Retire or Waive.
    kind: str
    object: str
    by: str
    at: dt.datetime = Field(sa_type=Moment)
    reason: str
    #: Expire: how long it can be taken back, in seconds.
    grace: int | None = Field(default=None, sa_type=sa.BigInteger)
    ended_at: dt.datetime | None = Field(default=None, sa_type=Moment)
    ended_by: str | None = None
    ended_reason: str | None = None


class ApprovalRecord(Row, table=True):
    """Consent by command to one part of a plan."""

    __tablename__ = "approvals"
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    digest: str = Field(index=True)
    copies: int = Field(sa_type=sa.BigInteger)
    by: str
    at: dt.datetime = Field(sa_type=Moment)
    until: dt.datetime = Field(sa_type=Moment)
    reason: str


class ReleaseRecord(Row, table=True):
    """A promise that an approval has ended, for the images of one client up to a sequence number."""

    __tablename__ = "releases"
    __table_args__ = (sa.UniqueConstraint("lifecycle", "operation", "before", "client_id", "up_to"),)
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    lifecycle: str
    operation: str
    #: Canonical JSON of the promised retention.
    before: str
    client_id: str
    up_to: int = Field(sa_type=sa.BigInteger)
    #: Of the destructive part, and who approved it.
    digest: str
    by: str
    at: dt.datetime = Field(sa_type=Moment)


class AlarmRecord(Row, table=True):
    """An alarm that stands, or is over and not everybody has heard so, and which channel was told when."""

    __tablename__ = "alarms"
    key: str = Field(primary_key=True)
    severity: str
    title: str
    message: str
    since: dt.datetime = Field(sa_type=Moment)
    told_at: dt.datetime | None = Field(sa_type=Moment)
    over_at: dt.datetime | None = Field(sa_type=Moment)
    #: By channel (scheme and place): toldAt, failures and triedAt, times in microseconds.
    ears: Any = Field(sa_type=Document)


class ClientRow(Row, table=True):
    """A machine that was seen at least once."""

    __tablename__ = "clients"
    id: str = Field(primary_key=True)
    slug: str = Field(unique=True)
    name: str
    source: str
    first_seen: dt.datetime = Field(sa_type=Moment)


class InventoryRow(Row, table=True):
    """What a policy's selection matched when its source last answered."""

    __tablename__ = "inventories"
    policy: str = Field(primary_key=True)
    machines: Any = Field(sa_type=Document)
    seen: dt.datetime = Field(sa_type=Moment)


class SnapshotRow(Row, table=True):
    """A snapshot at a source that was about to be made and is not known to be gone."""

    __tablename__ = "snapshots"
    id: str = Field(primary_key=True)
    vcenter: str
    #: Client id and display name of the machine, and the vCenter's own name of it.
    client_id: str
    machine: str
    place: str
    #: The job that it is for.
    job: str
    #: The vCenter's own name of it, once it was made.
    reference: str | None
    #: Workers, as ``workers.of`` names them, that read it.
    readers: Any = Field(sa_type=Document)
    since: dt.datetime = Field(sa_type=Moment)


class UnitRow(Row, table=True):
    """A storage unit that was used at least once, and who it was then."""

    __tablename__ = "units"
    name: str = Field(primary_key=True)
    id: str = Field(unique=True)
    type: str
    path: str
    learned: dt.datetime = Field(sa_type=Moment)


class LifecycleVersion(Row, table=True):
    """A lifecycle spec as some image's revision had it."""

    __tablename__ = "lifecycle_versions"
    digest: str = Field(primary_key=True)
    spec: Any = Field(sa_type=Document)


_WALKED: Final = (
    "spent", "client_id", "policy", "sequence", "id", "time", "slot", "parent", "size_bytes", "schedule", "type",
    "state", "lifecycle", "owed", "disk_names",
)  # fmt: skip


class ImageRecord(Row, table=True):
    """One backup of one client at one time."""

    __tablename__ = "images"
    __table_args__ = (
        sa.Index(None, "spent", "client_id", "policy", "sequence"),
        # Holds all that a walk asks for, in its order: the images of a series lie as far apart as they were made.
        sa.Index("ix_images_walk", *_WALKED).ddl_if(dialect="sqlite"),
        sa.Index(None, "owed"),
    )
    id: str = Field(primary_key=True)
    client_id: str = Field(foreign_key="clients.id")
    policy: str
    schedule: str
    lifecycle: str
    owed: str = Field(foreign_key="lifecycle_versions.digest")
    #: Full, Incremental or Cumulative.
    type: str
    #: Writing (never committed), Complete or Partial.
    state: str
    time: dt.datetime = Field(sa_type=Moment)
    sequence: int = Field(sa_type=sa.BigInteger)
    slot: dt.datetime = Field(sa_type=Moment)
    revision: str
    parent: str | None
    #: Known or FullRead.
    changes: str
    consistency: str
    size_bytes: int = Field(sa_type=sa.BigInteger)
    #: Apart from ``disks`` because decisions read names alone.
    disk_names: Any = Field(sa_type=Document)
    #: List of name, size, sector, digest, blake3.
    disks: Any = Field(sa_type=Document)
    warnings: Any = Field(sa_type=Document)
    #: What the source needs to know of this reading at the next incremental, by disk.
    source_state: Any = Field(sa_type=Document)
    #: No copy is left, and a newer image of its schedule and type remembers the slots: decisions need it no more.
    spent: bool = False


#: What decisions read of a copy, kept true by the database: number, operation, unit, state, base, imported. It is the
#: same for many copies, so that a reader looks its meaning up instead of taking it apart.
_FOLD: Final = (
    "CAST(number AS TEXT) || '|' || operation || '|' || unit || '|' || state || '|' || COALESCE(base, '') || '|'"
    " || CASE WHEN imported THEN '1' ELSE '' END"
)
#: What is different for every copy, and asked for rarely: when it was made, its bytes, until when it can be taken back.
_FACTS: Final = (
    "CAST(created_at AS TEXT) || '|' || CAST(stored_bytes AS TEXT) || '|' || COALESCE(CAST(grace_until AS TEXT), '')"
)


class CopyRecord(Row, table=True):
    """One image on one storage unit."""

    __tablename__ = "copies"
    # Stored in the order of its key: every walk asks for the copies of one image after another.
    __table_args__ = (sa.Index(None, "state", "unit"), {"sqlite_with_rowid": False})
    image_id: str = Field(primary_key=True, foreign_key="images.id")
    number: int = Field(primary_key=True)
    operation: str
    unit: str
    #: Writing, Complete, Damaged, Lost, Expiring or Expired.
    state: str
    created_at: dt.datetime = Field(sa_type=Moment)
    stored_bytes: int = Field(sa_type=sa.BigInteger)
    base: str | None
    imported: bool
    #: The job that wrote it last.
    job: str | None
    #: When ``state`` last changed, and why.
    changed_at: dt.datetime = Field(sa_type=Moment)
    message: str
    #: Lost or Damaged while such a copy is written again: what it is if that is given up.
    fallback: str | None
    #: Expiring: until when it may be taken back; empty once its deletion has begun, and where no grace was given.
    grace_until: dt.datetime | None = Field(default=None, sa_type=Moment)
    fold: str = Field(sa_column=sa.Column(sa.Text, sa.Computed(_FOLD, persisted=True)))
    facts: str = Field(sa_column=sa.Column(sa.Text, sa.Computed(_FACTS, persisted=True)))


class JobRecord(Row, table=True):
    """One attempt at one action."""

    __tablename__ = "jobs"
    __table_args__ = (
        sa.Index(
            "uq_jobs_live_address",
            "address",
            unique=True,
            sqlite_where=sa.text(_LIVE_CLAUSE),
            postgresql_where=sa.text(_LIVE_CLAUSE),
        ),
        sa.Index(None, "address", "number"),
        sa.Index(None, "state", "finished_at"),
    )
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    address: str
    type: str
    #: Queued, Running, Succeeded, Partial, Failed, Cancelled or Lost.
    state: str
    attempt: int
    worker: str
    client_id: str | None
    policy: str | None
    image: str | None
    copy_number: int | None
    unit: str | None
    source_unit: str | None
    media_server: str | None
    #: Image whose changes are asked for.
    parent: str | None
    #: What it was expected to add to ``unit`` when it was started.
    expected_bytes: int | None = Field(sa_type=sa.BigInteger)
    #: Jobs with the same one follow one another in one slot.
    batch: str | None
    queued_at: dt.datetime = Field(sa_type=Moment)
    started_at: dt.datetime | None = Field(sa_type=Moment)
    finished_at: dt.datetime | None = Field(sa_type=Moment)
    wall_seconds: float | None
    #: The counters of ``meters.Reading`` by name.
    reading: Any = Field(sa_type=Document)
    error_code: str | None
    error_message: str | None
    cancel_requested: bool
    heartbeat: dt.datetime = Field(sa_type=Moment)


class JobLine(Row, table=True):
    """One line of a job's log."""

    __tablename__ = "job_lines"
    __table_args__ = (sa.Index(None, "job"),)
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    job: int = Field(sa_type=RowNumber, foreign_key="jobs.number")
    at: dt.datetime = Field(sa_type=Moment)
    line: str


class RequestRecord(Row, table=True):
    """Something that the living controller is asked to do."""

    __tablename__ = "requests"
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    kind: str
    payload: Any = Field(sa_type=Document)
    at: dt.datetime = Field(sa_type=Moment)
    actor: str
    finished_at: dt.datetime | None = Field(default=None, sa_type=Moment, index=True)
    outcome: Any = Field(default=None, sa_type=Document, nullable=True)


class AuditEntry(Row, table=True):
    """Who did what, when. Triggers refuse UPDATE and DELETE."""

    __tablename__ = "audit"
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    at: dt.datetime = Field(sa_type=Moment)
    actor: str
    event: str
    object: str
    details: Any = Field(sa_type=Document)


class LeaseRecord(Row, table=True):
    """Who leads, under which fencing token."""

    __tablename__ = "leases"
    name: str = Field(primary_key=True)
    #: Grows by one with every holder, never falls.
    token: int = Field(sa_type=sa.BigInteger)
    #: Empty once released.
    worker: str
    actor: str
    estate: str
    #: Empty, as is ``next_event``: what a controller keeps, its passes say.
    revision: str | None
    since: dt.datetime = Field(sa_type=Moment)
    next_event: dt.datetime | None = Field(sa_type=Moment)
    #: When its holder last said that it lives, by the clock of the database's server; empty where a lock says so.
    renewed: dt.datetime | None = Field(default=None, sa_type=Moment)


FACTS: Final = METADATA.tables["facts"]
COUNTERS: Final = METADATA.tables["counters"]
OBJECTS: Final = METADATA.tables["objects"]
ANCHORS: Final = METADATA.tables["anchors"]
PROMISES: Final = METADATA.tables["promises"]
HOLDS: Final = METADATA.tables["holds"]
RULINGS: Final = METADATA.tables["rulings"]
APPROVALS: Final = METADATA.tables["approvals"]
RELEASES: Final = METADATA.tables["releases"]
ALARMS: Final = METADATA.tables["alarms"]
CLIENTS: Final = METADATA.tables["clients"]
INVENTORIES: Final = METADATA.tables["inventories"]
SNAPSHOTS: Final = METADATA.tables["snapshots"]
UNITS: Final = METADATA.tables["units"]
LIFECYCLE_VERSIONS: Final = METADATA.tables["lifecycle_versions"]
IMAGES: Final = METADATA.tables["images"]
COPIES: Final = METADATA.tables["copies"]
VERIFICATIONS: Final = METADATA.tables["verifications"]
TRIALS: Final = METADATA.tables["trials"]
RESTORES: Final = METADATA.tables["restores"]
JOBS: Final = METADATA.tables["jobs"]
JOB_LINES: Final = METADATA.tables["job_lines"]
REQUESTS: Final = METADATA.tables["requests"]
AUDIT: Final = METADATA.tables["audit"]
LEASES: Final = METADATA.tables["leases"]
