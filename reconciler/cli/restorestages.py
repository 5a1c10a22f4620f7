"""A restore that makes a machine as a folder: one of the works that ``restoring`` loads when it is asked for."""

from __future__ import annotations

from pathlib import Path

from reconciler.base import meters
from reconciler.cli import restoreworks
from reconciler.operations import restores, stagings
from reconciler.storage import units


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

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: restoreworks.Log) -> None:
        """Write and prove the disks, then what makes a machine of them."""
        self._done, self._notes = stagings.stage(restoreworks.planned(self._plan), stored, meter, log)

    def then(self) -> None:
        """Nothing."""

    def outcome(self) -> restoreworks.Outcome:
        """Paths of the flat files and digests."""
        disks = restoreworks.restored(restoreworks.planned(self._plan).disks, self._done)
        return restoreworks.Outcome(format="staged", target=str(self._to.absolute()), disks=disks, notes=self._notes)
