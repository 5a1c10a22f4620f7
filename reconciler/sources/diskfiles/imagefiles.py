"""qcow2 and monolithic sparse VMDK, written through ``qemu-nbd`` into the image itself: the space of the data once.

A half-written image is continued only where qemu finds its tables sound; what the blocks hold is proven as ever.
"""

from __future__ import annotations

import errno
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from reconciler.base import disks, errors, extents
from reconciler.sources.diskfiles import runs, temporaries, written
from reconciler.sources.diskimages import converted
from reconciler.sources.nbd import bindings, qemu, requests, servers

_LARGEST: Final = 8 << 20
#: Bytes after which qemu writes down where they went, so that a kill leaves them to be found.
_NOTED_EVERY: Final = 16 << 20
_ALLOCATION: Final = "base:allocation"
#: Seconds that a write or the final flush may take before the server counts as hung.
_PATIENCE: Final = 1800.0
#: Seconds that the server of a dead attempt may take to end, and what qemu says until then.
_LINGERING: Final = 10.0
_LOCKED: Final = '"write" lock'


class ImageFile(written.WrittenFile):
    """An image that qemu writes."""

    def __init__(self, format: str, path: Path, size: int, *, force: bool, identity: str | None) -> None:
        """Make an empty image under the temporary name, or continue one, and serve it. Raises ``TargetError`` or
        ``SourceError``."""
        bindings.libnbd()
        super().__init__(format, path, size, force=force, identity=identity)
        # No VMDK has less than a sector.
        self._whole = max(-(-size // 512), 1 if format == "vmdk" else 0) * 512
        self._server: servers.NbdServer | None = None
        self._unnoted = 0
        try:
            if self._file.continued:
                self._continue()
            if self._server is None:
                self._create()
                self._server = self._serve()
        except BaseException:
            self.abort()
            raise

    def _node(self) -> dict[str, Any]:
        node = {"driver": self._driver, "file": {"driver": "file", "filename": str(self._file.path)}}
        return {**node, "backing": None} if self._file.continued else node

    def _create(self) -> None:
        done = converted.tool(["create", "-q", "-f", self._driver, str(self._file.path), str(self._whole)])
        if done.returncode:
            number = errno.ENOSPC if "No space left" in done.stderr else errno.EIO
            raise temporaries.failed(self.path, number, qemu.without_node(done.stderr))

    def _serve(self) -> servers.NbdServer:
        with temporaries.translated(self.path):
            # Syncs in between would protect what is proven again after a crash anyway; `flush` syncs the whole of it.
            return qemu.serve(self._node(), ["--cache=unsafe"], patience=_PATIENCE, grace=_PATIENCE)

    def _continue(self) -> None:
        """Serve what an earlier attempt left, if its tables are sound and it is of the same size."""
        done = self._checked()
        if done.returncode != 0:
            said = (done.stderr + done.stdout).strip().splitlines() or ["no reason given"]
            self._begin_anew(qemu.without_node(said[0]))
            return
        try:
            self._server = self._serve()
            with self._server.connection() as handle:
                found = int(handle.get_size())
        except (errors.TargetError, servers.ServerFailed) as error:
            self._release()
            self._begin_anew(str(error))
            return
        if found != self._whole:
            self._release()
            self._begin_anew(f"it has {found} bytes instead of {self._whole}")

    def _checked(self) -> subprocess.CompletedProcess[str]:
        """Have qemu look at the tables. The server of an attempt that was killed may still be at closing the image."""
        repair = ["-r", "leaks"] if self._driver == "qcow2" else []
        until = time.monotonic() + _LINGERING
        while True:
            done = converted.tool(["check", "-q", *repair, qemu.block_node(self._node())])
            if _LOCKED not in done.stderr or time.monotonic() > until:
                return done
            time.sleep(0.1)

    @property
    def _open_server(self) -> servers.NbdServer:
        if self._server is None:
            raise ValueError(f"{self.path} is finished already")
        return self._server

    def held(self) -> extents.Extents:
        """What is allocated in an image that is continued."""
        if not self._file.continued:
            return ()
        with temporaries.translated(self.path), self._open_server.connection() as handle:
            try:
                return extents.clip(
                    requests.areas(handle, _ALLOCATION, self._whole, lambda flags: not flags & requests.READS_AS_ZERO),
                    self._size,
                )
            except requests.NoAnswer:
                return ((0, self._size),)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """What the image holds now."""
        with temporaries.translated(self.path), self._open_server.connection() as handle:
            return requests.read(handle, offset, length, block=1, size=self._whole, largest=_LARGEST)

    def zero(self, offset: int, length: int) -> None:
        """Let qemu clear it."""
        for start in range(offset, offset + length, _LARGEST):
            with temporaries.translated(self.path), self._open_server.connection() as handle:
                handle.zero(min(_LARGEST, offset + length - start), start)

    def pwrite(self, offset: int, data: disks.Buffer, *, over: bool = False) -> None:
        """Write what is not zero; all of it where something may lie there already."""
        for position, run in ((offset, memoryview(data).cast("B")),) if over else runs.data_runs(data, offset):
            for start in range(0, len(run), _LARGEST):
                with temporaries.translated(self.path), self._open_server.connection() as handle:
                    handle.pwrite(run[start : start + _LARGEST], position + start)
        self._note(len(data))

    def _note(self, length: int) -> None:
        with self._lock:
            self._unnoted += length
            if self._unnoted < _NOTED_EVERY:
                return
            self._unnoted = 0
        with temporaries.translated(self.path), self._open_server.connection() as handle:
            handle.flush()

    def _seal(self) -> None:
        server = self._open_server
        with server.connection() as handle:
            handle.flush()
        server.close()
        if server.exit_code != 0:
            raise servers.ServerFailed(f"qemu-nbd ended with {server.exit_code} instead of closing the image")
        self._server = None

    def _release(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
