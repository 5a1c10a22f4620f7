"""Where a restored machine is to stand: folder, host, resource pool, datastores and networks of one vCenter.

What the user names must exist and fit together. What he does not name is where the machine stood when it was captured,
if that is still there, else the plainest choice, with a note that says so; where there is no plain choice, an error
lists what there is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors
from reconciler.sources import machinetargets
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.sources.vsphere.connections import properties, sessions

_COMMON: Final = ("name", "parent")
_KINDS: Final[tuple[tuple[type[Any], tuple[str, ...]], ...]] = (
    (vim.Datacenter, (*_COMMON, "vmFolder")),
    (vim.Folder, (*_COMMON, "childType")),
    (vim.ComputeResource, (*_COMMON, "host", "resourcePool", "datastore")),
    (vim.ClusterComputeResource, (*_COMMON, "host", "resourcePool", "datastore")),
    (vim.HostSystem, (*_COMMON, "datastore", "network", "runtime.connectionState", "runtime.inMaintenanceMode")),
    (vim.ResourcePool, _COMMON),
    (vim.Datastore, (*_COMMON, "summary.type", "summary.accessible", "summary.freeSpace")),
)
_NETWORK: Final = ("name",)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A datastore."""

    object: Any
    name: str
    #: ``VMFS``, ``NFS``, ``vsan``, ``VVOL``, ...
    type: str
    #: Bytes.
    free: int
    #: Whether it is a file system of the host's own operating system.
    local: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where it will stand."""

    #: Path of the datacenter without a slash in front, such as ``DC0``.
    datacenter: str
    folder: Any
    #: Such as ``/DC0/vm/gold``.
    folder_path: str
    host: Any
    pool: Any
    #: Of the machine's own files.
    store: Store
    #: Every datastore that the host reaches, by name.
    stores: Mapping[str, Store]
    #: Networks of the host by name.
    networks: Mapping[str, Any]
    notes: tuple[str, ...]

    def store_of(self, disk: blueprints.Disk, words: machinetargets.Wanted) -> Store:
        """Where a disk goes: its own datastore, unless one is named or it is not there."""
        if words.datastore is not None:
            return self.store
        name = disk.file.partition("]")[0].removeprefix("[")
        return self.stores.get(name, self.store)


class _World:
    """The inventory of one vCenter without its machines."""

    def __init__(self, session: sessions.Session, doing: str) -> None:
        self.vcenter = session.name
        self.by_reference: dict[str, properties.Shown] = {}
        for kind, paths in _KINDS:
            for shown in properties.everything(session, kind, paths, doing):
                self.by_reference.setdefault(shown.reference, shown)

    def of(self, kind: type[Any]) -> list[properties.Shown]:
        return [shown for shown in self.by_reference.values() if isinstance(shown.object, kind)]

    def get(self, object: Any) -> properties.Shown | None:
        return None if object is None else self.by_reference.get(object._moId)

    def above(self, shown: properties.Shown, kind: type[Any]) -> properties.Shown | None:
        at: properties.Shown | None = shown
        while at is not None and not isinstance(at.object, kind):
            at = self.get(at.values.get("parent"))
        return at

    def path(self, shown: properties.Shown) -> str:
        parts: list[str] = []
        at: properties.Shown | None = shown
        while at is not None:
            parts.insert(0, str(at.values.get("name", "")))
            at = self.get(at.values.get("parent"))
        # The root folder itself is in no view of what lies below it.
        return "/" + "/".join(parts)

    def named(self, kind: type[Any], word: str, what: str, among: Iterable[properties.Shown]) -> properties.Shown:
        """The one that has this name or path. Raises ``NotFound``."""
        listed = [shown for shown in among if isinstance(shown.object, kind)]
        found = [shown for shown in listed if word in (shown.values.get("name"), self.path(shown))]
        exact = [shown for shown in found if self.path(shown) == word]
        found = exact or found
        if len(found) == 1:
            return found[0]
        paths = sorted(self.path(shown) for shown in (found or listed))
        if found:
            raise errors.NotFound(
                f"VCenter {self.vcenter}: {len(found)} {what}s are named {word}",
                hint=f"name one by its path: {_some(paths)}",
            )
        raise errors.NotFound(
            f"VCenter {self.vcenter}: there is no {what} {word} here", hint=f"there is {_some(paths) or 'none at all'}"
        )


def find(session: sessions.Session, blueprint: blueprints.Blueprint, words: machinetargets.Wanted, doing: str) -> Place:
    """The place that words and blueprint mean. Raises ``NotFound``, ``UsageError`` or ``SourceError``."""
    world = _World(session, doing)
    notes: list[str] = []
    home = blueprint.place
    host = _host(world, home, words, notes)
    center = world.above(host, vim.Datacenter)
    if center is None:
        raise errors.SourceError(f"{doing}: the datacenter of {host.values.get('name')} is not shown")
    compute = world.above(host, vim.ComputeResource)
    folder = _folder(world, center, home, words, notes)
    pool = _pool(world, compute, home, words, notes)
    stores = {store.name: store for store in _stores(session, world, host, doing)}
    store = _store(world, host, stores, home, words, notes)
    return Place(
        datacenter=world.path(center).removeprefix("/"),
        folder=folder.object,
        folder_path=world.path(folder),
        host=host.object,
        pool=pool.object,
        store=store,
        stores=stores,
        networks=_networks(session, host, doing),
        notes=tuple(notes),
    )


def _usable(host: properties.Shown) -> bool:
    values = host.values
    return values.get("runtime.connectionState") == "connected" and not values.get("runtime.inMaintenanceMode")


def _host(world: _World, home: blueprints.Place, words: machinetargets.Wanted, notes: list[str]) -> properties.Shown:
    hosts = world.of(vim.HostSystem)
    ready = sorted((one for one in hosts if _usable(one)), key=lambda one: str(one.values.get("name")))
    if words.host is not None:
        both = [*hosts, *(one for one in world.of(vim.ClusterComputeResource))]
        named = world.named(vim.ManagedEntity, words.host, "host or cluster", both)
        within = [one for one in ready if named.reference in (one.reference, _parent(one))]
        if not within:
            raise errors.NotFound(
                f"VCenter {world.vcenter}: {words.host} is not connected or in maintenance",
                hint=f"ready is {_some([str(one.values.get('name')) for one in ready]) or 'none'}",
            )
        return next((one for one in within if one.values.get("name") == home.host), within[0])
    ready = _within(world, ready, f"{words.folder or ''}/")
    # Another datacenter may have a cluster of the same name; its host is never taken unasked for one at home.
    near = _within(world, ready, f"{words.folder if (words.folder or '').startswith('/') else home.datacenter}/")
    same = [one for one in near if one.values.get("name") == home.host]
    if same:
        return same[0]
    cluster = [one for one in near if _name(world.get(one.values.get("parent"))) == home.compute]
    if cluster or len(ready) == 1:
        chosen = (cluster or ready)[0]
        notes.append(
            f"host {home.host or 'of the image'} is not here or not ready: {chosen.values.get('name')} is taken"
        )
        return chosen
    raise errors.NotFound(
        f"VCenter {world.vcenter}: host {home.host or 'of the image'} is not here or not ready",
        hint=f"choose one with --host: {_some([str(one.values.get('name')) for one in ready]) or 'none is ready'}",
    )


def _within(world: _World, ready: list[properties.Shown], path: str) -> list[properties.Shown]:
    """Only hosts of the datacenter that a path, which ends with a slash, begins with; all where it is not here."""
    centers = [one for one in world.of(vim.Datacenter) if path.startswith(f"{world.path(one)}/")]
    if not centers:
        return ready
    return [one for one in ready if _reference(world.above(one, vim.Datacenter)) == centers[0].reference]


def _folder(
    world: _World, center: properties.Shown, home: blueprints.Place, words: machinetargets.Wanted, notes: list[str]
) -> properties.Shown:
    root = world.get(center.values.get("vmFolder"))
    if root is None:
        raise errors.SourceError(
            f"VCenter {world.vcenter}: the folder of machines of {world.path(center)} is not shown"
        )
    below = [one for one in world.of(vim.Folder) if _inside(world, one, root)]
    if words.folder is not None:
        return world.named(vim.Folder, words.folder.rstrip("/") or "/", "folder of machines", below)
    same = [one for one in below if world.path(one) == home.folder]
    if same:
        return same[0]
    notes.append(f"folder {home.folder or 'of the image'} is not here: {world.path(root)} is taken")
    return root


def _pool(
    world: _World,
    compute: properties.Shown | None,
    home: blueprints.Place,
    words: machinetargets.Wanted,
    notes: list[str],
) -> properties.Shown:
    root = world.get(compute.values.get("resourcePool")) if compute is not None else None
    if root is None:
        raise errors.SourceError(f"VCenter {world.vcenter}: the resource pools of the chosen host are not shown")
    below = [one for one in world.of(vim.ResourcePool) if _inside(world, one, root)]
    if words.pool is not None:
        return world.named(vim.ResourcePool, words.pool, "resource pool of this host", below)
    same = [one for one in below if world.path(one) == home.pool]
    if same:
        return same[0]
    if home.pool:
        notes.append(f"resource pool {home.pool} is not on the chosen host: {world.path(root)} is taken")
    return root


def _stores(session: sessions.Session, world: _World, host: properties.Shown, doing: str) -> Iterable[Store]:
    for object in host.values.get("datastore") or ():
        shown = world.get(object)
        if shown is not None and shown.values.get("summary.accessible", True):
            kind = str(shown.values.get("summary.type", ""))
            # Only kinds that nobody has a word for are worth another question.
            info = properties.of(session, object, ("info",), doing).get("info") if kind == "OTHER" else None
            yield Store(
                object=shown.object,
                name=str(shown.values.get("name", "")),
                type=kind,
                free=int(shown.values.get("summary.freeSpace", 0)),
                local=isinstance(info, vim.host.LocalDatastoreInfo),
            )


def _store(
    world: _World,
    host: properties.Shown,
    stores: Mapping[str, Store],
    home: blueprints.Place,
    words: machinetargets.Wanted,
    notes: list[str],
) -> Store:
    name = home.vmx.partition("]")[0].removeprefix("[")
    listed = _some(sorted(stores)) or "none"
    if words.datastore is not None:
        if words.datastore in stores:
            return stores[words.datastore]
        raise errors.NotFound(
            f"VCenter {world.vcenter}: host {host.values.get('name')} reaches no datastore {words.datastore}",
            hint=f"it reaches {listed}",
        )
    if name in stores:
        return stores[name]
    if len(stores) == 1:
        only = next(iter(stores.values()))
        notes.append(f"datastore {name or 'of the image'} is not on {host.values.get('name')}: {only.name} is taken")
        return only
    raise errors.NotFound(
        f"VCenter {world.vcenter}: host {host.values.get('name')} does not reach datastore {name or 'of the image'}",
        hint=f"choose one with --datastore: {listed}",
    )


def _networks(session: sessions.Session, host: properties.Shown, doing: str) -> dict[str, Any]:
    objects: Sequence[Any] = host.values.get("network") or ()
    found: dict[str, Any] = {}
    for kind in {type(one) for one in objects}:
        alike = [one for one in objects if type(one) is kind]
        for shown in properties.of_many(session, alike, _NETWORK, doing):
            found[str(shown.values.get("name", ""))] = shown.object
    return found


def _inside(world: _World, shown: properties.Shown, root: properties.Shown) -> bool:
    at: properties.Shown | None = shown
    while at is not None and at.reference != root.reference:
        at = world.get(at.values.get("parent"))
    return at is not None


def _parent(shown: properties.Shown) -> str:
    parent = shown.values.get("parent")
    return "" if parent is None else str(parent._moId)


def _reference(shown: properties.Shown | None) -> str | None:
    return None if shown is None else shown.reference


def _name(shown: properties.Shown | None) -> str | None:
    return None if shown is None else str(shown.values.get("name"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
