"""Disks of a stored image served over NBD, by nbdkit with its Python plugin; nothing of it outlives the starter.

``serve`` starts one nbdkit and returns when clients may connect. The process runs ``nbdplugins`` in the Python that
nbdkit embeds, with the packages of ours. The two talk over a pair of sockets, in lines of JSON: the order goes down;
that it is ready, or why it is not, comes back, and later what clients were told as errors. When our end closes, also by
kill -9, the server ends. A writable export keeps what is written in a file without a name, by nbdkit's copy-on-write
filter, and forgets it at the end. Separate from the commands because drills and mounts share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import reconciler
from reconciler.base import errors

_LOGGER = logging.getLogger(__name__)
_PLUGIN: Final = Path(__file__).with_name("nbdplugins.py")
#: Bytes of decoded data that a server keeps.
MEMORY: Final = 256 << 20
#: Seconds until a server that says nothing counts as hung, and until one that was told to end is killed.
_PATIENCE: Final = 60.0
_GRACE: Final = 10.0
#: Bytes that the address of a Unix socket may have.
_ADDRESS: Final = 107
_TAIL: Final = 2000
#: Whole pages are written without reading what lies around them: a dozen times as many small writes as with larger
#: blocks, or with an overlay of QEMU's, and reads in order cost the same.
_OVERLAY: Final = ("cow-block-size=4096",)
#: Requests of one client that are answered at once, where nbdkit can. Up to 1.32 it ends, or sends bytes to somebody
#: else, where a client leaves while several of its requests are under way; clients are still served side by side.
_THREADS: Final = 16
_SOUND: Final = (1, 34)
_SECRETS: Final = ("PASSWORD", "PASSPHRASE", "SECRET", "TOKEN", "_KEY")
# The shell puts the listening socket where socket activation wants it: number 3, named by the server's own pid.
_ACTIVATED: Final = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One copy of the image that may be read."""

    #: Folder of the unit.
    folder: Path
    #: Folder of the estate's caches, None where there is no estate.
    cache: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to serve, and how."""

    #: The image's id.
    image: str
    #: Its copies, in order of preference; a read that one cannot give is given by the next.
    copies: tuple[Copy, ...]
    #: Names of disks, all of the image where empty; a writable export serves exactly one.
    disks: tuple[str, ...] = ()
    #: Whether clients may write; what they write is forgotten at the end.
    writable: bool = False
    #: Path of the Unix socket; None for one in a folder of its own. Not with ``address``.
    socket: Path | None = None
    #: IP address to listen at over TCP, which anybody who reaches it may read; None for a Unix socket.
    address: str | None = None
    #: TCP port, 0 for a free one.
    port: int = 0
    #: Folder for what clients write; None for the system's.
    temporary: Path | None = None
    #: Bytes of decoded data to keep in memory.
    memory: int = MEMORY


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """What a client was told as an input/output error, or why a copy was passed over for the next."""

    error: errors.HoldfastError
    #: Position in the order's copies of the one that was passed over; None where a client got the error.
    copy: int | None


class Export(contextlib.AbstractContextManager["Export"]):
    """A running server. Thread-safe; ``close`` is idempotent."""

    def __init__(self, order: Order, told: Callable[[Trouble], None]) -> None:
        self._order, self._told = order, told
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._closing = False
        #: Sizes in bytes by the disks' names.
        self.sizes: Mapping[str, int] = {}
        #: The socket's path, None over TCP.
        self.socket: Path | None = None
        self._place = ""
        with contextlib.ExitStack() as failing:
            failing.callback(self._stack.close)
            self._start()
            failing.pop_all()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Where clients find the first disk: ``nbd+unix:///NAME?socket=PATH`` or ``nbd://ADDRESS:PORT/NAME``."""
        return self.uris[next(iter(self.sizes))]

    @property
    def uris(self) -> Mapping[str, str]:
        """Where clients find each disk."""
        return {name: self._place.format(urllib.parse.quote(name, safe="")) for name in self.sizes}

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server serves."""
        return not self._ended.is_set() and self._process.poll() is None

    def close(self) -> None:
        """End the server, in order or by force, and remove its socket."""
        with self._lock:
            self._closing = True
            self._stack.close()

    def _start(self) -> None:
        if shutil.which("nbdkit") is None:
            raise errors.SourceError("serving disks needs nbdkit", hint=_INSTALL)
        run = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-export-")))
        with tempfile.TemporaryFile() as said:
            channel = self._spawn(run, said.fileno())
            lines = _lines(channel)
            with contextlib.suppress(OSError):
                channel.sendall(json.dumps(self._wire(run)).encode() + b"\n")
            answer = next(lines, None)
            if answer is None:
                raise self._failure(said.fileno())
        if "sizes" not in answer:
            raise _error(answer)
        channel.settimeout(None)
        self.sizes = dict(answer["sizes"])
        threading.Thread(target=self._listen, args=(lines,), name="export-listener", daemon=True).start()

    def _spawn(self, run: Path, said: int) -> socket.socket:
        """Start the process; our end of the channel."""
        listener = self._listener(run)
        ours, theirs = socket.socketpair()
        self._stack.callback(ours.close)
        ours.settimeout(_PATIENCE)
        with listener, theirs:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _ACTIVATED, "sh", *self._command(theirs.fileno())],
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(theirs.fileno(),),
                env=_environment(self._order.temporary or run),
                # An interrupt typed at the terminal is for Holdfast, which then ends its servers in order.
                start_new_session=True,
            )
        self._stack.callback(self._end)
        return ours

    def _listener(self, run: Path) -> socket.socket:
        """The socket that clients connect to. Raises ``TargetError`` or ``TargetExists``."""
        order = self._order
        if order.address is not None:
            return self._tcp_listener(order.address, order.port)
        path = order.socket.absolute() if order.socket is not None else run / "nbd"
        if len(os.fsencode(path)) > _ADDRESS:
            if order.socket is not None:
                raise errors.TargetError(f"{path} is too long for a socket", hint=f"{_ADDRESS} bytes are the most")
            path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-", dir="/tmp"))) / "nbd"
        listener = socket.socket(socket.AF_UNIX)
        try:
            self._bind(listener, path)
            self._stack.callback(path.unlink, missing_ok=True)
            listener.listen(64)
        except BaseException:
            listener.close()
            raise
        self.socket = path
        self._place = f"nbd+unix:///{{}}?socket={urllib.parse.quote(str(path)).replace('{', '{{').replace('}', '}}')}"
        return listener

    @staticmethod
    def _bind(listener: socket.socket, path: Path) -> None:
        """Only the user who serves may connect. A socket at which nobody listens any more gives way."""
        try:
            if path.is_socket() and _deserted(path):
                path.unlink()
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
        except FileExistsError as error:
            raise errors.TargetExists(f"{path} exists", hint="choose another --socket") from error
        except OSError as error:
            if path.exists():
                raise errors.TargetExists(f"{path} exists", hint="choose another --socket") from error
            raise errors.TargetError(f"no socket can be made at {path}: {error.strerror}") from error

    def _tcp_listener(self, address: str, port: int) -> socket.socket:
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, port), family=family, backlog=64)
        except OSError as error:
            raise errors.TargetError(
                f"{address}:{port} cannot be listened at: {error.strerror or error}", hint="choose another port"
            ) from error
        shown = f"[{address}]" if family == socket.AF_INET6 else address
        self._place = f"nbd://{shown}:{listener.getsockname()[1]}/{{}}"
        return listener

    def _command(self, channel: int) -> list[str]:
        filters = ["--filter=cow"] if self._order.writable else []
        readonly = [] if self._order.writable else ["--readonly"]
        own = [str(_PLUGIN), f"channel={channel}", *(_OVERLAY if self._order.writable else [])]
        return ["nbdkit", "--foreground", f"--threads={_threads()}", *readonly, *filters, "python", *own]

    def _wire(self, run: Path) -> dict[str, Any]:
        order = self._order
        removed = [str(run), *([str(self.socket)] if self.socket is not None else [])]
        copies = [
            {"folder": str(one.folder.absolute()), "cache": str(one.cache.absolute()) if one.cache else None}
            for one in order.copies
        ]
        return {
            "image": order.image,
            "copies": copies,
            "disks": list(order.disks),
            "memory": order.memory,
            "removed": removed,
        }

    def _listen(self, lines: Iterator[dict[str, Any]]) -> None:
        for line in lines:
            self._told(Trouble(error=_error(line), copy=line["copy"]))
        self._ended.set()
        if not self._closing:
            _LOGGER.error("nbdkit, which served %s, has ended", ", ".join(self.sizes))

    def _end(self) -> None:
        """Ask, then insist."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failure(self, said: int) -> errors.SourceError:
        """Why there is no answer: something is missing, or its own last words."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return errors.SourceError(f"nbdkit did not answer for {_PATIENCE:.0f} s")
        dumped = subprocess.run(
            ["nbdkit", "python", "--dump-plugin"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        found = dict(line.split("=", 1) for line in dumped.stdout.splitlines() if "=" in line)
        if dumped.returncode or "python_version" not in found:
            return errors.SourceError("serving disks needs nbdkit's plugin for Python", hint=_INSTALL)
        theirs, ours = found["python_version"].split(".")[:2], [str(part) for part in sys.version_info[:2]]
        if theirs != ours:
            return errors.SourceError(
                f"nbdkit embeds Python {'.'.join(theirs)}, Holdfast is installed for Python {'.'.join(ours)}",
                hint="install Holdfast with the distribution's own Python",
            )
        size = os.fstat(said).st_size
        words = os.pread(said, _TAIL, max(size - _TAIL, 0)).decode(errors="replace").strip().splitlines()
        return errors.SourceError(f"nbdkit ended with code {code}: {words[-1] if words else 'it said nothing'}")


_INSTALL: Final = "install the Debian packages nbdkit and nbdkit-plugin-python"


def _threads() -> int:
    said = subprocess.run(["nbdkit", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"nbdkit (\d+)\.(\d+)", said)
    return _THREADS if found is not None and tuple(map(int, found.groups())) >= _SOUND else 1


def missing() -> str | None:
    """Which package is missing to serve anything; None if nothing is."""
    if shutil.which("nbdkit") is None:
        return f"serving disks needs nbdkit ({_INSTALL})"
    dumped = subprocess.run(["nbdkit", "python", "--dump-plugin"], capture_output=True, check=False)
    return f"serving disks needs nbdkit's plugin for Python ({_INSTALL})" if dumped.returncode else None


def serve(order: Order, *, told: Callable[[Trouble], None] | None = None) -> Export:
    """Serve disks of a stored image; clients may connect when this returns.

    ``told`` hears, in a thread of its own, what goes wrong; by default that is logged. Raises what
    opening the image raises (``NotFound``, ``ImageDamaged``, ``UnitOffline``), ``SourceError`` where nbdkit or its
    plugin is missing, ``TargetError`` or ``TargetExists`` for the socket.
    """
    if order.writable and len(order.disks) != 1:
        raise ValueError("a writable export serves exactly one disk")
    return Export(order, told or _log)


def _log(trouble: Trouble) -> None:
    _LOGGER.error("%s", trouble.error)


def _deserted(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) != 0


def _lines(channel: socket.socket) -> Iterator[dict[str, Any]]:
    """What the server says, until it is gone or takes too long."""
    with channel.makefile("rb") as file, contextlib.suppress(OSError, ValueError):
        for line in file:
            yield json.loads(line)


_ERRORS: Final[Mapping[str, type[errors.HoldfastError]]] = {
    kind.__name__: kind
    for kind in (
        errors.NotFound,
        errors.UnitError,
        errors.UnitOffline,
        errors.ImageMissing,
        errors.ImageDamaged,
        errors.FormatTooNew,
    )
}


def _error(answer: Mapping[str, Any]) -> errors.HoldfastError:
    kind = _ERRORS.get(str(answer.get("code")), errors.SourceError)
    return kind(str(answer.get("message")), hint=answer.get("hint"))


def _environment(temporary: Path) -> dict[str, str]:
    """Ours without what sounds like a secret, with the packages of this Python for the one that nbdkit embeds."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith(_SECRETS)}
    return {
        **kept,
        "LC_ALL": "C",
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(_packages()),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _packages() -> Sequence[str]:
    """Where this Python finds packages, without the library that belongs to its own version."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), ""}
    beside = [str(Path(folder).parent) for folder in reconciler.__path__]
    found = [one for one in sys.path if one not in own and not one.endswith((".zip", "/lib-dynload"))]
    return list(dict.fromkeys([*found, *beside]))
