"""Disks through ``nbdkit`` with its vddk plugin: VMware's own library, with its SAN, HotAdd and network transports.

One server per disk, over one connection: each connection of nbdkit is one more to the host, whose buffers for all of
them together are few. The password goes through a pipe, never through the command line or the environment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Final

from reconciler.api import vcenters
from reconciler.base import disks, errors, extents
from reconciler.sources.nbd import bindings, requests, servers
from reconciler.sources.vsphere.transports import ports

#: VDDK counts in sectors, and its buffers to a host end at 2 MiB.
_SECTOR: Final = 512
_LARGEST_READ: Final = 2 << 20
_ALLOCATION: Final = "base:allocation"
_UNSUPPORTED: Final = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_PREFIX: Final = re.compile(r"^nbdkit: (?:vddk(?:\[\d+\])?: )?(?:error: )?")
_NOISE: Final = re.compile(r": debug: |^\s*See .*man page|^Use 'nbdkit --help'")
#: How a program says that it does not take `-s`; anything else that it says is a refusal, and counts.
_MISUNDERSTOOD: Final = re.compile(
    r"usage:|(?:unrecognized|unrecognised|unknown|invalid|unexpected) (?:command line )?(?:option|argument)"
    r"|no such option|(?<![\w-])-s(?![\w-])|LISTEN_(?:FDS|PID)|socket.activation"
    r"|bind to any TCP|Address already in use"
    r"|(?:expect|only)[^;]{0,40}\bvddk\b|\b(?:Assertion|Index|Key|Value)Error\b",
    re.IGNORECASE,
)
#: Programs that serve by socket activation alone.
_activated: set[str] = set()
#: What the library or the plugin says, and what to do about it; the first that fits.
_HINTS: Final = (
    (r"Failed to allocate the requested|maximum NFC connections|Too many connections", "lower limits.perHost"),
    (r"thumbprint|SSL|certificate", "its certificate is another than the one trusted; was it renewed meanwhile?"),
    (r"licen[sc]e", "the host's license must include its storage APIs for data protection; else name `datastore`"),
    (r"lock", "another program holds this disk; its leftovers in the vCenter may have to be ended by hand"),
    (r"incorrect user name or password|login|authenticat", "correct the credential"),
    (r"cannot open plugin", "install nbdkit's vddk plugin, or name another nbdkit"),
    (r"libvixDiskLib|shared object", "unpack VMware's VDDK and name its folder in vddk.libdir"),
    (r"transport mode", "look at vddk.transports"),
    (r"[Ss]napshot|cannot be found|does not exist|[Nn]o such file", "the next attempt makes a new snapshot"),
)


class Vddk:
    """The transport ``nbdkit-vddk``."""

    name = "nbdkit-vddk"

    def __init__(self, *, patience: float = servers.PATIENCE, grace: float = servers.GRACE) -> None:
        """``patience``, ``grace``: seconds until a server counts as hung, and that it may take to end."""
        self._patience, self._grace = patience, grace

    def refuses(self, frozen: ports.Frozen) -> str | None:
        """Whether the disk is none that a snapshot holds, or something is not installed."""
        if frozen.disk.kind == "RawPhysical":
            return "the disk is a raw device in physical compatibility, which no snapshot holds"
        return self.missing(frozen.session.spec)

    @staticmethod
    def missing(spec: vcenters.VCenterSpec) -> str | None:
        """What is not installed, None if everything is."""
        program = spec.vddk.nbdkit
        if shutil.which(program) is None:
            return f"{program} is not found, or may not be run"
        try:
            bindings.libnbd()
        except errors.SourceError as error:
            return str(error)
        return None

    def open(self, frozen: ports.Frozen) -> disks.Disk:
        """The disk behind a server of its own. Raises ``SourceError`` with the library's own words."""
        reason = self.refuses(frozen)
        if reason is not None:
            raise errors.SourceError(f"{frozen.words}: {reason}", hint="install it, or name another transport")
        disk = VddkDisk(frozen, self._patience, self._grace)
        if disk.size != frozen.disk.size:
            disk.close()
            raise errors.SourceError(
                f"{frozen.words}: nbdkit serves {disk.size} bytes, the disk has {frozen.disk.size}",
                hint="the disk was resized; the next attempt asks anew",
            )
        return disk


def _command(frozen: ports.Frozen, user: str, password: int, *, writable: bool, single: bool) -> list[str]:
    """``password``: the descriptor that it is read from. What is written is no snapshot but the disk itself.
    ``single``: it serves its standard input and output, else the socket that socket activation gives it."""
    spec, vddk = frozen.session.spec, frozen.session.spec.vddk
    return [
        vddk.nbdkit,
        *([] if writable else ["-r"]),
        *(["-s"] if single else []),
        "vddk",
        *([f"libdir={vddk.libdir}"] if vddk.libdir is not None else []),
        f"server={spec.server}",
        f"port={spec.port}",
        f"user={user}",
        f"password=-{password}",
        f"thumbprint={frozen.session.thumbprint}",
        f"vm=moref={frozen.reference}",
        *([] if writable else [f"snapshot={frozen.snapshot}"]),
        f"transports={':'.join(vddk.transports)}",
        *([f"compression={vddk.compression}"] if vddk.compression != "none" else []),
        f"file={frozen.disk.file}",
    ]


def _said(line: str) -> str:
    return "" if _NOISE.search(line) else _PREFIX.sub("", line.strip())


def _hint(words: str) -> str:
    return next((hint for pattern, hint in _HINTS if re.search(pattern, words)), "nbdkit -v says more")


@contextlib.contextmanager
def _whispered(text: str) -> Iterator[int]:
    """A descriptor from which ``text`` can be read once."""
    first, writing = os.pipe()
    # Above those that a server gets under numbers of their own.
    reading = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(first)
    try:
        with open(writing, "wb") as pipe:
            pipe.write(text.encode())
        yield reading
    finally:
        os.close(reading)


class VddkDisk(disks.Closing):
    """A disk behind nbdkit. Thread-safe; readers take turns."""

    sector = _SECTOR

    def __init__(self, frozen: ports.Frozen, patience: float, grace: float, *, writable: bool = False) -> None:
        """Start the server and connect. Raises ``SourceError``."""
        self.name = frozen.disk.label
        self._frozen = frozen
        self._lock = threading.Lock()
        self._ranges: extents.Extents | None = None
        self._patience, self._grace = patience, grace
        with self._translated("opening"):
            self._server = self._started(writable)
        try:
            with self._translated("opening"), self._server.connection() as handle:
                self.size = int(handle.get_size())
                self._block = max(int(handle.get_block_size(0)), _SECTOR)
        except BaseException:
            self._server.close()
            raise

    def _started(self, writable: bool) -> servers.NbdServer:
        """The server. A program that does not know ``-s`` is asked again, in the way of socket activation."""
        program = self._frozen.session.spec.vddk.nbdkit
        misunderstood: servers.ServerFailed | None = None
        if program not in _activated:
            try:
                return self._serve(writable=writable, single=True)
            except servers.ServerFailed as error:
                if not (error.mute or _MISUNDERSTOOD.search(error.message)):
                    raise
                misunderstood = error
        try:
            server = self._serve(writable=writable, single=False)
        except servers.ServerFailed as error:
            if misunderstood is not None and (error.mute or _MISUNDERSTOOD.search(error.message)):
                raise misunderstood from error
            raise
        _activated.add(program)
        return server

    def _serve(self, *, writable: bool, single: bool) -> servers.NbdServer:
        frozen = self._frozen
        login = frozen.session.login()
        if len(login.password.encode()) > 4096:
            raise errors.SourceError(f"{frozen.words}: nobody has a password of this length")
        with _whispered(login.password) as password:
            return servers.NbdServer(
                _command(frozen, login.username, password, writable=writable, single=single),
                single=single,
                lingers=not single,
                lend=[password],
                connections=1,
                contexts=[_ALLOCATION],
                patience=self._patience,
                grace=self._grace,
                words=_said,
                started=frozen.read_by,
            )

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (servers.ServerFailed, requests.NoAnswer) as error:
            raise errors.SourceError(
                f"{self._frozen.words}: {self._frozen.disk.file}: {doing}: nbdkit: {error}", hint=_hint(str(error))
            ) from error

    def _allocated(self) -> extents.Extents:
        whole = ((0, self.size),) if self.size else ()
        with self._translated("asking for allocated areas"):
            try:
                with self._server.connection() as handle:
                    if not handle.can_meta_context(_ALLOCATION):
                        return whole
                    return requests.areas(
                        handle, _ALLOCATION, self.size, lambda flags: not flags & requests.READS_AS_ZERO
                    )
            except requests.NoAnswer:
                return whole
            except servers.ServerFailed as error:
                if error.number in _UNSUPPORTED:
                    return whole
                raise

    def extents(self) -> extents.Extents:
        """What the library says is allocated, found at the first call; the whole disk where it says nothing."""
        with self._lock:
            if self._ranges is None:
                self._ranges = self._allocated()
            return self._ranges

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes. Raises ``SourceError`` with the library's own words."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        self._frozen.meter.check()
        with self._translated(f"reading {length} bytes at {offset}"), self._server.connection() as handle:
            return requests.read(handle, offset, length, block=self._block, size=self.size, largest=_LARGEST_READ)

    def close(self) -> None:
        """End the server. Idempotent."""
        self._server.close()


class WritableDisk(VddkDisk):
    """A disk of a machine that is off and has no snapshots, to be written and read."""

    def __init__(
        self, frozen: ports.Frozen, *, patience: float = servers.PATIENCE, grace: float = servers.GRACE
    ) -> None:
        """``frozen.snapshot`` says nothing here. Raises ``SourceError``."""
        super().__init__(frozen, patience, grace, writable=True)

    def pwrite(self, offset: int, data: disks.Buffer) -> None:
        """Write whole sectors. Raises ``SourceError`` with the library's own words."""
        self._frozen.meter.check()
        view = memoryview(data).cast("B")
        with self._translated(f"writing {len(view)} bytes at {offset}"), self._server.connection() as handle:
            for start in range(0, len(view), _LARGEST_READ):
                handle.pwrite(view[start : start + _LARGEST_READ], offset + start)

    def flush(self) -> None:
        """Make durable what was written. Raises ``SourceError``."""
        with self._translated("making it durable"), self._server.connection() as handle:
            if handle.can_flush():
                handle.flush()
