"""The index of one image: reading an attachment as entries, and building one relative to the parent's.

``operations.fileindexing`` builds; ``caches`` reads. A build against a parent keeps the parent's pages, whose bytes a
unit then holds once, and lays one layer of changes over them; when the layers come to a quarter of what they lie on,
the index is written anew, in one layer.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from reconciler.base import digests, errors
from reconciler.catalog.fileindexes import columns, entries, pages

#: Changed entries that always may lie over the first layer, and the most layers.
_FEW: Final = 2_000
_LAYERS: Final = 64


class Page(Protocol):
    """A page as a unit knows it."""

    @property
    def digest(self) -> bytes:
        """BLAKE3 of its bytes."""


class Attached(Protocol):
    """An attachment of a stored image."""

    @property
    def pages(self) -> Sequence[Page]:
        """Its pages, in order."""

    def read(self, number: int) -> bytes:
        """The bytes of one, proven. Raises ``ImageDamaged`` or ``UnitError``."""


class Index:
    """An index that can be read. Reading it raises ``ImageDamaged`` where it makes no sense."""

    def __init__(self, image: str, attached: Attached) -> None:
        """Reads the head alone. ``image`` is for messages. Raises ``ImageDamaged``, ``FormatTooNew``, ``UnitError``."""
        self.image = image
        self._attached = attached
        if not attached.pages:
            raise self._damaged("it has no pages")
        self.head = self._told(lambda: pages.decode_head(attached.read(0)))
        if sum(layer.pages for layer in self.head.layers) != len(attached.pages) - 1:
            raise self._damaged("it has more or fewer pages than it says")

    def _told(self, decode: Callable[[], pages.Head]) -> pages.Head:
        try:
            return decode()
        except columns.Malformed as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> errors.AttachmentDamaged:
        return errors.AttachmentDamaged(f"image {self.image}: its index of files makes no sense: {why}")

    @property
    def layers(self) -> tuple[bytes, ...]:
        """What is in each layer, as a digest: equal ones hold the same entries."""
        found: list[bytes] = []
        first = 1
        for layer in self.head.layers:
            named = b"".join(page.digest for page in self._attached.pages[first : first + layer.pages])
            found.append(digests.digest(named))
            first += layer.pages
        return tuple(found)

    def stored(self, count: int) -> Iterator[bytes]:
        """The pages of the first ``count`` layers, as they lie."""
        for number in range(1, 1 + sum(layer.pages for layer in self.head.layers[:count])):
            yield self._attached.read(number)

    def layer(self, number: int) -> Iterator[entries.Entry]:
        """One layer's entries, in order of their keys; what is ``gone`` too."""
        first = 1 + sum(layer.pages for layer in self.head.layers[:number])
        last: entries.Key | None = None
        for page in range(first, first + self.head.layers[number].pages):
            try:
                rows = pages.decode(self._attached.read(page))
            except columns.Malformed as error:
                raise self._damaged(f"page {page}: {error}") from error
            for row in rows:
                place = entries.key(row)
                if last is not None and place <= last:
                    raise self._damaged(f"page {page} is not in order")
                last = place
                yield row

    def changes(self, first: int) -> dict[entries.Key, entries.Entry]:
        """What the layers from ``first`` on say, the newest word on each name; what is ``gone`` too."""
        found: dict[entries.Key, entries.Entry] = {}
        for number in range(first, len(self.head.layers)):
            found.update((entries.key(row), row) for row in self.layer(number))
        return found

    def __iter__(self) -> Iterator[entries.Entry]:
        """Every entry of the image, in order of their keys."""
        count = len(self.head.layers)
        if count == 0:
            return iter(())
        if count == 1:
            return self._present(self.layer(0))
        over = sorted(self.changes(1).items(), key=operator.itemgetter(0))
        return self._present(_laid(self.layer(0), over))

    @staticmethod
    def _present(rows: Iterable[entries.Entry]) -> Iterator[entries.Entry]:
        return (row for row in rows if row.kind != entries.GONE)


def _laid(below: Iterable[entries.Entry], over: Sequence[tuple[entries.Key, entries.Entry]]) -> Iterator[entries.Entry]:
    """One layer over another, both in order."""
    lower = ((entries.key(row), 1, row) for row in below)
    upper = ((place, 0, row) for place, row in over)
    last: entries.Key | None = None
    for place, _, row in heapq.merge(lower, upper, key=operator.itemgetter(0, 1)):
        if place != last:
            yield row
        last = place


def ordered(rows: Iterable[entries.Entry]) -> list[entries.Entry]:
    """Entries in order of their keys; of several with the same one, which no sound file system has, the first."""
    found = sorted(rows, key=entries.key)
    if all(map(operator.lt, map(entries.key, found), itertools.islice(map(entries.key, found), 1, None))):
        return found
    return [next(group) for _, group in itertools.groupby(found, key=entries.key)]


def build(rows: Sequence[entries.Entry], disks: Sequence[pages.Disk], parent: Index | None = None) -> Iterator[bytes]:
    """The pages of an index of ``rows``, which are in order of their keys, each once.

    ``parent``: what is kept of it comes first and is the same bytes. Raises what reading the parent does, at once.
    """
    over = _over(rows, parent) if parent is not None else None
    if parent is None or over is None:
        made = [pages.encode(page) for page in pages.cut(rows)]
        layers: tuple[pages.Layer, ...] = (pages.Layer(pages=len(made), entries=len(rows)),)
        kept: Iterator[bytes] = iter(())
    else:
        made = [pages.encode(page) for page in pages.cut(over)]
        more = (pages.Layer(pages=len(made), entries=len(over)),) if over else ()
        layers = parent.head.layers + more
        kept = parent.stored(len(parent.head.layers))
    head = pages.Head(disks=tuple(disks), layers=layers, entries=len(rows))
    return itertools.chain([pages.encode_head(head)], kept, made)


def _over(rows: Sequence[entries.Entry], parent: Index) -> list[entries.Entry] | None:
    """What a layer over the parent's must say; None where a new first layer is the better one."""
    layers = parent.head.layers
    if not layers:
        return None
    room = max(_FEW, layers[0].entries // 4) - sum(layer.entries for layer in layers[1:])
    if len(layers) >= _LAYERS or room <= 0:
        return None
    over: list[entries.Entry] = []
    for old, new in _beside(parent, rows):
        if old == new:
            continue
        if new is not None:
            over.append(new)
        elif old is not None:
            over.append(entries.gone(old))
        if len(over) > room:
            return None
    return over


def _beside(
    old: Iterable[entries.Entry], new: Iterable[entries.Entry]
) -> Iterator[tuple[entries.Entry | None, entries.Entry | None]]:
    """Two ordered rows of entries side by side, by key."""
    left, right = iter(old), iter(new)
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        if one[:4] == other[:4]:
            yield one, other
            one, other = next(left, None), next(right, None)
        elif entries.key(one) < entries.key(other):
            yield one, None
            one = next(left, None)
        else:
            yield None, other
            other = next(right, None)
    while one is not None:
        yield one, None
        one = next(left, None)
    while other is not None:
        yield None, other
        other = next(right, None)
