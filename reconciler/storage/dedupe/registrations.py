"""Registrations: who is writing into the pool now, and which images must not vanish under them.

A writer registers before its first lookup. Its folder holds an flocked file (so that its death is seen at once), a
heartbeat (so that its silence is), and links to the manifests of the parents it builds on. Removing the folder ends
the writer: it can then never commit. All functions that change something are called with the pool's lock held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from reconciler.base import crashes, files
from reconciler.storage.dedupe import manifests

#: Seconds without a heartbeat after which a collection ends a writer.
SILENCE: Final = 3600.0
#: Seconds between heartbeats, at least.
BEAT: Final = 5.0
_WRITER: Final = "writer"
_HEARTBEAT: Final = "heartbeat"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A registration as it lies in the pool."""

    folder: Path
    #: Image being written, empty where that cannot be read.
    image: str
    #: Whether a process still holds it.
    alive: bool
    #: Seconds since the last heartbeat.
    silent: float
    #: Nanoseconds of the file system's clock when it was made.
    began: int


class Registration:
    """One writer's registration, held by this process until ``release``."""

    def __init__(self, writers: Path, image: str) -> None:
        self.id = secrets.token_hex(8)
        self.folder = writers / self.id
        self._beaten = time.monotonic()
        temporary = writers / (files.TEMPORARY_PREFIX + self.id)
        temporary.mkdir()
        self._handle = os.open(temporary / _WRITER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            os.write(
                self._handle, json.dumps({"image": image, "process": os.getpid(), "boot": boot_id()}).encode() + b"\n"
            )
            (temporary / _HEARTBEAT).write_text(_now())
            temporary.rename(self.folder)
        except BaseException:
            os.close(self._handle)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        crashes.passing("pool.registered")

    def pin(self, folder: Path, image: str) -> None:
        """Keep ``image``'s segments until this writer ends. Raises ``FileNotFoundError`` where it is not committed."""
        target = manifests.path(self.folder, image)
        if target.exists():
            return
        source = manifests.path(folder, image)
        try:
            target.hardlink_to(source)
        except FileNotFoundError:
            raise
        except OSError:
            # A file system without hard links: a whole copy, or none.
            files.write_atomically(target, source.read_bytes())

    def beat(self) -> None:
        """Say that the writer lives; cheap enough for every batch. Raises ``OSError``."""
        now = time.monotonic()
        if now - self._beaten < BEAT:
            return
        self._beaten = now
        # A writer that was ended learns of it at its commit.
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(self.folder / _HEARTBEAT, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(handle, _now().encode(), 0)
            finally:
                os.close(handle)

    @property
    def stands(self) -> bool:
        """Whether nobody ended this writer."""
        return (self.folder / _WRITER).exists()

    def release(self) -> None:
        """End the writer: remove its folder. Idempotent."""
        if self._handle >= 0:
            remove(self.folder)
            os.close(self._handle)
            self._handle = -1


def boot_id() -> str:
    """Changes with every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _now() -> str:
    return f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020d}"


def entries(writers: Path) -> Iterator[Entry]:
    """Every registration of the pool. Raises ``OSError``."""
    for folder in writers.iterdir():
        if not folder.name.startswith("."):
            yield _entry(folder)


def _entry(folder: Path) -> Entry:
    try:
        handle = os.open(folder / _WRITER, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Entry(folder=folder, image="", alive=False, silent=0.0, began=0)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alive = False
        except BlockingIOError:
            alive = True
        began = os.fstat(handle).st_mtime_ns
        try:
            image = str(json.loads(os.pread(handle, 1 << 16, 0))["image"])
            silent = (int(_now()) - int((folder / _HEARTBEAT).read_text())) / 1e9
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            image, silent = "", 0.0
    finally:
        os.close(handle)
    return Entry(folder=folder, image=image, alive=alive, silent=silent, began=began)


def pins(writers: Path) -> Iterator[tuple[str, Path]]:
    """Pinned images and the folder that holds each one's manifest."""
    for folder in writers.iterdir():
        if not folder.name.startswith("."):
            # A writer that ends while this goes on needs its parents no more.
            with contextlib.suppress(FileNotFoundError):
                for name in manifests.names(folder):
                    yield name, folder


def remove(folder: Path) -> int:
    """End a writer, whoever it is: it can never commit. The bytes freed. Idempotent."""
    size = 0
    with contextlib.suppress(FileNotFoundError):
        # First of all what a commit looks for, so that half a removal ends the writer too.
        (folder / _WRITER).unlink()
    # Whoever else removes it at the same time finishes what this one does not.
    with contextlib.suppress(FileNotFoundError):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.stat().st_nlink == 1)
        shutil.rmtree(folder)
    return size
