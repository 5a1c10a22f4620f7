"""Disks that are not raw, read through ``qemu-nbd``: qcow2, vmdk, vhdx.

qemu reads what lies beyond the end of a truncated file as zeros, so opening and reading prove nothing: ``check`` asks
``qemu-img`` whether every allocated unit lies inside the file, and the last one entirely, before a byte is read.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from reconciler.base import disks, errors, extents
from reconciler.sources.diskimages import formats
from reconciler.sources.nbd import qemu, requests, servers

#: Seconds for one run of qemu-img, which reads metadata only.
_TOOL_SECONDS = 900
#: A hostile image may make the tool work and allocate without end: 4 GiB of memory, 600 s of processor time.
_LIMITED: Final = ("/bin/sh", "-c", 'ulimit -v 4194304; ulimit -t 600; exec "$@"', "sh")
_LARGEST_READ = 8 << 20
_DIRTY = 1
#: Exit codes of qemu-img check that say nothing against the data: sound, leaked clusters, checks not supported.
_SOUND: Final = (0, 3, 63)


def tool(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``qemu-img`` with limits and without a locale. Raises ``SourceError`` if it cannot start or never ends."""
    try:
        return subprocess.run(
            [*_LIMITED, "qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise errors.SourceError(f"qemu-img {arguments[0]} did not end within {_TOOL_SECONDS} s") from error


def check(image: formats.Image) -> None:
    """Raise ``SourceError`` unless every layer of ``image`` is whole: consistent metadata, nothing beyond its end."""
    for layer in image.layers:
        if layer.format == "vhdx":
            continue  # its driver refuses to open a file that ends before its last block
        done = tool(["check", qemu.block_node(layer.node)])
        # For descriptors of flat extents there is nothing to check but their sizes, which opening them compares.
        unsupported = "does not support checks" in done.stderr
        if done.returncode not in _SOUND and not unsupported:
            lines = (done.stderr + done.stdout).strip().splitlines() or [f"qemu-img check ended with {done.returncode}"]
            said = next((line for line in lines if line.startswith("ERROR")), lines[0])
            raise errors.SourceError(
                f"{layer.path}: damaged or truncated: {qemu.without_node(said)}",
                hint="qemu-img check says more; restore the disk or let its owner repair it",
            )
        if any(path.stat().st_size % layer.cluster for _, path in layer.spans):
            _check_end(layer)


def _check_end(layer: formats.Layer) -> None:
    """The tool forgives a last unit that is cut short; its missing bytes would be read as zeros."""
    starts = [start for start, _ in layer.spans]
    sizes = [path.stat().st_size for _, path in layer.spans]
    with tempfile.TemporaryFile("w+") as answer:
        command = [*_LIMITED, "qemu-img", "map", "--output=json", qemu.block_node(layer.node)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.PIPE, timeout=_TOOL_SECONDS, check=False
        )
        if done.returncode:
            raise errors.SourceError(f"{layer.path}: damaged: {done.stderr.decode(errors='replace').strip()[-300:]}")
        answer.seek(0)
        for line in answer:
            entry = json.loads(line.strip().lstrip("[").rstrip(",]") or "{}")
            if "offset" not in entry or not entry["data"]:
                continue  # nothing there, or compressed, where a missing end fails when it is read
            span = bisect.bisect_right(starts, entry["start"]) - 1
            if entry["offset"] + entry["length"] > sizes[span]:
                raise errors.SourceError(
                    f"{layer.spans[span][1]}: truncated: it has {sizes[span]} bytes, and the data at {entry['start']} "
                    f"of the disk would end later",
                    hint="qemu-img map says more; restore the disk from a good copy",
                )


class ConvertedDisk(disks.Closing):
    """A disk behind ``qemu-nbd``. Thread-safe: each thread reads over a connection of its own."""

    sector = 512

    def __init__(
        self,
        name: str,
        node: Mapping[str, Any],
        *,
        bitmap: str | None = None,
        size: int | None = None,
        connections: int = 4,
        patience: float = servers.PATIENCE,
    ) -> None:
        """Serve ``node`` read-only; ``size`` bytes where only its beginning is the disk. Raises ``SourceError``."""
        self.name = name
        self._lock = threading.Lock()
        self._ranges: extents.Extents | None = None
        self._dirty = f"qemu:dirty-bitmap:{bitmap}"
        arguments = ["--read-only", *([f"--bitmap={bitmap}"] if bitmap else [])]
        contexts = ["base:allocation", *([self._dirty] if bitmap else [])]
        with self._translated("opening"):
            self._server = qemu.serve(node, arguments, connections=connections, contexts=contexts, patience=patience)
        try:
            with self._translated("opening"), self._server.connection() as handle:
                self._whole = int(handle.get_size())
                self._block = max(int(handle.get_block_size(0)), 1)
        except BaseException:
            self._server.close()
            raise
        self.size = self._whole if size is None else min(size, self._whole)

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (servers.ServerFailed, requests.NoAnswer) as error:
            raise errors.SourceError(f"{self.name}: {doing}: {error}", hint="qemu-img check says more") from error

    @property
    def server_pid(self) -> int:
        """Process id of the server that reads the disk."""
        return self._server.pid

    def dirty(self) -> extents.Extents:
        """Areas that the bitmap named at opening marks as written. Raises ``SourceError`` without one."""
        return self._status(self._dirty, lambda flags: bool(flags & _DIRTY))

    def _status(self, context: str, wanted: Any) -> extents.Extents:
        with self._translated("asking for allocated areas"), self._server.connection() as handle:
            if not handle.can_meta_context(context):
                if context == self._dirty:
                    raise errors.SourceError(f"{self.name}: the server does not show its bitmap")
                return ((0, self.size),)
            return extents.clip(requests.areas(handle, context, self._whole, wanted), self.size)

    def extents(self) -> extents.Extents:
        """Data by the image's own allocation, found at the first call."""
        with self._lock:
            if self._ranges is None:
                self._ranges = self._status("base:allocation", lambda flags: not flags & requests.READS_AS_ZERO)
            return self._ranges

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``SourceError`` with what the server says."""
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        with self._translated(f"reading {length} bytes at {offset}"), self._server.connection() as handle:
            return requests.read(handle, offset, length, block=self._block, size=self._whole, largest=_LARGEST_READ)

    def close(self) -> None:
        """End the server. Idempotent."""
        self._server.close()
