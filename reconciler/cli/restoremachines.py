"""A restore that makes a machine in a vCenter: one of the works that ``restoring`` loads when it is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from reconciler.api import vcenters
from reconciler.api.documents import restores as documents
from reconciler.base import clocks, errors, meters
from reconciler.catalog import configurations, database
from reconciler.cli import restoreworks, sessions, settings
from reconciler.intake import estates
from reconciler.operations import machinerestores
from reconciler.sources import machinetargets, opening
from reconciler.storage import units

_LOGGER = logging.getLogger(__name__)


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
        self._phases: tuple[documents.RestorePhase, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Find its place, and the way its disks go."""
        label = stored.label
        self._records = machinerestores.chosen(label, self._names)
        sizes = {record.name: record.size for record in self._records}
        fields: dict[str, object] = {"image": label.id, "disks": sizes, **self._wanted}
        wanted = machinetargets.Wanted(**fields)  # type: ignore[arg-type]
        now = clocks.from_environment().now()
        self._target = opening.machine_target(self._vcenter, label.configuration, wanted, now)

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: restoreworks.Log) -> None:
        """Make, write, prove, name."""
        target, watch = restoreworks.planned(self._target), _Watch(sum(record.size for record in self._records))
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
            restoreworks.planned(self._target).start()

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


def vcenter(name: str, chosen: settings.Settings | None) -> vcenters.VCenter:
    """The VCenter in force, else that of the manifests: it may be newer, or the catalog is lost.

    Without ``chosen`` the manifests of the working folder are asked. Raises ``NotFound`` or ``ConfigurationError``.
    """
    found = None if chosen is None else sessions.read(chosen, lambda db: _in_force(db, name))
    return found or _declared(Path.cwd() if chosen is None else chosen.estate, name)


def _in_force(db: database.Database, name: str) -> vcenters.VCenter | None:
    found = configurations.applied(db).get(("VCenter", name))
    return found.object if found is not None and isinstance(found.object, vcenters.VCenter) else None


def _declared(estate: Path | None, name: str) -> vcenters.VCenter:
    known: tuple[str, ...] = ()
    if estate is not None:
        desired = estates.load(estate).desired
        if desired is None:
            raise errors.ConfigurationError(
                f"the manifests in {estate} have errors, and VCenter {name} is not in force",
                hint="holdfast validate lists them",
            )
        if name in desired.vcenters:
            return desired.vcenters[name]
        known = tuple(sorted(desired.vcenters))
    listed = f"there is {', '.join(known)}" if known else "declare it in the manifests"
    raise errors.NotFound(f"there is no VCenter {name}", hint=listed)
