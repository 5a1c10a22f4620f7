"""How a machine that a restore is still making is recognised: by its name and by a mark among its settings.

The mark says which process of which host makes it. A restore that finds one whose maker is dead removes it; whatever it
cannot judge it names and leaves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Any, Final, Literal

from pyVmomi import vim

from reconciler.base import errors
from reconciler.sources import machinetargets
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.inventory import ancestry, listings

KEY: Final = "holdfast.restore"
#: Letters that a name may have in an inventory.
LONGEST: Final = 80
_TEMPORARY: Final = re.compile(r"\.holdfast-[0-9a-f]{8}$")

State = Literal["Making", "Proven", "Named"]
#: Ids of the marks that this process is at work on: what it left behind before must not look alive while it lives.
_AT_WORK: Final[set[str]] = set()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Who makes a machine."""

    #: Eight hex digits.
    id: str
    #: Name that it will have.
    name: str
    image: str
    #: Host, process and the process's start, which together are never the same again.
    host: str
    process: int
    started: str
    #: ``Proven``: every byte was read back, it only waits for its name. ``Named``: it has that, and is to be recorded.
    state: State = "Making"
    #: Of the restore, by which its next attempt finds it; None where no attempt follows.
    order: str | None = None
    identity: machinetargets.Identity = "same"

    @classmethod
    def new(
        cls, name: str, image: str, *, order: str | None = None, identity: machinetargets.Identity = "same"
    ) -> Mark:
        """A mark of this process."""
        return cls(
            id=secrets.token_hex(4),
            name=name,
            image=image,
            host=socket.gethostname(),
            process=os.getpid(),
            started=_started(os.getpid()) or "",
            order=order,
            identity=identity,
        )

    @property
    def temporary(self) -> str:
        """The machine's name until it is proven."""
        return f"{self.name[: LONGEST - 18]}.holdfast-{self.id}"

    @property
    def text(self) -> str:
        """The setting's value."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    def alive(self) -> bool | None:
        """Whether its maker still runs; None where that cannot be told from here."""
        if self.host != socket.gethostname():
            return None
        if _started(self.process) != self.started:
            return False
        return self.process != os.getpid() or self.id in _AT_WORK

    def at_work(self, *, begins: bool) -> None:
        """This process begins, or ends, to make the machine."""
        (_AT_WORK.add if begins else _AT_WORK.discard)(self.id)


def _started(process: int) -> str | None:
    """The boot and the tick at which a process began, None if there is none."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        # A zombie makes nothing any more.
        if stat[0] not in ("Z", "X"):
            return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{stat[19]}"
    return None


def unfinished(name: str) -> bool:
    """Whether a machine's name is the temporary one of a restore."""
    return _TEMPORARY.search(name) is not None


def parse(text: str) -> Mark | None:
    """The mark that ``text`` writes; None if it is none of ours."""
    try:
        return Mark(**json.loads(text))
    except (ValueError, TypeError):
        return None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """A machine that some restore was making."""

    machine: Any
    name: str
    mark: Mark
    #: ``[datastore] folder/name.vmx``
    vmx: str
    running: bool


def of_order(session: sessions.Session, order: str, name: str, doing: str) -> Leftover | None:
    """The machine that an earlier attempt at this restore had proven: the one that has its name, else the one that
    waits for it. Raises ``SourceError``."""
    mine = [
        left
        for left in leftovers(session, doing, called=name)
        if left.mark.order == order and left.mark.state == ("Named" if left.name == name else "Proven")
    ]
    return min(mine, key=lambda left: (left.mark.state, left.name), default=None)


def leftovers(session: sessions.Session, doing: str, *, called: str | None = None) -> list[Leftover]:
    """Every machine of the vCenter that looks half-made, or is ``called`` so, and bears a mark. Raises
    ``SourceError``."""
    everyone = properties.everything(session, vim.VirtualMachine, ("name",), doing)
    names = ((shown.object, str(shown.values.get("name", ""))) for shown in everyone)
    suspects = [one for one, name in names if unfinished(name) or listings.unescaped(name) == called]
    paths = ("name", "config.extraConfig", "config.files.vmPathName", "runtime.powerState")
    found = []
    for shown in properties.of_many(session, suspects, paths, doing):
        extra = {str(one.key): str(one.value) for one in shown.values.get("config.extraConfig") or ()}
        mark = parse(extra.get(KEY, ""))
        if mark is not None:
            found.append(
                Leftover(
                    machine=shown.object,
                    name=listings.unescaped(str(shown.values.get("name"))),
                    mark=mark,
                    vmx=str(shown.values.get("config.files.vmPathName") or ""),
                    running=shown.values.get("runtime.powerState") != "poweredOff",
                )
            )
    return found


def sweep(session: sessions.Session, doing: str) -> list[str]:
    """Remove what dead restores left behind; a sentence about each machine that was found. Raises ``SourceError``."""
    said = []
    for left in leftovers(session, doing):
        alive = left.mark.alive()
        if alive:
            continue
        if alive is None:
            said.append(f"{left.name} is half-made by a restore on {left.mark.host}: left alone")
        elif left.running:
            said.append(f"{left.name} is half-made by a dead restore, and somebody runs it: left alone")
        elif left.mark.state == "Proven":
            said.append(
                f"{left.name} was proven whole when its restore died before naming it {left.mark.name}: left alone; "
                "rename it, or remove it"
            )
        else:
            try:
                remove(session, left.machine, left.vmx, doing)
                said.append(f"{left.name}, half-made by a dead restore, was removed")
            except errors.SourceError as error:
                said.append(
                    f"{left.name}, half-made by a dead restore, could not be removed: {error.message}; "
                    "the next restore tries again"
                )
    return said


def remove(session: sessions.Session, machine: Any, vmx: str, doing: str) -> None:
    """Destroy a machine that we were making, and its folder, which holds files that it does not know yet.

    Raises ``SourceError``.
    """
    center = ancestry.nearest(ancestry.above(session, machine, doing), vim.Datacenter)
    removing = f"{doing}: removing"
    properties.change(
        session, removing, machine.Destroy_Task, lambda: not properties.exists(session, machine, removing)
    )
    folder = vmx.rpartition("/")[0]
    # Nothing but a folder that carries a temporary name is ours.
    if center is None or not _TEMPORARY.search(folder):
        return
    manager, datacenter = session.content.fileManager, center.object
    gone = f"{doing}: removing {folder}"
    try:
        task = session.act(gone, lambda: manager.DeleteDatastoreFile_Task(folder, datacenter))
        properties.wait(session, task, gone)
    except errors.SourceError as error:
        if getattr(error, "fault", "") not in ("FileNotFound", "ManagedObjectNotFound"):
            raise
