"""Reading a machine that was just made as a backup would: under a snapshot, through the transports of its vCenter."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import disks, errors, meters
from reconciler.sources.vsphere.connections import properties, sessions
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
            _remove(order, machine, session.object(vim.vm.Snapshot, left.reference))
    snapshot = _taken(session, machine, words, doing)
    try:
        with contextlib.ExitStack() as stack:
            found = {}
            for label, frozen in _frozen(order, machine, snapshot, meter, doing).items():
                disk = _open(frozen)
                stack.callback(disk.close)
                found[label] = disk
            yield found
    finally:
        _remove(order, machine, snapshot)


def _taken(session: sessions.Session, machine: Any, words: str, doing: str) -> Any:
    """The ``vim.vm.Snapshot``, which is the machine's only one. Raises ``SourceError``."""
    reference = str(machine._moId)
    properties.change(
        session,
        doing,
        lambda: machine.CreateSnapshot_Task(name=_NAME, description=words, memory=False, quiesce=False),
        lambda: bool(snapshots.tree(session, reference, doing).nodes),
    )
    for node in snapshots.tree(session, reference, doing).nodes:
        if (node.name, node.description) == (_NAME, words):
            return session.object(vim.vm.Snapshot, node.reference)
    raise errors.SourceError(f"{doing}: the snapshot was made and is not in the machine's tree")


def _remove(order: orders.Order, machine: Any, snapshot: Any) -> None:
    removal = f"{order.doing}: removing the snapshot of the proof"
    session, reference, of = order.session, str(snapshot._moId), str(machine._moId)
    for pause in (*snapshots.PAUSES, None):
        try:
            return properties.change(
                session,
                removal,
                lambda: snapshot.RemoveSnapshot_Task(removeChildren=False),
                lambda: reference not in {node.reference for node in snapshots.tree(session, of, removal).nodes},
            )
        except errors.SourceError as error:
            # Hours of writing and proving are not given up for a file that is locked for a moment.
            if pause is None or not snapshots.passing(error):
                raise
        time.sleep(pause)
    raise AssertionError("unreachable")


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
