"""How much room a storage unit has: what is free, what a collection gives back, less what running jobs will still take.

``placements`` judges units by it, ``dispatch`` reserves in it for each start, ``evictions`` works out how much has to
go. In a pool the bytes of expired copies count as free at once: marks are judged as they will be after a collection.
Estimates of what a job adds lean low: a job that is held back protects nobody, one that finds its unit full after all
is tried again. Units that share a file system each see all of it. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from reconciler.api import storage
from reconciler.base import quantities
from reconciler.planning import actions, histories, observed

#: Types of jobs that add to a unit.
_WRITERS: Final = frozenset({actions.Type.BACKUP, actions.Type.DUPLICATE})
#: How many of a series' newest images are looked at for one like the next.
_RECENT: Final = 32


class Space(NamedTuple):
    """The room of one unit; all in bytes."""

    total: int
    #: What is free, or would be after a collection.
    free: int
    #: What live jobs are expected to add still.
    committed: int

    @property
    def available(self) -> int:
        """What a new job may take; below 0 where more is promised than there is."""
        return self.free - self.committed

    @property
    def filled(self) -> int:
        """What is taken now, without what jobs will add."""
        return self.total - self.free


def space(unit: observed.Unit, committed: int = 0) -> Space | None:
    """The room of a unit as it was seen; None where its size is not known."""
    if not unit.total_bytes:
        return None
    return Space(unit.total_bytes, min(unit.total_bytes, unit.free_bytes + unit.reclaimable_bytes), committed)


def commitments(jobs: Iterable[observed.Job], name: Callable[[str], str]) -> dict[str, int]:
    """By unit, what live jobs will still add. ``name`` gives a unit's present name."""
    result: dict[str, int] = {}
    for job in jobs:
        if job.type in _WRITERS and job.unit is not None and job.expected_bytes is not None:
            unit = name(job.unit)
            result[unit] = result.get(unit, 0) + max(0, job.expected_bytes - job.stored_bytes)
    return result


def over(spec: storage.StorageUnitSpec, room: Space) -> bool:
    """Whether the unit is above its high water mark, counting what is committed."""
    return 100 * (room.total - room.available) > quantities.parse_percent(spec.high_water_mark) * room.total


def full(name: str, spec: storage.StorageUnitSpec, room: Space) -> actions.Reason | None:
    """Why the unit takes no new copies: it is above its high water mark."""
    if not over(spec, room):
        return None
    filled = 100 * (room.total - room.available) // room.total
    jobs = " with what running jobs will add" if room.committed else ""
    words = f"unit {name} is {filled}% full{jobs}, over its {spec.high_water_mark} mark"
    return actions.Reason(code="UnitFull", message=words)


def lacks(name: str, room: Space, need: int | None) -> actions.Reason | None:
    """Why a job that is expected to add ``need`` bytes does not fit."""
    if need is None or need <= room.available:
        return None
    taken = f", {quantities.show_size(room.committed)} of it promised to running jobs" if room.committed else ""
    words = (
        f"{quantities.show_size(need)} are expected, and unit {name} has"
        f" {quantities.show_size(max(0, room.free))} free{taken}"
    )
    return actions.Reason(code="NoRoom", message=words)


# -- what jobs add -----------------------------------------------------------------------------------------------------


def of_backup(history: histories.History | None, type: str, unit: str, standalone: Callable[[str], bool]) -> int | None:
    """What a backup of ``type`` will add to ``unit``: as much as the newest one like it did; None where none is known.

    In a pool only what is new counts: the first image there says nothing about the second.
    """
    if history is None:
        return None
    alone = standalone(unit)
    there: list[int] = []
    other = None
    for image in itertools.islice(reversed(history.sound), _RECENT):
        for copy in image.copies:
            if copy.state not in observed.PRESENT or copy.state == "Writing":
                continue
            if alone and copy.unit == unit:
                there.append(copy.stored_bytes)
            elif other is None and image.type == type and not standalone(copy.unit):
                other = copy.stored_bytes
        if len(there) > 1:
            return there[0]
    return None if there else other


def of_copy(image: observed.Image, source: observed.Copy, unit: str, standalone: Callable[[str], bool]) -> int | None:
    """What a copy of ``image``, read from ``source``, will add to ``unit``; None where nothing says so."""
    if not standalone(source.unit) or standalone(unit):
        return source.stored_bytes
    # What a pool stored of an image is only what nothing else had brought before.
    plain = [copy.stored_bytes for copy in image.copies if not standalone(copy.unit) and copy.stored_bytes]
    return plain[0] if plain else None
