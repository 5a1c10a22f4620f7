"""What FAT and exFAT share: clusters that are numbered from 2 and chained through a table, directories of 32 bytes."""

from __future__ import annotations

import bisect
import calendar
from array import array
from collections.abc import Iterator
from typing import Protocol

from reconciler.guests.parsers import stretches

#: Bytes of one directory that are believed.
MOST_DIRECTORY = 256 << 20
ENTRY = 32
#: Entries of a table that are read together, and how many such pages are kept: 16 MiB in all.
_PAGE, _PAGES = 16_384, 256
FIRST = 2

#: First cluster and how many, in a row.
Run = tuple[int, int]


class Damaged(Exception):
    """A chain or a directory contradicts itself or points outside the volume."""


class Entries(Protocol):
    """The following cluster of every cluster."""

    def __getitem__(self, number: int, /) -> int:
        """The entry of one cluster."""


class Pages:
    """A table of 32-bit entries that is read where somebody follows it."""

    def __init__(self, stretch: stretches.Stretch, place: int, count: int, mask: int) -> None:
        """``place``: its byte on the volume; ``count``: of entries; ``mask``: the bits of each that matter."""
        self._stretch = stretch
        self._place = place
        self._count = count
        self._mask = mask
        self._pages: dict[int, array[int]] = {}

    def __getitem__(self, number: int, /) -> int:
        page = self._pages.get(number // _PAGE)
        return (page if page is not None else self._page(number // _PAGE))[number % _PAGE] & self._mask

    def _page(self, number: int) -> array[int]:
        if len(self._pages) >= _PAGES:
            self._pages.clear()
        count = min(_PAGE, self._count - number * _PAGE)
        page = self._pages[number] = array("I", self._stretch.exactly(self._place + 4 * number * _PAGE, 4 * count))
        return page


class Clusters:
    """The clusters of a volume and who has them already. ``table`` holds the next cluster of each, from cluster 0."""

    def __init__(
        self, stretch: stretches.Stretch, table: Entries, *, last: int, end: int, base: int, unit: int
    ) -> None:
        """``last``: the highest cluster; ``end``: the least value that ends a chain; ``base``, ``unit``: bytes."""
        self._stretch = stretch
        self._table = table
        self._taken: bytearray | None = None
        self._last = last
        self._end = end
        self._base = base
        self.unit = unit
        #: Whether two chains met, so that nobody can say whose the clusters are.
        self.crossed = False

    def place(self, cluster: int) -> int:
        """The byte of the volume at which a cluster starts."""
        return self._base + (cluster - FIRST) * self.unit

    def _claims(self) -> bytearray:
        if self._taken is None:
            self._taken = bytearray(self._last + 1)
        return self._taken

    def next(self, cluster: int) -> int | None:
        """The cluster that follows one in its chain; None where the chain ends or is none."""
        following = self._table[cluster] if FIRST <= cluster <= self._last else 0
        return following if FIRST <= following <= self._last else None

    def holding(self, offset: int) -> int | None:
        """The cluster that holds a byte of the volume; None where none does."""
        cluster = (offset - self._base) // self.unit + FIRST
        return cluster if FIRST <= cluster <= self._last else None

    def chain(self, first: int, *, take: bool = True) -> list[Run]:
        """The runs of the chain that starts at ``first``; with ``take`` no cluster is given out twice.

        Raises ``Damaged`` where the chain leaves the volume, is cut short or comes round to itself.
        """
        runs: list[Run] = []
        at, start, count, steps = first, first, 0, 0
        table, last, end = self._table, self._last, self._end
        taken = self._claims() if take else b""
        while True:
            if not FIRST <= at <= last:
                raise Damaged(f"a chain leads to cluster {at}")
            steps += 1
            if steps > last:
                raise Damaged("a chain comes round to itself")
            if isinstance(taken, bytearray):
                if taken[at]:
                    self.crossed = True
                    raise Damaged(f"two chains meet at cluster {at}")
                taken[at] = 1
            count += 1
            following = table[at]
            if following != at + 1:
                runs.append((start, count))
                start, count = following, 0
                if following >= end:
                    return runs
            at = following

    def row(self, first: int, count: int, *, take: bool = True) -> list[Run]:
        """``count`` clusters from ``first``, which need no chain. Raises ``Damaged``."""
        if not first >= FIRST or first + count - 1 > self._last:
            raise Damaged(f"clusters {first} to {first + count - 1} lie outside the volume")
        if take:
            taken = self._claims()
            if any(taken[first : first + count]):
                self.crossed = True
                raise Damaged(f"two files meet at cluster {first} or behind it")
            taken[first : first + count] = b"\x01" * count
        return [(first, count)]

    def content(self, runs: list[Run], most: int) -> bytes:
        """The bytes of some runs, at most ``most``. Raises ``Truncated``."""
        pieces: list[bytes] = []
        for first, count in runs:
            length = min(count * self.unit, most)
            pieces.append(self._stretch.exactly(self.place(first), length))
            most -= length
            if not most:
                break
        return b"".join(pieces)

    def extents(self, runs: list[Run]) -> Iterator[tuple[int, int, int]]:
        """The runs as offset in the file, offset on the volume and length, bytes."""
        offset = 0
        for first, count in runs:
            yield offset, self.place(first), count * self.unit
            offset += count * self.unit


def place(runs: list[tuple[int, int, int]], at: int) -> int:
    """The byte of the volume at which byte ``at`` of something lies; ``runs`` as ``Clusters.extents`` gives them."""
    number = bisect.bisect_right(runs, (at, 1 << 62, 0)) - 1
    offset, start, _ = runs[number]
    return start + at - offset


def moment(date: int, time: int, hundredths: int = 0, minutes: int = 0) -> int:
    """Nanoseconds since 1970 of a date and time as DOS packs them, ``minutes`` east of UTC; 0 for none."""
    month, day = date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        return 0
    parts = (1980 + (date >> 9), month, day, time >> 11, time >> 5 & 63, 2 * (time & 31))
    return (calendar.timegm(parts) - 60 * minutes) * 1_000_000_000 + hundredths * 10_000_000
