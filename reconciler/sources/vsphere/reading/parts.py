"""The disks of one frozen machine: each opened on its way, or why it could not be.

Disks under the snapshot go through a transport. Raw devices that a policy declares are read by their path on this host,
which no snapshot covers. One disk that cannot be opened does not stop the others.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from reconciler.api import vcenters
from reconciler.base import disks, errors
from reconciler.sources import machines
from reconciler.sources.diskimages import raw
from reconciler.sources.vsphere.inventory import devices, judgements
from reconciler.sources.vsphere.reading import changes, guards, hints, scenes, tracking
from reconciler.sources.vsphere.transports import choosing, ports

#: What stands for a transport where a raw device is read by its path.
DEVICE = "device"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One disk that was opened."""

    #: As the snapshot's configuration shows it; as the live one does for a raw device.
    device: devices.VirtualDisk
    disk: disks.Disk
    #: How it is read: a transport's name, or ``device``.
    transport: str
    facts: changes.Facts
    #: The disk again, where everything ever written is known as a hint.
    hinted: hints.HintedDisk | None = None


def open_all(scene: scenes.Scene, guard: guards.Guard, opened: dict[str, Part]) -> list[machines.Found]:
    """Open what the policy wants into ``opened``, by label; what could not be is returned. Raises ``Cancelled``."""
    missing = [_unread(scene, one) for one in scene.choice.unread]
    ways = {disk.label: None for disk in scene.choice.frozen} | {disk.label: one for disk, one in scene.choice.raw}
    found = {disk.label: disk for disk in (*scene.choice.frozen, *(disk for disk, _ in scene.choice.raw))}
    for disk in sorted(found.values(), key=devices.order):
        scene.asked.meter.check()
        guard.check()
        device = ways[disk.label]
        try:
            part = _through(scene, guard, disk) if device is None else _beside(scene, guard, disk, device)
        except errors.SourceError as error:
            guard.check()
            missing.append(machines.Found(code=error.code, message=_named(scene.name, disk.label, error)))
        else:
            opened[disk.label] = part
            scene.asked.log(f"{disk.label}: read by {part.transport}")
    return missing


def _named(machine: str, label: str, error: errors.SourceError) -> str:
    return str(error) if label in error.message else f"VM {machine}: {label}: {error}"


def _unread(scene: scenes.Scene, one: judgements.Unread) -> machines.Found:
    code = "RawDevice" if one.disk.kind == "RawPhysical" else "IndependentDisk"
    return machines.Found(code=code, message=f"VM {scene.name}: {one.disk.label} {one.why}")


def _through(scene: scenes.Scene, guard: guards.Guard, live: devices.VirtualDisk) -> Part:
    """A disk under the snapshot. Raises ``SourceError``."""
    device = scene.frozen.get(live.key)
    if device is None:
        raise errors.SourceChanged(f"VM {scene.name}: {live.label} is not in the snapshot", hint="was it just removed?")
    store = scene.store(device.datastore)
    frozen = ports.Frozen(
        session=scene.session,
        machine=scene.name,
        reference=scene.machine.reference,
        datacenter=scene.datacenter,
        snapshot=scene.taken.reference,
        disk=device,
        datastore_type=store.type if store is not None else "",
        datastore_local=store.local if store is not None else False,
        read_by=lambda process: scene.asked.ledger.read_by(scene.noted.id, process),
        meter=scene.asked.meter,
    )
    disk, transport = choosing.open(frozen, scene.session.spec, scene.asked.log)
    guarded = guards.GuardedDisk(disk, guard)
    hinted = None
    if device.change_id is not None:
        hinted = hints.HintedDisk(guarded, lambda: _ever_written(scene, device), scene.taken.reference, scene.asked.log)
    return Part(
        device=device,
        disk=hinted or guarded,
        transport=transport,
        hinted=hinted,
        facts=changes.Facts(
            size=device.size,
            uuid=device.uuid,
            change_id=device.change_id,
            key=device.key,
            slot=device.slot,
            chain=scene.chains.get(device.key, ()),
            others=len(scene.taken.tree.nodes) > 1,
            full=scene.asked.clock.now(),
            transport=transport,
        ),
    )


def _ever_written(scene: scenes.Scene, device: devices.VirtualDisk) -> hints.Hint:
    return tracking.areas(
        scene.session, scene.machine.object, scene.taken.reference, device, tracking.EVERYTHING, scene.name
    )


def _beside(scene: scenes.Scene, guard: guards.Guard, disk: devices.VirtualDisk, device: vcenters.RawDevice) -> Part:
    """A raw device by its path on this host. Raises ``SourceError``."""
    path = Path(device.device)
    opened = raw.RawDisk(disk.label, path)
    if opened.size != disk.size:
        opened.close()
        raise errors.SourceError(
            f"VM {scene.name}: {disk.label}: {path} has {opened.size} bytes, the raw device has {disk.size}",
            hint=f"is this the LUN {disk.lun or 'behind it'}? Correct rdm",
        )
    facts = changes.Facts(
        size=disk.size, uuid=disk.uuid, change_id=None, key=disk.key, slot=disk.slot, chain=(), transport=DEVICE
    )
    return Part(device=disk, disk=guards.GuardedDisk(opened, guard), transport=DEVICE, facts=facts)
