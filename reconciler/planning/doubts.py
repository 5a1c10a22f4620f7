"""Images whose time cannot be right: clearly later than now, or in contradiction to the order in which they were made.

``histories`` asks for every series that it decides about; ``restorations``, ``controller.choices`` and ``filechoices``
ask which of a client's images is really the newest. Separate from the first because a command that restores loads
nothing that decides.
"""

from __future__ import annotations

import bisect
import datetime as dt
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Protocol

from reconciler.base import times
from reconciler.planning import sightings


class Dated(Protocol):
    """An image as far as its time can be doubted."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def policy(self) -> str:
        """With the client it says of which series it is."""

    @property
    def time(self) -> dt.datetime:
        """When the source was frozen, UTC."""

    @property
    def sequence(self) -> int:
        """Orders the images of a series."""


def doubtful(images: Iterable[Dated], now: dt.datetime) -> frozenset[str]:
    """Ids of those images of one client that a wrong clock made; each series is judged by itself."""
    found: set[str] = set()
    ordered = sorted(images, key=lambda one: (one.policy, one.sequence))
    for _, group in itertools.groupby(ordered, key=lambda one: one.policy):
        series = list(group)
        found.update(series[index].id for index in misdated([times.to_number(one.time) for one in series], now))
    return frozenset(found)


def misdated(stamps: Sequence[int], now: dt.datetime) -> frozenset[int]:
    """Indices of the times of a series, in the order in which its images were made, that a wrong clock gave.

    Where the last one is later than ``now``, it is ``now`` that is doubtful: a machine that restores after a disaster
    may have a wrong clock.
    """
    limit = times.to_number(now + sightings.AHEAD)
    return contradicted(stamps, limit if not stamps or stamps[-1] <= limit else max(stamps))


def contradicted(stamps: Sequence[int], limit: int) -> frozenset[int]:
    """Indices of times beyond the limit, and of the fewest others without which times never fall as sequences rise."""
    later: frozenset[int] = frozenset()
    rest: Sequence[int] = range(len(stamps))
    if max(stamps, default=limit) > limit:
        later = frozenset(index for index in rest if stamps[index] > limit)
        rest = [index for index in rest if index not in later]
    ordered = [stamps[index] for index in rest] if later else stamps
    if all(map(operator.le, ordered, itertools.islice(ordered, 1, None))):
        return later
    # The longest non-decreasing subsequence is what most images agree on; the others contradict it.
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for index, stamp in enumerate(ordered):
        place = bisect.bisect_right(tails, stamp)
        before.append(ends[place - 1] if place else -1)
        if place == len(tails):
            tails.append(stamp)
            ends.append(index)
        else:
            tails[place], ends[place] = stamp, index
    agreeing = set()
    at = ends[-1]
    while at >= 0:
        agreeing.add(at)
        at = before[at]
    return later | {rest[index] for index in range(len(ordered)) if index not in agreeing}
