"""Duplicate: a stored image, read from its nearest good copy, becomes one more copy on another unit.

A copy counts as paid only once it has been read back and proven equal, block by block. Where no copy is good it is made
of what is whole of all of them, and one that lies where the new one goes stays until that is proven.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from reconciler.base import crashes, errors
from reconciler.catalog import images, inventories
from reconciler.catalog.fileindexes import entries
from reconciler.jobs import engines
from reconciler.operations import (
    failovers,
    filelessons,
    findings,
    guestviews,
    indexrepairs,
    parents,
    salvages,
    sites,
)
from reconciler.storage import units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateOrder:
    """One copy to make."""

    image: str
    operation: str
    source_unit: str
    #: Number of the copy that is read; None where none is good, and all are read together.
    source_copy: int | None
    unit: str


def duplicate(site: sites.Site, order: DuplicateOrder, context: engines.JobContext) -> engines.Outcome:
    """Make the copy. Raises ``UnitError`` or ``Cancelled``; then nothing is left. A damaged source is recorded.

    Raises ``BlocksMissing`` where all copies are read together and not all of the image is on them.
    """
    # What is to be written anew is no longer among them once that has begun.
    pieces = _sources(site, order.image) if order.source_copy is None else []
    number = images.begin_copy(
        site.db, order.image, operation=order.operation, unit=order.unit, job=context.id, now=site.clock.now()
    )
    try:
        with contextlib.closing(_source(site, order, context, pieces)) as source:
            commit = _copy(site, order, context, source, number)
            indexed = entries.ATTACHMENT in source.attachments()
    except BaseException as error:
        images.discard_writing(site.db, order.image, number)
        if isinstance(error, errors.ImageDamaged) and order.source_copy is not None:
            site.units.require(order.source_unit)
            now, said = site.clock.now(), error.message
            images.mark_state(
                site.db, order.image, order.source_copy, "Damaged", now=now, actor=site.actor, message=said
            )
        raise
    if pieces:
        context.log(f"no copy was good: made of what is whole of {', '.join(f'copy {one.number}' for one in pieces)}")
    crashes.passing("duplicate.after-commit")
    images.commit_copy(
        site.db,
        order.image,
        number,
        images.CopyResult(stored_bytes=commit.stored_bytes, base=commit.base),
        now=site.clock.now(),
        actor=site.actor,
    )
    crashes.passing("duplicate.recorded")
    if indexed:
        filelessons.relearn(site, order.image)
    return engines.Outcome()


def _source(
    site: sites.Site, order: DuplicateOrder, context: engines.JobContext, pieces: Sequence[failovers.Source]
) -> units.StoredImage | salvages.SalvagedImage:
    """What is read: one copy, or what is whole of all there are."""
    if order.source_copy is not None:
        return site.units.get(order.source_unit).open(order.image)
    failed = findings.recorder(site.db, site.clock, site.actor, context.log, [])
    return salvages.SalvagedImage(failovers.FailoverImage(order.image, pieces, failed))


def _sources(site: sites.Site, image: str) -> list[failovers.Source]:
    known = inventories.known_units(site.db)
    return [
        failovers.Source(
            number=row.number,
            unit=row.unit,
            path=Path(known[row.unit].path),
            open=functools.partial(_opened, site, row.unit, image),
        )
        for row in images.list_copies(site.db, image_id=image)
        if row.readable and row.unit in known
    ]


def _opened(site: sites.Site, unit: str, image: str) -> units.StoredImage:
    return site.units.get(unit).open(image)


def _learned(target: units.StorageUnit, image: str, context: engines.JobContext) -> bool:
    """Whether the target holds the image already, damaged; what is false of it is not taken for stored then."""
    try:
        target.open(image).close()
        if target.standalone:
            target.verify(image, meter=context.meter.aside())
    except errors.ImageMissing:
        return False
    except errors.ImageDamaged as error:
        context.log(f"the damaged copy on {target.name} cannot be opened: {error}")
    return True


def _copy(
    site: sites.Site,
    order: DuplicateOrder,
    context: engines.JobContext,
    source: units.StoredImage,
    number: int,
) -> units.Commit:
    target, unit = site.units.get(order.unit), site.units.get(order.source_unit)
    label = dataclasses.replace(source.label, operation=order.operation, copy=number, disks=())
    replaces = False
    if order.source_copy is None:
        # The damaged copy that lies where the new one goes is one of those that are read.
        replaces = _learned(target, order.image, context)
    else:
        _make_way(site, order, context, target)
    parent = parents.find(site.db, target, label.client_id, source.label.parent)
    try:
        commit = _write(context, unit, source, target, label, parent, replaces=replaces)
    except errors.ParentDamaged as error:
        context.log(f"written as a whole: {error}")
        commit = _write(context, unit, source, target, label, parents.NONE, replaces=replaces)
    if not replaces:
        prove(target, commit.label, context)
    return commit


def _make_way(site: sites.Site, order: DuplicateOrder, context: engines.JobContext, target: units.StorageUnit) -> None:
    """Remove a damaged copy that is made anew in its place, once the one to be read has been proven whole.

    Until then even a damaged copy may hold bytes that no other copy has.
    """
    if not _learned(target, order.image, context):
        return
    # An index of files can be made anew from the disks.
    for damage in indexrepairs.of_disks(
        site.units.get(order.source_unit).verify(order.image, meter=context.meter.aside())
    ):
        raise errors.ImageDamaged(
            f"image {order.image}, {damage.part}: damaged on {order.source_unit} too, at {damage.offset}",
            hint="both copies stay; restore what can be read of each, or back the machine up anew",
        )
    target.delete(order.image)


def _write(
    context: engines.JobContext,
    unit: units.StorageUnit,
    source: units.StoredImage,
    target: units.StorageUnit,
    label: units.ImageLabel,
    parent: parents.Parent,
    *,
    replaces: bool,
) -> units.Commit:
    names = [disk.name for disk in source.label.disks]
    context.meter.add(total=sum(disk.size for disk in source.label.disks), streams=1)
    salvaged = source if isinstance(source, salvages.SalvagedImage) else None
    writer = target.begin(label, names, replaces=replaces)
    committed = False
    try:
        for record in source.label.disks:
            base = parent.of(record.name, record.size)
            changed = source.changed(record.name, base) if base and parent.vouches else None
            with contextlib.closing(source.disk(record.name)) as disk:
                layout = functools.partial(guestviews.GuestView(disk, context.meter).layout, changed)
                written = writer.write(disk, meter=context.meter, changed=changed, parent=base, layout=layout)
            # Of a disk that lacks blocks the others are still to be looked through, so that all is told at once.
            if written.record.digest != record.digest and not (salvaged and salvaged.missing):
                raise errors.ImageDamaged(
                    f"image {label.id}, disk {record.name}: what was read has digest"
                    f" {written.record.digest}, its label says {record.digest}"
                )
            crashes.passing("duplicate.reading")
        if salvaged is not None:
            salvages.require_whole(salvaged)
        _attach(context, unit, source, writer, parent)
        context.meter.check()
        crashes.passing("duplicate.before-commit")
        commit = writer.commit(label, meter=context.meter.aside())
        committed = True
        return commit
    finally:
        if not committed:
            writer.abort()


def _attach(
    context: engines.JobContext,
    unit: units.StorageUnit,
    source: units.StoredImage,
    writer: units.ImageWriter,
    parent: parents.Parent,
) -> None:
    """Copy what the image carries beside its disks. An index of files that is damaged is made anew from its disks."""
    for name in source.attachments():
        try:
            pages = indexrepairs.pages_of(source.attachment(name), context.meter)
            writer.attach(name, pages, parent=parent.id)
        except errors.AttachmentDamaged as error:
            if name != entries.ATTACHMENT:
                raise
            context.log(f"the index of files is made anew: {error.message}")
            _index_anew(context, unit, source, writer, parent)


def _index_anew(
    context: engines.JobContext,
    unit: units.StorageUnit,
    source: units.StoredImage,
    writer: units.ImageWriter,
    parent: parents.Parent,
) -> None:
    try:
        indexrepairs.build(
            unit, source, lambda name, pages: writer.attach(name, pages, parent=parent.id), context.meter.aside()
        )
    except errors.GuestUnreadable as error:
        context.log(f"the copy has no index of files: {error.message}")


def prove(target: units.StorageUnit, label: units.ImageLabel, context: engines.JobContext) -> None:
    """Read a copy back. A copy that does not prove equal is deleted; raises ``UnitError`` naming the first damage."""
    damage = target.verify(label.id, meter=context.meter.aside())
    if damage:
        first = damage[0]
        target.delete(label.id)
        raise errors.UnitError(
            f"storage unit {target.name}: the new copy of {label.id} did not read back as written: {first.part}"
            f" at {first.offset}: {first.message}",
            hint="check the device under the unit; the copy is made again at the next attempt",
        )
