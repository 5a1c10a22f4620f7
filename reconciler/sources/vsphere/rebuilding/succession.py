"""The machine that a restore takes the place of: left whole, switched off, under another name.

Nothing of it is removed. Where the new machine takes over its identity, the old one gets another instance UUID, because
a vCenter has each of them once. Every step can be taken back, and is if a later one fails.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from pyVmomi import vim

from reconciler.base import crashes, errors
from reconciler.sources.vsphere.connections import faults, properties, sessions
from reconciler.sources.vsphere.inventory import listings
from reconciler.sources.vsphere.rebuilding import halfmade

_PATHS = ("name", "config.instanceUuid", "config.template")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Old:
    """A machine that is there."""

    machine: Any
    #: As people write it.
    name: str
    #: As the vCenter writes it.
    raw_name: str
    instance_uuid: str


def named(session: sessions.Session, folder: Any, name: str, doing: str) -> Old | None:
    """The machine with this name in a folder. Raises ``SourceError``."""
    return next((old for old in _within(session, folder, doing) if old.name == name), None)


def with_uuid(session: sessions.Session, instance_uuid: str, doing: str) -> Old | None:
    """The machine that has an instance UUID, anywhere in the vCenter. Raises ``SourceError``."""
    if not instance_uuid:
        return None
    search = session.content.searchIndex
    found = session.read(doing, lambda: search.FindByUuid(uuid=instance_uuid, vmSearch=True, instanceUuid=True))
    if found is None:
        return None
    return next((_old(shown) for shown in properties.of_many(session, [found], _PATHS, doing)), None)


def _within(session: sessions.Session, folder: Any, doing: str) -> list[Old]:
    children = properties.of(session, folder, ("childEntity",), doing).get("childEntity") or ()
    machines = [one for one in children if isinstance(one, vim.VirtualMachine)]
    return [_old(shown) for shown in properties.of_many(session, machines, _PATHS, doing)]


def _old(shown: properties.Shown) -> Old:
    return Old(
        machine=shown.object,
        name=listings.unescaped(str(shown.values.get("name", ""))),
        raw_name=str(shown.values.get("name", "")),
        instance_uuid=str(shown.values.get("config.instanceUuid") or ""),
    )


def replaced_name(name: str, taken: Sequence[str], now: dt.datetime) -> str:
    """``NAME.replaced-2026-11-23``, with a number where that is taken."""
    number = 1
    while True:
        suffix = f".replaced-{now:%Y-%m-%d}" + (f"-{number}" if number > 1 else "")
        chosen = name[: halfmade.LONGEST - len(suffix)] + suffix
        if chosen not in taken:
            return chosen
        number += 1


class Succession:
    """Taking the place of one machine."""

    def __init__(self, session: sessions.Session, old: Old, folder: Any, now: dt.datetime, doing: str) -> None:
        self._session, self._old, self._folder, self._now = session, old, folder, now
        self._doing = f"{doing}: replacing {old.name}"
        self._undo: list[tuple[str, Callable[[], Any], Callable[[], bool]]] = []
        #: What the old machine is called from now on.
        self.name = ""

    def step_aside(self, *, give_up_identity: bool) -> None:
        """Switch the old machine off and rename it. Raises ``SourceError``: ``take_back`` then."""
        old, machine = self._old, self._old.machine
        self._require_in_place()
        if not self._is("poweredOff"):
            self._switch_off()
            self._require_in_place()
        taken = [one.name for one in _within(self._session, self._folder, self._doing)]
        self.name = replaced_name(old.name, taken, self._now)
        change = vim.vm.ConfigSpec(name=listings.escaped(self.name))
        back = vim.vm.ConfigSpec(name=old.raw_name)
        if give_up_identity:
            # The bios uuid stays: the guest of the old machine would notice, and licences with it.
            change.instanceUuid, back.instanceUuid = str(uuid.uuid4()), old.instance_uuid
        self._undo.append(("renamed back", lambda: machine.ReconfigVM_Task(back), lambda: self._called(old.name)))
        self._task("renaming it", lambda: machine.ReconfigVM_Task(change), lambda: self._called(self.name))
        crashes.passing("machine.old-renamed")

    def _require_in_place(self) -> None:
        """Hours have passed since it was found. Raises ``TargetExists`` where somebody else took it out of the way."""
        name = listings.unescaped(str(self._shown("name")))
        if name != self._old.name:
            raise errors.TargetExists(
                f"{self._doing}: meanwhile it was renamed to {name}", hint="see what is there, and restore again"
            )

    def _switch_off(self) -> None:
        machine = self._old.machine
        self._undo.append(("switched on", machine.PowerOnVM_Task, self._need_not_run))
        try:
            self._task("switching it off", machine.PowerOffVM_Task, lambda: self._is("poweredOff"))
        except faults.VSphereFault as error:
            if error.fault != "InvalidPowerState" or not self._is("poweredOff"):
                raise
            # Somebody else was quicker, and knows why.
            self._undo.pop()

    def _need_not_run(self) -> bool:
        """Whether it runs, or has a name that another restore gave it, which took its place."""
        return self._is("poweredOn") or not (self._called(self._old.name) or self._called(self.name))

    def _task(self, what: str, call: Callable[[], Any], done: Callable[[], bool]) -> None:
        properties.change(self._session, f"{self._doing}: {what}", call, done)

    def _is(self, power: str) -> bool:
        return bool(self._shown("runtime.powerState") == power)

    def _called(self, name: str) -> bool:
        return listings.unescaped(str(self._shown("name"))) == name

    def _shown(self, path: str) -> Any:
        return properties.of(self._session, self._old.machine, (path,), self._doing).get(path)

    def take_back(self) -> list[str]:
        """Undo what was done, the last first; a sentence on everything that could not be undone."""
        said = []
        while self._undo:
            what, call, done = self._undo.pop()
            try:
                # A step that failed may not have been made.
                if not done():
                    self._task(f"having it {what}", call, done)
            except errors.SourceError as error:
                said.append(f"the old machine {self._old.name} was not {what}: {error.message}")
        return said
