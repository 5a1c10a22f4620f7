"""A restore that makes a machine in a vCenter: one of the works of ``restoreworks``."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Mapping, Sequence

from reconciler.api import vcenters
from reconciler.api.documents import restores as documents
from reconciler.base import errors, meters
from reconciler.operations import machinerestores, restoreworks
from reconciler.sources import machinetargets, opening
from reconciler.storage import units

_LOGGER = logging.getLogger(__name__)


class Machine:
    """A machine in a vCenter."""

    def __init__(
        self,
        *,
        vcenter: vcenters.VCenter,
        names: Sequence[str],
        wanted: Mapping[str, object],
        power_on: bool,
        now: dt.datetime,
    ) -> None:
        """``wanted``: fields of ``machinetargets.Wanted`` as the user gave them."""
        self._vcenter, self._names, self._wanted, self._power_on = vcenter, names, wanted, power_on
        self._now = now
        self._target: machinetargets.MachineTarget | None = None
        self._records: tuple[units.DiskRecord, ...] = ()
        self._done: Mapping[str, machinerestores.Proven] = {}
        self._phases: tuple[documents.RestorePhase, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Find its place, and the way its disks go."""
        label = stored.label
        self._records = machinerestores.chosen(label, self._names)
        sizes = {record.name: record.size for record in self._records}
        fields: dict[str, object] = {"image": label.id, "disks": sizes, **self._wanted}
        wanted = machinetargets.Wanted(**fields)  # type: ignore[arg-type]
        self._target = opening.machine_target(self._vcenter, label.configuration, wanted, self._now)

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: restoreworks.Log) -> None:
        """Make, write, prove, name."""
        target, watch = restoreworks.planned(self._target), _Watch(sum(record.size for record in self._records))
        try:
            done = machinerestores.restore(self._records, stored, target, meter, watch.begins)
        except errors.HoldfastError:
            for note in target.notes:
                _LOGGER.warning("%s", note)
                # A catalog that refuses must not hide why the restore failed.
                with contextlib.suppress(errors.CatalogError):
                    log(note)
            raise
        self._phases = watch.ended()
        for note in target.notes:
            log(note)
        self._done = {one.record.name: one for one in done}

    def then(self) -> None:
        """Switch it on, if asked."""
        if self._power_on:
            restoreworks.planned(self._target).start()

    def release(self) -> None:
        """Take its mark off."""
        try:
            restoreworks.planned(self._target).release()
        except errors.SourceError as error:
            _LOGGER.warning("the restore is made and recorded, and a mark stays among its settings: %s", error)

    def outcome(self) -> restoreworks.Outcome:
        """Place, way and digests."""
        target = restoreworks.planned(self._target)
        return restoreworks.Outcome(
            format="machine",
            target=target.target,
            disks=tuple(
                documents.RestoredDisk(
                    name=record.name,
                    path=f"{target.target}/{record.name}",
                    size_bytes=record.size,
                    written_bytes=self._done[record.name].sent if record.name in self._done else 0,
                    resumed_bytes=0,
                    read_back_bytes=self._done[record.name].read if record.name in self._done else 0,
                    digest=record.digest,
                    verified=record.name in self._done,
                )
                for record in self._records
            ),
            via=target.way or None,
            identity=target.identity,
            phases=self._phases,
            notes=tuple(target.notes),
        )


class _Watch:
    """How long each phase takes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: list[documents.RestorePhase] = []
        self._name, self._since = "", 0.0

    def begins(self, name: str) -> None:
        self._end()
        self._name, self._since = name, time.monotonic()

    def _end(self) -> None:
        if self._name:
            moved = self._size if self._name in ("writing", "proving") else 0
            seconds = round(time.monotonic() - self._since, 3)
            self._found.append(documents.RestorePhase(name=self._name, seconds=seconds, bytes=moved))

    def ended(self) -> tuple[documents.RestorePhase, ...]:
        self._end()
        return tuple(self._found)
