"""Copies on their way out, in a stated order, so that what was half deleted never comes back.

1 ``mark_expiring`` decides: the copy is Expiring and nobody reads it any more. With a grace it can be taken back until
that has passed (``take_back``), and the same function is called again then. 2 That call, or the first one where there
is no grace, ends the grace durably, before the unit is asked to delete anything: from here on the copy only goes.
3 The unit deletes. 4 ``mark_expired`` records it. Both decisions ask the six nevers, with the holds and rulings of that
moment. A crash between two steps leaves what the next plan goes on with. Every call may be repeated.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import errors, times
from reconciler.catalog import audits, database, fences, histories, imports, rows, standings, tables, verifications
from reconciler.planning import sightings

#: Gets the series and what was ruled as the deleting transaction sees them; raises ``NeverViolated``.
Check = Callable[[sightings.Series, sightings.Standing], None]
_LAST: Final = dt.datetime.max.replace(tzinfo=times.UTC)


def mark_expiring(
    db: database.Database,
    image_id: str,
    number: int,
    *,
    now: dt.datetime,
    check: Check,
    actor: str,
    reason: str,
    fence: int | None = None,
    grace: dt.timedelta | None = None,
    decided: bool = False,
) -> bool:
    """Decide that a copy goes; from here on nothing may read it. Whether the unit may begin to delete it now.

    With ``grace`` the answer is no until that has passed. ``decided`` says that the plan saw it Expiring already: if it
    was taken back meanwhile, it stays. A copy that is going or gone already is no error. ``check`` raises where one of
    the six nevers forbids it: nothing is changed then. Raises ``NeverViolated``, ``NotFound``, ``Superseded``, and
    ``CatalogError`` for a copy that is being written.
    """
    with db.writing() as connection:
        fences.check(connection, fence)
        copy = rows.require_copy(connection, image_id, number)
        if copy.state == "Expired" or (copy.state == "Expiring" and copy.grace_until is None):
            return True
        if copy.state == "Expiring" and now < copy.grace_until:
            return False
        if copy.state == "Writing":
            raise errors.CatalogError(
                f"copy {number} of image {image_id} is being written", hint="cancel its job first"
            )
        if decided and copy.state != "Expiring":
            raise errors.NeverViolated(f"copy {number} of image {image_id} was taken back; nothing is deleted")
        image = rows.require_image(connection, image_id)
        check(histories.load(connection, image.client_id, image.policy), standings.standing(connection))
        _go(connection, copy, now, grace if copy.state != "Expiring" else None, reason, actor)
        return grace is None or copy.state == "Expiring"


def _go(
    connection: sa.Connection, copy: sa.Row[Any], now: dt.datetime, grace: dt.timedelta | None, reason: str, actor: str
) -> None:
    until = min(now, _LAST - grace) + grace if grace is not None else None
    again = copy.state == "Expiring"
    changed = {} if again else {"state": "Expiring", "changed_at": now, "message": reason}
    rows.update_copy(connection, copy.image_id, copy.number, grace_until=until, **changed)
    details = {"unit": copy.unit, "reason": copy.message if again else reason, "before": copy.state}
    if until is not None:
        details["until"] = times.show(until)
    audits.record(
        connection, now=now, actor=actor, event="CopyDeleting" if again else "CopyExpiring",
        object=f"copy/{copy.image_id}/{copy.number}", details=details,
    )  # fmt: skip


def mark_expired(db: database.Database, image_id: str, number: int, now: dt.datetime, actor: str) -> None:
    """The unit no longer holds the copy. Repeating it changes nothing.

    Rulings about what is gone now have been carried out. Raises ``NotFound``, ``CatalogError`` for a copy that nobody
    decided to expire, or that can still be taken back.
    """
    with db.writing() as connection:
        copy = rows.require_copy(connection, image_id, number)
        if copy.state == "Expired":
            return
        if copy.state != "Expiring":
            raise errors.CatalogError(f"copy {number} of image {image_id} is {copy.state}: nobody decided to expire it")
        if copy.grace_until is not None:
            raise errors.CatalogError(f"copy {number} of image {image_id} can still be taken back")
        rows.update_copy(connection, image_id, number, state="Expired", changed_at=now)
        standings.carried_out(connection, image_id, now)
        image = rows.require_image(connection, image_id)
        verifications.outlive(connection, image_id, number, image.client_id, now)
        imports.settle(connection, image.client_id, image.policy)
        details = {"unit": copy.unit, "reason": copy.message, "storedBytes": copy.stored_bytes}
        object = f"copy/{image_id}/{number}"
        audits.record(connection, now=now, actor=actor, event="CopyExpired", object=object, details=details)


def take_back(connection: sa.Connection, image_id: str, now: dt.datetime, actor: str, reason: str) -> tuple[str, ...]:
    """Make the copies of an image Complete again whose deletion has not begun, and the bases that they need.

    Returns them as ``IMAGE/NUMBER``; part of the caller's transaction.
    """
    taken = []
    copy = tables.COPIES.c
    waiting: list[tuple[str, str | None]] = [(image_id, None)]
    while waiting:
        image, unit = waiting.pop()
        query = sa.select(tables.COPIES).where(
            copy.image_id == image, copy.state == "Expiring", copy.grace_until.is_not(None)
        )
        if unit is not None:
            query = query.where(copy.unit == unit)
        for row in connection.execute(query).all():
            values: dict[str, Any] = {"state": "Complete", "grace_until": None, "changed_at": now, "message": ""}
            rows.update_copy(connection, image, row.number, **values)
            object = f"copy/{image}/{row.number}"
            details = {"unit": row.unit, "reason": reason}
            audits.record(connection, now=now, actor=actor, event="CopyTakenBack", object=object, details=details)
            taken.append(f"{image}/{row.number}")
            if row.base is not None:
                waiting.append((row.base, row.unit))
    return tuple(sorted(taken))
