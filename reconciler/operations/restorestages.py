"""A restore that makes a machine as a folder: one of the works of ``restoreworks``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reconciler.base import errors, meters
from reconciler.operations import restores, restoreworks, stagings
from reconciler.storage import opening, units


class Staged:
    """A machine as a folder that an ESX host can register."""

    def __init__(
        self,
        *,
        to: Path,
        names: Sequence[str],
        force: bool,
        read_back: bool,
        units: tuple[Path, ...],
        again: bool = False,
    ) -> None:
        """``units``: folders that nothing is staged into; ``again``: an attempt before this one was killed."""
        self._to, self._names, self._force, self._read_back = to, names, force, read_back
        self._units, self._again = units, again
        self._there = False
        self._plan: stagings.StagePlan | None = None
        self._done: tuple[restores.Restored, ...] = ()
        self._notes: tuple[str, ...] = ()

    def plan(self, stored: units.StoredImage) -> None:
        """Choose disks and names."""
        opening.require_outside(self._to, self._units)
        try:
            self._plan = self._prepared(stored, force=self._force)
        except errors.TargetExists:
            if not self._again:
                raise
            plan = self._prepared(stored, force=True)
            # The disks get their names before anything else is written.
            if not any(disk.path.exists() for disk in plan.disks.disks):
                raise
            self._plan, self._there = plan, True
        self._notes = self._plan.notes

    def _prepared(self, stored: units.StoredImage, *, force: bool) -> stagings.StagePlan:
        return stagings.prepare(
            stored.label, names=self._names, folder=self._to, force=force, read_back=self._read_back
        )

    def run(self, stored: units.StoredImage, meter: meters.Meter, log: restoreworks.Log) -> None:
        """Write and prove the disks, then what makes a machine of them."""
        plan = restoreworks.planned(self._plan)
        self._done, self._notes = stagings.stage(plan, stored, meter, log, again=self._there)

    def then(self) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""

    def outcome(self) -> restoreworks.Outcome:
        """Paths of the flat files and digests."""
        disks = restoreworks.restored(restoreworks.planned(self._plan).disks, self._done)
        return restoreworks.Outcome(format="staged", target=str(self._to.absolute()), disks=disks, notes=self._notes)
