"""What every source of bytes offers: an inventory of machines, and one frozen reading of one machine.

``controller`` asks for inventories, ``operations`` for readings; neither knows what kind of source it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from reconciler.base import disks, extents


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One thing worth saying about a machine: a code and a sentence."""

    code: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One protected machine as its source sees it now."""

    #: Stable identity, independent of the display name where the source has one.
    id: str
    name: str
    #: Human-readable place, such as ``diskimages:/srv/guests/oblVM1``.
    source: str
    #: Names of the disks that would be read, in order.
    disks: tuple[str, ...]
    #: Why it cannot be backed up now, if so (it is then drift, not a job).
    problem: Found | None = None
    #: Names beside its disks that look like disks and are selected by nothing.
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What a selection finds now."""

    machines: tuple[Machine, ...]
    #: Why the source could not be asked, in which case ``machines`` is empty and the last known ones stand.
    unreachable: Found | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiskChanges:
    """What a source knows about changes since an earlier image."""

    #: Ranges that may differ from the parent, None where that is not known and the whole disk must be read.
    changed: extents.Extents | None
    #: Code and sentence: why they are known, or why not.
    reason: Found


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the source says once the reading is over."""

    #: Disks whose bytes cannot be vouched for (vanished, resized, changed while read): the image is Partial.
    failed: tuple[Found, ...]
    #: ``Offline``, ``Snapshot`` or ``Live``.
    consistency: str
    warnings: tuple[Found, ...]


class Reading(Protocol):
    """One freeze of one machine. All disks and streams of an image come from one reading."""

    @property
    def disks(self) -> Sequence[disks.Disk]:
        """The machine's disks that could be opened, in order."""

    @property
    def missing(self) -> Sequence[Found]:
        """Disks that should be here and could not be opened: the image will be Partial."""

    def changes(self, disk: str, parent: Mapping[str, str]) -> DiskChanges:
        """What changed on ``disk`` since the image whose source state ``parent`` was recorded."""

    def finish(self) -> Verdict:
        """Judge the reading after the last byte: did anything move under it?"""

    def state(self) -> Mapping[str, str]:
        """What the next incremental needs to know of this reading, kept with the image."""

    def close(self) -> None:
        """Thaw, run the after hooks, stop servers. Always called, idempotent. Raises ``HookFailed``."""


class Source(Protocol):
    """A selection of machines of one policy."""

    def inventory(self) -> Inventory:
        """The machines that the selection matches now. Never raises for one bad machine."""

    def freeze(self, machine_id: str) -> Reading:
        """Freeze one machine and open its disks. Raises ``SourceError`` or ``HookFailed``."""
