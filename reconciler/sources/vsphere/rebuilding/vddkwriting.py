"""Disks through VMware's own library: the machine is made with empty disks, which nbdkit's vddk plugin then writes.

New disks read as zeros, so zeros are not sent.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from reconciler.base import disks, errors, extents, meters
from reconciler.sources.diskfiles import runs
from reconciler.sources.vsphere.connections import properties
from reconciler.sources.vsphere.inventory import devices
from reconciler.sources.vsphere.rebuilding import orders
from reconciler.sources.vsphere.transports import ports, vddk

_TRANSPORT: Final = "nbdkit-vddk"
_SECTOR: Final = 512


class Vddk:
    """The way ``vddk``."""

    name = "vddk"

    def __init__(self, order: orders.Order) -> None:
        self._order = order
        self._machine: Any = None
        #: As the made machine has them, by their places.
        self._disks: dict[str, devices.VirtualDisk] = {}

    def refuses(self) -> str | None:
        """Without the plugin, or where the VCenter does not name it."""
        order = self._order
        if _TRANSPORT not in order.session.spec.transports:
            return f"VCenter {order.session.name} does not name {_TRANSPORT} among its transports"
        for disk in order.disks:
            if disk.size % _SECTOR:
                return f"{disk.label} has no whole number of sectors"
        return vddk.Vddk().missing(order.session.spec)

    def make(self, meter: meters.Meter) -> Any:
        """The machine with empty disks."""
        meter.check()
        order = self._order
        specification = order.specification()
        specification.deviceChange = [*specification.deviceChange, *order.empty_disks()]
        self._machine = order.create(specification)
        return self._machine

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Write what is not zero."""
        sent = position = 0
        with contextlib.closing(vddk.WritableDisk(self._opened(disk.name, meter))) as made:
            if made.size != disk.size:
                raise errors.SourceError(
                    f"{self._order.doing}: {disk.name} was made with {made.size} bytes instead of {disk.size}"
                )
            for offset, length in extents.pieces(disk.extents(), disks.READ_SIZE):
                meter.check()
                for place, run in runs.data_runs(disk.pread(offset, length), offset):
                    made.pwrite(place, run)
                    sent += len(run)
                    meter.add(sent=len(run))
                meter.add(scanned=offset + length - position)
                position = offset + length
            made.flush()
        meter.add(scanned=disk.size - position)
        return sent

    def _opened(self, label: str, meter: meters.Meter) -> ports.Frozen:
        order = self._order
        doing = f"{order.doing}: disks"
        if not self._disks:
            shown = properties.of(order.session, self._machine, ("config.hardware.device",), doing)
            self._disks = {one.slot: one for one in devices.disks(shown.get("config.hardware.device") or ())}
        wanted = order.disk(label)
        found = self._disks.get(wanted.slot)
        if found is None:
            raise errors.SourceError(f"{doing}: the vCenter made no disk at {wanted.slot} for {label}")
        return order.opened(self._machine, found, "", meter)

    def seal(self, meter: meters.Meter) -> None:
        """Everything is durable already."""
        meter.check()

    def abort(self) -> None:
        """Nothing is held: servers end with their disks."""
