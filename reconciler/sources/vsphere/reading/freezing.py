"""Freezing a virtual machine: checks, change tracking, the before hook, the snapshot, the disks.

What was begun is undone in every ending, in reverse order, and a step that fails keeps none of the others from being
made: disks closed, snapshot removed, after hook run. ``machines.VMware`` calls ``freeze``.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from reconciler.api import vcenters
from reconciler.base import disks, errors, quantities
from reconciler.sources import hooks, machines
from reconciler.sources.vsphere.connections import faults, properties, sessions
from reconciler.sources.vsphere.inventory import devices, judgements, lookups
from reconciler.sources.vsphere.reading import guards, parts, readings, scenes, snapshots, spaces, tracking, watches

_PATHS: Final = (
    "config.template", "config.hardware.device", "config.files", "runtime.consolidationNeeded",
    "runtime.connectionState", "datastore", *tracking.PATHS,
)  # fmt: skip


class NotReadable(errors.SourceError):
    """The machine is in a state in which it cannot be frozen."""


def freeze(
    session: sessions.Session,
    wanted: vcenters.VMware,
    machine: lookups.Machine,
    commands: hooks.Hooks | None,
    asked: machines.Asked,
) -> readings.VmReading:
    """Freeze a machine and open its disks. Raises ``SourceError``, ``HookFailed`` or ``Cancelled``; then nothing of it
    is left, or the ledger knows what."""
    undo = contextlib.ExitStack()
    try:
        undo.enter_context(session.held())
        return _Freeze(session, wanted, machine, asked, undo).run(commands)
    except BaseException as error:
        try:
            undo.close()
        except errors.HookFailed as second:
            asked.log(str(second))
            error.add_note(str(second))
        raise


class _Freeze:
    """One freeze while it is made."""

    def __init__(
        self,
        session: sessions.Session,
        wanted: vcenters.VMware,
        machine: lookups.Machine,
        asked: machines.Asked,
        undo: contextlib.ExitStack,
    ) -> None:
        self._session = session
        self._wanted = wanted
        self._machine = machine
        self._asked = asked
        self._undo = undo
        self._words = f"VM {machine.name}"
        self._notes: list[machines.Found] = []

    def run(self, commands: hooks.Hooks | None) -> readings.VmReading:
        """The reading. Raises ``SourceError``, ``HookFailed`` or ``Cancelled``."""
        session, machine, asked = self._session, self._machine, self._asked
        shown = properties.of(session, machine.object, _PATHS, f"{self._words}: checks")
        choice = self._checked(shown)
        stores = spaces.look(session, shown.get("datastore") or (), f"{self._words}: checks")
        growing = self._spacious(shown, stores)
        self._look(shown)
        hooked = self._hook(commands, choice)
        noted = self._noted()
        since = time.monotonic()
        taken = self._taken(noted)
        opened: dict[str, parts.Part] = {}
        removal = _Removal(session, noted, asked, consolidate=self._wanted.consolidate)
        self._undo.callback(removal)
        guard = guards.Guard()
        closing = threading.Lock()

        def close() -> None:
            # Whoever comes second waits: the snapshot goes only after its readers.
            with closing, _told(asked.log):
                disks.close_all([part.disk for part in opened.values()])

        def end(_found: errors.HoldfastError) -> None:
            close()
            removal()

        watch = watches.Watch(
            session, growing, guard, asked.meter, words=self._words, found=end, log=asked.log, since=since
        )
        self._undo.callback(watch.end)
        self._undo.callback(close)
        scene = scenes.set_up(
            session, self._wanted, machine, asked, noted, taken, stores, hooked=hooked, notes=tuple(self._notes)
        )
        missing = parts.open_all(scene, guard, opened)
        return readings.VmReading(scene, guard, opened, missing, self._undo)

    def _checked(self, shown: Mapping[str, Any]) -> judgements.Choice:
        """What is to be read. Raises ``SourceError``."""
        state = str(shown.get("runtime.connectionState") or "connected")
        if state != "connected":
            raise NotReadable(f"{self._words}: it is {state}", hint="look at it in the vCenter")
        if shown.get("config.template"):
            raise NotReadable(f"{self._words}: it is a template", hint="templates are not backed up")
        listed = shown.get("config.hardware.device")
        if listed is None:
            raise NotReadable(f"{self._words}: the vCenter shows no devices", hint="the user needs System.Read on it")
        choice = judgements.choose(self._machine.name, devices.disks(listed), self._wanted)
        if not choice.frozen and not choice.raw:
            unread = "; ".join(f"{one.disk.label} {one.why}" for one in choice.unread) or "it has none that are wanted"
            raise NotReadable(f"{self._words}: no disk can be read: {unread}", hint="correct excludeDisks and rdm")
        return choice

    def _spacious(self, shown: Mapping[str, Any], stores: Sequence[spaces.Datastore]) -> list[Any]:
        """The datastores that a snapshot grows on. Raises ``DatastoreFull``."""
        listed = devices.disks(shown.get("config.hardware.device") or ())
        files = shown.get("config.files")
        names = {disk.datastore for disk in listed if not disk.independent}
        names |= {
            devices.datastore(str(getattr(files, key, None) or "")) for key in ("vmPathName", "snapshotDirectory")
        }
        growing = [one for one in stores if one.name in names]
        least = self._session.spec.datastore_free_space
        spaces.require(growing, quantities.parse_percent(least), least, f"{self._words}: no snapshot is made")
        return [one.object for one in growing]

    def _look(self, shown: Mapping[str, Any]) -> None:
        """Notes, and change tracking, which takes effect with the snapshot."""
        if shown.get("runtime.consolidationNeeded"):
            told = f"{self._words}: the vCenter says that its disks need consolidation"
            self._notes.append(machines.Found(code="ConsolidationNeeded", message=told))
        if self._wanted.change_tracking != "Enable":
            return
        tracked = tracking.enable(self._session, self._machine.object, self._machine.name, shown, self._asked.meter)
        if tracked is not None:
            self._asked.log(f"{tracked.code}: {tracked.message}")
            if tracked.code != "TrackingEnabled":
                self._notes.append(tracked)

    def _hook(self, commands: hooks.Hooks | None, choice: judgements.Choice) -> bool:
        """Run the before hook; the after hook runs in every ending. Whether there was one. Raises ``HookFailed``."""
        if commands is None:
            return False
        names = [disk.label for disk in (*choice.frozen, *(disk for disk, _ in choice.raw))]
        if after := commands.after:
            self._undo.callback(hooks.run, "after", after, commands.timeout, machine=self._machine.name, disks=names)
        if not commands.before:
            return False
        hooks.run("before", commands.before, commands.timeout, machine=self._machine.name, disks=names)
        return True

    def _noted(self) -> machines.Snapshot:
        return machines.Snapshot(
            id=str(uuid.uuid4()),
            vcenter=self._session.name,
            machine=self._machine.id,
            machine_name=self._machine.name,
            place=self._machine.reference,
            job=self._asked.job,
        )

    def _taken(self, noted: machines.Snapshot) -> snapshots.Taken:
        taken = snapshots.take(self._session, noted, self._wanted.quiesce, self._asked)
        self._asked.log(f"snapshot {taken.reference}: {taken.quiesced.code}: {taken.quiesced.message}")
        if taken.quiesced.code in ("NotQuiesced", "QuiesceFailed"):
            told = f"{self._words}: {taken.quiesced.message}"
            self._notes.append(machines.Found(code=taken.quiesced.code, message=told))
        return taken


class _Removal:
    """The end of a snapshot: by the reading's own end, or by the watch before it. Done once."""

    def __init__(
        self, session: sessions.Session, noted: machines.Snapshot, asked: machines.Asked, *, consolidate: bool
    ) -> None:
        self._session = session
        self._noted = noted
        self._asked = asked
        self._consolidate = consolidate
        self._lock = threading.Lock()
        self._gone = False

    def __call__(self) -> None:
        """Remove it if it is still there; a failure is told to the job's log, and the ledger keeps it."""
        with self._lock:
            if self._gone:
                return
            self._gone = snapshots.give_up(self._session, self._noted, self._asked)
            if self._gone:
                with _told(self._asked.log):
                    self._consolidated()

    def _consolidated(self) -> None:
        with contextlib.suppress(faults.Vanished):
            found = snapshots.consolidate(self._session, self._noted, wanted=self._consolidate)
            if found is not None:
                self._asked.log(f"{found.code}: {found.message}")


@contextlib.contextmanager
def _told(log: Callable[[str], None]) -> Iterator[None]:
    """A step of the end: what goes wrong in it is told, and keeps no other step from being made."""
    try:
        yield
    except (errors.HoldfastError, OSError) as error:
        log(f"{type(error).__name__}: {error}")
