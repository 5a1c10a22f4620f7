"""The fingerprint index: which container holds a segment, and where. A cache in lmdb, rebuilt from the footers.

One environment per folder and process, so take it with ``share``; readers and writers use the same. Nothing in it
is believed further than it can be proven: each value carries a check, a location in a container that is not there is a
miss, a record read through it is proven by its fingerprint. Commits to it are not synced; ``marker.json`` tells whether
a power cut may have torn it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import lmdb

from reconciler.base import errors, files
from reconciler.storage.dedupe import containers, damages, registrations

VERSION: Final = 2
#: Virtual size to begin with; doubled when full. The file on disk grows with its contents only.
_FIRST_MAP: Final = 256 << 20
#: Bytes of an index up to which it is read as a whole when it is opened.
_READ_WHOLE: Final = 64 << 20
_VALUE: Final = struct.Struct("<QIII")
_CHECK: Final = struct.Struct("<I")
_CONTAINER: Final = struct.Struct("<BIQB")
_MARKER: Final = "marker.json"
_USERS: Final = "users"
_OPENING: Final = "opening"
_FILES: Final = ("data.mdb", "lock.mdb")
_MOST_READERS: Final = 1024
_FLEETING: Final = "holdfast-index-"
#: Seconds after which a temporary index that nobody uses was left by a process that died.
_LEFT: Final = 3600.0

_T = TypeVar("_T")


class Location(NamedTuple):
    """Where a record lies; a tuple, as there are millions of them."""

    container: int
    #: Bytes from the start of the file.
    offset: int
    #: Bytes of the record, header and payload.
    length: int
    #: Position in the container's footer, from 0.
    number: int


class Known(NamedTuple):
    """What the index knows of a container."""

    kind: int
    records: int
    #: Bytes of the file.
    size: int
    #: Whether the index may know some of its segments in another container, 1 or 0.
    shadowed: int


def _reserve(readers: Path) -> None:
    """Give lmdb's table of readers its room: it is mapped, and a page of it that finds none would be a bus error."""
    with readers.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * _MOST_READERS + 128)


def _read_ahead(data: Path) -> None:
    """Look-ups jump about: a small file is read in one go faster than page by page."""
    handle = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)


class Index:
    """An opened index. Thread-safe."""

    def __init__(self, folder: Path, pool: str, unit: str) -> None:
        """Open or make the index in ``folder``. Raises ``UnitError`` or ``OSError``."""
        self._folder = folder
        self._unit = unit
        self._lock = threading.Lock()
        self._marker = {"version": VERSION, "pool": pool, "boot": registrations.boot_id()}
        #: Whether the marker is known to say that the index is not clean, as it must before anything is written.
        self._soiled = False
        self.references = 0
        try:
            self._begin(folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Not the unit is full: the index lies elsewhere.
            raise self._refused(error) from error

    def _begin(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            self._users = os.open(folder / _USERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._sole = _try_lock(self._users)
                if self._sole:
                    # Whoever died while it wrote its marker left it unfinished.
                    for leftover in folder.glob(f"{files.TEMPORARY_PREFIX}*"):
                        leftover.unlink(missing_ok=True)
                    if not self._trusted():
                        self._wipe()
                self._environment = self._open()
                fcntl.flock(self._users, fcntl.LOCK_SH)
            except BaseException:
                os.close(self._users)
                raise

    def _trusted(self) -> bool:
        marker = self._read_marker()
        same = (marker.get("version"), marker.get("pool")) == (VERSION, self._marker["pool"])
        data = self._folder / _FILES[0]
        there = data.exists() and data.stat().st_size > 0
        return bool(same and there and (marker.get("clean") or marker.get("boot") == self._marker["boot"]))

    def _read_marker(self) -> dict[str, object]:
        """What the marker says, empty where it says nothing."""
        try:
            found = json.loads((self._folder / _MARKER).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _mark(self, *, clean: bool) -> None:
        files.write_atomically(self._folder / _MARKER, json.dumps({**self._marker, "clean": clean}).encode())

    def _soil(self) -> None:
        """Before anything is written: from now on a power cut may tear it. Whoever only reads leaves the marker be."""
        if not self._soiled:
            # Its folder may have gone away under it; what the index knows goes with it.
            with files.unit_errors(self._unit), contextlib.suppress(FileNotFoundError):
                if self._read_marker().get("clean") is not False:
                    self._mark(clean=False)
            self._soiled = True

    def _wipe(self) -> None:
        for name in _FILES:
            (self._folder / name).unlink(missing_ok=True)
        # Opening one that is not there writes already.
        self._mark(clean=False)

    def _open(self) -> Any:
        data = self._folder / _FILES[0]
        try:
            return self._open_environment(data)
        except lmdb.Error as error:
            if not self._sole or isinstance(error, lmdb.DiskError):
                raise self._refused(error) from error
        self._wipe()
        try:
            return self._open_environment(data)
        except lmdb.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> errors.UnitError:
        if isinstance(error, (lmdb.DiskError, OSError)):
            return errors.UnitFull(
                f"storage unit {self._unit}: no space left for the index {self._folder}", hint="free space there"
            )
        return errors.UnitError(
            f"storage unit {self._unit}: index {self._folder}: {error}",
            hint="stop Holdfast and delete the folder: it is a cache",
        )

    def _open_environment(self, data: Path) -> Any:
        size = data.stat().st_size if data.exists() else 0
        if 0 < size <= _READ_WHOLE:
            _read_ahead(data)
        _reserve(self._folder / _FILES[1])
        environment = lmdb.open(
            str(self._folder),
            map_size=max(_FIRST_MAP, 2 * size),
            max_dbs=8,
            sync=False,
            metasync=False,
            readahead=False,
            max_readers=_MOST_READERS,
        )
        try:
            # Pages beyond the end would be a bus error. Whole files may lack some, too: those in use need no doubt.
            if self._sole and 0 < size < (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]:
                raise lmdb.CorruptedError(f"{data} is cut off")
            self._tables = {kind: environment.open_db(name.encode()) for kind, name in containers.SUFFIXES.items()}
            self._containers = environment.open_db(b"containers")
        except BaseException:
            environment.close()
            raise
        return environment

    def close(self) -> None:
        """Close; where no other process has it open, in such a way that a power cut cannot tear it. Idempotent."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            if self._users < 0:
                return
            # Its folder may have gone away under it; what the index knows goes with it.
            with contextlib.suppress(OSError):
                stack.enter_context(_alone(self._folder))
            torn = _try_lock(self._users) and self._read_marker().get("clean") is False
            if torn:
                self._environment.sync(True)
            self._environment.close()
            if torn:
                with contextlib.suppress(OSError):
                    self._mark(clean=True)
            os.close(self._users)
            self._users = -1

    def find(self, kind: int, fingerprints: Sequence[bytes]) -> list[Location | None]:
        """Where each segment lies, None where that is not known."""

        def look(transaction: Any) -> list[Location | None]:
            table, get = self._tables[kind], transaction.get
            return [_location(fingerprint, get(fingerprint, db=table)) for fingerprint in fingerprints]

        return self._run(look, write=False)

    def add(
        self, footer: containers.Footer, present: Collection[int], *, without: Collection[int] = frozenset()
    ) -> None:
        """Note a container, but for the records numbered ``without``. A segment that another present container holds
        stays known there."""

        def put(transaction: Any) -> None:
            table = self._tables[footer.kind]
            others: set[int] = set()
            shadowed = 0
            for number, record in enumerate(footer.records):
                if number in without:
                    continue
                known = _location(record.fingerprint, transaction.get(record.fingerprint, db=table))
                if known is not None and known.container != footer.container:
                    if known.container in present:
                        shadowed = 1
                        continue
                    others.add(known.container)
                value = _VALUE.pack(footer.container, record.offset, containers.RECORD.size + record.stored, number)
                transaction.put(record.fingerprint, value + _check(record.fingerprint, value), db=table)
            row = Known(footer.kind, len(footer.records), footer.size, shadowed)
            self._put_row(transaction, footer.container, row)
            for other in others:
                before = self._row(transaction, other)
                if before is not None:
                    self._put_row(transaction, other, before._replace(shadowed=1))

        self._run(put, write=True)

    def withdraw(self, records: Collection[damages.Record]) -> int:
        """Drop segments that are known in just these records; how many were."""
        if not records:
            return 0

        def drop(transaction: Any) -> int:
            dropped = 0
            for record in records:
                table = self._tables[record.kind]
                known = _location(record.fingerprint, transaction.get(record.fingerprint, db=table))
                if known is not None and (known.container, known.number) == (record.container, record.number):
                    transaction.delete(record.fingerprint, db=table)
                    dropped += 1
            return dropped

        return self._run(drop, write=True)

    def _put_row(self, transaction: Any, container: int, known: Known) -> None:
        key, row = container.to_bytes(8, "big"), _CONTAINER.pack(*known)
        transaction.put(key, row + _check(key, row), db=self._containers)

    def _row(self, transaction: Any, container: int) -> Known | None:
        key = container.to_bytes(8, "big")
        value = transaction.get(key, db=self._containers)
        row = b"" if value is None else value[: _CONTAINER.size]
        return Known(*_CONTAINER.unpack(row)) if row and value[_CONTAINER.size :] == _check(key, row) else None

    def forget(self, container: int, kind: int, fingerprints: Collection[bytes]) -> None:
        """Drop a container and those of ``fingerprints`` that are known there."""

        def drop(transaction: Any) -> None:
            table = self._tables[kind]
            for fingerprint in fingerprints:
                known = _location(fingerprint, transaction.get(fingerprint, db=table))
                if known is None or known.container == container:
                    transaction.delete(fingerprint, db=table)
            transaction.delete(container.to_bytes(8, "big"), db=self._containers)

        self._run(drop, write=True)

    def known(self) -> dict[int, Known]:
        """Every container noted."""

        def read(transaction: Any) -> dict[int, Known]:
            result = {}
            for key, value in transaction.cursor(db=self._containers):
                row = value[: _CONTAINER.size]
                if value[_CONTAINER.size :] == _check(key, row):
                    result[int.from_bytes(key, "big")] = Known(*_CONTAINER.unpack(row))
            return result

        return self._run(read, write=False)

    def prune(self, gone: Collection[int]) -> None:
        """Drop many containers and all that is known there, in one step: what lies elsewhere is found all the while,
        by every process that shares the index."""

        def drop(transaction: Any) -> None:
            for table in self._tables.values():
                stale = [
                    key
                    for key, value in transaction.cursor(db=table)
                    if (known := _location(key, value)) is None or known.container in gone
                ]
                for key in stale:
                    transaction.delete(key, db=table)
            for container in gone:
                transaction.delete(container.to_bytes(8, "big"), db=self._containers)

        self._run(drop, write=True)

    def _run(self, work: Callable[[Any], _T], *, write: bool) -> _T:
        with self._lock:
            while True:
                try:
                    if write:
                        self._soil()
                    with self._environment.begin(write=write) as transaction:
                        return work(transaction)
                except lmdb.MapFullError:
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])
                except lmdb.MapResizedError:
                    self._environment.set_mapsize(0)
                except lmdb.Error as error:
                    raise self._refused(error) from error


_shared: dict[str, Index] = {}
_shared_lock = threading.Lock()


def share(folder: Path, pool: str, unit: str) -> Index:
    """The process's index in ``folder``; every call is paid back by ``release``. Raises ``UnitError``, ``OSError``."""
    key = os.path.realpath(folder)
    with _shared_lock:
        index = _shared.get(key) or Index(Path(key), pool, unit)
        _shared[key] = index
        index.references += 1
    return index


def fleeting(pool: str, unit: str) -> Index:
    """An index that goes with the process, however that ends: its files have no names once they are open.

    For who may write nowhere but in the folder of temporary files. Paid back as ``share`` is. Raises as it does.
    """
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_FLEETING))
    try:
        return share(folder, pool, unit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove the temporary indexes of this user that a process left which was killed while it made one."""
    for folder in parent.glob(f"{_FLEETING}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _LEFT and _deserted(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _deserted(folder: Path) -> bool:
    try:
        handle = os.open(folder / _USERS, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        return _try_lock(handle)
    finally:
        os.close(handle)


def release(index: Index) -> None:
    """Give an index back; the last one closes it."""
    with _shared_lock:
        index.references -= 1
        if index.references == 0:
            for key in [key for key, known in _shared.items() if known is index]:
                del _shared[key]
            index.close()


def usable(folder: Path) -> bool:
    """Whether this process may keep an index in ``folder``, which is made if it is missing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        names = (_USERS, _OPENING, *_FILES)
        return os.access(folder, os.W_OK) and all(
            os.access(folder / name, os.W_OK) for name in names if (folder / name).exists()
        )
    return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from opening or closing the index meanwhile."""
    handle = os.open(folder / _OPENING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(key: bytes, value: bytes) -> bytes:
    return _CHECK.pack(zlib.crc32(key + value))


def _location(fingerprint: bytes, value: bytes | None) -> Location | None:
    if value is None:
        return None
    body = value[: _VALUE.size]
    if value[_VALUE.size :] != _check(fingerprint, body):
        return None
    return Location._make(_VALUE.unpack(body))


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
