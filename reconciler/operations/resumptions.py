"""What an attempt that was killed had finished already: disks that have their names are proven and kept.

``restoreworks`` comes here instead of to ``restores`` where the record of an interrupted attempt says that files at the
target may be its own. A file that is not what the image holds is somebody else's, and is never overwritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from reconciler.base import errors, meters
from reconciler.operations import proofs, restores
from reconciler.sources import targets
from reconciler.storage import units


def restore(
    plan: restores.RestorePlan, stored: units.StoredImage, meter: meters.Meter, log: Callable[[str], None]
) -> tuple[restores.Restored, ...]:
    """Prove the disks of ``plan`` that are there, and restore the rest. Raises ``TargetExists`` for a file that is not
    the image's, and as ``restores.restore``."""
    named = [disk for disk in plan.disks if disk.path.exists()]
    for disk in named:
        if not _is(plan, disk, meter.aside()):
            raise errors.TargetExists(f"{disk.path} exists, and is not what the image holds")
    log(f"{len(named)} of {len(plan.disks)} disks had their names already, and proved true")
    rest = dataclasses.replace(plan, disks=tuple(disk for disk in plan.disks if disk not in named), force=False)
    made = restores.restore(rest, stored, meter, log) if rest.disks else ()
    return (*(_taken(disk) for disk in named), *made)


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
