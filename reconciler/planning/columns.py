"""The images of a series as columns: plain numbers, and what many images have in common as one ``Shape``.

A large catalog has a million images and few shapes. ``histories`` and the decisions made from it walk numbers and
shapes, and ask for an ``sightings.Image`` only where something is to be done about it: making one costs more than
judging ten. The catalog fills columns straight from its rows; ``of`` makes them of values, for tests and for series
that were put together by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, overload

from reconciler.base import times
from reconciler.planning import sightings

#: ``Part.base`` where the copy needs the image's own parent: as good as always, and the same for all images.
PARENT: Final = "^"


class Part(NamedTuple):
    """What is decided from of one copy."""

    number: int
    operation: str
    unit: str
    state: str
    #: None where it stands alone, ``PARENT``, or the id of another image.
    base: str | None
    imported: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """What many images have in common. Equal only to itself, so that it is found by identity; made once per walk."""

    schedule: str
    type: str
    state: str
    lifecycle: str
    owed: str
    disks: tuple[str, ...]
    parts: tuple[Part, ...]


class Columns(Sequence[sightings.Image]):
    """Images ordered by sequence: a sequence of values, each made when it is asked for, and the columns behind it.

    ``make`` gives the image at an index. Not thread-safe.
    """

    def __init__(
        self,
        *,
        ids: Sequence[str],
        stamps: Sequence[int],
        slots: Sequence[int],
        parents: Sequence[str | None],
        shapes: Sequence[Shape],
        make: Callable[[int], sightings.Image],
    ) -> None:
        self.ids = ids
        #: Image times, in microseconds since 1970.
        self.stamps = stamps
        #: Slots, in microseconds since 1970.
        self.slots = slots
        self.parents = parents
        self.shapes = shapes
        #: The distinct shapes.
        self.kinds = frozenset(shapes)
        self._make = make
        self._made: dict[int, sightings.Image] = {}
        self._places: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> sightings.Image: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[sightings.Image, ...]: ...

    def __getitem__(self, index: int | slice) -> sightings.Image | tuple[sightings.Image, ...]:
        if isinstance(index, slice):
            return tuple(self[one] for one in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        found = self._made.get(place)
        if found is None:
            if not 0 <= place < len(self):
                raise IndexError(index)
            found = self._made[place] = self._make(place)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def place(self, id: str) -> int | None:
        """The index of an image by its id."""
        if self._places is None:
            self._places = dict(zip(self.ids, range(len(self.ids)), strict=True))
        return self._places.get(id)

    def base_of(self, index: int, part: Part) -> str | None:
        """Id of the image that a copy of the image at ``index`` needs on its unit."""
        return self.parents[index] if part.base == PARENT else part.base

    def where(self, shapes: Iterable[Shape]) -> list[int]:
        """The indices of the images of these shapes, in order."""
        wanted = frozenset(shapes) & self.kinds
        if len(wanted) == len(self.kinds):
            return list(range(len(self.ids)))
        return [index for index, shape in enumerate(self.shapes) if shape in wanted] if wanted else []

    def renamed(self, units: Mapping[str, str]) -> Columns:
        """The same images with units called by other names, old -> new."""
        if not any(part.unit in units for shape in self.kinds for part in shape.parts):
            return self
        new = {shape: _renamed(shape, units) for shape in self.kinds}

        def make(index: int) -> sightings.Image:
            image = self[index]
            return image._replace(copies=tuple(c._replace(unit=units.get(c.unit, c.unit)) for c in image.copies))

        return Columns(
            ids=self.ids, stamps=self.stamps, slots=self.slots, parents=self.parents,
            shapes=[new[shape] for shape in self.shapes], make=make,
        )  # fmt: skip


def _renamed(shape: Shape, units: Mapping[str, str]) -> Shape:
    parts = tuple(part._replace(unit=units.get(part.unit, part.unit)) for part in shape.parts)
    return dataclasses.replace(shape, parts=parts)


def of(images: Sequence[sightings.Image]) -> Columns:
    """The columns of images that are values already; columns as they are."""
    if isinstance(images, Columns):
        return images
    known: dict[tuple[object, ...], Shape] = {}
    return Columns(
        ids=[image.id for image in images],
        stamps=[times.to_number(image.time) for image in images],
        slots=[times.to_number(image.slot) for image in images],
        parents=[image.parent for image in images],
        shapes=[_shape(image, known) for image in images],
        make=images.__getitem__,
    )


def _shape(image: sightings.Image, known: dict[tuple[object, ...], Shape]) -> Shape:
    parts = tuple(
        Part(c.number, c.operation, c.unit, c.state, _base(c.base, image.parent), c.imported) for c in image.copies
    )
    key = (image.schedule, image.type, image.state, image.lifecycle, image.owed, image.disks, parts)
    if key not in known:
        known[key] = Shape(
            schedule=image.schedule, type=image.type, state=image.state, lifecycle=image.lifecycle, owed=image.owed,
            disks=image.disks, parts=parts,
        )  # fmt: skip
    return known[key]


def _base(base: str | None, parent: str | None) -> str | None:
    return PARENT if base is not None and base == parent else base
