"""What a search looks for: which names of a block, and which folders, fit a query's words.

A pattern is split at its last ``/``: names are found by their rarest piece of plain text in one pass over all names of
a block, and only then looked at with care; folders are asked about where a name fits. Pure; ``caches`` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WILD = re.compile(r"[*?]+")
#: Any number of folders.
_ANY = "(?:/[^/]+)*"


class Pattern:
    """The words of one query."""

    def __init__(self, text: str, *, contains: bool, fold: bool, streams: bool) -> None:
        """As ``answers.Query`` has them."""
        self._fold = fold
        self._streams = streams
        text = text.casefold() if fold else text
        above, slash, name = text.rpartition("/")
        if contains:
            self._folder = re.compile(f".*{re.escape(above)}", re.DOTALL) if slash else None
            self._name = re.compile(f"{'' if slash else '.*'}{re.escape(name)}.*", re.DOTALL)
            self._needle = f"\0{name}" if slash else name
        else:
            parts = [part for part in text.split("/") if part]
            name = parts[-1] if parts else "*"
            if name == "**":
                parts.append(name := "*")
            self._folder = re.compile(_folders(parts[:-1]), re.DOTALL) if "/" in text else None
            self._name = re.compile(_translated(name), re.DOTALL)
            self._needle = _needle(name, closed=not streams)

    def in_folder(self, folder: str) -> bool:
        """Whether names in a folder may fit."""
        if self._folder is None:
            return True
        folder = folder.casefold() if self._fold else folder
        return self._folder.fullmatch(f"/{folder}" if folder else "") is not None

    def find(self, text: str) -> Iterator[int]:
        """Numbers of the names that fit, rising. ``text``: each between two NULs, as ``name`` or ``name/stream``."""
        text = text.casefold() if self._fold else text
        needle, number, counted, at = self._needle, -1, 0, 0
        while (at := text.find(needle, at)) >= 0 and at + 1 < len(text):
            start = at if text[at] == "\0" else text.rfind("\0", 0, at)
            end = text.find("\0", start + 1)
            # The NULs up to the one before this name: one fewer than its number.
            number += text.count("\0", counted, start + 1)
            counted = start + 1
            name, slash, _ = text[start + 1 : end].partition("/")
            if (self._streams or not slash) and self._name.fullmatch(name):
                yield number
            at = end


def _needle(name: str, *, closed: bool) -> str:
    """The longest piece of plain text in a name's pattern, with the ends of the name where they are next to it."""
    pieces = _WILD.split(name)
    longest = max(pieces, key=len)
    number = pieces.index(longest)
    if not longest:
        return "\0"
    opened = "\0" if number == 0 else ""
    return opened + longest + ("\0" if closed and number == len(pieces) - 1 else "")


def _translated(part: str) -> str:
    """A regular expression for one part of a path."""
    pieces = re.split(r"(\*+|\?)", part)
    return "".join(
        "[^/]*" if piece.startswith("*") else "[^/]" if piece == "?" else re.escape(piece) for piece in pieces
    )


def _folders(parts: list[str]) -> str:
    """A regular expression for the path of a folder with a slash before each part."""
    made: list[str] = []
    for part in parts:
        if part != "**":
            made.append(f"/{_translated(part)}")
        elif not made or made[-1] != _ANY:
            made.append(_ANY)
    return "".join(made)
