"""What single commands print: validation, restore, pool statistics, version, and the outcome of apply."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from reconciler.api.documents import shapes
from reconciler.base import diagnostics


class DiagnosticItem(shapes.Shape):
    """One finding; ``file`` is relative to the estate, line and column count from 1."""

    severity: str
    code: str
    file: str | None
    line: int | None
    column: int | None
    object: str | None
    path: str | None
    message: str
    hint: str | None


def diagnostic_item(found: diagnostics.Diagnostic) -> DiagnosticItem:
    """The document form of a diagnostic."""
    place = found.position
    return DiagnosticItem(
        severity=found.severity.value,
        code=found.code,
        file=place.file if place else None,
        line=place.line if place else None,
        column=place.column if place else None,
        object=found.object,
        path=found.path,
        message=found.message,
        hint=found.hint,
    )


class ValidationResult(shapes.Document):
    """``validate``."""

    kind: Literal["ValidationResult"] = "ValidationResult"
    valid: bool
    errors: int
    warnings: int
    objects: int
    revision: str
    diagnostics: tuple[DiagnosticItem, ...]


class RestoredDisk(shapes.Shape):
    """One disk of a restore."""

    name: str
    path: str
    size_bytes: int
    written_bytes: int
    #: What an earlier attempt at the same restore had written, proven.
    resumed_bytes: int
    #: What was read back from the device after it was written; ``sizeBytes`` where that is all of it.
    read_back_bytes: int
    digest: str
    verified: bool


class RestorePhase(shapes.Shape):
    """One phase of the restore of a machine; ``bytes`` are those of the disks that it went through."""

    name: str
    seconds: float
    bytes: int


class RestoreCopy(shapes.Shape):
    """One copy that is read, in the order in which they are; ``reason`` says why it stands there."""

    number: int
    unit: str
    unit_type: str | None
    reason: str


class RestoreResult(shapes.Document):
    """``restore``. For a machine in a vCenter ``target`` is ``vsphere:VCENTER/PATH``.

    ``via``, ``identity`` and ``phases`` are there where a machine is made, in a vCenter or staged.
    """

    kind: Literal["RestoreResult"] = "RestoreResult"
    client: str
    image: str
    image_time: shapes.Time
    # ``copy`` is a method of every pydantic model, so the field has another name inside.
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    format: str
    subformat: str | None
    target: str
    dry_run: bool
    state: str
    wall_seconds: float
    #: By the newest restores from the same unit.
    estimated_seconds: float | None
    #: Bytes of data, without what is known to be zero.
    data_bytes: int | None
    resumed_bytes: int
    #: Of space at the target, at most, and what is there.
    needed_bytes: int | None
    free_bytes: int | None
    copies: tuple[RestoreCopy, ...]
    disks: tuple[RestoredDisk, ...]
    via: str | None = None
    identity: str | None = None
    phases: tuple[RestorePhase, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form; what only machines have is left out for disks, as readers of disks have known it so far."""
        found = super().to_json()
        if self.format not in ("machine", "staged"):
            for key in ("via", "identity", "phases"):
                del found[key]
        return found


class MountedDisk(shapes.Shape):
    """One disk that is served; ``uri`` where NBD clients find it, null where it lies in the mount point alone."""

    name: str
    uri: str | None
    size_bytes: int
    writable: bool


class MountResult(shapes.Document):
    """``mount``, once what it serves can be used. ``mountPoint`` is the folder of files, null where there is none."""

    kind: Literal["MountResult"] = "MountResult"
    client: str
    image: str
    image_time: shapes.Time
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    disks: tuple[MountedDisk, ...]
    mount_point: str | None


class PoolStats(shapes.Document):
    """``pool stats``. ``ratio`` = logical / (stored - attachment), ``nonZeroRatio`` = non-zero / the same, over all
    images. ``attachmentBytes``: of what is stored, documents that images carry beside their disks."""

    kind: Literal["PoolStats"] = "PoolStats"
    unit: str
    images: int
    logical_bytes: int
    non_zero_bytes: int
    stored_bytes: int
    attachment_bytes: int
    ratio: float | None
    non_zero_ratio: float | None
    segments: int
    containers: int
    dead_bytes: int
    reclaimable_bytes: int
    cache_hit_ratio: float | None
    generation: int


class CollectPart(shapes.Shape):
    """Containers that a collection takes; ``bytes`` is what comes back, what is written anew taken off."""

    containers: int
    bytes: int


class CollectKept(shapes.Shape):
    """Dead bytes that a collection leaves, and why."""

    code: str
    message: str
    containers: int
    bytes: int


class CollectPreview(shapes.Document):
    """``pool collect --dry-run``. ``waitingBytes``: condemned by a collection that was interrupted."""

    kind: Literal["CollectPreview"] = "CollectPreview"
    unit: str
    threshold_percent: int
    freed_bytes: int
    waiting_bytes: int
    dead: CollectPart
    rewritten: CollectPart
    kept: tuple[CollectKept, ...]


class ScrubRange(shapes.Shape):
    """A range of an image's disk, or of an attachment of that name, that the pool cannot give back now."""

    image: str
    disk: str
    attachment: bool
    offset: int
    length: int
    message: str


class ScrubResult(shapes.Document):
    """``pool scrub``. ``complete``: a round over all containers ended; else the next scrub goes on where this one was.

    ``damagedCopies`` and ``healedCopies`` are what the catalog learned.
    """

    kind: Literal["ScrubResult"] = "ScrubResult"
    unit: str
    complete: bool
    round_started: shapes.Time
    containers: int
    read_bytes: int
    remaining_bytes: int
    false_segments: int
    healed_segments: int
    lost_segments: int
    findings: tuple[str, ...]
    ranges: tuple[ScrubRange, ...]
    damaged_copies: tuple[str, ...]
    healed_copies: tuple[str, ...]


class RebuildSource(shapes.Shape):
    """What a catalog was made from: a unit's ``Dump``, an ``Image`` of the catalog, or a ``File``."""

    kind: Literal["Dump", "Image", "File"]
    place: str
    time: shapes.Time


class RebuildUnit(shapes.Shape):
    """Copies on a unit that was not given."""

    unit: str
    copies: int


class CatalogRebuildResult(shapes.Document):
    """``catalog rebuild``. ``source`` is null where labels alone told.

    ``imagesTaken`` and ``copiesTaken`` are those that only labels told of; ``lost`` copies that their units lack;
    ``unreachable`` those on units that were not given.
    """

    kind: Literal["CatalogRebuildResult"] = "CatalogRebuildResult"
    catalog: str
    location: str
    dry_run: bool
    source: RebuildSource | None
    units: tuple[str, ...]
    clients: int
    images: int
    copies: int
    images_taken: int
    copies_taken: int
    lost: int
    damaged: int
    unreachable: tuple[RebuildUnit, ...]
    jobs_lost: int
    requests_dropped: int
    warnings: tuple[str, ...]
    wall_seconds: float


class ActionOutcome(shapes.Shape):
    """What became of one action of a pass."""

    address: str
    type: str
    state: str
    job: str | None
    error: shapes.CodeMessage | None


class ApplyResult(shapes.Document):
    """``apply``, ``run --once`` and ``backup --wait``: what one pass did."""

    kind: Literal["ApplyResult"] = "ApplyResult"
    revision: str
    configuration: int
    succeeded: int
    partial: int
    failed: int
    waiting: int
    blocked: int
    held: int
    converged: bool
    actions: tuple[ActionOutcome, ...]


class ChannelAnswer(shapes.Shape):
    """What became of a message to one channel; its name is the scheme and the place of its URL."""

    channel: str
    taken: bool
    message: str | None


class NotifyResult(shapes.Document):
    """``notify test``."""

    kind: Literal["NotifyResult"] = "NotifyResult"
    channels: tuple[ChannelAnswer, ...]


class Version(shapes.Document):
    """``version``."""

    kind: Literal["Version"] = "Version"
    version: str
    python: str
    crash_points: tuple[str, ...]


class Message(shapes.Document):
    """A command whose whole result is that it was done."""

    kind: Literal["Result"] = "Result"
    done: bool
    message: str
    details: dict[str, Any] = pydantic.Field(default_factory=dict)
