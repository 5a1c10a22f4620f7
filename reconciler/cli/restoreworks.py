"""The three things that a restore can make: disks, a staged folder, a machine in a vCenter. One class each.

``restoring`` chooses the image and asks one of these to plan, to run, and for its document.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from reconciler.api import vcenters
from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters
from reconciler.operations import machinerestores, restores, stagings
from reconciler.sources import machinetargets, opening
from reconciler.storage import units

_LOGGER = logging.getLogger(__name__)
_P = TypeVar("_P")
#: Told lines that somebody may want to read later.
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a document says beside the image."""

    format: str
    target: str
    disks: tuple[results.RestoredDisk, ...]
    subformat: str | None = None
    #: Bytes of data to be written at most; None where that is not looked at.
    bytes: int | None = None
    #: Bytes of space that are needed at most, and found, at the target.
    needed: int | None = None
    free: int | None = None
    via: str | None = None
    identity: str | None = None
    phases: tuple[results.RestorePhase, ...] = ()
    notes: tuple[str, ...] = ()


class Work(Protocol):
    """One restore of one image."""

    def plan(self, stored: units.StoredImage) -> None:
        """Decide everything, write nothing. Raises ``HoldfastError``."""

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: Log) -> None:
        """Do it. Raises ``HoldfastError``, leaving nothing behind."""

    def then(self) -> None:
        """What is left to do once the restore is recorded. Raises ``HoldfastError``; the restore stands."""

    def outcome(self) -> Outcome:
        """What was, or would be, restored."""


class Disks:
    """Disks in a folder, or one on a block device."""

    def __init__(self, order: restores.Order) -> None:
        self._order = order
        self._plan: restores.RestorePlan | None = None
        self._done: tuple[restores.Restored, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Choose disks and paths, and judge the space."""
        self._plan = restores.prepare(stored, self._order)

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: Log) -> None:
        """Write and prove them."""
        self._done = restores.restore(_planned(self._plan), stored, meter, log)

    def then(self) -> None:
        """Nothing."""

    def outcome(self) -> Outcome:
        """Paths and digests."""
        plan = _planned(self._plan)
        return Outcome(
            format=plan.format,
            target=str(plan.folder.absolute()),
            disks=_restored(plan, self._done),
            subformat=plan.subformat,
            bytes=plan.bytes,
            needed=plan.needed,
            free=plan.free,
            notes=tuple(note for one in self._done for note in one.notes),
        )


class Staged:
    """A machine as a folder that an ESX host can register."""

    def __init__(self, *, to: Path, names: list[str], force: bool, read_back: bool) -> None:
        self._to, self._names, self._force, self._read_back = to, names, force, read_back
        self._plan: stagings.StagePlan | None = None
        self._done: tuple[restores.Restored, ...] = ()
        self._notes: tuple[str, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Choose disks and names."""
        self._plan = stagings.prepare(
            stored.label, names=self._names, folder=self._to, force=self._force, read_back=self._read_back
        )
        self._notes = self._plan.notes

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: Log) -> None:
        """Write and prove the disks, then what makes a machine of them."""
        self._done, self._notes = stagings.stage(_planned(self._plan), stored, meter, log)

    def then(self) -> None:
        """Nothing."""

    def outcome(self) -> Outcome:
        """Paths of the flat files and digests."""
        disks = _restored(_planned(self._plan).disks, self._done)
        return Outcome(format="staged", target=str(self._to.absolute()), disks=disks, notes=self._notes)


class Machine:
    """A machine in a vCenter."""

    def __init__(
        self, *, vcenter: vcenters.VCenter, names: list[str], wanted: Mapping[str, object], power_on: bool
    ) -> None:
        """``wanted``: fields of ``machinetargets.Wanted`` as the user gave them."""
        self._vcenter, self._names, self._wanted, self._power_on = vcenter, names, wanted, power_on
        self._target: machinetargets.MachineTarget | None = None
        self._records: tuple[units.DiskRecord, ...] = ()
        self._done: Mapping[str, machinerestores.Proven] = {}
        self._phases: tuple[results.RestorePhase, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Find its place, and the way its disks go."""
        label = stored.label
        self._records = machinerestores.chosen(label, self._names)
        sizes = {record.name: record.size for record in self._records}
        fields: dict[str, object] = {"image": label.id, "disks": sizes, **self._wanted}
        wanted = machinetargets.Wanted(**fields)  # type: ignore[arg-type]
        now = clocks.from_environment().now()
        self._target = opening.machine_target(self._vcenter, label.configuration, wanted, now)

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: Log) -> None:
        """Make, write, prove, name."""
        target, watch = _planned(self._target), _Watch(sum(record.size for record in self._records))
        try:
            done = machinerestores.restore(self._records, stored, target, meter, watch.begins)
        except errors.HoldfastError:
            for note in target.notes:
                _LOGGER.warning("%s", note)
            raise
        self._phases = watch.ended()
        for note in target.notes:
            log(note)
        self._done = {one.record.name: one for one in done}

    def then(self) -> None:
        """Switch it on, if asked."""
        if self._power_on:
            _planned(self._target).start()

    def outcome(self) -> Outcome:
        """Place, way and digests."""
        target = _planned(self._target)
        return Outcome(
            format="machine",
            target=target.target,
            disks=tuple(
                results.RestoredDisk(
                    name=record.name,
                    path=f"{target.target}/{record.name}",
                    size_bytes=record.size,
                    written_bytes=self._done[record.name].sent if record.name in self._done else 0,
                    resumed_bytes=0,
                    read_back_bytes=record.size if record.name in self._done else 0,
                    digest=record.digest,
                    verified=record.name in self._done,
                )
                for record in self._records
            ),
            via=target.way,
            identity=target.identity,
            phases=self._phases,
            notes=tuple(target.notes),
        )


class _Watch:
    """How long each phase takes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: list[results.RestorePhase] = []
        self._name, self._since = "", 0.0

    def begins(self, name: str) -> None:
        self._end()
        self._name, self._since = name, time.monotonic()

    def _end(self) -> None:
        if self._name:
            moved = self._size if self._name in ("writing", "proving") else 0
            seconds = round(time.monotonic() - self._since, 3)
            self._found.append(results.RestorePhase(name=self._name, seconds=seconds, bytes=moved))

    def ended(self) -> tuple[results.RestorePhase, ...]:
        self._end()
        return tuple(self._found)


def _planned(value: _P | None) -> _P:
    if value is None:
        raise ValueError("plan comes first")
    return value


def _restored(plan: restores.RestorePlan, restored: tuple[restores.Restored, ...]) -> tuple[results.RestoredDisk, ...]:
    done = {one.name: one for one in restored}
    return tuple(
        results.RestoredDisk(
            name=disk.record.name,
            path=str(disk.path.absolute()),
            size_bytes=disk.record.size,
            written_bytes=done[disk.record.name].written if disk.record.name in done else 0,
            resumed_bytes=done[disk.record.name].resumed if disk.record.name in done else 0,
            read_back_bytes=done[disk.record.name].read_back if disk.record.name in done else 0,
            digest=disk.record.digest,
            verified=disk.record.name in done,
        )
        for disk in plan.disks
    )
