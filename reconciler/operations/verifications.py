"""Verify: one copy is proven in one way, and the catalog keeps what was found.

``contents`` re-reads every digest, ``filedrills`` opens the volumes and reads files, ``bootdrills`` starts the machine.
What they find is a fact about the image, recorded whether it is good or bad; what hinders them (a unit that is away, a
program that is missing) is an error of the job instead, and says nothing about the image.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from reconciler.api import drilling
from reconciler.base import crashes, errors
from reconciler.catalog import images
from reconciler.catalog import verifications as records
from reconciler.jobs import engines
from reconciler.operations import indexrepairs, sites
from reconciler.planning import sightings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOrder:
    """One copy to prove."""

    image: str
    copy: int
    unit: str
    #: Content, Files or Boot.
    kind: str
    #: How the policy wants its drills made.
    ways: drilling.Drills


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a proof found."""

    passed: bool
    #: A sentence without a full stop.
    message: str
    #: Figures of that kind, as JSON.
    details: Mapping[str, Any]


def keep(site: sites.Site, order: VerifyOrder, context: engines.JobContext, finding: Finding) -> engines.Outcome:
    """Record what was found. Raises ``VerificationFailed`` where that was not good, so that its job says so."""
    result = sightings.Verification(
        image=order.image,
        copy=order.copy,
        kind=order.kind,
        state="Passed" if finding.passed else "Failed",
        at=site.clock.now(),
        message=finding.message,
    )
    crashes.passing("verify.found")
    if not records.record(site.db, result, details=finding.details, job=context.id, actor=site.actor):
        raise errors.Cancelled("the job was ended by another process meanwhile; what it found is not kept")
    context.log(f"{order.kind} of copy {order.copy} of {order.image}: {finding.message}")
    if not finding.passed:
        raise errors.VerificationFailed(
            f"{order.kind} of copy {order.copy} of {order.image} on {order.unit}: {finding.message}",
            hint="the newest image that did not fail stays beside it; look at the job's log, then back up again",
        )
    return engines.Outcome()


def contents(site: sites.Site, order: VerifyOrder, context: engines.JobContext) -> engines.Outcome:
    """Re-read every block of a copy. One that proves false is Damaged from now on; an index of files is made anew.

    Raises ``VerificationFailed``, ``UnitError`` where it cannot be read now, ``Cancelled``.
    """
    unit = site.units.get(order.unit)
    try:
        with contextlib.closing(unit.open(order.image)) as stored:
            size = sum(record.size for record in stored.label.disks)
        context.meter.add(total=size, streams=1)
        found = unit.verify(order.image, meter=context.meter)
        serious = indexrepairs.of_disks(found)
        message = indexrepairs.where(serious) if serious else "every block and every page proved true"
    except (errors.ImageDamaged, errors.ImageMissing) as error:
        return broken(site, order, context, error)
    if serious:
        _mark(site, order, "Damaged", message)
    elif found:
        why = indexrepairs.mend(site, order.unit, order.image, context.meter.aside())
        message = "every block proved true; its index of files was damaged and "
        message += "made anew" if why is None else f"could not be made anew: {why}"
    details = {"bytes": size, "damagedRanges": len(found)}
    return keep(site, order, context, Finding(passed=not serious, message=message, details=details))


def broken(
    site: sites.Site, order: VerifyOrder, context: engines.JobContext, error: errors.UnitError
) -> engines.Outcome:
    """Keep that a copy is gone or false, though its unit is online: whatever was being tried, that is its content.

    The drill that met it is still to be made, from another copy.
    """
    order = dataclasses.replace(order, kind="Content")
    _mark(site, order, "Lost" if isinstance(error, errors.ImageMissing) else "Damaged", error.message)
    return keep(site, order, context, Finding(passed=False, message=error.message, details={}))


def _mark(site: sites.Site, order: VerifyOrder, state: str, message: str) -> None:
    """Raises ``UnitOffline`` where the whole unit went meanwhile: that says nothing against the copy."""
    site.units.require(order.unit)
    images.mark_state(site.db, order.image, order.copy, state, now=site.clock.now(), actor=site.actor, message=message)
