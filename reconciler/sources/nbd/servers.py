"""One NBD server process and a few connections to it: how disks that are not raw are read and written.

The connections are made before the server starts: there is no moment at which somebody else could connect, and no path
that outlives a crash. ``qemu-nbd`` is handed the listening socket that they wait at, as by socket activation, and ends
with the last of them. ``nbdkit`` would lose that socket where its plugin executes it anew, as vddk does; it is started
for one connection, which is its standard input and output. When this process ends, also by kill -9, so does the server:
by itself, and where it hangs or waits for more by a shell that looks after it. A connection serves one thread at a
time, so ``connection()`` lends one out of a pool. A server that answers nothing is cut off: no call waits for ever.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from reconciler.base import guards
from reconciler.sources.nbd import bindings

#: Seconds that one request may take before the server counts as hung: longer than a storage failover.
PATIENCE = 300.0
#: Seconds that a server may take to end once its last connection has closed.
GRACE = 30.0
_TAIL = 2000
_SECRETS: Final = ("PASSWORD", "PASSPHRASE", "SECRET", "TOKEN", "_KEY")
# The shell puts the listening socket where socket activation wants it: number 3, named by the server's own pid.
_ACTIVATED: Final = guards.GATE + 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&1 </dev/null >&2'
_SINGLE: Final = guards.GATE + 'exec "$@" <&1'


class ServerFailed(Exception):
    """The server did not start, refused a request, or hung. Callers say which disk or target that concerns."""

    def __init__(self, message: str, number: int = errno.EIO, *, mute: bool = False) -> None:
        """``mute``: it said nothing, neither crashed nor hung, and there is no connection to it."""
        super().__init__(message)
        self.message = message
        self.number = number
        self.mute = mute


def _connected_pairs(count: int) -> tuple[socket.socket, list[socket.socket]]:
    """A listening socket, and ``count`` connections waiting in its backlog."""
    listener = socket.socket(socket.AF_UNIX)
    clients: list[socket.socket] = []
    try:
        with tempfile.TemporaryDirectory(prefix="holdfast-nbd-") as folder:
            # Addresses of sockets are short; the way through /proc is, wherever temporary files lie.
            opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                address = f"/proc/self/fd/{opened}/socket"
                listener.bind(address)
                listener.listen(count)
                for _ in range(count):
                    clients.append(socket.socket(socket.AF_UNIX))
                    clients[-1].connect(address)
            finally:
                os.close(opened)
    except BaseException:
        for end in (listener, *clients):
            end.close()
        raise
    return listener, clients


def _connected_pair() -> tuple[socket.socket, list[socket.socket]]:
    """The server's end of one connection, and ours."""
    ours, theirs = socket.socketpair()
    return theirs, [ours]


def _environment() -> dict[str, str]:
    """Ours, in plain English, without what sounds like a secret: no server has a use for one."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith(_SECRETS)}
    return {**kept, "LC_ALL": "C"}


class NbdServer:
    """A running server with ``connections`` handles. Thread-safe; ``close`` is idempotent."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        single: bool = False,
        lingers: bool = False,
        lend: Sequence[int] = (),
        connections: int = 4,
        contexts: Sequence[str] = ("base:allocation",),
        patience: float = PATIENCE,
        grace: float = GRACE,
        words: Callable[[str], str] = str.strip,
        started: Callable[[int], None] | None = None,
    ) -> None:
        """Start ``command``. Raises ``ServerFailed`` with the server's own words, leaving nothing behind.

        ``single``: it serves one connection, over its standard input and output, instead of taking part in socket
        activation; ``lingers``: it waits for more when its last connection has closed, and is told to end; ``lend``:
        descriptors that it inherits under the same numbers; ``words``: what to quote of a line; ``started``: told the
        server's process id before anything is asked of it.
        """
        self._nbd = bindings.libnbd()
        self._program = Path(command[0]).name
        self._patience, self._grace, self._words = patience, grace, words
        self._lingers = lingers
        #: How the server ended, once it is closed: 0 means that it closed its files in order.
        self.exit_code: int | None = None
        self._pool: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._handles: list[Any] = []
        self._cutters: list[socket.socket] = []
        self._deadlines: dict[int, float] = {}
        self._closed = threading.Event()
        self._hung = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes]
        self._guard: subprocess.Popen[bytes] | None = None
        clients = self._start(command, single=single, lend=lend, connections=1 if single else connections)
        self._watch = threading.Thread(target=self._cut_when_hung, name="nbd-watch", daemon=True)
        self._watch.start()
        self._negotiate(clients, contexts, started)

    def _start(
        self, command: Sequence[str], *, single: bool, lend: Sequence[int], connections: int
    ) -> list[socket.socket]:
        """The server's process and our ends of the connections."""
        with contextlib.ExitStack() as failing:
            try:
                theirs, clients = _connected_pair() if single else _connected_pairs(connections)
                for end in clients:
                    failing.callback(end.close)
                with theirs:
                    self._said = failing.enter_context(tempfile.TemporaryFile())
                    self._process = subprocess.Popen(
                        ["/bin/sh", "-c", _SINGLE if single else _ACTIVATED, "sh", *command],
                        stdin=subprocess.PIPE,
                        stdout=theirs.fileno(),
                        stderr=self._said,
                        pass_fds=tuple(lend),
                        env=_environment(),
                        # An interrupt typed at the terminal is for Holdfast, which then ends its servers in order.
                        start_new_session=True,
                    )
                failing.callback(self._process.wait)
                failing.callback(self._process.kill)
                # One that ends with its last connection waits for ever if we die before it has met its first.
                self._guard = guards.admit(self._process)
            except OSError as error:
                raise ServerFailed(f"{self._program} cannot be started: {error.strerror or error}") from error
            failing.pop_all()
            return clients

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self._process.pid)

    def _negotiate(
        self, clients: list[socket.socket], contexts: Sequence[str], started: Callable[[int], None] | None
    ) -> None:
        try:
            if started is not None:
                started(self.pid)
            for client in clients:
                handle = self._nbd.NBD()
                for context in contexts:
                    handle.add_meta_context(context)
                # A second reference to the same connection: shutting it down ends a call that would wait for ever.
                self._cutters.append(client.dup())
                with self._watched(self._patience):
                    handle.connect_socket(client.detach())
                self._handles.append(handle)
                self._pool.put(handle)
        except self._nbd.Error as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            failure = self._failure(error)
            failure.mute = not (self._hung or self._last_words() or (self._process.returncode or 0) < 0)
            self.close()
            raise failure from error
        except BaseException:
            self.close()
            raise
        finally:
            for client in clients:
                client.close()

    @contextlib.contextmanager
    def _watched(self, limit: float) -> Iterator[None]:
        token = threading.get_ident()
        self._deadlines[token] = time.monotonic() + limit
        try:
            yield
        finally:
            self._deadlines.pop(token, None)

    def _cut_when_hung(self) -> None:
        while not self._closed.wait(min(1.0, self._patience / 4)):
            if min(list(self._deadlines.values()), default=math.inf) < time.monotonic():
                self._hung = True
                self._cut()
                return

    def _cut(self) -> None:
        for cutter in self._cutters:
            with contextlib.suppress(OSError):
                cutter.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def _failure(self, error: Any) -> ServerFailed:
        if self._hung:
            return ServerFailed(f"{self._program} did not answer for {self._patience:.0f} s", errno.ETIMEDOUT)
        with self._lock:
            # Whoever closes it holds the lock until all is closed, what the server said with it.
            if self._closed.is_set():
                return ServerFailed("the disk is closed", errno.EBADF)
            said = self._last_words()
        return ServerFailed(said or str(error.string), error.errnum or errno.EIO)

    def _last_words(self) -> str:
        size = os.fstat(self._said.fileno()).st_size
        text = os.pread(self._said.fileno(), _TAIL, max(size - _TAIL, 0)).decode(errors="replace")
        lines = (self._words(line) for line in text.splitlines() if line.strip())
        return "; ".join(line for line in dict.fromkeys(lines) if line)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """A handle for this thread alone, until the block ends. Raises ``ServerFailed`` for what the server refuses."""
        handle = self._borrow()
        try:
            with self._watched(self._patience):
                yield handle
        except self._nbd.Error as error:
            raise self._failure(error) from error
        finally:
            self._pool.put(handle)

    def _borrow(self) -> Any:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Empty):
                return self._pool.get(timeout=1.0)
        raise ServerFailed("the disk is closed", errno.EBADF)

    def close(self) -> None:
        """Close every connection and wait for the server to end; one that does not is killed."""
        with self._lock:
            if self._closed.is_set():
                return
            for handle in self._handles:
                # A server that is already gone has nothing left to say goodbye to.
                with contextlib.suppress(self._nbd.Error), self._watched(min(self._grace, self._patience)):
                    handle.shutdown()
            self._closed.set()
            self._watch.join()
            for cutter in self._cutters:
                cutter.close()
            self._end()
            self._handles.clear()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._pool.get_nowait()
            self._said.close()
            if self._guard is not None:
                # The server is gone, and so is what it would look for.
                self._guard.communicate()

    def _end(self) -> None:
        """Wait for the process, then insist; a server that was never reached does not end by itself."""
        if not self._handles:
            # With what it may have left in the background, where it serves nobody, or everybody.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self._lingers:
            self._process.terminate()
        for insist in (None, self._process.terminate, self._process.kill):
            if insist is not None:
                insist()
            try:
                self.exit_code = self._process.wait(self._grace)
            except subprocess.TimeoutExpired:
                continue
            return
