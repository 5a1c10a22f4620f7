"""Options that many commands share, so that they read the same everywhere."""

from __future__ import annotations

import datetime as dt
import enum
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from reconciler.base import encodings, errors, times


class Output(enum.StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"


class PlanOutput(enum.StrEnum):
    """How a plan is printed."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


Format = Annotated[
    Output, typer.Option("-o", "--output", help="text for people, json for programs.", show_default=True)
]


def path(text: str) -> Path:
    """The path that an option names. Nothing at all is a variable that was not set, and does not mean this folder."""
    if not text:
        raise typer.BadParameter("a path is needed, and this is empty; . is the current folder")
    found = Path(text)
    whole = str(found.absolute())
    if words(whole) != whole:
        raise typer.BadParameter(f"{words(whole)} is not UTF-8, and no record could name it; choose another path")
    return found


def words(text: str) -> str:
    """What an option says. Bytes that are no UTF-8, of a terminal that speaks otherwise, as ``\\xNN``."""
    return encodings.shown(text)


State = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", parser=path, help="Folder of the catalog; .holdfast in the estate by default."
    ),
]
Catalog = Annotated[
    str | None, typer.Option("--catalog", metavar="URL", help="Catalog elsewhere than in the state folder.")
]
Estate = Annotated[Path, typer.Argument(metavar="DIR", help="The estate: a folder of manifests.")]
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]


def moment(text: str | None, option: str) -> dt.datetime | None:
    """The time that an option names; a day alone is its first moment, UTC. Raises ``UsageError``."""
    if text is None:
        return None
    text = text.strip()
    try:
        return times.parse(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    except ValueError as error:
        raise errors.UsageError(f"{option}: {error}", hint="or a day, such as 2026-11-23: its first moment") from error
