"""Images and their copies: from the first byte written to the last byte expired, and everything in between.

The operations call these in a stated order. Backup: ``begin_image``, the unit's commit, ``commit_image``. Duplicate:
``begin_copy``, commit, ``commit_copy``. Expire: ``mark_expiring`` (of ``departures``, which asks the six nevers inside
the deleting transaction), the unit's delete, ``mark_expired``. A crash between two of them leaves a copy Writing or
Expiring, which ``writing_copies`` and the next plan find. Every call may be repeated.
Reading lives in ``histories`` and ``listings``, adoption in ``imports``, expiry in ``departures``, what units were
found to hold in ``copystates``; their names are also found here.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import (
    audits,
    copystates,
    counters,
    database,
    departures,
    histories,
    imports,
    listings,
    readings,
    rows,
    tables,
)

DiskFacts = listings.DiskFacts
ImageRow = listings.ImageRow
CopyRow = listings.CopyRow
ImportedImage = imports.ImportedImage
series = histories.series
one_series = histories.one_series
list_images = listings.list_images
list_copies = listings.list_copies
import_image = imports.import_image
mark_state = copystates.mark
mark_expiring = departures.mark_expiring
mark_expired = departures.mark_expired

#: Copy states out of which a copy may be written again.
_REWRITABLE: Final = ("Writing", "Lost", "Damaged")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageDraft:
    """An image about to be written, and its first copy."""

    #: Unique, safe as a file name.
    id: str
    client_id: str
    policy: str
    schedule: str
    lifecycle: str
    #: The lifecycle spec of the revision in force, as JSON: it fixes the copies that the image is owed.
    owed: Mapping[str, Any]
    #: Full, Incremental or Cumulative.
    type: str
    #: When the source was frozen.
    time: dt.datetime
    #: The slot that it serves.
    slot: dt.datetime
    revision: str
    parent: str | None
    #: Name of the Backup operation.
    operation: str
    unit: str
    #: Id of the job that writes it.
    job: str
    #: Name and size in bytes of each disk, in order.
    disks: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CopyResult:
    """What a unit's commit came to."""

    #: Bytes that this copy alone added to the unit.
    stored_bytes: int
    #: Image on the unit that it needs to be readable.
    base: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WritingCopy:
    """A copy whose writing began and did not end."""

    image_id: str
    number: int
    unit: str
    #: Id of the job that wrote it last.
    job: str | None
    operation: str
    #: Whether the image itself was never committed.
    is_first: bool
    #: Damaged or Lost where such a copy was written again, else None.
    fallback: str | None = None


def begin_image(db: database.Database, draft: ImageDraft) -> int:
    """Record an image, invisible until committed, and its copy 1 as Writing; the image's new sequence number.

    Raises ``CatalogError`` for a known id, ``NotFound`` for a client nobody has seen.
    """
    with db.writing() as connection:
        if rows.find_image(connection, draft.id) is not None:
            raise errors.CatalogError(f"image {draft.id} exists already", hint="a new image needs a new id")
        known = sa.select(tables.CLIENTS.c.id).where(tables.CLIENTS.c.id == draft.client_id)
        if connection.scalar(known) is None:
            raise errors.NotFound(f"there is no client {draft.client_id}", hint="holdfast get clients lists them")
        sequence = counters.next_number(connection, counters.IMAGE_SEQUENCE)
        blank = [
            {"name": name, "size": size, "sector": 512, "digest": None, "blake3": None} for name, size in draft.disks
        ]
        connection.execute(
            tables.IMAGES.insert().values(
                id=draft.id, client_id=draft.client_id, policy=draft.policy, schedule=draft.schedule,
                lifecycle=draft.lifecycle, owed=imports.remember_owed(connection, draft.owed), type=draft.type,
                state="Writing", time=draft.time, sequence=sequence, slot=draft.slot, revision=draft.revision,
                parent=draft.parent, changes="FullRead", consistency="Offline",
                size_bytes=sum(size for _, size in draft.disks), disk_names=[name for name, _ in draft.disks],
                disks=blank, warnings=[], source_state={}, spent=False,
            )
        )  # fmt: skip
        _insert_copy(connection, draft.id, 1, draft.operation, draft.unit, draft.job, draft.time)
    return sequence


def commit_image(
    db: database.Database,
    image_id: str,
    *,
    state: str,
    changes: str,
    consistency: str,
    warnings: Iterable[Mapping[str, str]],
    disks: Iterable[listings.DiskFacts],
    source_state: Mapping[str, Any],
    result: CopyResult,
    now: dt.datetime,
    actor: str,
) -> None:
    """The unit has committed: the image and its copy 1 become visible. Repeating it changes nothing.

    ``state`` is Complete or Partial; ``disks`` are those written, in order; ``source_state`` is JSON that the source
    needs at the next incremental. Raises ``NotFound``.
    """
    if state not in histories.COMMITTED:
        raise ValueError(f"{state} is not the state of a committed image")
    facts = [dataclasses.asdict(disk) for disk in disks]
    with db.writing() as connection:
        image = rows.require_image(connection, image_id)
        if image.state in histories.COMMITTED:
            return
        connection.execute(
            tables.IMAGES.update().where(tables.IMAGES.c.id == image_id).values(
                state=state, changes=changes, consistency=consistency, warnings=[dict(w) for w in warnings],
                disks=facts, disk_names=[disk["name"] for disk in facts],
                size_bytes=sum(disk["size"] for disk in facts),
                source_state=dict(source_state),
            )
        )  # fmt: skip
        _complete(connection, image_id, 1, result, now)
        imports.settle(connection, image.client_id, image.policy)
        readings.forget(connection, image.client_id, image.policy)
        details = {"state": state, "type": image.type, "policy": image.policy, "storedBytes": result.stored_bytes}
        audits.record(
            connection, now=now, actor=actor, event="ImageCommitted", object=f"image/{image_id}", details=details
        )


def begin_copy(db: database.Database, image_id: str, *, operation: str, unit: str, job: str, now: dt.datetime) -> int:
    """Record a further copy as Writing; its number.

    A copy of the same operation and unit that is Writing, Lost or Damaged is written again under its own number. One
    that stands in for a copy of its operation that came back with its unit waits for the same approval as that one.
    Raises ``NotFound``, ``CatalogError`` for an image that was never committed.
    """
    with db.writing() as connection:
        if rows.require_image(connection, image_id).state not in histories.COMMITTED:
            raise errors.CatalogError(f"image {image_id} is still being written", hint="copy it once it is committed")
        copy = tables.COPIES.c
        same = sa.select(copy.number).where(
            copy.image_id == image_id, copy.operation == operation, copy.state == "Complete", copy.imported.is_(True)
        )
        imported = connection.execute(same).first() is not None
        again = sa.select(copy.number, copy.state, copy.fallback).where(
            copy.image_id == image_id, copy.operation == operation, copy.unit == unit, copy.state.in_(_REWRITABLE)
        )
        failed = connection.execute(again.order_by(copy.number)).first()
        if failed is not None:
            fallback = failed.fallback if failed.state == "Writing" else failed.state
            rows.update_copy(
                connection, image_id, failed.number, state="Writing", job=job, changed_at=now, message="",
                imported=imported, fallback=fallback,
            )  # fmt: skip
            return int(failed.number)
        highest = connection.scalar(sa.select(sa.func.max(copy.number)).where(copy.image_id == image_id)) or 0
        _insert_copy(connection, image_id, highest + 1, operation, unit, job, now, imported=imported)
        return int(highest) + 1


def commit_copy(
    db: database.Database, image_id: str, number: int, result: CopyResult, now: dt.datetime, actor: str
) -> None:
    """The unit has committed the copy: it becomes Complete. Repeating it changes nothing.

    Raises ``NotFound``, ``CatalogError`` for a copy that is not being written.
    """
    with db.writing() as connection:
        copy = rows.require_copy(connection, image_id, number)
        if copy.state == "Complete":
            return
        if copy.state != "Writing":
            raise errors.CatalogError(f"copy {number} of image {image_id} is {copy.state}, not being written")
        _complete(connection, image_id, number, result, now)
        details = {"unit": copy.unit, "operation": copy.operation, "storedBytes": result.stored_bytes}
        object = f"copy/{image_id}/{number}"
        audits.record(connection, now=now, actor=actor, event="CopyCommitted", object=object, details=details)


def discard_writing(db: database.Database, image_id: str, number: int) -> None:
    """Forget a copy whose writing was given up, and its image if that was never committed. Idempotent.

    A copy that was Lost or Damaged before is that again, so that it is still known to want healing.
    """
    copy = tables.COPIES.c
    one = sa.and_(copy.image_id == image_id, copy.number == number, copy.state == "Writing")
    with db.writing() as connection:
        again = tables.COPIES.update().where(one, copy.fallback.is_not(None))
        if connection.execute(again.values(state=copy.fallback, fallback=None)).rowcount:
            return
        if connection.execute(tables.COPIES.delete().where(one)).rowcount:
            image = tables.IMAGES
            connection.execute(image.delete().where(image.c.id == image_id, image.c.state == "Writing"))


def newest_on(db: database.Database, client_id: str, unit: str) -> str | None:
    """The newest complete image of a client that has a complete copy on a unit."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    query = (
        sa.select(image.id)
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .where(image.client_id == client_id, image.state == "Complete", copy.unit == unit, copy.state == "Complete")
        .order_by(image.sequence.desc())
        .limit(1)
    )
    with db.reading() as connection:
        found: str | None = connection.scalar(query)
    return found


def newest_time(db: database.Database) -> dt.datetime | None:
    """The newest time of a committed image, None without any."""
    with db.reading() as connection:
        newest: dt.datetime | None = connection.scalar(
            sa.select(sa.func.max(tables.IMAGES.c.time)).where(tables.IMAGES.c.state.in_(histories.COMMITTED))
        )
    return newest


def is_complete_on(db: database.Database, image_id: str, unit: str) -> bool:
    """Whether an image is complete, and so is its copy on a unit."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    query = (
        sa.select(copy.number)
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .where(image.id == image_id, image.state == "Complete", copy.unit == unit, copy.state == "Complete")
        .limit(1)
    )
    with db.reading() as connection:
        return connection.scalar(query) is not None


def writing_copies(db: database.Database) -> tuple[WritingCopy, ...]:
    """Copies in state Writing: work in progress, and what a crash left of it."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    query = (
        sa.select(copy.image_id, copy.number, copy.unit, copy.job, copy.operation, image.state, copy.fallback)
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .where(copy.state == "Writing")
        .order_by(image.sequence, copy.image_id, copy.number)
    )
    with db.reading() as connection:
        return tuple(
            WritingCopy(
                image_id=id,
                number=number,
                unit=unit,
                job=job,
                operation=operation,
                is_first=state == "Writing",
                fallback=fallback,
            )
            for id, number, unit, job, operation, state, fallback in connection.execute(query)
        )


def _insert_copy(
    connection: sa.Connection, image_id: str, number: int, operation: str, unit: str, job: str, now: dt.datetime,
    *, imported: bool = False,
) -> None:  # fmt: skip
    connection.execute(
        tables.COPIES.insert().values(
            image_id=image_id, number=number, operation=operation, unit=unit, state="Writing", created_at=now,
            stored_bytes=0, base=None, imported=imported, job=job, changed_at=now, message="",
            fallback=None,
        )
    )  # fmt: skip


def _complete(connection: sa.Connection, image_id: str, number: int, result: CopyResult, now: dt.datetime) -> None:
    rows.update_copy(
        connection, image_id, number, state="Complete", created_at=now, changed_at=now, message="",
        stored_bytes=result.stored_bytes, base=result.base, fallback=None,
    )  # fmt: skip
