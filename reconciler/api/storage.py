"""Where bytes stay, as users declare it: storage units, groups of them, and the media servers that reach them."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import models

UnitType = Literal["Directory", "DedupePool"]


class Immutability(models.Model):
    """A lock on every copy of the unit."""

    period: models.Duration
    """No copy leaves before this time has passed since it was made."""


class Compression(models.Model):
    """How a pool compresses its segments."""

    algorithm: Literal["zstd"] = "zstd"
    """The only algorithm so far."""
    level: Annotated[int, pydantic.Field(ge=1, le=19)] = 1
    """1 is fast; 3 saves a little more."""


class Scrub(models.Model):
    """How often a pool re-reads what it stores."""

    every: models.Duration
    """The time within which every container is read once."""


class StorageUnitSpec(models.Model):
    """One place that holds images."""

    type: UnitType
    """``Directory`` keeps transparent files; ``DedupePool`` keeps each segment once."""
    path: models.Text
    """The root folder; relative to the manifest's folder. It must exist."""
    max_concurrent_jobs: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 4
    """Jobs that may use the unit at the same time; 0 disables it."""
    high_water_mark: models.Percent = "98%"
    """Above this fill the unit takes no new copies. Bytes that running jobs will add count as taken, bytes that a
    collection would give back as free."""
    low_water_mark: models.Percent = "80%"
    """Down to this fill a capacity-managed unit is emptied."""
    failure_domain: models.Name | None = None
    """What fails together; units without one are a domain each."""
    immutability: Immutability | None = None
    """A lock on every copy."""
    state: Literal["Active", "ReadOnly", "Draining"] = "Active"
    """``ReadOnly`` takes nothing new, copies still expire; ``Draining`` also moves its copies elsewhere."""
    segment_size: models.Size | None = None
    """DedupePool: bytes per segment, a power of two from 4KiB to 1MiB; 128KiB by default, fixed at first use."""
    compression: Compression | None = None
    """DedupePool: how segments are compressed."""
    scrub: Scrub | None = None
    """DedupePool: how often stored data is re-read."""
    grace: models.Duration | None = None
    """How long a copy that was decided to go can be taken back, save one that makes room or moved; none by default."""
    previous_names: models.Items[models.Name] = ()
    """Names this unit had before, so that its history follows."""


class StorageUnit(models.Object):
    """A folder that holds images."""

    kind: Literal["StorageUnit"] = "StorageUnit"
    spec: StorageUnitSpec


class StorageUnitGroupSpec(models.Model):
    """Several units under one name."""

    selection: Literal["Prioritized", "Failover", "RoundRobin", "LoadBalance"] = "Prioritized"
    """How a member is chosen for each job."""
    members: Annotated[models.Items[models.Name], pydantic.Field(min_length=1)]
    """Names of storage units, in order of preference."""


class StorageUnitGroup(models.Object):
    """Several storage units that a lifecycle may name as one."""

    kind: Literal["StorageUnitGroup"] = "StorageUnitGroup"
    spec: StorageUnitGroupSpec


class MediaServerSpec(models.Model):
    """A worker that moves data."""

    max_concurrent_jobs: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 8
    """Jobs that may run on it at the same time; 0 disables it."""
    storage_units: Annotated[models.Items[models.Name], pydantic.Field(min_length=1)]
    """The units it reaches."""


class MediaServer(models.Object):
    """A worker that moves data to the units it reaches."""

    kind: Literal["MediaServer"] = "MediaServer"
    spec: MediaServerSpec
