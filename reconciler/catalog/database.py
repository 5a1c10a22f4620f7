"""Opening the catalog: for writing, where it is created and migrated, or for reading, which leaves no trace.

Every other module of this package takes the ``Database`` made here. One connection serves one transaction. Writers
take turns: ``BEGIN IMMEDIATE`` before the first read, so that nothing read in a writing transaction can be stale by
the time it writes (the driver's own default begins too late for that), and a lock so that threads of one process queue
fairly instead of polling. WAL lets readers go on beside a writer. ``servers`` gives the same turns on PostgreSQL.

A reader must not alter the folder, not even as root: where nobody has the file open (no ``-wal`` beside it), it is read
as immutable, and ``still_valid`` says afterwards whether that stayed true; else the shared index is opened read-only.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import exc, pool

from reconciler.base import crashes, errors, files
from reconciler.catalog import migrations, servers, tables, upgrades

_BUSY_SECONDS: Final = 30
_READ_ATTEMPTS: Final = 20

_Value = TypeVar("_Value")
_Stamp = tuple[int, int, int, bool]


class Database:
    """One open catalog. Thread-safe; a transaction belongs to the thread that began it and must not be nested."""

    def __init__(self, engine: sa.Engine, location: str, *, stamp: _Stamp | None = None) -> None:
        #: Path of the file, or the server's URL without its password.
        self.location = servers.shown(location)
        #: Whether processes on other hosts may have it open too.
        self.shared = servers.is_url(location)
        self._engine = engine
        self._stamp = stamp
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._id: str | None = None
        self._looking = threading.Lock()
        self._look: sqlite3.Connection | None = None

    @property
    def id(self) -> str:
        """The catalog's UUID, which owns its storage units; made when the catalog is created."""
        if self._id is None:
            with self.reading() as connection:
                found = connection.scalar(sa.select(tables.FACTS.c.value).where(tables.FACTS.c.key == "catalog"))
            if found is None:
                raise _unreadable(self.location, "it has no id")
            self._id = str(found)
        return self._id

    def forget_id(self) -> None:
        """Read the id again at its next use: a dump was loaded."""
        self._id = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that may write, alone in the whole catalog; durable once the block ends, undone if it raises.

        Raises ``CatalogError`` where the database refuses: busy for 30 s, full, damaged, not writable.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError("a writing transaction was begun inside another one of the same thread")
        with self._turn:
            self._owner = threading.get_ident()
            try:
                with self._transaction(writing=True) as connection:
                    yield connection
            finally:
                self._owner = None

    def reading(self) -> contextlib.AbstractContextManager[sa.Connection]:
        """A transaction that reads one moment of the catalog, however long it takes. Raises ``CatalogError``."""
        return self._transaction(writing=False)

    def aside(self) -> contextlib.AbstractContextManager[sa.Connection]:
        """A transaction on a server that writes without waiting for its turn: for one row that says who lives."""
        return self._transaction(writing=None)

    @contextlib.contextmanager
    def _transaction(self, *, writing: bool | None) -> Iterator[sa.Connection]:
        with _explained(self.location), self._engine.connect() as plain:
            connection = plain.execution_options(holdfast_writing=writing)
            with connection.begin():
                yield connection

    def still_valid(self) -> bool:
        """Whether what this reader read can be trusted: False once a writer touched the file under an immutable one."""
        return self._stamp is None or _stamp(Path(self.location)) == self._stamp

    def changes(self) -> object:
        """A value that stays equal for as long as nobody, this process included, commits anything to the catalog."""
        with self._looking, _explained(self.location):
            if self._engine.dialect.name != "sqlite":
                # Every transaction that writes takes the next number; other databases of the server share them.
                with self.reading() as connection:
                    return connection.exec_driver_sql("SELECT CAST(pg_current_snapshot() AS TEXT)").scalar()
            if self._look is None:
                # Tells of the commits of every connection but itself, so that it must be one that never writes.
                self._look = _connect(_uri(Path(self.location), "mode=ro"))
            return self._look.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Close every connection. Idempotent."""
        if self._look is not None:
            self._look.close()
            self._look = None
        self._engine.dispose()


def open_writing(location: str) -> Database:
    """Open the catalog at a path or ``postgresql://`` URL; create it, or migrate it, if it must be.

    Raises ``FormatTooNew`` for a newer schema and ``CatalogError`` for anything that cannot be read or written.
    """
    engine = servers.engine(location) if servers.is_url(location) else _sqlite(Path(location))
    database = Database(engine, location)
    try:
        if not database.shared:
            _prepare(Path(location))
        with database.reading() as connection:
            found = upgrades.version(connection, database.location)
        if found != migrations.HEAD:
            _migrate(database, engine)
            crashes.passing("catalog.migrated")
        return database
    except BaseException:
        database.close()
        raise


def open_reading(location: str) -> Database | None:
    """Open the catalog for reading and change nothing, not even its folder; None if there is none.

    Raises ``FormatTooNew``, or ``CatalogError`` for an older schema or a file that cannot be read. While nobody has the
    file open the reader is only as good as ``still_valid`` says afterwards; ``read`` does that for one function.
    """
    if servers.is_url(location):
        database = Database(servers.engine(location, read_only=True), location)
    else:
        path = Path(location)
        stamp = _stamp(path)
        if stamp is None:
            return None
        immutable = not stamp[3]
        database = Database(_sqlite_reader(path, immutable=immutable), location, stamp=stamp if immutable else None)
    try:
        with database.reading() as connection:
            found = upgrades.version(connection, database.location)
    except BaseException:
        database.close()
        raise
    if found is None:
        database.close()
        return None
    if found != migrations.HEAD:
        database.close()
        raise errors.CatalogTooOld(
            f"{database.location}: catalog schema {found} is older than this Holdfast reads ({migrations.HEAD})",
            hint="holdfast apply migrates it",
        )
    return database


def read(location: str, function: Callable[[Database], _Value]) -> _Value | None:
    """What ``function`` reads from the catalog, changing nothing; None if there is none.

    ``function`` may run several times: again whenever a writer came up under it. Raises what it raises last.
    """
    for attempt in range(_READ_ATTEMPTS):
        last = attempt == _READ_ATTEMPTS - 1
        database: Database | None = None
        try:
            database = open_reading(location)
            if database is None:
                return None
            value = function(database)
            if database.still_valid() or last:
                return value
        except errors.HoldfastError:
            # A page read while a writer moved it looks like damage, and only then is worth another look.
            if last or (database is not None and database.still_valid()):
                raise
        finally:
            if database is not None:
                database.close()
        time.sleep(0.05)
    raise _unreadable(servers.shown(location), "writers kept it from being read")


def _stamp(path: Path) -> _Stamp | None:
    """Modification time, size, inode, and whether a write-ahead log lies beside the file; None without a file."""
    try:
        log = path.with_name(path.name + "-wal").exists()
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _closed(str(path), error.strerror or str(error)) from error
    return (found.st_mtime_ns, found.st_size, found.st_ino, log)


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    for setting in ("foreign_keys=ON", "synchronous=FULL", "temp_store=MEMORY", "cache_size=-16384"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _uri(path: Path, options: str) -> str:
    return f"file:{quote(str(path.absolute()))}?{options}"


def _sqlite(path: Path) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        return _connect(_uri(path, "mode=rwc"))

    return _sqlite_engine(connect)


def _sqlite_reader(path: Path, *, immutable: bool) -> sa.Engine:
    # Not readonly_shm: the index of the log that a killed writer left may have to be made anew, which is no change.
    options = "mode=ro&immutable=1" if immutable else "mode=ro"

    def connect() -> sqlite3.Connection:
        connection = _connect(_uri(path, options))
        connection.execute("PRAGMA query_only=ON")
        return connection

    return _sqlite_engine(connect)


def _sqlite_engine(connect: Callable[[], sqlite3.Connection]) -> sa.Engine:
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=pool.QueuePool, pool_size=4, max_overflow=-1)

    def begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("holdfast_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    sa.event.listen(engine, "begin", begin)
    return engine


def _prepare(path: Path) -> None:
    """Make the file's folder, and turn the file to write-ahead logging, which two processes may attempt at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
    except OSError as error:
        raise _closed(str(path), f"{error.strerror}: {error.filename}") from error
    with _explained(str(path)):
        deadline = time.monotonic() + _BUSY_SECONDS
        with contextlib.closing(_connect(_uri(path, "mode=rwc"))) as connection:
            # Heeded by a file that is empty as yet: half as many reads where a plan walks over every image.
            connection.execute("PRAGMA page_size=8192")
            while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                except sqlite3.OperationalError as error:
                    # SQLite does not wait for this one by itself.
                    if "locked" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
        if new:
            files.sync_folder(path.parent)


def _migrate(database: Database, engine: sa.Engine) -> None:
    """All missing steps and the catalog's id in one transaction, on a connection that is then thrown away."""
    with _explained(database.location), engine.connect() as plain:
        sqlite = plain.dialect.name == "sqlite"
        connection = plain.execution_options(holdfast_writing=True)
        if sqlite:
            # A step that rebuilds a table would otherwise delete the rows that refer to it. No effect inside BEGIN.
            _raw(connection).execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                # Again, now that nobody else can write: another process may have been faster.
                if upgrades.version(connection, database.location) != migrations.HEAD:
                    upgrades.upgrade(connection)
                    _name(connection)
                if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
                    raise _unreadable(database.location, f"migration would break a reference of table {broken[0]}")
        finally:
            connection.invalidate()


def _raw(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection


def _name(connection: sa.Connection) -> None:
    if connection.scalar(sa.select(tables.FACTS.c.value).where(tables.FACTS.c.key == "catalog")) is None:
        connection.execute(tables.FACTS.insert().values(key="catalog", value=str(uuid.uuid4())))


def _unreadable(location: str, why: str) -> errors.CatalogError:
    return errors.CatalogError(
        f"{location}: the catalog cannot be read: {why}",
        hint="move it aside with its -wal and -shm files, then: holdfast catalog rebuild --from UNIT...",
    )


def _closed(location: str, why: str) -> errors.CatalogError:
    return errors.CatalogError(
        f"{location}: the catalog cannot be opened: {why}", hint="check the path and its permissions"
    )


@contextlib.contextmanager
def _explained(location: str) -> Iterator[None]:
    """Turn what the database says into ``CatalogError`` with the next step."""
    if servers.is_url(location):
        with servers.explained(location):
            yield
        return
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        said = str(getattr(error, "orig", None) or error)
        # A statement error that the database did not raise is of a value that it never saw.
        unsaid = isinstance(error, exc.StatementError) and not isinstance(error, exc.DBAPIError)
        if unsaid or isinstance(error, exc.IntegrityError | sqlite3.IntegrityError):
            raise errors.CatalogError(f"{location}: the catalog refuses the change: {said}") from error
        if "locked" in said or "busy" in said:
            raise errors.CatalogError(
                f"{location}: the catalog was busy for {_BUSY_SECONDS} s", hint="try again; see holdfast status"
            ) from error
        if "locking protocol" in said:
            raise errors.CatalogError(
                f"{location}: the catalog's log was left unsettled by a writer that was killed",
                hint="run holdfast apply, or read it as a user who may write its -shm file",
            ) from error
        if "readonly" in said or "unable to open" in said or "authorization" in said:
            raise _closed(location, said) from error
        if "full" in said or "disk I/O" in said:
            raise errors.CatalogError(
                f"{location}: the catalog cannot be written: {said}", hint="free space on its file system"
            ) from error
        raise _unreadable(location, said) from error
