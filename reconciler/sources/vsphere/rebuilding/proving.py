"""Reading a machine that was just made as a backup would: under a snapshot, through the transports of its vCenter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import disks, errors, meters
from reconciler.sources.vsphere.connections import properties
from reconciler.sources.vsphere.inventory import devices
from reconciler.sources.vsphere.reading import snapshots
from reconciler.sources.vsphere.rebuilding import orders
from reconciler.sources.vsphere.transports import choosing, ports

_NAME: Final = "holdfast-proof"


@contextlib.contextmanager
def read_back(order: orders.Order, machine: Any, meter: meters.Meter) -> Iterator[Mapping[str, disks.Disk]]:
    """The disks by their labels in the image. The snapshot goes when the block ends. Raises ``SourceError``."""
    session, doing = order.session, f"{order.doing}: reading it back"
    words = f"for the proof of restore {order.mark.id}"
    for left in snapshots.tree(session, str(machine._moId), doing).nodes:
        # Of an attempt that was killed while it read a machine that an earlier one had proven.
        if (left.name, left.description) == (_NAME, words):
            _remove(order, session.object(vim.vm.Snapshot, left.reference))
    task = session.act(
        doing, lambda: machine.CreateSnapshot_Task(name=_NAME, description=words, memory=False, quiesce=False)
    )
    snapshot = properties.wait(session, task, doing)
    if snapshot is None:
        raise errors.SourceError(f"{doing}: the vCenter does not say which snapshot it made")
    try:
        with contextlib.ExitStack() as stack:
            found = {}
            for label, frozen in _frozen(order, machine, snapshot, meter, doing).items():
                disk = _open(frozen)
                stack.callback(disk.close)
                found[label] = disk
            yield found
    finally:
        _remove(order, snapshot)


def _remove(order: orders.Order, snapshot: Any) -> None:
    removal = f"{order.doing}: removing the snapshot of the proof"
    task = order.session.act(removal, lambda: snapshot.RemoveSnapshot_Task(removeChildren=False))
    properties.wait(order.session, task, removal)


def _open(frozen: ports.Frozen) -> disks.Disk:
    """By the vCenter's transports; an export at last, since nobody misses this machine while it is exported."""
    spec = frozen.session.spec
    if "export" not in spec.transports:
        spec = spec.model_copy(update={"transports": (*spec.transports, "export")})
    disk, _ = choosing.open(frozen, spec)
    return disk


def _frozen(
    order: orders.Order, machine: Any, snapshot: Any, meter: meters.Meter, doing: str
) -> dict[str, ports.Frozen]:
    shown = properties.of(order.session, snapshot, ("config.hardware.device",), doing)
    there = devices.disks(shown.get("config.hardware.device") or ())
    # A new machine numbers its disks anew: their places tell which is which.
    by_slot = {one.slot: one for one in there}
    found = {}
    for wanted in order.disks:
        disk = by_slot.get(wanted.slot)
        if disk is None:
            places = ", ".join(sorted(by_slot)) or "none"
            raise errors.SourceError(f"{doing}: {wanted.label} is not at {wanted.slot}; there are disks at {places}")
        if disk.size != wanted.size:
            raise errors.SourceError(f"{doing}: {wanted.label} has {disk.size} bytes, the image's has {wanted.size}")
        found[wanted.label] = order.opened(machine, disk, str(snapshot._moId), meter)
    return found
