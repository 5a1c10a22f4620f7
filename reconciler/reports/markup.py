"""Comments for a pull request in Markdown: marked, never longer than they may be, with nothing read as markup.

``comments`` and ``changes`` say what stands in one. The hidden marker is how whoever posts it finds the earlier comment
and replaces it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

MARKER: Final = "<!-- holdfast-plan -->"
#: What the strictest of the usual forges takes.
LARGEST: Final = 65_536
#: Room without which not even the summary fits.
SMALLEST: Final = 2_048
_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>#|~&])")


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A heading and its lines; ``head`` are lines that stay where the others go."""

    title: str
    lines: Sequence[str]
    folded: bool = True
    head: Sequence[str] = ()
    #: How many things the lines speak of, where that is not one each.
    count: int | None = None
    #: How many more there are that have no line.
    unlisted: int = 0


def page(start: Sequence[str], sections: Sequence[Section], most: int) -> str:
    """The lines of ``start`` whole, then the sections that hold something, in at most ``most`` bytes of UTF-8."""
    sections = [one for one in sections if one.lines or one.head]
    room = most - len("\n".join(start).encode()) - 1
    shown = [""] * len(sections)
    # The first sections matter most, so they take what they need first; each keeps its heading.
    reserved = [len(_render(one, 0).encode()) + 1 for one in sections]
    for number, one in enumerate(sections):
        others = sum(reserved[number + 1 :])
        shown[number] = _fitting(one, room - others)
        room -= len(shown[number].encode()) + 1
    return "\n".join([*start, *(one for one in shown if one)]).rstrip("\n") + "\n"


def _fitting(section: Section, room: int) -> str:
    """As many of a section's lines as fit, the fewest being none."""
    low, high = 0, len(section.lines)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_render(section, middle).encode()) <= room else (low, middle - 1)
    return _render(section, low)


def _render(section: Section, count: int) -> str:
    left = len(section.lines) - count + section.unlisted
    title = f"{section.title} ({len(section.lines) if section.count is None else section.count})"
    body = [*section.head, *section.lines[:count]]
    if left:
        body.append(f"- … and {left} more: `holdfast plan -v`")
    if section.folded:
        return "\n".join([f"<details><summary>{title}</summary>", "", *body, "", "</details>", ""])
    return "\n".join([f"### {title}", "", *body, ""])


def plain(text: str) -> str:
    """Text that means nothing but itself, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A code span, whatever backticks the text holds."""
    flat = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"
