"""The PlanComparison document: what ``plan --from --to`` prints of two revisions over one catalog.

A new minor ``formatVersion`` only adds keys.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api.documents import plans, results, shapes


class EndItem(shapes.Shape):
    """When a copy leaves under one revision."""

    leaves: bool
    """Whether it may leave now."""
    at: shapes.Time | None
    """When it leaves, null where that is now, cannot be said, or is never."""
    reason: shapes.CodeMessage


class MovedCopy(shapes.Shape):
    """A copy that leaves earlier or later; Undated where only one of the revisions can say when."""

    image: str
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    client: str
    policy: str
    lifecycle: str
    operation: str
    unit: str
    change: Literal["Earlier", "Later", "Undated"]
    before: EndItem
    after: EndItem


class CopyGroup(shapes.Shape):
    """How many copies of one policy and lifecycle operation leave earlier or later."""

    policy: str
    lifecycle: str
    operation: str
    earlier: int
    later: int
    undated: int
    leaving: int
    """Of the earlier ones, those that may leave now."""


class MovedCopies(shapes.Shape):
    """The copies about whose end the revisions differ."""

    earlier: int
    later: int
    undated: int
    leaving: int
    groups: tuple[CopyGroup, ...]
    items: tuple[MovedCopy, ...]
    unlisted: int
    """How many more than ``items`` there are; all are counted in ``groups``."""


class FreedUnit(shapes.Shape):
    """What may leave a unit now under one revision alone, and the bytes that would really come back."""

    unit: str
    freed_copies: int
    freed_bytes: int
    kept_copies: int
    """Copies that may leave now under the earlier revision, and not under the later one."""
    kept_bytes: int
    estimated: bool


class ProtectionItem(shapes.Shape):
    """How the backing up of one client changes."""

    client: str
    change: Literal["Gain", "Lose", "Change"]
    policies_before: tuple[str, ...]
    policies_after: tuple[str, ...]
    next_before: shapes.Time | None
    """When its next backup may begin, null where none would."""
    next_after: shapes.Time | None
    objective_before_seconds: float | None
    """How old its newest image may become."""
    objective_after_seconds: float | None


class PlanComparison(shapes.Document):
    """``plan --from REV --to REV``."""

    kind: Literal["PlanComparison"] = "PlanComparison"
    format_version: str = "1.0"
    now: shapes.Time
    from_revision: str
    to_revision: str
    in_force: str | None
    changes: bool
    """Whether the two differ in anything."""
    problems: tuple[results.DiagnosticItem, ...]
    """Those that only the later revision has."""
    configuration: tuple[plans.ConfigurationItem, ...]
    copies: MovedCopies
    units: tuple[FreedUnit, ...]
    clients: tuple[plans.OldestItem, ...]
    protection: tuple[ProtectionItem, ...]
