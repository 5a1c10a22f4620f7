"""Disks through an import lease: the vCenter makes the machine and takes each disk as a stream-optimised VMDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import disks, errors, meters
from reconciler.sources.vmdk import streamoptimized
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.sources.vsphere.connections import faults, leases
from reconciler.sources.vsphere.rebuilding import orders

#: Faults by which a server says that it has no such call.
_UNKNOWN: Final = ("MethodNotFound", "NotSupported", "NotImplemented", "MethodDisabled")
_SECTOR: Final = 512


class Import:
    """The way ``import``."""

    name = "import"

    def __init__(self, order: orders.Order) -> None:
        self._order = order
        self._lease: leases.Lease | None = None
        self._total = self._before = 0

    def refuses(self) -> str | None:
        """Disks that a stream cannot hold."""
        for disk in self._order.disks:
            if disk.size % _SECTOR:
                return f"{disk.label} has no whole number of sectors"
        return None

    def make(self, meter: meters.Meter) -> Any:
        """Open the lease."""
        order = self._order
        specification = order.specification()
        specification.deviceChange = [*specification.deviceChange, *order.empty_disks()]
        wanted = vim.vm.VmImportSpec(configSpec=specification)
        place, doing = order.place, f"{order.doing}: import"
        try:
            lease = order.session.act(
                doing, lambda: place.pool.ImportVApp(wanted, folder=place.folder, host=place.host)
            )
        except faults.VSphereFault as error:
            if error.fault in _UNKNOWN:
                raise orders.Unsupported(error.message) from error
            raise
        self._lease = leases.Lease(order.session, lease, doing, meter)
        self._total = sum(disk.size for disk in order.disks) or 1
        return self._lease.machine

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Send a stream."""
        order = self._order
        lease = self._opened()
        doing = f"{order.doing}: import of {disk.name}"
        url = _url(order, lease, order.disk(disk.name))
        begun, sent = meter.reading().scanned, 0

        def pour(send: Callable[[bytes], None]) -> None:
            nonlocal sent

            def piece(data: bytes) -> None:
                nonlocal sent
                lease.progress((self._before + meter.reading().scanned - begun) / self._total)
                send(data)
                sent += len(data)

            streamoptimized.write(disk, piece, meter)

        leases.upload(lease, url, pour, meter, doing)
        self._before += disk.size
        return sent

    def seal(self, meter: meters.Meter) -> None:
        """Complete the lease."""
        meter.check()
        self._opened().complete()

    def abort(self) -> None:
        """Abort the lease, upon which its machine goes."""
        if self._lease is not None:
            self._lease.abort()

    def _opened(self) -> leases.Lease:
        if self._lease is None:
            raise ValueError("make comes first")
        return self._lease


def _url(order: orders.Order, lease: leases.Lease, disk: blueprints.Disk) -> leases.Url:
    """The lease's place for a disk: its key ends with controller, bus and unit; else they come in order."""
    urls = [url for url in lease.urls if url.disk]
    controller = next((one for one in order.blueprint.controllers if one.key == disk.controller), None)
    if controller is not None:
        wanted = f"{controller.type}{controller.bus}:{disk.unit}"
        for url in urls:
            if url.key.rpartition("/")[2] == wanted:
                return url
    if len(urls) == len(order.disks):
        # Were the order another one, the proof would find it.
        return urls[order.disks.index(disk)]
    raise errors.SourceError(
        f"{order.doing}: the import lease has no place for {disk.label}: it has {len(urls)} disks",
        hint="choose --via datastore or --via vddk",
    )
