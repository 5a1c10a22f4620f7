"""What came of proving copies: the last result of each kind, and the last of a series beyond its image.

``operations`` records what a verification found; ``planning`` decides from it when the next one is due and what the
series' ``Recoverable`` says. A content that proves false is not here alone: the copy is Damaged as well. Results
of contents go with their copy, those of drills, which tell of the image, with its last copy; but the last of a series,
operation and kind becomes a trial then, so that drills keep their period where images are kept for less.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from reconciler.catalog import audits, database, jobs, tables
from reconciler.planning import sightings

_NEVER: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
#: What a verification and a trial have in common.
_WORDS: Final = ("image_id", "copy_number", "kind", "state", "at", "message", "details", "job")


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
    #: Its copy has expired since.
    expired: bool


def record(
    db: database.Database,
    found: sightings.Verification,
    *,
    details: Mapping[str, Any],
    job: str | None,
    actor: str,
) -> bool:
    """Keep a result in place of the last one of its kind, and say so in the audit; False where the job has ended.

    Also in place of one with a later time: a clock that was set back must not make proofs count for nothing. A job
    that somebody took for dead is old news: another one may have found something since.
    """
    verification = tables.VERIFICATIONS
    chosen = sa.and_(
        verification.c.image_id == found.image,
        verification.c.copy_number == found.copy,
        verification.c.kind == found.kind,
    )
    with db.writing() as connection:
        if job is not None and jobs.has_ended(connection, job):
            return False
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
    return True


def verifications(db: database.Database) -> dict[str, tuple[sightings.Verification, ...]]:
    """The last results by image id, as decisions read them; of images that have a copy."""
    result: dict[str, list[sightings.Verification]] = {}
    with db.reading() as connection:
        for row in connection.execute(sa.select(tables.VERIFICATIONS)):
            result.setdefault(row.image_id, []).append(_found(row))
    return {image: tuple(found) for image, found in result.items()}


def of_client(db: database.Database, client_id: str) -> tuple[sightings.Verification, ...]:
    """All that was found of the images of one client, trials too."""
    verification, image = tables.VERIFICATIONS, tables.IMAGES
    left = sa.select(verification).join_from(verification, image).where(image.c.client_id == client_id)
    gone = sa.select(tables.TRIALS).where(tables.TRIALS.c.client_id == client_id)
    with db.reading() as connection:
        return tuple(_found(row) for query in (left, gone) for row in connection.execute(query))


def trials(db: database.Database) -> dict[tuple[str, str], tuple[sightings.Trial, ...]]:
    """The last results that outlived what they are about, by client id and policy: one of each operation and kind."""
    result: dict[tuple[str, str], list[sightings.Trial]] = {}
    with db.reading() as connection:
        for row in connection.execute(_trials()):
            trial = sightings.Trial(operation=row.operation, found=_found(row))
            result.setdefault((row.client_id, row.policy), []).append(trial)
    return {series: tuple(found) for series, found in result.items()}


def list_verifications(db: database.Database, *, client_id: str | None = None) -> tuple[VerificationRow, ...]:
    """The last results, of one client or of all, oldest first; trials as long as there is no later result."""
    verification, image, copy = tables.VERIFICATIONS, tables.IMAGES, tables.COPIES
    columns = (verification, image.c.client_id, image.c.policy, copy.c.operation, copy.c.state.label("copy_state"))
    query = sa.select(*columns).join_from(verification, image).join(copy, _of(verification))
    gone = _trials()
    if client_id is not None:
        query = query.where(image.c.client_id == client_id)
        gone = gone.where(tables.TRIALS.c.client_id == client_id)
    with db.reading() as connection:
        rows = connection.execute(query).all()
        latest: dict[tuple[str, ...], dt.datetime] = {}
        for row in rows:
            latest[_place(row)] = max(row.at, latest.get(_place(row), row.at))
        left = [row for row in connection.execute(gone) if row.at > latest.get(_place(row), _NEVER)]
    found = [
        *(_row(row, expired=row.copy_state == "Expired") for row in rows),
        *(_row(row, expired=True) for row in left),
    ]
    return tuple(sorted(found, key=lambda one: (one.at, one.image)))


def outlive(connection: sa.Connection, image_id: str, number: int, client_id: str, now: dt.datetime) -> None:
    """A copy is gone: results go that are about nothing any more, but for the last of the series among all that went.

    Part of the caller's transaction. A content that proved false was about that copy alone.
    """
    verification, trial, copy = tables.VERIFICATIONS, tables.TRIALS, tables.COPIES.c
    left = sa.select(copy.number).where(copy.image_id == image_id, copy.state != "Expired").limit(1)
    chosen = verification.c.image_id == image_id
    if connection.scalar(left) is not None:
        # Copies are the same, bit for bit: what a drill found of one is true of the others.
        chosen &= sa.and_(verification.c.copy_number == number, verification.c.kind == sightings.CONTENT)
    limit = now + sightings.AHEAD
    for row in connection.execute(sa.select(verification).where(chosen)).all():
        if (row.kind, row.state) == (sightings.CONTENT, "Failed"):
            continue
        rivals = tuple(_rivals(connection, row, client_id))
        # One from a clock that was ahead dates nothing.
        if any((one.at <= limit, one.at) > (row.at <= limit, row.at) for one in rivals):
            continue
        for one in rivals:
            key = (trial.c.image_id == one.image_id, trial.c.copy_number == one.copy_number, trial.c.kind == one.kind)
            connection.execute(trial.delete().where(*key))
        values = {word: getattr(row, word) for word in _WORDS}
        connection.execute(trial.insert().values(client_id=client_id, **values))
    connection.execute(verification.delete().where(chosen))


def _rivals(connection: sa.Connection, row: sa.Row[Any], client_id: str) -> Iterator[sa.Row[Any]]:
    """Trials of the same series, operation and kind as a verification."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    policy = sa.select(image.policy).where(image.id == row.image_id).scalar_subquery()
    operation = (
        sa.select(copy.operation).where(copy.image_id == row.image_id, copy.number == row.copy_number).scalar_subquery()
    )
    same = (tables.TRIALS.c.client_id == client_id, tables.TRIALS.c.kind == row.kind)
    yield from connection.execute(_trials().where(*same, image.policy == policy, copy.operation == operation)).all()


def _trials() -> sa.Select[Any]:
    """Trials with the names that their policy and operation have now."""
    columns = (tables.TRIALS, tables.IMAGES.c.policy, tables.COPIES.c.operation)
    joined = sa.select(*columns).join_from(tables.TRIALS, tables.IMAGES, tables.TRIALS.c.image_id == tables.IMAGES.c.id)
    return joined.join(tables.COPIES, _of(tables.TRIALS))


def _of(table: sa.Table) -> sa.ColumnElement[bool]:
    """That a row of ``table`` is about a copy."""
    copy = tables.COPIES.c
    return sa.and_(copy.image_id == table.c.image_id, copy.number == table.c.copy_number)


def _found(row: sa.Row[Any]) -> sightings.Verification:
    return sightings.Verification(
        image=row.image_id, copy=row.copy_number, kind=row.kind, state=row.state, at=row.at, message=row.message
    )


def _row(row: sa.Row[Any], *, expired: bool) -> VerificationRow:
    return VerificationRow(
        image=row.image_id, copy=row.copy_number, kind=row.kind, state=row.state, at=row.at, message=row.message,
        details=row.details, job=row.job, client_id=row.client_id, policy=row.policy, expired=expired,
    )  # fmt: skip


def _place(row: sa.Row[Any]) -> tuple[str, ...]:
    """What a result is the last of."""
    return row.client_id, row.policy, row.operation, row.kind
