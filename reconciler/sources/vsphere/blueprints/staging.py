"""A machine as a folder that an ESX host can register: vmx, nvram, and a flat VMDK for each disk.

The disks' flat files are restored and proven like any raw disk; ``complete`` adds what makes a machine of them, the vmx
last: a folder without it is not finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from reconciler.base import errors, files
from reconciler.sources.vmdk import descriptions
from reconciler.sources.vsphere.blueprints import blueprints

_LINE: Final = re.compile(r"\s*(?P<key>[^#=\s][^=\s]*)\s*=\s*(?P<value>.*?)\s*", re.DOTALL)
_SLOT: Final = re.compile(r"(scsi|sata|ide|nvme)\d+:\d+", re.IGNORECASE)
#: What belongs to the host it ran on, or to files that are not restored.
_LEFT: Final = re.compile(
    r"(?i)sched\.swap\..*|uuid\.location|migrate\..*|checkpoint.*|vmotion\..*|extendedconfigfile|.*\.redo|.*ctkenabled"
    r"|cleanshutdown|softpoweroff|snapshot\..*|vmxstats\.filename"
)
_CONTROLLERS: Final[Mapping[str, tuple[str, str]]] = {
    "ParaVirtualSCSIController": ("scsi", "pvscsi"),
    "VirtualLsiLogicController": ("scsi", "lsilogic"),
    "VirtualLsiLogicSASController": ("scsi", "lsisas1068"),
    "VirtualBusLogicController": ("scsi", "buslogic"),
    "VirtualAHCIController": ("sata", ""),
    "VirtualIDEController": ("ide", ""),
    "VirtualNVMEController": ("nvme", ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """The names in one staged folder."""

    vmx: str
    nvram: str
    #: By label: the descriptor and the flat file.
    disks: Mapping[str, tuple[str, str]]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.vmx, self.nvram, *(name for pair in self.disks.values() for name in pair))


def folder(blueprint: blueprints.Blueprint, labels: Sequence[str]) -> Folder:
    """Names after the machine's, as ESX gives them: ``vm.vmdk``, ``vm_1.vmdk``, ..."""
    stem = re.sub(r"[/\\\0]", "_", blueprint.name).lstrip(".")[:200] or "machine"
    disks = {}
    for number, label in enumerate(labels):
        base = stem if number == 0 else f"{stem}_{number}"
        disks[label] = (f"{base}.vmdk", f"{base}-flat.vmdk")
    return Folder(vmx=f"{stem}.vmx", nvram=f"{stem}.nvram", disks=disks)


def check(path: Path, names: Folder, *, force: bool) -> None:
    """Raises ``TargetExists`` if one of these files is there."""
    there = [name for name in names.names if (path / name).exists()]
    if there and not force:
        raise errors.TargetExists(
            f"{path / there[0]} exists", hint="stage into another folder, or overwrite it with --force"
        )


def unregister(path: Path, names: Folder) -> None:
    """Before the first disk is overwritten: a vmx that is there goes, for it would name half of each. Raises
    ``TargetError``."""
    vmx = path / names.vmx
    if vmx.exists():
        with _told(vmx):
            vmx.unlink()
            files.sync_folder(path)


def complete(path: Path, names: Folder, blueprint: blueprints.Blueprint, sizes: Mapping[str, int]) -> list[str]:
    """Write descriptors, nvram and, last, the vmx. ``sizes``: bytes by label. What differs, a sentence each.

    Raises ``TargetError`` or ``Damaged``.
    """
    said = []
    for label, (descriptor, flat) in names.disks.items():
        text = descriptions.flat(flat, sizes[label], _controller(blueprint, label), vmfs=False)
        _write(path / descriptor, text)
    if blueprint.nvram is not None:
        _write(path / names.nvram, blueprint.nvram.content())
    else:
        said.append("no nvram was captured: the machine starts with fresh settings of its firmware")
    if blueprint.vmx is None:
        said.append("no vmx was captured: it is written from what is known of the machine's devices")
    _write(path / names.vmx, vmx(blueprint, names).encode("utf-8", "surrogateescape"))
    return said


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say which file a failure concerns."""
    try:
        yield
    except OSError as error:
        raise errors.TargetError(f"{path}: {error.strerror}", hint="check the folder and its space") from error


def _write(path: Path, content: bytes) -> None:
    with _told(path):
        files.write_atomically(path, content)


def _controller(blueprint: blueprints.Blueprint, label: str) -> str:
    disk = blueprint.disk(label)
    key = disk.controller if disk is not None else 0
    return next((one.type for one in blueprint.controllers if one.key == key), "")


def vmx(blueprint: blueprints.Blueprint, names: Folder) -> str:
    """The text of the vmx: the captured one, with the files of this folder and no disks that are not in it."""
    if blueprint.vmx is None:
        settings = _generated(blueprint)
    else:
        settings = _settings(blueprint.vmx.content().decode("utf-8", "surrogateescape"))
    slots = {disk.slot.lower(): label for label in names.disks if (disk := blueprint.disk(label)) is not None}
    gone = {disk.slot.lower() for disk in blueprint.disks if disk.label not in names.disks}
    kept = {key: value for key, value in settings.items() if not _LEFT.fullmatch(key) and _slot(key) not in gone}
    kept["nvram"] = names.nvram
    if "displayname" not in {key.lower() for key in kept}:
        kept["displayName"] = blueprint.name
    for slot, label in slots.items():
        for key in [key for key in kept if _slot(key) == slot and key.lower().rpartition(".")[2] in _DISK_KEYS]:
            del kept[key]
        kept[f"{slot}.present"] = "TRUE"
        kept[f"{slot}.deviceType"] = _DEVICES.get(slot[:3], "disk")
        kept[f"{slot}.fileName"] = names.disks[label][0]
    return "".join(f'{key} = "{value}"\n' for key, value in kept.items())


_DEVICES: Final = {"scs": "scsi-hardDisk", "ide": "ata-hardDisk"}
_DISK_KEYS: Final = ("present", "devicetype", "filename", "mode", "sharing")


def _slot(key: str) -> str:
    found = _SLOT.match(key)
    return found[0].lower() if found else ""


def _settings(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            found[match["key"]] = match["value"].removeprefix('"').removesuffix('"')
    return found


def _spaced(uuid: str) -> str:
    """``42 30 a5 ...-...`` as a vmx writes it."""
    digits = uuid.replace("-", "")
    pairs = [digits[place : place + 2] for place in range(0, len(digits), 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def _generated(blueprint: blueprints.Blueprint) -> dict[str, str]:
    settings = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": blueprint.version.removeprefix("vmx-") or "13",
        "displayName": blueprint.name,
        "guestOS": blueprint.guest_id,
        "firmware": blueprint.firmware,
        "memSize": str(blueprint.memory_mib),
        "numvcpus": str(blueprint.cpus),
        "cpuid.coresPerSocket": str(blueprint.cores_per_socket),
        "pciBridge0.present": "TRUE",
        "uuid.bios": _spaced(blueprint.bios_uuid),
        "vc.uuid": _spaced(blueprint.instance_uuid),
    }
    if blueprint.annotation:
        settings["annotation"] = blueprint.annotation.replace("|", "|7C").replace("\n", "|0A").replace('"', "|22")
    settings |= dict(_controllers(blueprint.controllers))
    for number, nic in enumerate(blueprint.nics):
        name = f"ethernet{number}"
        settings |= {
            f"{name}.present": "TRUE",
            f"{name}.virtualDev": nic.type.removeprefix("Virtual").lower(),
            f"{name}.networkName": nic.network,
            f"{name}.addressType": "static" if nic.mac else "generated",
        }
        if nic.mac:
            settings[f"{name}.address"] = nic.mac
    return settings | {key: value.replace('"', "|22") for key, value in blueprint.extra.items()}


def _controllers(controllers: Iterable[blueprints.Controller]) -> Iterable[tuple[str, str]]:
    for one in controllers:
        word, device = _CONTROLLERS.get(one.type, ("", ""))
        if word and word != "ide":
            yield f"{word}{one.bus}.present", "TRUE"
            if device:
                yield f"{word}{one.bus}.virtualDev", device
