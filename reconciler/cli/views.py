"""What reading commands look at: the catalog with the configuration in force, observed now, nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import TypeVar

from reconciler.base import clocks
from reconciler.catalog import database, inventories
from reconciler.cli import sessions, settings
from reconciler.controller import jumps, observations, passes
from reconciler.planning import actions, desired, evictions, expiry, explanations, observed
from reconciler.storage import opening

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One moment of the estate in force."""

    db: database.Database
    #: What is in force, orphaned objects included.
    wanted: desired.Desired
    seen: observed.Observed
    now: dt.datetime

    def plan(self) -> actions.Plan:
        """What the loop would do now."""
        return passes.decide(passes.Tree(wanted=self.wanted, problems=(), valid=True), self.seen, self.now)

    def decisions(self) -> dict[tuple[str, int], actions.CopyDecision]:
        """What retention says of every copy, and of which the plan says that they go to make room."""
        found = {(one.image, one.copy): one for one in expiry.decisions(self.wanted, self.seen, self.now)}
        if evictions.managed(self.wanted, self.seen):
            for key, action in explanations.evicted(self.plan()).items():
                if key in found and found[key].reason.code == "CapacityManaged":
                    found[key] = dataclasses.replace(found[key], expires_at=action.at, reason=action.reason)
        return found


def look(chosen: settings.Settings, function: Callable[[View], _T]) -> _T:
    """What ``function`` makes of the estate in force, with the sources as last known; it may be called again.

    Raises ``NotFound`` where there is no catalog.
    """
    clock = clocks.from_environment()
    now = clock.now()

    def read(db: database.Database) -> _T:
        wanted = passes.effective_now(passes.read_tree(None, db).wanted, db, now)
        with contextlib.closing(opening.OpenUnits(owner=None, cache=None)) as units:
            units.declare(observations.declared_units(wanted))
            jump = jumps.at_start(db, clock, now)
            seen = observations.gather(
                db, wanted, inventories.inventories(db), observations.look(db, wanted, units), jump
            )
            return function(View(db=db, wanted=wanted, seen=seen, now=now))

    return sessions.read(chosen, read)
