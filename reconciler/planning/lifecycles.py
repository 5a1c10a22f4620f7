"""Which copies an image is owed, which of them are made, and which one is next.

The copies are fixed by the lifecycle spec of the revision that made the image (``Observed.owed``); ``existing:
Backfill`` on an operation of the newest spec widens them. A child is paid once its copy was Complete, and stays paid
when that copy expires; loss or damage opens the debt again. Called by ``duplications``, which makes the copies, and by
``expiry``, where a copy that owes a child stays. Operations go by their present names throughout.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from reconciler.api import lifecycles
from reconciler.planning import columns, configuration, desired, histories, observed, retention


class Owed(NamedTuple):
    """One operation of an image's lifecycle."""

    name: str
    #: Operation that is duplicated; None for the backup itself.
    source: str | None
    #: A storage unit or group.
    storage: str
    #: Backup window in which it may start.
    window: str | None


class Tree(NamedTuple):
    """All operations that an image is owed."""

    #: Parents before children.
    operations: tuple[Owed, ...]
    names: frozenset[str]
    #: By operation: its direct children.
    children: Mapping[str, tuple[str, ...]]
    #: Operations that only ``existing: Backfill`` of the newest spec adds.
    backfilled: frozenset[str]


class Made(Protocol):
    """What made an image: the image itself, or the shape that it shares with others."""

    @property
    def schedule(self) -> str:
        """Name of the schedule."""

    @property
    def lifecycle(self) -> str:
        """Name of the lifecycle."""

    @property
    def owed(self) -> str:
        """Digest of the lifecycle's spec as it was then."""


_NOTHING = Tree((), frozenset(), {}, frozenset())


class Book:
    """The lifecycles of a desired state, and those that made the images, looked up by image."""

    def __init__(
        self,
        wanted: desired.Desired,
        owed: Mapping[str, lifecycles.StorageLifecyclePolicySpec],
        waived: frozenset[tuple[str, int]] = frozenset(),
        wrong: frozenset[str] = frozenset(),
    ) -> None:
        #: Copies, as (image id, number), that need not make their children.
        self.waived = waived
        #: Ids of images that were ordered to go: nothing of them is copied any more.
        self.wrong = wrong
        self._newest = {name: item.spec for name, item in wanted.lifecycles.items()}
        self._owed = owed
        renamed = {name: configuration.operation_names(spec) for name, spec in self._newest.items()}
        self._operations = {name: names for name, names in renamed.items() if names}
        self._schedules = {name: configuration.schedule_names(item) for name, item in wanted.policies.items()}
        self._trees: dict[tuple[str, str, str, str], Tree] = {}
        self._rules: dict[tuple[str, str, str], lifecycles.Retention | None] = {}
        self._settled: dict[tuple[str, columns.Shape], bool] = {}

    def operation(self, lifecycle: str, name: str) -> str:
        """The present name of an operation."""
        names = self._operations.get(lifecycle)
        return names.get(name, name) if names is not None else name

    def tree(self, policy: str, image: Made) -> Tree:
        """What a complete image is owed; nothing where its lifecycle is not known."""
        key = (policy, image.owed, image.lifecycle, image.schedule)
        found = self._trees.get(key)
        if found is None:
            found = self._trees[key] = self._grow(*key)
        return found

    def future(self, policy: str, lifecycle: str, schedule: str) -> Tree:
        """What an image that is made now by this schedule will be owed."""
        key = (policy, "", lifecycle, schedule)
        if key not in self._trees:
            self._trees[key] = self._grow(*key)
        return self._trees[key]

    def rule(self, image: Made, operation: str) -> lifecycles.Retention | None:
        """The retention of an operation by the newest spec; where that lacks it, by the one that made the image."""
        key = (image.lifecycle, operation, image.owed)
        if key not in self._rules:
            self._rules[key] = self._find_rule(*key)
        return self._rules[key]

    def storage(self, image: observed.Image, operation: str) -> str | None:
        """Where the newest spec puts an operation; where that lacks it, the one that made the image."""
        for spec in (self._newest.get(image.lifecycle), self._owed.get(image.owed)):
            for one in spec.operations if spec is not None else ():
                if self.operation(image.lifecycle, one.name) == operation:
                    return one.storage
        return None

    def settled(self, policy: str, shape: columns.Shape) -> bool:
        """Whether images of this shape owe nothing, whatever their time and whatever the other images are."""
        key = (policy, shape)
        if key not in self._settled:
            self._settled[key] = self._is_settled(policy, shape)
        return self._settled[key]

    def _is_settled(self, policy: str, shape: columns.Shape) -> bool:
        if shape.state != "Complete":
            return True
        states = {part.state for part in shape.parts}
        if states & _MISSING:
            return False
        tree = self.tree(policy, shape)
        if len(tree.operations) <= 1 or not states & _OPEN:
            return True
        made = {self.operation(shape.lifecycle, p.operation) for p in shape.parts if p.state in histories.SETTLED}
        return made >= tree.names

    def _find_rule(self, lifecycle: str, operation: str, owed: str) -> lifecycles.Retention | None:
        for spec in (self._newest.get(lifecycle), self._owed.get(owed)):
            for one in spec.operations if spec is not None else ():
                if self.operation(lifecycle, one.name) == operation:
                    return one.retention
        return None

    def _grow(self, policy: str, owed: str, lifecycle: str, schedule: str) -> Tree:
        newest = self._newest.get(lifecycle)
        made = self._owed.get(owed, newest)
        if made is None:
            return _NOTHING
        names = self._schedules.get(policy, {})
        windows = {one.name: one.window for one in newest.operations} if newest is not None else {}
        found: dict[str, Owed] = {}
        backfilled = set()
        specs = [(one, False) for one in made.operations]
        specs += [(one, True) for one in newest.operations if one.existing == "Backfill"] if newest is not None else []
        for one, late in specs:
            name = self.operation(lifecycle, one.name)
            allowed = one.schedules is None or names.get(schedule, schedule) in {names.get(s, s) for s in one.schedules}
            if name in found or not allowed:
                continue
            source = self.operation(lifecycle, one.source) if one.source is not None else None
            found[name] = Owed(name, source, one.storage, windows.get(name, one.window))
            if late:
                backfilled.add(name)
        return _ordered(found, backfilled)


def _ordered(found: dict[str, Owed], backfilled: set[str]) -> Tree:
    """Parents first; an operation whose source is not owed is not owed either."""
    order: list[Owed] = []
    placed: set[str] = set()
    waiting = list(found.values())
    while waiting:
        ready = [one for one in waiting if one.source is None or one.source in placed]
        if not ready:
            break
        order += ready
        placed.update(one.name for one in ready)
        waiting = [one for one in waiting if one.name not in placed]
    children: dict[str, list[str]] = {}
    for one in order:
        if one.source is not None:
            children.setdefault(one.source, []).append(one.name)
    return Tree(
        tuple(order),
        frozenset(placed),
        {name: tuple(names) for name, names in children.items()},
        frozenset(backfilled & placed),
    )


class Debts:
    """What the images of one series still owe."""

    def __init__(self, book: Book, history: histories.History, now: dt.datetime) -> None:
        self._book = book
        self._history = history
        self._now = now
        self._worth: dict[tuple[str, str], frozenset[str]] = {}

    def open(self) -> list[observed.Image]:
        """The images that may owe something, or want healing, oldest first."""
        images, policy = self._history.images, self._history.series.policy
        places = images.where(shape for shape in images.kinds if not self._book.settled(policy, shape))
        return [images[place] for place in places]

    def unpaid(self, image: observed.Image) -> tuple[Owed, ...]:
        """Duplications that the image owes, parents first. Partial images owe none, nor does one that is gone."""
        tree = self._book.tree(self._history.series.policy, image)
        if len(tree.operations) <= 1 or image.state != "Complete" or image.id in self._book.wrong:
            return ()
        settled = self.settled(image)
        if settled >= tree.names or not any(copy.state in _OPEN for copy in image.copies):
            return ()
        missing = {self._book.operation(image.lifecycle, c.operation) for c in image.copies if c.state in _MISSING}
        forgiven = self._forgiven(image, tree) if self._book.waived else ()
        return tuple(
            one
            for one in tree.operations
            if one.source is not None
            and one.name not in settled
            and one.name not in forgiven
            and (
                (one.name not in tree.backfilled and one.name not in missing)
                or self.worth(image, one.name)
                or bool(self.broken_chains(image, one.name))
            )
        )

    def _forgiven(self, image: observed.Image, tree: Tree) -> set[str]:
        """Operations that nobody owes: every copy that would make them is waived, and with them what follows them."""
        waived, free = set[str](), set[str]()
        for copy in image.copies:
            name = self._book.operation(image.lifecycle, copy.operation)
            if (image.id, copy.number) in self._book.waived:
                waived.add(name)
            elif copy.state not in ("Expiring", "Expired"):
                free.add(name)
        settled = self.settled(image)
        result: set[str] = set()
        for one in tree.operations:
            if one.source in waived - free or (one.source in result and one.source not in settled):
                result.add(one.name)
        return result

    def damaged_root(self, image: observed.Image) -> Owed | None:
        """The backup operation itself, where its copy is damaged or lost, and its rule would keep it or others need it.

        It is healed like a child that is owed, from any good copy.
        """
        if image.state != "Complete" or not any(copy.state in _MISSING for copy in image.copies):
            return None
        if image.id in self._book.wrong:
            return None
        name = self._book.operation
        root = next((o for o in self._book.tree(self._history.series.policy, image).operations if not o.source), None)
        if root is None or root.name in self.settled(image):
            return None
        if not self.worth(image, root.name) and not self.broken_chains(image, root.name):
            return None
        missing = any(c.state in _MISSING and name(image.lifecycle, c.operation) == root.name for c in image.copies)
        return root if missing else None

    def to_make(self, image: observed.Image) -> tuple[Owed, ...]:
        """The copies that are to be made of an image, or made anew, parents first."""
        root = self.damaged_root(image)
        return (*(() if root is None else (root,)), *self.unpaid(image))

    def broken_chains(self, image: observed.Image, operation: str) -> tuple[str, ...]:
        """Units on which the operation's copy is damaged or lost while copies there still need it as base."""
        return tuple(
            copy.unit
            for copy in image.copies
            if copy.state in _MISSING
            and self._book.operation(image.lifecycle, copy.operation) == operation
            and self._history.dependents(image, copy.unit)
        )

    def owing(self, image: observed.Image, operation: str) -> tuple[str, ...]:
        """The direct children of an operation that the image still owes."""
        return tuple(one.name for one in self.unpaid(image) if one.source == operation)

    def piecing(self, image: observed.Image, copy: observed.Copy) -> tuple[str, ...]:
        """The operations for which a copy may be made anew from what is whole of this one and of others.

        None as long as one copy is good, or where this is the only one that holds anything.
        """
        readable = [one for one in image.copies if one.state in observed.READABLE]
        if copy not in readable or len(readable) < 2 or self._history.good(image):
            return ()
        if (image.id, copy.number) in self._book.waived:
            return ()
        return tuple(one.name for one in self.to_make(image))

    def settled(self, image: observed.Image) -> set[str]:
        """The operations whose copy is, or was, complete."""
        name = self._book.operation
        return {name(image.lifecycle, copy.operation) for copy in image.copies if copy.state in histories.SETTLED}

    def worth(self, image: observed.Image, operation: str) -> bool:
        """Whether the operation's own rule would keep a copy made now: nothing is copied to be thrown away."""
        rule = self._book.rule(image, operation)
        if isinstance(rule, lifecycles.Fixed):
            passes = retention.end(rule, image.time)
            return passes is None or passes > self._now
        if isinstance(rule, lifecycles.ExpireAfterCopy):
            children = self._book.tree(self._history.series.policy, image).children.get(operation, ())
            return not children or not self.settled(image).issuperset(children)
        if not isinstance(rule, lifecycles.Keep):
            return True
        key = (image.lifecycle, operation)
        if key not in self._worth:
            self._worth[key] = self._kept(rule, image.lifecycle, operation)
        return image.id in self._worth[key]

    def _kept(self, rule: lifecycles.Keep, lifecycle: str, operation: str) -> frozenset[str]:
        """Ids of the images that ``Keep`` would keep if each that is owed the operation had its copy."""
        images, policy = self._history.images, self._history.series.policy
        wanted = (
            shape
            for shape in images.kinds
            if shape.lifecycle == lifecycle
            and operation in self._book.tree(policy, shape).names
            and any(part.state in _OPEN for part in shape.parts)
            and not self._spent(shape, operation)
        )
        wrong = self._book.wrong
        places = [place for place in self._history.sound_of(wanted) if images.ids[place] not in wrong]
        return frozenset(images.ids[place] for place in self._history.keep(rule, places))

    def _spent(self, shape: columns.Shape, operation: str) -> bool:
        """Whether the operation's copy came and went: it pushes out nobody any more."""
        name = self._book.operation
        states = [part.state for part in shape.parts if name(shape.lifecycle, part.operation) == operation]
        return bool(states) and all(state in ("Expiring", "Expired") for state in states)


#: Copy states that open a debt again.
_MISSING = frozenset({"Damaged", "Lost"})
#: An image with none of these has no copy that could still owe anything.
_OPEN = frozenset({"Complete", "Damaged", "Lost", "Writing", "Expiring"})
