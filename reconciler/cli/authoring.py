"""``holdfast validate``: are the manifests good? No catalog, no network, no state."""

from __future__ import annotations

from pathlib import Path

from reconciler.api.documents import results
from reconciler.base import clocks, diagnostics, errors
from reconciler.cli import options, outputs
from reconciler.intake import estates


def validate(
    estate: options.Estate = Path(),
    output: options.Format = options.Output.TEXT,
    state: options.State = None,  # noqa: ARG001  accepted everywhere, so that scripts need not know which commands use it
    catalog: options.Catalog = None,  # noqa: ARG001
) -> int:
    """Check every manifest and report all problems at once. Exit 4 if there are errors; warnings alone pass."""
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
