"""One series read once: which images can be trusted, which copies can be read, which copies need which.

Made by every decision about a series, and by the catalog's check inside a deleting transaction. Separate so that
"good", "newest" and "needs as base" mean the same to backups, duplications, expiry and conditions. One pass over the
images, no object per image.
"""

from __future__ import annotations

import bisect
import datetime as dt
import itertools
from collections.abc import Collection, Iterator
from typing import Final

from reconciler.planning import observed

#: Copy states whose operation has delivered: what was Complete once stays paid when it expires.
SETTLED = frozenset({"Complete", "Expiring", "Expired"})
#: Copy states in which bytes may lie on the unit.
TANGIBLE = frozenset({"Writing", "Complete", "Damaged", "Expiring"})
#: How far ahead of now an image may be and still count as made now: clocks of two hosts, or of two processes, differ.
AHEAD: Final = dt.timedelta(minutes=15)


class History:
    """The images of a series as decisions see them."""

    def __init__(self, series: observed.Series, now: dt.datetime) -> None:
        self.series = series
        self.images = series.images
        #: Ids of images clearly later than now (``AHEAD``), or whose time contradicts their sequence: kept, satisfying
        #: nothing.
        self.doubtful = _doubtful(series.images, now)
        #: Complete images that can be trusted, oldest first.
        self.sound = [i for i in series.images if i.state == "Complete" and i.id not in self.doubtful]
        #: Kept by ``nevers``: ids of images that must keep a good copy, and what they are.
        self.protected: dict[str, str] | None = None
        self._by_id: dict[str, observed.Image] | None = None
        self._readable: set[tuple[str, str]] = set()
        self._needed: dict[tuple[str, str], list[tuple[observed.Image, observed.Copy]]] = {}
        for image in series.images:
            for copy in image.copies:
                if copy.base is not None:
                    if copy.state in TANGIBLE:
                        self._needed.setdefault((copy.base, copy.unit), []).append((image, copy))
                    if (copy.base, copy.unit) not in self._readable:
                        continue
                if copy.state in observed.GOOD:
                    self._readable.add((image.id, copy.unit))

    def readable(self, image: observed.Image, copy: observed.Copy) -> bool:
        """Whether the copy is good and so is every base it needs on its unit."""
        return copy.state in observed.GOOD and (image.id, copy.unit) in self._readable

    def good(self, image: observed.Image) -> list[observed.Copy]:
        """The copies of an image that can be read."""
        return [copy for copy in image.copies if self.readable(image, copy)]

    def dependents(self, image: observed.Image, unit: str) -> list[tuple[observed.Image, observed.Copy]]:
        """Copies on ``unit`` that need this image there as base, whatever becomes of them."""
        return self._needed.get((image.id, unit), [])

    def newest(self) -> Iterator[observed.Image]:
        """Sound images with a good copy, newest first."""
        for image in reversed(self.sound):
            if self.good(image):
                yield image

    def on_unit(self, image: observed.Image, unit: str) -> observed.Copy | None:
        """The readable copy of an image on a unit, if there is one."""
        if (image.id, unit) not in self._readable:
            return None
        return next((c for c in image.copies if c.unit == unit and c.state in observed.GOOD), None)

    def base(self, units: Collection[str], *, full: bool) -> tuple[observed.Image, str] | None:
        """The newest sound image (the newest full one if ``full``) that can be read on one of ``units``, and that unit.

        It is what the next incremental (or cumulative) backup onto these units builds on.
        """
        for image in reversed(self.sound):
            if full and image.type != "Full":
                continue
            for copy in image.copies:
                if copy.unit in units and self.readable(image, copy):
                    return image, copy.unit
        return None

    def by_id(self, id: str | None) -> observed.Image | None:
        """The image with this id."""
        if id is None:
            return None
        if self._by_id is None:
            self._by_id = {one.id: one for one in self.images}
        return self._by_id.get(id)

    def chain(self, image: observed.Image, unit: str) -> list[str]:
        """Ids of the images that a copy on ``unit`` is read from: itself, its base, that one's base."""
        result: list[str] = []
        at: observed.Image | None = image
        while at is not None and at.id not in result:
            result.append(at.id)
            copy = self.on_unit(at, unit)
            at = self.by_id(copy.base) if copy is not None else None
        return result


def _doubtful(images: tuple[observed.Image, ...], now: dt.datetime) -> frozenset[str]:
    """Images clearly later than now, and the fewest others without which times never fall as sequences rise."""
    later = {image.id for image in images if image.time > now + AHEAD}
    rest = [image for image in images if image.id not in later]
    if all(a.time <= b.time for a, b in itertools.pairwise(rest)):
        return frozenset(later)
    # The longest non-decreasing subsequence is what most images agree on; the others contradict it.
    tails: list[dt.datetime] = []
    ends: list[int] = []
    before: list[int] = []
    for index, image in enumerate(rest):
        place = bisect.bisect_right(tails, image.time)
        before.append(ends[place - 1] if place else -1)
        if place == len(tails):
            tails.append(image.time)
            ends.append(index)
        else:
            tails[place], ends[place] = image.time, index
    agreeing = set()
    at = ends[-1]
    while at >= 0:
        agreeing.add(at)
        at = before[at]
    return frozenset(later | {image.id for index, image in enumerate(rest) if index not in agreeing})
