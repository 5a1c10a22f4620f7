"""The options of ``holdfast files``, so that its commands read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reconciler.base import errors
from reconciler.cli import options

Client = Annotated[str, typer.Argument(metavar="CLIENT|IMAGE", help="A client; with --unit an image's id.")]
OneClient = Annotated[str, typer.Argument(metavar="CLIENT", help="A client, by its slug, id or name.")]
PATHS = "/etc/passwd, Users\\x or /VOLUME/path"
Image = Annotated[str | None, typer.Option("--image", metavar="ID", help="This image; the newest by default.")]
AsOf = Annotated[str | None, typer.Option("--as-of", metavar="TIME", help="The newest image at or before TIME.")]
Copy = Annotated[int | None, typer.Option("--copy", metavar="N", help="This copy; the fastest good one by default.")]
Unit = Annotated[
    Path | None,
    typer.Option(
        "--unit", metavar="PATH", parser=options.path, help="Read this unit's folder alone, without a catalog."
    ),
]


def require_alone(unit: Path | None, **given: object) -> None:
    """Raise ``UsageError`` for options that need a catalog beside ``--unit``."""
    if unit is not None and any(given.values()):
        raise errors.UsageError(
            "--unit takes an image's id alone", hint=f"leave out {', '.join(f'--{one}' for one in given)}"
        )
