"""YAML events from ruamel's two parsers, and their complaints as sentences.

``documents`` calls ``compiled`` first: libyaml, ten times faster than the parser in Python. It speaks YAML 1.1 and so
refuses some text that 1.2 allows, such as ``{until: 2026-12-01T00:00:00Z}``; for such text ``portable`` gives the
events of the parser in Python. Both yield the same event classes, read only as far as asked, and hold no stack of
ours, so that deep nesting can be stopped from outside. Importing ``cyaml`` fails where libyaml's binding is missing:
better than being ten times slower without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import ruamel.yaml
from ruamel.yaml import cyaml
from ruamel.yaml import error as yaml_errors

#: Longest text, in characters, that the parser in Python is asked to read: a few seconds at worst.
PORTABLE_LIMIT: Final = 1 << 20
#: What the parser in Python raises for text beyond its grammar, next to its own errors.
_STUMBLES: Final = (ValueError, LookupError, AttributeError, AssertionError, TypeError, OverflowError)

_SENTENCES: Final = (
    ("mapping values are not allowed", "a ':' stands where no key can be; quote the text or check the indentation"),
    ("could not find expected ':'", "a key without ':'"),
    ("did not find expected key", "neither a further key nor the end of the mapping; check the indentation"),
    ("expected <block end>", "neither a further entry nor the end of the block; check the indentation"),
    ("did not find expected '-'", "neither a further '-' nor the end of the list; check the indentation"),
    ("entries are not allowed", "a list cannot begin here; put its first '-' on a line of its own"),
    ("node content", "a value is missing here, or a bracket is not closed"),
    ("',' or ']'", "a list in brackets lacks ',' or ']'"),
    ("',' or '}'", "a mapping in braces lacks ',' or '}'"),
    ("unexpected end of stream", "the file ends within a quoted text"),
    ("document indicator", "a document ends within a quoted text"),
    ("unexpected document separator", "a document ends within a quoted text"),
    ("document start", "text after the end of a document; separate documents with ---"),
    ("undefined tag handle", "a tag of an unknown kind"),
    ("unexpected ':'", "a ':' within text in braces or brackets; quote the text"),
    ("unknown escape", "an unknown escape in double quotes; a backslash is written twice, or use single quotes"),
    ("escape", "a wrong escape in double quotes"),
    ("indentation", "the indentation is wrong"),
)


class Refused(Exception):
    """A parser cannot go on. Line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


def compiled(text: str) -> Iterator[Any]:
    """The events of ``text`` by libyaml. Raises ``Refused``."""
    parser = cyaml.CParser(text)  # type: ignore[attr-defined]  # a compiled class, re-exported without saying so
    try:
        while (event := parser.get_event()) is not None:
            yield event
    except yaml_errors.YAMLError as error:
        raise _refused(error, text) from error


def portable(text: str) -> Iterator[Any]:
    """The events of ``text`` by the parser in Python. Raises ``Refused``."""
    try:
        yield from ruamel.yaml.YAML(typ="safe", pure=True).parse(text)
    except yaml_errors.YAMLError as error:
        raise _refused(error, text) from error
    except _STUMBLES as error:
        raise Refused("not YAML", 1, 1) from error


def _refused(error: yaml_errors.YAMLError, text: str) -> Refused:
    problem = str(getattr(error, "problem", None) or "not YAML")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line, mark.column) if mark is not None else (0, 0)
    lines = text.split("\n")
    # A parser that ran off the end points behind the last line.
    while line >= len(lines) or (line and line == len(lines) - 1 and not lines[line]):
        line -= 1
        column = len(lines[line]) if line < len(lines) else 0
    column = min(column, len(lines[line]))
    return Refused(_sentence(problem, lines[line][column : column + 1], error), line + 1, column + 1)


def _sentence(problem: str, character: str, error: yaml_errors.YAMLError) -> str:
    if "cannot start any token" in problem:
        if character == "\t":
            return "a tab where YAML wants spaces"
        return f"text cannot begin with {character!r}; put it in quotes"
    for fragment, sentence in _SENTENCES:
        if fragment in problem:
            began = getattr(error, "context_mark", None)
            if began is not None and "lacks" in sentence:
                return f"{sentence}; it began at line {began.line + 1}, column {began.column + 1}"
            return sentence
    return f"not YAML: {problem}"
