"""What a reading knows of its machine as it was frozen: the snapshot, the disks in it, the datastores, who asked.

``readings`` sets the scene once; ``parts`` opens disks by it, and the verdict compares the live machine with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pyVmomi import vim

from reconciler.api import vcenters
from reconciler.base import errors
from reconciler.sources import machines
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.inventory import ancestry, devices, judgements, lookups
from reconciler.sources.vsphere.reading import snapshots, spaces

_DEVICES = "config.hardware.device"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One machine under one snapshot."""

    session: sessions.Session
    wanted: vcenters.VMware
    machine: lookups.Machine
    asked: machines.Asked
    choice: judgements.Choice
    noted: machines.Snapshot
    taken: snapshots.Taken
    stores: tuple[spaces.Datastore, ...]
    #: Path of the machine's datacenter, such as ``DC0``.
    datacenter: str
    #: The disks by key, as the snapshot holds them.
    frozen: Mapping[int, devices.VirtualDisk]
    #: By key: the frozen file of a disk, and those that it stands on.
    chains: Mapping[int, tuple[str, ...]]
    #: The live disks by key, just after the snapshot.
    live: Mapping[int, devices.VirtualDisk]
    #: Whether a hook ran before the snapshot.
    hooked: bool
    #: What is worth saying of the image.
    notes: tuple[machines.Found, ...]

    @property
    def name(self) -> str:
        """Display name of the machine."""
        return self.machine.name

    def store(self, name: str) -> spaces.Datastore | None:
        """One of its datastores."""
        return next((one for one in self.stores if one.name == name), None)


def set_up(
    session: sessions.Session,
    wanted: vcenters.VMware,
    machine: lookups.Machine,
    asked: machines.Asked,
    noted: machines.Snapshot,
    taken: snapshots.Taken,
    stores: tuple[spaces.Datastore, ...],
    *,
    hooked: bool,
    notes: tuple[machines.Found, ...],
) -> Scene:
    """Ask what the snapshot holds: its disks are what is read, whatever the machine had a moment before.

    Raises ``SourceError``.
    """
    doing = f"VM {machine.name}: snapshot"
    shown = devices_of(session, snapshot(session, taken.reference), doing)
    frozen = devices.disks(shown)
    return Scene(
        session=session,
        wanted=wanted,
        machine=machine,
        asked=asked,
        choice=judgements.choose(machine.name, frozen, wanted),
        noted=noted,
        taken=taken,
        stores=stores,
        datacenter=ancestry.datacenter(session, machine.object, doing),
        frozen={disk.key: disk for disk in frozen},
        chains=chains(shown),
        live={disk.key: disk for disk in devices.disks(devices_of(session, machine.object, doing))},
        hooked=hooked,
        notes=notes,
    )


def devices_of(session: sessions.Session, object: Any, doing: str) -> list[Any]:
    """``config.hardware.device`` of a machine or a snapshot. Raises ``SourceError``."""
    found = properties.of(session, object, (_DEVICES,), doing).get(_DEVICES)
    if found is None:
        raise errors.SourceError(f"{doing}: the vCenter shows no devices", hint="the user needs System.Read on it")
    return list(found)


def chains(shown: Iterable[Any]) -> dict[int, tuple[str, ...]]:
    """The files of each disk by its key, the topmost first."""
    found: dict[int, tuple[str, ...]] = {}
    for device in shown:
        if not isinstance(device, vim.vm.device.VirtualDisk):
            continue
        files: list[str] = []
        backing: Any = device.backing
        while backing is not None:
            name = str(getattr(backing, "fileName", None) or "")
            if name:
                files.append(name)
            backing = getattr(backing, "parent", None)
        found[device.key] = tuple(files)
    return found


def snapshot(session: sessions.Session, reference: str) -> Any:
    """The ``vim.vm.Snapshot`` of a reference."""
    return session.object(vim.vm.Snapshot, reference)
