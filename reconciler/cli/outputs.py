"""Printing a document: JSON as one whole document on stdout, or text rendered from the same value."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

from reconciler.api.documents import shapes
from reconciler.cli import options

_D = TypeVar("_D", bound=shapes.Document)


def emit(document: _D, output: options.Output, render: Callable[[_D], str]) -> None:
    """Print ``document`` to stdout in the chosen form."""
    text = document.to_text() if output is options.Output.JSON else render(document)
    sys.stdout.write(text.rstrip("\n") + "\n" if text else "")
    sys.stdout.flush()


def note(text: str) -> None:
    """One line for people on stderr; never part of a result."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def ask(question: str) -> bool:
    """A yes-or-no question on the terminal; only ``yes`` is yes. The caller has checked that there is a terminal."""
    sys.stderr.write(f"{question} [yes/no] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def terminal() -> bool:
    """Whether somebody can be asked and shown progress."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and its owner wants them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
