"""What is protected and when: backup policies, their sources and schedules, and backup windows."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import drilling, models, vcenters

Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
ClockTime = Annotated[str, pydantic.StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
ScheduleType = Literal["Full", "Incremental", "Cumulative"]


class WindowSpan(models.Model):
    """A span that begins at the same local time on the named days."""

    days: Annotated[models.Items[Day], pydantic.Field(min_length=1)]
    """The days on which the span begins."""
    start: ClockTime
    """Local time, ``HH:MM``."""
    duration: models.Duration
    """May pass midnight; at most a week."""


class BackupWindowSpec(models.Model):
    """When work may start."""

    time_zone: models.Zone = "UTC"
    """The IANA zone of every ``start``."""
    overrun: Literal["Finish", "Stop"] = "Finish"
    """``Stop`` also ends running work when the window closes."""
    allow: Annotated[models.Items[WindowSpan], pydantic.Field(min_length=1)]
    """Open spans."""
    deny: models.Items[WindowSpan] = ()
    """Closed although ``allow`` says open."""


class BackupWindow(models.Object):
    """Named start windows."""

    kind: Literal["BackupWindow"] = "BackupWindow"
    spec: BackupWindowSpec


class ChangedBlocks(models.Model):
    """Where a source finds what changed."""

    bitmap: models.Name
    """A persistent bitmap in each qcow2 disk; read, never altered."""


class DiskImages(models.Model):
    """Machines as folders of disk image files or block devices."""

    path: models.Text
    """The folder of machine folders; relative to the manifest's folder."""
    machines: models.Text = "*"
    """Glob over folder names: each match is a client."""
    disks: Annotated[models.Items[models.Text], pydantic.Field(min_length=1)] = (
        "*.img",
        "*.raw",
        "*.qcow2",
        "*.vmdk",
        "*.vhdx",
    )
    """Globs over file names: each match is a disk of the client."""
    consistency: Literal["Offline", "Live"] = "Offline"
    """``Live`` accepts disks that another process writes while they are read."""
    changed_blocks: ChangedBlocks | None = None
    """Where changes are known without comparing; by default the disk is compared with its last image."""


class Catalog(models.Model):
    """The catalog itself, as one machine with one disk."""


class Source(models.Model):
    """Where machines come from: exactly one kind of source."""

    disk_images: DiskImages | None = None
    """Machines as folders of disk image files."""
    vmware: vcenters.VMware | None = None
    """Virtual machines of a vCenter."""
    catalog: Catalog | None = None
    """The catalog of this estate."""


class Schedule(models.Model):
    """When one type of backup is due."""

    name: models.Name
    """Unique within the policy."""
    type: ScheduleType
    """``Incremental``: since the last image of the series; ``Cumulative``: since its last Full."""
    cron: models.Text | None = None
    """Five cron fields, in ``timeZone``."""
    every: models.Duration | None = None
    """A period, counted from the slot that the last success served."""
    time_zone: models.Zone = "UTC"
    """The IANA zone of ``cron``."""
    full_every: models.Duration | None = None
    """Incremental: becomes a Full when the last Full's slot is this old."""
    window: models.Name | None = None
    """A BackupWindow in which it may start."""
    catch_up: Literal["Latest", "None"] = "Latest"
    """What happens to slots that passed while nothing could start."""
    starting_deadline: models.Duration | None = None
    """How long after its slot a backup may still start; until the next slot by default."""
    initial_backup: Literal["Immediately", "NextSlot"] | None = None
    """When a series without images begins: at once under ``every``, at its next slot under ``cron``."""
    previous_names: models.Items[models.Name] = ()
    """Names this schedule had before, so that its history follows."""


class Limits(models.Model):
    """How much a policy may do at the same time."""

    max_concurrent_jobs: Annotated[int, pydantic.Field(ge=1, le=10_000)] | None = None
    """Machines of this policy at the same time; no limit of its own by default."""
    max_streams_per_client: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """Disks of one machine that are read at the same time."""


class Retries(models.Model):
    """What follows a failed attempt."""

    count: Annotated[int, pydantic.Field(ge=0, le=20)] = 2
    """Further attempts within the slot."""


class Hooks(models.Model):
    """Commands around the reading of a machine."""

    before: models.Items[models.Text] = ()
    """Program and arguments, run before the disks are opened."""
    after: models.Items[models.Text] = ()
    """Program and arguments, run once reading has ended, however it ended."""
    timeout: models.Duration = pydantic.Field(default_factory=lambda: models._duration("5m"))
    """How long each program may run."""


class Suspend(models.Model):
    """A pause that names its reason and its end."""

    reason: models.Text
    """Why; shown wherever the pause is."""
    until: models.Moment
    """When backups go on by themselves."""


class BackupPolicySpec(models.Model):
    """What is protected, when, and by which lifecycle."""

    source: Source
    """Where the machines come from."""
    schedules: Annotated[models.Items[Schedule], pydantic.Field(min_length=1)]
    """When backups are due."""
    lifecycle: models.Name
    """A StorageLifecyclePolicy."""
    limits: Limits = Limits()
    """How much may happen at the same time."""
    priority: Annotated[int, pydantic.Field(ge=-1000, le=1000)] = 0
    """Higher goes first."""
    retries: Retries = Retries()
    """What follows a failed attempt."""
    hooks: Hooks | None = None
    """Programs run around the reading of a machine."""
    suspend: Suspend | None = None
    """A pause, with its reason and its end."""
    index: bool = True
    """Whether files inside the guests are indexed."""
    drills: drilling.Drills = drilling.Drills()
    """How ``verify: {files, boot}`` tries its machines."""
    free_space: Literal["Keep", "Skip"] = "Keep"
    """``Keep`` makes every image bit-identical; with ``Skip`` what a guest's file system calls free reads as zeros."""
    exclude: models.Items[Literal["PageFile", "SwapVolume"]] = ()
    """Contents of a guest that read as zeros in its images, because the guest writes them anew."""
    previous_names: models.Items[models.Name] = ()
    """Names this policy had before, so that its history follows."""


class BackupPolicy(models.Object):
    """Which machines are backed up, when and where to."""

    kind: Literal["BackupPolicy"] = "BackupPolicy"
    spec: BackupPolicySpec
