"""What a restore makes: the port that every kind of it has, and the first kind, disks.

The command and the loop choose the image and ask one of these to plan, to run, and what came of it. An attempt that
follows one which was killed says so (``again``): what that had finished is proven and kept. A staged folder is in
``restorestages`` and a machine in a vCenter in ``restoremachines``, because disks have no need of what those load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeVar

from reconciler.api.documents import restores as documents
from reconciler.base import errors, meters
from reconciler.jobs import engines
from reconciler.operations import restores, resumptions, salvages
from reconciler.storage import units

_P = TypeVar("_P")
#: Told lines that somebody may want to read later.
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a document says beside the image."""

    format: str
    target: str
    disks: tuple[documents.RestoredDisk, ...]
    subformat: str | None = None
    #: Bytes of data to be written at most; None where that is not looked at.
    bytes: int | None = None
    #: Bytes of space that are needed at most, and found, at the target.
    needed: int | None = None
    free: int | None = None
    via: str | None = None
    identity: str | None = None
    phases: tuple[documents.RestorePhase, ...] = ()
    notes: tuple[str, ...] = ()
    #: Of an image that was salvaged: the files that lack bytes, as far as that can be told.
    missing_files: tuple[documents.MissingFile, ...] = ()

    @property
    def missing(self) -> int:
        """Bytes that no copy could give, and that are zeros now."""
        return sum(one.length for disk in self.disks for one in disk.missing)

    @property
    def lacking(self) -> engines.Failure | None:
        """The same, by disk, as why a job was done in part; None where nothing is missing."""
        found = [
            (disk.name, tuple((one.offset, one.length) for one in disk.missing)) for disk in self.disks if disk.missing
        ]
        return engines.Failure(code=salvages.MISSING, message=salvages.worded(found)) if found else None


class Work(Protocol):
    """One restore of one image."""

    def plan(self, stored: units.StoredImage) -> None:
        """Decide everything, write nothing. Raises ``HoldfastError``."""

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: Log) -> None:
        """Do it. Raises ``HoldfastError``, leaving nothing behind."""

    def then(self) -> None:
        """What is left to do once it is made and proven. Raises ``HoldfastError``; the restore stands."""

    def release(self) -> None:
        """It is recorded: no other attempt has to find it any more. Raises nothing; what fails is told."""

    def outcome(self) -> Outcome:
        """What was, or would be, restored."""


class Disks:
    """Disks in a folder, or one on a block device."""

    def __init__(self, order: restores.Order, *, again: bool = False) -> None:
        """``again``: an attempt before this one was killed."""
        self._order, self._again = order, again
        self._there = False
        self._plan: restores.RestorePlan | None = None
        self._done: tuple[restores.Restored, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Choose disks and paths, and judge the space."""
        try:
            self._plan = restores.prepare(stored, self._order)
        except errors.TargetExists:
            if not self._again:
                raise
            self._plan = restores.prepare(stored, dataclasses.replace(self._order, force=True))
            self._there = True

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: Log) -> None:
        """Write and prove them."""
        write = resumptions.restore if self._there else restores.restore
        self._done = write(planned(self._plan), stored, meter, log)

    def then(self) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""

    def outcome(self) -> Outcome:
        """Paths and digests."""
        plan = planned(self._plan)
        return Outcome(
            format=plan.format,
            target=str(plan.folder.absolute()),
            disks=restored(plan, self._done),
            subformat=plan.subformat,
            bytes=plan.bytes,
            needed=plan.needed,
            free=plan.free,
            notes=tuple(note for one in self._done for note in one.notes),
        )


def planned(value: _P | None) -> _P:
    """What ``plan`` decided. Raises ``ValueError`` before it."""
    if value is None:
        raise ValueError("plan comes first")
    return value


def restored(plan: restores.RestorePlan, restored: tuple[restores.Restored, ...]) -> tuple[documents.RestoredDisk, ...]:
    """The disks of a plan as a document shows them; those not among ``restored`` are not written yet."""
    done = {one.name: one for one in restored}
    return tuple(
        documents.RestoredDisk(
            name=disk.record.name,
            path=str(disk.path.absolute()),
            size_bytes=disk.record.size,
            written_bytes=done[disk.record.name].written if disk.record.name in done else 0,
            resumed_bytes=done[disk.record.name].resumed if disk.record.name in done else 0,
            read_back_bytes=done[disk.record.name].read_back if disk.record.name in done else 0,
            digest=done[disk.record.name].digest if disk.record.name in done else disk.record.digest,
            verified=disk.record.name in done and done[disk.record.name].verified,
            missing=tuple(
                documents.MissingRange(offset=offset, length=length)
                for offset, length in (done[disk.record.name].missing if disk.record.name in done else ())
            ),
        )
        for disk in plan.disks
    )
