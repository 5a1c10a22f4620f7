"""``holdfast plan``: what would change, computed over the live catalog without touching anything."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from reconciler.api.documents import plans as documents
from reconciler.api.documents import saved
from reconciler.base import clocks, errors, files, quantities
from reconciler.catalog import database, inventories
from reconciler.cli import comparing, options, outputs, settings
from reconciler.controller import freeing, jumps, observations, passes
from reconciler.planning import actions, desired, foresights, observed, planfile, savedplans
from reconciler.reports import comments, markup, plans
from reconciler.storage import opening


def plan(
    estate: options.Estate = Path(),
    detailed: Annotated[bool, typer.Option("--detailed-exitcode", help="Exit 2 if anything is to be done.")] = False,
    horizon: Annotated[str, typer.Option(help="How far ahead to look, such as 24h.")] = "24h",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Save the plan for: holdfast apply FILE.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--from", metavar="REV", help="Compare from this git revision; else what is in force.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--to", metavar="REV", help="Compare to this git revision; else the work tree.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show every action and field.")] = False,
    most: Annotated[
        int, typer.Option("--max-bytes", min=markup.SMALLEST, help="markdown: bytes that the comment may have.")
    ] = markup.LARGEST,
    output: Annotated[
        options.PlanOutput, typer.Option("-o", "--output", help="text, json, or markdown for a pull request.")
    ] = options.PlanOutput.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Show what would change, what is due and what would be destroyed. Never acts, never locks, writes nothing."""
    chosen = settings.of_estate(estate, state=state, catalog=catalog)
    if before is not None or after is not None:
        if out is not None:
            raise errors.UsageError("--out saves a plan, not a comparison", hint="leave --from and --to out")
        wish = comparing.Wish(before=before, after=after, output=output, verbose=verbose, most=most)
        return comparing.compare(chosen, wish, detailed=detailed)
    looker = savedplans.facts if out is not None else None
    made, tree, facts = computed(chosen, clocks.from_environment(), look_ahead(horizon), measure=True, facts=looker)
    document = planfile.document(made)
    if out is not None and facts is not None:
        if tree.valid:
            text = savedplans.save(
                document,
                facts,
                estate=str(chosen.estate),
                state=str(chosen.state),
                catalog=chosen.catalog if "://" in chosen.catalog else str(Path(chosen.catalog).absolute()),
            )
            files.write_atomically(out.absolute(), text.encode())
        else:
            outputs.note(f"holdfast: the manifests have errors; nothing was saved as {out}")
    if output is options.PlanOutput.MARKDOWN:
        outputs.emit(document, options.Output.TEXT, lambda shown: comments.markdown(shown, most))
    else:
        outputs.emit(document, options.Output(output), lambda shown: _text(shown, verbose=verbose))
    if not tree.valid:
        return errors.ConfigurationError.exit_code
    return 2 if detailed and made.changes else 0


def _text(document: documents.Plan, *, verbose: bool) -> str:
    return plans.text(document, verbose=verbose, colour=outputs.colours(sys.stdout))


def look_ahead(text: str) -> dt.timedelta:
    """A horizon as a span. Raises ``UsageError``."""
    try:
        return quantities.Duration.parse(text).approximate
    except ValueError as error:
        raise errors.UsageError(f"--horizon: {error}") from error


#: What reads the facts behind a plan, such as ``savedplans.facts``.
Facts = Callable[[actions.Plan, desired.Desired, observed.Observed], saved.Facts]


class Computed(NamedTuple):
    """A plan, the reading of the estate behind it, and the facts if they were asked for."""

    plan: actions.Plan
    tree: passes.Tree
    facts: saved.Facts | None


def compute(
    chosen: settings.Settings,
    clock: clocks.Clock,
    horizon: dt.timedelta | None,
    *,
    measure: bool = False,
    given: tuple[observed.Approval, ...] = (),
) -> tuple[actions.Plan, passes.Tree]:
    """The plan over the catalog as it is. Reads again if a writer came in between.

    ``measure``: ask the units what the destructive part would really free. ``given``: as if this were approved too.
    """
    return computed(chosen, clock, horizon, measure=measure, given=given)[:2]


def computed(
    chosen: settings.Settings,
    clock: clocks.Clock,
    horizon: dt.timedelta | None,
    *,
    measure: bool = False,
    given: tuple[observed.Approval, ...] = (),
    at: dt.datetime | None = None,
    facts: Facts | None = None,
) -> Computed:
    """``compute``, with the facts that the plan was made from. ``at``: a moment that has passed, instead of now."""
    while True:
        with contextlib.ExitStack() as stack:
            db = database.open_reading(chosen.catalog)
            if db is not None:
                stack.callback(db.close)
            made = _compute_once(chosen, clock, horizon, db, measure=measure, given=given, at=at, facts=facts)
            if db is None or db.still_valid():
                return made


def _compute_once(
    chosen: settings.Settings,
    clock: clocks.Clock,
    horizon: dt.timedelta | None,
    db: database.Database | None,
    *,
    measure: bool,
    given: tuple[observed.Approval, ...],
    at: dt.datetime | None,
    facts: Facts | None,
) -> Computed:
    tree = passes.read_tree(chosen.estate, db)
    present = clock.now()
    now = at or present
    effective = passes.effective_now(tree.wanted, db, now)
    surveyed = observations.survey(effective, inventories.inventories(db) if db else {}, now, db.id if db else None)
    with contextlib.closing(opening.OpenUnits(owner=None, cache=None)) as units:
        units.declare(observations.declared_units(effective))
        jump = jumps.at_start(db, clock, present) if db else None
        seen = observations.gather(db, effective, surveyed, observations.look(db, effective, units), jump)
        seen = dataclasses.replace(seen, approvals=(*seen.approvals, *given), present=present)
        made = passes.decide(tree, seen, now, horizon)
        read = facts(made, effective, seen) if facts is not None else None
        if measure:
            made = freeing.measured(foresights.dated(made, tree.wanted, seen), units)
        return Computed(made, tree, read)
