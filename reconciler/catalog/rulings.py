"""Rulings by command: hold an image, order it to expire, retire a client, waive what a copy owes; and their ends.

Each is one transaction with a line of the audit trail, may be repeated, and answers what came of it in a sentence.
What stands is read through ``standings``; ``planning.rulings`` says what it means for decisions.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

import sqlalchemy as sa

from reconciler.base import errors, times
from reconciler.catalog import audits, database, departures, histories, rows, standings, tables
from reconciler.planning import holds, sightings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Author:
    """Who rules, when and why."""

    #: The name that stands for it, ``--by``.
    by: str
    #: The user who typed it.
    actor: str
    now: dt.datetime
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a ruling."""

    #: False where it stood already, or was over already.
    changed: bool
    message: str
    #: Copies that came back, as ``IMAGE/NUMBER``.
    taken_back: tuple[str, ...] = ()


def hold(db: database.Database, image_id: str, author: Author) -> Outcome:
    """Keep one good copy of an image, whatever its rule says; copies on their way out come back.

    An order that it expire ends. Raises ``NotFound``, and ``CatalogError`` where nothing is left to hold.
    """
    with db.writing() as connection:
        _require_tangible(connection, image_id)
        taken = departures.take_back(connection, image_id, author.now, author.actor, author.reason)
        _require_left(connection, image_id)
        ordered = _end(connection, "Expire", image_id, author, "ExpiryOrderEnded")
        held = _begin(connection, "Hold", image_id, author, "ImageHeld", {"takenBack": list(taken)})
    words = f"image {image_id} is held" if held else f"image {image_id} was held already"
    if ordered:
        words += "; the order that it expires is taken back"
    return Outcome(changed=held or ordered or bool(taken), message=words + _back(taken), taken_back=taken)


def release(db: database.Database, image_id: str, author: Author) -> Outcome:
    """End the hold of an image: its rule decides again. Raises ``NotFound``."""
    with db.writing() as connection:
        image = rows.require_image(connection, image_id)
        ended = _end(connection, "Hold", image_id, author, "HoldReleased")
        legal = None if ended else _legal(connection, image)
        if legal is not None:
            raise errors.CatalogError(
                f"image {image_id} is held by LegalHold {legal.name}, not by a command",
                hint=f"write released: {{by, at, reason}} into the manifest of LegalHold {legal.name}",
            )
    words = f"image {image_id} is held no longer" if ended else f"image {image_id} was not held"
    return Outcome(changed=ended, message=words)


def order_expiry(db: database.Database, image_id: str, grace: dt.timedelta | None, author: Author) -> Outcome:
    """Declare an image wrong: once approved it goes although its rule keeps it.

    Raises ``NotFound``, and ``CatalogError`` for one that is held or gone.
    """
    with db.writing() as connection:
        image = rows.require_image(connection, image_id)
        _require_tangible(connection, image_id)
        held = next((one for one in _standing(connection, "Hold") if one.object == image_id), None)
        if held is not None:
            raise errors.CatalogError(
                f"image {image_id} is held by {held.by}: {held.reason}",
                hint=f"release it first: holdfast hold {image_id} --release --reason TEXT",
            )
        legal = _legal(connection, image)
        if legal is not None:
            raise errors.CatalogError(
                f"image {image_id} is under LegalHold {legal.name}: {legal.reason}",
                hint=f"only released: {{by, at, reason}} in the manifest of LegalHold {legal.name} ends that",
            )
        ordered = _begin(connection, "Expire", image_id, author, "ExpiryOrdered", {}, grace)
    words = f"image {image_id} is ordered to expire" if ordered else f"image {image_id} was ordered to expire already"
    return Outcome(changed=ordered, message=f"{words}; holdfast plan shows it in the part that waits for an approval")


def take_back_order(db: database.Database, image_id: str, author: Author) -> Outcome:
    """End an order that an image expires, and bring back those of its copies whose deletion has not begun.

    Raises ``NotFound``, and ``CatalogError`` where no order stands.
    """
    with db.writing() as connection:
        rows.require_image(connection, image_id)
        if not _end(connection, "Expire", image_id, author, "ExpiryOrderEnded"):
            raise errors.CatalogError(
                f"nobody ordered image {image_id} to expire, or no copy of it is left",
                hint=f"to keep it from its own rule: holdfast hold {image_id} --reason TEXT",
            )
        taken = departures.take_back(connection, image_id, author.now, author.actor, author.reason)
    words = f"the order that image {image_id} expires is taken back{_back(taken)}"
    return Outcome(changed=True, message=words, taken_back=taken)


def retire(db: database.Database, client: sightings.Client, author: Author) -> Outcome:
    """The machine is gone for good: its last copies follow their rules to the end.

    Raises ``CatalogError`` while a policy in force matches it.
    """
    with db.writing() as connection:
        matching = _matching(connection, client.id)
        if matching:
            raise errors.CatalogError(
                f"policy {matching[0]} still matches {client.name}, so it cannot be retired",
                hint="take the machine out of the selection, or away from the source, run holdfast apply, and retire it"
                " then",
            )
        begun = _begin(connection, "Retire", client.id, author, "ClientRetired", {"client": client.slug})
    words = f"{client.name} is retired" if begun else f"{client.name} was retired already"
    return Outcome(changed=begun, message=f"{words}: its images follow their rules to the last")


def unretire(db: database.Database, client: sightings.Client, author: Author) -> Outcome:
    """End a retirement."""
    with db.writing() as connection:
        ended = _end(connection, "Retire", client.id, author, "RetirementEnded")
    words = f"{client.name} is retired no longer" if ended else f"{client.name} was not retired"
    return Outcome(changed=ended, message=words)


def waive(db: database.Database, image_id: str, number: int, author: Author) -> Outcome:
    """A copy need not make its children any more. Raises ``NotFound``, ``CatalogError`` for one that is gone."""
    with db.writing() as connection:
        copy = rows.require_copy(connection, image_id, number)
        if copy.state == "Expired":
            raise errors.CatalogError(f"copy {number} of image {image_id} is gone: it owes nothing")
        object = f"{image_id}/{number}"
        begun = _begin(connection, "Waive", object, author, "CopyWaived", {"operation": copy.operation})
    words = "need not make its children any more" if begun else "was waived already"
    return Outcome(changed=begun, message=f"copy {number} of image {image_id} {words}")


def unwaive(db: database.Database, image_id: str, number: int, author: Author) -> Outcome:
    """End a waiver: the copy owes its children again. Raises ``NotFound``."""
    with db.writing() as connection:
        rows.require_copy(connection, image_id, number)
        ended = _end(connection, "Waive", f"{image_id}/{number}", author, "WaiverEnded")
    words = "owes its children again" if ended else "was not waived"
    return Outcome(changed=ended, message=f"copy {number} of image {image_id} {words}")


def _back(taken: Iterable[str]) -> str:
    listed = ", ".join(taken)
    return f"; back again: {listed}" if listed else ""


def _require_tangible(connection: sa.Connection, image_id: str) -> None:
    if rows.require_image(connection, image_id).state not in histories.COMMITTED:
        raise errors.CatalogError(f"image {image_id} is still being written", hint="wait for its job")
    copy = tables.COPIES.c
    left = sa.select(copy.number).where(copy.image_id == image_id, copy.state != "Expired").limit(1)
    if connection.scalar(left) is None:
        raise errors.CatalogError(f"image {image_id} has no copy left", hint="holdfast get images lists what is left")


def _require_left(connection: sa.Connection, image_id: str) -> None:
    copy = tables.COPIES.c
    left = sa.select(copy.number).where(copy.image_id == image_id, copy.state.not_in(("Expired", "Expiring"))).limit(1)
    if connection.scalar(left) is None:
        raise errors.CatalogError(
            f"the deletion of image {image_id} has begun; it cannot be taken back any more",
            hint="holdfast get images lists what is left",
        )


def _standing(connection: sa.Connection, kind: str) -> tuple[sightings.Ruling, ...]:
    return tuple(one for one in standings.standing(connection).rulings if one.kind == kind)


def _legal(connection: sa.Connection, image: sa.Row[tuple[object, ...]]) -> sightings.Hold | None:
    at = connection.scalar(sa.select(tables.IMAGES.c.time).where(tables.IMAGES.c.id == image.id))
    for one in standings.standing(connection).holds:
        if image.id in one.images or (image.client_id in one.clients and at is not None and holds.covers(one, at)):
            return one
    return None


def _matching(connection: sa.Connection, client: str) -> list[str]:
    """Policies in force whose selection matched the machine when it was last looked at."""
    objects, inventory = tables.OBJECTS.c, tables.INVENTORIES.c
    query = (
        sa.select(inventory.policy, inventory.machines)
        .join_from(tables.INVENTORIES, tables.OBJECTS, objects.name == inventory.policy)
        .where(objects.kind == "BackupPolicy", objects.orphaned == sa.false())
        .order_by(inventory.policy)
    )
    return [row.policy for row in connection.execute(query) if any(machine["id"] == client for machine in row.machines)]


def _begin(
    connection: sa.Connection,
    kind: str,
    object: str,
    author: Author,
    event: str,
    details: dict[str, object],
    grace: dt.timedelta | None = None,
) -> bool:
    """Record a ruling, unless the same stands; whether it is new."""
    if any(one.object == object for one in _standing(connection, kind)):
        return False
    seconds = None if grace is None else int(grace.total_seconds())
    connection.execute(
        tables.RULINGS.insert().values(
            kind=kind, object=object, by=author.by, at=author.now, reason=author.reason, grace=seconds
        )
    )
    _tell(connection, kind, object, author, event, details if grace is None else {**details, "graceSeconds": seconds})
    return True


def _end(connection: sa.Connection, kind: str, object: str, author: Author, event: str) -> bool:
    """End a ruling that stands; whether one did."""
    ruling = tables.RULINGS.c
    ended = connection.execute(
        tables.RULINGS.update()
        .where(ruling.kind == kind, ruling.object == object, ruling.ended_at.is_(None))
        .values(ended_at=author.now, ended_by=author.by, ended_reason=author.reason)
    )
    if not ended.rowcount:
        return False
    _tell(connection, kind, object, author, event, {})
    return True


_PREFIXES = {"Hold": "image", "Expire": "image", "Retire": "client", "Waive": "copy"}


def _tell(
    connection: sa.Connection, kind: str, object: str, author: Author, event: str, details: dict[str, object]
) -> None:
    audits.record(
        connection, now=author.now, actor=author.actor, event=event, object=f"{_PREFIXES[kind]}/{object}",
        details={"by": author.by, "reason": author.reason, "at": times.show(author.now), **details},
    )  # fmt: skip
