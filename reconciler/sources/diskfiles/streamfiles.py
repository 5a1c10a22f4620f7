"""Stream-optimised VMDK: written from end to end in one go, so it is filled by the disk and never continued."""

from __future__ import annotations

from pathlib import Path

from reconciler.base import disks, files, meters
from reconciler.sources.diskfiles import temporaries, written
from reconciler.sources.nbd import bindings
from reconciler.sources.vmdk import streamoptimized

#: 62 TiB, the largest disk that VMware makes.
_LARGEST = 62 << 40


class StreamFile(written.WrittenFile):
    """One such file."""

    def __init__(self, path: Path, size: int, *, force: bool, identity: str | None) -> None:
        """Make the temporary file. Raises ``TargetError`` or, where the proof would need what is not installed,
        ``SourceError``."""
        bindings.libnbd()
        written.require_size(path, size, _LARGEST)
        super().__init__("vmdk", path, size, force=force, identity=identity)
        if self._file.continued:
            self._begin_anew("a stream is written from end to end")

    def fill(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Write the whole disk; the bytes written. Raises ``TargetError``, ``Cancelled``, and what reading raises."""
        written_bytes = 0
        for piece in streamoptimized.packs(disk, meter):
            with temporaries.translated(self.path):
                files.pwrite_all(self._file.handle, piece, written_bytes)
            written_bytes += len(piece)
        return written_bytes

    def pwrite(self, offset: int, data: disks.Buffer, *, over: bool = False) -> None:
        """Never: a stream has one order."""
        raise ValueError(f"{self.path} is filled at once, not written: {len(data)} bytes at {offset}, {over=}")
