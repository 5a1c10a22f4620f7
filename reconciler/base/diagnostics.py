"""What is wrong with the input, where, and what to do about it: plain values, rendered elsewhere.

Codes: ``HF1xx`` syntax, ``HF2xx`` schema, ``HF3xx`` references, ``HF4xx`` semantics, ``HF5xx`` guardrails.
"""

from __future__ import annotations

import dataclasses
import enum


class Severity(enum.StrEnum):
    """How much a finding matters: errors stop a revision, warnings do not."""

    ERROR = "Error"
    WARNING = "Warning"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place in a file."""

    #: Path relative to the estate.
    file: str
    #: Counted from 1.
    line: int
    #: Counted from 1.
    column: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Diagnostic:
    """One finding."""

    severity: Severity
    #: ``HF`` and three digits.
    code: str
    message: str
    #: Where in the files, if it lies in one.
    position: Position | None = None
    #: ``Kind/name`` of the object concerned.
    object: str | None = None
    #: Path of the field inside the object, such as ``spec.operations[1].source``.
    path: str | None = None
    #: The next step.
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.position.file}:{self.position.line}:{self.position.column}: " if self.position else ""
        what = f"{self.object}: " if self.object else ""
        field = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.severity.value.lower()} {self.code}: {what}{field}{self.message}{hint}"
