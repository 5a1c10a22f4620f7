"""The search cache: every name in every indexed image, findable without a storage unit.

``operations.fileindexing`` teaches it each image after its commit and lets it forget expired ones; commands ask it. It
holds each version of a file once, with the interval of images that have it (``intervals``), many to a row (``blocks``).
All of it comes from the units' attachments: what is missing is learned again, what cannot be read is started anew.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from reconciler.base import errors
from reconciler.catalog.fileindexes import (
    answers,
    blocks,
    columns,
    entries,
    indexes,
    intervals,
    lessons,
    pages,
    patterns,
    shelves,
    stores,
)

#: What bits that flipped in the file come to where SQLite does not notice: text that is none, numbers in place of
#: bytes, folders without their blocks. What is read of a unit is read outside of ``_sound``.
_DAMAGE: Final = (columns.Malformed, errors.FormatTooNew, UnicodeError, TypeError, LookupError, OverflowError)
#: The name of the file in the folder of caches.
FILE: Final = "files.sqlite"


class FileCache:
    """Implements ``answers.Cache``."""

    def __init__(self, folder: Path) -> None:
        """``folder``: of the estate's caches; made when something is learned or asked."""
        self._store = stores.Store(folder / FILE)

    def images(self, client: str | None = None) -> tuple[answers.Image, ...]:
        """As ``answers.Cache`` says."""
        rows = self._images("NULL", client)
        return tuple(answers.Image(id=id, client=name, time=time, sequence=of) for id, name, time, of, _ in rows)

    def learned(self, client: str | None = None) -> tuple[answers.Learned, ...]:
        """What it knows, of one client or of all; by client, oldest first."""
        with self._sound():
            return tuple(
                answers.Learned(
                    image=answers.Image(id=id, client=name, time=time, sequence=sequence),
                    head=pages.decode_head(head) if head is not None else None,
                )
                for id, name, time, sequence, head in self._images("head", client)
            )

    def _images(self, head: str, client: str | None) -> list[tuple[str, str, int, int, bytes | None]]:
        where, values = ("WHERE clients.name = ?", (client,)) if client is not None else ("", ())
        with self._reading() as connection:
            return connection.execute(
                f"SELECT images.id, clients.name, time, sequence, {head} FROM images"
                f" JOIN clients ON clients.id = client {where} ORDER BY clients.name, sequence, images.id",
                values,
            ).fetchall()

    def learn(self, image: answers.Image, index: indexes.Index | None, *, patience: float | None = None) -> bool:
        """As ``answers.Cache`` says."""
        lesson: lessons.Lesson | None = None
        while True:
            # The unit is read without the file's lock; should somebody learn a neighbour meanwhile, it is read again.
            with self._reading() as connection:
                if lessons.known(connection, image.id):
                    return False
                ground = lessons.ground(connection, image)
            if index is not None and (lesson is None or not lesson.fits(ground)):
                lesson = lessons.Lesson(index, ground)
            with self._writing(patience) as connection:
                if lessons.known(connection, image.id):
                    return False
                if lesson is not None and not lesson.fits(lessons.ground(connection, image)):
                    continue
                lessons.take(connection, image, lesson)
                return True

    def forget(self, ids: Collection[str], *, patience: float | None = None) -> None:
        """As ``answers.Cache`` says."""
        if ids:
            with self._writing(patience) as connection:
                lessons.forget(connection, ids)

    def known(self) -> dict[str, bool]:
        """As ``answers.Cache`` says."""
        with self._reading() as connection:
            rows = connection.execute("SELECT id, place IS NOT NULL FROM images").fetchall()
        return {id: bool(indexed) for id, indexed in rows}

    def head(self, image: str) -> pages.Head:
        """As ``answers.Cache`` says."""
        with self._reading() as connection:
            return self._image(connection, image)[2]

    def folder(self, image: str, disk: str, volume: int, path: str) -> tuple[entries.Entry, ...]:
        """As ``answers.Cache`` says."""
        with self._reading() as connection:
            client, place, head = self._image(connection, image)
            found = shelves.Shelf(connection, client).folder((disk, volume, path))
            rows = [one.entry for one in found if one.since <= place < one.until]
            if not rows:
                self._require_folder(connection, image, (client, place, head), (disk, volume, path))
        return tuple(rows)

    def _require_folder(
        self, connection: sqlite3.Connection, image: str, known: tuple[int, int, pages.Head], place: blocks.Place
    ) -> None:
        disk, volume, path = place
        client, at, head = known
        volumes = next((one.volumes for one in head.disks if one.name == disk), ())
        if path == "" and volume < len(volumes):
            return
        above, _, name = path.rpartition("/")
        for one in shelves.Shelf(connection, client).folder((disk, volume, above)):
            if one.since <= at < one.until and one.entry.name == name and one.entry.kind == "directory":
                return
        raise errors.NotFound(f"image {image} has no folder /{path} on volume {volume} of disk {disk}")

    def entry(self, image: str, disk: str, volume: int, path: str, stream: str = "") -> entries.Entry:
        """As ``answers.Cache`` says."""
        with self._reading() as connection:
            client, place, _ = self._image(connection, image)
            for one in shelves.Shelf(connection, client).folder((disk, volume, path.rpartition("/")[0])):
                if one.since <= place < one.until and (one.entry.path, one.entry.stream) == (path, stream):
                    return one.entry
        shown = f"/{path}:{stream}" if stream else f"/{path}"
        raise errors.NotFound(f"image {image} has no {shown} on volume {volume} of disk {disk}")

    def versions(self, client: str, disk: str, volume: int, path: str, stream: str = "") -> tuple[answers.Version, ...]:
        """As ``answers.Cache`` says."""
        with self._reading() as connection:
            found = connection.execute("SELECT id FROM clients WHERE name = ?", (client,)).fetchone()
            if found is None:
                return ()
            some = shelves.Shelf(connection, found[0]).folder((disk, volume, path.rpartition("/")[0]))
            history = [one for one in some if (one.entry.path, one.entry.stream) == (path, stream)]
            return tuple(_Held(connection, found[0], client, answers.Query(text="")).tell(history))

    def search(self, query: answers.Query) -> Iterator[answers.Version]:
        """As ``answers.Cache`` says."""
        pattern = patterns.Pattern(query.text, contains=query.contains, fold=query.fold, streams=query.streams)
        with self._reading() as connection:
            clients = connection.execute("SELECT id, name FROM clients ORDER BY name").fetchall()
            for client, name in clients:
                if query.clients is not None and name not in query.clients:
                    continue
                held = _Held(connection, client, name, query)
                if held:
                    yield from self._search(connection, client, pattern, held)

    @staticmethod
    def _search(
        connection: sqlite3.Connection, client: int, pattern: patterns.Pattern, held: _Held
    ) -> Iterator[answers.Version]:
        numbers = "SELECT numbers FROM blocks WHERE id = ?"
        unpacker = columns.Unpacker()
        for id, names in connection.execute("SELECT id, names FROM blocks WHERE client = ? ORDER BY id", (client,)):
            block = blocks.Block(names, unpacker)
            wanted = pattern.find(block.names)
            if not wanted:
                continue
            for history in block.found(connection.execute(numbers, (id,)).fetchone()[0], wanted):
                yield from held.tell(history)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._sound(), self._store.reading() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self, patience: float | None) -> Iterator[sqlite3.Connection]:
        with self._sound(), self._store.writing(patience) as connection:
            yield connection

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            self._store.remove()
            raise errors.CatalogError(
                f"{self._store.path}: the search cache of files was damaged: {error}",
                hint="it was deleted, and is made anew from the storage units",
            ) from error

    @staticmethod
    def _image(connection: sqlite3.Connection, image: str) -> tuple[int, int, pages.Head]:
        found = connection.execute("SELECT client, place, head FROM images WHERE id = ?", (image,)).fetchone()
        if found is None:
            raise errors.NotFound(f"the search cache does not know image {image}")
        client, place, head = found
        if place is None:
            raise errors.NotFound(f"image {image} has no index of files", hint="it can be browsed on its unit")
        return client, place, pages.decode_head(head)


class _Held:
    """The images of one client that a query asks for; false where there are none."""

    def __init__(self, connection: sqlite3.Connection, client: int, name: str, query: answers.Query) -> None:
        rows = connection.execute(
            "SELECT place, id, time FROM images WHERE client = ? AND place IS NOT NULL ORDER BY place", (client,)
        ).fetchall()
        self._client = name
        self._kinds = query.kinds
        self._places = [place for place, _, _ in rows]
        self._ids = [
            id
            if (query.images is None or id in query.images)
            and (query.since is None or time >= query.since)
            and (query.until is None or time < query.until)
            else None
            for _, id, time in rows
        ]
        self._known: dict[tuple[int, int], tuple[str, ...]] = {}
        self._any = any(id is not None for id in self._ids)

    def __bool__(self) -> bool:
        return self._any

    def tell(self, versions: list[intervals.Version]) -> Iterator[answers.Version]:
        """The versions of one name that are asked for."""
        for one in intervals.settled(versions, self._places) if len(versions) > 1 else versions:
            if self._kinds is not None and one.entry.kind not in self._kinds:
                continue
            ids = self._between(one.since, one.until)
            if ids:
                yield answers.Version(client=self._client, entry=one.entry, images=ids)

    def _between(self, since: int, until: int) -> tuple[str, ...]:
        """The images asked for that hold a version; there are few bounds and many versions."""
        ids = self._known.get((since, until))
        if ids is None:
            first, last = intervals.held(self._places, since, until)
            ids = self._known[since, until] = tuple(id for id in self._ids[first:last] if id is not None)
        return ids
