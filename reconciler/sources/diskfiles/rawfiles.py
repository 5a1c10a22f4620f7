"""Raw files, sparse and of exactly the disk's size, and the flat VMDK that is one with a descriptor beside it.

Of a flat VMDK both files appear only when the extent is proven: first ``NAME-flat.vmdk``, then ``NAME.vmdk``, so that a
descriptor never names an extent that is not whole. What they replace goes in the opposite order.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from reconciler.base import crashes, disks, extents, files
from reconciler.sources.diskfiles import directs, runs, temporaries, written
from reconciler.sources.diskimages import raw
from reconciler.sources.vmdk import descriptions

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LARGEST_ZEROS: Final = 8 << 20


def punch(handle: int, offset: int, length: int) -> bool:
    """Make a range of a file or device read as zeros without writing them; False where that is not supported."""
    done = _LIBC.fallocate(
        ctypes.c_int(handle), ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE), ctypes.c_int64(offset), ctypes.c_int64(length)
    )
    return int(done) == 0


def write_zeros(handle: int, offset: int, length: int) -> None:
    """Write zeros, in pieces. Raises ``OSError``."""
    zeros = memoryview(bytes(min(length, _LARGEST_ZEROS)))
    for start in range(offset, offset + length, _LARGEST_ZEROS):
        files.pwrite_all(handle, zeros[: min(_LARGEST_ZEROS, offset + length - start)], start)


class RawFile(written.WrittenFile):
    """A sparse raw file."""

    def __init__(self, path: Path, size: int, *, force: bool, identity: str | None, whole: int | None = None) -> None:
        """Make the temporary file, or continue one; ``whole``: its bytes where they are more than the disk's.
        Raises ``TargetError``."""
        super().__init__("raw", path, size, force=force, identity=identity)
        self._direct = directs.Direct(self._file.handle)
        try:
            with temporaries.translated(path):
                os.ftruncate(self._file.handle, whole or size)
        except BaseException:
            self.abort()
            raise

    def held(self) -> extents.Extents:
        """The file's data, holes left out."""
        return raw.data_ranges(self._file.handle, self._size) if self._file.continued else ()

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """What lies there now."""
        with temporaries.translated(self.path):
            return os.pread(self._file.handle, length, offset)

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole, or write zeros."""
        with temporaries.translated(self.path):
            if not punch(self._file.handle, offset, length):
                write_zeros(self._file.handle, offset, length)

    def pwrite(self, offset: int, data: disks.Buffer, *, over: bool = False) -> None:
        """Write what is not zero; all of it where something may lie there already."""
        with temporaries.translated(self.path):
            for position, run in ((offset, data),) if over else runs.data_runs(data, offset):
                self._direct.write(run, position)

    def settle(self) -> disks.Disk:
        """What was written so far: what went past the page cache is on the device already."""
        if not self._direct.works:
            with temporaries.translated(self.path):
                os.fdatasync(self._file.handle)
        return written.read_back("raw", self._file.path, self._size)

    def _release(self) -> None:
        self._direct.close()


class FlatVmdk(RawFile):
    """A flat VMDK: ``path`` is its descriptor's, the extent lies beside it."""

    def __init__(self, path: Path, size: int, *, force: bool, identity: str | None) -> None:
        """Make the extent's temporary file. Raises ``TargetError`` or ``TargetExists``."""
        extent = extent_of(path)
        with temporaries.translated(path):
            if temporaries.half_named(extent, identity):
                extent.unlink()  # it lies under its temporary name too, and is continued from there
        if not force and os.path.lexists(extent):
            raise temporaries.exists(extent)
        # No VMDK has less than a sector.
        sectors = max(-(-size // descriptions.SECTOR), 1)
        self._whole = sectors * descriptions.SECTOR
        super().__init__(extent, size, force=force, identity=identity, whole=self._whole)
        self.path = path

    def _publish(self) -> None:
        extent = self._file.final
        text = descriptions.flat(extent.name, self._whole, "", vmfs=False)
        if self._force:
            for replaced in (self.path, extent):
                replaced.unlink(missing_ok=True)
                files.sync_folder(replaced.parent)
        self._file.publish(force=False, keep=True)
        crashes.passing("restore.extent-named")
        try:
            descriptor = temporaries.Unfinished(self.path, None)
            named = False
            try:
                files.pwrite_all(descriptor.handle, text, 0)
                os.fsync(descriptor.handle)
                descriptor.publish(force=False)
                named = True
            finally:
                descriptor.close(remove=not named)
        except BaseException:
            # An extent without a descriptor is no disk to anybody.
            extent.unlink(missing_ok=True)
            raise
        self._file.path.unlink(missing_ok=True)


def extent_of(path: Path) -> Path:
    """Where the extent of a flat VMDK lies."""
    return path.with_name(f"{path.name.removesuffix('.vmdk')}-flat.vmdk")
