"""What all restored files share: a temporary file, its sealing, its end under its final name, and the reading back."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from reconciler.base import disks, errors, extents
from reconciler.sources.diskfiles import directs, temporaries
from reconciler.sources.diskimages import converted


def read_back(driver: str, path: Path, size: int) -> disks.Disk:
    """The first ``size`` bytes of a disk as it lies there, read from the device. ``driver``: ``raw``, or qemu's name of
    the format. Raises ``SourceError``."""
    if driver == "raw":
        return directs.WrittenDisk(path, size)
    # What is still in memory would prove the memory; dropped pages are read from the device.
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    node = {"driver": driver, "read-only": True, "file": {"driver": "file", "filename": str(path)}}
    if driver in ("qcow2", "vmdk"):
        node["backing"] = None
    return converted.ConvertedDisk(path.name, node, size=size)


class WrittenFile:
    """The base of every target that is a file."""

    #: Whether what was there before shows where nothing is written.
    covers = False
    #: Whether its earlier content may be of any disk at all, so that comparing with it is worth a try only.
    doubtful = False

    def __init__(self, driver: str, path: Path, size: int, *, force: bool, identity: str | None) -> None:
        """``driver``: as ``read_back`` takes it. Raises ``TargetError``."""
        self.path = path
        self.notes: list[str] = []
        self._driver, self._size, self._force = driver, size, force
        self._lock = threading.RLock()
        self._sealed = self._done = False
        with temporaries.translated(path):
            self._file = temporaries.Unfinished(path, identity)

    def _seal(self) -> None:
        """Hand everything to the file system, in order."""

    def _release(self) -> None:
        """Let go of whatever writes."""

    def _publish(self) -> None:
        """Give it its name."""
        self._file.publish(force=self._force)

    def held(self) -> extents.Extents:
        """What an earlier attempt left."""
        return ()

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """What lies there now."""
        raise ValueError(f"{self.path} cannot be read while it is written: {length} bytes at {offset}")

    def zero(self, offset: int, length: int) -> None:
        """Make what an earlier attempt left read as zeros."""
        raise ValueError(f"{self.path} has nothing to clear: {length} bytes at {offset}")

    def settle(self) -> disks.Disk | None:
        """Another process could not read an image whose tables are still in the memory of its writer."""
        return None

    def flush(self) -> None:
        """Seal and sync the temporary file."""
        with self._lock, temporaries.translated(self.path):
            if not self._sealed:
                self._seal()
                os.fsync(self._file.handle)
                self._sealed = True

    def read_back(self) -> disks.Disk:
        """The temporary file as a Disk."""
        if not self._sealed:
            raise ValueError(f"{self.path} is still being written")
        return read_back(self._driver, self._file.path, self._size)

    def finish(self) -> None:
        """Flush, rename, sync the folder; or remove the temporary file."""
        with self._lock:
            if self._done:
                raise ValueError(f"{self.path} is finished already")
            try:
                self.flush()
                with temporaries.translated(self.path):
                    self._publish()
            except BaseException:
                self.abort()
                raise
            self._done = True
            self._release()
            self._file.close(remove=False)

    def abort(self) -> None:
        """Let go, and remove the temporary file."""
        with self._lock:
            if not self._done:
                self._done = True
                self._release()
                self._file.close(remove=True)

    def _begin_anew(self, why: str) -> None:
        """Say why an earlier attempt is not continued, and empty the file."""
        self.notes.append(f"{self.path.name}: what an earlier attempt left was not used: {why}")
        with temporaries.translated(self.path):
            self._file.begin_anew()


def require_size(path: Path, size: int, largest: int) -> None:
    """Raises ``TargetError`` where a format cannot hold a disk of ``size`` bytes."""
    if size > largest:
        raise errors.TargetError(
            f"{path}: this form holds {largest} bytes, the disk has {size}", hint="choose another --format"
        )
