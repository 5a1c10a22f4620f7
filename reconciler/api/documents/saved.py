"""The file that ``plan --out`` writes: a Plan, where it was made, and digests of the facts that it was made from.

It holds no secret: of a catalog's address the password is left out. The seal shows that the file is as it was written;
it is no signature.
"""

from __future__ import annotations

from reconciler.api.documents import plans, shapes


class UnitFact(shapes.Shape):
    """A storage unit that due or destructive actions touch, as it was."""

    name: str
    id: str | None
    """What its folder says it is, null before its first use."""
    state: str


class SeriesFact(shapes.Shape):
    """A series that due or destructive actions touch, as it was."""

    client: str
    policy: str
    images: int
    newest: str | None
    """Its newest image."""
    digest: str
    """Over its images, their copies and the states of both."""


class Facts(shapes.Shape):
    """What the plan was made from."""

    configuration: str
    """Over every object in force."""
    approvals: str
    """Over every approval and every promise that one ended."""
    exceptions: str
    """Over every hold, and every ruling about a single image, copy or client."""
    units: tuple[UnitFact, ...]
    series: tuple[SeriesFact, ...]


class SavedPlan(plans.Plan):
    """``plan --out FILE``."""

    expires_at: shapes.Time
    """It is not applied after this: a week after it was made."""
    estate: str
    state: str
    catalog: str
    """Where the catalog is, without its password."""
    facts: Facts
    seal: str
    """Over everything else in the file."""
