"""Findings about objects that have been read: which object, which field, and so which line.

``manifests`` makes ``Located`` objects, the checks collect into one ``Findings``; both words of the same page. Also the
one place that guesses what a user meant by a word that does not exist.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from reconciler.api import models
from reconciler.base import diagnostics
from reconciler.intake import documents


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """An api object and the document it was read from."""

    object: models.Object
    document: documents.Document

    @property
    def label(self) -> str:
        """``Kind/name``."""
        return f"{self.object.kind}/{self.object.name}"

    def position(self, path: documents.Path = (), *, key: bool = False) -> diagnostics.Position:
        """Where a field stands; without a path, where the name of the object does."""
        return self.document.locate(path or ("metadata", "name"), key=key)


class Findings:
    """Collects diagnostics about located objects."""

    def __init__(self) -> None:
        self.found: list[diagnostics.Diagnostic] = []

    def error(
        self,
        code: str,
        where: Located,
        path: documents.Path,
        message: str,
        hint: str | None = None,
        *,
        key: bool = False,
    ) -> None:
        """An error at the value of a field, or at its key."""
        self._add(diagnostics.Severity.ERROR, code, where, path, message, hint, key)

    def warn(
        self,
        code: str,
        where: Located,
        path: documents.Path,
        message: str,
        hint: str | None = None,
        *,
        key: bool = False,
    ) -> None:
        """A warning at the value of a field, or at its key."""
        self._add(diagnostics.Severity.WARNING, code, where, path, message, hint, key)

    def _add(
        self,
        severity: diagnostics.Severity,
        code: str,
        where: Located,
        path: documents.Path,
        message: str,
        hint: str | None,
        key: bool,
    ) -> None:
        self.found.append(
            diagnostics.Diagnostic(
                severity=severity,
                code=code,
                message=message,
                position=where.position(path, key=key),
                object=where.label,
                path=show_path(path) or None,
                hint=hint,
            )
        )


def show_path(path: documents.Path) -> str:
    """``spec.operations[1].source``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that ``word`` was probably meant to be, if one is close."""
    by_folded = {choice.casefold(): choice for choice in sorted(choices, reverse=True)}
    # Comparing is quadratic in length, and nobody misspells a name of hundreds of letters.
    close = difflib.get_close_matches(word[:100].casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """A hint, or None where nothing is close."""
    found = nearest(word, choices)
    return f"did you mean {found}?" if found is not None else None
