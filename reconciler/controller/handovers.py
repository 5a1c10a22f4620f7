"""Asking a living controller to act, and watching it: ``apply`` beside ``run``, ``backup`` with a loop at work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reconciler.base import clocks, errors
from reconciler.catalog import database, jobs, leases, requests

#: How often an answer is looked for, in seconds.
_POLL = 0.25


def hand_over(
    db: database.Database,
    holder: leases.Holder,
    state: Path,
    estate: Path | None,
    clock: clocks.Clock,
    actor: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Ask the living controller for a pass over its tree and wait for its end; what it answered.

    Raises ``LeaseHeld`` if it keeps another estate, ``HoldfastError`` if it ends before it answered.
    """
    if estate is not None and holder.estate != str(estate):
        raise errors.LeaseHeld(
            f"another controller lives: {holder.describe()}, and keeps {holder.estate}",
            hint="apply the estate that it keeps, or stop it first",
        )
    say(f"handed over to {holder.describe()}")
    request = requests.add(db, "Apply", {"estate": str(estate)}, clock.now(), actor)
    return wait_for(db, request, state)


def backup_answer(db: database.Database, request: requests.RequestRow) -> dict[str, Any]:
    """What came of a request for a backup, by the newest attempt since it was made."""
    made = _attempts(db, request)
    if made and made[-1].state == "Succeeded":
        return {"state": "Succeeded", "image": made[-1].image}
    why = made[-1].error_message if made else "the policy, the machine or the source is no longer there"
    return {"state": made[-1].state if made else "Failed", "message": why or "failed"}


def backup_trouble(db: database.Database, request: requests.RequestRow) -> dict[str, Any] | None:
    """The answer to who waits, as soon as one attempt has failed: retries may follow, minutes later."""
    made = _attempts(db, request)
    if made and made[-1].state in ("Failed", "Partial", "Cancelled"):
        return backup_answer(db, request)
    return None


def _attempts(db: database.Database, request: requests.RequestRow) -> list[jobs.JobRow]:
    found = jobs.list_jobs(
        db, type="Backup", client_id=str(request.payload["client"]), policy=str(request.payload["policy"])
    )
    after = request.payload.get("afterJob")
    if after is None:
        return [job for job in found if job.queued_at >= request.at]
    return [job for job in found if jobs.job_number(job.id) > after]


def wait_for(
    db: database.Database,
    request: str,
    state: Path,
    *,
    early: Callable[[], dict[str, Any] | None] = lambda: None,
) -> dict[str, Any]:
    """Wait until a request is answered, or ``early`` knows enough. Raises ``HoldfastError`` when no controller lives
    any more."""
    while True:
        found = requests.outcome(db, request) or early()
        if found is not None:
            return found
        if leases.holder(state, db) is None:
            raise errors.HoldfastError(
                "the controller ended before it answered", hint="look at its log, then try again"
            )
        time.sleep(_POLL)
