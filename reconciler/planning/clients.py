"""The slug of a client: what addresses and paths on units call it, for ever.

The catalog gives a machine its slug at first sight, and the planner shows the one that a machine will get; both call
``slug``, so that they agree. It is a pure function of the name and of the slugs that are taken.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from typing import Final

#: Longest slug: safe in file names next to an image id.
LONGEST: Final = 48
_UNSAFE = re.compile(r"[^a-z0-9]+")


def slug(name: str, taken: Container[str]) -> str:
    """A slug of ``[a-z0-9-]``, at most 48 characters, that is not in ``taken``: ``-2``, ``-3`` are added where needed.

    Letters with accents lose them; a name without any safe character becomes ``client``.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    stem = _UNSAFE.sub("-", plain).strip("-")[:LONGEST].strip("-") or "client"
    result, count = stem, 1
    while result in taken:
        count += 1
        tail = f"-{count}"
        result = stem[: LONGEST - len(tail)].rstrip("-") + tail
    return result
