"""Options that many commands share, so that they read the same everywhere."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


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
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Folder of the catalog; .holdfast in the estate by default."),
]
Catalog = Annotated[
    str | None, typer.Option("--catalog", metavar="URL", help="Catalog elsewhere than in the state folder.")
]
Estate = Annotated[Path, typer.Argument(metavar="DIR", help="The estate: a folder of manifests.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]
