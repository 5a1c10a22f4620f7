"""What single commands print: validation, version, a rebuilt catalog, and the outcome of apply."""

from __future__ import annotations

from typing import Any, Literal

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
