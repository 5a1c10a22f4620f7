"""What ``get`` prints: one list document per kind of thing, items sorted by their first key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from reconciler.api.documents import shapes


class ImageDisk(shapes.Shape):
    """One disk of an image."""

    name: str
    size_bytes: int
    digest: str | None


class ImageItem(shapes.Shape):
    """One image."""

    id: str
    client: str
    client_id: str
    policy: str
    schedule: str
    lifecycle: str
    type: str
    state: str
    time: shapes.Time
    sequence: int
    revision: str
    parent: str | None
    changes: str
    consistency: str
    size_bytes: int
    disks: tuple[ImageDisk, ...]
    warnings: tuple[shapes.CodeMessage, ...]
    copies: tuple[int, ...]


class ImageList(shapes.Document):
    """``get images``."""

    kind: Literal["ImageList"] = "ImageList"
    items: tuple[ImageItem, ...]


class CopyItem(shapes.Shape):
    """One copy of an image."""

    image: str
    number: int
    client: str
    policy: str
    operation: str
    unit: str
    state: str
    created_at: shapes.Time
    stored_bytes: int
    expires_at: shapes.Time | None
    decision: shapes.CodeMessage | None


class CopyList(shapes.Document):
    """``get copies``."""

    kind: Literal["CopyList"] = "CopyList"
    items: tuple[CopyItem, ...]


class JobItem(shapes.Shape):
    """One job: an attempt at an action."""

    id: str
    address: str
    type: str
    state: str
    attempt: int
    client: str | None
    policy: str | None
    image: str | None
    # ``copy`` is a method of every pydantic model, so the field has another name inside.
    copy_number: Annotated[int | None, pydantic.Field(alias="copy")]
    unit: str | None
    source_unit: str | None
    started_at: shapes.MilliTime | None
    finished_at: shapes.MilliTime | None
    wall_seconds: float | None
    scanned_bytes: int
    non_zero_bytes: int
    sent_bytes: int
    stored_bytes: int
    cache_hit_ratio: float | None
    streams: int
    error: shapes.CodeMessage | None


class JobList(shapes.Document):
    """``get jobs``."""

    kind: Literal["JobList"] = "JobList"
    items: tuple[JobItem, ...]


class Condition(shapes.Shape):
    """One condition in Kubernetes form."""

    type: str
    status: str
    reason: str
    message: str
    since: shapes.Time | None


class ClientItem(shapes.Shape):
    """One protected machine."""

    id: str
    name: str
    slug: str
    source: str
    policies: tuple[str, ...]
    images: int
    oldest_image: shapes.Time | None
    newest_image: shapes.Time | None
    last_success: shapes.Time | None
    conditions: tuple[Condition, ...]


class ClientList(shapes.Document):
    """``get clients``."""

    kind: Literal["ClientList"] = "ClientList"
    items: tuple[ClientItem, ...]


class UnitItem(shapes.Shape):
    """One storage unit."""

    name: str
    id: str | None
    type: str
    path: str
    state: str
    failure_domain: str | None
    capacity_bytes: int | None
    free_bytes: int | None
    used_bytes: int | None
    images: int
    running_jobs: int
    max_concurrent_jobs: int


class UnitList(shapes.Document):
    """``get units``."""

    kind: Literal["UnitList"] = "UnitList"
    items: tuple[UnitItem, ...]


class PolicyItem(shapes.Shape):
    """One backup policy in force."""

    name: str
    lifecycle: str
    schedules: tuple[str, ...]
    clients: int
    images: int
    last_success: shapes.Time | None
    next_slot: shapes.Time | None
    state: str


class PolicyList(shapes.Document):
    """``get policies``."""

    kind: Literal["PolicyList"] = "PolicyList"
    items: tuple[PolicyItem, ...]


class AuditItem(shapes.Shape):
    """One line of the audit log."""

    id: int
    time: shapes.Time
    actor: str
    event: str
    object: str
    details: dict[str, Any]


class AuditList(shapes.Document):
    """``get audit``."""

    kind: Literal["AuditList"] = "AuditList"
    items: tuple[AuditItem, ...]


class VerificationItem(shapes.Shape):
    """The last result of proving one copy in one way.

    Of copies that have expired the last of a series, operation and proof is kept, until a later one is known.
    """

    image: str
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    client_id: str
    policy: str
    proof: str
    state: str
    time: shapes.Time
    message: str
    details: dict[str, Any]
    job: str | None
    #: The copy has expired since.
    expired: bool


class VerificationList(shapes.Document):
    """``get verifications``."""

    kind: Literal["VerificationList"] = "VerificationList"
    items: tuple[VerificationItem, ...]


class RestoreItem(shapes.Shape):
    """One restore, by a manifest or by command."""

    id: int
    name: str | None
    digest: str
    state: str
    client_id: str
    image: str
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    target: str
    format: str
    by: str
    reason: str
    job: str | None
    started_at: shapes.Time
    finished_at: shapes.Time | None
    message: str
    disks: tuple[dict[str, Any], ...]


class RestoreList(shapes.Document):
    """``get restores``."""

    kind: Literal["RestoreList"] = "RestoreList"
    items: tuple[RestoreItem, ...]
