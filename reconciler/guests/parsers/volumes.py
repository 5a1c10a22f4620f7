"""Which volumes a disk has: its partitions, or the disk as a whole, and the logical volumes inside them.

Where a boot sector could be read as a partition table too, a table without a fault is believed before a file system
over the whole disk, and that before a table with faults: old boot code and stale tables are everywhere.
"""

from __future__ import annotations

import dataclasses

from reconciler.guests import scans
from reconciler.guests.parsers import filesystems, logicals, partitions, stretches

#: Volumes of a disk; what lies beyond is cut by offset.
_MOST = 256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One volume, not yet looked into."""

    #: ``gpt``, ``mbr``, ``none`` or ``lvm2``.
    scheme: str
    stretch: stretches.Stretch
    #: Of a logical volume, ``group/volume``; else empty.
    name: str
    #: Whether it shares bytes of the disk with another volume, so that neither can say what is free.
    shared: bool


def find(disk: stretches.Disk, sector: int) -> tuple[list[Found], list[scans.Warning_]]:
    """All volumes of ``disk`` in the table's order, logical ones last, and what was wrong; ``sector`` in bytes."""
    whole = stretches.Stretch(disk, [(0, disk.size)]) if disk.size else None
    if whole is None:
        return [], []
    sizes = list(dict.fromkeys((sector, 512, 4096)))
    table = _table(disk, whole, sizes)
    warnings: list[scans.Warning_] = []
    if table is None:
        scheme, parts = "none", [whole]
    else:
        scheme = table.scheme
        warnings += [("PartitionTableDamaged", problem) for problem in table.problems]
        parts = [stretches.Stretch(disk, [place]) for place in table.partitions]
    if scheme != "gpt" and _lacks_its_table(disk, sizes) and (table or filesystems.recognise(whole) is None):
        told = "the master boot record points to a GPT, of which neither copy can be read"
        warnings.append(("PartitionTableDamaged", told))
    physical = [(part, label) for part in parts if (label := logicals.label(part)) is not None]
    taken = {id(part) for part, _ in physical}
    volumes = [(scheme, part, "") for part in parts if id(part) not in taken]
    logical, problems = logicals.find(disk, physical)
    warnings += [("LogicalVolumeSkipped", problem) for problem in problems]
    volumes += [("lvm2", stretch, name) for name, stretch in logical]
    if len(volumes) > _MOST:
        warnings.append(("TooManyVolumes", f"only the first {_MOST} of {len(volumes)} volumes were read"))
        del volumes[_MOST:]
    shared = _shared([stretch for _, stretch, _ in volumes])
    if shared:
        warnings.append(("VolumesOverlap", f"{len(shared)} volumes lie over each other; their free space is kept"))
    return [
        Found(scheme=scheme, stretch=stretch, name=name, shared=number in shared)
        for number, (scheme, stretch, name) in enumerate(volumes)
    ], warnings


def _table(disk: stretches.Disk, whole: stretches.Stretch, sizes: list[int]) -> partitions.Table | None:
    protective = partitions.protective(disk)
    if protective is not False:
        for size in sizes:
            table = partitions.gpt(disk, size)
            if table is not None and table.partitions:
                return table
    tables = [table for size in sizes if (table := partitions.mbr(disk, size)) is not None and table.partitions]
    tables.sort(key=lambda table: (not table.sound, -_known(disk, table)))
    if tables and tables[0].sound:
        return tables[0]
    if filesystems.recognise(whole) is not None or logicals.label(whole) is not None or not tables:
        return None
    return tables[0]


def _lacks_its_table(disk: stretches.Disk, sizes: list[int]) -> bool:
    """Whether there should be a GPT and is none, not even an empty one."""
    return partitions.protective(disk) is True and all(partitions.gpt(disk, size) is None for size in sizes)


def _known(disk: stretches.Disk, table: partitions.Table) -> int:
    """How many of a table's partitions hold something known: tells the right sector size from the wrong one."""
    parts = [stretches.Stretch(disk, [place]) for place in table.partitions]
    return sum(filesystems.recognise(part) is not None or logicals.label(part) is not None for part in parts)


def _shared(volumes: list[stretches.Stretch]) -> set[int]:
    """Numbers of the volumes that have a byte of the disk in common with another, or twice in themselves."""
    pieces = sorted((place, length, number) for number, volume in enumerate(volumes) for place, length in volume.pieces)
    shared: set[int] = set()
    end, owner = 0, -1
    for place, length, number in pieces:
        if place < end:
            shared |= {owner, number}
        if place + length > end:
            end, owner = place + length, number
    return shared
