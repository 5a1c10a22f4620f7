"""What is to be said of a selected machine before anybody touches it: which of its disks can be read, what keeps it
from being backed up at all, and what is worth telling. Pure; nothing is asked.

A machine that cannot have a snapshot is named as drift, with the next step: a job for it would fail every night.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Final

from reconciler.api import vcenters
from reconciler.base import quantities, times
from reconciler.sources import machines
from reconciler.sources.vsphere.inventory import devices, listings, marks

#: Snapshots of others that are older are worth a note: they grow, and slow the machine.
OLD: Final = dt.timedelta(days=3)
_CONNECTIONS: Final = {
    "disconnected": ("its host is disconnected", "reconnect the host"),
    "inaccessible": ("its files cannot be reached", "check the host and its datastores"),
    "invalid": ("its configuration is invalid", "repair or register it again"),
    "orphaned": ("its host no longer knows it", "register it again, or remove it"),
}
_OWN_WAY: Final = "protect it from within, or leave it out with exclude"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unread:
    """A disk that images are to hold and that cannot be read."""

    disk: devices.VirtualDisk
    #: Why, as a part of a sentence.
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a policy wants of a machine's disks."""

    #: Read through the snapshot.
    frozen: tuple[devices.VirtualDisk, ...]
    #: Read by a path on the media server.
    raw: tuple[tuple[devices.VirtualDisk, vcenters.RawDevice], ...]
    #: Wanted, and not readable: the image will be Partial.
    unread: tuple[Unread, ...]
    #: Left out by ``excludeDisks``.
    excluded: tuple[devices.VirtualDisk, ...]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Labels of all that are not excluded, in order."""
        disks = [*self.frozen, *(disk for disk, _ in self.raw), *(one.disk for one in self.unread)]
        return tuple(disk.label for disk in sorted(disks, key=devices.order))

    @property
    def datastores(self) -> tuple[str, ...]:
        """Names of the datastores that reading them puts a load on."""
        return tuple(sorted({disk.datastore for disk in self.frozen if disk.datastore}))


def choose(machine: str, disks: Sequence[devices.VirtualDisk], wanted: vcenters.VMware) -> Choice:
    """Sort the disks of the machine with this name."""
    frozen: list[devices.VirtualDisk] = []
    raw: list[tuple[devices.VirtualDisk, vcenters.RawDevice]] = []
    unread: list[Unread] = []
    excluded: list[devices.VirtualDisk] = []
    for disk in disks:
        device = next((one for one in wanted.rdm if _names(one, machine, disk.label)), None)
        if any(_names(one, machine, disk.label) for one in wanted.exclude_disks):
            excluded.append(disk)
        elif device is not None and (disk.kind == "RawPhysical" or (disk.raw and disk.independent)):
            # What a snapshot takes along is read through it: that is one moment with the other disks.
            raw.append((disk, device))
        elif disk.kind == "RawPhysical":
            unread.append(Unread(disk=disk, why="is a raw device in physical mode and no device is declared for it"))
        elif disk.independent:
            unread.append(Unread(disk=disk, why="is independent, which snapshots leave out"))
        else:
            frozen.append(disk)
    return Choice(frozen=tuple(frozen), raw=tuple(raw), unread=tuple(unread), excluded=tuple(excluded))


def problem(
    vm: listings.VM, details: listings.Details, choice: Choice, vcenter: vcenters.VCenterSpec
) -> machines.Found | None:
    """What keeps a machine from being backed up now, the most serious first."""
    if vm.connection != "connected":
        why, step = _CONNECTIONS.get(vm.connection, (f"it is {vm.connection}", "look at it in the vCenter"))
        return machines.Found(code="Inaccessible", message=f"{why} ({vm.connection}): {step}")
    if "config.hardware.device" in details.hidden:
        return machines.Found(
            code="NotVisible", message="the user may not see its devices: give it System.Read on the machine"
        )
    if not vm.instance_uuid:
        return machines.Found(
            code="NoInstanceUuid",
            message="it has no instance UUID, by which clients are known: power it off and on, or register it again",
        )
    return _impossible(details) or _no_disks(choice) or _full(vm, details, choice, vcenter)


def _impossible(details: listings.Details) -> machines.Found | None:
    """What the hypervisor allows no snapshot or no reading of."""
    writers = [disk.label for disk in details.disks if disk.shared]
    for holds, code, why in (
        (details.fault_tolerant, "FaultTolerance", "fault tolerance is on, under which there are no snapshots"),
        (details.vtpm, "VirtualTpm", "it has a virtual TPM, whose keys no image can carry"),
        (details.encrypted, "Encrypted", "it is encrypted, so that its disks cannot be read from outside"),
        (
            bool(details.shared_buses),
            "SharedBus",
            f"the bus of {_list(details.shared_buses)} is shared with other machines, which allows no snapshot",
        ),
        (bool(writers), "MultiWriter", f"{_list(writers)} may have several writers, which allows no snapshot"),
    ):
        if holds:
            return machines.Found(code=code, message=f"{why}: {_OWN_WAY}")
    return None


def _no_disks(choice: Choice) -> machines.Found | None:
    if choice.wanted:
        if choice.frozen or choice.raw:
            return None
        return machines.Found(
            code="NoDisks", message=f"none of its disks can be read: {_said(choice.unread)}; or leave the machine out"
        )
    return machines.Found(
        code="NoDisks",
        message=f"excludeDisks leaves none of {_list(disk.label for disk in choice.excluded)}: "
        "correct it, or leave the machine out with exclude",
    )


def _full(
    vm: listings.VM, details: listings.Details, choice: Choice, vcenter: vcenters.VCenterSpec
) -> machines.Found | None:
    """A datastore that a snapshot would grow on and that has too little space for one."""
    least = quantities.parse_percent(vcenter.datastore_free_space)
    # Every disk that snapshots take grows, be it excluded or not.
    growing = {disk.datastore for disk in (*choice.frozen, *choice.excluded) if not disk.independent}
    for store in vm.datastores or ():
        if store.name not in growing | {details.home}:
            continue
        if not store.accessible:
            return machines.Found(
                code="Inaccessible", message=f"its datastore {store.name} is not accessible: check it and its hosts"
            )
        if store.capacity and store.free * 100 < store.capacity * least:
            free, capacity = quantities.show_size(store.free), quantities.show_size(store.capacity)
            return machines.Found(
                code="DatastoreFull",
                message=f"datastore {store.name} has {free} of {capacity} free "
                f"({store.free * 100 // store.capacity}%), less than datastoreFreeSpace {least}%: "
                "no snapshot is made before there is more",
            )
    return None


def notes(vm: listings.VM, details: listings.Details, choice: Choice, now: dt.datetime) -> tuple[machines.Found, ...]:
    """What is worth telling of a machine although it can be backed up."""
    found = []
    if choice.unread and choice.wanted:
        message = f"images will be Partial: {_said(choice.unread)}"
        found.append(machines.Found(code="UnreadDisks", message=message))
    if details.consolidation_needed:
        message = "the vCenter says that its disks need consolidation: consolidate them, or set consolidate: true"
        found.append(machines.Found(code="ConsolidationNeeded", message=message))
    if not details.tracking_supported:
        message = "it cannot have changed block tracking, so that every backup reads its disks as a whole"
        found.append(machines.Found(code="NoChangeTracking", message=message))
    old = [one for one in vm.snapshots if one.created is not None and now - one.created > OLD and not _is_ours(one)]
    if old:
        named = ", ".join(f"{one.name!r} of {times.show(one.created)[:10]}" for one in old if one.created is not None)
        message = f"snapshots of somebody else are older than three days: {named}; remove them if nobody needs them"
        found.append(machines.Found(code="OldSnapshots", message=message))
    return tuple(found)


def _is_ours(snapshot: listings.Snapshot) -> bool:
    return marks.parse(snapshot.description) is not None


def _said(unread: Sequence[Unread]) -> str:
    steps = "list it in excludeDisks if that is meant"
    if any(one.disk.raw for one in unread):
        steps = "declare its device in rdm, or list it in excludeDisks if that is meant"
    return f"{'; '.join(f'{one.disk.label} {one.why}' for one in unread)}: {steps}"


def _names(entry: vcenters.MachineDisk, machine: str, label: str) -> bool:
    return fnmatch.fnmatchcase(machine, entry.machine) and fnmatch.fnmatchcase(label, entry.disk)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
