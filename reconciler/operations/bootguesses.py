"""How to start the machine of an image: an order made of what the image says of it, else of what its disks begin with.

A machine of a vCenter comes with its configuration: firmware, controllers, memory. A folder of disks says nothing, so
the partitions decide: the first disk that can be started comes first, under the firmware that it was partitioned for.
Called by the drills before ``boots``. No I/O: the caller reads the first ``HEAD`` bytes of each disk. They may hold
anything, so nothing is looked up but fixed fields at fixed places.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

from reconciler.base import errors
from reconciler.operations import bootorders, firmwares
from reconciler.sources import opening
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.storage import units

#: Bytes from the start of a disk in which its partitions are looked up.
HEAD: Final = 64 << 10
#: MiB of memory that a drill gives at least and at most, and processors at most, whatever the machine had.
LEAST_MEMORY: Final = 512
MOST_MEMORY: Final = 4096
MOST_PROCESSORS: Final = 2
_ENTRIES: Final = 128
_ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
_BIOS_BOOT: Final = uuid.UUID("21686148-6449-6e6f-744e-656564454649").bytes_le
_MICROSOFT_RESERVED: Final = uuid.UUID("e3c9e316-0b5c-4db8-817d-f92df00215ae").bytes_le
#: What a GPT's entry has set where a BIOS may start it.
_LEGACY: Final = 1 << 2
#: Types in an MBR: behind it is a GPT; an EFI system partition; NTFS.
_PROTECTIVE, _EFI, _NTFS = 0xEE, 0xEF, 0x07
#: What disks hung on, and what QEMU has that the same drivers serve. Of the two parallel controllers it has neither:
#: such machines have a CD drive, and with it a driver for IDE.
_BUSES: Final[Mapping[str, bootorders.Bus]] = {
    "ParaVirtualSCSIController": "pvscsi",
    "VirtualLsiLogicSASController": "lsisas",
    "VirtualAHCIController": "sata",
    "VirtualNVMEController": "nvme",
    "VirtualIDEController": "ide",
    "VirtualLsiLogicController": "ide",
    "VirtualBusLogicController": "ide",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What the first bytes of a disk say about starting from it."""

    #: There is an EFI system partition.
    uefi: bool = False
    #: There is code for a BIOS, and in a GPT a partition that is meant for one.
    bios: bool = False
    #: A partition is Windows'.
    windows: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """How to start an image's machine."""

    order: bootorders.BootOrder
    #: Names of the image's disks; the machine starts from the first one.
    disks: tuple[str, ...]
    #: What it was made of, in a sentence without a full stop.
    why: str


def guess(label: units.ImageLabel, heads: Mapping[str, bytes], wanted: bootorders.BootOrder | None = None) -> Guess:
    """An order for an image's machine.

    ``heads``: the first ``HEAD`` bytes of its disks by name, all of them or fewer where a disk is shorter. ``wanted``:
    how to judge it, and for how long; its firmware, bus, memory and processors are replaced.
    """
    wanted = wanted or bootorders.BootOrder()
    sectors = {record.name: record.sector for record in label.disks}
    found = {name: start(heads[name], sectors[name]) for name in sectors if name in heads}
    try:
        machine = None if label.configuration is None else opening.machine_blueprint(label.configuration, label.id)
    except errors.HoldfastError as error:
        return _by_disks(wanted, sectors, found, f"what the image says of its machine cannot be used ({error.message})")
    if machine is None:
        return _by_disks(wanted, sectors, found, "the image says nothing of its machine")
    return _by_machine(wanted, sectors, found, machine)


def readable(firmware: bootorders.Firmware, bus: bootorders.Bus) -> bootorders.Bus:
    """What the disks hang on, where the firmware has to find them there: ``bus``, or IDE, of which every machine of
    VMware has a controller, and with it a driver."""
    return "ide" if firmwares.may_miss(firmware, bus) else bus


def start(head: bytes, sector: int = 512) -> Start:
    """What the beginning of a disk says; for what is no partition table, that nothing can be started."""
    if len(head) < 512 or head[510:512] != b"\x55\xaa":
        return Start()
    code = any(head[:440])
    entries = [head[offset : offset + 16] for offset in range(446, 510, 16)]
    kinds = {entry[4] for entry in entries}
    if _PROTECTIVE not in kinds:
        active = any(entry[0] == 0x80 for entry in entries)
        # Code without an active partition is a boot loader's own, such as GRUB's.
        return Start(uefi=_EFI in kinds, bios=code and (active or _EFI not in kinds), windows=_NTFS in kinds)
    guids = dict(_gpt(head, sector))
    legacy = _BIOS_BOOT in guids or any(flags & _LEGACY for flags in guids.values())
    return Start(uefi=_ESP in guids, bios=code and legacy, windows=_MICROSOFT_RESERVED in guids)


def _gpt(head: bytes, sector: int) -> Iterator[tuple[bytes, int]]:
    """Type and flags of each partition, where the table stands where every tool puts it."""
    header = head[sector : sector + 92]
    if header[:8] != b"EFI PART":
        return
    size = int.from_bytes(header[84:88], "little")
    if size not in (128, 256, 512):
        return
    first = int.from_bytes(header[72:80], "little") * sector
    for number in range(min(int.from_bytes(header[80:84], "little"), _ENTRIES)):
        entry = head[first + number * size : first + number * size + 56]
        if len(entry) == 56 and any(entry[:16]):
            yield entry[:16], int.from_bytes(entry[48:56], "little")


def _by_disks(
    wanted: bootorders.BootOrder, sectors: Mapping[str, int], found: Mapping[str, Start], because: str
) -> Guess:
    startable = [name for name in sectors if (one := found.get(name)) is not None and (one.bios or one.uefi)]
    if not startable:
        why = f"{because}, and no disk has what a firmware starts: the first one is tried"
        return Guess(order=dataclasses.replace(wanted, firmware="bios", bus="virtio"), disks=tuple(sectors), why=why)
    first = startable[0]
    has = found[first]
    firmware: bootorders.Firmware = "bios" if has.bios else "uefi"
    bus: bootorders.Bus = "virtio"
    if has.windows:
        # Windows brings drivers for these two, and for virtio's only where somebody put them there.
        bus = "ide" if firmware == "bios" else "sata"
    what = "code for a BIOS" if has.bios else "an EFI system partition"
    return Guess(
        order=dataclasses.replace(wanted, firmware=firmware, bus=bus),
        disks=(first, *(name for name in sectors if name != first)),
        why=f"{because}: {first} has {what}{' and is of Windows' if has.windows else ''}",
    )


def _by_machine(
    wanted: bootorders.BootOrder,
    sectors: Mapping[str, int],
    found: Mapping[str, Start],
    machine: blueprints.Blueprint,
) -> Guess:
    firmware: bootorders.Firmware = "uefi" if machine.firmware == "efi" else "bios"
    controllers = {one.key: one for one in machine.controllers}

    def place(name: str) -> tuple[bool, bool, int, int]:
        """Those that can be started first, then as the machine's own firmware goes through them."""
        disk, has = machine.disk(name), found.get(name, Start())
        controller = None if disk is None else controllers.get(disk.controller)
        if disk is None or controller is None:
            return (not getattr(has, firmware), True, 0, 0)
        return (not getattr(has, firmware), False, controller.bus, disk.unit)

    ordered = tuple(sorted(sectors, key=place))
    hung = next((disk for name in ordered if (disk := machine.disk(name)) is not None), None)
    controller = None if hung is None else controllers.get(hung.controller)
    kind = "" if controller is None else controller.type
    order = dataclasses.replace(
        wanted,
        firmware=firmware,
        bus=_BUSES.get(kind, "sata"),
        memory=max(LEAST_MEMORY, min(machine.memory_mib, MOST_MEMORY)),
        processors=max(1, min(machine.cpus, MOST_PROCESSORS)),
    )
    return Guess(
        order=order, disks=ordered, why=f"{machine.name} was a machine with {firmware} and {kind or 'no disk'}"
    )
