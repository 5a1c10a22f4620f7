"""``holdfast get`` and ``holdfast logs``."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from reconciler.api.documents import shapes
from reconciler.base import times
from reconciler.catalog import database, jobs, machines
from reconciler.cli import commands, options, outputs, sessions, settings
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
    VERIFICATIONS = "verifications"
    RESTORES = "restores"


def get(
    what: Annotated[
        What,
        typer.Argument(
            metavar="WHAT", help="images, copies, jobs, clients, units, policies, audit, verifications or restores."
        ),
    ],
    client: Annotated[
        str | None, typer.Option("--client", help="Only of this client (not units, policies, audit).")
    ] = None,
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
    wish = Wish(client=client, policy=policy, image=image, unit=unit, job_state=job_state, limit=limit)
    if what in _FACTS:
        build, render = _FACTS[what]
        outputs.emit(sessions.read(chosen, lambda db: build(db, wish)), output, render)
    else:
        # Loaded only now: the lists above need neither the units nor the planner.
        commands.load("judging").emit(what.value, chosen, wish, output)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the list is narrowed to."""

    client: str | None
    policy: str | None
    image: str | None
    unit: str | None
    job_state: str | None
    limit: int | None

    def client_id(self, db: database.Database) -> str | None:
        """The id behind the client's name. Raises ``NotFound``."""
        return machines.find_client(db, self.client).id if self.client else None


#: Lists that the catalog alone answers.
_FACTS: Mapping[What, tuple[Callable[[database.Database, Wish], Any], Callable[[Any], str]]] = {
    What.IMAGES: (
        lambda db, wish: listings.image_list(db, client_id=wish.client_id(db), policy=wish.policy),
        tables.images,
    ),
    What.JOBS: (
        lambda db, wish: listings.job_list(db, state=wish.job_state, client_id=wish.client_id(db)),
        tables.jobs,
    ),
    What.AUDIT: (lambda db, wish: listings.audit_list(db, wish.limit), tables.audit),
    What.VERIFICATIONS: (
        lambda db, wish: listings.verification_list(db, client_id=wish.client_id(db)),
        tables.verifications,
    ),
    What.RESTORES: (lambda db, wish: listings.restore_list(db, client_id=wish.client_id(db)), tables.restores),
}


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

    def build(db: database.Database) -> JobLog:
        jobs.get(db, job)
        return JobLog(job=job, lines=tuple((line.at, line.line) for line in jobs.logs(db, job)))

    document = sessions.read(settings.of_state(state=state, catalog=catalog), build)
    outputs.emit(
        document, output, lambda log: "\n".join(f"{times.show_milliseconds(at)}  {line}" for at, line in log.lines)
    )
    return 0
