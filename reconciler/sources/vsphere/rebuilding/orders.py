"""What is to be made, as the ways that write disks take it, and what each of them promises."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from reconciler.base import disks, errors, meters
from reconciler.sources import machinetargets
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.inventory import devices
from reconciler.sources.vsphere.rebuilding import halfmade, places, specs
from reconciler.sources.vsphere.transports import ports

_FILE: Final = re.compile(r"\[([^\]]*)\] ?(.*)", re.DOTALL)
#: Key of the first new disk in a specification; each needs its own.
_FIRST: Final = -1000


class Unsupported(errors.SourceError):
    """The server does not offer this way: another one may do."""

    retryable = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One machine to make."""

    session: sessions.Session
    blueprint: blueprints.Blueprint
    place: places.Place
    wanted: machinetargets.Wanted
    mark: halfmade.Mark
    identity: machinetargets.Identity
    #: Those that the image holds, in order; sizes are the image's.
    disks: tuple[blueprints.Disk, ...]
    #: Takes notes.
    say: Callable[[str], None]

    @property
    def doing(self) -> str:
        """For messages."""
        return f"restore of VM {self.mark.name}"

    def disk(self, label: str) -> blueprints.Disk:
        """The disk with this label."""
        return next(one for one in self.disks if one.label == label)

    def specification(self) -> Any:
        """The machine with all its devices but the disks."""
        made = specs.machine(self.blueprint, self.mark.temporary, self.place.store.name, {halfmade.KEY: self.mark.text})
        cards = specs.nics(
            self.session, self.blueprint, self.place.networks, self.identity, self.say, f"{self.doing}: networks"
        )
        made.deviceChange = [*specs.controllers(self.blueprint), *specs.removables(self.blueprint), *cards]
        return made

    def empty_disks(self) -> list[Any]:
        """Specifications of the disks, made empty; controllers are those of the specification."""
        return [
            specs.disk(one, one.controller, _FIRST - number, f"[{store.name}]", store, create=True)
            for number, one in enumerate(self.disks)
            for store in (self.place.store_of(one, self.wanted),)
        ]

    def there_disks(self, keys: Mapping[int, int], files: Mapping[str, str]) -> list[Any]:
        """Specifications of disks whose files are there. ``keys``: of the made controllers by the blueprint's;
        ``files``: ``[datastore] path`` by label."""
        return [
            specs.disk(one, keys[one.controller], _FIRST - number, files[one.label], self.place.store, create=False)
            for number, one in enumerate(self.disks)
        ]

    def create(self, specification: Any) -> Any:
        """Make the machine; the ``vim.VirtualMachine``. Raises ``SourceError``."""
        place, doing = self.place, f"{self.doing}: making the machine"
        task = self.session.act(doing, lambda: place.folder.CreateVM_Task(specification, place.pool, place.host))
        # A task goes on when nobody waits for it: what it makes must be known, to be removed.
        made = properties.wait(self.session, task, doing)
        if made is None:
            raise errors.SourceError(f"{doing}: the vCenter does not say what it made")
        return made

    def opened(self, machine: Any, disk: devices.VirtualDisk, snapshot: str, meter: meters.Meter) -> ports.Frozen:
        """A disk of the machine as transports take it; ``snapshot``: its reference."""
        store = self.place.stores.get(disk.datastore)
        return ports.Frozen(
            session=self.session,
            machine=self.mark.temporary,
            reference=str(machine._moId),
            datacenter=self.place.datacenter,
            snapshot=snapshot,
            disk=disk,
            datastore_type=store.type if store is not None else "",
            datastore_local=store.local if store is not None else False,
            read_by=_nobody,
            meter=meter,
        )


def _nobody(_process: int) -> None:
    """Servers die with this process; the machine itself goes with the next restore."""


def split(file: str) -> tuple[str, str]:
    """Datastore and path of ``[datastore] path``."""
    found = _FILE.fullmatch(file)
    return (found[1], found[2]) if found else ("", file)


class Way(Protocol):
    """One way to write the disks of one order. Used by one thread, in this order."""

    @property
    def name(self) -> str:
        """As the command line writes it."""

    def refuses(self) -> str | None:
        """Why it cannot be, None if it may; nothing is made for it."""

    def make(self, meter: meters.Meter) -> Any:
        """The half-made ``vim.VirtualMachine``. Raises ``Unsupported`` or ``SourceError``, leaving nothing."""

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Send one disk; the bytes sent. Raises ``SourceError`` and what reading raises."""

    def seal(self, meter: meters.Meter) -> None:
        """Every disk is sent. Raises ``SourceError``."""

    def abort(self) -> None:
        """Let go of what the way itself holds; the machine is removed by others. Idempotent."""
