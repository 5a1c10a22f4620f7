"""What came of earlier attempts at the same work, as decisions read it: from rows of ``jobs`` that have ended."""

from __future__ import annotations

import datetime as dt
from typing import Final

import sqlalchemy as sa

from reconciler.catalog import database, jobs, tables
from reconciler.planning import sightings

#: Failures further back than this no longer matter to any decision.
_MEMORY: Final = dt.timedelta(days=400)


def failed(db: database.Database) -> dict[str, sightings.Attempts]:
    """By address, what failed since its last success; only addresses whose last finished attempt did not succeed.

    Attempts that ended more than 400 days before the newest one are left out.
    """
    job, later = tables.JOBS, tables.JOBS.alias()
    lost = job.c.state == "Lost"
    overran = (job.c.state == "Cancelled") & (job.c.error_code == "WindowClosed")
    with db.reading() as connection:
        newest = connection.scalar(sa.select(sa.func.max(job.c.finished_at)).where(job.c.state.in_(jobs.FAILED)))
        if newest is None:
            return {}
        succeeded = sa.exists().where(
            later.c.address == job.c.address, later.c.number > job.c.number, later.c.state == "Succeeded"
        )
        counted = (
            sa.select(
                job.c.address,
                sa.func.count().label("failed"),
                sa.func.sum(sa.case((lost, 1), else_=0)).label("lost"),
                sa.func.sum(sa.case((lost & (job.c.error_code == "Stopped"), 1), else_=0)).label("stopped"),
                sa.func.sum(sa.case((overran, 1), else_=0)).label("overran"),
                sa.func.max(job.c.number).label("last"),
            )
            .where(job.c.state.in_(jobs.FAILED), job.c.finished_at >= newest - _MEMORY, ~succeeded)
            .group_by(job.c.address)
            .subquery()
        )
        query = sa.select(
            counted.c.address,
            counted.c.failed,
            counted.c.lost,
            counted.c.stopped,
            counted.c.overran,
            job.c.finished_at,
            job.c.state,
            job.c.error_code,
            job.c.error_message,
        ).join_from(counted, job, job.c.number == counted.c.last)
        return {
            row.address: sightings.Attempts(
                failed=int(row.failed),
                lost=int(row.lost),
                stopped=int(row.stopped),
                overran=int(row.overran),
                last_finished=row.finished_at,
                last_state="Overrun" if row.error_code == "WindowClosed" else row.state,
                message=row.error_message or "",
                code=row.error_code or "",
            )
            for row in connection.execute(query)
        }
