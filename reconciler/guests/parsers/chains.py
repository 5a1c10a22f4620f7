"""What FAT and exFAT share: clusters that are numbered from 2 and chained through a table, directories of 32 bytes."""

from __future__ import annotations

import calendar
from array import array
from collections.abc import Iterator

from reconciler.guests.parsers import stretches

#: Bytes of one directory that are believed.
MOST_DIRECTORY = 256 << 20
ENTRY = 32
FIRST = 2

#: First cluster and how many, in a row.
Run = tuple[int, int]


class Damaged(Exception):
    """A chain or a directory contradicts itself or points outside the volume."""


class Clusters:
    """The clusters of a volume and who has them already. ``table`` holds the next cluster of each, from cluster 0."""

    def __init__(
        self, stretch: stretches.Stretch, table: array[int], *, last: int, end: int, base: int, unit: int
    ) -> None:
        """``last``: the highest cluster; ``end``: the least value that ends a chain; ``base``, ``unit``: bytes."""
        self._stretch = stretch
        self._table = table
        self._taken = bytearray(last + 1)
        self._last = last
        self._end = end
        self._base = base
        self.unit = unit
        #: Whether two chains met, so that nobody can say whose the clusters are.
        self.crossed = False

    def place(self, cluster: int) -> int:
        """The byte of the volume at which a cluster starts."""
        return self._base + (cluster - FIRST) * self.unit

    def chain(self, first: int, *, take: bool = True) -> list[Run]:
        """The runs of the chain that starts at ``first``; with ``take`` no cluster is given out twice.

        Raises ``Damaged`` where the chain leaves the volume, is cut short or comes round to itself.
        """
        runs: list[Run] = []
        at, start, count, steps = first, first, 0, 0
        table, taken, last, end = self._table, self._taken, self._last, self._end
        while True:
            if not FIRST <= at <= last:
                raise Damaged(f"a chain leads to cluster {at}")
            steps += 1
            if steps > last:
                raise Damaged("a chain comes round to itself")
            if take:
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
            if any(self._taken[first : first + count]):
                self.crossed = True
                raise Damaged(f"two files meet at cluster {first} or behind it")
            self._taken[first : first + count] = b"\x01" * count
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


def moment(date: int, time: int, hundredths: int = 0, minutes: int = 0) -> int:
    """Nanoseconds since 1970 of a date and time as DOS packs them, ``minutes`` east of UTC; 0 for none."""
    month, day = date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        return 0
    parts = (1980 + (date >> 9), month, day, time >> 11, time >> 5 & 63, 2 * (time & 31))
    return (calendar.timegm(parts) - 60 * minutes) * 1_000_000_000 + hundredths * 10_000_000
