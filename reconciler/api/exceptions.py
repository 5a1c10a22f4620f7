"""What people decide about single things, against or beside the rules: legal holds and approvals of destruction."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import models

#: What ``plan`` prints as the digest of a destructive part.
Digest = Annotated[str, pydantic.StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]


class Released(models.Model):
    """The end of a hold: who ended it, when and why."""

    by: models.Text
    """Who ended it."""
    at: models.Moment
    """When."""
    reason: models.Text
    """Why; kept in the audit log."""


class LegalHoldSpec(models.Model):
    """Which images must stay."""

    clients: models.Items[models.Text] = ()
    """Machines, by name, slug or identity; ``*`` and ``?`` match as in file names. Each must match a known one."""
    policies: models.Items[models.Text] = ()
    """Every machine that has images of these policies."""
    images: models.Items[models.Text] = ()
    """Single images, by id."""
    from_: Annotated[models.Moment | None, pydantic.Field(alias="from")] = None
    """Of clients and policies: only images whose time is not before this."""
    to: models.Moment | None = None
    """Of clients and policies: only images whose time is before this, which may lie in the future."""
    reason: models.Text
    """Why; shown wherever the hold is."""
    released: Released | None = None
    """Ends the hold. Removing the manifest does not."""


class LegalHold(models.Object):
    """Images that never expire while it stands, whatever any rule says."""

    kind: Literal["LegalHold"] = "LegalHold"
    spec: LegalHoldSpec


class ApprovalSpec(models.Model):
    """Consent to one destructive part of a plan."""

    destruction: Digest
    """The digest that ``plan`` prints."""
    copies: Annotated[int, pydantic.Field(ge=0)]
    """How many copies may go at most."""
    by: models.Text
    """Who consents."""
    until: models.Moment
    """Until when it may be made use of."""
    reason: models.Text
    """Why; kept in the audit log."""


class Approval(models.Object):
    """Lets a plan's destructive part happen."""

    kind: Literal["Approval"] = "Approval"
    spec: ApprovalSpec
