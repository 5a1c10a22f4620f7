"""What reading commands look at: the catalog with the configuration in force, observed now, nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterator

from reconciler.base import clocks
from reconciler.catalog import database, inventories
from reconciler.cli import sessions, settings
from reconciler.controller import jumps, observations, passes
from reconciler.planning import actions, configuration, desired, expiry, observed
from reconciler.storage import opening


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
        """What retention says of every copy."""
        return {(one.image, one.copy): one for one in expiry.decisions(self.wanted, self.seen, self.now)}


@contextlib.contextmanager
def in_force(chosen: settings.Settings) -> Iterator[View]:
    """The estate in force with the sources as last known. Raises ``NotFound`` where there is no catalog."""
    now = clocks.from_environment().now()
    with sessions.reading(chosen) as db, contextlib.closing(opening.OpenUnits(owner=None, cache=None)) as units:
        applied = inventories.applied(db)
        wanted = configuration.effective(passes.read_tree(None, applied, inventories.in_force(db)).wanted, applied)
        units.declare(observations.declared_units(wanted))
        jump = jumps.at_start(now, jumps.newest(db))
        seen = observations.gather(db, wanted, inventories.inventories(db), units, jump)
        yield View(db=db, wanted=wanted, seen=seen, now=now)
