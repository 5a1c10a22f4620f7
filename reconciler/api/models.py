"""The ground of every kind: frozen, strict, camelCase, unknown fields refused; and the field types kinds share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pydantic
from pydantic import alias_generators

from reconciler.base import quantities, times

API_VERSION = "holdfast/v1alpha1"
NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"


class Model(pydantic.BaseModel):
    """A frozen value whose fields are camelCase outside and snake_case inside."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=alias_generators.to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        # The texts under fields become the schemas' descriptions, by hack/schemas: reading them here would cost every
        # command a tenth of a second.
    )

    def written(self) -> dict[str, Any]:
        """The JSON form with the names users write, defaults included: equal for equal meaning."""
        return self.model_dump(mode="json", by_alias=True)


def _parsed(kind: type, parse: Callable[[str], Any], example: str) -> pydantic.BeforeValidator:
    def read(value: object) -> object:
        if isinstance(value, kind) and not isinstance(value, str):
            return value
        return parse(_text(value, example))

    return pydantic.BeforeValidator(read)


def _text(value: object, example: str) -> str:
    """``value`` if it is text. Raises ``ValueError`` with an example of what should stand here."""
    if isinstance(value, str):
        return value
    found = {type(None): "nothing", bool: "a boolean", list: "a list", dict: "a mapping"}.get(type(value), repr(value))
    raise ValueError(f"expected {example}, found {found}")


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{text!r} is not an IANA time zone, such as Europe/Berlin") from error
    return text


def _percent(value: object) -> str:
    return f"{quantities.parse_percent(_text(value, 'a whole percentage such as 95%'))}%"


def _size(value: object) -> str:
    text = _text(value, "a size with its unit, such as 128KiB or 1TB")
    if quantities.parse_size(text) < 1:
        raise ValueError("a size must be at least one byte")
    return text


_T = TypeVar("_T")
#: A list, written as a YAML sequence, held as a tuple.
Items = Annotated[tuple[_T, ...], pydantic.Strict(False)]

Name = Annotated[str, pydantic.StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=4096)]

Duration = Annotated[
    quantities.Duration,
    pydantic.PlainValidator(
        lambda value: value if isinstance(value, quantities.Duration) else _duration(value),
    ),
    pydantic.PlainSerializer(str, return_type=str),
    pydantic.WithJsonSchema(
        {"type": "string", "pattern": quantities.DURATION_PATTERN, "examples": ["24h", "7d", "6mo"]}
    ),
]


def _duration(value: object) -> quantities.Duration:
    return quantities.Duration.parse(_text(value, "a number with its unit, such as 24h or 7d"))


#: A size in the user's spelling; ``quantities.parse_size`` gives the bytes.
Size = Annotated[
    str,
    pydantic.BeforeValidator(_size),
    pydantic.WithJsonSchema({"type": "string", "pattern": quantities.SIZE_PATTERN, "examples": ["128KiB", "1TB"]}),
]
#: A whole percentage, spelled ``95%``.
Percent = Annotated[
    str,
    pydantic.BeforeValidator(_percent),
    pydantic.WithJsonSchema({"type": "string", "pattern": quantities.PERCENT_PATTERN}),
]
Zone = Annotated[str, pydantic.AfterValidator(_zone)]
Moment = Annotated[
    dt.datetime,
    _parsed(dt.datetime, times.parse, "a time such as 2026-11-23T21:00:00Z"),
    pydantic.AfterValidator(times.aware),
    pydantic.PlainSerializer(times.show, return_type=str, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Metadata(Model):
    """Who an object is."""

    name: Name
    """Unique among the objects of its kind."""
    labels: dict[str, str] = {}
    """Words to select by."""
    annotations: dict[str, str] = {}
    """Words for other tools; Holdfast does not read them."""


class Object(Model):
    """What every manifest has; a kind adds ``kind`` and ``spec``."""

    api_version: Annotated[str, pydantic.StringConstraints(pattern=r"^holdfast/v1alpha1$")] = API_VERSION
    kind: str
    metadata: Metadata

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name

    @property
    def key(self) -> tuple[str, str]:
        """``(kind, name)``: unique in an estate."""
        return (self.kind, self.metadata.name)
