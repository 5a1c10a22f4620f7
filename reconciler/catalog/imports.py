"""Images that come from elsewhere: found on a storage unit that is adopted, with everything its label says.

``operations`` reads the labels and calls ``import_image`` for each; time, sequence and slug are kept. A copy that came
back so is marked ``imported``: its expiry waits until somebody approves it. ``settle`` and ``remember_owed`` are the
two duties that adoption shares with ``images``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from reconciler.base import digests
from reconciler.catalog import approvals, audits, counters, database, histories, listings, machines, tables


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportedImage:
    """What an image on a unit says of itself; the fields of a unit's label."""

    id: str
    client_id: str
    client_name: str
    client_slug: str
    source: str
    policy: str
    schedule: str
    lifecycle: str
    #: Name of the lifecycle operation that made this copy.
    operation: str
    #: Copy number within the image.
    copy: int
    #: Full, Incremental or Cumulative.
    type: str
    #: Complete or Partial.
    state: str
    time: dt.datetime
    sequence: int
    slot: dt.datetime
    revision: str
    parent: str | None
    #: Known or FullRead.
    changes: str
    consistency: str
    warnings: tuple[Mapping[str, str], ...] = ()
    #: The lifecycle spec that fixes the copies the image is owed.
    owed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: What the source needs to know of this reading at the next incremental.
    source_state: Mapping[str, str] = dataclasses.field(default_factory=dict)
    disks: tuple[listings.DiskFacts, ...] = ()


def import_image(
    db: database.Database,
    image: ImportedImage,
    unit: str,
    stored_bytes: int,
    base: str | None,
    *,
    now: dt.datetime,
    actor: str,
) -> bool:
    """Make rows of client, image and copy as far as they are missing; False where the copy is known already.

    A copy of this unit that was Lost is found again. A number that another unit's copy has gives way to the next one.
    """
    with db.writing() as connection:
        known = connection.scalar(sa.select(tables.IMAGES.c.state).where(tables.IMAGES.c.id == image.id))
        if known is None:
            machines.know(
                connection, id=image.client_id, name=image.client_name, source=image.source, slug=image.client_slug,
                now=now,
            )  # fmt: skip
            take_image(connection, image)
        elif known not in histories.COMMITTED:
            return False
        approvals.come_back(connection, image.client_id)
        number = take_copy(connection, image, unit, stored_bytes, base, now)
        if number is None:
            return False
        # It has a copy again, so decisions must see it again.
        connection.execute(tables.IMAGES.update().where(tables.IMAGES.c.id == image.id).values(spent=False))
        settle(connection, image.client_id, image.policy)
        object = f"copy/{image.id}/{number}"
        audits.record(connection, now=now, actor=actor, event="CopyImported", object=object, details={"unit": unit})
        return True


def take_copy(
    connection: sa.Connection, image: ImportedImage, unit: str, stored_bytes: int, base: str | None, now: dt.datetime
) -> int | None:
    """Make the row of a copy that a unit holds, of an image that the catalog has; its number, None if it is known."""
    copies = connection.execute(
        sa.select(tables.COPIES).where(tables.COPIES.c.image_id == image.id).order_by(tables.COPIES.c.number)
    ).all()
    number = image.copy
    here = next((copy for copy in copies if copy.unit == unit and copy.state != "Expired"), None)
    values: dict[str, Any] = {
        "operation": image.operation, "unit": unit, "state": "Complete", "created_at": now,
        "stored_bytes": stored_bytes, "base": base, "imported": True, "job": None, "changed_at": now,
        "message": "found on its unit", "fallback": None,
    }  # fmt: skip
    if here is not None:
        if here.state != "Lost":
            return None
        number = here.number
        connection.execute(
            tables.COPIES.update()
            .where(tables.COPIES.c.image_id == image.id, tables.COPIES.c.number == number)
            .values(**values)
        )
    else:
        if any(copy.number == number for copy in copies):
            number = max(copy.number for copy in copies) + 1
        connection.execute(tables.COPIES.insert().values(image_id=image.id, number=number, **values))
    return number


def remember_owed(connection: sa.Connection, spec: Mapping[str, Any], known: set[str] | None = None) -> str:
    """Keep a lifecycle spec once; its digest. ``known``: digests of those that are kept, brought up to date."""
    versions = tables.LIFECYCLE_VERSIONS
    digest = digests.json_digest(spec)
    if known is not None:
        if digest in known:
            return digest
        known.add(digest)
    if connection.scalar(sa.select(versions.c.digest).where(versions.c.digest == digest)) is None:
        connection.execute(versions.insert().values(digest=digest, spec=dict(spec)))
    return digest


def settle(connection: sa.Connection, client_id: str, policy: str) -> None:
    """Mark images of a series as spent once no copy is left and no decision needs their slot.

    The newest complete image of each schedule and type stays, copies or not: slots are counted from it.
    """
    image, newer, copy = tables.IMAGES.c, tables.IMAGES.alias(), tables.COPIES.c
    left = sa.exists().where(copy.image_id == image.id, copy.state != "Expired").correlate(tables.IMAGES)
    followed = (
        sa.exists()
        .where(
            newer.c.spent == sa.false(), newer.c.client_id == client_id, newer.c.policy == policy,
            newer.c.sequence > image.sequence, newer.c.state == "Complete", newer.c.schedule == image.schedule,
            newer.c.type == image.type,
        )
        .correlate(tables.IMAGES)
    )  # fmt: skip
    connection.execute(
        tables.IMAGES.update()
        .where(
            image.spent == sa.false(), image.client_id == client_id, image.policy == policy,
            image.state.in_(histories.COMMITTED), ~left, sa.or_(image.state == "Partial", followed),
        )
        .values(spent=True)
    )  # fmt: skip


def take_image(
    connection: sa.Connection, image: ImportedImage, known: set[str] | None = None, floor: int | None = None
) -> None:
    """Make the row of an image that the catalog does not have, of a client that it has.

    ``known`` as ``remember_owed`` takes it. With ``floor``, the highest sequence number met, the caller counts on.
    """
    columns = tables.IMAGES.c
    # All values of ``spent`` are named because the index begins with it.
    taken = sa.select(columns.id).where(
        columns.spent.in_([False, True]), columns.client_id == image.client_id, columns.policy == image.policy,
        columns.sequence == image.sequence,
    )  # fmt: skip
    sequence = image.sequence
    if connection.scalar(taken) is not None:
        # Two catalogs counted by themselves: order within a series must stay strict.
        counters.raise_to(connection, counters.IMAGE_SEQUENCE, floor or 0)
        sequence = counters.next_number(connection, counters.IMAGE_SEQUENCE)
    elif floor is None:
        counters.raise_to(connection, counters.IMAGE_SEQUENCE, sequence)
    facts = [dataclasses.asdict(disk) for disk in image.disks]
    connection.execute(
        tables.IMAGES.insert().values(
            id=image.id, client_id=image.client_id, policy=image.policy, schedule=image.schedule,
            lifecycle=image.lifecycle, owed=remember_owed(connection, image.owed, known), type=image.type,
            state=image.state, time=image.time, sequence=sequence, slot=image.slot, revision=image.revision,
            parent=image.parent, changes=image.changes, consistency=image.consistency,
            size_bytes=sum(disk.size for disk in image.disks),
            disk_names=[disk.name for disk in image.disks], disks=facts, warnings=[dict(w) for w in image.warnings],
            source_state=dict(image.source_state), spent=False,
        )
    )  # fmt: skip
