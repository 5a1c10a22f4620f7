"""Which files lie where a salvaged image has zeros: the way from a file to its place on the disk, walked backwards.

Called after a restore that had to leave something out. Nothing in here makes it fail: a volume that cannot be listed,
perhaps because what it says of itself is among what is missing, is a note.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Final

from reconciler.api.documents import restores as documents
from reconciler.base import disks, errors, extents, meters
from reconciler.guests import listings, scans
from reconciler.operations import fileplaces, restoreworks, salvages

#: Files that are named; more are counted.
MOST: Final = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """What is missing, as files."""

    files: tuple[documents.MissingFile, ...] = ()
    #: A sentence each.
    notes: tuple[str, ...] = ()


def told(outcome: restoreworks.Outcome, salvaged: salvages.SalvagedImage, meter: meters.Meter) -> restoreworks.Outcome:
    """What a restore came to, with the files that lie where something is missing. Raises ``Cancelled``."""
    if not salvaged.missing:
        return outcome
    found = of_image(salvaged, meter)
    return dataclasses.replace(outcome, missing_files=found.files, notes=(*outcome.notes, *found.notes))


def of_image(salvaged: salvages.SalvagedImage, meter: meters.Meter) -> Missing:
    """The files of which bytes are missing, of all that was read so far. Raises ``Cancelled``."""
    found: list[documents.MissingFile] = []
    notes: list[str] = []
    several = len(salvaged.label.disks) > 1
    for name, missing in sorted(salvaged.missing.items()):
        try:
            with contextlib.closing(salvaged.disk(name)) as disk:
                named, told = _of_disk(disk, missing, meter, several=several)
        except errors.Cancelled:
            raise
        except (errors.HoldfastError, OSError) as error:
            named, told = [], [f"which files lie there cannot be told: {error}"]
        found += named
        notes += [f"disk {name}: {line}" for line in told]
    if len(found) > MOST:
        notes.append(f"{len(found)} files lack bytes; the first {MOST} are named")
    return Missing(files=tuple(found[:MOST]), notes=tuple(notes))


def _of_disk(
    disk: disks.Disk, missing: extents.Extents, meter: meters.Meter, *, several: bool
) -> tuple[list[documents.MissingFile], list[str]]:
    if not listings.plausible(disk):
        # What marks a file system lies at the begin of its disk.
        lost = missing[0][0] == 0
        return [], [
            "its begin is missing, and with it what is known of its files" if lost else "it holds no file system"
        ]
    with listings.list_files(disk, meter=meter) as listing:
        hit = list(_hit(listing, missing))
        volumes, warnings = listing.volumes, listing.warnings
    several = several or sum(one.filesystem not in (None, "swap") for one in volumes) > 1
    found = [
        documents.MissingFile(
            disk=disk.name,
            path=fileplaces.readable(
                (f"/{disk.name}/v{file.volume}" if several else "")
                + f"/{file.path}{f':{file.stream}' if file.stream else ''}"
            ),
            missing_bytes=bytes,
        )
        for file, bytes in hit
    ]
    told = [f"not all files can be told: {warnings[0][1]}"] if warnings else []
    return sorted(found, key=lambda one: one.path), told


def _hit(files: Iterable[scans.File], missing: extents.Extents) -> Iterable[tuple[scans.File, int]]:
    """The files that lie in what is missing, and how many bytes of them."""
    starts = [offset for offset, _ in missing]
    for file in files:
        lacking = sum(extents.total(extents.within(missing, starts, at, length)) for _, at, length in file.extents)
        if lacking:
            yield file, lacking
