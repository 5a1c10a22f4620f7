"""Backup: one frozen reading of one machine becomes one image on one storage unit.

The order that makes a crash harmless: freeze, a Writing row in the catalog, bytes on the unit, the unit's atomic
commit, then the catalog. What a crash leaves between the last two is adopted by ``recovery``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import secrets
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Final

from reconciler.api import policies, vcenters
from reconciler.base import crashes, errors, extents, masks, quantities, times
from reconciler.catalog import images, readings
from reconciler.jobs import engines
from reconciler.operations import (
    changes,
    fileindexing,
    filelessons,
    guestviews,
    holding,
    ledgers,
    parents,
    phases,
    reservations,
    sites,
)
from reconciler.sources import machines, opening
from reconciler.storage import units

#: How often one job freezes its machine at most, where others take the room in a holding area that it waited for.
_FREEZES: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BackupOrder:
    """Everything decided about one backup before it begins."""

    client_id: str
    client_name: str
    client_slug: str
    policy: policies.BackupPolicy
    schedule: str
    lifecycle: str
    #: The lifecycle's spec at this revision, as JSON: fixes the copies the image is owed.
    owed: Mapping[str, object]
    #: Name of the lifecycle's Backup operation.
    operation: str
    unit: str
    type: str
    slot: dt.datetime
    revision: str
    #: Image whose changes are asked for; it lies complete on the same unit.
    parent: str | None
    #: The VCenters by name, where the policy's source may need one.
    vcenters: Mapping[str, vcenters.VCenter] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Streamed:
    """What one disk came to."""

    name: str
    written: units.WrittenDisk | None
    known: bool
    finding: machines.Found | None
    #: Whether the parent turned out to be damaged; all disks are then read whole.
    misled: bool = False
    #: Whether the source called something unchanged that had changed; all disks are then read whole.
    belied: bool = False
    #: What was needed and lies in no holding area; the machine is then frozen anew.
    short: holding.NotHeld | None = None
    #: What the look at the guest's file systems could not read or leave out.
    warnings: tuple[machines.Found, ...] = ()
    #: Ranges that the image leaves out.
    hidden: extents.Extents = ()
    #: The files on it, where they are indexed.
    looked: fileindexing.Looked | None = None


def back_up(site: sites.Site, order: BackupOrder, context: engines.JobContext) -> engines.Outcome:
    """Make the image. Raises ``SourceError``, ``HookFailed``, ``UnitError`` or ``Cancelled``; then nothing is left."""
    area, trusting, need, freezes = holding.area(order.policy), True, 1, 0
    while True:
        freezes += 1
        if area is not None:
            reservations.wait(area.path, area.max_size, need, context.meter.check, context.log)
        try:
            return _back_up(site, order, context, area, trusting=trusting)
        except holding.NotHeld as error:
            if not trusting:
                raise
            # The machine was let go with only its changes copied, and those are not enough.
            context.log(f"{order.client_name}: frozen anew, and read as a whole: {error.message}")
            trusting = False
        except reservations.HoldingAreaFull as error:
            if not error.need or freezes >= _FREEZES:
                raise
            need = error.need


def _back_up(
    site: sites.Site, order: BackupOrder, context: engines.JobContext, area: holding.Area | None, *, trusting: bool
) -> engines.Outcome:
    """One freeze, one image. Unless ``trusting``, nobody's word on changes is taken. Raises ``NotHeld`` as well."""
    source = opening.Sources(order.vcenters, site.db.id, site.db).of(order.policy)
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(contextlib.closing(source.freeze(order.client_id, _asked(site, order, context))))
        now = site.clock.now()
        if not reading.disks:
            told = "; ".join(found.message for found in reading.missing) or "the folder has no disks"
            raise errors.SourceError(f"{order.client_name}: no disk can be read: {told}")
        image_id = f"{order.client_slug}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        context.annotate(image=image_id, copy=1)
        sequence = images.begin_image(site.db, _draft(order, image_id, now, reading, context.id))
        crashes.passing("backup.frozen")
        try:
            label = _label(order, image_id, sequence, now)
            if area is None:
                commit = _write(site, order, context, reading, label, _against(site, order, trusting))
            else:
                against = _against(site, order, trusting)
                spec, along = order.policy.spec, site.units.get(order.unit).standalone
                job = holding.Job(id=context.id, meter=context.meter, log=context.log)
                reading, looks = phases.hold(reading, area, spec, against, job, along=along)
                stack.callback(reading.close)
                with phases.storing(job):
                    commit = _write(site, order, context, reading, label, against, looks)
        except BaseException:
            images.discard_writing(site.db, image_id, 1)
            raise
        # From here on the unit holds the image: if the catalog cannot be told, the row stays for recovery to adopt.
        crashes.passing("backup.after-commit")
        record(site, commit)
        crashes.passing("backup.recorded")
        filelessons.learn(site, image_id, context.log)
        return _outcome(commit, reading, context)


def _asked(site: sites.Site, order: BackupOrder, context: engines.JobContext) -> machines.Asked:
    return machines.Asked(
        owner=site.db.id,
        job=context.id,
        client=order.client_name,
        ledger=ledgers.CatalogLedger(site),
        meter=context.meter,
        log=context.log,
        clock=site.clock,
    )


def _draft(
    order: BackupOrder, image_id: str, now: dt.datetime, reading: machines.Reading, job: str
) -> images.ImageDraft:
    return images.ImageDraft(
        id=image_id,
        client_id=order.client_id,
        policy=order.policy.name,
        schedule=order.schedule,
        lifecycle=order.lifecycle,
        owed=dict(order.owed),
        type=order.type,
        time=now,
        slot=order.slot,
        revision=order.revision,
        parent=order.parent,
        operation=order.operation,
        unit=order.unit,
        job=job,
        disks=tuple((disk.name, disk.size) for disk in reading.disks),
    )


def _label(order: BackupOrder, image_id: str, sequence: int, now: dt.datetime) -> units.ImageLabel:
    return units.ImageLabel(
        id=image_id,
        client_id=order.client_id,
        client_name=order.client_name,
        client_slug=order.client_slug,
        source=order.client_id,
        policy=order.policy.name,
        schedule=order.schedule,
        lifecycle=order.lifecycle,
        operation=order.operation,
        copy=1,
        type=order.type,
        state="Complete",
        time=now,
        sequence=sequence,
        slot=order.slot,
        revision=order.revision,
        parent=order.parent,
        changes="FullRead",
        consistency="Offline",
        owed=dict(order.owed),
    )


def _write(
    site: sites.Site,
    order: BackupOrder,
    context: engines.JobContext,
    reading: machines.Reading,
    label: units.ImageLabel,
    against: tuple[parents.Parent, Mapping[str, str]],
    looked: Sequence[guestviews.GuestView] = (),
) -> units.Commit:
    """Bytes and commit. A disk that cannot be read to its end is left out, and the others are read once more.

    ``looked``: looks at all disks of ``reading`` that were taken already.
    """
    parent, state = against
    failed: list[machines.Found] = []
    readable = list(reading.disks)
    # What a guest that is still writing calls free may be in use by the time it is read.
    selective = reading.finish().consistency != "Live"
    while readable:
        context.meter.add(total=sum(disk.size for disk in readable))
        unit = site.units.get(order.unit)
        writer = unit.begin(label, [disk.name for disk in readable])
        committed = False
        try:
            looks = looked or guestviews.views(readable, context.meter, order.policy.spec, keep=not selective)
            looked = ()
            # A catalog has no files to find.
            wanted = order.policy.spec.index and order.policy.spec.source.catalog is None
            with fileindexing.Indexing(unit, parent.id, context.meter, wanted=wanted) as index:
                streamed = _stream_all(writer, reading, looks, parent, state, order, context, index)
                if (short := next((one.short for one in streamed if one.short is not None), None)) is not None:
                    raise short
                lost = {one.name: one.finding for one in streamed if one.finding is not None}
                misled = any(one.misled for one in streamed)
                final = _judged(label, reading, streamed, failed)
                moved = final.consistency == "Live" and any(one.hidden for one in streamed)
                selective = selective and not moved
                if not lost and not misled and not moved and not any(one.belied for one in streamed):
                    final = _indexed(final, writer, index, streamed)
                    context.meter.check()
                    crashes.passing("backup.before-commit")
                    commit = writer.commit(final)
                    committed = True
                    return commit
        finally:
            if not committed:
                writer.abort()
        if any(one.belied for one in streamed):
            # The parent itself is sound: what is read is compared with it.
            parent, state = dataclasses.replace(parent, vouches=False), {}
        if misled:
            parent, state = parents.NONE, {}
        failed += lost.values()
        readable = [disk for disk in readable if disk.name not in lost]
    told = "; ".join(found.message for found in failed)
    raise errors.SourceError(f"{order.client_name}: no disk could be read to its end: {told}")


def _indexed(
    label: units.ImageLabel, writer: units.ImageWriter, index: fileindexing.Indexing, streamed: list[_Streamed]
) -> units.ImageLabel:
    """The label, once the index of files lies beside the image."""
    found = index.attach(writer, [one.looked for one in streamed if one.looked is not None])
    told = tuple({"code": one.code, "message": one.message} for one in found)
    return dataclasses.replace(label, warnings=(*label.warnings, *told))


def _against(site: sites.Site, order: BackupOrder, trusting: bool) -> tuple[parents.Parent, Mapping[str, str]]:
    """What the image is written against, and what the source said of itself then."""
    parent = parents.find(site.db, site.units.get(order.unit), order.client_id, order.parent)
    if not trusting:
        parent = dataclasses.replace(parent, vouches=False)
    return parent, readings.recorded(site.db, parent.id) if parent.id is not None and parent.vouches else {}


def _outcome(commit: units.Commit, reading: machines.Reading, context: engines.JobContext) -> engines.Outcome:
    for warning in commit.label.warnings:
        context.log(f"{warning['code']}: {warning['message']}")
    if commit.label.state == "Complete":
        return engines.Outcome()
    # What is worth knowing of the disks that are there does not make it partial.
    other = {found.message for found in reading.finish().warnings}
    told = [one for one in commit.label.warnings if one["code"] not in fileindexing.CODES]
    missing = "; ".join(one["message"] for one in told if one["message"] not in other)
    return engines.Outcome(state=engines.State.PARTIAL, failure=engines.Failure(code="PartialImage", message=missing))


def disk_facts(label: units.ImageLabel) -> tuple[images.DiskFacts, ...]:
    """The disks of a committed image, as the catalog keeps them."""
    return tuple(
        images.DiskFacts(name=d.name, size=d.size, sector=d.sector, digest=d.digest, blake3=d.blake3)
        for d in label.disks
    )


def record(site: sites.Site, commit: units.Commit) -> None:
    """Tell the catalog of a committed first copy. Idempotent; also used when a crash came just before."""
    label = commit.label
    images.commit_image(
        site.db,
        label.id,
        state=label.state,
        changes=label.changes,
        consistency=label.consistency,
        warnings=tuple(dict(warning) for warning in label.warnings),
        disks=disk_facts(label),
        source_state=dict(label.source_state),
        result=images.CopyResult(stored_bytes=commit.stored_bytes, base=commit.base),
        now=site.clock.now(),
        actor=site.actor,
    )


def _stream_all(
    writer: units.ImageWriter,
    reading: machines.Reading,
    looks: Sequence[guestviews.GuestView],
    parent: parents.Parent,
    state: Mapping[str, str],
    order: BackupOrder,
    context: engines.JobContext,
    index: fileindexing.Indexing,
) -> list[_Streamed]:
    """Store the disks, some at a time; the first failure of the unit, or a cancel, stops them all."""

    def one(look: guestviews.GuestView) -> _Streamed:
        return _stream(writer, reading, parent, state, context, look, index)

    streams = min(order.policy.spec.limits.max_streams_per_client, len(looks))
    with futures.ThreadPoolExecutor(max_workers=streams, thread_name_prefix=f"{context.id}-stream") as pool:
        context.meter.add(streams=max(0, streams - context.meter.reading().streams))
        pending = [pool.submit(one, look) for look in looks]
        done, _ = futures.wait(pending, return_when=futures.FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            context.meter.cancel()
        # The failure that came first is the cause; the cancels that follow it are not.
        failures = [f.exception() for f in pending]
    causes = [error for error in failures if error is not None]
    for error in sorted(causes, key=lambda cause: isinstance(cause, errors.Cancelled)):
        raise error
    return [future.result() for future in pending]


def _stream(
    writer: units.ImageWriter,
    reading: machines.Reading,
    parent: parents.Parent,
    state: Mapping[str, str],
    context: engines.JobContext,
    look: guestviews.GuestView,
    index: fileindexing.Indexing,
) -> _Streamed:
    disk = look.disk
    base = parent.of(disk.name, disk.size)
    try:
        hidden = look.hidden()
        told = changes.asked(reading, state, context.log, disk, hidden) if base is not None and parent.vouches else None
        changed = told.changed if told is not None else None
        shown = masks.MaskedDisk(disk, hidden) if hidden else disk
        layout = functools.partial(look.layout, changed)
        written = writer.write(shown, meter=context.meter, changed=changed, parent=base, layout=layout)
    except holding.NotHeld as error:
        return _Streamed(name=disk.name, written=None, known=False, finding=None, short=error)
    except errors.SourceError as error:
        return _Streamed(
            name=disk.name, written=None, known=False, finding=machines.Found(code=error.code, message=str(error))
        )
    except errors.ParentDamaged as error:
        context.log(f"{disk.name}: read as a whole: {error}")
        return _Streamed(name=disk.name, written=None, known=False, finding=None, misled=True)
    if told is not None and extents.intersect(written.changed or (), told.tested):
        context.log(f"{disk.name}: read as a whole: blocks that were called unchanged have changed")
        return _Streamed(name=disk.name, written=None, known=False, finding=None, belied=True)
    if hidden:
        context.log(f"{disk.name}: {quantities.show_size(extents.total(hidden))} left out, as the policy says")
    crashes.passing("backup.reading")
    warnings = (
        *parents.unlike(parent, disk.name, disk.size),
        *(machines.Found(code=code, message=f"{disk.name}: {message}") for code, message in look.warnings),
    )
    return _Streamed(
        name=disk.name,
        written=written,
        known=changed is not None,
        finding=None,
        warnings=warnings,
        hidden=hidden,
        looked=index.look(shown, written.changed, known=changed is not None, quiesced=False),
    )


def _judged(
    label: units.ImageLabel, reading: machines.Reading, streamed: list[_Streamed], failed: list[machines.Found]
) -> units.ImageLabel:
    """The label once everything is known: an image that lacks a disk, or whose disks moved, is Partial."""
    verdict = reading.finish()
    lost = [*reading.missing, *verdict.failed, *failed]
    told = [warning for one in streamed for warning in one.warnings]
    # What an incremental may lean on is taken from a Complete image alone.
    state = (
        {}
        if lost
        else {**reading.state(), **{changes.hidden_key(s.name): masks.pack(s.hidden) for s in streamed if s.hidden}}
    )
    return dataclasses.replace(
        label,
        state="Partial" if lost else "Complete",
        changes="Known" if streamed and all(one.known for one in streamed) else "FullRead",
        consistency=verdict.consistency,
        warnings=tuple({"code": found.code, "message": found.message} for found in [*lost, *verdict.warnings, *told]),
        source_state=state,
        configuration=reading.configuration(),
    )


def describe(order: BackupOrder) -> str:
    """One line for logs."""
    return f"{order.type} of {order.client_name} for {order.policy.name} at {times.show(order.slot)} to {order.unit}"
