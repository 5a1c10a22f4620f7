"""The mark on a snapshot of ours: whose it is, which one, and for which job, in its name and its description.

What a snapshot is called, anybody may have written: only a description of exactly this form is a mark, and only a mark
of this catalog makes a snapshot ours. The description is one line, so that the vCenter's own pages show it whole.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import uuid
from typing import Final

from reconciler.base import times

_PREFIX: Final = "holdfast-"
_TAIL: Final = "; removed by Holdfast when its backup ends"
_WORD: Final = r"[A-Za-z0-9._-]{1,80}"
_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_MARK: Final = re.compile(
    rf"holdfast owner=(?P<owner>{_WORD}) id=(?P<id>{_UUID}) job=(?P<job>{_WORD}) "
    r"made=(?P<made>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)" + re.escape(_TAIL),
    re.ASCII,
)
#: A description that is longer is no mark of ours, whatever it says.
_LONGEST: Final = 400


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Whose snapshot it is. ``owner``, ``id`` and ``job`` hold no spaces."""

    #: Id of the catalog.
    owner: str
    #: A UUID of ours.
    id: str
    #: Such as ``j-000123``.
    job: str
    #: UTC, to the second.
    made: dt.datetime


def name(job: str) -> str:
    """What a snapshot is called that is made for ``job``."""
    return f"{_PREFIX}{job}"


def describe(mark: Mark) -> str:
    """The description of a snapshot with this mark. Raises ``ValueError`` for a mark that could not be read again."""
    made = times.show(mark.made.replace(microsecond=0))
    text = f"holdfast owner={mark.owner} id={mark.id} job={mark.job} made={made}{_TAIL}"
    if parse(text) is None:
        raise ValueError(f"not a mark: {mark}")
    return text


def parse(description: str | None) -> Mark | None:
    """The mark that a description is, None where it is none."""
    if not description or len(description) > _LONGEST:
        return None
    found = _MARK.fullmatch(description.strip(" \r\n\t"))
    if found is None:
        return None
    try:
        made = times.parse(found["made"])
        identity = str(uuid.UUID(found["id"]))
    except ValueError:
        return None
    return Mark(owner=found["owner"], id=identity, job=found["job"], made=made)
