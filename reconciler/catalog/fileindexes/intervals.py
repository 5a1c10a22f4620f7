"""Which images of a client a version of a file is in: an interval of their places instead of a list.

A place is a number that orders the images of one client. A version holds for every image whose place is from ``since``
on and before ``until``. Its bounds are places of learned images, ``until`` the one after the last that holds it, or
``OPEN`` where that is the newest: so the next image, in which nearly everything is as it was, touches nearly nothing.
Pure; ``caches`` calls it for each name that a new image says something else of.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Final, NamedTuple

from reconciler.catalog.fileindexes import entries

#: Beyond every place.
OPEN: Final = 1 << 62


class Version(NamedTuple):
    """One state of one name."""

    entry: entries.Entry
    since: int
    until: int


def put(versions: list[Version], at: int, after: int | None, entry: entries.Entry | None) -> list[Version]:
    """The versions of one name once the image at ``at`` is learned, which holds ``entry``, or lacks the name.

    ``versions``: so far, in order. ``after``: the place of the next newer learned image. The same list where nothing
    changed.
    """
    claimed = next((one for one in versions if one.since <= at < one.until), None)
    if (claimed.entry if claimed is not None else None) == entry:
        return versions
    found = [one for one in versions if one is not claimed]
    if claimed is not None:
        if claimed.since < at:
            found.append(claimed._replace(until=at))
        if after is not None and claimed.until > after:
            found.append(claimed._replace(since=after))
    if entry is not None:
        until = OPEN if after is None else after
        for one in found:
            if one.since == after and one.entry == entry:
                found.remove(one)
                until = one.until
                break
        found.append(Version(entry, at, until))
    return sorted(found, key=_since)


def settled(versions: list[Version], places: Sequence[int]) -> list[Version]:
    """The versions of one name without what is left of forgotten images. ``places``: those of learned ones, rising."""
    found: list[Version] = []
    for one in versions:
        first, last = held(places, one.since, one.until)
        if first == last:
            continue
        until = places[last] if last < len(places) else OPEN
        if found and found[-1].until == places[first] and found[-1].entry == one.entry:
            found[-1] = found[-1]._replace(until=until)
        else:
            found.append(Version(one.entry, places[first], until))
    return versions if found == versions else found


def held(places: Sequence[int], since: int, until: int) -> tuple[int, int]:
    """Which of ``places`` hold a version with these bounds: from the first index on, up to and without the second."""
    return bisect.bisect_left(places, since), bisect.bisect_left(places, until)


def _since(version: Version) -> int:
    return version.since
