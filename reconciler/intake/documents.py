"""Text to plain values that know where they stand: the loader behind every manifest.

``manifests`` calls ``read`` once per file. The values are dicts, lists, text, whole numbers, booleans and null, by the
core schema of YAML 1.2 (``on``, ``yes`` and ``22:00`` are text), and nothing else: no fractions, no merge keys, no tags
beyond the core, no key that is not text, no key twice. Hostile text is bounded: nesting, what aliases expand to, and
the size of the file. Separate from ``manifests``, which knows kinds and fields; this knows YAML alone.

The loop over events is iterative, so nesting costs no stack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from ruamel.yaml import events as yaml_events

from reconciler.base import diagnostics
from reconciler.intake import codes, events

Value: TypeAlias = "bool | int | str | list[Value] | dict[str, Value] | None"
Path: TypeAlias = tuple[str | int, ...]

#: Levels of nesting in one document.
MAXIMUM_DEPTH: Final = 64
#: Values that the aliases of one document may add.
MAXIMUM_EXPANSION: Final = 100_000
#: Problems listed per file; a flood hides its cause.
MAXIMUM_PROBLEMS: Final = 200

_CORE: Final = "tag:yaml.org,2002:"
_SPECIAL: Final = frozenset("+-.0123456789~nNtTfF")
_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z", re.ASCII)
_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z", re.ASCII
)
_LONGEST_INTEGER: Final = 18
#: What YAML does not print, the breaks that only YAML 1.1 knows, and a carriage return that ends no line.
_FORBIDDEN: Final = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|\r(?!\n)"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Mark(NamedTuple):
    """Where an entry of a container stands; lines and columns from 1. In a list the key stands where the value does."""

    key_line: int
    key_column: int
    line: int
    column: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One YAML document: its value and where each part of it stands."""

    #: Relative to the estate.
    file: str
    value: Value
    line: int
    column: int
    #: Identity of a container -> its keys or indexes -> their marks.
    marks: Mapping[int, Mapping[str | int, Mark]]
    #: Places, line and column, at which a syntax problem has been reported already.
    flawed: frozenset[tuple[int, int]]

    def locate(self, path: Path, *, key: bool = False) -> diagnostics.Position:
        """Where the value at ``path`` stands, or its key; where the path ends early, the last part that is there."""
        value, line, column = self.value, self.line, self.column
        for depth, part in enumerate(path):
            mark = self.marks.get(id(value), {}).get(part)
            if mark is None or not isinstance(value, list | dict):
                break
            line, column = (mark[0], mark[1]) if key and depth == len(path) - 1 else (mark[2], mark[3])
            value = value[part]  # type: ignore[index]  # the mark proves that the part is there
        return diagnostics.Position(file=self.file, line=line, column=column)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one file holds."""

    #: Documents that hold something, in order; those before a problem are there.
    documents: tuple[Document, ...]
    diagnostics: tuple[diagnostics.Diagnostic, ...]
    #: Whether the file was read to its end.
    whole: bool


def read(file: str, data: bytes) -> Reading:
    """The documents of one file; ``file`` names it in positions. Never raises for content."""
    problem = _not_text(file, data)
    if problem is not None:
        return Reading(documents=(), diagnostics=(problem,), whole=False)
    text = data.decode()
    builder = _Builder(file)
    try:
        builder.build(events.compiled(text))
    except events.Refused as refused:
        builder, standing = _again(file, text, builder, refused)
        if standing is not None:
            builder.refuse(standing)
    return Reading(documents=tuple(builder.documents), diagnostics=tuple(builder.problems), whole=builder.whole)


def _again(file: str, text: str, first: _Builder, refused: events.Refused) -> tuple[_Builder, events.Refused | None]:
    """Try the parser in Python; the complaint of whoever came further stands."""
    if len(text) > events.PORTABLE_LIMIT:
        return first, refused
    second = _Builder(file)
    try:
        second.build(events.portable(text))
    except events.Refused as later:
        if (later.line, later.column) <= (refused.line, refused.column):
            return first, refused
        return second, later
    return second, None


def _not_text(file: str, data: bytes) -> diagnostics.Diagnostic | None:
    """The first reason why ``data`` is not plain UTF-8 text, if there is one."""

    def problem(before: bytes | str, message: str, hint: str | None = None) -> diagnostics.Diagnostic:
        text = before if isinstance(before, str) else before.decode(errors="replace")
        where = diagnostics.Position(
            file=file, line=text.count("\n") + 1, column=len(text) - text.rfind("\n") if text else 1
        )
        return diagnostics.Diagnostic(
            severity=diagnostics.Severity.ERROR, code=codes.NOT_TEXT, message=message, position=where, hint=hint
        )

    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return problem(b"", "the file is UTF-16", "save it as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        return problem(b"", "the file begins with a byte order mark", "save it as UTF-8 without one")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return problem(
            data[: error.start], f"the byte 0x{data[error.start]:02x} here is not UTF-8", "save the file as UTF-8"
        )
    found = _FORBIDDEN.search(text)
    if found is None:
        return None
    if found[0] == "\r":
        return problem(text[: found.start()], "a carriage return that ends no line", "end lines with a line feed")
    name = "a NUL" if found[0] == "\0" else f"the character U+{ord(found[0]):04X}"
    return problem(text[: found.start()], f"{name} cannot stand in a manifest", "remove it")


class _Abandoned(Exception):
    """The rest of the file is not worth reading; the reason has been reported."""


_NO_KEY: Final = object()
_DROPPED: Final = object()


class _Frame:
    """A container that is still open."""

    __slots__ = ("anchor", "column", "entries", "height", "key", "key_mark", "line", "marks", "size")

    def __init__(self, entries: dict[str, Value] | list[Value], line: int, column: int, anchor: str | None) -> None:
        self.entries = entries
        self.line = line
        self.column = column
        self.anchor = anchor
        self.marks: dict[str | int, Mark] = {}
        #: In a mapping: the key whose value comes next, ``_NO_KEY``, or ``_DROPPED`` for a value without a home.
        self.key: Any = _NO_KEY
        self.key_mark = (line, column)
        #: Values in it with all aliases expanded, itself included.
        self.size = 1
        #: Levels below it.
        self.height = 0


class _Anchored(NamedTuple):
    value: Value
    size: int
    height: int


class _Builder:
    """Takes events, leaves documents and problems. One per attempt at a file."""

    def __init__(self, file: str) -> None:
        self.documents: list[Document] = []
        self.problems: list[diagnostics.Diagnostic] = []
        self.whole = True
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._stack: list[_Frame] = []
        self._marks: dict[int, dict[str | int, Mark]] = {}
        self._anchors: dict[str, _Anchored | _Frame] = {}
        self._flawed: set[tuple[int, int]] = set()
        self._expanded = 0

    def build(self, stream: Iterable[Any]) -> None:
        """Read the stream to its end, or to where it is not worth going on. Raises ``events.Refused``."""
        try:
            for event in stream:
                kind = type(event)
                if kind is yaml_events.ScalarEvent:
                    self._scalar(event)
                elif kind is yaml_events.MappingStartEvent or kind is yaml_events.SequenceStartEvent:
                    self._open(event, {} if kind is yaml_events.MappingStartEvent else [])
                elif kind is yaml_events.MappingEndEvent or kind is yaml_events.SequenceEndEvent:
                    self._close()
                elif kind is yaml_events.AliasEvent:
                    self._alias(event)
                elif kind is yaml_events.DocumentStartEvent:
                    self._begin()
        except _Abandoned:
            self.whole = False

    def complain(self, code: str, message: str, line: int, column: int, hint: str | None = None) -> None:
        """Record an error; past the limit the file is abandoned."""
        self._flawed.add((line, column))
        where = diagnostics.Position(file=self._file, line=line, column=column)
        if len(self.problems) == MAXIMUM_PROBLEMS:
            message, hint = "more problems follow in this file", "resolve those above first"
        self.problems.append(
            diagnostics.Diagnostic(
                severity=diagnostics.Severity.ERROR, code=code, message=message, position=where, hint=hint
            )
        )
        if len(self.problems) > MAXIMUM_PROBLEMS:
            raise _Abandoned

    def refuse(self, refused: events.Refused) -> None:
        """Record why the parser could not go on."""
        self.whole = False
        with contextlib.suppress(_Abandoned):
            self.complain(codes.NOT_YAML, refused.message, refused.line, refused.column)

    def _open(self, event: Any, entries: dict[str, Value] | list[Value]) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if len(self._stack) == MAXIMUM_DEPTH:
            self.complain(codes.TOO_DEEP, f"more than {MAXIMUM_DEPTH} levels of nesting", line, column)
            raise _Abandoned
        kind = "map" if isinstance(entries, dict) else "seq"
        if event.tag is not None and str(event.tag) not in (_CORE + kind, "!"):
            self.complain(codes.BAD_SCALAR, f"the tag {event.tag} is unknown", line, column, "leave tags out")
        frame = _Frame(entries, line, column, event.anchor)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = frame
        self._stack.append(frame)

    def _close(self) -> None:
        frame = self._stack.pop()
        self._marks[id(frame.entries)] = frame.marks
        if frame.anchor is not None and self._anchors.get(frame.anchor) is frame:
            self._anchors[frame.anchor] = _Anchored(frame.entries, frame.size, frame.height)
        self._add(frame.entries, frame.line, frame.column, frame.size, frame.height)

    def _alias(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        found = self._anchors.get(event.anchor)
        if isinstance(found, _Anchored):
            self._expanded += found.size
            if self._expanded > MAXIMUM_EXPANSION:
                self.complain(
                    codes.BAD_ALIAS, f"aliases expand to more than {MAXIMUM_EXPANSION:,} values", line, column
                )
                raise _Abandoned
            if len(self._stack) + found.height >= MAXIMUM_DEPTH:
                self.complain(codes.TOO_DEEP, f"more than {MAXIMUM_DEPTH} levels of nesting", line, column)
                raise _Abandoned
            self._add(found.value, line, column, found.size, found.height)
            return
        why = "has no anchor before it" if found is None else "stands within what it names"
        self.complain(codes.BAD_ALIAS, f"the alias *{event.anchor} {why}", line, column)
        self._add(None, line, column, 1, 0)

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if not text and self._stack:
            line, column = self._before_nothing(event, line, column)
        if event.tag is not None:
            value = self._tagged(text, str(event.tag), line, column)
        elif not event.implicit[0]:
            value = text
        elif text in _NULL:
            value = None
        elif text[0] not in _SPECIAL:
            value = text
        else:
            value = self._plain(text, line, column)
        if value is text and ("\0" in text or (not text.isascii() and _SURROGATE.search(text))):
            self.complain(codes.BAD_SCALAR, "a NUL or half a character, written as an escape", line, column)
            value = ""
        if value == "<<" and event.implicit[0] and self._wants_key():
            self.complain(codes.BAD_KEY, "merge keys (<<) are not allowed", line, column, "write the fields out")
            self._skip_key()
            return
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 1, 0)
        self._add(value, line, column, 1, 0)

    def _before_nothing(self, event: Any, line: int, column: int) -> tuple[int, int]:
        """Where a value that was left out belongs; the parsers name different places after it."""
        if event.style:
            return line, column
        frame = self._stack[-1]
        named = isinstance(frame.entries, dict) and frame.key is not _NO_KEY
        return frame.key_mark if named else (frame.line, frame.column)

    def _plain(self, text: str, line: int, column: int) -> Value:
        """An unquoted scalar by the core schema."""
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.match(text):
            if len(text) <= _LONGEST_INTEGER:
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            self.complain(codes.BAD_SCALAR, "the number has too many digits", line, column, "quote it if it is text")
            return 0
        if _FLOAT.match(text):
            hint = "write a whole number with a smaller unit, or quote it if it is text"
            self.complain(codes.FLOAT, f"no floats: {_short(text)}", line, column, hint)
            return 0
        return text

    def _tagged(self, text: str, tag: str, line: int, column: int) -> Value:
        """A scalar with an explicit tag: the core ones are obeyed."""
        if tag in (_CORE + "str", "!"):
            return text
        value = None if text in _NULL else self._plain(text, line, column)
        name = "null" if value is None else type(value).__name__
        if tag == _CORE + name and name != "str":
            return value
        if (line, column) not in self._flawed:
            known = tag in {_CORE + word for word in ("int", "bool", "null", "float")}
            what = (
                f"{_short(text)!r} is not what its tag !!{tag[len(_CORE) :]} says"
                if known
                else f"the tag {tag} is unknown"
            )
            self.complain(codes.BAD_SCALAR, what, line, column, "leave tags out")
        return text

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].entries, dict) and self._stack[-1].key is _NO_KEY

    def _skip_key(self) -> None:
        self._stack[-1].key = _DROPPED

    def _add(self, value: Value, line: int, column: int, size: int, height: int) -> None:
        """Put a finished value where it belongs: a key, an entry, or the document itself."""
        if not self._stack:
            if value is not None:
                self._finish(value, line, column)
            return
        frame = self._stack[-1]
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if isinstance(frame.entries, list):
            frame.marks[len(frame.entries)] = Mark(line, column, line, column)
            frame.entries.append(value)
        elif frame.key is _NO_KEY:
            self._take_key(frame, value, line, column)
        else:
            if frame.key is not _DROPPED:
                frame.entries[frame.key] = value
                frame.marks[frame.key] = Mark(*frame.key_mark, line, column)
            frame.key = _NO_KEY

    def _take_key(self, frame: _Frame, key: Value, line: int, column: int) -> None:
        frame.key, frame.key_mark = key, (line, column)
        if not isinstance(key, str):
            hint = "put it in quotes" if isinstance(key, bool | int) else None
            self.complain(codes.BAD_KEY, f"a key must be text, not {describe(key)}", line, column, hint)
            self._skip_key()
        elif key in frame.marks:
            first = frame.marks[key]
            message = f"the key {_short(key)!r} stands twice; the first is at line {first.key_line}"
            self.complain(codes.DUPLICATE_KEY, message, line, column, "remove one of them")
            self._skip_key()

    def _finish(self, value: Value, line: int, column: int) -> None:
        self.documents.append(
            Document(
                file=self._file,
                value=value,
                line=line,
                column=column,
                marks=self._marks,
                flawed=frozenset(self._flawed),
            )
        )


def describe(value: Value) -> str:
    """A value in a few words for a message: ``the number 5``, ``a list``, ``nothing``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, int):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {_short(value)!r}"
    return "a list" if isinstance(value, list) else "a mapping"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
