"""The Plan document: what ``plan -o json`` prints, ``plan --out`` saves and ``apply FILE`` reads back.

A new minor ``formatVersion`` only adds keys. A saved file carries a few keys more than the document (its estate, state
and catalog), which readers of the document ignore.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from reconciler.api.documents import results, shapes


class DriftItem(shapes.Shape):
    """Something in the world that the manifests do not account for."""

    code: str
    object: str
    message: str


class FieldItem(shapes.Shape):
    """One field that a revision changes."""

    path: str
    before: Any
    after: Any


class ConfigurationItem(shapes.Shape):
    """One object that a revision changes."""

    change: Literal["Create", "Update", "Orphan", "Adopt"]
    kind: str
    name: str
    fields: tuple[FieldItem, ...]


class ActionItem(shapes.Shape):
    """One thing to do; ``at`` is when it was or will be due, for Waiting ones until when."""

    address: str
    type: Literal["Backup", "Duplicate", "Expire", "Reclaim", "Verify", "Restore", "RemoveSnapshot"]
    state: Literal["Due", "Waiting", "Blocked", "Planned"]
    at: shapes.Time | None
    after: tuple[str, ...]
    policy: str | None
    schedule: str | None
    client: str | None
    image: str | None
    # ``copy`` is a method of every pydantic model, so the field has another name inside.
    copy_number: Annotated[int | None, pydantic.Field(alias="copy")]
    operation: str | None
    unit: str | None
    source_unit: str | None
    bytes: int | None
    reason: shapes.CodeMessage


class DestroyedItem(shapes.Shape):
    """A copy that would go before its promise."""

    image: str
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    expires_before: shapes.Time | None
    expires_after: shapes.Time | None


class OldestItem(shapes.Shape):
    """How a client's oldest restore point would move."""

    client: str
    oldest_before: shapes.Time | None
    oldest_after: shapes.Time | None


class Destruction(shapes.Shape):
    """The destructive part: what waits for an approval."""

    digest: str | None
    copies: int
    bytes: int
    estimated: bool
    approved: bool
    items: tuple[DestroyedItem, ...]
    clients: tuple[OldestItem, ...]


class Summary(shapes.Shape):
    """How many actions are in which state, and whether anything is to be done now."""

    due: int
    waiting: int
    blocked: int
    planned: int
    changes: bool


class Plan(shapes.Document):
    """``plan``."""

    kind: Literal["Plan"] = "Plan"
    format_version: str = "1.0"
    now: shapes.Time
    horizon: shapes.Time
    revision: str
    in_force: str | None
    digest: str
    problems: tuple[results.DiagnosticItem, ...]
    drift: tuple[DriftItem, ...]
    configuration: tuple[ConfigurationItem, ...]
    actions: tuple[ActionItem, ...]
    destruction: Destruction
    summary: Summary
