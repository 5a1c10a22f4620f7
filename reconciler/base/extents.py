"""Ranges of a disk as ordered, disjoint ``(offset, length)`` pairs, and the few set operations on them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

Extent = tuple[int, int]
Extents = tuple[Extent, ...]


def normalise(ranges: Iterable[Extent]) -> Extents:
    """Sort, merge what touches or overlaps, drop what is empty."""
    merged: list[Extent] = []
    for offset, length in sorted(ranges):
        if length <= 0:
            continue
        if merged and offset <= merged[-1][0] + merged[-1][1]:
            start, size = merged[-1]
            merged[-1] = (start, max(size, offset + length - start))
        else:
            merged.append((offset, length))
    return tuple(merged)


def clip(ranges: Iterable[Extent], size: int) -> Extents:
    """What of ``ranges`` lies in ``[0, size)``, normalised."""
    return normalise((max(o, 0), min(o + n, size) - max(o, 0)) for o, n in ranges)


def align(ranges: Iterable[Extent], block: int, size: int) -> Extents:
    """Widen each range to whole blocks of ``block`` bytes (the last one ends at ``size``), normalised."""
    return clip(
        ((o // block * block, -(-(o + n) // block) * block - o // block * block) for o, n in ranges if n > 0), size
    )


def intersect(left: Iterable[Extent], right: Iterable[Extent]) -> Extents:
    """What both hold; each side must be ordered and disjoint."""
    result: list[Extent] = []
    a_iter, b_iter = iter(left), iter(right)
    a, b = next(a_iter, None), next(b_iter, None)
    while a is not None and b is not None:
        start, end = max(a[0], b[0]), min(a[0] + a[1], b[0] + b[1])
        if start < end:
            result.append((start, end - start))
        if a[0] + a[1] <= b[0] + b[1]:
            a = next(a_iter, None)
        else:
            b = next(b_iter, None)
    return tuple(result)


def subtract(left: Iterable[Extent], right: Iterable[Extent]) -> Extents:
    """What ``left`` holds and ``right`` does not; each side must be ordered and disjoint."""
    result: list[Extent] = []
    b_iter = iter(right)
    b = next(b_iter, None)
    for offset, length in left:
        start, end = offset, offset + length
        while b is not None and b[0] + b[1] <= start:
            b = next(b_iter, None)
        while b is not None and b[0] < end:
            if start < b[0]:
                result.append((start, b[0] - start))
            start = b[0] + b[1]
            if start >= end:
                break
            b = next(b_iter, None)
        if start < end:
            result.append((start, end - start))
    return tuple(result)


def within(ranges: Sequence[Extent], starts: Sequence[int], offset: int, length: int) -> Extents:
    """What of ordered, disjoint ``ranges`` lies in ``[offset, offset + length)``; ``starts`` holds their offsets."""
    end = offset + length
    number = max(bisect.bisect_right(starts, offset) - 1, 0)
    found: list[Extent] = []
    while number < len(ranges) and ranges[number][0] < end:
        start = max(ranges[number][0], offset)
        stop = min(ranges[number][0] + ranges[number][1], end)
        if start < stop:
            found.append((start, stop - start))
        number += 1
    return tuple(found)


def pieces(ranges: Iterable[Extent], block: int) -> Iterator[Extent]:
    """Cut ranges at multiples of ``block`` bytes of the disk, in order."""
    for offset, length in ranges:
        end = offset + length
        while offset < end:
            step = min(block - offset % block, end - offset)
            yield offset, step
            offset += step


def total(ranges: Iterable[Extent]) -> int:
    """Bytes in disjoint ranges."""
    return sum(length for _, length in ranges)
