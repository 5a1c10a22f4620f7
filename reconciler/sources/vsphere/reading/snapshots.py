"""Snapshots of ours: made so that somebody always knows of them, found by their mark, removed by id and nothing else.

The order that leaves none behind: the ledger notes it, the vCenter makes it, the ledger learns its name, it is removed,
the ledger forgets it. Where an answer was lost, the machine's own tree says what became of the question. A snapshot is
ours if its description carries our owner and id; its name alone says nothing, and its children are never touched.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from pyVmomi import vim

from reconciler.base import errors, meters
from reconciler.sources import machines
from reconciler.sources.vsphere.connections import faults, properties, sessions
from reconciler.sources.vsphere.inventory import lookups, marks

#: Pauses before a removal is tried again that somebody else's work kept from being done, in seconds.
PAUSES: Final = (0.5, 1.0, 2.0, 4.0)
#: Faults that pass: another task of the machine runs, or something else holds its files.
_BUSY: Final = frozenset(
    {
        "TaskInProgress", "OtherTaskInProgress", "ConcurrentAccess", "FileLocked", "ResourceInUse", "InvalidState",
        "HostCommunication", "HostNotReachable", "HostNotConnected", "Timedout", "RequestCanceled", "FileFault",
        "CannotAccessFile", "SystemError", "GenericVmConfigFault",
    }
)  # fmt: skip
#: Faults that say that the guest could not hold still.
_QUIESCING: Final = frozenset({"ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable"})
#: Pauses between looks for a snapshot whose task nobody knows, in seconds: it may be about to begin.
_GRACE: Final = (0.2, 0.4, 0.8)
#: Seconds that a task somebody else waits for is waited for here.
_SETTLING: Final = 900.0
_PROPERTIES: Final = ("snapshot",)


class NotQuiesced(errors.SourceError):
    """The policy requires that the guest holds still, and it does not."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One snapshot in a machine's tree."""

    #: Such as ``snapshot-58``.
    reference: str
    #: Of the snapshot that it was made on; None for a root.
    parent: str | None
    name: str
    description: str
    #: What the machine was doing: ``poweredOn``, ``poweredOff`` or ``suspended``.
    power: str
    quiesced: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """All snapshots of one machine."""

    nodes: tuple[Node, ...]
    #: The one that the machine runs on; None without snapshots.
    current: str | None

    def ours(self, id: str, owner: str) -> Node | None:
        """The snapshot with our id and owner."""
        for node in self.nodes:
            mark = marks.parse(node.description)
            if mark is not None and (mark.id, mark.owner) == (id, owner):
                return node
        return None

    def path(self, reference: str | None) -> tuple[str, ...]:
        """References from ``reference`` up to its root."""
        known = {node.reference: node for node in self.nodes}
        found: list[str] = []
        while reference in known and reference not in found:
            found.append(reference)
            reference = known[reference].parent
        return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """A snapshot that was made."""

    reference: str
    #: Whether the guest held still, as a code and a sentence: ``Quiesced``, ``NotQuiesced``, ``QuiesceFailed``,
    #: ``QuiesceNever`` or ``PoweredOff``.
    quiesced: machines.Found
    powered_off: bool
    #: The tree with it.
    tree: Tree


def tree(session: sessions.Session, reference: str, doing: str) -> Tree:
    """The snapshots of machine ``reference``. Raises ``SourceError``, ``Vanished`` where the machine is gone."""
    shown = properties.of(session, session.object(vim.VirtualMachine, reference), _PROPERTIES, doing).get("snapshot")
    if shown is None:
        return Tree(nodes=(), current=None)
    current = shown.currentSnapshot
    nodes = tuple(_nodes(shown.rootSnapshotList or (), None))
    return Tree(nodes=nodes, current=str(current._moId) if current is not None else None)


def _nodes(shown: Iterable[Any], parent: str | None) -> Iterable[Node]:
    for one in shown:
        node = Node(
            reference=str(one.snapshot._moId),
            parent=parent,
            name=str(one.name or ""),
            description=str(one.description or ""),
            power=str(one.state or ""),
            quiesced=bool(one.quiesced),
        )
        yield node
        yield from _nodes(one.childSnapshotList or (), node.reference)


# -- making ---------------------------------------------------------------------------------------------------------


def take(session: sessions.Session, noted: machines.Snapshot, quiesce: str, asked: machines.Asked) -> Taken:
    """Make it. ``quiesce``: ``Try``, ``Require`` or ``Never``.

    Raises ``SourceError`` or ``Cancelled``; then it is removed, or the ledger still knows it.
    """
    asked.ledger.intend(noted)
    try:
        return _taken(session, noted, quiesce, asked)
    except BaseException as error:
        give_up(session, noted, asked, error)
        raise


def give_up(
    session: sessions.Session, noted: machines.Snapshot, asked: machines.Asked, error: BaseException | None = None
) -> bool:
    """Remove it in whatever ending; whether it is gone. A removal that fails is told to the job's log and to
    ``error``, and leaves the note in the ledger, from which the next look at the world plans it again."""
    try:
        remove(session, noted, asked.owner, asked.log)
    except errors.HoldfastError as second:
        told = f"SnapshotLeft: {second}; it stays noted and is removed later"
        asked.log(told)
        if error is not None:
            error.add_note(told)
        return False
    asked.ledger.gone(noted.id)
    return True


def _taken(session: sessions.Session, noted: machines.Snapshot, quiesce: str, asked: machines.Asked) -> Taken:
    doing = f"VM {noted.machine_name}: snapshot"
    refused: str | None = None
    try:
        reference = _attempt(session, noted, doing, quiesce != "Never", asked)
    except faults.VSphereFault as error:
        if quiesce != "Try" or not quiescing(error):
            raise
        refused = error.message
        asked.log(f"QuiesceFailed: {refused}; the snapshot is made without")
        remove(session, noted, asked.owner, asked.log)
        reference = _attempt(session, noted, doing, False, asked)
    asked.ledger.made(noted.id, reference)
    found = tree(session, noted.place, doing)
    node = found.ours(noted.id, asked.owner)
    if node is None or node.reference != reference:
        raise errors.SourceChanged(f"{doing}: it was made and is not in the machine's tree", hint="see who removed it")
    off = node.power == "poweredOff"
    said = _outcome(session, noted, quiesce, refused, node, doing)
    if quiesce == "Require" and said.code not in ("Quiesced", "PoweredOff"):
        raise NotQuiesced(
            f"{doing}: {said.message}, and the policy requires it",
            hint="see VMware Tools in the guest, or quiesce: Try",
        )
    return Taken(reference=reference, quiesced=said, powered_off=off, tree=found)


def quiescing(error: faults.VSphereFault) -> bool:
    """Whether a snapshot failed because the guest could not hold still."""
    words = error.message.lower()
    return error.fault in _QUIESCING or "quiesc" in words or "vsssyncstart" in words


def _outcome(
    session: sessions.Session, noted: machines.Snapshot, quiesce: str, refused: str | None, node: Node, doing: str
) -> machines.Found:
    if node.power == "poweredOff":
        return machines.Found(code="PoweredOff", message="the machine was off, nothing had to hold still")
    if quiesce == "Never":
        return machines.Found(code="QuiesceNever", message="the guest was not asked to hold still")
    if refused is not None:
        return machines.Found(code="QuiesceFailed", message=f"the guest did not hold still: {refused}")
    tools = _tools(session, noted, doing)
    # Without its tools a guest is not asked, whatever the snapshot's flag says.
    if node.quiesced and tools in ("", "guestToolsRunning"):
        return machines.Found(code="Quiesced", message="the guest's file systems held still")
    return machines.Found(
        code="NotQuiesced", message=f"the guest did not hold still: VMware Tools: {tools or 'not known'}"
    )


def _tools(session: sessions.Session, noted: machines.Snapshot, doing: str) -> str:
    machine = session.object(vim.VirtualMachine, noted.place)
    return str(
        properties.of(session, machine, ("guest.toolsRunningStatus",), doing).get("guest.toolsRunningStatus", "")
    )


def _attempt(
    session: sessions.Session, noted: machines.Snapshot, doing: str, quiesce: bool, asked: machines.Asked
) -> str:
    """Reference of the snapshot. Raises ``SourceError`` or ``Cancelled``."""
    asked.meter.check()
    mark = marks.Mark(owner=asked.owner, id=noted.id, job=noted.job, made=asked.clock.now())
    machine = session.object(vim.VirtualMachine, noted.place)
    lost: errors.SourceError
    try:
        task = session.act(
            doing,
            lambda: machine.CreateSnapshot_Task(
                name=marks.name(noted.job), description=marks.describe(mark), memory=False, quiesce=quiesce
            ),
        )
        made = properties.wait(session, task, doing, asked.meter)
        if made is not None:
            return str(made._moId)
        lost = errors.SourceError(f"{doing}: the vCenter says that it is done, and not what it is called")
    except errors.SourceError as error:
        # A task that is gone has said nothing; any other fault is a clear no.
        if isinstance(error, faults.VSphereFault) and not isinstance(error, faults.Vanished):
            raise
        lost = error
    asked.log(f"{lost}; looking for the snapshot")
    for pause in (*_GRACE, None):
        found = _found(session, noted, asked.owner, doing)
        if found is not None:
            return found.reference
        if pause is not None:
            time.sleep(pause)
    raise lost


def _found(session: sessions.Session, noted: machines.Snapshot, owner: str, doing: str) -> Node | None:
    """Our snapshot, once nothing is under way that may still make or remove it."""
    settle(session, noted.place, doing)
    return tree(session, noted.place, doing).ours(noted.id, owner)


def settle(session: sessions.Session, reference: str, doing: str) -> None:
    """Wait until no task on the machine's snapshots runs any more. Raises ``SourceError``."""
    machine = session.object(vim.VirtualMachine, reference)
    until = time.monotonic() + _SETTLING
    pause = 0.1
    while _running(session, machine, doing):
        if time.monotonic() > until:
            raise errors.SourceError(f"{doing}: a snapshot task of the machine does not end", hint="see its task list")
        time.sleep(pause)
        pause = min(2.0, pause * 1.5)


def _running(session: sessions.Session, machine: Any, doing: str) -> bool:
    tasks = properties.of(session, machine, ("recentTask",), doing).get("recentTask") or ()
    for shown in properties.of_many(session, list(tasks), ("info.state", "info.descriptionId"), doing):
        about = str(shown.values.get("info.descriptionId", "snapshot")).lower()
        if "snapshot" in about and shown.values.get("info.state") in ("queued", "running"):
            return True
    return False


# -- removing -------------------------------------------------------------------------------------------------------


def remove(
    session: sessions.Session,
    noted: machines.Snapshot,
    owner: str,
    log: Callable[[str], None],
    stop: Callable[[], None] | None = None,
) -> bool:
    """Remove it, with patience where the machine is busy; False if it was not there. Raises ``SourceError``.

    ``stop`` is asked before each attempt and may raise: a removal that has begun is waited for.
    """
    doing = f"VM {noted.machine_name}: snapshot removal"
    begun = False
    for pause in (*PAUSES, None):
        if stop is not None:
            stop()
        # A question is repeated where the wire breaks: a vCenter that is down now is not waited for.
        if _gone(session, noted, owner, doing):
            return begun
        begun = True
        try:
            _remove(session, noted, owner, doing)
            if _gone(session, noted, owner, doing):
                return True
            problem = errors.SourceError(f"{doing}: the vCenter says that it is done, and it is still there")
        except errors.SourceError as error:
            if not isinstance(error, faults.Vanished) and not passing(error):
                raise
            problem = error
        if pause is None:
            raise problem
        log(f"{problem}; trying again in {pause:g} s")
        time.sleep(pause)
    raise AssertionError("unreachable")


def _remove(session: sessions.Session, noted: machines.Snapshot, owner: str, doing: str) -> None:
    node = _found(session, noted, owner, doing)
    if node is None:
        return
    snapshot = session.object(vim.vm.Snapshot, node.reference)
    task = session.act(doing, lambda: snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))
    properties.wait(session, task, doing)


def _gone(session: sessions.Session, noted: machines.Snapshot, owner: str, doing: str) -> bool:
    """Whether it is not there, or the machine itself does not exist any more."""
    try:
        return _found(session, noted, owner, doing) is None
    except faults.Vanished:
        return True


def passing(error: errors.SourceError) -> bool:
    """Whether trying again may help: what holds the machine up passes, or the wire broke."""
    return error.retryable and (not isinstance(error, faults.VSphereFault) or error.fault in _BUSY)


def remove_noted(
    session: sessions.Session, owner: str, snapshot: machines.Snapshot, meter: meters.Meter | None = None
) -> bool:
    """Remove a snapshot of ours whose job is dead; False where there is none. Raises ``SourceError`` or ``Cancelled``.

    The caller has made sure that nobody reads it any more. A machine that was registered anew has another place.
    """
    try:
        tree(session, snapshot.place, f"VM {snapshot.machine_name}: snapshot removal")
    except faults.Vanished:
        try:
            found = lookups.find(session, snapshot.machine, snapshot.machine_name)
        except faults.Vanished:
            return False
        snapshot = dataclasses.replace(snapshot, place=found.reference)
    return remove(session, snapshot, owner, lambda _line: None, meter.check if meter is not None else None)


def consolidate(session: sessions.Session, noted: machines.Snapshot, *, wanted: bool) -> machines.Found | None:
    """What is to be said of disks that still stand on files of snapshots that are gone; ``wanted``: consolidate them.

    Raises ``SourceError`` where that cannot be found out.
    """
    doing = f"VM {noted.machine_name}: consolidation"
    machine = session.object(vim.VirtualMachine, noted.place)
    if not needs_consolidation(session, machine, doing):
        return None
    said = f"VM {noted.machine_name}: the vCenter says that its disks need consolidation"
    if not wanted:
        return machines.Found(code="ConsolidationNeeded", message=f"{said}; consolidate: true does it after a backup")
    try:
        task = session.act(doing, machine.ConsolidateVMDisks_Task)
        properties.wait(session, task, doing)
        if not needs_consolidation(session, machine, doing):
            return machines.Found(code="Consolidated", message=f"VM {noted.machine_name}: its disks were consolidated")
    except errors.SourceError as error:
        said += f", and it failed: {error}"
    return machines.Found(code="ConsolidationNeeded", message=said)


def needs_consolidation(session: sessions.Session, machine: Any, doing: str) -> bool:
    """``runtime.consolidationNeeded``."""
    path = "runtime.consolidationNeeded"
    return bool(properties.of(session, machine, (path,), doing).get(path, False))
