"""Restore: a stored image becomes disks somewhere else, and every byte of them is read back and proven.

Works from an opened ``StoredImage`` alone, so it is the same with a catalog and with nothing but a unit's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from reconciler.base import crashes, disks, errors, extents, meters
from reconciler.operations import proofs
from reconciler.sources import targets
from reconciler.storage import units

#: Formats a disk may be restored to.
FORMATS = ("raw", "qcow2", "vmdk")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RestorePlan:
    """What a restore would do, before a byte is written."""

    image: str
    format: str
    folder: Path
    force: bool
    #: Disk name and the path it would be restored to.
    disks: tuple[tuple[units.DiskRecord, Path], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """One restored disk."""

    name: str
    path: Path
    size: int
    written: int
    digest: str
    verified: bool


def prepare(label: units.ImageLabel, *, names: Sequence[str], folder: Path, format: str, force: bool) -> RestorePlan:
    """Choose disks and paths. ``names`` empty means all. Raises ``NotFound`` for a disk the image lacks and
    ``TargetExists`` where something would be overwritten."""
    if format not in FORMATS:
        raise errors.UsageError(f"{format} is not a format", hint=f"choose one of {', '.join(FORMATS)}")
    wanted = list(names) or [record.name for record in label.disks]
    by_name = {record.name: record for record in label.disks}
    for name in wanted:
        if name not in by_name:
            raise errors.NotFound(f"image {label.id} has no disk {name}", hint=f"it has {', '.join(by_name)}")
    paths = targets.restored_names([record.name for record in label.disks], format)
    chosen = tuple((by_name[name], folder / paths[name]) for name in wanted)
    for _, path in chosen:
        if path.exists() and not force:
            raise errors.TargetExists(f"{path} exists", hint="restore to another folder, or overwrite it with --force")
    return RestorePlan(image=label.id, format=format, folder=folder, force=force, disks=chosen)


def restore(plan: RestorePlan, stored: units.StoredImage, meter: meters.Meter) -> tuple[Restored, ...]:
    """Write, read back and prove every disk of ``plan``. Raises ``ImageDamaged``, ``Cancelled``, ``HoldfastError``.

    A disk takes its final name only once it is proven; one that is not, or is interrupted, leaves nothing behind.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    meter.add(total=sum(record.size for record, _ in plan.disks), streams=1)
    return tuple(_restore_disk(plan, stored, record, path, meter) for record, path in plan.disks)


def _restore_disk(
    plan: RestorePlan, stored: units.StoredImage, record: units.DiskRecord, path: Path, meter: meters.Meter
) -> Restored:
    target = targets.open_target(plan.format, path, record.size, force=plan.force)
    try:
        with contextlib.closing(proofs.Proof(target, record.size, meter)) as proof:
            with contextlib.closing(stored.disk(record.name)) as disk:
                written = _copy(disk, target, proof, meter)
            found = proof.finish()
        if found != record.digest:
            raise errors.ImageDamaged(
                f"{path}: what was written has digest {found}, disk {record.name} of {plan.image} has {record.digest}",
                hint="check the device under the target folder, then restore again",
            )
        meter.check()
        target.finish()
    finally:
        target.abort()
    return Restored(name=record.name, path=path, size=record.size, written=written, digest=found, verified=True)


def _copy(disk: disks.Disk, target: targets.Target, proof: proofs.Proof, meter: meters.Meter) -> int:
    """Write what is not zero; the bytes written."""
    written = position = 0
    zeros = bytes(disks.READ_SIZE)
    for offset, length in extents.pieces(disk.extents(), disks.READ_SIZE):
        meter.check()
        data = disk.pread(offset, length)
        if data != zeros[:length]:
            target.pwrite(offset, data)
            written += length
            proof.follow(offset + length)
            meter.add(non_zero=length, sent=length, stored=length)
        meter.add(scanned=offset + length - position)
        position = offset + length
        crashes.passing("restore.reading")
    meter.add(scanned=disk.size - position)
    return written
