"""From a blueprint to what the API takes: the specification of a machine, of its devices, and of its identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors
from reconciler.sources import machinetargets
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.inventory import listings
from reconciler.sources.vsphere.rebuilding import places

_Device = vim.vm.device
_ADD: Final = _Device.VirtualDeviceSpec.Operation.add
_EDIT: Final = _Device.VirtualDeviceSpec.Operation.edit
_CREATE: Final = _Device.VirtualDeviceSpec.FileOperation.create


def machine(blueprint: blueprints.Blueprint, name: str, store: str, extra: Mapping[str, str]) -> Any:
    """A ``vim.vm.ConfigSpec`` without devices and without the old identity; ``extra`` are further settings."""
    boot = blueprint.boot
    settings = {**blueprint.extra, **extra}
    return vim.vm.ConfigSpec(
        name=listings.escaped(name),
        guestId=blueprint.guest_id,
        version=blueprint.version or None,
        firmware=blueprint.firmware,
        annotation=blueprint.annotation or None,
        files=vim.vm.FileInfo(vmPathName=f"[{store}]"),
        numCPUs=blueprint.cpus,
        numCoresPerSocket=blueprint.cores_per_socket,
        memoryMB=blueprint.memory_mib,
        cpuHotAddEnabled=blueprint.cpu_hot_add,
        memoryHotAddEnabled=blueprint.memory_hot_add,
        cpuAllocation=_allocation(blueprint.cpu_shares),
        memoryAllocation=_allocation(blueprint.memory_shares),
        bootOptions=vim.vm.BootOptions(
            bootDelay=boot.delay,
            enterBIOSSetup=boot.enter_setup,
            bootRetryEnabled=boot.retry,
            bootRetryDelay=boot.retry_delay,
            efiSecureBootEnabled=boot.secure or None,
        ),
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in settings.items()],
    )


def _allocation(shares: blueprints.Shares) -> Any:
    level = vim.SharesInfo.Level(shares.level) if shares.level in ("low", "normal", "high", "custom") else "normal"
    return vim.ResourceAllocationInfo(
        reservation=shares.reservation,
        limit=shares.limit,
        shares=vim.SharesInfo(level=level, shares=shares.shares),
    )


def _added(device: Any, *, create: bool = False) -> Any:
    return _Device.VirtualDeviceSpec(operation=_ADD, fileOperation=_CREATE if create else None, device=device)


def _made(kind: str, base: type[Any], whose: str) -> Any:
    """A device of the type that the API calls ``kind``. Raises ``Damaged`` for a name that is none."""
    found = getattr(_Device, kind, None)
    if not isinstance(found, type) or not issubclass(found, base):
        raise blueprints.Damaged(f"{whose}: the image names a device of type {kind}, which this version does not know")
    return found()


def controllers(blueprint: blueprints.Blueprint) -> list[Any]:
    """Specifications of the controllers; each has the key that the blueprint's disks name. Raises ``Damaged``."""
    found = []
    for one in blueprint.controllers:
        device = _made(one.type, _Device.VirtualController, blueprint.name)
        device.key, device.busNumber = one.key, one.bus
        if isinstance(device, _Device.VirtualSCSIController):
            device.sharedBus = _Device.VirtualSCSIController.Sharing.noSharing
        found.append(_added(device))
    return found


def disk(wanted: blueprints.Disk, controller: int, key: int, file: str, store: places.Store, *, create: bool) -> Any:
    """Specification of a flat disk at the place of ``wanted``.

    ``key``: negative and unique; ``file``: ``[datastore]`` for one that is made, else the path of the one that is
    there; ``create``: make it, empty.
    """
    backing = _Device.VirtualDisk.FlatVer2BackingInfo(
        fileName=file,
        datastore=store.object,
        # Other modes would keep it out of the snapshot that proves it.
        diskMode="persistent",
        thinProvisioned=wanted.thin or None,
    )
    device = _Device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=wanted.unit,
        capacityInBytes=wanted.size,
        capacityInKB=-(-wanted.size // 1024),
        backing=backing,
    )
    return _added(device, create=create)


def differences(blueprint: blueprints.Blueprint, labels: Iterable[str]) -> list[str]:
    """A sentence on each thing that the made machine has not as the captured one had it; ``labels``: its disks."""
    wanted = frozenset(labels)
    said = []
    for one in blueprint.disks:
        if one.label not in wanted:
            said.append(f"{one.label} is not restored: the machine comes without it")
        elif one.kind.startswith("Raw"):
            said.append(f"{one.label} was a raw device mapping of {one.lun or 'a LUN'}; it comes as an ordinary disk")
        elif one.mode != "persistent":
            said.append(f"{one.label} was {one.mode}; it comes as persistent")
        if one.shared and one.label in wanted:
            said.append(f"{one.label} was shared by several writers; it comes unshared")
    for controller in blueprint.controllers:
        if controller.sharing not in ("", "noSharing"):
            said.append(f"the bus of {controller.type} {controller.bus} was shared; it comes unshared")
    said.extend(f"{label} is not made again" for label in blueprint.unmade)
    return said


def removables(blueprint: blueprints.Blueprint) -> list[Any]:
    """Specifications of the drives, empty."""
    found = []
    for number, one in enumerate(blueprint.removables):
        device = getattr(_Device, one.kind)()
        device.key, device.controllerKey, device.unitNumber = -200 - number, one.controller, one.unit
        if one.kind == "VirtualCdrom":
            device.backing = _Device.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False)
        else:
            device.backing = _Device.VirtualFloppy.RemoteDeviceBackingInfo(deviceName="")
        device.connectable = _connectable(starts=False)
        found.append(_added(device))
    return found


def _connectable(*, starts: bool) -> Any:
    return _Device.VirtualDevice.ConnectInfo(startConnected=starts, allowGuestControl=True, connected=False)


def nics(
    session: sessions.Session,
    blueprint: blueprints.Blueprint,
    networks: Mapping[str, Any],
    identity: machinetargets.Identity,
    say: Callable[[str], None],
    doing: str,
) -> list[Any]:
    """Specifications of the network cards. One whose network is not there hangs on another one, unconnected, and
    ``say`` is told. Raises ``SourceError`` or ``Damaged``."""
    found = []
    for number, one in enumerate(blueprint.nics):
        network = networks.get(one.network)
        connected = one.start_connected
        if network is None:
            if not networks:
                say(f"{one.label} is left out: the host has no network at all")
                continue
            fallback = min(networks)
            network, connected = networks[fallback], False
            say(f"{one.label}: network {one.network or 'of the image'} is not here; it is on {fallback}, not connected")
        device = _made(one.type, _Device.VirtualEthernetCard, blueprint.name)
        device.key = -100 - number
        device.backing = _network(session, network, one.network if one.network in networks else min(networks), doing)
        device.connectable = _connectable(starts=connected)
        if identity == "same" and one.mac:
            device.addressType, device.macAddress = one.address_type, one.mac
        else:
            device.addressType = "generated"
        found.append(_added(device))
    return found


def _network(session: sessions.Session, network: Any, name: str, doing: str) -> Any:
    if isinstance(network, vim.dvs.DistributedVirtualPortgroup):
        shown = properties.of(session, network, ("key", "config.distributedVirtualSwitch"), doing)
        switch = shown.get("config.distributedVirtualSwitch")
        if switch is None:
            raise errors.SourceError(f"{doing}: the switch of port group {name} is not shown")
        uuid = properties.of(session, switch, ("uuid",), doing).get("uuid")
        port = vim.dvs.PortConnection(portgroupKey=shown.get("key"), switchUuid=uuid)
        return _Device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port)
    if isinstance(network, vim.OpaqueNetwork):
        summary = properties.of(session, network, ("summary",), doing).get("summary")
        return _Device.VirtualEthernetCard.OpaqueNetworkBackingInfo(
            opaqueNetworkId=getattr(summary, "opaqueNetworkId", name),
            opaqueNetworkType=getattr(summary, "opaqueNetworkType", "nsx.LogicalSwitch"),
        )
    return _Device.VirtualEthernetCard.NetworkBackingInfo(deviceName=name, network=network)


def addresses(devices: Iterable[Any], blueprint: blueprints.Blueprint) -> list[Any]:
    """Changes of the network cards that did not get the MAC address of the blueprint: a server gives another one while
    the machine that is replaced still has it."""
    cards = [one for one in devices if isinstance(one, _Device.VirtualEthernetCard)]
    if len(cards) != len(blueprint.nics):
        return []
    found = []
    for card, wanted in zip(cards, blueprint.nics, strict=True):
        if wanted.mac and str(card.macAddress or "").lower() != wanted.mac.lower():
            # Only one that somebody chose is left as it is.
            card.addressType, card.macAddress = "manual", wanted.mac
            found.append(_Device.VirtualDeviceSpec(operation=_EDIT, device=card))
    return found


def naming(blueprint: blueprints.Blueprint, name: str, identity: machinetargets.Identity, mark: tuple[str, str]) -> Any:
    """The last change: the final name, the identity, and what is left of the mark, as key and value."""
    key, value = mark
    spec = vim.vm.ConfigSpec(name=listings.escaped(name), extraConfig=[vim.option.OptionValue(key=key, value=value)])
    if identity == "same":
        spec.instanceUuid = blueprint.instance_uuid or None
        spec.uuid = blueprint.bios_uuid or None
    return spec


def controller_keys(devices: Iterable[Any], blueprint: blueprints.Blueprint) -> dict[int, int]:
    """The key of each of the blueprint's controllers in a machine that was made. Raises ``SourceError``."""
    there = {
        (str(type(one)._wsdlName), int(one.busNumber or 0)): int(one.key)
        for one in devices
        if isinstance(one, _Device.VirtualController)
    }
    found = {}
    for one in blueprint.controllers:
        key = there.get((one.type, one.bus))
        if key is None:
            raise errors.SourceError(f"{blueprint.name}: the vCenter made no {one.type} {one.bus}")
        found[one.key] = key
    return found
