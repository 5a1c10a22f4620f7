"""Writing and reading back past the page cache: a restore pushes nothing out of memory, and what it reads back to prove
comes from the device and costs no copy in the kernel.

What does not lie on whole pages goes the usual way, and so does everything where the file system knows no other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from reconciler.base import buffers, disks, errors, extents, files
from reconciler.sources.diskimages import raw

#: Offsets and lengths that every device takes.
_ALIGNED: Final = 4096
#: Bytes moved by one call, and held for it by each thread.
_AT_ONCE: Final = 1 << 20
_REFUSED: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class Direct:
    """A second descriptor of an open file. Thread-safe; ``close`` is idempotent and leaves the first one alone."""

    def __init__(self, handle: int) -> None:
        """``handle``: the file, open for the same."""
        self._usual = handle
        self._buffers = threading.local()
        access = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
        try:
            self._handle = os.open(f"/proc/self/fd/{handle}", access | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            self._handle = -1

    @property
    def works(self) -> bool:
        """Whether what is read comes from the device."""
        return self._handle >= 0

    def write(self, data: disks.Buffer, offset: int) -> None:
        """Write all of ``data`` at ``offset``. Raises ``OSError``."""
        view = memoryview(data).cast("B")
        done = 0 if offset % _ALIGNED else self._write_pages(view[: len(view) // _ALIGNED * _ALIGNED], offset)
        files.pwrite_all(self._usual, view[done:], offset + done)

    def _write_pages(self, view: memoryview, offset: int) -> int:
        done = 0
        while done < len(view) and self._handle >= 0:
            step = min(_AT_ONCE, len(view) - done)
            piece = view[done : done + step]
            if not buffers.is_aligned(piece):
                piece = self._buffer()[:step]
                piece[:] = view[done : done + step]
            try:
                done += os.pwrite(self._handle, piece, offset + done)
            except OSError as error:
                self._give_up(error)
            if done % _ALIGNED:
                break  # the device took less than was asked for
        return done

    def look(self, offset: int, length: int) -> disks.Buffer:
        """As ``read``, in the thread's own buffer: there until it uses this again."""
        if self._handle >= 0 and not offset % _ALIGNED and length <= _AT_ONCE:
            buffer = self._buffer()
            try:
                got = os.preadv(self._handle, [buffer[: -(-length // _ALIGNED) * _ALIGNED]], offset)
            except OSError as error:
                self._give_up(error)
            else:
                if got >= length:
                    return buffer[:length]
        return self.read(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from the device, less at the end of the file. Raises ``OSError``."""
        if self._handle < 0 or offset % _ALIGNED:
            return os.pread(self._usual, length, offset)
        found = bytearray()
        while len(found) < length:
            wanted = min(_AT_ONCE, length - len(found))
            buffer = self._buffer()
            try:
                got = os.preadv(self._handle, [buffer[: -(-wanted // _ALIGNED) * _ALIGNED]], offset + len(found))
            except OSError as error:
                self._give_up(error)
                return os.pread(self._usual, length, offset)
            found += buffer[: min(got, wanted)]
            if got < wanted:
                break
        return bytes(found)

    def _buffer(self) -> memoryview:
        found: memoryview | None = getattr(self._buffers, "view", None)
        if found is None:
            found = self._buffers.view = memoryview(mmap.mmap(-1, _AT_ONCE))
        return found

    def _give_up(self, error: OSError) -> None:
        """Go the usual way from now on, unless it is a failure of the device."""
        if error.errno not in _REFUSED:
            raise error
        self.close()

    def close(self) -> None:
        """Close the second descriptor."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


class WrittenDisk(disks.Closing):
    """A raw file or device as a restore left it, read from the device to be proven. Thread-safe."""

    sector = raw.SECTOR

    def __init__(self, path: Path, size: int) -> None:
        """The first ``size`` bytes of ``path``. Raises ``SourceError``."""
        self.name, self.size = path.name, size
        self._path = path
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.SourceError(f"{path}: {error.strerror}", hint="check the path, and its permissions") from error
        self._direct = Direct(self._handle)
        if not self._direct.works:
            # What is still in memory would prove the memory; dropped pages are read from the device.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def extents(self) -> extents.Extents:
        """Data by the file's holes, as they are now."""
        return raw.data_ranges(self._handle, self.size)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``SourceError``."""
        return self._whole(self._direct.read, offset, length)

    def look(self, offset: int, length: int) -> disks.Buffer:
        """As ``pread``; the bytes are there until the same thread looks again."""
        return self._whole(self._direct.look, offset, length)

    def _whole(self, read: Callable[[int, int], disks.Buffer], offset: int, length: int) -> disks.Buffer:
        try:
            data = read(offset, length)
        except OSError as error:
            raise errors.SourceError(f"{self._path}: reading {length} bytes at {offset}: {error.strerror}") from error
        if len(data) < length:
            raise errors.SourceError(f"{self._path}: it ends at {offset + len(data)}, and had {self.size} bytes")
        return data

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._direct.close()
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
