"""What a transport is: it opens the disk of a snapshot as a Disk, or says why it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from reconciler.base import disks, meters
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.inventory import devices


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """One disk under one snapshot."""

    session: sessions.Session
    #: Display name of the machine, and its reference, such as ``vm-57``.
    machine: str
    reference: str
    #: Path of the machine's datacenter, such as ``DC0``: the datastore's HTTP service asks for it.
    datacenter: str
    #: Reference of the snapshot.
    snapshot: str
    #: As the snapshot's configuration shows it.
    disk: devices.VirtualDisk
    #: ``summary.type`` of its datastore: VMFS, NFS, NFS41, vsan, VVOL, ...; empty where unknown.
    datastore_type: str
    #: Whether its datastore is a file system of the host's own operating system (``LocalDatastoreInfo``).
    datastore_local: bool
    #: Called with the number of each process of this host that reads the snapshot, before it begins.
    read_by: Callable[[int], None]
    #: ``check`` raises ``Cancelled`` when the work is asked to stop.
    meter: meters.Meter

    @property
    def words(self) -> str:
        """For messages: machine and disk."""
        return f"VM {self.machine}: {self.disk.label}"


class Transport(Protocol):
    """One way."""

    @property
    def name(self) -> str:
        """As manifests write it."""

    def refuses(self, frozen: Frozen) -> str | None:
        """Why this way does not lead to exactly these bytes, None if it may; nothing is opened for it."""

    def open(self, frozen: Frozen) -> disks.Disk:
        """The disk, of exactly ``frozen.disk.size`` bytes, named by its label.

        Its extents are what the transport itself knows, the whole disk where it knows nothing. Raises ``SourceError``.
        """
