"""Restore of a machine as a folder: its disks by the same walk as ever, then what makes a machine of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from reconciler.base import meters
from reconciler.operations import machinerestores, restores, resumptions
from reconciler.sources import opening
from reconciler.sources.vsphere.blueprints import blueprints, staging
from reconciler.storage import units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """What would be staged."""

    disks: restores.RestorePlan
    names: staging.Folder
    blueprint: blueprints.Blueprint
    #: What differs from the machine that was captured.
    notes: tuple[str, ...]


def prepare(label: units.ImageLabel, *, names: Sequence[str], folder: Path, force: bool, read_back: bool) -> StagePlan:
    """Choose disks and file names. Raises ``UsageError`` for an image without a machine, ``NotFound`` for a disk that
    it lacks, ``TargetExists`` where something would be overwritten."""
    blueprint = opening.machine_blueprint(label.configuration, label.id)
    records = machinerestores.chosen(label, names)
    files = staging.folder(blueprint, [record.name for record in records])
    staging.check(folder, files, force=force)
    chosen = tuple((record, folder / files.disks[record.name][1]) for record in records)
    left = [one.label for one in blueprint.disks if one.label not in files.disks]
    notes = (*blueprint.notes, *(f"{one} is not restored: the machine comes without it" for one in left))
    plan = restores.planned(label, folder, chosen, force=force, read_back=read_back)
    return StagePlan(disks=plan, names=files, blueprint=blueprint, notes=notes)


def stage(
    plan: StagePlan,
    stored: units.StoredImage,
    meter: meters.Meter,
    log: Callable[[str], None],
    *,
    again: bool = False,
) -> tuple[tuple[restores.Restored, ...], tuple[str, ...]]:
    """Write and prove the disks, then descriptors, nvram and the vmx. The disks, and all notes. ``again``: files that
    are there may be those of an attempt that was killed.

    Raises as ``restores.restore`` does; a folder that is not finished has no vmx, but for one that was there ``again``.
    """
    if again:
        done = resumptions.restore(plan.disks, stored, meter, log)
    else:
        staging.unregister(plan.disks.folder, plan.names)
        done = restores.restore(plan.disks, stored, meter, log)
    sizes = {one.name: one.size for one in done}
    said = staging.complete(plan.disks.folder, plan.names, plan.blueprint, sizes)
    return done, (*plan.notes, *said)
