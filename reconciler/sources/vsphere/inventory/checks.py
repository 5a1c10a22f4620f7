"""What a vCenter says of itself and of the user who is logged in, for those who try a manifest before they trust it.

The privileges are the least that backups need; what else a restore needs stands in the README.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from reconciler.api import vcenters
from reconciler.base import errors
from reconciler.sources.vsphere.connections import certificates, faults, properties, sessions
from reconciler.sources.vsphere.inventory import lookups

#: On a machine, whatever reads its disks; the last one to ask which blocks changed.
MACHINE: Final = (
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Provisioning.DiskRandomRead",
)
#: On a machine, where change tracking is switched on for it.
TRACKING: Final = ("VirtualMachine.Config.ChangeTracking",)
#: On a machine, by transport.
TRANSPORTS: Final[Mapping[str, tuple[str, ...]]] = {
    "nbdkit-vddk": ("VirtualMachine.Config.DiskLease", "VirtualMachine.Provisioning.GetVmFiles"),
    "datastore": (),
    "export": ("VApp.Export", "VirtualMachine.Provisioning.GetVmFiles"),
}
#: On the vCenter itself, by transport.
ROOT: Final[Mapping[str, tuple[str, ...]]] = {"nbdkit-vddk": ("Global.DisableMethods", "Global.EnableMethods")}
#: On its datastores, for the files beside the disks and, by the transport ``datastore``, the disks themselves.
DATASTORE: Final = ("Datastore.Browse", "Datastore.FileManagement")
_LACKING: Final = ("MethodNotFound", "NotImplemented", "NotSupported")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Privileges:
    """What the user may do to one machine."""

    #: By the name of the machine or datastore: what is missing there, in order. Empty: nothing is.
    missing: Mapping[str, tuple[str, ...]]
    #: How many were asked for.
    asked: int


def certificate(vcenter: vcenters.VCenter) -> str:
    """SHA-1 of the server's certificate, which is trusted. Raises ``SourceError``."""
    return certificates.thumbprint(vcenter.spec, certificates.context(vcenter.spec))


def credential(vcenter: vcenters.VCenter) -> str:
    """Where user and password come from; they are there. Raises ``SourceError``."""
    sessions.of(vcenter).login()
    reference = vcenter.spec.credential_ref
    return f"{reference.env}_USERNAME and _PASSWORD" if reference.env is not None else f"the folder {reference.folder}"


def about(vcenter: vcenters.VCenter) -> str:
    """Log in; what the server calls itself. Raises ``SourceError``."""
    shown = sessions.of(vcenter).content.about
    name = str(getattr(shown, "fullName", None) or getattr(shown, "name", None) or "a server without a name")
    return f"{name}, API {getattr(shown, 'apiVersion', None) or 'of unknown version'}"


def privileges(vcenter: vcenters.VCenter, client_id: str, wanted: vcenters.VMware) -> Privileges | None:
    """What of the least privileges the user lacks on a machine and its datastores; None where nobody can tell.

    Raises ``SourceError``.
    """
    session = sessions.of(vcenter)
    machine = lookups.find(session, client_id)
    doing = f"VM {machine.name}: privileges"
    stores = properties.of(session, machine.object, ("datastore",), doing).get("datastore") or ()
    on_machine = [*MACHINE, *(TRACKING if wanted.change_tracking == "Enable" else ())]
    for transport in vcenter.spec.transports:
        on_machine += (one for one in TRANSPORTS[transport] if one not in on_machine)
    at_top = [one for transport in vcenter.spec.transports for one in ROOT.get(transport, ())]
    missing: dict[str, tuple[str, ...]] = {}
    questions: list[tuple[Sequence[Any], Sequence[str]]] = [((machine.object,), on_machine), (tuple(stores), DATASTORE)]
    if at_top:
        questions.append(((session.content.rootFolder,), at_top))
    for objects, asked in questions:
        answer = _lacking(session, objects, asked, doing) if objects else {}
        if answer is None:
            return None
        missing |= {_name(session, one, doing): answer[one._moId] for one in objects if answer.get(one._moId)}
    return Privileges(missing=missing, asked=len(on_machine) + len(DATASTORE) + len(at_top))


def _lacking(
    session: sessions.Session, objects: Iterable[Any], asked: Sequence[str], doing: str
) -> dict[str, tuple[str, ...]] | None:
    """By reference: what of ``asked`` is not granted; None where the server cannot say."""
    manager = session.content.authorizationManager
    key = _session_key(session, doing)
    if manager is None or key is None:
        return None
    entities = list(objects)
    try:
        answer = session.read(
            doing, lambda: manager.HasPrivilegeOnEntities(entity=entities, sessionId=key, privId=list(asked))
        )
    except faults.VSphereFault as error:
        if error.fault in _LACKING:
            return None
        raise
    return {
        str(one.entity._moId): tuple(said.privId for said in one.privAvailability if not said.isGranted)
        for one in answer or ()
    }


def _session_key(session: sessions.Session, doing: str) -> str | None:
    manager = session.content.sessionManager
    try:
        current = properties.of(session, manager, ("currentSession",), doing).get("currentSession")
    except errors.SourceError:
        return None
    return str(current.key) if current is not None else None


def _name(session: sessions.Session, object: Any, doing: str) -> str:
    return str(properties.of(session, object, ("name",), doing).get("name") or object._moId)
