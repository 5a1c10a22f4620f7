"""Plain tables that are readable at 80 columns: no frames, two spaces between columns, numbers to the right.

Width is the terminal's where there is one; columns that a caller calls spare give way first, then the end of the last
one, and nothing is cut where nobody said how wide a line may be. Colour is left to the terminal's owner.
"""

from __future__ import annotations

import datetime as dt
import shutil
import unicodedata
from collections.abc import Sequence

from reconciler.base import times

_GAP = "  "
#: Columns below which the rest of a last column says nothing.
_WORTH_SHOWING = 12


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: frozenset[int] = frozenset(),
    spare: Sequence[int] = (),
) -> str:
    """Rows under heads, as wide as the terminal.

    ``right`` are the columns set flush right; ``spare`` those left out where the terminal is too narrow, first one
    first. A last column among them is cut instead while enough of it remains.
    """
    width = terminal()
    columns = [[head.upper(), *(row[place] or "-" for row in rows)] for place, head in enumerate(heads)]
    widths = [max(map(measure, column)) for column in columns]
    shown = _shown(widths, spare, width)
    padded = [_padded(columns[one], widths[one], flush=one in right) for one in shown]
    lines = [_GAP.join(line).rstrip() for line in zip(*padded, strict=True)]
    return "\n".join(shorten(line, width) for line in lines)


def _shown(widths: Sequence[int], spare: Sequence[int], width: int) -> list[int]:
    shown = list(range(len(widths)))
    for column in spare:
        excess = sum(widths[one] for one in shown) + len(_GAP) * (len(shown) - 1) - width
        last = column == shown[-1] and widths[column] - excess >= _WORTH_SHOWING
        if not width or excess <= 0 or last:
            break
        shown.remove(column)
    return shown


def terminal() -> int:
    """Columns of the terminal, or ``COLUMNS``; 0 where neither says."""
    return shutil.get_terminal_size((0, 0)).columns


def measure(text: str) -> int:
    """Columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(column: Sequence[str], size: int, *, flush: bool) -> list[str]:
    """The cells of a column, all equally wide."""
    fill = str.rjust if flush else str.ljust
    # The library fills by letters; one that takes no column, or two, stands beside fewer or more of them.
    return [fill(one, size if one.isascii() else size + len(one) - measure(one)) for one in column]


def shorten(text: str, width: int) -> str:
    """``text`` cut to ``width`` columns with an ellipsis; whole where ``width`` is 0."""
    if not width or measure(text) <= width:
        return text
    while measure(text) > width - 1:
        text = text[:-1]
    return text + "…"


def page(lines: Sequence[str]) -> str:
    """Lines cut to the terminal, or to ``COLUMNS``; whole where neither says how wide it is."""
    width = terminal()
    return "\n".join(shorten(line, width) for line in lines)


def moment(value: dt.datetime | None) -> str:
    """A time for people, to the minute, UTC."""
    return times.aware(value).strftime("%Y-%m-%d %H:%M") if value else "-"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 copy``, ``3 copies``."""
    return f"{number} {one if number == 1 else many or one + 's'}"
