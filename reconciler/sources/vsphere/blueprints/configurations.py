"""Capturing a machine on paper while its snapshot exists: devices from the snapshot's own configuration, its place, its
attributes, and the text of its vmx and its nvram as they lie on the datastore.

``capture`` is called by every reading. What cannot be had is a note in what it returns; only the machine itself being
gone is an error: disks without a configuration are still worth a backup.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.sources.vsphere.connections import datastorefiles, properties, sessions
from reconciler.sources.vsphere.inventory import ancestry, devices, tags

#: Bytes that a vmx or an nvram may have; both are far smaller.
_MOST: Final = 8 << 20
_FILE: Final = re.compile(r"\[([^\]]*)\] ?(.*)", re.DOTALL)
_MACHINE: Final = (
    "name", "parent", "parentVApp", "resourcePool", "runtime.host", "customValue", "availableField",
    "config.files.vmPathName",
)  # fmt: skip
#: Settings that another machine must not inherit, or that the host writes anew: files, identities, traces of runs.
_LEFT: Final = re.compile(
    r"""(?ix)^(
      nvram | holdfast\..* | uuid\..* | vc\.uuid | .*\.filename | .*ctkenabled | migrate\..* | replay\..* | snapshot\..*
    | cleanshutdown | softpoweroff | toolsinstallmanager\..* | vmotion\..* | vmware\.tools\..* | vmxstats\..*
    | guestos\.detailed\.data | guestinfo\.(vmtools|appinfo|detailed|driver).* | sched\.swap\..* | monitor\.phys.*
    | .*\.redo | migratetransientstate | tools\.guest\..* | extendedconfigfile | checkpoint.*
    )$"""
)
#: Devices that every machine has, or that come with others.
_INNATE: Final = (
    vim.vm.device.VirtualPCIController,
    vim.vm.device.VirtualPS2Controller,
    vim.vm.device.VirtualSIOController,
    vim.vm.device.VirtualKeyboard,
    vim.vm.device.VirtualPointingDevice,
    vim.vm.device.VirtualVideoCard,
    vim.vm.device.VirtualVMCIDevice,
)
_REMOVABLE: Final = (vim.vm.device.VirtualCdrom, vim.vm.device.VirtualFloppy)


def capture(
    session: sessions.Session,
    machine: Any,
    snapshot: Any | None,
    *,
    mapped: Collection[str] = (),
) -> str:
    """The machine as JSON for the image's label. Raises ``SourceError`` where machine or snapshot cannot be asked.

    ``machine``: a ``vim.VirtualMachine``; ``snapshot``: a ``vim.vm.Snapshot``, None for the machine as it is now.
    ``mapped``: labels of raw disks whose mapping a restore would make again.
    """
    doing = f"VM {machine._moId}: configuration"
    shown = properties.of(session, machine, _MACHINE, doing)
    doing = f"VM {shown.get('name', machine._moId)}: configuration"
    config = properties.of(session, machine if snapshot is None else snapshot, ("config",), doing).get("config")
    if config is None:
        raise errors.SourceError(f"{doing}: the vCenter shows none", hint="is the machine orphaned or inaccessible?")
    notes: list[str] = []
    place = _place(session, shown, notes, doing)
    vmx, nvram = _files(session, config, place, notes, doing)
    made = _hardware(session, config, frozenset(mapped), notes, doing)
    return blueprints.Blueprint(
        **_settings(config), **made, name=str(shown.get("name") or config.name), place=place,
        attributes=_attributes(shown), tags=_tags(session, machine, notes), vmx=vmx, nvram=nvram, notes=tuple(notes),
    ).write()  # fmt: skip


def _settings(config: Any) -> dict[str, Any]:
    hardware, boot = config.hardware, config.bootOptions
    return {
        "instance_uuid": str(config.instanceUuid or ""),
        "bios_uuid": str(config.uuid or ""),
        "guest_id": str(config.guestId or "otherGuest"),
        "version": str(config.version or ""),
        "firmware": str(getattr(config, "firmware", None) or "bios"),
        "cpus": int(hardware.numCPU or 1),
        "cores_per_socket": int(hardware.numCoresPerSocket or 1),
        "memory_mib": int(hardware.memoryMB or 0),
        "cpu_hot_add": bool(config.cpuHotAddEnabled),
        "memory_hot_add": bool(config.memoryHotAddEnabled),
        "cpu_shares": _shares(config.cpuAllocation),
        "memory_shares": _shares(config.memoryAllocation),
        "change_tracking": bool(config.changeTrackingEnabled),
        "boot": blueprints.Boot()
        if boot is None
        else blueprints.Boot(
            delay=int(boot.bootDelay or 0),
            enter_setup=bool(boot.enterBIOSSetup),
            retry=bool(boot.bootRetryEnabled),
            retry_delay=int(boot.bootRetryDelay or 10_000),
            secure=bool(getattr(boot, "efiSecureBootEnabled", False)),
        ),
        "annotation": str(config.annotation or ""),
        "extra": {str(one.key): str(one.value) for one in config.extraConfig or () if not _LEFT.match(str(one.key))},
    }


def _shares(allocation: Any) -> blueprints.Shares:
    if allocation is None:
        return blueprints.Shares()
    shares = allocation.shares
    return blueprints.Shares(
        reservation=int(allocation.reservation or 0),
        limit=-1 if allocation.limit is None else int(allocation.limit),
        level=str(shares.level) if shares is not None else "normal",
        shares=int(shares.shares or 0) if shares is not None else 0,
    )


def _hardware(
    session: sessions.Session, config: Any, mapped: frozenset[str], notes: list[str], doing: str
) -> dict[str, Any]:
    listed: list[Any] = list(config.hardware.device or ())
    by_key = {device.key: device for device in listed}
    disks = [_disk(one, by_key[one.key], mapped) for one in devices.disks(listed)]
    removables: list[Any] = [one for one in listed if isinstance(one, _REMOVABLE)]
    # Controllers of any kind stay only where something that is made again hangs on them.
    used = {one.controller for one in disks} | {one.controllerKey for one in removables}
    controllers = [one for one in listed if isinstance(one, vim.vm.device.VirtualController) and one.key in used]
    known = (*_INNATE, *_REMOVABLE, vim.vm.device.VirtualDisk, vim.vm.device.VirtualEthernetCard)
    kinds = ("SCSI", "SATA", "IDE", "NVME")
    idle = tuple(getattr(vim.vm.device, f"Virtual{kind}Controller") for kind in kinds)
    return {
        "controllers": tuple(_controller(one) for one in controllers),
        "disks": tuple(disks),
        "nics": tuple(
            _nic(session, one, notes, doing) for one in listed if isinstance(one, vim.vm.device.VirtualEthernetCard)
        ),
        "removables": tuple(
            blueprints.Removable(
                kind="VirtualFloppy" if isinstance(one, vim.vm.device.VirtualFloppy) else "VirtualCdrom",
                controller=one.controllerKey,
                unit=int(one.unitNumber or 0),
            )
            for one in removables
        ),
        "unmade": tuple(_label(one) for one in listed if not isinstance(one, (*known, *idle))),
    }


def _disk(one: devices.VirtualDisk, device: Any, mapped: frozenset[str]) -> blueprints.Disk:
    return blueprints.Disk(
        label=one.label, controller=int(device.controllerKey or 0), unit=int(device.unitNumber or 0), slot=one.slot,
        size=one.size, kind=one.kind, mode=one.mode, thin=one.thin, uuid=one.uuid, file=one.file, shared=one.shared,
        lun=one.lun, mapping_file=one.raw and one.label in mapped,
    )  # fmt: skip


def _controller(device: Any) -> blueprints.Controller:
    sharing = getattr(device, "sharedBus", None)
    return blueprints.Controller(
        key=device.key, type=_type(device), bus=int(device.busNumber or 0), sharing=str(sharing or "")
    )


def _nic(session: sessions.Session, device: Any, notes: list[str], doing: str) -> blueprints.Nic:
    try:
        network = _network(session, device.backing, doing)
    except errors.SourceError as error:
        notes.append(f"{_label(device)}: its network is not known: {error.message}")
        network = ""
    connected = device.connectable
    return blueprints.Nic(
        label=_label(device),
        type=_type(device),
        network=network,
        mac=str(device.macAddress or ""),
        address_type=str(device.addressType or "generated").lower(),
        start_connected=True if connected is None else bool(connected.startConnected),
    )


def _network(session: sessions.Session, backing: Any, doing: str) -> str:
    port = getattr(backing, "port", None)
    if port is not None and port.portgroupKey:
        # The key of a distributed port group is its reference.
        group = session.object(vim.dvs.DistributedVirtualPortgroup, str(port.portgroupKey))
        return str(properties.of(session, group, ("name",), doing).get("name", ""))
    return str(getattr(backing, "deviceName", None) or getattr(backing, "opaqueNetworkId", None) or "")


def _type(device: Any) -> str:
    return str(type(device)._wsdlName)


def _label(device: Any) -> str:
    return str(getattr(device.deviceInfo, "label", None) or f"{_type(device)} {device.key}")


def _place(session: sessions.Session, shown: Any, notes: list[str], doing: str) -> blueprints.Place:
    parts: dict[str, str] = {"vmx": str(shown.get("config.files.vmPathName") or "")}
    try:
        parent = shown.get("parent") or shown.get("parentVApp")
        way = ancestry.above(session, parent, doing) if parent is not None else []
        center = ancestry.nearest(way, vim.Datacenter)
        if center is not None:
            parts["datacenter"] = ancestry.path(way[: way.index(center) + 1])
        if isinstance(parent, vim.Folder):
            parts["folder"] = ancestry.path(way)
        parts["pool"] = ancestry.path_of(session, shown.get("resourcePool"), doing)
        host = shown.get("runtime.host")
        up = ancestry.above(session, host, doing) if host is not None else []
        compute = ancestry.nearest(up, vim.ComputeResource)
        parts["host"] = str(up[-1].values.get("name", "")) if up else ""
        parts["compute"] = str(compute.values.get("name", "")) if compute is not None else ""
    except errors.SourceError as error:
        notes.append(f"where the machine stood is not wholly known: {error.message}")
    return blueprints.Place(vcenter=session.name, **parts)


def _tags(session: sessions.Session, machine: Any, notes: list[str]) -> tuple[str, ...]:
    try:
        return tags.carried_by(session, str(machine._moId))
    except errors.SourceError as error:
        notes.append(f"tags are not known: {error.message}")
        return ()


def _attributes(shown: Any) -> dict[str, str]:
    names = {one.key: str(one.name) for one in shown.get("availableField") or ()}
    found: Iterable[Any] = shown.get("customValue") or ()
    values = {names.get(one.key): str(getattr(one, "value", "") or "") for one in found}
    return {name: value for name, value in values.items() if name and value}


def _files(
    session: sessions.Session, config: Any, place: blueprints.Place, notes: list[str], doing: str
) -> tuple[blueprints.Packed | None, blueprints.Packed | None]:
    named = _FILE.fullmatch(place.vmx)
    if named is None or not place.datacenter:
        notes.append("vmx and nvram were not fetched: the vCenter does not say where they lie")
        return None, None
    folder, name = posixpath.split(named[2])
    stem = name.removesuffix(".vmx")
    extra = {str(one.key).lower(): str(one.value) for one in config.extraConfig or ()}
    nvram = extra.get("nvram") or f"{stem}.nvram"

    def fetched(file: str) -> blueprints.Packed | None:
        center = place.datacenter.removeprefix("/")
        # A name with slashes is a path of its own, below another folder or on another datastore.
        if "/" in file:
            notes.append(f"{file} was not fetched: it lies outside the machine's folder")
            return None
        where = datastorefiles.Place(datacenter=center, datastore=named[1], path=posixpath.join(folder, file))
        try:
            return blueprints.Packed.of(file, datastorefiles.fetch(session, where, _MOST, doing))
        except errors.SourceError as error:
            notes.append(f"{file} was not fetched: {error.message}")
            return None

    return fetched(name), fetched(nvram)
