"""What a model refuses, in our words and at the line where it stands.

``manifests`` calls ``explain`` with the errors that pydantic lists for one object. Each has a ``loc`` (with the tags of
unions in between, which no user wrote), a type and a context; out come diagnostics with the position of the key for
unknown fields, of the value for wrong ones, of the mapping for missing ones. Separate from ``manifests``, since wording
changes more often than reading.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import pydantic

from reconciler.api import models
from reconciler.base import diagnostics
from reconciler.intake import codes, documents, findings

_QUOTED: Final = re.compile(r"'([^']*)'")
_CLOCK: Final = "[0-5][0-9]$"
_NAME_RULE: Final = "use letters, digits, '-', '_' and '.', at most 63, with a letter or digit at both ends"
#: pydantic's type of error -> what was expected.
_EXPECTED: Final = {
    "string_type": "text",
    "string_unicode": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


#: Problems listed per object; a flood hides its cause.
MAXIMUM: Final = 100


class _Complaint(NamedTuple):
    code: str
    message: str
    hint: str | None = None


class _Place(NamedTuple):
    """One problem of a model, located."""

    position: diagnostics.Position
    path: documents.Path
    value: documents.Value
    #: The models of the mapping that it stands in.
    shapes: tuple[type[pydantic.BaseModel], ...]
    #: pydantic's name for the problem, its context, and its own words.
    kind: str
    context: Mapping[str, Any]
    words: str

    @property
    def order(self) -> tuple[int, int]:
        """Line and column."""
        return (self.position.line, self.position.column)


def explain(
    document: documents.Document,
    kind: type[models.Object],
    label: str | None,
    problems: Sequence[Mapping[str, Any]],
) -> list[diagnostics.Diagnostic]:
    """One diagnostic per problem, ordered by place; none where a syntax problem stands. ``label`` names the object."""
    places = sorted((_place(document, kind, problem) for problem in problems), key=lambda place: place.order)
    places = [place for place in places if place.order not in document.flawed and not _is_echo(place)]
    result: list[diagnostics.Diagnostic] = []
    for place in places[: MAXIMUM + 1]:
        said = _say(place)
        if len(result) == MAXIMUM:
            rest = f"{len(places) - MAXIMUM} more problems follow in this object"
            said = _Complaint(said.code, rest, "resolve those above first")
        result.append(
            diagnostics.Diagnostic(
                severity=diagnostics.Severity.ERROR,
                code=said.code,
                message=said.message,
                position=place.position,
                object=label,
                path=findings.show_path(place.path),
                hint=said.hint,
            )
        )
    return result


def _place(document: documents.Document, kind: type[models.Object], problem: Mapping[str, Any]) -> _Place:
    """Where a problem stands, and what is there."""
    path, value, shapes = _walk(problem["loc"], document.value, kind)
    kind_of_error = str(problem["type"])
    context = problem.get("ctx") or {}
    if kind_of_error.startswith("union_tag") and isinstance(value, dict):
        tag = str(context["discriminator"]).strip("'")
        path = (*path, tag)
        if kind_of_error == "union_tag_not_found" and tag not in value:
            kind_of_error = "missing"
        value = value.get(tag)
    where = document.locate(path, key=kind_of_error == "extra_forbidden")
    return _Place(where, path, value, shapes, kind_of_error, context, str(problem["msg"]))


def _is_echo(place: _Place) -> bool:
    """A list is only short of the entries that are wrong themselves, and those are listed."""
    return (
        place.kind == "too_short" and isinstance(place.value, list) and len(place.value) >= place.context["min_length"]
    )


def _walk(
    loc: Iterable[str | int], value: documents.Value, kind: type[models.Object]
) -> tuple[documents.Path, documents.Value, tuple[type[pydantic.BaseModel], ...]]:
    """Follow ``loc`` through the value, without union tags: the path, what stands there, the models of its parent."""
    parts = tuple(loc)
    path: list[str | int] = []
    parents: tuple[type[pydantic.BaseModel], ...] = ()
    here: tuple[type[pydantic.BaseModel], ...] = (kind,)
    for index, part in enumerate(parts):
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
            continue
        if isinstance(value, dict) and part not in value and index < len(parts) - 1:
            here = _of_tag(here, str(part))
            continue
        if part == "[key]":
            continue
        path.append(part)
        parents, here = here, _of_field(here, str(part))
        value = value.get(part) if isinstance(value, dict) and isinstance(part, str) else None
    return tuple(path), value, parents


def _of_field(shapes: Iterable[type[pydantic.BaseModel]], alias: str) -> tuple[type[pydantic.BaseModel], ...]:
    return tuple(
        model
        for shape in shapes
        for field in shape.model_fields.values()
        if field.alias == alias
        for model in _models_in(field.annotation)
    )


def _of_tag(shapes: Iterable[type[pydantic.BaseModel]], tag: str) -> tuple[type[pydantic.BaseModel], ...]:
    return tuple(
        shape
        for shape in shapes
        if "type" in shape.model_fields and tag in typing.get_args(shape.model_fields["type"].annotation)
    )


def _models_in(annotation: Any) -> Iterable[type[pydantic.BaseModel]]:
    """The models that a value of this annotation may be, through lists, unions and ``Annotated``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, pydantic.BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _say(place: _Place) -> _Complaint:
    name = str(place.path[-1]) if place.path else "the document"
    kind, value, context = place.kind, place.value, place.context
    found = documents.describe(value)
    if kind == "missing":
        return _Complaint(codes.MISSING_FIELD, f"{name} is required")
    if kind == "extra_forbidden":
        return _unknown_field(name, place.shapes)
    if kind in _EXPECTED:
        return _wrong_type(kind, value)
    if kind == "literal_error":
        return _wrong_word(value, _QUOTED.findall(str(context.get("expected", ""))))
    if kind == "union_tag_invalid":
        return _wrong_word(value, _QUOTED.findall(str(context.get("expected_tags", ""))))
    if kind == "string_pattern_mismatch":
        return _wrong_pattern(str(context.get("pattern", "")), found)
    if kind == "value_error":
        return _Complaint(codes.MALFORMED, str(context.get("error", place.words))[:300])
    limit = _wrong_size(kind, context, found)
    return limit or _Complaint(codes.MALFORMED, f"{found} is not allowed here: {place.words}")


def _unknown_field(name: str, shapes: tuple[type[pydantic.BaseModel], ...]) -> _Complaint:
    known = [str(field.alias) for shape in shapes for field in shape.model_fields.values()]
    hint = findings.did_you_mean(name, known)
    if hint is None and known:
        hint = f"known here: {', '.join(dict.fromkeys(known))}"
    return _Complaint(codes.UNKNOWN_FIELD, f"unknown field {name[:60]!r}", hint)


def _wrong_type(kind: str, value: documents.Value) -> _Complaint:
    hint = None
    if kind.startswith("string") and isinstance(value, bool | int):
        hint = f'put it in quotes: "{str(value).lower()}"'
    elif kind.startswith(("int", "bool")) and isinstance(value, str):
        hint = "write it without quotes or a unit"
    elif kind == "tuple_type" and value is not None:
        hint = "write [...] around it, or begin each entry with '-'"
    return _Complaint(codes.WRONG_TYPE, f"expected {_EXPECTED[kind]}, found {documents.describe(value)}", hint)


def _wrong_word(value: documents.Value, allowed: Sequence[str]) -> _Complaint:
    choices = ", ".join(allowed)
    if not isinstance(value, str):
        code = codes.WRONG_WORD if allowed else codes.WRONG_TYPE
        return _Complaint(code, f"expected one of {choices}, found {documents.describe(value)}")
    said = f"{value[:60]!r} is not one of {choices}" if len(allowed) > 1 else f"{value[:60]!r} is not {choices}"
    return _Complaint(codes.WRONG_WORD, said, findings.did_you_mean(value, allowed))


def _wrong_pattern(pattern: str, found: str) -> _Complaint:
    if pattern == models.NAME_PATTERN:
        return _Complaint(codes.MALFORMED, f"{found} is not a name", _NAME_RULE)
    if pattern.endswith(_CLOCK):
        return _Complaint(codes.MALFORMED, f"{found} is not a time of day", 'write hours and minutes, such as "20:00"')
    return _Complaint(codes.MALFORMED, f"{found} is not spelled as it must be", f"it must match {pattern}")


def _wrong_size(kind: str, context: Mapping[str, Any], found: str) -> _Complaint | None:
    if kind == "greater_than_equal":
        return _Complaint(codes.OUT_OF_RANGE, f"{found} is too small; the least is {context['ge']}")
    if kind == "less_than_equal":
        return _Complaint(codes.OUT_OF_RANGE, f"{found} is too large; the most is {context['le']}")
    if kind == "string_too_short":
        return _Complaint(
            codes.OUT_OF_RANGE, "the text is empty" if context["min_length"] == 1 else "the text is too short"
        )
    if kind == "string_too_long":
        return _Complaint(codes.OUT_OF_RANGE, f"the text is longer than {context['max_length']} characters")
    if kind == "too_short":
        least = context["min_length"]
        return _Complaint(codes.OUT_OF_RANGE, f"the list needs at least {least} {'entry' if least == 1 else 'entries'}")
    return None
