"""The restores of the manifests: from a plan's action to a job that makes one, and its record.

``bindings`` makes a task of it. The image is the one that was planned; its copies are read in the order that
``choices`` gives. The record is begun before the first byte and ended after the last one is proven, so that a killed
restore is planned again and goes on with what it had written; disks that had their names already are proven anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.api import restores as kinds
from reconciler.base import crashes, errors, meters
from reconciler.catalog import inventories
from reconciler.catalog import restores as records
from reconciler.controller import choices
from reconciler.jobs import engines
from reconciler.operations import findings, proofs, restores, sites
from reconciler.sources import targets
from reconciler.storage import units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One restore to make."""

    item: kinds.Restore
    #: Of its spec.
    digest: str
    #: Client id.
    client: str
    image: str


def restore(site: sites.Site, order: Order, context: engines.JobContext) -> engines.Outcome:
    """Make it. Raises ``NotFound``, ``TargetExists``, ``TargetError``, ``ImageDamaged`` or ``Cancelled``."""
    spec = order.item.spec
    chosen = choices.choose(site.db, order.client, image=order.image, as_of=None, copy=spec.copy_number)
    choice = choices.staying(site.db, chosen)
    interrupted = any(
        (one.name, one.digest, one.state) == (order.item.name, order.digest, "Running")
        for one in records.restores(site.db)
    )
    number = records.begin(site.db, _begun(site, order, choice, context))
    crashes.passing("restore.begun")
    notes: list[str] = []
    for note in choice.notes:
        notes.append(note)
        context.log(note)
    try:
        found = findings.recorder(site.db, site.clock, site.actor, context.log, notes)
        with contextlib.closing(choice.open(site.caches, found)) as stored:
            done = _made(stored, _wanted(site, spec), interrupted, context)
            read = stored.source
    except errors.HoldfastError as error:
        if isinstance(error, errors.TargetExists):
            error.hint = "restore to another folder, move it away, or write overwrite: true"
        records.end(site.db, number, state="Failed", now=site.clock.now(), message=str(error), details={"notes": notes})
        raise
    crashes.passing("restore.proven")
    disks = [_disk(one) for one in done]
    records.end(
        site.db, number, state="Verified", now=site.clock.now(), copy=read.number, unit=read.unit, disks=disks,
        details={"notes": notes},
    )  # fmt: skip
    return engines.Outcome()


def _begun(site: sites.Site, order: Order, choice: choices.Choice, context: engines.JobContext) -> records.Begun:
    spec = order.item.spec
    return records.Begun(
        name=order.item.name,
        digest=order.digest,
        client_id=choice.client.id,
        image=choice.image,
        copy=choice.copy,
        unit=choice.unit,
        target=spec.target.folder or spec.target.device or "",
        format=spec.format,
        by=site.actor,
        reason=spec.reason or "",
        job=context.id,
        at=site.clock.now(),
    )


def _wanted(site: sites.Site, spec: kinds.RestoreSpec) -> restores.Order:
    return restores.Order(
        to=Path(spec.target.folder or spec.target.device or ""),
        disks=spec.disks,
        format=spec.format,
        subformat=spec.subformat,
        force=spec.overwrite,
        read_back=spec.read_back,
        units=tuple(Path(unit.path) for unit in inventories.known_units(site.db).values()),
    )


def _made(
    stored: units.StoredImage, wanted: restores.Order, interrupted: bool, context: engines.JobContext
) -> tuple[restores.Restored, ...]:
    """The restored disks. What an interrupted attempt has named already is taken where it proves true."""
    try:
        plan = restores.prepare(stored, wanted)
    except errors.TargetExists:
        if not interrupted:
            raise
        plan = restores.prepare(stored, dataclasses.replace(wanted, force=True))
        named = [disk for disk in plan.disks if disk.path.exists()]
        for disk in named:
            if not _is(plan, disk, context.meter.aside()):
                raise
        context.log(f"{len(named)} of {len(plan.disks)} disks had their names already, and proved true")
        rest = dataclasses.replace(plan, disks=tuple(disk for disk in plan.disks if disk not in named), force=False)
        made = restores.restore(rest, stored, context.meter, context.log) if rest.disks else ()
        return (*(_taken(disk) for disk in named), *made)
    return restores.restore(plan, stored, context.meter, context.log)


def _is(plan: restores.RestorePlan, disk: restores.PlannedDisk, meter: meters.Meter) -> bool:
    """Whether a file is the disk."""
    try:
        with contextlib.closing(targets.read_back(plan.format, disk.path, disk.record.size)) as found:
            return proofs.of_disk(found, disk.record.size, meter) == disk.record.digest
    except errors.SourceError:
        return False


def _taken(disk: restores.PlannedDisk) -> restores.Restored:
    record = disk.record
    return restores.Restored(
        name=record.name, path=disk.path, size=record.size, written=0, resumed=record.size, read_back=record.size,
        digest=record.digest, verified=True,
    )  # fmt: skip


def _disk(done: restores.Restored) -> Mapping[str, Any]:
    return {"name": done.name, "path": str(done.path), "sizeBytes": done.size, "digest": done.digest}
