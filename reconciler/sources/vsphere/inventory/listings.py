"""One look at a vCenter: its machines and where they are, as frozen values.

A look asks for few properties of everything, in pages, and puts paths together here: the number of calls does not grow
with the number of folders or hosts. What is long, the devices, is asked only for machines that somebody selected, and
custom attributes only where a selection names one. All is kept for as long as the look is, so that several policies
share it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import times
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.inventory import devices

_PLAIN: Final = (
    "name", "parent", "parentVApp", "datastore", "resourcePool", "snapshot", "config.instanceUuid", "config.template",
    "runtime.host", "runtime.powerState", "runtime.connectionState",
)  # fmt: skip
_LONG: Final = (
    "config.hardware.device", "config.keyId", "config.changeTrackingEnabled", "config.files.vmPathName",
    "capability.changeTrackingSupported", "runtime.faultToleranceState", "runtime.consolidationNeeded",
)  # fmt: skip
_PLACES: Final = (
    vim.Folder, vim.Datacenter, vim.ComputeResource, vim.ClusterComputeResource, vim.HostSystem, vim.ResourcePool,
    vim.VirtualApp,
)  # fmt: skip
#: What a vCenter writes for signs that part a path.
_ESCAPED: Final = re.compile(r"%(2f|5c|25)", re.IGNORECASE)
#: Folders in folders; a chain that is longer runs in a circle.
_DEEPEST: Final = 200


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Datastore:
    """One datastore."""

    reference: str
    name: str
    #: The API's word: ``VMFS``, ``NFS``, ``NFS41``, ``vsan``, ``VVOL``.
    type: str
    #: Bytes; 0 where the vCenter does not say.
    capacity: int
    free: int
    accessible: bool
    datacenter: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One snapshot of one machine, whoever made it."""

    #: Such as ``snapshot-58``.
    reference: str
    name: str
    description: str
    #: UTC; None where the vCenter does not say.
    created: dt.datetime | None
    #: The snapshot that it was made after, None for the first.
    parent: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VM:
    """One machine as everything shows it. Fields are None where the user may not see what they name."""

    #: Such as ``vm-57``.
    reference: str
    name: str | None
    #: Lower case; empty where the machine has none.
    instance_uuid: str
    #: Path of its folder, such as ``/DC0/vm/gold``.
    folder: str | None
    datacenter: str | None
    #: Empty where its host is in no cluster.
    cluster: str | None
    host: str | None
    #: Reference of the host.
    host_reference: str | None
    datastores: tuple[Datastore, ...] | None
    #: Empty for a template.
    resource_pool: str | None
    power: str | None
    #: ``connected``, or why nothing can be asked of it: ``disconnected``, ``inaccessible``, ``invalid``, ``orphaned``.
    connection: str
    template: bool
    snapshots: tuple[Snapshot, ...]

    @property
    def shown_name(self) -> str:
        """Its name, or its reference where the name may not be seen."""
        return self.name or self.reference

    @property
    def path(self) -> str:
        """Such as ``/DC0/vm/gold/oblVM1``, with ``?`` for a folder that may not be seen."""
        return f"{self.folder if self.folder is not None else '/?'}/{self.shown_name}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """What is long to tell of a machine."""

    disks: tuple[devices.VirtualDisk, ...]
    #: SCSI controllers whose bus is shared with other machines.
    shared_buses: tuple[str, ...]
    fault_tolerant: bool
    #: Its files or one of its disks are encrypted.
    encrypted: bool
    vtpm: bool
    #: Whether it can have changed block tracking, and has it.
    tracking_supported: bool
    tracking: bool
    consolidation_needed: bool
    #: Name of the datastore of its own files; empty where that is not shown.
    home: str
    #: Properties that the vCenter would not show.
    hidden: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder, datacenter, cluster, host, pool: something with a name, in something."""

    name: str | None
    parent: str | None
    #: The API's name of its kind, such as ``Folder``.
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where machines can be, by reference."""

    places: Mapping[str, Place]
    stores: Mapping[str, Datastore]
    root: str

    def folder(self, reference: str | None) -> str | None:
        """The path of a folder; None where a part of it is not shown."""
        parts: list[str] = []
        for _ in range(_DEEPEST):
            if reference == self.root:
                return "/" + "/".join(reversed(parts))
            place = self.places.get(reference or "")
            if place is None or place.name is None:
                return None
            parts.append(place.name)
            reference = place.parent
        return None

    def above(self, reference: str | None, kind: str) -> str | None:
        """The name of the nearest place of a kind around one; None where it is not shown."""
        for _ in range(_DEEPEST):
            place = self.places.get(reference or "")
            if place is None:
                return None
            if place.kind == kind:
                return place.name
            reference = place.parent
        return None

    def name(self, reference: str) -> str | None:
        """The name of a place; None where it is not shown."""
        place = self.places.get(reference)
        return place.name if place else None


class Look:
    """What one vCenter shows now. Not thread-safe."""

    def __init__(self, session: sessions.Session) -> None:
        """Ask for all machines and places. Raises ``SourceError``."""
        self._session = session
        self._doing = f"VCenter {session.name}: inventory"
        instance = session.object(vim.ServiceInstance, "ServiceInstance")
        #: The vCenter's own time, UTC.
        self.now: dt.datetime = times.aware(session.read(self._doing, instance.CurrentTime))
        shown = properties.everything(session, [vim.VirtualMachine], _PLAIN, self._doing)
        # Asked last: a folder that was made for a new machine is known then.
        self.places = _places(session, self._doing)
        self._objects = {one.reference: one.object for one in shown}
        parents = self._vapp_folders(shown)
        #: Every machine, templates too, by path.
        self.machines: tuple[VM, ...] = tuple(
            sorted((_machine(one, self.places, parents) for one in shown), key=lambda vm: (vm.path, vm.reference))
        )
        self._details: dict[str, Details] = {}
        self._attributes: dict[str, Mapping[str, str]] | None = None

    def details(self, references: Iterable[str]) -> Mapping[str, Details]:
        """The details of machines by reference; there are none of those that are gone. Raises ``SourceError``."""
        wanted = [one for one in dict.fromkeys(references) if one not in self._details]
        objects = [self._objects[one] for one in wanted]
        for shown in properties.of_many(self._session, objects, _LONG, self._doing):
            self._details[shown.reference] = _details(shown)
        return self._details

    def attributes(self) -> Mapping[str, Mapping[str, str]]:
        """Custom attributes that are set, by name, of every machine by reference. Raises ``SourceError``."""
        if self._attributes is None:
            fields = self._fields()
            shown = properties.everything(self._session, [vim.VirtualMachine], ("customValue",), self._doing)
            self._attributes = {one.reference: _attributes(one, fields) for one in shown}
        return self._attributes

    def _fields(self) -> Mapping[int, str]:
        manager = self._session.content.customFieldsManager
        if manager is None:
            # A single ESX host has none.
            return {}
        field = properties.of(self._session, manager, ("field",), self._doing).get("field") or ()
        return {one.key: one.name for one in field}

    def _vapp_folders(self, shown: list[properties.Shown]) -> Mapping[str, str]:
        """Folders of vApps, whose machines have no folder of their own."""
        if not any(one.values.get("parentVApp") for one in shown):
            return {}
        vapps = properties.everything(self._session, [vim.VirtualApp], ("parentFolder", "parentVApp"), self._doing)
        above = {one.reference: one.values for one in vapps}
        found = {}
        for reference in above:
            vapp = above[reference]
            for _ in range(_DEEPEST):
                if vapp.get("parentFolder") is not None or vapp.get("parentVApp") is None:
                    break
                vapp = above.get(vapp["parentVApp"]._moId, {})
            if vapp.get("parentFolder") is not None:
                found[reference] = str(vapp["parentFolder"]._moId)
        return found


def unescaped(name: str) -> str:
    """A name as people wrote it: a vCenter says ``%2f``, ``%5c``, ``%25`` for slash, backslash and percent sign."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)


def escaped(name: str) -> str:
    """A name as a vCenter takes it, the opposite of ``unescaped``."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def snapshots(info: Any) -> tuple[Snapshot, ...]:
    """The snapshots of a machine's ``snapshot`` property, each after the one it was made after."""
    found: list[Snapshot] = []
    waiting: list[tuple[Any, str | None]] = [
        (tree, None) for tree in reversed((info.rootSnapshotList if info is not None else None) or ())
    ]
    while waiting:
        tree, parent = waiting.pop()
        reference = str(tree.snapshot._moId)
        created = tree.createTime
        found.append(
            Snapshot(
                reference=reference,
                name=unescaped(str(tree.name or "")),
                description=str(tree.description or ""),
                created=times.aware(created) if created is not None and created.tzinfo is not None else None,
                parent=parent,
            )
        )
        waiting.extend((child, reference) for child in reversed(tree.childSnapshotList or ()))
    return tuple(found)


def _places(session: sessions.Session, doing: str) -> Places:
    found: dict[str, Place] = {}
    for shown in properties.everything(session, _PLACES, ("name", "parent"), doing):
        name, parent = shown.values.get("name"), shown.values.get("parent")
        found[shown.reference] = Place(
            name=str(name) if name is not None else None,
            parent=str(parent._moId) if parent is not None else None,
            kind=type(shown.object).__name__.rpartition(".")[2],
        )
    root = str(session.content.rootFolder._moId)
    placed = Places(places=found, stores={}, root=root)
    stores = {}
    for shown in properties.everything(session, [vim.Datastore], ("summary", "parent"), doing):
        parent = shown.values.get("parent")
        stores[shown.reference] = _store(shown, placed.above(parent._moId if parent else None, "Datacenter"))
    return dataclasses.replace(placed, stores=stores)


def _store(shown: properties.Shown, datacenter: str | None) -> Datastore:
    summary = shown.values.get("summary")
    return Datastore(
        reference=shown.reference,
        name=unescaped(str(getattr(summary, "name", None) or shown.reference)),
        type=str(getattr(summary, "type", None) or ""),
        capacity=int(getattr(summary, "capacity", None) or 0),
        free=int(getattr(summary, "freeSpace", None) or 0),
        accessible=bool(getattr(summary, "accessible", True)),
        datacenter=datacenter,
    )


def _machine(shown: properties.Shown, places: Places, vapp_folders: Mapping[str, str]) -> VM:
    values = shown.values
    name, host, vapp = values.get("name"), values.get("runtime.host"), values.get("parentVApp")
    parent = values.get("parent")
    folder = str(parent._moId) if parent is not None else vapp_folders.get(str(vapp._moId)) if vapp else None
    stores = [places.stores.get(str(one._moId)) for one in values.get("datastore") or ()]
    known = tuple(one for one in stores if one is not None)
    return VM(
        reference=shown.reference,
        name=unescaped(str(name)) if name is not None else None,
        instance_uuid=str(values.get("config.instanceUuid") or "").strip().lower(),
        folder=places.folder(folder),
        datacenter=places.above(folder, "Datacenter"),
        cluster=_cluster(host, places),
        host=_named(host, places),
        host_reference=str(host._moId) if host is not None else None,
        datastores=known if len(known) == len(stores) and "datastore" not in shown.hidden else None,
        resource_pool=_pool(shown, places),
        power=values.get("runtime.powerState"),
        connection=str(values.get("runtime.connectionState") or "connected"),
        template=bool(values.get("config.template")),
        snapshots=snapshots(values.get("snapshot")),
    )


def _named(object: Any, places: Places) -> str | None:
    name = places.name(str(object._moId)) if object is not None else None
    return unescaped(name) if name is not None else None


def _pool(shown: properties.Shown, places: Places) -> str | None:
    pool = shown.values.get("resourcePool")
    if pool is None:
        return None if "resourcePool" in shown.hidden else ""
    return _named(pool, places)


def _cluster(host: Any, places: Places) -> str | None:
    place = places.places.get(str(host._moId)) if host is not None else None
    if place is None:
        return None
    around = places.places.get(place.parent or "")
    if around is None or around.name is None:
        return None
    return unescaped(around.name) if around.kind == "ClusterComputeResource" else ""


def _details(shown: properties.Shown) -> Details:
    values = shown.values
    found = values.get("config.hardware.device") or ()
    disks = vim.vm.device.VirtualDisk
    keys = [getattr(one.backing, "keyId", None) for one in found if isinstance(one, disks)]
    file = str(values.get("config.files.vmPathName") or "")
    return Details(
        disks=devices.disks(found),
        shared_buses=devices.shared_bus(found),
        fault_tolerant=str(values.get("runtime.faultToleranceState") or "notConfigured") != "notConfigured",
        encrypted=values.get("config.keyId") is not None or any(key is not None for key in keys),
        vtpm=any(isinstance(one, vim.vm.device.VirtualTPM) for one in found),
        tracking_supported=bool(
            values.get("capability.changeTrackingSupported") or values.get("config.changeTrackingEnabled")
        ),
        tracking=bool(values.get("config.changeTrackingEnabled")),
        consolidation_needed=bool(values.get("runtime.consolidationNeeded")),
        home=file[1:].partition("]")[0] if file.startswith("[") else "",
        hidden=tuple(sorted(shown.hidden)),
    )


def _attributes(shown: properties.Shown, fields: Mapping[int, str]) -> Mapping[str, str]:
    # A vCenter may keep several values of one attribute; the last one counts.
    values = shown.values.get("customValue") or ()
    named = {fields[one.key]: str(getattr(one, "value", "") or "") for one in values if one.key in fields}
    return {name: value for name, value in named.items() if value}
