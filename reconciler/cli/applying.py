"""``holdfast apply`` and ``holdfast run``: one pass, or the loop."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from reconciler.api.documents import results
from reconciler.api.documents import saved as documents
from reconciler.base import clocks, errors, times
from reconciler.catalog import database, leases
from reconciler.cli import options, outputs, planning, progress, seats, sessions, settings
from reconciler.controller import handovers, loop, outcomes, passes
from reconciler.planning import planfile, savedplans
from reconciler.reports import passes as reports
from reconciler.reports import plans

_T = TypeVar("_T")

#: What moved is named up to this many times.
_REASONS = 12

UntilConverged = Annotated[
    bool, typer.Option("--until-converged", help="Also wait for windows and retries, then exit.")
]


def apply(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="The estate, or a plan that plan --out saved.")
    ] = Path(),
    yes: options.Yes = False,
    until_converged: UntilConverged = False,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Put the manifests in force and do what is due. A saved plan is applied without asking, if nothing moved."""
    sessions.start_logging()
    clock = clocks.from_environment()
    if path.is_dir():
        chosen = settings.of_estate(path, state=state, catalog=catalog)
        code = _migrating(chosen, lambda: _confirm(chosen, clock, yes=yes, output=output))
    else:
        chosen = _saved(path, clock, catalog)
        code = None
    if code is not None:
        return code
    with sessions.writing(chosen, create=True) as db:
        holder = leases.holder(chosen.state, db)
        if holder is not None:
            answer = handovers.hand_over(db, holder, chosen.state, chosen.estate, clock, sessions.actor(), outputs.note)
            return _answered(answer, output)
        return _pass(chosen, db, clock, until_converged=until_converged, output=output)


def _migrating(chosen: settings.Settings, work: Callable[[], _T]) -> _T:
    """What ``work`` comes to; a catalog that an older Holdfast made is migrated first, and ``work`` begun again."""
    try:
        return work()
    except errors.CatalogTooOld as error:
        with sessions.writing(chosen, create=True):
            outputs.note(f"holdfast: {error.message}; it was migrated")
        return work()


def _confirm(chosen: settings.Settings, clock: clocks.Clock, *, yes: bool, output: options.Output) -> int | None:
    """Check and, on a terminal, show the plan and ask; an exit code where nothing is to be done."""
    made, tree = planning.compute(chosen, clock, None, measure=not yes)
    if not tree.valid:
        for problem in tree.problems:
            outputs.note(str(problem))
        outputs.note("holdfast: the manifests have errors; nothing was done, what was in force stays in force")
        if output is options.Output.JSON:
            nothing = outcomes.result(made, (), 0).model_copy(update={"converged": False})
            outputs.emit(nothing, output, reports.text)
        return errors.ConfigurationError.exit_code
    if yes or not made.changes:
        return None
    if not outputs.terminal():
        raise errors.UsageError(
            "apply asks before it acts, and there is no terminal", hint="use --yes, or apply a saved plan"
        )
    shown = plans.text(planfile.document(made), verbose=False, colour=outputs.colours(sys.stderr))
    outputs.note(shown)
    if not outputs.ask("Apply this?"):
        outputs.note("nothing was done")
        return errors.HoldfastError.exit_code
    return None


def _saved(path: Path, clock: clocks.Clock, catalog: str | None) -> settings.Settings:
    """Read a saved plan and prove that nothing it describes has moved. Raises ``StalePlan``, ``UsageError``
    or ``FormatTooNew``."""
    try:
        saved = savedplans.read(path.read_text(), clock.now())
    except errors.UsageError as error:
        raise errors.UsageError(f"{path}: {error.message}", hint=error.hint) from error
    except (OSError, ValueError) as error:
        raise errors.UsageError(
            f"{path} is neither a folder nor a saved plan", hint="name the estate, or a file that plan --out wrote"
        ) from error
    chosen = _where(saved, catalog)
    read = functools.partial(savedplans.facts, also=saved.facts)
    then = times.aware(saved.now)  # at the plan's own now, so that only what moved differs
    fresh, _, facts = _migrating(chosen, lambda: planning.computed(chosen, clock, None, at=then, facts=read))
    reasons = planfile.compare(saved, planfile.document(fresh))
    if reasons:
        found = [*(savedplans.moved(saved.facts, facts) if facts is not None else ()), *reasons]
        rest = f"; and {len(found) - _REASONS} more" if len(found) > _REASONS else ""
        raise errors.StalePlan(
            "the saved plan is stale: " + "; ".join(found[:_REASONS]) + rest, hint="plan again, and review what is new"
        )
    for words in savedplans.since(saved, clock.now()):
        outputs.note(f"holdfast: {words}")
    return chosen


def _where(saved: documents.SavedPlan, catalog: str | None) -> settings.Settings:
    """The estate, state and catalog of a saved plan. The file holds no password: that comes from where it always does.
    Raises ``UsageError`` where that names another catalog."""
    estate = settings.of_estate(Path(saved.estate), state=Path(saved.state), catalog=catalog)
    if savedplans.without_secret(estate.catalog) != saved.catalog:
        if catalog is None and "://" not in saved.catalog:
            return dataclasses.replace(estate, catalog=saved.catalog)
        raise errors.UsageError(
            f"the plan was made over the catalog {saved.catalog}", hint="name it with --catalog, or in holdfast.toml"
        )
    return estate


def _pass(
    chosen: settings.Settings,
    db: database.Database,
    clock: clocks.Clock,
    *,
    until_converged: bool,
    output: options.Output,
) -> int:
    with sessions.stopping() as stop, seats.controlling(chosen, db, clock) as controller:
        return finish_pass(controller, stop, until_converged=until_converged, output=output)


def finish_pass(
    controller: passes.Controller, stop: threading.Event, *, until_converged: bool, output: options.Output
) -> int:
    """Turn until the pass is over and print what it did."""
    with progress.shown(controller.engine) as refresh:
        plan = loop.one_pass(controller, until_converged=until_converged, stop=stop, progress=refresh)
    for problem in plan.problems:
        outputs.note(str(problem))
    document = outcomes.result(plan, controller.tally.finished, controller.tally.configuration)
    outputs.emit(document, output, lambda shown: reports.text(shown, planfile.document(plan)))
    return outcomes.exit_code(document, plan)


def _answered(answer: dict[str, Any], output: options.Output) -> int:
    outputs.emit(results.ApplyResult.model_validate(answer["result"]), output, reports.text)
    return int(answer["exitCode"])


def run(
    estate: options.Estate = Path(),
    once: Annotated[bool, typer.Option("--once", help="One pass, then exit.")] = False,
    until_converged: UntilConverged = False,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Keep the estate converged until SIGTERM or SIGINT."""
    sessions.start_logging()
    clock = clocks.from_environment()
    chosen = settings.of_estate(estate, state=state, catalog=catalog)
    with (
        sessions.writing(chosen, create=True) as db,
        sessions.stopping() as stop,
        seats.controlling(chosen, db, clock) as controller,
    ):
        if once or until_converged:
            return finish_pass(controller, stop, until_converged=until_converged, output=output)
        outputs.note(f"holdfast: keeping {chosen.estate}; stop with SIGTERM or Ctrl-C")
        with progress.shown(controller.engine) as refresh:
            loop.for_ever(controller, stop=stop, progress=refresh, say=outputs.note)
    return 0
