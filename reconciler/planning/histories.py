"""One series read once: which images can be trusted, which copies can be read, which copies need which.

Made by every decision about a series, and by the catalog's check inside a deleting transaction. Separate so that
"good", "newest" and "needs as base" mean the same to backups, duplications, expiry and conditions. It works on
``columns``: what is asked of all images is answered from numbers and shapes, and a value is made of an image only
where it is handed out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, overload

from reconciler.api import lifecycles
from reconciler.base import times
from reconciler.planning import calendars, columns, doubts, observed, retention, sightings

#: Copy states whose operation has delivered: what was Complete once stays paid when it expires.
SETTLED = frozenset({"Complete", "Expiring", "Expired"})
#: Copy states in which bytes may lie on the unit.
TANGIBLE = frozenset({"Writing", "Complete", "Damaged", "Expiring"})
#: How far ahead of now an image may be and still count as made now.
AHEAD: Final = sightings.AHEAD


class Selection(Sequence[observed.Image]):
    """Some images of a series, each made a value when it is asked for."""

    def __init__(self, images: columns.Columns, places: Sequence[int]) -> None:
        self._images = images
        #: Their indices among all images of the series, in order.
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> observed.Image: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[observed.Image, ...]: ...

    def __getitem__(self, index: int | slice) -> observed.Image | tuple[observed.Image, ...]:
        if isinstance(index, slice):
            return tuple(self._images[place] for place in self.places[index])
        return self._images[self.places[index]]


class History:
    """The images of a series as decisions see them."""

    def __init__(self, series: observed.Series, now: dt.datetime) -> None:
        self.series = series
        self.images = columns.of(series.images)
        #: What lies later than this was not written by a clock that is right now.
        self.latest = now + AHEAD
        doubtful = doubts.contradicted(self.images.stamps, times.to_number(self.latest))
        #: Indices of the images in ``doubtful``.
        self.doubted = doubtful
        #: Ids of images clearly later than now (``AHEAD``), or whose time contradicts their sequence: kept, satisfying
        #: nothing.
        self.doubtful = frozenset(self.images.ids[index] for index in doubtful)
        complete = self.images.where(shape for shape in self.images.kinds if shape.state == "Complete")
        #: Complete images that can be trusted, oldest first.
        self.sound = Selection(
            self.images, [index for index in complete if index not in doubtful] if doubtful else complete
        )
        #: Kept by ``nevers``: ids of images that must keep a good copy, and what they are.
        self.protected: dict[str, str] | None = None
        self._readable: dict[tuple[int, str], bool] = {}
        #: By zone: local times; by zone and name of a period: its number. Of every image.
        self._local: dict[str, Sequence[int]] = {}
        self._periods: dict[tuple[str, str], Sequence[int]] = {}
        self._needed: dict[tuple[str, str], list[tuple[int, int]]] | None = None

    # -- reading -------------------------------------------------------------------------------------------------------

    def readable(self, image: observed.Image, copy: observed.Copy) -> bool:
        """Whether the copy is good and so is every base it needs on its unit."""
        place = self.images.place(image.id)
        return copy.state in observed.GOOD and place is not None and self._stands(place, copy.unit)

    def good(self, image: observed.Image) -> list[observed.Copy]:
        """The copies of an image that can be read."""
        return [copy for copy in image.copies if self.readable(image, copy)]

    def has_good(self, place: int) -> bool:
        """Whether the image at an index has a copy that can be read."""
        return any(
            part.state in observed.GOOD and self._stands(place, part.unit) for part in self.images.shapes[place].parts
        )

    def _stands(self, place: int, unit: str) -> bool:
        """Whether an image can be read on a unit: from a copy that stands alone, or through bases that can be read."""
        asked: list[tuple[int, str]] = []
        at: int | None = place
        result = False
        while at is not None:
            known = self._readable.get((at, unit))
            if known is not None:
                result = known
                break
            asked.append((at, unit))
            bases = {
                self.images.base_of(at, part)
                for part in self.images.shapes[at].parts
                if part.unit == unit and part.state in observed.GOOD
            }
            if None in bases:
                result = True
                break
            earlier = [one for base in bases if (one := self.images.place(base or "")) is not None and one < at]
            if len(earlier) > 1:
                result = any(self._stands(one, unit) for one in earlier)
                break
            at = earlier[0] if earlier else None
        self._readable.update(dict.fromkeys(asked, result))
        return result

    def dependents(self, image: observed.Image, unit: str) -> list[tuple[observed.Image, observed.Copy]]:
        """Copies on ``unit`` that need this image there as base, whatever becomes of them."""
        if self._needed is None:
            self._needed = self._needs()
        found = self._needed.get((image.id, unit), ())
        return [
            (one, next(copy for copy in one.copies if copy.number == number))
            for one, number in ((self.images[place], number) for place, number in found)
        ]

    def _needs(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """(base, unit) -> index and copy number of what is built on it."""
        result: dict[tuple[str, str], list[tuple[int, int]]] = {}
        chained = {
            shape: [part for part in shape.parts if part.base is not None and part.state in TANGIBLE]
            for shape in self.images.kinds
        }
        for place in self.images.where(shape for shape, parts in chained.items() if parts):
            for part in chained[self.images.shapes[place]]:
                base = self.images.base_of(place, part) or ""
                result.setdefault((base, part.unit), []).append((place, part.number))
        return result

    # -- finding -------------------------------------------------------------------------------------------------------

    def newest(self) -> Iterator[observed.Image]:
        """Sound images with a good copy, newest first."""
        return (self.images[place] for place in reversed(self.sound.places) if self.has_good(place))

    def on_unit(self, image: observed.Image, unit: str) -> observed.Copy | None:
        """The readable copy of an image on a unit, if there is one."""
        place = self.images.place(image.id)
        if place is None or not self._stands(place, unit):
            return None
        return next((c for c in image.copies if c.unit == unit and c.state in observed.GOOD), None)

    def base(
        self, units: Collection[str], *, full: bool, beside: Collection[str] = ()
    ) -> tuple[observed.Image, str] | None:
        """The newest sound image (the newest full one if ``full``) that can be read on one of ``units``, and that unit.

        It is what the next incremental (or cumulative) backup onto these units builds on; never an image that
        ``beside`` names.
        """
        for place in reversed(self.sound.places):
            shape = self.images.shapes[place]
            if (full and shape.type != "Full") or (beside and self.images.ids[place] in beside):
                continue
            for part in shape.parts:
                if part.unit in units and part.state in observed.GOOD and self._stands(place, part.unit):
                    return self.images[place], part.unit
        return None

    def by_id(self, id: str | None) -> observed.Image | None:
        """The image with this id."""
        place = self.images.place(id) if id is not None else None
        return self.images[place] if place is not None else None

    def chain(self, image: observed.Image, unit: str) -> list[str]:
        """Ids of the images that a copy on ``unit`` is read from: itself, its base, that one's base."""
        result: list[str] = []
        at: observed.Image | None = image
        while at is not None and at.id not in result:
            result.append(at.id)
            copy = self.on_unit(at, unit)
            at = self.by_id(copy.base) if copy is not None else None
        return result

    def keep(self, rule: lifecycles.Keep, places: Sequence[int]) -> list[int]:
        """Those of the images at ``places``, oldest first, that ``rule`` keeps."""
        images = self.images
        # Times rise with sequences in all that can be trusted.
        newest = list(reversed(places))
        fulls = [images.shapes[place].type == "Full" for place in newest] if rule.prefer == "Full" else ()

        def buckets(name: str) -> Sequence[int]:
            periods = self._period(rule.time_zone, name)
            return [periods[place] for place in newest]

        kept = retention.kept(rule, [images.stamps[place] for place in newest], fulls, buckets)
        return [newest[index] for index in kept]

    def _period(self, zone: str, name: str) -> Sequence[int]:
        """Of every image, the number of the natural period that it lies in; rules of several operations share it."""
        if (zone, name) not in self._periods:
            clock = calendars.periods(zone)
            if zone not in self._local:
                self._local[zone] = clock.local(self.images.stamps)
            self._periods[zone, name] = clock.of(name, self._local[zone])
        return self._periods[zone, name]

    def sound_of(self, shapes: Iterable[columns.Shape]) -> Sequence[int]:
        """The indices of the sound images of these shapes, oldest first."""
        wanted = frozenset(shapes)
        if wanted >= self.images.kinds:
            return self.sound.places
        return [place for place in self.sound.places if self.images.shapes[place] in wanted]
