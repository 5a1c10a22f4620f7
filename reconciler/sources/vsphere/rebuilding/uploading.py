"""Disks as flat files through the vCenter's datastore service, then hung on a machine that was made without them.

Every byte of a flat file is sent, zeros too: the service knows no holes. Datastores that keep objects instead of files
(vSAN, vVols) do not take such files.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import disks, errors, extents, meters, quantities
from reconciler.sources.vmdk import descriptions
from reconciler.sources.vsphere.connections import datastorefiles, properties
from reconciler.sources.vsphere.inventory import devices, listings
from reconciler.sources.vsphere.rebuilding import orders, specs

_OBJECTS: Final = {"VSAN": "vSAN", "VVOL": "vVol", "PMEM": "PMem"}
_PIECE: Final = 1 << 20
_ZERO: Final = bytes(_PIECE)


class Upload:
    """The way ``datastore``."""

    name = "datastore"

    def __init__(self, order: orders.Order) -> None:
        self._order = order
        self._machine: Any = None
        self._folder = ("", "")
        self._files: dict[str, str] = {}

    def refuses(self) -> str | None:
        """Datastores without files."""
        order = self._order
        store = order.place.store
        kept = _OBJECTS.get(store.type.upper())
        if kept is not None:
            return f"datastore {store.name} is of type {kept}, which keeps objects: it takes no upload of a flat file"
        for disk in order.disks:
            if disk.size % descriptions.SECTOR:
                return f"{disk.label} has no whole number of sectors"
        needed = sum(disk.size for disk in order.disks)
        if needed > store.free:
            sizes = f"{quantities.show_size(needed)}, and {quantities.show_size(store.free)} are free on {store.name}"
            return f"flat files take all of {sizes}"
        return None

    def make(self, meter: meters.Meter) -> Any:
        """The machine without its disks; its folder takes their files."""
        order = self._order
        meter.check()
        if any(order.place.store_of(disk, order.wanted).name != order.place.store.name for disk in order.disks):
            order.say(f"all disks go to {order.place.store.name}: an upload goes to the machine's own folder")
        self._machine = order.create(order.specification())
        return self._machine

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Send descriptor and flat file."""
        order, machine = self._order, self._machine
        doing = f"{order.doing}: upload of {disk.name}"
        if not self._folder[0]:
            vmx = properties.of(order.session, machine, ("config.files.vmPathName",), doing)
            store, path = orders.split(str(vmx.get("config.files.vmPathName", "")))
            self._folder = (store, posixpath.dirname(path))
        store, folder = self._folder
        if not store or not folder:
            raise errors.SourceError(f"{doing}: the vCenter does not say where the machine's folder is")
        wanted = order.disk(disk.name)
        stem = f"{listings.escaped(order.mark.temporary)}_{order.disks.index(wanted) + 1}"
        controller = next((one.type for one in order.blueprint.controllers if one.key == wanted.controller), "")
        text = descriptions.flat(f"{stem}-flat.vmdk", disk.size, controller, vmfs=True)
        self._send(f"{folder}/{stem}.vmdk", lambda: [text], len(text), doing)
        self._send(f"{folder}/{stem}-flat.vmdk", lambda: _flat(disk, meter), disk.size, doing)
        self._files[disk.name] = f"[{store}] {folder}/{stem}.vmdk"
        return disk.size + len(text)

    def _send(self, path: str, give: Callable[[], Iterable[bytes]], size: int, doing: str) -> None:
        order = self._order
        place = datastorefiles.Place(datacenter=order.place.datacenter, datastore=self._folder[0], path=path)
        datastorefiles.send(order.session, place, give, size, doing)

    def seal(self, meter: meters.Meter) -> None:
        """Hang the disks on their controllers."""
        order, machine = self._order, self._machine
        meter.check()
        doing = f"{order.doing}: attaching disks"
        shown = properties.of(order.session, machine, ("config.hardware.device",), doing)["config.hardware.device"]
        keys = specs.controller_keys(shown, order.blueprint)
        change = vim.vm.ConfigSpec(deviceChange=order.there_disks(keys, self._files))
        properties.change(order.session, doing, lambda: machine.ReconfigVM_Task(change), lambda: self._hung(doing))

    def _hung(self, doing: str) -> bool:
        path = "config.hardware.device"
        shown = properties.of(self._order.session, self._machine, (path,), doing).get(path) or ()
        return {*self._files.values()} <= {one.file for one in devices.disks(shown)}

    def abort(self) -> None:
        """Nothing is held: a file that was not sent whole lies in the machine's folder and goes with it."""


def _flat(disk: disks.Disk, meter: meters.Meter) -> Iterator[bytes]:
    """Every byte of a disk in order; what it knows to be zero is not read."""
    position = 0
    for offset, length in extents.pieces(disk.extents(), _PIECE):
        yield from _zeros(offset - position, meter)
        meter.check()
        data = bytes(disk.pread(offset, length))
        meter.add(scanned=length, sent=length)
        yield data
        position = offset + length
    yield from _zeros(disk.size - position, meter)


def _zeros(length: int, meter: meters.Meter) -> Iterator[bytes]:
    while length:
        meter.check()
        step = min(length, _PIECE)
        meter.add(scanned=step, sent=step)
        yield _ZERO[:step]
        length -= step
