"""``holdfast backup`` asks for a backup through its policy; ``holdfast cancel`` stops a job."""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import functools
import time
from typing import Annotated

import typer

from reconciler.api import policies
from reconciler.api.documents import results
from reconciler.base import clocks, errors, times
from reconciler.catalog import database, inventories, jobs, leases, requests, workers
from reconciler.cli import applying, options, outputs, seats, sessions, settings
from reconciler.controller import handovers
from reconciler.planning import observed


def backup(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Name of a policy in force.")],
    client: Annotated[
        str | None, typer.Argument(metavar="CLIENT", help="One client; all of the policy's by default.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; runs the pass itself if no controller lives.")
    ] = False,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Ask the loop for a slot now. Windows and limits of the policy hold as always."""
    sessions.start_logging()
    chosen = settings.of_state(state=state, catalog=catalog)
    clock = clocks.from_environment()
    with sessions.writing(chosen) as db:
        now = clock.now()
        machines = _machines(db, policy, client, now)
        made = [requests.ask_backup(db, policy, one.id, now, sessions.actor()) for one in machines]
        holder = leases.holder(chosen.state, db)
        if not wait:
            after = (
                f"{holder.describe()} takes it up"
                if holder
                else "no controller lives: start holdfast run, or use --wait"
            )
            message = f"asked for {policy} of {', '.join(one.name for one in machines)}; {after}"
            outputs.emit(results.Message(done=True, message=message, details={"requests": made}), output, _message)
            return 0
        if holder is None:
            estate_less = dataclasses.replace(chosen, estate=None)
            with sessions.stopping() as stop, seats.controlling(estate_less, db, clock) as controller:
                return applying.finish_pass(controller, stop, until_converged=False, output=output)
        asked = {row.id: row for row in requests.pending(db, "Backup")}
        answers = [
            handovers.wait_for(db, one, chosen.state, early=functools.partial(handovers.backup_trouble, db, asked[one]))
            if one in asked
            else requests.outcome(db, one) or {}
            for one in made
        ]
        failed = [str(one.get("message", "failed")) for one in answers if one.get("state") != "Succeeded"]
        message = "; ".join(failed) or f"{policy}: done for {', '.join(one.name for one in machines)}"
        outputs.emit(results.Message(done=not failed, message=message), output, _message)
        return 3 if failed else 0


def _machines(db: database.Database, policy: str, client: str | None, now: dt.datetime) -> list[observed.Machine]:
    inventories_known = inventories.inventories(db)
    applied = {
        name: item.object
        for (kind, name), item in inventories.applied(db).items()
        if kind == "BackupPolicy" and not item.orphaned
    }
    if policy not in applied:
        near = difflib.get_close_matches(policy, applied, 1)
        hint = f"did you mean {near[0]}?" if near else f"in force are: {', '.join(sorted(applied)) or 'none'}"
        raise errors.NotFound(f"no policy {policy} is in force", hint=hint)
    known = applied[policy]
    suspend = known.spec.suspend if isinstance(known, policies.BackupPolicy) else None
    if suspend is not None and suspend.until > now:
        raise errors.HoldfastError(
            f"policy {policy} is suspended until {times.show_minutes(suspend.until)}: {suspend.reason}",
            hint="nothing was asked for; take suspend out of its manifest and apply that",
        )
    machines = list(inventories_known[policy].machines) if policy in inventories_known else []
    if client is not None:
        wanted = inventories.find_client(db, client)
        machines = [one for one in machines if one.id == wanted.id]
    if not machines:
        raise errors.NotFound(f"policy {policy} matches {'no machine' if client is None else f'no machine {client}'}")
    return machines


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as get jobs shows it.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the work to stop.")] = 120.0,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Stop a job; returns when its source is closed and no byte of the unit changes any more."""
    clock = clocks.from_environment()
    with sessions.writing(settings.of_state(state=state, catalog=catalog)) as db:
        row = jobs.request_cancel(db, job, clock.now(), sessions.actor())
        deadline = time.monotonic() + timeout
        while row.state in ("Queued", "Running"):
            if time.monotonic() > deadline:
                raise errors.HoldfastError(
                    f"{job} has not stopped after {timeout:.0f} s", hint="look at holdfast logs " + job
                )
            time.sleep(0.1)
            jobs.lose_dead(db, alive=workers.alive, now=clock.now())
            row = jobs.get(db, job)
        message = f"{job} is {row.state.lower()}: {row.address}"
        outputs.emit(results.Message(done=True, message=message, details={"state": row.state}), output, _message)
    return 0


def _message(document: results.Message) -> str:
    return document.message
