"""Restore: a stored image becomes disks somewhere else, every byte of them proven.

``prepare`` decides everything and writes nothing, so a dry run is a plan that is not carried out; ``restore`` does it.
Both take a plain ``Order`` and an opened ``StoredImage``, so it is the same by command, by a ``Restore`` of the
manifests, with a catalog and with nothing but a unit's folder. A disk takes its final name only once all disks of the
restore are proven. A restore that was killed and is begun again with the same order goes on with what it finds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from reconciler.base import allocations, digests, errors, extents, meters, quantities
from reconciler.operations import proofs, salvages, transfers
from reconciler.sources import targets
from reconciler.storage import opening, units

#: Formats a disk may be restored to.
FORMATS: Final = ("raw", "qcow2", "vmdk")
#: Disks of one restore that are written at once.
_AT_ONCE: Final = 2
#: What the tables of an image take beside its data, as a share of it, and at least; those of a small disk, even if data
#: lies all over it, take no more than an empty image's and such a share of the disk.
_TABLES: Final = 4096
_TABLES_LEAST: Final = 4 << 20
_TABLES_EMPTY: Final = 512 << 10


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is asked for."""

    #: A folder for the disks, made where it is missing, or a block device for one disk.
    to: Path
    #: Names of disks, all where it is empty.
    disks: Sequence[str] = ()
    #: One of ``FORMATS``.
    format: str = "raw"
    #: One of ``targets.SUBFORMATS``; the first by default.
    subformat: str | None = None
    #: Whether what is there may be replaced.
    force: bool = False
    #: Whether every block is read back, and not a sample.
    read_back: bool = False
    #: Folders of units: nothing is restored into them, and no device under them may be written.
    units: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlannedDisk:
    """One disk and where it goes."""

    record: units.DiskRecord
    path: Path
    #: What it is, so that only another attempt at the same goes on with it.
    identity: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RestorePlan:
    """What a restore would do, before a byte is written."""

    image: str
    format: str
    subformat: str | None
    folder: Path
    force: bool
    #: Whether the one disk goes onto a block device.
    device: bool
    disks: tuple[PlannedDisk, ...]
    #: Whether every block is read back, and not a sample.
    read_back: bool = False
    #: Bytes of data to be written at most; None where the data was not looked at.
    bytes: int | None = None
    #: Bytes of space that the target needs at most, and has; None where that cannot be told.
    needed: int | None = None
    free: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """One restored disk."""

    name: str
    path: Path
    size: int
    #: Bytes that were written.
    written: int
    #: Bytes that an earlier attempt had written.
    resumed: int
    #: Bytes that were read back from the device.
    read_back: int
    #: Of what was written.
    digest: str
    #: Whether that is what the image holds.
    verified: bool
    notes: tuple[str, ...] = ()
    #: Ranges that no copy could give, of an image that is salvaged; zeros were put there.
    missing: extents.Extents = ()


def prepare(stored: units.StoredImage, order: Order) -> RestorePlan:
    """Choose disks and paths, and judge the space. Raises ``UsageError`` for an order that contradicts itself,
    ``NotFound`` for a disk the image lacks, ``TargetExists`` where something would be overwritten, ``TargetError``
    where the disks cannot fit."""
    plan = _chosen(stored.label, order)
    data = {disk.record.name: _data(stored, disk.record.name) for disk in plan.disks}
    plan = dataclasses.replace(plan, bytes=sum(data.values()))
    return plan if plan.device else _roomy(plan, data)


def planned(
    label: units.ImageLabel,
    folder: Path,
    paths: Sequence[tuple[units.DiskRecord, Path]],
    *,
    force: bool,
    read_back: bool,
) -> RestorePlan:
    """The plan for raw disks whose names were decided elsewhere."""
    disks = tuple(_planned(label, record, path, "raw", None) for record, path in paths)
    return RestorePlan(
        image=label.id, format="raw", subformat=None, folder=folder, force=force, device=False, disks=disks,
        read_back=read_back,
    )  # fmt: skip


def _chosen(label: units.ImageLabel, order: Order) -> RestorePlan:
    subformat = _subformat(order)
    wanted = list(dict.fromkeys(order.disks)) or [record.name for record in label.disks]
    by_name = {record.name: record for record in label.disks}
    for name in wanted:
        if name not in by_name:
            raise errors.NotFound(f"image {label.id} has no disk {name}", hint=f"it has {', '.join(by_name)}")
    if targets.is_device(order.to):
        return _onto_device(label, order, [by_name[name] for name in wanted])
    if order.to.exists() and not order.to.is_dir():
        raise errors.UsageError(f"{order.to} is neither a folder nor a block device")
    opening.require_outside(order.to, order.units)
    paths = targets.restored_names([record.name for record in label.disks], order.format, subformat)
    disks = [_planned(label, by_name[name], order.to / paths[name], order.format, subformat) for name in wanted]
    for disk in disks:
        blocking = None if order.force else targets.taken(disk.path, subformat, disk.identity)
        if blocking is not None:
            raise errors.TargetExists(
                f"{blocking} exists", hint="restore to another folder, or overwrite it with --force"
            )
    return RestorePlan(
        image=label.id, format=order.format, subformat=subformat, folder=order.to, force=order.force, device=False,
        disks=tuple(disks), read_back=order.read_back,
    )  # fmt: skip


def _subformat(order: Order) -> str | None:
    if order.format not in FORMATS:
        raise errors.UsageError(f"{order.format} is not a format", hint=f"choose one of {', '.join(FORMATS)}")
    known = targets.SUBFORMATS.get(order.format, ())
    if order.subformat is not None and order.subformat not in known:
        raise errors.UsageError(
            f"{order.format} has no kind {order.subformat}",
            hint=f"choose one of {', '.join(known)}" if known else "only vmdk has kinds",
        )
    return order.subformat or next(iter(known), None)


def _planned(
    label: units.ImageLabel, record: units.DiskRecord, path: Path, format: str, subformat: str | None
) -> PlannedDisk:
    identity = json.dumps([label.id, record.name, record.size, record.digest, format, subformat])
    return PlannedDisk(record=record, path=path, identity=identity)


def _onto_device(label: units.ImageLabel, order: Order, records: Sequence[units.DiskRecord]) -> RestorePlan:
    if len(records) != 1:
        raise errors.UsageError(
            f"{order.to} takes one disk, and {len(records)} are asked for",
            hint=f"choose one by --disk: {', '.join(record.name for record in records)}",
        )
    if order.format != "raw":
        raise errors.UsageError(f"{order.to} takes the plain bytes of a disk", hint="leave out --format")
    size = records[0].size
    whole = targets.check_device(order.to, size, order.units)
    if not order.force:
        raise errors.TargetExists(f"{order.to} is a device, and what it holds is lost", hint="say so by --force")
    disk = _planned(label, records[0], order.to, "raw", None)
    return RestorePlan(
        image=label.id, format="raw", subformat=None, folder=order.to, force=True, device=True, disks=(disk,),
        needed=size, free=whole, read_back=order.read_back,
    )  # fmt: skip


def _data(stored: units.StoredImage, name: str) -> int:
    """Bytes of the blocks of a disk that are not zero."""
    with contextlib.closing(stored.disk(name)) as disk:
        return extents.total(disk.extents())


def _roomy(plan: RestorePlan, data: dict[str, int]) -> RestorePlan:
    """The plan with the space that it needs and finds. Raises ``TargetError`` where that is too little."""
    place = plan.folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        space = os.statvfs(place)
    except OSError:
        return plan
    free = space.f_bavail * space.f_frsize
    if plan.subformat == "streamOptimized":
        return dataclasses.replace(plan, free=free)  # packed, nobody knows how small
    needed = 0
    for disk in plan.disks:
        size = data[disk.record.name]
        needed += size
        if plan.format != "raw" and plan.subformat != "flat":
            needed += max(size // _TABLES, min(_TABLES_LEAST, _TABLES_EMPTY + disk.record.size // _TABLES))
    needed = max(needed - sum(targets.reusable(disk.path, plan.subformat) for disk in plan.disks), 0)
    if needed > free:
        show = quantities.show_size
        raise errors.TargetError(
            f"{plan.folder}: the disks need up to {show(needed)}, and {show(free)} are free: "
            f"{show(needed - free)} ({needed - free} bytes) are missing",
            hint="free space, or restore to another folder",
        )
    return dataclasses.replace(plan, needed=needed, free=free)


def restore(
    plan: RestorePlan,
    stored: units.StoredImage,
    meter: meters.Meter,
    log: Callable[[str], None] = lambda _line: None,
) -> tuple[Restored, ...]:
    """Write, read back and prove every disk of ``plan``, and only then name them, in order.

    ``log`` is told what somebody may want to read later. Raises ``ImageDamaged``, ``TargetError``, ``TargetExists``,
    ``Cancelled``, ``HoldfastError``: then no file has a final name that was not proven, and nothing else is left, but
    for a device, which holds a part.
    """
    if not plan.device:
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.TargetError(f"{plan.folder}: {error.strerror}", hint="check the folder above it") from error
    meter.add(total=sum(disk.record.size for disk in plan.disks), streams=min(_AT_ONCE, len(plan.disks)))
    opened: list[targets.Target] = []
    # One disk that fails ends the others.
    together = _Together(meter)
    try:
        for disk in plan.disks:
            opened.append(_open(plan, disk))
        with (
            allocations.kept(),
            concurrent.futures.ThreadPoolExecutor(transfers.WORKERS, "restore") as workers,
            concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "disk") as threads,
        ):
            jobs = [
                threads.submit(together.run, lambda one=disk, target=target: _restore(  # type: ignore[misc]
                    plan, one, stored, target, together.meter, workers
                ))
                for disk, target in zip(plan.disks, opened, strict=True)
            ]  # fmt: skip
            concurrent.futures.wait(jobs)
        together.check()
        done = tuple(job.result() for job in jobs)
        meter.check()
        for target in opened:
            target.finish()
    except errors.HoldfastError as error:
        if plan.device and opened:
            error.hint = f"{plan.folder} holds a part of the disk; {error.hint or 'restore again'}"
        raise
    finally:
        with contextlib.ExitStack() as stack:
            for target in opened:
                stack.callback(target.abort)
    for note in (note for one in done for note in one.notes):
        log(note)
    return done


class _Together:
    """Disks that are restored together: the first one that fails is the reason, and stops the others."""

    def __init__(self, meter: meters.Meter) -> None:
        self.meter = meter.branch()
        self._first: BaseException | None = None

    def run(self, work: Callable[[], Restored]) -> Restored:
        try:
            return work()
        except BaseException as error:
            self._first = self._first or error
            self.meter.cancel()
            raise

    def check(self) -> None:
        if self._first is not None:
            raise self._first


def _open(plan: RestorePlan, disk: PlannedDisk) -> targets.Target:
    if plan.device:
        return targets.open_device(disk.path, disk.record.size)
    return targets.open_target(
        plan.format,
        disk.path,
        disk.record.size,
        subformat=plan.subformat,
        force=plan.force,
        identity=disk.identity,
    )


def _restore(
    plan: RestorePlan,
    planned_disk: PlannedDisk,
    stored: units.StoredImage,
    target: targets.Target,
    meter: meters.Meter,
    workers: concurrent.futures.Executor,
) -> Restored:
    """Write and prove one disk; it has no name yet."""
    record = planned_disk.record
    salvaged = stored if isinstance(stored, salvages.SalvagedImage) else None
    # Of one that is salvaged the list follows what is found missing while it is read.
    block_digests = stored.block_digests(record.name) if salvaged is None else salvaged.digests(record.name)
    proving = proofs.proof(target, record.size, block_digests, meter, whole=plan.read_back)
    with contextlib.closing(proving) as proof:
        with contextlib.closing(stored.disk(record.name)) as disk:
            moved = transfers.Transfer(disk, block_digests, target, proof, meter, workers).run()
        found = proof.finish()
    missing = () if salvaged is None else salvaged.missing.get(record.name, ())
    wanted = digests.disk_digest(block_digests) if missing else record.digest
    if found != wanted:
        raise errors.ImageDamaged(
            f"{target.path}: what was written has digest {found}, disk {record.name} of {plan.image} has {wanted}",
            hint="check the device under the target, then restore again",
        )
    return Restored(
        name=record.name, path=target.path, size=record.size, written=moved.written, resumed=moved.resumed,
        read_back=proof.read, digest=found, verified=not missing, notes=tuple(target.notes), missing=missing,
    )  # fmt: skip
