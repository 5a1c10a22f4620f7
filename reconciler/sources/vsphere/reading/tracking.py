"""Changed block tracking: switched on where a machine can have it, asked for areas, and never believed blindly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors, extents, meters
from reconciler.sources import machines
from reconciler.sources.vsphere.connections import faults, properties, sessions
from reconciler.sources.vsphere.inventory import devices
from reconciler.sources.vsphere.reading import changes

#: Properties of a machine that ``enable`` wants to see.
PATHS: Final = ("config.changeTrackingEnabled", "config.version", "capability.changeTrackingSupported", "snapshot")
#: Hardware older than this has no change tracking.
_OLDEST: Final = 7
_VERSION: Final = re.compile(r"vmx-(\d+)")
#: What stands for all areas that were ever written.
EVERYTHING: Final = "*"


def enable(
    session: sessions.Session, machine: Any, name: str, shown: Mapping[str, Any], meter: meters.Meter
) -> machines.Found | None:
    """Switch tracking on before a snapshot, where it is off; what is to be said of it. A failure fails nothing.

    ``shown``: the machine's ``PATHS``. It takes effect as the snapshot is made. A machine that has snapshots already is
    left alone: their disks would keep what the tracking does not know. Not every server that can do it says so:
    hardware that is not too old is asked for it.
    """
    if shown.get("config.changeTrackingEnabled"):
        return None
    promised = bool(shown.get("capability.changeTrackingSupported"))
    unsupported = machines.Found(code="TrackingUnsupported", message=f"VM {name}: it cannot track changed blocks")
    version = _VERSION.match(str(shown.get("config.version") or ""))
    if not promised and (version is None or int(version[1]) < _OLDEST):
        return unsupported
    if shown.get("snapshot") is not None:
        return machines.Found(
            code="TrackingWaits",
            message=f"VM {name}: change tracking is switched on once the machine has no snapshots of others",
        )
    doing = f"VM {name}: switching change tracking on"
    try:
        wanted = vim.vm.ConfigSpec(changeTrackingEnabled=True)
        properties.wait(session, session.act(doing, lambda: machine.ReconfigVM_Task(wanted)), doing, meter)
        if not promised and not properties.of(session, machine, PATHS[:1], doing).get(PATHS[0]):
            return unsupported
    except errors.SourceError as error:
        return machines.Found(code="TrackingRefused", message=str(error)) if promised else unsupported
    return machines.Found(code="TrackingEnabled", message=f"VM {name}: change tracking was switched on")


def areas(
    session: sessions.Session, machine: Any, snapshot: str, disk: devices.VirtualDisk, change_id: str, name: str
) -> extents.Extents | machines.Found:
    """Areas changed since ``change_id``, or why they are not known. Raises ``Vanished`` where the snapshot is gone."""
    doing = f"VM {name}: changed areas of {disk.label}"
    frozen = session.object(vim.vm.Snapshot, snapshot)

    def ask(offset: int) -> changes.Answer:
        return _answer(session.read(doing, _query(machine, frozen, disk.key, offset, change_id)), offset)

    try:
        return changes.collect(ask, disk.size)
    except faults.Vanished:
        raise
    except changes.Odd as error:
        return machines.Found(code="OddAreas", message=f"{doing}: the vCenter contradicts itself: {error}")
    except faults.VSphereFault as error:
        return machines.Found(code=error.fault, message=error.message)
    except errors.SourceError as error:
        return machines.Found(code="AreasUnknown", message=error.message)


def _query(machine: Any, snapshot: Any, key: int, offset: int, change_id: str) -> Callable[[], Any]:
    return lambda: machine.QueryChangedDiskAreas(
        snapshot=snapshot, deviceKey=key, startOffset=offset, changeId=change_id
    )


def _answer(shown: Any, offset: int) -> changes.Answer:
    if shown is None:
        raise changes.Odd(f"asked from byte {offset}, it said nothing")
    areas = tuple((int(one.start), int(one.length)) for one in shown.changedArea or ())
    return changes.Answer(start=int(shown.startOffset), length=int(shown.length), areas=areas)
