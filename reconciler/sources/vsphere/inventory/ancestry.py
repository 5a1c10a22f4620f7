"""Where objects of the inventory stand: the way up from one of them, asked for at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyVmomi import vim, vmodl

from reconciler.base import errors
from reconciler.sources.vsphere.connections import properties, sessions

_Collector = vmodl.query.PropertyCollector


def above(session: sessions.Session, object: Any, doing: str) -> list[properties.Shown]:
    """The object and what stands above it, the topmost first: ``name`` and ``parent`` of each. Raises ``SourceError``.

    A virtual machine in a vApp has no folder: the way up is then the vApp's.
    """
    up = [
        _Collector.TraversalSpec(
            name="up",
            path="parent",
            skip=False,
            type=vim.ManagedEntity,
            selectSet=[_Collector.SelectionSpec(name="up")],
        )
    ]
    start = _Collector.ObjectSpec(obj=object, skip=False, selectSet=up)
    found = list(properties.walked(session, vim.ManagedEntity, ("name", "parent"), [start], doing))
    by_reference = {shown.reference: shown for shown in found}
    way: list[properties.Shown] = []
    at = by_reference.get(object._moId)
    while at is not None and at not in way:
        way.insert(0, at)
        parent = at.values.get("parent")
        at = None if parent is None else by_reference.get(parent._moId)
    if len(way) == 1 and isinstance(object, vim.VirtualMachine):
        vapp = properties.of(session, object, ("parentVApp",), doing).get("parentVApp")
        return [*above(session, vapp, doing), *way] if vapp is not None else way
    return way


def path(way: Sequence[properties.Shown]) -> str:
    """``/DC0/vm/gold`` for what ``above`` gave; the root folder stands for the first slash."""
    return "/" + "/".join(str(shown.values.get("name", "")) for shown in way[1:])


def path_of(session: sessions.Session, object: Any, doing: str) -> str:
    """The path of one object, empty where nobody may see it. Raises ``SourceError``."""
    if object is None:
        return ""
    way = above(session, object, doing)
    return path(way) if way else ""


def nearest(way: Sequence[properties.Shown], kind: type[Any]) -> properties.Shown | None:
    """The lowest object of a kind on the way."""
    return next((shown for shown in reversed(way) if isinstance(shown.object, kind)), None)


def datacenter(session: sessions.Session, object: Any, doing: str) -> str:
    """Path of an object's datacenter, such as ``DC0``, for the datastores' HTTP service. Raises ``SourceError``."""
    way = above(session, object, doing)
    for place, shown in enumerate(way):
        if isinstance(shown.object, vim.Datacenter):
            return path(way[: place + 1]).removeprefix("/")
    raise errors.SourceError(f"{doing}: no datacenter above it is shown", hint="the user needs to see it: System.View")
