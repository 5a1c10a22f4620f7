"""Free space of the datastores under a machine: a snapshot grows in it, and a full one stops every machine on it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors, quantities
from reconciler.sources.vsphere.connections import properties, sessions

_PATHS: Final = ("summary.name", "summary.capacity", "summary.freeSpace", "summary.type")


class DatastoreFull(errors.SourceError):
    """A datastore has less free space than the VCenter's ``datastoreFreeSpace`` asks for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Datastore:
    """One datastore now."""

    #: ``vim.Datastore``, to look again.
    object: Any
    name: str
    #: Bytes; 0 where it does not say.
    capacity: int
    free: int
    #: VMFS, NFS, NFS41, vsan, VVOL, ...; empty where unknown.
    type: str
    #: Whether it is a file system of the host's own operating system.
    local: bool

    def lacks(self, share: float) -> bool:
        """Whether less than ``share`` of a hundred is free."""
        return self.capacity > 0 and self.free * 100 < self.capacity * share

    @property
    def words(self) -> str:
        """For messages: ``datastore ds1 has 1.00 GiB of 20.0 GiB free``."""
        return (
            f"datastore {self.name} has {quantities.show_size(self.free)} of {quantities.show_size(self.capacity)} free"
        )


def look(session: sessions.Session, datastores: Sequence[Any], doing: str) -> tuple[Datastore, ...]:
    """What datastores show now; the vCenter is asked to look afresh. Raises ``SourceError``."""
    for one in datastores:
        # Who may not ask for a fresh look, or asks a server that has no such call, sees the last one.
        with contextlib.suppress(errors.SourceError):
            session.act(doing, one.RefreshDatastore)
    shown = properties.of_many(session, list(datastores), _PATHS, doing)
    return tuple(
        Datastore(
            object=one.object,
            name=str(one.values.get("summary.name", one.reference)),
            capacity=int(one.values.get("summary.capacity") or 0),
            free=int(one.values.get("summary.freeSpace") or 0),
            type=str(one.values.get("summary.type") or ""),
            local=_local(session, one, doing),
        )
        for one in shown
    )


def _local(session: sessions.Session, shown: properties.Shown, doing: str) -> bool:
    """Whether it is a host's own file system; only of a kind that nobody has a word for is more asked."""
    if shown.values.get("summary.type") != "OTHER":
        return False
    info = properties.of(session, shown.object, ("info",), doing).get("info")
    return isinstance(info, vim.host.LocalDatastoreInfo)


def require(found: Sequence[Datastore], share: float, wanted: str, doing: str) -> None:
    """Raise ``DatastoreFull`` for the first that lacks ``share`` of a hundred. ``wanted``: as the manifest says it."""
    for one in found:
        if one.lacks(share):
            raise DatastoreFull(
                f"{doing}: {one.words}, less than {wanted}",
                hint="make room on it, or lower the VCenter's datastoreFreeSpace",
            )
