"""Where a restore makes a whole machine: the port that ``operations`` writes to, whatever kind of place it is.

A machine is half-made until every disk was read back and proven; only ``finish`` gives it its name. Whatever ends a
restore before that leaves nothing but what a crash leaves, which can be told from a machine and is swept by the next
restore. A restore that has a name of its own (``Wanted.order``) also finds what it had proven before it was killed, and
goes on there instead of making a second machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

from reconciler.base import disks, meters

Identity = Literal["same", "new"]
Via = Literal["import", "datastore", "vddk"]
#: What an attempt finds of the ones before it: nothing that it could use, a machine that was proven whole, or one that
#: has its name already.
Found = Literal["Nothing", "Proven", "Named"]
#: Ways to write disks, the preferred first.
VIAS: Final[tuple[Via, ...]] = ("import", "datastore", "vddk")
IDENTITIES: Final[tuple[Identity, ...]] = ("same", "new")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is asked for. Names and paths that are None are left to what the image says of its machine."""

    #: Image id.
    image: str
    #: Names and sizes in bytes of the disks to restore.
    disks: Mapping[str, int]
    #: Of the machine.
    name: str | None = None
    folder: str | None = None
    #: An ESX host or a cluster.
    host: str | None = None
    pool: str | None = None
    datastore: str | None = None
    #: ``same`` keeps what tells a machine from others, ``new`` makes another one.
    identity: Identity | None = None
    via: Via | None = None
    #: Whether a machine that has the name steps aside.
    replace: bool = False
    #: The same for all attempts at one restore, and for no other restore; None for one that begins anew each time.
    order: str | None = None


class MachineTarget(Protocol):
    """One machine being restored. Calls come in the order in which they stand here, from one thread."""

    @property
    def target(self) -> str:
        """Where it will be, such as ``vsphere:vc1/DC0/vm/gold/oblVM1``."""

    @property
    def way(self) -> str:
        """How the disks are written, such as ``import``; nothing where they were written before."""

    @property
    def identity(self) -> Identity:
        """Whether it is the machine that was captured, or another one."""

    @property
    def notes(self) -> Sequence[str]:
        """What differs from the machine that was captured, and what else is worth saying; a sentence each."""

    @property
    def found(self) -> Found:
        """What there is already: of a ``Proven`` one nothing is written, of a ``Named`` one nothing is read either."""

    def begin(self, meter: meters.Meter) -> None:
        """Make it, half-made, unless it is there. Raises ``SourceError``, ``TargetError``, ``TargetExists`` or
        ``Cancelled``."""

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Write one disk, told by its name; the bytes that were sent. Raises as ``begin``, and what reading raises."""

    def seal(self, meter: meters.Meter) -> None:
        """Every disk is written: make it a machine that can be read. Raises as ``begin``."""

    def read_back(self, meter: meters.Meter) -> contextlib.AbstractContextManager[Mapping[str, disks.Disk]]:
        """Its disks by name, read from where they were written. Raises as ``begin``."""

    def finish(self, meter: meters.Meter) -> None:
        """It is proven: give it its name and place. Raises as ``begin``, leaving what was there before as it was."""

    def start(self) -> None:
        """Let it run, unless it does. Raises ``SourceError``; the machine stays."""

    def release(self) -> None:
        """It is recorded that the restore was made: no attempt has to find this machine any more. Idempotent. Raises
        ``SourceError``; the machine stays, with a mark that nobody asks for."""

    def abort(self) -> None:
        """Leave nothing behind. Idempotent; does nothing after ``finish``. What cannot be removed becomes a note."""
