"""What every source of bytes offers: an inventory of machines, and one frozen reading of one machine.

``controller`` asks for inventories, ``operations`` for readings; neither knows what kind of source it is.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from reconciler.base import clocks, disks, extents, meters


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
    #: What is worth saying of it although it can be backed up.
    notes: tuple[Found, ...] = ()
    #: Where it runs and lies, for limits; None and empty where a source has no such thing.
    host: str | None = None
    datastores: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A snapshot that a source made of a machine, or is about to make."""

    #: A UUID of ours.
    id: str
    #: The VCenter.
    vcenter: str
    #: Client id of the machine.
    machine: str
    #: Display name of the machine, for messages.
    machine_name: str
    #: The source's own name of the machine, such as ``vm-57``.
    place: str
    #: The job that it is made for, such as ``j-000123``.
    job: str
    #: The source's own name of it, such as ``snapshot-58``; None as long as nobody knows.
    reference: str | None = None
    #: When it was made, as it says itself; None where it does not say.
    created: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What a selection finds now."""

    machines: tuple[Machine, ...]
    #: What is worth saying of the selection, such as machines that it names and that cannot be protected.
    notes: tuple[Found, ...] = ()
    #: Snapshots of ours that the source holds now, of any machine and whoever asked.
    snapshots: tuple[Snapshot, ...] = ()
    #: Why the source could not be asked, in which case ``machines`` is empty and the last known ones stand.
    unreachable: Found | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiskChanges:
    """What a source knows about changes since an earlier image."""

    #: Ranges that may differ from the parent, None where that is not known and the whole disk must be read.
    changed: extents.Extents | None
    #: Code and sentence: why they are known, or why not.
    reason: Found
    #: Ranges among ``changed`` that are called unchanged and are read to test that word. If one of them differs from
    #: the parent, nothing that was said can be believed, and the disk is read as a whole.
    tested: extents.Extents = ()


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
        """Judge the reading: did anything move under it? Asked before the first byte and after the last.

        Raises ``SourceChanged`` where nothing of what was read is worth keeping.
        """

    def state(self) -> Mapping[str, str]:
        """What the next incremental needs to know of this reading, kept with the image."""

    def configuration(self) -> str | None:
        """What is needed beside the disks to make the machine again, as JSON; None where there is no such thing."""

    def close(self) -> None:
        """Thaw, run the after hooks, stop servers. Always called, idempotent. Raises ``HookFailed``."""


class Ledger(Protocol):
    """Where a source writes down what it does to a machine, so that somebody can undo it whatever happens.

    Every call is durable when it returns.
    """

    def intend(self, snapshot: Snapshot) -> None:
        """A snapshot is about to be made."""

    def made(self, id: str, reference: str) -> None:
        """It was made, and this is the source's name of it."""

    def read_by(self, id: str, process: int) -> None:
        """A process of this host reads it from now on; it must be gone before the snapshot goes."""

    def gone(self, id: str) -> None:
        """It was never made, or was removed."""


class _NoLedger:
    """For readings outside any job."""

    def intend(self, snapshot: Snapshot) -> None:
        """Not recorded."""

    def made(self, id: str, reference: str) -> None:
        """Not recorded."""

    def read_by(self, id: str, process: int) -> None:
        """Not recorded."""

    def gone(self, id: str) -> None:
        """Not recorded."""


def _unheard(line: str) -> None:
    """Nobody listens."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Who asks for a reading, and what he has to be told."""

    #: Id of the catalog, which owns what is made at the source.
    owner: str = "nobody"
    #: The job, such as ``j-000123``.
    job: str = "none"
    #: The machine as the asker knows it, for messages; "" where he does not.
    client: str = ""
    ledger: Ledger = dataclasses.field(default_factory=_NoLedger)
    #: ``check`` raises ``Cancelled`` when the work is asked to stop; ``cancel`` stops it.
    meter: meters.Meter = dataclasses.field(default_factory=meters.Meter)
    #: Takes lines for the job's log.
    log: Callable[[str], None] = _unheard
    #: Where stamps come from.
    clock: clocks.Clock = dataclasses.field(default_factory=clocks.SystemClock)


#: A reading that no job asked for.
ALONE: Final = Asked()


class Source(Protocol):
    """A selection of machines of one policy."""

    def inventory(self) -> Inventory:
        """The machines that the selection matches now. Never raises for one bad machine."""

    def freeze(self, machine_id: str, asked: Asked = ALONE) -> Reading:
        """Freeze one machine and open its disks. Raises ``SourceError``, ``HookFailed`` or ``Cancelled``."""
