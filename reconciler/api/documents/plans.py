"""The Plan document: what ``plan -o json`` prints, ``plan --out`` saves and ``apply FILE`` reads back.

Unknown keys are ignored on reading; a new minor ``formatVersion`` only adds some. ``estate`` is the one key beyond the
pinned shape: it tells ``apply FILE`` which folder the plan was made of.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import alias_generators

from reconciler.api import models


class Document(pydantic.BaseModel):
    """A frozen camelCase value that ignores what it does not know."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=alias_generators.to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        use_attribute_docstrings=True,
    )

    def written(self) -> dict[str, Any]:
        """The JSON form: every key present, unknown values null."""
        return self.model_dump(mode="json", by_alias=True)


class Problem(Document):
    """One finding about the manifests or their source."""

    severity: Literal["Error", "Warning"]
    code: str
    file: str | None
    line: int | None
    column: int | None
    object: str | None
    path: str | None
    message: str
    hint: str | None


class Drift(Document):
    """Something in the world that the manifests do not account for."""

    code: str
    object: str
    message: str


class FieldChange(Document):
    """One field that a revision changes."""

    path: str
    before: Any
    after: Any


class ConfigurationChange(Document):
    """One object that a revision changes."""

    change: Literal["Create", "Update", "Orphan", "Adopt"]
    kind: str
    name: str
    fields: tuple[FieldChange, ...]


class Reason(Document):
    """Why: a CamelCase code and a sentence."""

    code: str
    message: str


class Action(Document):
    """One thing to do."""

    address: str
    type: Literal["Backup", "Duplicate", "Expire", "Reclaim", "Verify", "Restore", "RemoveSnapshot"]
    state: Literal["Due", "Waiting", "Blocked", "Planned"]
    at: models.Moment | None
    """When it was, or will be, due; for Waiting ones, until when."""
    after: tuple[str, ...]
    """Addresses of actions that must succeed first."""
    policy: str | None
    schedule: str | None
    client: str | None
    image: str | None
    copy_number: Annotated[int | None, pydantic.Field(alias="copy")]
    operation: str | None
    unit: str | None
    source_unit: str | None
    bytes: int | None
    reason: Reason


class Destroyed(Document):
    """A copy that would go before its promise."""

    image: str
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    expires_before: models.Moment | None
    expires_after: models.Moment | None


class OldestPoint(Document):
    """How a client's oldest restore point moves."""

    client: str
    oldest_before: models.Moment | None
    oldest_after: models.Moment | None


class Destruction(Document):
    """The destructive part: what waits for an approval."""

    digest: str | None
    copies: int
    bytes: int
    estimated: bool
    approved: bool
    items: tuple[Destroyed, ...]
    clients: tuple[OldestPoint, ...]


class Summary(Document):
    """How many actions are in which state, and whether anything is to be done now."""

    due: int
    waiting: int
    blocked: int
    planned: int
    changes: bool


class Plan(Document):
    """What would be done, and why."""

    api_version: Literal["holdfast/v1alpha1"] = "holdfast/v1alpha1"
    kind: Literal["Plan"] = "Plan"
    format_version: str = "1.0"
    estate: str | None = None
    """Absolute path of the estate the plan was made of."""
    now: models.Moment
    horizon: models.Moment
    revision: str
    in_force: str | None
    digest: str
    """Over everything else in the plan except ``estate``."""
    problems: tuple[Problem, ...]
    drift: tuple[Drift, ...]
    configuration: tuple[ConfigurationChange, ...]
    actions: tuple[Action, ...]
    destruction: Destruction
    summary: Summary
