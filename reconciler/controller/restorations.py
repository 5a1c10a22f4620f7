"""The restores of the manifests: from a plan's action to a job that makes one, and its record.

``bindings`` makes a task of it. The image is the one that was planned; its copies are read in the order that
``choices`` gives. The record is begun before the first byte and ended after the last one is proven, so that a killed
restore is planned again and goes on with what it had written.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.api import restores as kinds
from reconciler.base import crashes, errors
from reconciler.catalog import restores as records
from reconciler.controller import choices
from reconciler.jobs import engines
from reconciler.operations import failovers, restores, sites


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One restore to make."""

    item: kinds.Restore
    #: Of its spec.
    digest: str
    client: str
    image: str


def restore(site: sites.Site, order: Order, context: engines.JobContext) -> engines.Outcome:
    """Make it. Raises ``NotFound``, ``TargetExists``, ``TargetError``, ``ImageDamaged`` or ``Cancelled``."""
    spec = order.item.spec
    choice = choices.choose(site.db, order.client, image=order.image, as_of=None, copy=spec.copy_number)
    choice = choices.staying(site.db, choice)
    number = records.begin(
        site.db,
        records.Begun(
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
        ),
    )
    crashes.passing("restore.begun")
    notes: list[str] = []
    try:
        found = failovers.recorder(site.db, site.clock, site.actor, context.log, notes)
        with contextlib.closing(choice.open_on(site.units, found)) as stored:
            plan = restores.prepare(
                stored.label,
                names=spec.disks,
                folder=Path(spec.target.folder or ""),
                format=spec.format,
                force=spec.overwrite,
            )
            done = restores.restore(plan, stored, context.meter)
    except errors.HoldfastError as error:
        details = {"notes": notes}
        records.end(site.db, number, state="Failed", now=site.clock.now(), message=str(error), details=details)
        raise
    crashes.passing("restore.proven")
    records.end(
        site.db, number, state="Verified", now=site.clock.now(), disks=[_disk(one) for one in done],
        details={"notes": notes},
    )  # fmt: skip
    return engines.Outcome()


def _disk(done: restores.Restored) -> Mapping[str, Any]:
    return {"name": done.name, "path": str(done.path), "sizeBytes": done.size, "digest": done.digest}
