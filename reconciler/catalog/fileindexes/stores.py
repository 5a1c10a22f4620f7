"""The search cache as a file: its schema, its transactions, and starting over where it cannot be used.

A SQLite file beside the catalog, whatever the catalog is, that may be deleted at any time. ``caches`` is what it means.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from reconciler.base import errors

#: The schema; a file with another one is made anew.
_VERSION: Final = 2
_BUSY_SECONDS: Final = 120
_SCHEMA: Final = """
CREATE TABLE clients (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- An image without an index has neither place nor layers nor head.
CREATE TABLE images (
  id TEXT PRIMARY KEY, client INTEGER NOT NULL, place INTEGER, time INTEGER NOT NULL, sequence INTEGER NOT NULL,
  layers BLOB, head BLOB, UNIQUE (client, place)
) WITHOUT ROWID;
-- Places of images that are gone and may still bound a version.
CREATE TABLE forgotten (client INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (client, place)) WITHOUT ROWID;
CREATE TABLE roots (
  id INTEGER PRIMARY KEY, client INTEGER NOT NULL, disk BLOB NOT NULL, volume INTEGER NOT NULL,
  UNIQUE (client, disk, volume)
);
CREATE TABLE folders (
  root INTEGER NOT NULL, path BLOB NOT NULL, block INTEGER NOT NULL, PRIMARY KEY (root, path)
) WITHOUT ROWID;
CREATE TABLE blocks (
  id INTEGER PRIMARY KEY, client INTEGER NOT NULL, versions INTEGER NOT NULL, names BLOB NOT NULL, numbers BLOB NOT NULL
);
CREATE INDEX blocks_client ON blocks (client);
"""


class Store:
    """One file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._turn = threading.Lock()
        self._made = False

    @contextlib.contextmanager
    def writing(self, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction, alone in the whole file, undone where the block raises. Raises ``CatalogError``.

        ``patience``: seconds to wait for others that write, two minutes if None.
        """
        seconds = _BUSY_SECONDS if patience is None else patience
        with self._alone(seconds), self._explained(), contextlib.closing(self._open()) as connection:
            connection.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _alone(self, seconds: float) -> Iterator[None]:
        """Among the threads of this process. Raises ``CatalogError``."""
        if not self._turn.acquire(timeout=seconds):
            raise self._unusable("another thread writes in it for too long")
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one moment. Raises ``CatalogError``."""
        with self._explained(), contextlib.closing(self._open()) as connection:
            connection.execute("BEGIN")
            yield connection

    def _open(self) -> sqlite3.Connection:
        if self._made and self.path.exists():
            return self._set(self._connect())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            connection = self._connect()
            try:
                if self._prepare(connection):
                    self._made = True
                    return self._set(connection)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    connection.close()
                    raise
            connection.close()
            # No database, or one of another version: everything in it lies on the units too.
            self.remove()
        raise self._unusable("it cannot be made anew")

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path.absolute()))}?mode=rwc"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    @staticmethod
    def _set(connection: sqlite3.Connection) -> sqlite3.Connection:
        for setting in ("synchronous=NORMAL", "temp_store=MEMORY", "cache_size=-16384"):
            connection.execute(f"PRAGMA {setting}")
        return connection

    @staticmethod
    def _prepare(connection: sqlite3.Connection) -> bool:
        """Make the tables where there are none. False for a file of another version."""
        if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
            return True
        deadline = time.monotonic() + _BUSY_SECONDS
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                # SQLite does not wait for this one by itself.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if not found and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA.split(";")[:-1]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={_VERSION}")
            found = _VERSION
        connection.execute("COMMIT")
        return bool(found == _VERSION)

    def remove(self) -> None:
        """Delete the file. Idempotent."""
        for ending in ("-wal", "-shm", ""):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        self._made = False

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if _is_damage(error):
                self.remove()
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> errors.CatalogError:
        return errors.CatalogError(
            f"{self.path}: the search cache of files cannot be used: {why}",
            hint="delete it; it is made anew from the storage units",
        )


def _is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file is broken, or is none of its own."""
    return type(error) is sqlite3.DatabaseError or "decode to UTF-8" in str(error)
