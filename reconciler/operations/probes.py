"""Trying a policy's source: what it selects, and one machine frozen, read a little and let go, as a backup would.

Nobody is asked for anything that a backup does not need, and nothing is changed for good: no hook runs, change
tracking stays as it is, and the test snapshot is removed in every ending. It is not noted in any catalog: it carries
our mark, so that what a killed probe left is found by the next look at the vCenter and removed, while no loop takes it
for a leftover as long as it is being read.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

from reconciler.api import policies
from reconciler.base import clocks, disks, errors, files, meters, quantities
from reconciler.operations import holding, reservations, steps
from reconciler.sources import machines

#: Bytes read of each disk.
_BLOCK = 1 << 20
#: Names in one message.
_SHOWN = 5
#: The job that test snapshots are marked with.
JOB = "probe"


def harmless(policy: policies.BackupPolicy) -> policies.BackupPolicy:
    """The policy without what would change a machine for good, or tell anybody else."""
    source = policy.spec.source
    if source.vmware is not None:
        quiet = source.vmware.model_copy(update={"change_tracking": "AsIs", "consolidate": False})
        source = source.model_copy(update={"vmware": quiet})
    return policy.model_copy(update={"spec": policy.spec.model_copy(update={"source": source, "hooks": None})})


class _Notes:
    """What was made by this very probe, in memory. Implements ``machines.Ledger``."""

    def __init__(self) -> None:
        #: Ids of test snapshots that are not known to be gone, with the name of their machine.
        self.open: dict[str, str] = {}

    def intend(self, snapshot: machines.Snapshot) -> None:
        """It is about to be made."""
        self.open[snapshot.id] = snapshot.machine_name

    def made(self, id: str, reference: str) -> None:
        """It was made."""

    def read_by(self, id: str, process: int) -> None:
        """Who reads it ends with us."""

    def gone(self, id: str) -> None:
        """It was never made, or was removed."""
        self.open.pop(id, None)


def selection(taken: steps.Steps, subject: str, source: machines.Source) -> machines.Inventory | None:
    """Resolve a selection; None where it finds nothing to go on with."""
    found: list[machines.Inventory] = []

    def work() -> steps.Said:
        inventory = source.inventory()
        found.append(inventory)
        return _selected(inventory)

    return found[0] if taken.take(subject, "selection", work) and found else None


def _selected(inventory: machines.Inventory) -> steps.Said:
    if inventory.unreachable is not None:
        return steps.failed(inventory.unreachable.message)
    notes = [note.message for note in inventory.notes]
    if not inventory.machines:
        return steps.failed("; ".join(["it selects no machine", *notes]), "correct the selection")
    message = _count(inventory.machines)
    problems = [one for one in inventory.machines if one.problem is not None]
    told = [f"{one.name}: {one.problem.message}" for one in problems if one.problem is not None]
    if len(told) > _SHOWN:
        told = [*told[:_SHOWN], f"and {len(told) - _SHOWN} more"]
    text = "; ".join([message, *notes, *told])
    if len(problems) == len(inventory.machines):
        return steps.failed(text, "none of them can be backed up as it is")
    return (
        steps.warned(text, "these are left out, or not backed up as they are") if notes or told else steps.passed(text)
    )


def _count(found: tuple[machines.Machine, ...]) -> str:
    names = ", ".join(one.name for one in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} machine{'s' if len(found) != 1 else ''}: {names}{more}"


def choose(inventory: machines.Inventory, name: str | None) -> machines.Machine:
    """The machine that is tried: ``name``, else the first that can be backed up. Raises ``NotFound``."""
    if name is None:
        return next(one for one in inventory.machines if one.problem is None)
    found = [one for one in inventory.machines if name in (one.name, one.id)]
    if not found:
        raise errors.NotFound(f"it does not select {name}", hint=f"it selects {_count(inventory.machines)}")
    return found[0]


def trial(
    taken: steps.Steps,
    subject: str,
    source: Callable[[], machines.Source],
    chosen: machines.Machine,
    owner: str,
    meter: meters.Meter,
    clock: clocks.Clock,
    *,
    snapshots: bool,
) -> int | None:
    """Freeze a machine, read a block of each of its disks, let it go; the bytes of its disks, None where it failed.

    ``source`` opens the source anew, so that it is asked and not remembered; ``snapshots``: whether it makes any.
    Raises ``Cancelled``, with everything undone.
    """
    said: list[str] = []
    notes = _Notes()
    asked = machines.Asked(owner=owner, job=JOB, ledger=notes, meter=meter, log=said.append, clock=clock)
    frozen: list[machines.Reading] = []

    def freeze() -> steps.Said:
        frozen.append(source().freeze(chosen.id, asked))
        made = next((line for line in said if line.startswith("snapshot ")), "opened")
        return steps.passed(f"{chosen.name}: {made}")

    try:
        if not taken.take(subject, "snapshot" if snapshots else "open", freeze):
            return None
        _read_all(taken, subject, frozen[0], chosen, said)
        taken.take(subject, "consistency", lambda: _judged(frozen[0]))
        return sum(disk.size for disk in frozen[0].disks)
    finally:
        # A cancel that is heard while it is undone must not keep it from being undone.
        if frozen:
            taken.take(subject, "removal" if snapshots else "close", lambda: _closed(frozen[0], said, notes))
        elif notes.open:
            taken.note(subject, "left behind", _left(notes, said))


def _read_all(
    taken: steps.Steps, subject: str, reading: machines.Reading, chosen: machines.Machine, said: list[str]
) -> None:
    for disk in reading.disks:
        taken.take(subject, f"read {disk.name}", lambda disk=disk: _read(disk, said))  # type: ignore[misc]
    for lost in reading.missing:
        name = next((disk for disk in chosen.disks if disk in lost.message), lost.code)
        taken.note(subject, f"read {name}", steps.failed(lost.message, "its images will be Partial"))
    if not reading.disks and not reading.missing:
        taken.note(subject, "read", steps.failed("it has no disks"))


def _read(disk: disks.Disk, said: list[str]) -> steps.Said:
    length = min(_BLOCK, disk.size)
    try:
        disk.pread(0, length)
    except OSError as error:
        raise errors.SourceError(f"{disk.name}: {error.strerror}") from error
    how = [line.partition(f"{disk.name}: ")[2] for line in said if f"{disk.name}: " in line]
    # Which ways were given up for this one says also which one was taken.
    how = [line for line in how if ", because " in line] or how
    size = f"{quantities.show_size(length)} of {quantities.show_size(disk.size)}"
    return steps.passed("; ".join([size, *how]))


def _judged(reading: machines.Reading) -> steps.Said:
    verdict = reading.finish()
    told = "; ".join(one.message for one in (*verdict.failed, *verdict.warnings))
    text = f"{verdict.consistency}: {told}" if told else verdict.consistency
    if verdict.failed:
        return steps.failed(text, "its images will be Partial")
    return steps.warned(text) if verdict.warnings else steps.passed(text)


def _closed(reading: machines.Reading, said: list[str], notes: _Notes) -> steps.Said:
    before = len(said)
    reading.close()
    if notes.open:
        return _left(notes, said)
    told = "; ".join(said[before:])
    return steps.passed(told or "let go")


def _left(notes: _Notes, said: list[str]) -> steps.Said:
    names = ", ".join(f"{id} of {name}" for id, name in notes.open.items())
    told = "; ".join(line for line in said if any(id in line for id in notes.open)) or (said[-1] if said else "")
    return steps.failed(
        f"the test snapshot {names} may still be there: {told}",
        "the loop removes what its catalog's mark is on; without a catalog remove it in the vCenter",
    )


def area(wanted: holding.Area, need: int | None) -> steps.Said:
    """Whether a holding area is there, may be written to and has room; ``need``: bytes of one machine, where known."""
    with reservations.told(wanted.path):
        writable(wanted.path)
        free = reservations.free(wanted.path)
    size = f"{quantities.show_size(free)} free, maxSize {quantities.show_size(wanted.max_size)}"
    text = f"{wanted.path}: {size}"
    if need is not None and need > min(wanted.max_size, free):
        return steps.warned(
            f"{text}; the machine has {quantities.show_size(need)} of disks",
            "if they are full of data, its backups wait for room for ever: raise maxSize, or free space",
        )
    if free < wanted.max_size:
        return steps.warned(text, "less is free than the policy may take: machines wait for each other")
    return steps.passed(text)


def writable(folder: Path) -> None:
    """Make a file in ``folder``, write to it, remove it. Raises ``OSError``."""
    trial = folder / f"{files.TEMPORARY_PREFIX}probe-{secrets.token_hex(4)}"
    try:
        trial.write_bytes(b"holdfast probe\n")
    finally:
        with contextlib.suppress(FileNotFoundError):
            trial.unlink()
