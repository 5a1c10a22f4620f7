"""Where every copy of an image goes and how long it stays: storage lifecycle policies and their retention."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import models

Count = Annotated[int, pydantic.Field(ge=1, le=1_000_000)]


class Fixed(models.Model):
    """Eligible when a period has passed since image time and every owed child copy is paid."""

    type: Literal["Fixed"]
    period: models.Duration
    """Counted from image time."""


class Keep(models.Model):
    """Keep some images of each natural period; everything that no rule keeps is eligible."""

    type: Literal["Keep"]
    last: Count | None = None
    """The newest images."""
    hourly: Count | None = None
    """The newest image of each of so many hours that have one."""
    daily: Count | None = None
    """The newest image of each of so many days that have one."""
    weekly: Count | None = None
    """The newest image of each of so many weeks that have one."""
    monthly: Count | None = None
    """The newest image of each of so many months that have one."""
    quarterly: Count | None = None
    """The newest image of each of so many quarters that have one."""
    yearly: Count | None = None
    """The newest image of each of so many years that have one."""
    within: models.Duration | None = None
    """Every image of this span before the newest one."""
    within_hourly: models.Duration | None = None
    """One image of each hour in this span."""
    within_daily: models.Duration | None = None
    """One image of each day in this span."""
    within_weekly: models.Duration | None = None
    """One image of each week in this span."""
    within_monthly: models.Duration | None = None
    """One image of each month in this span."""
    within_yearly: models.Duration | None = None
    """One image of each year in this span."""
    keep_oldest: bool = False
    """Also keep the oldest image while counts are left."""
    prefer: Literal["Newest", "Full"] = "Newest"
    """``Full`` picks the newest full of a bucket where it has one."""
    time_zone: models.Zone = "UTC"
    """The zone in which hours, days, weeks, months and years begin."""


class ExpireAfterCopy(models.Model):
    """Eligible as soon as every direct child copy is paid."""

    type: Literal["ExpireAfterCopy"]


class CapacityManaged(models.Model):
    """Stays until the unit passes its high water mark; then oldest first, down to the low one."""

    type: Literal["CapacityManaged"]
    desired: models.Duration | None = None
    """How long copies should stay if space allows."""


class Forever(models.Model):
    """Never expires."""

    type: Literal["Forever"]


Retention = Annotated[Fixed | Keep | ExpireAfterCopy | CapacityManaged | Forever, pydantic.Field(discriminator="type")]


class Verify(models.Model):
    """How recently copies must have been proven."""

    content: models.Duration | None = None
    """Every digest re-read."""
    files: models.Duration | None = None
    """Volumes opened, a sample of files read."""
    boot: models.Duration | None = None
    """The machine started."""


class Operation(models.Model):
    """One copy of every image: where, when, how long."""

    name: models.Name
    """Unique within the lifecycle."""
    type: Literal["Backup", "Duplication"]
    """``Backup`` reads the machine, ``Duplication`` another copy."""
    source: models.Name | None = None
    """Duplication: the operation whose copy is duplicated."""
    storage: models.Name
    """A StorageUnit or StorageUnitGroup."""
    retention: Retention
    """How long copies stay."""
    window: models.Name | None = None
    """A BackupWindow in which this operation may start."""
    schedules: models.Items[models.Name] | None = None
    """Only images of these schedules get this copy; all of them by default."""
    existing: Literal["None", "Backfill"] = "None"
    """``Backfill``: images made under earlier revisions get this copy too."""
    verify: Verify | None = None
    """How recently copies must have been proven."""
    previous_names: models.Items[models.Name] = ()
    """Names this operation had before, so that its history follows."""


class StorageLifecyclePolicySpec(models.Model):
    """A tree of operations: one Backup, any number of Duplications under it."""

    operations: Annotated[models.Items[Operation], pydantic.Field(min_length=1)]
    """The copies of every image; Duplications name the operation they copy from."""


class StorageLifecyclePolicy(models.Object):
    """Every copy's place and lifetime, from creation to expiration."""

    kind: Literal["StorageLifecyclePolicy"] = "StorageLifecyclePolicy"
    spec: StorageLifecyclePolicySpec
