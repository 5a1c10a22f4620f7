"""Units with ``state: Draining``: which of their copies are to be made anew elsewhere, and what is left on them.

Called by ``duplications``, which makes the moves like any other copy, and by ``expiry``, where the old copy goes once
another good copy of the same operation lies on a unit that stays. A copy that its rule lets go now is not moved, nor
one of a Partial image, which leaves by itself. The new copy keeps the image's time and what was promised to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from reconciler.planning import desired, histories, lifecycles, nevers, observed

#: Nevers that end by themselves, or with what is moved: a copy held by nothing else is not worth a move.
_PASSING: Final = frozenset({"Base", "Busy", "OwesCopy", "Immutable"})


#: History, image and copy -> whether an earlier retention that was promised to the copy still keeps it.
Promised = Callable[[histories.History, observed.Image, observed.Copy], bool]


class Move(NamedTuple):
    """A copy that is to be made anew elsewhere."""

    image: observed.Image
    copy: observed.Copy
    operation: lifecycles.Owed


def draining(wanted: desired.Desired) -> frozenset[str]:
    """Names of the units that are to be emptied."""
    return frozenset(name for name, one in wanted.units.items() if one.spec.state == "Draining")


class Drain:
    """The units to be emptied; counts what is left on them."""

    def __init__(self, rules: nevers.Rules, promised: Promised) -> None:
        """``promised`` says whether an earlier retention still keeps a copy."""
        self._rules = rules
        self._promised = promised
        self.units = draining(rules.wanted)
        #: By unit: copies that still lie on it.
        self.left = dict.fromkeys(sorted(self.units), 0)

    def moves(self, history: histories.History, debts: lifecycles.Debts) -> Iterator[Move]:
        """The copies of a series that have to move, oldest image first; one for each image and operation."""
        if not self.units:
            return
        images = history.images
        on_them = (shape for shape in images.kinds if any(part.unit in self.units for part in shape.parts))
        for image in (images[place] for place in images.where(on_them)):
            moving: set[str] = set()
            for copy in image.copies:
                if copy.unit not in self.units or copy.state not in observed.PRESENT:
                    continue
                self.left[copy.unit] += 1
                one = self._operation(history, image, copy)
                if one.name not in moving and self._moves(history, debts, image, copy, one.name):
                    moving.add(one.name)
                    yield Move(image, copy, one)

    def _operation(self, history: histories.History, image: observed.Image, copy: observed.Copy) -> lifecycles.Owed:
        """The copy's operation, with the storage that the newest revision gives it."""
        book = self._rules.book
        name = book.operation(image.lifecycle, copy.operation)
        tree = book.tree(history.series.policy, image)
        found = next((one for one in tree.operations if one.name == name), None)
        window = found.window if found is not None else None
        return lifecycles.Owed(name, None, book.storage(image, name) or copy.unit, window)

    def _moves(
        self,
        history: histories.History,
        debts: lifecycles.Debts,
        image: observed.Image,
        copy: observed.Copy,
        operation: str,
    ) -> bool:
        if image.state != "Complete" or not history.readable(image, copy):
            return False
        if stands(self._rules, history, image, operation, away=True) is not None:
            return False
        if copy.imported or debts.worth(image, operation) or self._promised(history, image, copy):
            return True
        reason = nevers.forbids(self._rules, history, debts, image, copy)
        return reason is not None and reason.code not in _PASSING


def stands(
    rules: nevers.Rules, history: histories.History, image: observed.Image, operation: str, *, away: bool = False
) -> observed.Copy | None:
    """The good copy of an operation on a unit that stays, and is there unless ``away``."""
    for copy in history.good(image):
        if rules.book.operation(image.lifecycle, copy.operation) != operation:
            continue
        unit = rules.wanted.units.get(copy.unit)
        if unit is not None and unit.spec.state != "Draining" and (away or not rules.units.offline(copy.unit)):
            return copy
    return None
