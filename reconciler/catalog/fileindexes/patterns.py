"""What a search looks for: which names of a block, and which folders, fit a query's words.

A pattern is split at its last ``/``. Either half is found by its rarest piece of plain text in one pass over the bytes
of all names or folders of a block (``layouts``), and only what holds that piece is looked at with care: with a regular
expression of bytes, so that what does not fit never becomes text. Pure; ``caches`` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reconciler.catalog.fileindexes import layouts

_WILD = re.compile(r"[*?]+")
#: A letter of a name in UTF-8, and any number of bytes of one.
_LETTER = rb"(?:[^/\0\x80-\xff]|[\xc0-\xff][\x80-\xbf]*)"
_LETTERS = rb"[^/\0]*"
#: Any number of folders.
_ANY = rb"(?:/[^/\0]+)*"
#: The end of a name and its stream.
_END = rb"(?=\0)"


class Pattern:
    """The words of one query."""

    def __init__(self, text: str, *, contains: bool, fold: bool, streams: bool) -> None:
        """As ``answers.Query`` has them."""
        self._fold = fold
        text = text.casefold() if fold else text
        above, slash, name = (_bytes(part) for part in text.rpartition("/"))
        if contains:
            folder = rb"[^\0]*" + re.escape(above)
            fits = (b"" if slash else _LETTERS) + re.escape(name) + _LETTERS
            self._pieces = [b"\0" + name if slash or not name else name]
            self._above = [above + b"\0"]
        else:
            parts = [part for part in text.split("/") if part]
            last = parts[-1] if parts else "*"
            if last == "**":
                parts.append(last := "*")
            folder = _folders(parts[:-1])
            fits = _translated(last)
            self._pieces = [_bytes(piece) for piece in _pieces(last, closed=not streams)]
            self._above = [_bytes(piece) for piece in _pieces_above(parts[:-1])]
        self._name = re.compile(fits + (rb"(?=[/\0])" if streams else _END))
        #: None where names in every folder fit.
        self._folder = re.compile(folder + _END) if slash else None

    def find(self, names: layouts.Names) -> list[tuple[int, bytes]]:
        """Numbers of the names of a block that fit, in folders that do, rising, and the names themselves."""
        body = self._folded(names.body)
        if self._folder is None:
            found = list(_found(body, self._pieces, self._name))
        elif not all(piece in body for piece in self._pieces):
            return []
        else:
            folders = {number for number, _, _ in _found(self._folded(names.paths), self._above, self._folder)}
            every = _found(body, self._pieces, self._name) if folders else ()
            found = [one for one in every if names.above(one[0]) in folders]
        if not (self._fold and found) or body.isascii():
            return [(number, names.body[start:end]) for number, start, end in found]
        # Folded names have other lengths than the names.
        fields = names.body.split(b"\0")
        return [(number, fields[number + 1]) for number, _, _ in found]

    def _folded(self, run: bytes) -> bytes:
        if not self._fold:
            return run
        if run.isascii():
            return run.lower()
        return _bytes(layouts.text(run).casefold())


def _found(run: bytes, pieces: list[bytes], fits: re.Pattern[bytes]) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the items of a run that fit. ``pieces``: each item that fits holds all of them."""
    rarest = pieces[0]
    if len(pieces) > 1:
        counts = [run.count(piece) for piece in pieces]
        rarest = pieces[counts.index(min(counts))]
    first, last = rarest[0] == 0, len(run) - 1
    number, counted, at = -1, 0, 0
    while 0 <= (at := run.find(rarest, at)) < last:
        start = at + 1 if first else run.rfind(b"\0", 0, at) + 1
        if fits.match(run, start) is None:
            at += 1
            continue
        # The NULs up to the one before this item: one fewer than its number.
        number += run.count(b"\0", counted, start)
        counted = start
        at = run.find(b"\0", start)
        yield number, start, at


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _pieces(name: str, *, closed: bool) -> list[str]:
    """The pieces of plain text in a name's pattern, with the ends of the name where they are next to it."""
    pieces = _WILD.split(name)
    if pieces[0]:
        pieces[0] = f"\0{pieces[0]}"
    if pieces[-1] and closed:
        pieces[-1] += "\0"
    return [piece for piece in pieces if piece] or ["\0"]


def _pieces_above(parts: list[str]) -> list[str]:
    """The same of the folders above it, which are written with a slash before each part."""
    if not parts:
        # The root is an item without a letter.
        return ["\0\0"]
    pieces: list[str] = []
    for part in parts:
        first, *more = _WILD.split(part)
        pieces += [f"/{first}" if first else "", *more]
    if pieces[-1] and parts[-1] != "**":
        pieces[-1] += "\0"
    return [piece for piece in pieces if piece] or ["\0"]


def _translated(part: str) -> bytes:
    """A regular expression for one part of a path."""
    pieces = re.split(r"(\*+|\?)", part)
    return b"".join(
        _LETTERS if piece.startswith("*") else _LETTER if piece == "?" else re.escape(_bytes(piece)) for piece in pieces
    )


def _folders(parts: list[str]) -> bytes:
    """A regular expression for the path of a folder with a slash before each part."""
    made: list[bytes] = []
    for part in parts:
        if part != "**":
            made.append(b"/" + _translated(part))
        elif not made or made[-1] != _ANY:
            made.append(_ANY)
    return b"".join(made)
