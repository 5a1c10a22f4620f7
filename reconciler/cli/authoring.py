"""``holdfast validate``: are the manifests good? No catalog, no network, no state, unless ``--live`` asks the world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, diagnostics, errors
from reconciler.cli import commands, options, outputs
from reconciler.intake import estates


def validate(
    estate: options.Estate = Path(),
    live: Annotated[
        bool, typer.Option("--live", help="Also log in, resolve selections, try a snapshot and look at units.")
    ] = False,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Check every manifest and report all problems at once. Exit 4 if there are errors; warnings alone pass."""
    if live:
        # Loaded here alone: whoever only checks manifests does not wait for what talks to the world.
        return int(commands.load("probing").live(estate, output, state, catalog))
    loaded = estates.load(estate, clocks.from_environment().now())
    found = [one.severity for one in loaded.diagnostics]
    wrong = found.count(diagnostics.Severity.ERROR)
    document = results.ValidationResult(
        valid=wrong == 0,
        errors=wrong,
        warnings=found.count(diagnostics.Severity.WARNING),
        objects=loaded.objects,
        revision=loaded.revision,
        diagnostics=tuple(results.diagnostic_item(one) for one in loaded.diagnostics),
    )
    if output is options.Output.TEXT:
        for one in loaded.diagnostics:
            outputs.note(str(one))
    outputs.emit(document, output, _text)
    return errors.ConfigurationError.exit_code if wrong else 0


def _text(document: results.ValidationResult) -> str:
    verdict = "valid" if document.valid else "invalid"
    found = f"{document.objects} objects, {document.errors} errors, {document.warnings} warnings"
    return f"{verdict}: {found}, {document.revision}"
