"""``holdfast get`` and ``holdfast logs``."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from reconciler.api.documents import shapes
from reconciler.base import times
from reconciler.catalog import inventories, jobs
from reconciler.cli import options, outputs, sessions, settings, views
from reconciler.controller import listings
from reconciler.reports import listings as tables


class What(enum.StrEnum):
    """What ``get`` lists."""

    IMAGES = "images"
    COPIES = "copies"
    JOBS = "jobs"
    CLIENTS = "clients"
    UNITS = "units"
    POLICIES = "policies"
    AUDIT = "audit"


def get(
    what: Annotated[
        What, typer.Argument(metavar="WHAT", help="images, copies, jobs, clients, units, policies or audit.")
    ],
    client: Annotated[str | None, typer.Option("--client", help="Only of this client (images, copies, jobs).")] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="Only of this policy (images).")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Only of this image (copies).")] = None,
    unit: Annotated[str | None, typer.Option("--unit", help="Only on this unit (copies).")] = None,
    job_state: Annotated[
        str | None, typer.Option("--job-state", help="Only in this state, such as Running (jobs).")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the newest so many lines (audit).")] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """List what the catalog knows, sorted by the first column."""
    chosen = settings.of_state(state=state, catalog=catalog)
    if what in (What.IMAGES, What.JOBS, What.AUDIT):
        return _from_catalog(chosen, what, client, policy, job_state, limit, output)
    with views.in_force(chosen) as view:
        client_id = inventories.find_client(view.db, client).id if client else None
        if what is What.COPIES:
            copies = listings.copy_list(
                view.db, view.decisions(), view.seen.units, image=image, client_id=client_id, unit=unit
            )
            outputs.emit(copies, output, tables.copies)
        elif what is What.CLIENTS:
            outputs.emit(listings.client_list(view.db, view.wanted, view.seen, view.now), output, tables.clients)
        elif what is What.UNITS:
            outputs.emit(listings.unit_list(view.db, view.wanted, view.seen), output, tables.units)
        else:
            outputs.emit(listings.policy_list(view.db, view.wanted, view.seen, view.plan()), output, tables.policies)
    return 0


def _from_catalog(
    chosen: settings.Settings,
    what: What,
    client: str | None,
    policy: str | None,
    job_state: str | None,
    limit: int | None,
    output: options.Output,
) -> int:
    with sessions.reading(chosen) as db:
        client_id = inventories.find_client(db, client).id if client else None
        if what is What.IMAGES:
            outputs.emit(listings.image_list(db, client_id=client_id, policy=policy), output, tables.images)
        elif what is What.JOBS:
            outputs.emit(listings.job_list(db, state=job_state, client_id=client_id), output, tables.jobs)
        else:
            outputs.emit(listings.audit_list(db, limit), output, tables.audit)
    return 0


class JobLog(shapes.Document):
    """``logs``."""

    kind: str = "JobLog"
    job: str
    lines: tuple[tuple[shapes.MilliTime, str], ...]


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as get jobs shows it.")],
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """What a job said, line by line."""
    with sessions.reading(settings.of_state(state=state, catalog=catalog)) as db:
        jobs.get(db, job)
        document = JobLog(job=job, lines=tuple((line.at, line.line) for line in jobs.logs(db, job)))
    outputs.emit(
        document, output, lambda log: "\n".join(f"{times.show_milliseconds(at)}  {line}" for at, line in log.lines)
    )
    return 0
