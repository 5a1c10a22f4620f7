"""The coarse look before the judge: which images of a series have a copy that is not simply kept by its rule.

``expiry`` judges those alone when only what leaves is asked for. Most images of a large catalog are kept by a rule that
needs nothing but their time, so that numbers and shapes say so. What is left out here is kept, whatever else is true.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Final

from reconciler.api import lifecycles as kinds
from reconciler.base import times
from reconciler.planning import columns, histories, lifecycles, observed, retention

#: Copy states that can be healed or replaced.
MISSING: Final = frozenset({"Damaged", "Lost"})
#: Copy states of which something is to be said although no rule has let the copy go.
_RESTLESS: Final = MISSING | {"Expiring"}
#: 1 January of the year 1, in microseconds since 1970.
_FIRST: Final = times.to_number(dt.datetime.min.replace(tzinfo=times.UTC))

#: Lifecycle, operation, and the digest of the spec that made the image: what a retention rule is found by.
_Key = tuple[str, str, str]


class Sieve:
    """The rules of one plan; remembers what it has worked out about shapes."""

    def __init__(self, book: lifecycles.Book, draining: frozenset[str]) -> None:
        self._book = book
        self._draining = draining
        self._keys: dict[columns.Shape, tuple[_Key, ...] | None] = {}
        self._limits: dict[tuple[kinds.Fixed, dt.datetime], int] = {}

    def at_issue(self, history: histories.History, kept: Kept, until: dt.datetime) -> Sequence[int]:
        """Indices of the images with a copy that a rule lets go by ``until``, or that wants a word; newest first."""
        restless = set()
        ruled: dict[_Key, list[columns.Shape]] = {}
        for shape in history.images.kinds:
            keys = self._rules(shape)
            if keys is None:
                restless.add(shape)
            for key in keys or ():
                ruled.setdefault(key, []).append(shape)
        # What somebody declared wrong goes although its rules keep it.
        found = set(history.images.where(restless)) | history.doubted | kept.wrong
        for (lifecycle, operation, _), shapes in ruled.items():
            rule = self._book.rule(shapes[0], operation)
            places = history.images.where(shapes)
            if isinstance(rule, kinds.Fixed):
                limit, stamps = self._limit(rule, until), history.images.stamps
                found.update(place for place in places if stamps[place] <= limit)
            elif isinstance(rule, kinds.Keep):
                stays = kept.places(rule, lifecycle, operation, missing=False)
                found.update(place for place in places if place not in stays)
            elif isinstance(rule, kinds.ExpireAfterCopy):
                found.update(places)
        return sorted(found, reverse=True)

    def _rules(self, shape: columns.Shape) -> tuple[_Key, ...] | None:
        """The rules under which the good copies of a shape's images stay; None where more than rules must be asked."""
        if shape not in self._keys:
            restless = shape.state != "Complete" or any(
                part.state in _RESTLESS or part.unit in self._draining for part in shape.parts
            )
            good = {part.operation for part in shape.parts if part.state in observed.GOOD}
            operations = sorted({self._book.operation(shape.lifecycle, name) for name in good})
            self._keys[shape] = None if restless else tuple((shape.lifecycle, one, shape.owed) for one in operations)
        return self._keys[shape]

    def _limit(self, rule: kinds.Fixed, until: dt.datetime) -> int:
        """The latest image time, in microseconds since 1970, whose period has passed by ``until``."""
        key = (rule, until)
        if key not in self._limits:
            low, high = _FIRST, times.to_number(until)
            while low < high:
                middle = (low + high + 1) // 2
                passes = retention.end(rule, times.to_moment(middle))
                low, high = (middle, high) if passes is not None and passes <= until else (low, middle - 1)
            self._limits[key] = low
        return self._limits[key]


class Kept:
    """What ``Keep`` rules keep of one series; each is worked out once.

    An image that somebody declared wrong pushes no other one out: among the others it is as if it were gone. What the
    rule says of itself counts it still.
    """

    def __init__(self, book: lifecycles.Book, history: histories.History) -> None:
        self._book = book
        self._history = history
        #: Indices of the images that somebody declared wrong.
        self.wrong = frozenset(place for id in book.wrong if (place := history.images.place(id)) is not None)
        self._places: dict[tuple[str, str, int, bool, bool], frozenset[int]] = {}
        self._decided: dict[tuple[str, str, int, bool, bool], dict[str, retention.Decision]] = {}

    def places(
        self, rule: kinds.Keep, lifecycle: str, operation: str, *, missing: bool, wrong: bool = False
    ) -> frozenset[int]:
        """Indices of the images that it keeps; with ``missing``, as if damaged and lost copies were good; with
        ``wrong``, as if nothing had been declared wrong."""
        key = (lifecycle, operation, id(rule), missing, wrong)
        if key not in self._places:
            found = self._candidates(lifecycle, operation, missing=missing, wrong=wrong)
            self._places[key] = frozenset(self._history.keep(rule, found))
        return self._places[key]

    def decision(
        self, rule: kinds.Keep, image: observed.Image, operation: str, now: dt.datetime, *, missing: bool, words: bool
    ) -> retention.Decision:
        """What it says of one image; without ``words`` a kept one is not told by which of the rule's words."""
        place = self._history.images.place(image.id)
        wrong = place in self.wrong
        if not words:
            stays = self.places(rule, image.lifecycle, operation, missing=missing, wrong=wrong)
            return retention.Decision(True, "Keep", None) if place in stays else retention.gone(rule)
        key = (image.lifecycle, operation, id(rule), missing, wrong)
        if key not in self._decided:
            images = self._history.images
            found = self._candidates(image.lifecycle, operation, missing=missing, wrong=wrong)
            candidates = [
                retention.Candidate(one.id, one.time, one.sequence, one.type == "Full")
                for one in (images[place] for place in found)
            ]
            self._decided[key] = retention.keep(rule, candidates, now)
        return self._decided[key][image.id]

    def _candidates(self, lifecycle: str, operation: str, *, missing: bool, wrong: bool) -> Sequence[int]:
        """Indices of the sound images that a rule of this operation counts, oldest first."""
        states = MISSING | observed.GOOD if missing else observed.GOOD
        found = self._history.sound_of(
            shape for shape in self._history.images.kinds if self._counts(shape, lifecycle, operation, states)
        )
        return found if wrong or not self.wrong else [place for place in found if place not in self.wrong]

    def _counts(self, shape: columns.Shape, lifecycle: str, operation: str, states: Iterable[str]) -> bool:
        name = self._book.operation
        return shape.lifecycle == lifecycle and any(
            part.state in states and name(lifecycle, part.operation) == operation for part in shape.parts
        )
