"""What somebody was promised of the backups of some machines: how recent, how many, how long, how proven."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import lifecycles, models

Amount = Annotated[int, pydantic.Field(ge=1, le=100)]


class Selector(models.Model):
    """Which backup policies are meant: those that have all of these labels."""

    match_labels: Annotated[dict[str, str], pydantic.Field(min_length=1)]
    """Labels of BackupPolicies."""


class ServiceLevelSpec(models.Model):
    """The promise."""

    selector: Selector
    """Of which policies."""
    owner: models.Text | None = None
    """Who answers for it; shown with every alarm."""
    rpo: models.Duration | None = None
    """How old the newest complete image may be."""
    copies: Amount | None = None
    """How many good copies an image has."""
    failure_domains: Amount | None = None
    """Over how many failure domains they lie."""
    copy_within: models.Duration = pydantic.Field(default_factory=lambda: models._duration("24h"))
    """How long after its image time the copies may take."""
    retention: models.Duration | None = None
    """How far back there is an image at least."""
    verified: lifecycles.Verify | None = None
    """How recently an image must have been proven."""


class ServiceLevel(models.Object):
    """A promise about the backups of the machines under some policies."""

    kind: Literal["ServiceLevel"] = "ServiceLevel"
    spec: ServiceLevelSpec
