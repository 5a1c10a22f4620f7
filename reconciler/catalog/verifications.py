"""What came of proving copies: the last result of each kind, kept until its copy has expired.

``operations`` records what a verification found; ``planning`` decides from it when the next one is due and what the
series' ``Recoverable`` says. A content that proves false is not here alone: the copy is Damaged as well.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from reconciler.catalog import audits, database, tables
from reconciler.planning import observed


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerificationRow:
    """One result, with who it is about."""

    image: str
    copy: int
    #: Content, Files or Boot.
    kind: str
    #: Passed or Failed.
    state: str
    at: dt.datetime
    message: str
    details: Mapping[str, Any]
    job: str | None
    client_id: str
    policy: str


def record(
    db: database.Database,
    found: observed.Verification,
    *,
    details: Mapping[str, Any],
    job: str | None,
    actor: str,
) -> None:
    """Keep a result in place of the last one of its kind, and say so in the audit.

    Also in place of one with a later time: a clock that was set back must not make proofs count for nothing.
    """
    verification = tables.VERIFICATIONS
    chosen = sa.and_(
        verification.c.image_id == found.image,
        verification.c.copy_number == found.copy,
        verification.c.kind == found.kind,
    )
    with db.writing() as connection:
        connection.execute(verification.delete().where(chosen))
        connection.execute(
            verification.insert().values(
                image_id=found.image, copy_number=found.copy, kind=found.kind, state=found.state, at=found.at,
                message=found.message, details=dict(details), job=job,
            )
        )  # fmt: skip
        audits.record(
            connection, now=found.at, actor=actor, event=f"Verification{found.state}",
            object=f"copy/{found.image}/{found.copy}",
            details={"kind": found.kind, "message": found.message, "job": job},
        )  # fmt: skip


def verifications(db: database.Database) -> dict[str, tuple[observed.Verification, ...]]:
    """The last results by image id, as decisions read them."""
    result: dict[str, list[observed.Verification]] = {}
    with db.reading() as connection:
        for row in connection.execute(sa.select(tables.VERIFICATIONS)):
            one = observed.Verification(
                image=row.image_id, copy=row.copy_number, kind=row.kind, state=row.state, at=row.at, message=row.message
            )
            result.setdefault(row.image_id, []).append(one)
    return {image: tuple(found) for image, found in result.items()}


def list_verifications(db: database.Database, *, client_id: str | None = None) -> tuple[VerificationRow, ...]:
    """The last results, of one client or of all, oldest first."""
    query = sa.select(tables.VERIFICATIONS, tables.IMAGES.c.client_id, tables.IMAGES.c.policy).join(
        tables.IMAGES, tables.IMAGES.c.id == tables.VERIFICATIONS.c.image_id
    )
    if client_id is not None:
        query = query.where(tables.IMAGES.c.client_id == client_id)
    with db.reading() as connection:
        rows = connection.execute(query.order_by(tables.VERIFICATIONS.c.at, tables.VERIFICATIONS.c.image_id)).all()
    return tuple(
        VerificationRow(
            image=row.image_id, copy=row.copy_number, kind=row.kind, state=row.state, at=row.at, message=row.message,
            details=row.details, job=row.job, client_id=row.client_id, policy=row.policy,
        )
        for row in rows
    )  # fmt: skip


def forget(connection: sa.Connection, image_id: str, number: int) -> None:
    """The copy is gone; part of the caller's transaction."""
    verification = tables.VERIFICATIONS
    connection.execute(
        verification.delete().where(verification.c.image_id == image_id, verification.c.copy_number == number)
    )
