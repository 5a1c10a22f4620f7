"""Restore of a whole machine: made half, written, read back and proven, and only then given its name.

The walk is that of ``restores``; what differs is that a machine is proven as a whole before it is anything at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from reconciler.base import crashes, disks, errors, meters
from reconciler.operations import proofs
from reconciler.sources import machinetargets
from reconciler.storage import units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Proven:
    """One disk of a restored machine."""

    record: units.DiskRecord
    #: Bytes that were sent, and that were read back.
    sent: int
    read: int
    digest: str


def chosen(label: units.ImageLabel, names: Sequence[str]) -> tuple[units.DiskRecord, ...]:
    """The image's disks with these names, all where none is named. Raises ``NotFound``."""
    by_name = {record.name: record for record in label.disks}
    for name in names:
        if name not in by_name:
            raise errors.NotFound(f"image {label.id} has no disk {name}", hint=f"it has {', '.join(by_name)}")
    return tuple(record for record in label.disks if not names or record.name in names)


def restore(
    records: Sequence[units.DiskRecord],
    stored: units.StoredImage,
    target: machinetargets.MachineTarget,
    meter: meters.Meter,
    phase: Callable[[str], None],
) -> tuple[Proven, ...]:
    """Make the machine with these disks. ``phase`` is told what begins: ``making``, ``writing``, ``proving``,
    ``naming``. What an earlier attempt had written is proven once more; what it had named is left as it is.

    Raises ``ImageDamaged`` where what was written is not what the image holds, ``Cancelled``, ``HoldfastError``; then
    nothing is left of it.
    """
    # Every byte counts once for each time that it goes by: it is written, and it is read back.
    passes = {"Nothing": 2, "Proven": 1, "Named": 0}[target.found]
    meter.add(total=passes * sum(record.size for record in records), streams=1)
    try:
        phase("making")
        target.begin(meter)
        sent: dict[str, int] = {}
        if target.found == "Nothing":
            phase("writing")
            sent = {record.name: _written(stored, record, target, meter) for record in records}
            target.seal(meter)
        if target.found == "Named":
            # Its mark says that it was proven. Since then it may have been at work.
            proven = tuple(Proven(record=record, sent=0, read=0, digest=record.digest) for record in records)
        else:
            phase("proving")
            with target.read_back(meter) as found:
                proven = tuple(
                    Proven(
                        record=record,
                        sent=sent.get(record.name, 0),
                        read=record.size,
                        digest=_proven(found, record, stored, target, meter),
                    )
                    for record in records
                )
        phase("naming")
        target.finish(meter)
        return proven
    finally:
        target.abort()


def _written(
    stored: units.StoredImage,
    record: units.DiskRecord,
    target: machinetargets.MachineTarget,
    meter: meters.Meter,
) -> int:
    crashes.passing("restore.reading")
    with contextlib.closing(stored.disk(record.name)) as disk:
        return target.write(disk, meter)


def _proven(
    found: Mapping[str, disks.Disk],
    record: units.DiskRecord,
    stored: units.StoredImage,
    target: machinetargets.MachineTarget,
    meter: meters.Meter,
) -> str:
    digest = proofs.of_disk(found[record.name], record.size, meter.aside())
    meter.add(scanned=record.size)
    if digest != record.digest:
        removed = target.found == "Nothing"
        raise errors.ImageDamaged(
            f"{target.target}: {record.name} was read back with digest {digest}, {stored.label.id} has {record.digest}",
            hint="choose another --via, and check the datastore; the half-made machine was removed"
            if removed
            else "it is not what it was when it was proven, and was left alone: remove it, and it is made once more",
        )
    return digest
