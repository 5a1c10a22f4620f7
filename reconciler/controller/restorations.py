"""The restores of the manifests: from a plan's action to a job that makes one, and its record.

``bindings`` makes a task of it. The image is the one that was planned; its copies are read in the order that
``choices`` gives. The record is begun before the first byte and ended after the last one is proven, so that a killed
restore is planned again and goes on with what it had written; disks that had their names already are proven anew, and a
machine that was proven is taken up instead of being made twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path

from reconciler.api import restores as kinds
from reconciler.api import vcenters
from reconciler.base import crashes, errors
from reconciler.catalog import inventories
from reconciler.catalog import restores as records
from reconciler.controller import choices, restorerecords
from reconciler.jobs import engines
from reconciler.operations import (
    missingfiles,
    restoremachines,
    restores,
    restorestages,
    restoreworks,
    salvages,
    sites,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One restore to make."""

    item: kinds.Restore
    #: Of its spec.
    digest: str
    #: Client id.
    client: str
    image: str
    #: Where a machine is made; None for disks.
    vcenter: vcenters.VCenter | None = None


def restore(site: sites.Site, order: Order, context: engines.JobContext) -> engines.Outcome:
    """Make it. Raises ``NotFound``, ``TargetExists``, ``TargetError``, ``SourceError``, ``ImageDamaged`` or
    ``Cancelled``."""
    choice = choices.staying(site.db, _chosen(site, order))
    work = _work(site, order)
    record = restorerecords.Record(site.db, site.clock, choice, _said(site, order), context)
    missing = None
    with (
        record,
        contextlib.closing(
            salvages.opened(choice.open(site.caches, record.failed), salvage=order.item.spec.salvage)
        ) as stored,
    ):
        crashes.passing("restore.begun")
        try:
            work.plan(stored)
            work.run(stored, context.meter, context.log)
        except errors.TargetExists as error:
            error.hint = _HINTS["machine" if order.vcenter is not None else "disks"]
            raise
        try:
            work.then()
        except errors.SourceError as error:
            # It is made, and must not be made again for this.
            missing = engines.Failure(code=error.code, message=str(error))
            record.notes.append(str(error))
        crashes.passing("restore.proven")
        outcome = work.outcome()
        if isinstance(stored, salvages.SalvagedImage):
            outcome = missingfiles.told(outcome, stored, context.meter.aside())
        missing = outcome.lacking or missing
        record.done(outcome, stored.source)
    work.release()
    return engines.Outcome() if missing is None else engines.Outcome(state=engines.State.PARTIAL, failure=missing)


def _chosen(site: sites.Site, order: Order) -> choices.Choice:
    """The image that was planned, with what was passed over for it as long as it would be chosen again."""
    spec = order.item.spec
    choose = functools.partial(
        choices.choose, site.db, order.client, copy=spec.copy_number, now=site.clock.now(), proven=True, way="image:"
    )
    if spec.image is None:
        again = choose(image=None, as_of=spec.as_of)
        if again.image == order.image:
            return again
    return choose(image=order.image, as_of=None)


_HINTS = {
    "disks": "restore to another folder, move it away, or write overwrite: true",
    "machine": "restore it under another name or into another folder, or write replace: true",
}


def _said(site: sites.Site, order: Order) -> restorerecords.Said:
    spec = order.item.spec
    return restorerecords.Said(
        name=order.item.name,
        digest=order.digest,
        target=spec.target.place,
        format=spec.form,
        by=site.actor,
        reason=spec.reason or "",
    )


def _work(site: sites.Site, order: Order) -> restoreworks.Work:
    """What is to be done, by what may have been done of it already."""
    spec, target = order.item.spec, order.item.spec.target
    if target.vmware is not None and order.vcenter is not None:
        wanted = target.vmware.model_dump(exclude={"vcenter", "power_on"})
        # Estates that share a vCenter may share their manifests, too.
        wanted["order"] = f"{site.db.id}/{order.item.name}@{order.digest}"
        return restoremachines.Machine(
            vcenter=order.vcenter, names=spec.disks, wanted=wanted, power_on=target.vmware.power_on,
            now=site.clock.now(),
        )  # fmt: skip
    folders = tuple(Path(unit.path) for unit in inventories.known_units(site.db).values())
    again = any(
        (one.name, one.digest, one.state) == (order.item.name, order.digest, "Running")
        for one in records.restores(site.db)
    )
    to = Path(target.folder or target.device or "")
    if target.staged:
        return restorestages.Staged(
            to=to, names=spec.disks, force=spec.overwrite, read_back=spec.read_back, units=folders, again=again
        )
    wish = restores.Order(
        to=to, disks=spec.disks, format=spec.format, subformat=spec.subformat, force=spec.overwrite,
        read_back=spec.read_back, units=folders,
    )  # fmt: skip
    return restoreworks.Disks(wish, again=again)
