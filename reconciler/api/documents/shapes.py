"""The ground of every document: camelCase, times in RFC 3339 UTC, unknown is null and never absent."""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any

import pydantic
from pydantic import alias_generators

from reconciler.api import models
from reconciler.base import times

Time = Annotated[
    dt.datetime,
    pydantic.PlainSerializer(times.show, return_type=str, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "format": "date-time"}),
]
#: A time with exactly three digits of fraction.
MilliTime = Annotated[
    dt.datetime,
    pydantic.PlainSerializer(times.show_milliseconds, return_type=str, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Shape(pydantic.BaseModel):
    """A part of a document. Readers ignore unknown keys."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=alias_generators.to_camel,
        validate_by_alias=True,
        validate_by_name=True,
    )

    def to_json(self) -> dict[str, Any]:
        """The JSON form, every key present."""
        return self.model_dump(mode="json", by_alias=True)

    def to_text(self) -> str:
        """The JSON form as commands print it."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False)


class Document(Shape):
    """A whole document; each has a fixed ``kind``."""

    api_version: str = models.API_VERSION
    kind: str


class CodeMessage(Shape):
    """A CamelCase code and a sentence."""

    code: str
    message: str
