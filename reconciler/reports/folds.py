"""Lists for people: many lines of one kind become a few and a count, long lines are wrapped, symbols are coloured.

``plans`` and ``changes`` build their pages of it. Apart from them so that both fold, wrap and colour alike, and so that
what is shown can be tested as plain text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, TypeVar

from reconciler.reports import tables

_T = TypeVar("_T")

#: A group of more than this many is folded, and then this many are shown.
MOST: Final = 6
SHOWN: Final = 3
_COLOURS: Final = {"+": "32", "-": "31", "~": "33", ".": "2", "!": "31", "»": "36"}


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One entry of a list: what leads it, which is never folded away, and what is said below if there is no room."""

    head: str
    words: str = ""
    #: Columns before the head.
    indent: int = 2

    def rendered(self, width: int) -> list[str]:
        """The entry on as many lines as ``width`` columns need; on one where ``width`` is 0."""
        whole = f"{self.head}: {self.words}" if self.words else self.head
        pad = " " * self.indent
        if not width or tables.measure(pad + whole) <= width:
            return [pad + whole]
        below = self.indent + 4
        lines = wrap(self.head, width, self.indent, below)
        if self.words:
            lines[-1] += ":"
            lines += wrap(self.words, width, below, below)
        return lines


def wrap(text: str, width: int, first: int, rest: int) -> list[str]:
    """Words on lines of at most ``width`` columns, a longer word on a line of its own."""
    lines: list[str] = []
    line = " " * first
    empty = True
    for word in text.split(" "):
        if not empty and tables.measure(line) + 1 + tables.measure(word) > width:
            lines.append(line)
            line, empty = " " * rest, True
        line += word if empty else f" {word}"
        empty = False
    return [*lines, line]


def fold(
    things: Iterable[_T],
    kind: Callable[[_T], Hashable],
    line: Callable[[_T], Line],
    rest: Callable[[Sequence[_T]], str],
    *,
    verbose: bool,
    most: int = MOST,
    shown: int = SHOWN,
) -> list[Line]:
    """One entry each, things of one ``kind`` together in the order of their first; ``rest`` names those left out."""
    groups: dict[Hashable, list[_T]] = {}
    for one in things:
        groups.setdefault(kind(one), []).append(one)
    lines = []
    for group in groups.values():
        kept = group if verbose or len(group) <= most else group[:shown]
        lines += [line(one) for one in kept]
        if len(kept) < len(group):
            lines.append(Line(f"… and {rest(group[len(kept) :])} (-v shows all)"))
    return lines


def section(title: str, lines: Sequence[Line], width: int) -> str:
    """A title over its lines."""
    return "\n".join([title, *(text for line in lines for text in line.rendered(width))])


def paint(page: str) -> str:
    """A page in colours: the symbols that lead its lines, and its titles in bold."""
    return "\n".join(_painted(line) for line in page.split("\n"))


def _painted(line: str) -> str:
    if line[:2] == "  " and line[2:3] in _COLOURS and line[3:4] == " ":
        return f"  \x1b[{_COLOURS[line[2]]}m{line[2]}\x1b[0m{line[3:]}"
    if line and not line.startswith(" "):
        return f"\x1b[1m{line}\x1b[0m"
    return line
