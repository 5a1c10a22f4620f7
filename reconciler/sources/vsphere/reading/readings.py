"""One virtual machine, frozen by a snapshot of ours for as long as somebody reads it.

``freezing`` makes the reading; here are what its disks have changed since an earlier image, the verdict once they have
been read, and what an image keeps of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from reconciler.base import disks, errors, extents, quantities
from reconciler.sources import machines
from reconciler.sources.vsphere.blueprints import configurations
from reconciler.sources.vsphere.connections import faults
from reconciler.sources.vsphere.reading import changes, guards, parts, scenes, tracking, verdicts

#: Reasons for a full read that are as they should be, and are worth no warning.
_USUAL: Final = frozenset({"FirstRun", "FullEvery"})


class VmReading:
    """A frozen virtual machine. Implements ``machines.Reading``."""

    def __init__(
        self,
        scene: scenes.Scene,
        guard: guards.Guard,
        opened: Mapping[str, parts.Part],
        missing: Sequence[machines.Found],
        undo: contextlib.ExitStack,
    ) -> None:
        """``opened``: disks by label; ``undo`` ends everything that was begun. Raises ``Vanished``."""
        self._scene = scene
        self._guard = guard
        self._undo: contextlib.ExitStack | None = undo
        self._parts = opened
        self._missing = tuple(missing)
        self._facts = {label: part.facts for label, part in opened.items()}
        self._reasons: dict[str, machines.Found] = {}
        self._notes = [*(_excluded(scene.name, disk.label) for disk in scene.choice.excluded), *scene.notes]
        self._configuration = self._captured()

    @property
    def disks(self) -> Sequence[disks.Disk]:
        """The disks that could be opened, by label."""
        return tuple(part.disk for part in self._parts.values())

    @property
    def missing(self) -> Sequence[machines.Found]:
        """Disks that the policy wants and that could not be opened."""
        return self._missing

    def changes(self, disk: str, parent: Mapping[str, str]) -> machines.DiskChanges:
        """What the vCenter says, where there is something to count from; else why the disk is read as a whole.

        Raises ``SourceError`` where the snapshot is gone.
        """
        part = self._parts[disk]
        told = self._asked(part, parent)
        if told.changed is None:
            if told.reason.code not in _USUAL:
                self._reasons[disk] = _naming(disk, told.reason)
            return told
        if part.hinted is not None:
            part.hinted.partly = True
        return told

    def _asked(self, part: parts.Part, parent: Mapping[str, str]) -> machines.DiskChanges:
        label, scene = part.device.label, self._scene
        if part.transport == parts.DEVICE:
            return changes.no("RawDevice", f"{label} is read by its path, where nothing records its changes")
        distrust = scene.wanted.cbt_distrust
        since = changes.since(
            label, part.facts, parent, full_every=distrust.full_every, at=part.facts.full or scene.asked.clock.now()
        )
        if isinstance(since, machines.Found):
            return machines.DiskChanges(changed=None, reason=since)
        areas = tracking.areas(
            scene.session, scene.machine.object, scene.taken.reference, part.device, since.change_id, scene.name
        )
        if isinstance(areas, machines.Found):
            return machines.DiskChanges(changed=None, reason=areas)
        share, turn = quantities.parse_percent(distrust.share), since.then.round + 1
        tested = changes.tests(part.device.uuid or label, part.device.size, areas, share, turn)
        self._facts[label] = dataclasses.replace(
            part.facts, full=since.then.full, round=turn if share else since.then.round
        )
        told = f"{quantities.show_size(extents.total(areas))} changed in {label} since {since.change_id}"
        if tested:
            told += f"; {quantities.show_size(extents.total(tested))} called unchanged are read as a test"
        return machines.DiskChanges(
            changed=extents.normalise([*areas, *tested]),
            reason=machines.Found(code="ChangeTracking", message=told),
            tested=tested,
        )

    def finish(self) -> machines.Verdict:
        """Ask for the snapshot by id, and compare the machine with what it was. Raises ``SourceChanged``, or what the
        watch found."""
        self._guard.check()
        verdicts.compare(self._scene)
        hints = [(part.device.label, part.hinted.outcome) for part in self._parts.values() if part.hinted is not None]
        wrong = [_naming(label, one) for label, one in hints if one is not None and one.code == "HintWrong"]
        warnings = (*self._notes, *self._reasons.values(), *wrong)
        return machines.Verdict(failed=(), consistency=self._consistency(), warnings=warnings)

    def _consistency(self) -> str:
        """Raw devices are read as they are now: who writes to them is seen in no snapshot."""
        beside = any(part.transport == parts.DEVICE for part in self._parts.values()) and not self._scene.hooked
        if self._scene.taken.powered_off and not (beside and verdicts.powered_on(self._scene)):
            return "Offline"
        return "Live" if beside else "Snapshot"

    def state(self) -> Mapping[str, str]:
        """One line of JSON per disk, under ``disk:<label>``, and whether the guest held still, under ``quiesce``."""
        facts = {f"disk:{label}": changes.remember(one) for label, one in self._facts.items()}
        return {**facts, "quiesce": self._scene.taken.quiesced.code}

    def configuration(self) -> str | None:
        """The machine on paper, as it was when it was frozen."""
        return self._configuration

    def _captured(self) -> str | None:
        scene = self._scene
        snapshot = scenes.snapshot(scene.session, scene.taken.reference)
        mapped = [disk.label for disk, device in scene.choice.raw if device.mapping_file]
        try:
            return configurations.capture(scene.session, scene.machine.object, snapshot, mapped=mapped)
        except faults.Vanished:
            raise
        except errors.SourceError as error:
            self._notes.append(machines.Found(code="ConfigurationUnknown", message=str(error)))
            return None

    def close(self) -> None:
        """Close the disks, remove the snapshot, run the after hook. Idempotent. Raises ``HookFailed``."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()


def _naming(label: str, found: machines.Found) -> machines.Found:
    """The same, naming the disk."""
    message = found.message if label in found.message else f"{label}: {found.message}"
    return dataclasses.replace(found, message=message)


def _excluded(machine: str, label: str) -> machines.Found:
    return machines.Found(code="DiskExcluded", message=f"VM {machine}: {label} is left out, as excludeDisks says")
