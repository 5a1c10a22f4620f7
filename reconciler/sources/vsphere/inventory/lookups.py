"""From a client's id to the one live machine that it means now, for jobs."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors
from reconciler.sources.vsphere.connections import faults, properties, sessions
from reconciler.sources.vsphere.inventory import listings

PREFIX: Final = "vsphere:"
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_PATHS: Final = (
    "name", "config.instanceUuid", "config.template", "runtime.host", "runtime.powerState", "runtime.connectionState",
    "snapshot",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A live machine, just asked."""

    #: ``vim.VirtualMachine``, for calls.
    object: Any
    #: Such as ``vm-57``.
    reference: str
    name: str
    #: Client id.
    id: str
    #: The API's word, such as ``poweredOn``.
    power: str
    connection: str
    #: Reference of its host, None where it is not shown.
    host_reference: str | None
    snapshots: tuple[listings.Snapshot, ...]


def client_id(instance_uuid: str) -> str:
    """The identity of a machine with this instance UUID."""
    return f"{PREFIX}{instance_uuid.lower()}"


def find(session: sessions.Session, client_id: str, name: str = "") -> Machine:
    """The one machine that a client's id means now; templates are none. ``name``: as messages call it.

    Raises ``Vanished`` where there is none, ``SourceError`` where there are several or the vCenter cannot be asked.
    """
    wanted = client_id.removeprefix(PREFIX)
    if client_id == wanted or not _UUID.fullmatch(wanted):
        raise errors.SourceError(f"{client_id}: not the id of a virtual machine", hint="such as vsphere:5029...")
    words = f"VM {name}: VCenter {session.name}" if name else f"VCenter {session.name}"
    doing = f"{words}: looking for {client_id}"
    shown = _candidates(session, wanted, doing)
    live = [one for one in shown if not one.values.get("config.template") and _is(one, wanted)]
    if not live:
        raise faults.Vanished(
            f"{words}: no machine has the instance UUID {wanted} now",
            hint="was it deleted, or moved to another vCenter? Or may the user no longer see it?",
        )
    if len(live) > 1:
        names = " and ".join(sorted(f"{one.values.get('name')} ({one.reference})" for one in live))
        raise errors.SourceError(
            f"{words}: {names} have the same instance UUID {wanted}",
            hint="give the copy an instance UUID of its own",
        )
    return _machine(live[0], client_id)


def _candidates(session: sessions.Session, uuid: str, doing: str) -> list[properties.Shown]:
    index = session.content.searchIndex
    try:
        found = session.read(doing, lambda: index.FindAllByUuid(uuid=uuid, vmSearch=True, instanceUuid=True))
    except faults.VSphereFault as error:
        if error.fault not in ("MethodNotFound", "NotImplemented", "NotSupported"):
            raise
        # FindByUuid would name one of two and keep silent on the other.
        return properties.everything(session, vim.VirtualMachine, _PATHS, doing)
    return properties.of_many(session, list(found or ()), _PATHS, doing)


def _is(shown: properties.Shown, uuid: str) -> bool:
    """The index may lag behind: the machine itself is asked."""
    return str(shown.values.get("config.instanceUuid") or "").lower() == uuid


def _machine(shown: properties.Shown, client_id: str) -> Machine:
    values = shown.values
    host = values.get("runtime.host")
    return Machine(
        object=shown.object,
        reference=shown.reference,
        name=listings.unescaped(str(values.get("name") or shown.reference)),
        id=client_id,
        power=str(values.get("runtime.powerState") or ""),
        connection=str(values.get("runtime.connectionState") or "connected"),
        host_reference=str(host._moId) if host is not None else None,
        snapshots=listings.snapshots(values.get("snapshot")),
    )
