"""The disks among a machine's devices, as values: of the live machine, or frozen in a snapshot's configuration."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

from pyVmomi import vim

Kind = Literal["Flat", "Sparse", "SeSparse", "RawVirtual", "RawPhysical", "Other"]

_FILE: Final = re.compile(r"\[(?P<datastore>[^\]]*)\] ?(?P<path>.*)", re.DOTALL)
_CONTROLLERS: Final = (
    (vim.vm.device.VirtualSCSIController, "scsi"),
    (vim.vm.device.VirtualSATAController, "sata"),
    (vim.vm.device.VirtualIDEController, "ide"),
    (vim.vm.device.VirtualNVMEController, "nvme"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VirtualDisk:
    """One disk."""

    #: The device's key, which QueryChangedDiskAreas takes.
    key: int
    #: Such as ``Hard disk 1``: its name in images.
    label: str
    #: Where it hangs, such as ``scsi0:1``; empty where that is not shown.
    slot: str
    #: Bytes.
    size: int
    kind: Kind
    #: ``[datastore] folder/disk.vmdk``; of a snapshot's configuration it is the frozen one.
    file: str
    #: The file that this one stands on, None where it stands alone.
    parent: str | None
    #: ``persistent``, ``independent_persistent``, ``independent_nonpersistent``, ...
    mode: str
    #: Whether several machines may write to it at once.
    shared: bool
    #: Of the disk's content: another one means another disk. Empty where the vCenter does not say.
    uuid: str
    #: What QueryChangedDiskAreas counts from; None without change tracking.
    change_id: str | None
    #: Raw devices: the LUN's name.
    lun: str | None
    thin: bool

    @property
    def datastore(self) -> str:
        """Name of the datastore that its file lies on; empty where that cannot be told."""
        return datastore(self.file)

    @property
    def path(self) -> str:
        """Path of its file on the datastore."""
        found = _FILE.fullmatch(self.file)
        return found["path"] if found else ""

    @property
    def independent(self) -> bool:
        """Whether snapshots leave it out."""
        return self.mode.startswith("independent")

    @property
    def raw(self) -> bool:
        """Whether it is a raw device mapping."""
        return self.kind in ("RawVirtual", "RawPhysical")


def datastore(file: str) -> str:
    """Name of the datastore of ``[datastore] folder/file``; empty where that is not what it is."""
    found = _FILE.fullmatch(file)
    return found["datastore"] if found else ""


def disks(devices: Iterable[Any]) -> tuple[VirtualDisk, ...]:
    """The disks of ``config.hardware.device``, in the order of their labels."""
    devices = list(devices)
    controllers = {device.key: device for device in devices if isinstance(device, vim.vm.device.VirtualController)}
    found = [_disk(device, controllers) for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    return tuple(sorted(found, key=order))


def order(disk: VirtualDisk) -> tuple[object, ...]:
    """What disks are sorted by: their labels, as people count."""
    return (_natural(disk.label), disk.key)


def shared_bus(devices: Iterable[Any]) -> tuple[str, ...]:
    """Names of the SCSI controllers whose bus is shared with other machines."""
    found = []
    for device in devices:
        if isinstance(device, vim.vm.device.VirtualSCSIController) and str(device.sharedBus or "") not in (
            "",
            "noSharing",
        ):
            found.append(f"scsi{device.busNumber}")
    return tuple(found)


def _natural(label: str) -> tuple[object, ...]:
    """``Hard disk 10`` after ``Hard disk 9``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", label) if part)


def _disk(device: Any, controllers: dict[int, Any]) -> VirtualDisk:
    backing = device.backing
    label = getattr(device.deviceInfo, "label", None) or f"Hard disk {device.key}"
    size = getattr(device, "capacityInBytes", None) or (device.capacityInKB or 0) * 1024
    parent = getattr(backing, "parent", None)
    return VirtualDisk(
        key=device.key,
        label=label,
        slot=_slot(device, controllers),
        size=int(size),
        kind=_kind(backing),
        file=str(getattr(backing, "fileName", None) or ""),
        parent=str(parent.fileName) if parent is not None else None,
        mode=str(getattr(backing, "diskMode", None) or "persistent"),
        shared=str(getattr(backing, "sharing", None) or "") == "sharingMultiWriter",
        uuid=str(getattr(backing, "uuid", None) or ""),
        change_id=getattr(backing, "changeId", None) or None,
        lun=getattr(backing, "lunUuid", None) or getattr(backing, "deviceName", None) or None,
        thin=bool(getattr(backing, "thinProvisioned", False)),
    )


def _slot(device: Any, controllers: dict[int, Any]) -> str:
    controller = controllers.get(device.controllerKey)
    for kind, word in _CONTROLLERS:
        if isinstance(controller, kind):
            return f"{word}{controller.busNumber}:{device.unitNumber}"
    return ""


def _kind(backing: Any) -> Kind:
    disk = vim.vm.device.VirtualDisk
    if isinstance(backing, disk.RawDiskMappingVer1BackingInfo):
        return "RawPhysical" if str(backing.compatibilityMode or "") == "physicalMode" else "RawVirtual"
    if isinstance(backing, disk.SeSparseBackingInfo):
        return "SeSparse"
    if isinstance(backing, disk.FlatVer2BackingInfo | disk.FlatVer1BackingInfo):
        return "Flat"
    if isinstance(backing, disk.SparseVer2BackingInfo | disk.SparseVer1BackingInfo):
        return "Sparse"
    return "Other"
