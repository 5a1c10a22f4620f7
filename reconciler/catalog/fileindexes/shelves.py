"""The blocks of one client in the search cache: which folder lies in which, writing them back, making new ones.

Used inside the transactions of ``lessons`` and ``caches``. Every folder of a client lies in exactly one block, and the
table of folders says in which.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping

from reconciler.catalog.fileindexes import blocks, intervals

_Row = tuple[int, bytes]


def _packed(text: str) -> bytes:
    """Text as the file holds it: lone surrogates are no text to SQLite."""
    return text.encode("utf-8", "surrogatepass")


class Shelf:
    """The blocks of one client, within one transaction."""

    def __init__(self, connection: sqlite3.Connection, client: int) -> None:
        self._connection = connection
        self._client = client
        self._roots: dict[tuple[str, int], int] = {}

    def all(self) -> list[int]:
        """Every block."""
        rows = self._connection.execute("SELECT id FROM blocks WHERE client = ? ORDER BY id", (self._client,))
        return [id for (id,) in rows]

    def holding(self, places: Iterable[blocks.Place]) -> list[int]:
        """The blocks that hold some folders; those that none holds are left out."""
        found: set[int] = set()
        for place in places:
            found.update(self._connection.execute(_BLOCK.format("block"), self._values(place)).fetchone() or ())
        return sorted(found)

    def folder(self, place: blocks.Place) -> list[intervals.Version]:
        """All versions of all names in one folder; none where there is no such folder."""
        found = self._connection.execute(_BLOCK.format("names, numbers"), self._values(place)).fetchone()
        return blocks.Block(found[0]).folder(found[1], place) if found is not None else []

    def _values(self, place: blocks.Place) -> tuple[object, ...]:
        disk, volume, path = place
        return self._client, _packed(disk), volume, _packed(path)

    def load(self, id: int) -> dict[blocks.Place, blocks.Versions]:
        """What is in a block."""
        names, numbers = self._connection.execute("SELECT names, numbers FROM blocks WHERE id = ?", (id,)).fetchone()
        return blocks.Block(names).folders(numbers)

    def store(self, id: int, before: Iterable[blocks.Place], folders: Mapping[blocks.Place, blocks.Versions]) -> None:
        """Write a block back, as several where it grew too large. ``before``: the folders that it held."""
        left = {self._row(place) for place in before}
        if not folders:
            self._connection.execute("DELETE FROM blocks WHERE id = ?", (id,))
        for number, part in enumerate(_parts(folders)):
            left -= self._write(id if number == 0 else None, part, left if number == 0 else ())
        self._connection.executemany("DELETE FROM folders WHERE root = ? AND path = ?", left)

    def add(self, fresh: Mapping[blocks.Place, blocks.Versions]) -> None:
        """New folders: into the newest block while it has room, else into new ones."""
        if not fresh:
            return
        newest = self._connection.execute(
            "SELECT id, versions FROM blocks WHERE client = ? ORDER BY id DESC LIMIT 1", (self._client,)
        ).fetchone()
        if newest is not None and newest[1] < blocks.TARGET:
            folders = self.load(newest[0])
            self.store(newest[0], list(folders), {**folders, **fresh})
        else:
            for part in _parts(fresh):
                self._write(None, part, ())

    def _write(
        self, id: int | None, part: Mapping[blocks.Place, blocks.Versions], known: Collection[_Row]
    ) -> set[_Row]:
        """One block; ``known``: its folders that the table has in it already. Returns its folders."""
        row = (self._client, *blocks.pack(part))
        if id is None:
            sql = "INSERT INTO blocks (client, versions, names, numbers) VALUES (?, ?, ?, ?)"
            id = self._connection.execute(sql, row).lastrowid
        else:
            sql = "UPDATE blocks SET client = ?, versions = ?, names = ?, numbers = ? WHERE id = ?"
            self._connection.execute(sql, (*row, id))
        places = {self._row(place) for place in part}
        self._connection.executemany(
            "INSERT OR REPLACE INTO folders (root, path, block) VALUES (?, ?, ?)",
            [(*place, id) for place in sorted(places.difference(known))],
        )
        return places

    def _row(self, place: blocks.Place) -> _Row:
        disk, volume, path = place
        root = self._roots.get((disk, volume))
        if root is None:
            values = (self._client, _packed(disk), volume)
            self._connection.execute("INSERT OR IGNORE INTO roots (client, disk, volume) VALUES (?, ?, ?)", values)
            sql = "SELECT id FROM roots WHERE client = ? AND disk = ? AND volume = ?"
            root = self._roots[disk, volume] = int(self._connection.execute(sql, values).fetchone()[0])
        return root, _packed(path)

    def drop(self) -> None:
        """Delete them all."""
        mine = (self._client,)
        self._connection.execute("DELETE FROM folders WHERE root IN (SELECT id FROM roots WHERE client = ?)", mine)
        self._connection.execute("DELETE FROM roots WHERE client = ?", mine)
        self._connection.execute("DELETE FROM blocks WHERE client = ?", mine)


_BLOCK = (
    "SELECT {} FROM roots JOIN folders ON root = roots.id JOIN blocks ON blocks.id = block"
    " WHERE roots.client = ? AND disk = ? AND volume = ? AND path = ?"
)


def _parts(folders: Mapping[blocks.Place, blocks.Versions]) -> Iterable[Mapping[blocks.Place, blocks.Versions]]:
    count = sum(map(len, folders.values()))
    return [folders] if 0 < count <= blocks.MOST else blocks.fill(folders)
