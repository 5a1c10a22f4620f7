"""What expiries would really give back, asked of the storage units once planning is done.

Segments are shared, so the sum of what copies took when they were made says little. ``cli`` asks only where something
would be destroyed, or two revisions are compared: a plan without either stays as fast as it is. Decisions never depend
on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Final

from reconciler.base import errors
from reconciler.planning import actions
from reconciler.storage import opening

#: Of more images on one unit than this, the catalog's counts are taken.
MANY: Final = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Going:
    """What would leave one unit."""

    #: Image ids; not all of them where there are more than ``MANY``.
    images: Collection[str]
    #: How many copies.
    copies: int
    #: What the catalog says that they took when they were made.
    stored_bytes: int


def freed(going: Mapping[str, Going], units: opening.OpenUnits) -> dict[str, tuple[int, bool]]:
    """By unit: the bytes that would come back, and whether they were counted rather than estimated."""
    return {name: _freed(name, one, units) for name, one in going.items()}


def _freed(name: str, going: Going, units: opening.OpenUnits) -> tuple[int, bool]:
    if not going.copies:
        return 0, True
    if going.copies <= MANY:
        try:
            return units.get(name).freed_by(going.images)
        except (errors.UnitError, errors.FormatTooNew, errors.NotFound):
            # Offline, or not to be read: what is known of it is said, as an estimate.
            return going.stored_bytes, False
    return going.stored_bytes, False


def measured(plan: actions.Plan, units: opening.OpenUnits) -> actions.Plan:
    """The plan with what its destructive part would really free."""
    found: dict[str, list[actions.Destroyed]] = {}
    for item in plan.destruction.items:
        found.setdefault(item.unit, []).append(item)
    if not found:
        return plan
    counted = freed(
        {
            unit: Going(
                images=frozenset(item.image for item in items[:MANY]),
                copies=len(items),
                stored_bytes=sum(item.bytes for item in items),
            )
            for unit, items in found.items()
        },
        units,
    )
    total = sum(size for size, _ in counted.values())
    exact = all(sure for _, sure in counted.values())
    return dataclasses.replace(
        plan, destruction=dataclasses.replace(plan.destruction, bytes=total, estimated=not exact)
    )
