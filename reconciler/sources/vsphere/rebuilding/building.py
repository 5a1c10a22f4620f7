"""A machine restored into a vCenter: from the half-made one to the one that is proven and takes its name.

It is made under a temporary name with a mark, whatever way its disks are written. Only when every disk was read back
does it get its name and its identity, in one change; with ``replace`` the machine that had the name steps aside just
before. Until then every bad ending removes what was made, and nothing else. A restore with an order of its own leaves
its mark on the machine until it is recorded, so that an attempt after a kill takes up the machine that is proven.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import crashes, disks, errors, meters
from reconciler.sources import machinetargets
from reconciler.sources.vsphere.blueprints import blueprints
from reconciler.sources.vsphere.connections import datastorefiles, faults, properties, sessions
from reconciler.sources.vsphere.inventory import listings
from reconciler.sources.vsphere.rebuilding import (
    belongings,
    halfmade,
    importing,
    orders,
    places,
    proving,
    specs,
    succession,
    uploading,
    vddkwriting,
)

_WAYS: Final[Mapping[machinetargets.Via, Callable[[orders.Order], orders.Way]]] = {
    "import": importing.Import,
    "datastore": uploading.Upload,
    "vddk": vddkwriting.Vddk,
}


def plan(
    session: sessions.Session, blueprint: blueprints.Blueprint, wanted: machinetargets.Wanted, now: dt.datetime
) -> Build:
    """Decide everything, change nothing.

    Raises ``NotFound``, ``TargetExists``, ``UsageError``, ``TargetError`` or ``SourceError``.
    """
    name = wanted.name or listings.unescaped(blueprint.name)
    doing = f"restore of VM {name}"
    if not name or len(name) > halfmade.LONGEST:
        raise errors.UsageError(f"{name!r} is no name for a machine: 1 to {halfmade.LONGEST} letters")
    place = places.find(session, blueprint, wanted, doing)
    notes = [*place.notes, *blueprint.notes]
    left = _left(session, wanted, name, doing)
    old = succession.named(session, place.folder, name, doing)
    if left is not None and left.mark.state == "Named":
        old = None
    if old is not None and not wanted.replace:
        raise errors.TargetExists(
            f"VCenter {session.name}: there is a machine {name} in {place.folder_path}",
            hint="restore it under another --name or into another --folder; --replace makes the new one beside it and "
            "then renames the old",
        )
    identity = left.mark.identity if left is not None else _identity(session, blueprint, wanted, old, notes, doing)
    chosen = tuple(_disk(blueprint, label, size) for label, size in wanted.disks.items())
    notes.extend(specs.differences(blueprint, wanted.disks))
    mark = halfmade.Mark.new(name, wanted.image, order=wanted.order, identity=identity)
    order = orders.Order(
        session=session,
        blueprint=blueprint,
        place=place,
        wanted=wanted,
        mark=mark if left is None else dataclasses.replace(mark, id=left.mark.id),
        identity=identity,
        disks=chosen,
        say=notes.append,
    )
    ways = _ways(order, wanted.via) if left is None else []
    return Build(order, ways, old if wanted.replace else None, notes, now, left)


def _left(session: sessions.Session, wanted: machinetargets.Wanted, name: str, doing: str) -> halfmade.Leftover | None:
    """What an earlier attempt at this restore had proven. Raises ``TargetError`` where it is not to be touched."""
    left = halfmade.of_order(session, wanted.order, name, doing) if wanted.order is not None else None
    if left is None:
        return None
    why = None
    if left.mark.image != wanted.image:
        why = f"it holds image {left.mark.image}, not {wanted.image}"
    elif left.mark.state == "Proven" and left.running:
        why = "somebody runs it"
    elif left.mark.state == "Proven" and left.mark.alive() is not False:
        why = f"its restore on {left.mark.host} may still be at work"
    if why is not None:
        # Made once more it would be there twice: somebody has to say which one counts.
        raise _Refused(
            f"{doing}: an attempt before this one had made and proven {left.name}, and {why}",
            hint="keep it and remove the Restore, or remove it: then it is made once more",
        )
    return left


def _disk(blueprint: blueprints.Blueprint, label: str, size: int) -> blueprints.Disk:
    found = blueprint.disk(label)
    if found is None:
        raise blueprints.Damaged(
            f"VM {blueprint.name}: the image holds {label}, and its configuration does not know where it hung",
            hint="--to restores the disks alone",
        )
    return found.model_copy(update={"size": size})


def _identity(
    session: sessions.Session,
    blueprint: blueprints.Blueprint,
    wanted: machinetargets.Wanted,
    old: succession.Old | None,
    notes: list[str],
    doing: str,
) -> machinetargets.Identity:
    holder = succession.with_uuid(session, blueprint.instance_uuid, doing)
    replaced = old is not None and holder is not None and old.machine._moId == holder.machine._moId
    if holder is None or replaced:
        if wanted.identity is None and blueprint.place.vcenter != session.name:
            notes.append(
                f"the identity is kept: VCenter {session.name} has no machine with it; should the original live in "
                f"{blueprint.place.vcenter}, --identity new keeps them apart"
            )
        return wanted.identity or "same"
    if wanted.identity == "same":
        raise errors.TargetExists(
            f"VCenter {session.name}: {holder.name} has the identity {blueprint.instance_uuid} that this machine had",
            hint="--identity new makes it another machine",
        )
    if wanted.identity is None:
        notes.append(f"a new identity, because {holder.name} has the old one: backups of it begin a new client")
    return "new"


def _ways(order: orders.Order, via: machinetargets.Via | None) -> list[orders.Way]:
    """What may be tried, in order. Raises ``TargetError`` where there is nothing."""
    ways = [make(order) for name, make in _WAYS.items() if via in (None, name)]
    reasons = {way.name: way.refuses() for way in ways}
    possible = [way for way in ways if reasons[way.name] is None]
    if possible:
        return possible
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise _Refused(
        f"{order.doing}: its disks cannot be written {'this way' if via else 'in any way'}: {said}",
        hint=f"choose another --via of {', '.join(machinetargets.VIAS)}" if via else "choose another --datastore",
    )


class _Refused(errors.TargetError):
    """Nothing but another order, or somebody's hand, leads there."""

    retryable = False


class Build:
    """One machine being restored: see ``machinetargets.MachineTarget``."""

    def __init__(
        self,
        order: orders.Order,
        ways: Sequence[orders.Way],
        old: succession.Old | None,
        notes: list[str],
        now: dt.datetime,
        left: halfmade.Leftover | None,
    ) -> None:
        """``ways``: one at least, unless there is something ``left`` of an earlier attempt."""
        self._order, self._ways, self._old, self._now, self._left = order, list(ways), old, now, left
        #: What is worth saying so far.
        self.notes = notes
        self._machine: Any = None if left is None else left.machine
        self._begun = self._done = False

    @property
    def target(self) -> str:
        """VCenter and path."""
        order = self._order
        return f"vsphere:{order.session.name}{order.place.folder_path}/{order.mark.name}"

    @property
    def way(self) -> str:
        """How its disks are written; nothing where they were."""
        return self._ways[0].name if self._ways else ""

    @property
    def identity(self) -> machinetargets.Identity:
        """``same`` or ``new``."""
        return self._order.identity

    @property
    def found(self) -> machinetargets.Found:
        """``Proven`` or ``Named`` where an earlier attempt came so far."""
        return "Nothing" if self._left is None else "Named" if self._left.mark.state == "Named" else "Proven"

    @property
    def _way(self) -> orders.Way:
        return self._ways[0]

    # -- making ------------------------------------------------------------------------------------------------------

    def begin(self, meter: meters.Meter) -> None:
        """Sweep, then make the machine by the first way that the server knows."""
        order = self._order
        if self._left is not None:
            self.notes.append(f"an attempt before this one had made and proven {self._left.name}: it is taken up")
            return
        self.notes.extend(halfmade.sweep(order.session, order.doing))
        order.mark.at_work(begins=True)
        self._begun = True
        while True:
            try:
                self._machine = self._way.make(meter)
                break
            except orders.Unsupported as error:
                if not self._ways[1:]:
                    raise
                refused = self._ways.pop(0)
                self.notes.append(f"{refused.name} is not offered: {error.message}; {self._way.name} is used")
        crashes.passing("machine.made")

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Send one disk."""
        # Hours of one transfer are no idleness, though nobody calls the API meanwhile.
        with self._order.session.held():
            sent = self._way.write(disk, meter)
        crashes.passing("machine.disk-written")
        return sent

    def seal(self, meter: meters.Meter) -> None:
        """Complete it, and give it its nvram."""
        self._way.seal(meter)
        self._nvram()

    def _nvram(self) -> None:
        order = self._order
        packed = order.blueprint.nvram
        if packed is None:
            return
        doing = f"{order.doing}: nvram"
        try:
            shown = properties.of(order.session, self._machine, ("config.files.vmPathName",), doing)
            store, vmx = orders.split(str(shown.get("config.files.vmPathName", "")))
            name = posixpath.basename(vmx).removesuffix(".vmx") + ".nvram"
            path = posixpath.join(posixpath.dirname(vmx), name)
            where = datastorefiles.Place(datacenter=order.place.datacenter, datastore=store, path=path)
            content = packed.content()
            datastorefiles.send(order.session, where, lambda: [content], len(content), doing)
            spec = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key="nvram", value=name)])
            self._reconfigure(spec, doing, lambda: self._setting("nvram") == name)
        except (errors.SourceError, blueprints.Damaged) as error:
            self.notes.append(f"the machine starts with fresh settings of its firmware: {error.message}")

    def read_back(self, meter: meters.Meter) -> contextlib.AbstractContextManager[Mapping[str, disks.Disk]]:
        """Its disks, under a snapshot."""
        return self._read_back(meter)

    @contextlib.contextmanager
    def _read_back(self, meter: meters.Meter) -> Iterator[Mapping[str, disks.Disk]]:
        order = self._order
        with order.session.held(), proving.read_back(order, self._machine, meter) as found:
            yield found

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, meter: meters.Meter) -> None:
        """Let the old machine step aside, and take the name."""
        meter.check()
        crashes.passing("machine.proven")
        order = self._order
        if self.found == "Named":
            self._belongings()
            return
        aside = None
        if self._old is not None:
            self._mark(dataclasses.replace(order.mark, state="Proven").text, "marking it proven")
            aside = succession.Succession(order.session, self._old, order.place.folder, self._now, order.doing)
        try:
            if aside is not None and self._old is not None:
                same = order.identity == "same" and self._old.instance_uuid == order.blueprint.instance_uuid
                aside.step_aside(give_up_identity=same)
            self._name()
        except BaseException:
            if aside is not None:
                self.notes.extend(aside.take_back())
            raise
        self._done = True
        order.mark.at_work(begins=False)
        if aside is not None:
            self.notes.append(f"the machine that was there is off and called {aside.name}; nothing of it was removed")
        self._belongings()

    def _name(self) -> None:
        order = self._order
        doing = f"{order.doing}: naming it"
        named = dataclasses.replace(order.mark, state="Named").text if order.mark.order is not None else ""
        try:
            spec = specs.naming(order.blueprint, order.mark.name, order.identity, (halfmade.KEY, named))
            self._reconfigure(spec, doing, self._named)
        except faults.VSphereFault as error:
            if error.fault != "DuplicateName":
                raise
            raise errors.TargetExists(
                f"{order.doing}: meanwhile there is something of this name in {order.place.folder_path}",
                hint="restore it under another --name",
            ) from error

    def _named(self) -> bool:
        shown = properties.of(self._order.session, self._machine, ("name",), self._order.doing)
        return listings.unescaped(str(shown.get("name"))) == self._order.mark.name

    def _mark(self, text: str, what: str) -> None:
        option = vim.option.OptionValue(key=halfmade.KEY, value=text)
        spec = vim.vm.ConfigSpec(extraConfig=[option])
        self._reconfigure(spec, f"{self._order.doing}: {what}", lambda: self._setting(halfmade.KEY) == text)

    def _setting(self, key: str) -> str:
        shown = properties.of(self._order.session, self._machine, ("config.extraConfig",), self._order.doing)
        found = {str(one.key): str(one.value) for one in shown.get("config.extraConfig") or ()}
        return found.get(key, "")

    def _reconfigure(self, spec: Any, doing: str, done: Callable[[], bool]) -> None:
        machine = self._machine
        properties.change(self._order.session, doing, lambda: machine.ReconfigVM_Task(spec), done)

    def _belongings(self) -> None:
        self.notes.extend(belongings.give(self._order, self._machine))

    def start(self) -> None:
        """Switch it on, unless it is."""
        session, machine, doing = self._order.session, self._machine, f"{self._order.doing}: switching it on"

        def runs() -> bool:
            shown = properties.of(session, machine, ("runtime.powerState",), doing)
            return bool(shown.get("runtime.powerState") == "poweredOn")

        if not runs():
            properties.change(session, doing, machine.PowerOnVM_Task, runs)

    def release(self) -> None:
        """Take the mark off."""
        if self._order.mark.order is not None:
            self._mark("", "taking its mark off")

    # -- bad endings -------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Remove the half-made machine."""
        if self._done or not self._begun:
            return
        self._done = True
        order = self._order
        try:
            self._remove()
        finally:
            order.mark.at_work(begins=False)

    def _remove(self) -> None:
        order = self._order
        self._way.abort()
        try:
            for left in halfmade.leftovers(order.session, order.doing):
                # By its mark, not by what was remembered: an answer may have been lost on its way.
                if left.mark.id == order.mark.id:
                    halfmade.remove(order.session, left.machine, left.vmx, order.doing)
        except faults.Vanished:
            return
        except errors.SourceError as error:
            self.notes.append(
                f"{order.mark.temporary} is left, half-made: {error.message}; the next restore removes it"
            )
