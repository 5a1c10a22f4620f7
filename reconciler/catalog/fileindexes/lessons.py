"""How the search cache takes in an image, and lets one go: inside one transaction of ``caches``.

Where the image's index lies in layers over those of its neighbour in time, which is what an incremental's does, the
upper layers say all that changed, and the folders they name are all that is touched. Otherwise it is compared as a
whole. Either way the cache holds afterwards what it would hold if all its images had been learned in their order.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from reconciler.catalog.fileindexes import answers, blocks, entries, indexes, intervals, pages, shelves

#: Sequence numbers of images are this far apart as places, for images that share one.
_APART: Final = 1 << 12
#: Bytes of a layer's digest.
_DIGEST: Final = 32
#: Forgotten images at which a client's versions are gone through, and the part of its images that is enough.
_STALE, _PART = 10, 5

#: What an image says of names, by folder: None for what is not there.
Said = dict[blocks.Place, dict[entries.Key, entries.Entry | None]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What the cache knows around the place of an image that it is to learn."""

    #: Layers of the next older image, None where there is none.
    layers: tuple[bytes, ...] | None
    #: Its place, and the next newer image's.
    before: int | None
    after: int | None


class Lesson:
    """What an image's index says, as far as the cache needs to hear it. Made without the cache's lock."""

    def __init__(self, index: indexes.Index, ground: Ground) -> None:
        """Reads the index. Raises ``ImageDamaged``, ``FormatTooNew`` or ``UnitError``."""
        self.layers = index.layers
        self.head = index.head
        shared = ground.layers if ground.layers and self.layers[: len(ground.layers)] == ground.layers else None
        self._layers = shared
        #: Whether ``said`` is what differs from the older neighbour alone, or all there is.
        self.partial = shared is not None
        changes = index.changes(len(shared)).values() if shared is not None else index
        self.said = _by_folder(changes)

    def fits(self, ground: Ground) -> bool:
        """Whether it can be taken in on that ground."""
        return self._layers is None or ground.layers == self._layers


def _by_folder(rows: Iterable[entries.Entry]) -> Said:
    said: Said = {}
    for row in rows:
        place = entries.key(row)
        said.setdefault(place[:3], {})[place] = None if row.kind == entries.GONE else row
    return said


def known(connection: sqlite3.Connection, image: str) -> bool:
    """Whether an image was learned."""
    return connection.execute("SELECT 1 FROM images WHERE id = ?", (image,)).fetchone() is not None


def ground(connection: sqlite3.Connection, image: answers.Image) -> Ground:
    """What lies around an image."""
    found = connection.execute("SELECT id FROM clients WHERE name = ?", (image.client,)).fetchone()
    client = found[0] if found is not None else -1
    place = _place(connection, client, image)
    around = "SELECT place, layers FROM images WHERE client = ? AND place"
    older = connection.execute(f"{around} < ? ORDER BY place DESC LIMIT 1", (client, place)).fetchone()
    newer = connection.execute(f"{around} > ? ORDER BY place LIMIT 1", (client, place)).fetchone()
    layers = None
    if older is not None:
        layers = tuple(older[1][at : at + _DIGEST] for at in range(0, len(older[1]), _DIGEST))
    return Ground(layers=layers, before=older[0] if older else None, after=newer[0] if newer else None)


def _place(connection: sqlite3.Connection, client: int, image: answers.Image) -> int:
    """The place of an image: behind those of its sequence number that were learned before, as a rule none."""
    place = image.sequence * _APART
    taken = "SELECT 1 FROM {} WHERE client = ? AND place = ?"
    while any(connection.execute(taken.format(of), (client, place)).fetchone() for of in ("images", "forgotten")):
        place += 1
    return place


def take(connection: sqlite3.Connection, image: answers.Image, lesson: Lesson | None) -> None:
    """Take in an image that is not known; one without an index is noted."""
    connection.execute("INSERT OR IGNORE INTO clients (name) VALUES (?)", (image.client,))
    client = connection.execute("SELECT id FROM clients WHERE name = ?", (image.client,)).fetchone()[0]
    place = layers = head = None
    if lesson is not None:
        place = _place(connection, client, image)
        around = ground(connection, image)
        if _between(connection, client, around):
            _settle(connection, client)
        _Taking(shelves.Shelf(connection, client), place, around.after).all(lesson)
        layers, head = b"".join(lesson.layers), pages.encode_head(lesson.head)
    connection.execute(
        "INSERT INTO images (id, client, place, time, sequence, layers, head) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (image.id, client, place, image.time, image.sequence, layers, head),
    )


def _between(connection: sqlite3.Connection, client: int, around: Ground) -> bool:
    """Whether bounds of forgotten images lie where a new one comes."""
    before = -1 if around.before is None else around.before
    after = intervals.OPEN if around.after is None else around.after
    between = "SELECT 1 FROM forgotten WHERE client = ? AND place > ? AND place < ?"
    return connection.execute(between, (client, before, after)).fetchone() is not None


class _Taking:
    """One image on its way into the blocks of its client."""

    def __init__(self, shelf: shelves.Shelf, place: int, after: int | None) -> None:
        self._shelf = shelf
        self._place = place
        self._after = after

    def all(self, lesson: Lesson) -> None:
        """Take in everything."""
        said = dict(lesson.said)
        for id in self._shelf.holding(said) if lesson.partial else self._shelf.all():
            folders = self._shelf.load(id)
            before = list(folders)
            changed = False
            for place in before:
                here = said.pop(place, None)
                if here is None and lesson.partial:
                    continue
                changed |= self._folder(folders, place, here or {}, partial=lesson.partial)
            if changed:
                self._shelf.store(id, before, folders)
        self._new(said)

    def _folder(
        self,
        folders: dict[blocks.Place, blocks.Versions],
        place: blocks.Place,
        said: dict[entries.Key, entries.Entry | None],
        *,
        partial: bool,
    ) -> bool:
        """Take in what is said of one folder; whether anything changed. A folder that is left empty goes."""
        names = blocks.by_name(folders[place])
        changed = False
        for key in said if partial else [*names, *(key for key in said if key not in names)]:
            before = names.get(key, [])
            after = intervals.put(before, self._place, self._after, said.get(key))
            if after is not before:
                changed = True
                names[key] = after
                if not after:
                    del names[key]
        _put_back(folders, place, names, changed=changed)
        return changed

    def _new(self, said: Said) -> None:
        """Folders that no image held so far."""
        fresh: dict[blocks.Place, blocks.Versions] = {}
        until = intervals.OPEN if self._after is None else self._after
        for place, here in said.items():
            some = [intervals.Version(row, self._place, until) for _, row in sorted(here.items(), key=_first) if row]
            if some:
                fresh[place] = some
        self._shelf.add(fresh)


def forget(connection: sqlite3.Connection, ids: Collection[str]) -> None:
    """Forget images; versions that only they held go now or with one of the next."""
    touched: set[int] = set()
    for id in ids:
        found = connection.execute("DELETE FROM images WHERE id = ? RETURNING client, place", (id,)).fetchone()
        if found is None:
            continue
        client, place = found
        touched.add(client)
        if place is not None:
            connection.execute("INSERT OR IGNORE INTO forgotten (client, place) VALUES (?, ?)", (client, place))
    for client in touched:
        count = "SELECT count(*), count(place) FROM images WHERE client = ?"
        every, indexed = connection.execute(count, (client,)).fetchone()
        stale = connection.execute("SELECT count(*) FROM forgotten WHERE client = ?", (client,)).fetchone()[0]
        if not indexed:
            shelves.Shelf(connection, client).drop()
            connection.execute("DELETE FROM forgotten WHERE client = ?", (client,))
        elif stale >= max(_STALE, indexed // _PART):
            _settle(connection, client)
        if not every:
            connection.execute("DELETE FROM clients WHERE id = ?", (client,))


def _settle(connection: sqlite3.Connection, client: int) -> None:
    """Go through all versions of a client: nothing is left of forgotten images."""
    rows = connection.execute(
        "SELECT place FROM images WHERE client = ? AND place IS NOT NULL ORDER BY place", (client,)
    )
    places = [place for (place,) in rows]
    shelf = shelves.Shelf(connection, client)
    for id in shelf.all():
        folders = shelf.load(id)
        before = list(folders)
        if sum(_settle_folder(folders, place, places) for place in before):
            shelf.store(id, before, folders)
    connection.execute("DELETE FROM forgotten WHERE client = ?", (client,))


def _settle_folder(folders: dict[blocks.Place, blocks.Versions], place: blocks.Place, places: Sequence[int]) -> bool:
    """Whether anything changed. A folder that is left empty goes."""
    names = blocks.by_name(folders[place])
    changed = False
    for key, versions in list(names.items()):
        after = intervals.settled(versions, places)
        if after is versions:
            continue
        changed = True
        names[key] = after
        if not after:
            del names[key]
    _put_back(folders, place, names, changed=changed)
    return changed


def _put_back(
    folders: dict[blocks.Place, blocks.Versions], place: blocks.Place, names: blocks.Names, *, changed: bool
) -> None:
    if not names:
        del folders[place]
    elif changed:
        folders[place] = blocks.in_order(names)


def _first(item: tuple[entries.Key, object]) -> entries.Key:
    return item[0]
