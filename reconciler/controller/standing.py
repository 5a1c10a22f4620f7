"""A plan that still stands: nothing that it was made from has changed, and none of the times it names has come.

``passes`` looks around before it plans: at the tree, the sources, the units, and at whether anybody has written to the
catalog. Where a glance shows what the last one did, the last plan is what planning again would say, and a large catalog
need not be read for it. What only grows old, such as an alarm that is about to begin, waits for ``STANDS`` at most.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Final

from reconciler.planning import actions, desired, observed

#: How long a plan may stand although nothing has changed.
STANDS: Final = dt.timedelta(minutes=10)
#: Space counts as unchanged within this part of a unit's size: others write to its disk too.
_PARTS: Final = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Glance:
    """What a plan is made from, as far as a look costs next to nothing."""

    #: ``Database.changes``.
    catalog: object
    #: The tree as it was read.
    tree: object
    jump: str | None
    emptying: Mapping[str, int]
    sources: tuple[object, ...]
    units: tuple[object, ...]


def glance(
    *,
    catalog: object,
    tree: object,
    jump: str | None,
    emptying: Mapping[str, int],
    surveyed: Mapping[str, observed.Inventory],
    units: Mapping[str, observed.Unit],
) -> Glance:
    """A look around."""
    return Glance(
        catalog=catalog,
        tree=tree,
        jump=jump,
        emptying=emptying,
        sources=tuple(
            (name, one.machines, one.notes, one.snapshots, one.unreachable) for name, one in sorted(surveyed.items())
        ),
        units=tuple(_rounded(one) for _, one in sorted(units.items())),
    )


def _rounded(unit: observed.Unit) -> observed.Unit:
    part = max(1, unit.total_bytes // _PARTS)
    return dataclasses.replace(unit, free_bytes=unit.free_bytes // part, used_bytes=unit.used_bytes // part)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The last plan, and what was seen before it was made."""

    glance: Glance
    plan: actions.Plan
    wanted: desired.Desired
    seen: observed.Observed

    def holds(self, now: Glance, at: dt.datetime) -> bool:
        """Whether planning again at ``at`` would say the same."""
        made, coming = self.plan.now, self.plan.next_event
        return made <= at < min(made + STANDS, coming or made + STANDS) and now == self.glance

    def at(self, moment: dt.datetime) -> tuple[actions.Plan, desired.Desired, observed.Observed]:
        """The plan as it stands at a moment at which it holds."""
        ahead = self.plan.horizon + (moment - self.plan.now)
        return dataclasses.replace(self.plan, now=moment, horizon=ahead), self.wanted, self.seen
