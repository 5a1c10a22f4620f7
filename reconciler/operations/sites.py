"""What every operation works with: the catalog, the opened storage units, the clock, and who is acting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from reconciler.base import clocks
from reconciler.catalog import database
from reconciler.catalog.fileindexes import answers
from reconciler.storage import opening


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The place an operation works in."""

    db: database.Database
    units: opening.OpenUnits
    clock: clocks.Clock
    #: Who is recorded in the audit log, such as ``controller`` or ``root@host``.
    actor: str
    #: Folder of caches that can be made anew, None where there is no estate.
    caches: Path | None = None
    #: Folder of what drills keep: screens and consoles.
    evidence: Path | None = None
    #: The search cache of files; None for those who never touch images.
    files: answers.Cache | None = None
