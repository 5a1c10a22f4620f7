"""One controller at a time: an flock on ``<state>/controller.lock``, and a row with a fencing token.

The lock falls the moment its holder dies, so a killed controller is succeeded at once; a holder that is merely stopped
keeps it. The token grows with every holder and is checked wherever a controller decides (``fences``), so that one that
lost its lock without noticing, such as after the file was removed, cannot decide any more. The lock's file also names
its holder, for commands that ask without opening a catalog for writing. A catalog on a server may be kept from several
hosts, and no lock of a file reaches so far: there the row counts as well. Its holder renews it every 5 s; one that was
silent for 15 s, or whose process on this host is dead, is succeeded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import errors, times
from reconciler.catalog import audits, database, fences, servers, tables, workers

_log = logging.getLogger(__name__)

_FILE: Final = "controller.lock"
#: How long a row of a server counts without being renewed, and how often it is renewed, in seconds.
LASTS: Final = 15
_RENEWED: Final = 5.0
#: Somebody who only looks holds the lock for a moment: longer than this, in seconds, is a holder.
_GLANCE: Final = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The controller that lives."""

    host: str
    pid: int
    since: dt.datetime
    #: Folder of the estate it keeps.
    estate: str
    #: Who started it.
    actor: str

    def describe(self) -> str:
        """Who it is, in words."""
        if not self.pid:
            return "a process that has not said its name"
        return f"pid {self.pid} on {self.host}, since {times.show(self.since)}"


class Lease:
    """The right to decide, held until released or until the process ends."""

    def __init__(self, db: database.Database, lock: int, token: int, worker: str) -> None:
        self.token = token
        self._db = db
        self._lock = lock
        self._worker = worker
        self._ended = threading.Event()
        if db.shared:
            threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def require(self) -> None:
        """Raise ``Superseded`` where another controller took over. Writes nothing."""
        with self._db.reading() as connection:
            fences.check(connection, self.token)

    def _renew(self) -> None:
        """Say every few seconds that the holder lives, until it ends or is succeeded."""
        while not self._ended.wait(_RENEWED):
            try:
                with self._db.aside() as connection:
                    mine = _row_update().where(tables.LEASES.c.token == self.token)
                    if not connection.execute(mine.values(renewed=servers.clock(connection))).rowcount:
                        return
            except errors.CatalogError as error:
                # Whoever comes meanwhile succeeds this one, and its fence refuses whatever this one decides later.
                _log.warning("the lease was not renewed: %s", error)

    def release(self) -> None:
        """Let the next controller in. Idempotent."""
        self._ended.set()
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        try:
            with self._db.writing() as connection:
                connection.execute(_row_update().where(tables.LEASES.c.worker == self._worker).values(worker=""))
        finally:
            os.close(lock)


def acquire(state: Path, db: database.Database, now: dt.datetime, actor: str, estate: str) -> Lease:
    """Become the controller of a state folder. Raises ``LeaseHeld`` naming the one that lives."""
    worker = workers.this()
    lock = _lock(state)
    try:
        said = {"worker": worker, "since": times.show(now), "estate": estate, "actor": actor}
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(said).encode() + b"\n", 0)
        with db.writing() as connection:
            lease = tables.LEASES
            before = _read(connection)
            if db.shared and before is not None and _lives(connection, before):
                raise _held(_from_row(before))
            token = (before.token if before is not None else 0) + 1
            values: dict[str, Any] = {
                "token": token, "worker": worker, "actor": actor, "estate": estate, "revision": None, "since": now,
                "next_event": None, "renewed": servers.clock(connection) if db.shared else None,
            }  # fmt: skip
            if before is None:
                connection.execute(lease.insert().values(name=fences.CONTROLLER, **values))
            else:
                connection.execute(_row_update().values(**values))
            audits.record(
                connection, now=now, actor=actor, event="LeaseTaken", object=fences.CONTROLLER,
                details={"worker": worker, "token": token, "estate": estate},
            )  # fmt: skip
    except BaseException:
        os.close(lock)
        raise
    return Lease(db, lock, token, worker)


@contextlib.contextmanager
def shut(state: Path, db: database.Database) -> Iterator[None]:
    """Keep controllers out of a state folder without becoming one. Raises ``LeaseHeld`` naming the one that lives.

    On a server it looks once: what a controller of another host writes from then on is met in the transaction.
    """
    lock = _lock(state)
    try:
        if db.shared and (found := holder(state, db)) is not None:
            raise _held(found)
        yield
    finally:
        os.close(lock)


def holder(state: Path, db: database.Database | None = None) -> Holder | None:
    """The controller that lives, None if none does. Takes nothing away from anybody, writes nothing."""
    if db is not None and db.shared:
        with db.reading() as connection:
            row = _read(connection)
            return _from_row(row) if row is not None and _lives(connection, row) else None
    try:
        file = os.open(state / _FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except PermissionError:
        # Somebody else's file: the row says who leads, and this host whether that process lives.
        row = _row(db)
        return _from_row(row) if row is not None and workers.alive(row.worker) else None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(file)
    finally:
        os.close(file)
    return None


def left_behind(connection: sa.Connection) -> tuple[Holder, bool] | None:
    """Whom the row of a catalog that was loaded from elsewhere names as its controller, and whether that lives for
    certain; None where it is known to have ended. Of another host's nobody knows."""
    row = _read(connection)
    if row is None or not row.worker or (workers.local(row.worker) and not workers.alive(row.worker)):
        return None
    return _from_row(row), workers.local(row.worker)


def _lock(state: Path) -> int:
    state.mkdir(parents=True, exist_ok=True)
    path = state / _FILE
    deadline = time.monotonic() + _GLANCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, path):
                return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                found = _named(file)
                os.close(file)
                raise _held(found) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0.02)


def _held(found: Holder) -> errors.LeaseHeld:
    return errors.LeaseHeld(
        f"another controller lives: {found.describe()}, and keeps {found.estate or 'no estate'}",
        hint="stop it first, or use another state folder",
    )


def _lives(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    """Whether the holder in a server's row counts: not released, not known to be dead, not silent for too long."""
    if not row.worker or (workers.local(row.worker) and not workers.alive(row.worker)):
        return False
    return row.renewed is not None and servers.clock(connection) - row.renewed < dt.timedelta(seconds=LASTS)


def _is(file: int, path: Path) -> bool:
    """Whether the locked file still lies at its path; one that was removed guards nothing."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _named(file: int) -> Holder:
    deadline = time.monotonic() + _GLANCE
    while True:
        said = _said(file)
        # A new holder writes its name right after it got the lock; until then the file names the one before.
        if said is not None and (workers.alive(said["worker"]) or not workers.local(said["worker"])):
            break
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if said is None:
        return Holder(host="this host", pid=0, since=times.EPOCH, estate="", actor="")
    return Holder(
        host=workers.host(said["worker"]),
        pid=workers.pid(said["worker"]),
        since=times.parse(said["since"]),
        estate=said["estate"],
        actor=said["actor"],
    )


def _said(file: int) -> dict[str, str] | None:
    try:
        said = json.loads(os.pread(file, 65536, 0))
        times.parse(said["since"])
        return {name: str(said[name]) for name in ("worker", "since", "estate", "actor")}
    except (ValueError, KeyError, TypeError):
        return None


def _row(db: database.Database | None) -> sa.Row[Any] | None:
    if db is None:
        return None
    with db.reading() as connection:
        return _read(connection)


def _read(connection: sa.Connection) -> sa.Row[Any] | None:
    return connection.execute(sa.select(tables.LEASES).where(tables.LEASES.c.name == fences.CONTROLLER)).first()


def _from_row(row: sa.Row[Any]) -> Holder:
    return Holder(
        host=workers.host(row.worker),
        pid=workers.pid(row.worker),
        since=row.since,
        estate=row.estate,
        actor=row.actor,
    )


def _row_update() -> sa.Update:
    return tables.LEASES.update().where(tables.LEASES.c.name == fences.CONTROLLER)
