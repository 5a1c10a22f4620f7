"""What a backup needs to know of the file systems inside one disk: where files lie, and what may read as zeros.

Where a policy leaves free space or page files out, the look is taken before the first byte is stored, and decides for
all copies of the image. Otherwise it is taken when a unit asks for the layout, which most runs never do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from reconciler.api import policies
from reconciler.base import disks, extents, layouts, meters
from reconciler.guests import scanning, scans

#: The code of the warning that free space or page files were kept.
_KEPT = "VolumeKeptWhole"


class GuestView:
    """One look at one disk, taken once as a rule. Not thread-safe."""

    def __init__(
        self,
        disk: disks.Disk,
        meter: meters.Meter,
        spec: policies.BackupPolicySpec | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """``spec`` says what an image leaves out, nothing if None; ``keep``: the guest may still be writing."""
        self.disk = disk
        self._meter = meter
        self._skip = spec is not None and spec.free_space == "Skip"
        self._exclude = frozenset(spec.exclude) if spec is not None else frozenset()
        self._keep = keep
        self._scan: scans.Scan | None = None
        self._partly = False

    def onto(self, disk: disks.Disk) -> GuestView:
        """The same look at the same bytes in another place; what was read so far is known there."""
        moved = copy.copy(self)
        moved.disk = disk
        return moved

    @property
    def warnings(self) -> tuple[scans.Warning_, ...]:
        """What could not be read or left out, as (code, message); the image is whole all the same."""
        found = self._scan.warnings if self._scan is not None else ()
        if not self._selective:
            return found
        if self._keep:
            return (*found, (_KEPT, "the guest was writing while it was read; nothing is left out"))
        volumes = self._scan.volumes if self._scan is not None else ()
        return (*found, *((_KEPT, _reason(volume)) for volume in volumes if volume.reason))

    @property
    def _selective(self) -> bool:
        return self._skip or bool(self._exclude)

    def _look(self) -> scans.Scan:
        if self._scan is None:
            self._scan = scanning.scan(self.disk, want_space=self._selective, meter=self._meter)
        return self._scan

    def layout(self, changed: extents.Extents | None = None) -> layouts.Layout:
        """Where files lie; where only ``changed`` differs from the parent, those that changed are enough.

        Raises ``Cancelled``, ``SourceError`` or ``UnitError``; a bad guest is a warning.
        """
        if self._scan is None and changed is not None:
            self._scan, self._partly = scanning.scan(self.disk, within=changed, meter=self._meter), True
        elif self._partly and changed is None:
            self._scan, self._partly = None, False
        return self._look().layout

    def hidden(self) -> extents.Extents:
        """Disk ranges that the image leaves out. Raises as ``layout`` does."""
        if self._keep or not self._selective:
            return ()
        scan = self._look()
        chosen = scan.free if self._skip else ()
        chosen += scan.page_files if "PageFile" in self._exclude else ()
        chosen += scan.swap if "SwapVolume" in self._exclude else ()
        return extents.clip(chosen, self.disk.size)


def views(
    readable: Iterable[disks.Disk], meter: meters.Meter, spec: policies.BackupPolicySpec, *, keep: bool
) -> list[GuestView]:
    """A look at each of these disks, not taken yet."""
    return [GuestView(disk, meter, spec, keep=keep) for disk in readable]


def _reason(volume: scans.Volume) -> str:
    what = (f"{volume.filesystem} volume" if volume.filesystem else "volume") + (
        f" {volume.label}" if volume.label else ""
    )
    return f"{what} at byte {volume.offset}: {volume.reason}; nothing of it is left out"
