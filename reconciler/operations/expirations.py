"""Expire: a copy leaves its unit; reclaim: a pool gives back the space.

The catalog is asked twice: planning decided, and the deleting transaction decides again over fresh facts.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from reconciler.base import crashes
from reconciler.catalog import departures, images
from reconciler.jobs import engines
from reconciler.operations import filelessons, scrubs, sites
from reconciler.planning import sightings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExpireOrder:
    """One copy to take away."""

    image: str
    copy: int
    unit: str
    #: The rule that lets it go, for the audit log.
    reason: str
    #: Called inside the deleting transaction with the facts as they are then; raises ``NeverViolated``.
    check: departures.Check
    #: Token of the controller's lease: a newer holder makes the deletion refuse.
    fence: int
    #: How long it can be taken back: it is not deleted yet then.
    grace: dt.timedelta | None = None
    #: Whether the plan saw it Expiring already: if somebody took it back, it stays.
    decided: bool = False


def expire(site: sites.Site, order: ExpireOrder, context: engines.JobContext) -> engines.Outcome:
    """Mark, delete, record; with a grace mark alone, and once that has passed, the rest.

    Raises ``NeverViolated`` or ``UnitError``. What a crash leaves, the next plan ends.
    """
    unit = site.units.get(order.unit)
    begins = images.mark_expiring(
        site.db,
        order.image,
        order.copy,
        now=site.clock.now(),
        check=order.check,
        actor=site.actor,
        reason=order.reason,
        fence=order.fence,
        grace=order.grace,
        decided=order.decided,
    )
    crashes.passing("expire.marked")
    if not begins:
        context.log(f"copy {order.copy} of {order.image} leaves {order.unit} once its grace has passed: {order.reason}")
        return engines.Outcome()
    # From here on nobody can take it back: the catalog says so, durably, before the first byte goes.
    crashes.passing("expire.begun")
    if _alone(site, order):
        unit.delete(order.image)
    else:
        context.log(f"only the record goes: another copy of {order.image} lies on {order.unit}")
    crashes.passing("expire.deleted")
    images.mark_expired(site.db, order.image, order.copy, now=site.clock.now(), actor=site.actor)
    crashes.passing("expire.recorded")
    filelessons.forget(site, order.image, context.log)
    context.log(f"copy {order.copy} of {order.image} left {order.unit}: {order.reason}")
    return engines.Outcome()


def _alone(site: sites.Site, order: ExpireOrder) -> bool:
    """Whether nothing else on the unit is this image: one found lost may have been made anew for another operation."""
    return not any(
        other.number != order.copy and other.state in sightings.PRESENT
        for other in images.list_copies(site.db, image_id=order.image, unit=order.unit)
    )


def reclaim(site: sites.Site, unit: str, context: engines.JobContext) -> engines.Outcome:
    """Give back the space of deleted images. What of the pool turns out to be damaged meanwhile is recorded."""
    crashes.passing("reclaim.started")
    freed = site.units.get(unit).reclaim(meter=context.meter)
    crashes.passing("reclaim.done")
    context.log(f"reclaimed {freed} bytes on {unit}")
    judged = scrubs.judge_damage(site, unit, context.meter.aside())
    for line in judged.told(unit) if judged is not None else ():
        context.log(line)
    return engines.Outcome()
