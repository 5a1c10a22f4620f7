"""``holdfast probe`` and ``holdfast validate --live``: does the world look like the manifests say?"""

from __future__ import annotations

import socket
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from reconciler.api.documents import probes as documents
from reconciler.api.documents import results
from reconciler.base import clocks, diagnostics, errors, meters
from reconciler.catalog import database, inventories
from reconciler.cli import options, outputs, sessions, settings
from reconciler.controller import probes
from reconciler.intake import estates
from reconciler.operations import steps
from reconciler.reports import tables

#: Columns of a line where nobody says how wide it may be.
_WIDTH = 100
#: Columns that the name of a step takes at most.
_STEP = 20


def probe(
    policy: Annotated[
        list[str] | None, typer.Argument(metavar="POLICY", help="Policies to try; everything by default.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--machine", metavar="NAME", help="The machine that is tried; the first that can be backed up."),
    ] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Log in, resolve selections, freeze and read one machine of each policy, look at every unit; leave nothing.

    Exit 1 if a step failed, 4 if the manifests have errors.
    """
    try:
        chosen = settings.of_state(state=state, catalog=catalog)
    except errors.UsageError:
        # Nobody has applied anything yet, and that is when it is worth knowing.
        chosen = settings.of_estate(Path(), state=state, catalog=catalog)
    wish = probes.Wish(policies=frozenset(policy or ()), machine=machine, clock=clocks.from_environment())
    return _probe(chosen, wish, output)


def live(estate: Path, output: options.Output, state: Path | None, catalog: str | None) -> int:
    """``validate --live``: everything that the estate names."""
    return _probe(
        settings.of_estate(estate, state=state, catalog=catalog), probes.Wish(clock=clocks.from_environment()), output
    )


def _probe(chosen: settings.Settings, wish: probes.Wish, output: options.Output) -> int:
    if chosen.estate is None:
        raise errors.UsageError("there are no manifests here", hint="go to the estate's folder")
    loaded = estates.load(chosen.estate, clocks.from_environment().now())
    for one in loaded.diagnostics:
        outputs.note(str(one))
    if loaded.desired is None:
        wrong = sum(one.severity is diagnostics.Severity.ERROR for one in loaded.diagnostics)
        if output is options.Output.JSON:
            outputs.emit(_invalid(loaded), output, lambda _document: "")
        else:
            outputs.note(f"holdfast: nothing is tried: the manifests have {wrong} errors")
        return errors.ConfigurationError.exit_code
    taken = steps.Steps(_heard if outputs.terminal() and output is options.Output.TEXT else lambda _step: None)
    meter = meters.Meter()
    ears = chosen.ears
    with sessions.cancelling(meter):
        probes.probe(
            taken, loaded.desired, _known(chosen), (ears.urls, ears.trouble), wish, socket.gethostname(), meter
        )
    document = documents.ProbeResult(passed=taken.whole, steps=tuple(_step(one) for one in taken.taken))
    outputs.emit(document, output, _text)
    return 0 if document.passed else errors.HoldfastError.exit_code


def _invalid(loaded: estates.Loaded) -> documents.ProbeResult:
    found = [results.diagnostic_item(one) for one in loaded.diagnostics]
    return documents.ProbeResult(
        passed=False,
        steps=tuple(
            documents.ProbeStep(
                subject=one.object or one.file or "manifests",
                step="manifest",
                verdict="Failed" if one.severity == "Error" else "Warning",
                message=f"{one.file}:{one.line}:{one.column}: {one.message} [{one.code}]",
                hint=one.hint,
                seconds=0.0,
            )
            for one in found
        ),
    )


def _known(chosen: settings.Settings) -> probes.Known:
    """Read without a trace; an estate without a catalog has none to know."""

    def read(db: database.Database) -> probes.Known:
        return probes.Known(catalog=db.id, units=inventories.known_units(db))

    return database.read(chosen.catalog, read) or probes.Known()


def _step(step: steps.Step) -> documents.ProbeStep:
    said = step.said
    return documents.ProbeStep(
        subject=step.subject,
        step=step.step,
        verdict=said.verdict,
        message=said.message,
        hint=said.hint,
        seconds=step.seconds,
    )


def _heard(step: steps.Step) -> None:
    outputs.note(f"{step.subject} {step.step}: {step.said.verdict}")


def _text(document: documents.ProbeResult) -> str:
    width = tables.terminal() or _WIDTH
    column = min(max((len(one.step) for one in document.steps), default=0), _STEP)
    lines: list[str] = []
    subject = None
    for one in document.steps:
        if one.subject != subject:
            subject = one.subject
            lines += ["", subject]
        lines += _lines(one, column, width)
    count = {verdict: sum(one.verdict == verdict for one in document.steps) for verdict in ("Failed", "Warning")}
    end = f"{len(document.steps)} steps, {count['Failed']} failed, {count['Warning']} warnings"
    return "\n".join([*lines[1:], "", f"{'passed' if document.passed else 'failed'}: {end}"])


def _lines(one: documents.ProbeStep, column: int, width: int) -> list[str]:
    """Verdict, step and seconds in columns; what was found and what to do below each other beside them."""
    head = f"  {one.verdict:<7}  {one.step:<{column}}  {one.seconds:6.1f} s  "
    indent = " " * len(head)
    found = textwrap.wrap(one.message, max(width - len(head), 24), break_on_hyphens=False)
    hint = textwrap.wrap(f"-> {one.hint}", max(width - len(head), 24), break_on_hyphens=False) if one.hint else []
    first, *more = [*(found or [""]), *hint]
    return [head + first, *(indent + line for line in more)]
