"""One ``qemu-nbd`` process and a few connections to it: how disks that are not raw are read and written.

The listening socket is made here and handed to the server, and the connections are made before it starts: there is no
moment at which somebody else could connect, and no path that outlives a crash. When the last connection closes, also
by kill -9 of this process, the server ends by itself. A connection serves one thread at a time, so ``connection()``
lends one out of a pool. A server that answers nothing is cut off, so no call here waits for ever.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.sources.diskimages import bindings

#: Seconds that one request may take before the server counts as hung: longer than a storage failover.
PATIENCE = 300.0
#: Seconds that a server may take to end once its last connection has closed.
GRACE = 30.0
_TAIL = 2000
# The shell puts the listening socket where socket activation wants it: number 3, named by the server's own pid.
_LAUNCHER = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'


class ServerFailed(Exception):
    """The server did not start, refused a request, or hung. Callers say which disk or target that concerns."""

    def __init__(self, message: str, number: int = errno.EIO) -> None:
        super().__init__(message)
        self.message = message
        self.number = number


def block_node(node: Mapping[str, Any]) -> str:
    """The spelling of a tree of block drivers that qemu takes as a file name, free of any guessing of formats."""
    return "json:" + json.dumps(node)


def without_node(line: str) -> str:
    """What a tool says, without its name and without the tree of drivers that it repeats."""
    return line.rpartition("}': ")[2].removeprefix("qemu-nbd: ").removeprefix("qemu-img: ").strip()


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


class NbdServer:
    """A running ``qemu-nbd`` with ``connections`` handles. Thread-safe; ``close`` is idempotent."""

    def __init__(
        self,
        node: Mapping[str, Any],
        arguments: Sequence[str],
        *,
        connections: int = 4,
        contexts: Sequence[str] = ("base:allocation",),
        patience: float = PATIENCE,
        grace: float = GRACE,
    ) -> None:
        """Start serving ``node``. Raises ``ServerFailed`` with the server's own words, leaving nothing behind."""
        self._nbd = bindings.libnbd()
        self._patience, self._grace = patience, grace
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
        try:
            listener, clients = _connected_pairs(connections)
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        except OSError as error:
            raise ServerFailed(f"no connection to qemu-nbd can be made: {error.strerror or error}") from error
        try:
            command = ["qemu-nbd", *arguments, f"--shared={connections}", block_node(node)]
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, "sh", *command],
                stdin=listener.fileno(),
                stdout=self._said,
                stderr=self._said,
                # An interrupt typed at the terminal is for Holdfast, which then ends its servers in order.
                start_new_session=True,
            )
        except OSError as error:
            for client in clients:
                client.close()
            self._said.close()
            raise ServerFailed(f"qemu-nbd cannot be started: {error.strerror}") from error
        finally:
            listener.close()
        self._watch = threading.Thread(target=self._cut_when_hung, name="nbd-watch", daemon=True)
        self._watch.start()
        self._negotiate(clients, contexts)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self._process.pid)

    def _negotiate(self, clients: list[socket.socket], contexts: Sequence[str]) -> None:
        try:
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
            return ServerFailed(f"qemu-nbd did not answer for {self._patience:.0f} s", errno.ETIMEDOUT)
        said = self._last_words()
        return ServerFailed(said or str(error.string), error.errnum or errno.EIO)

    def _last_words(self) -> str:
        size = os.fstat(self._said.fileno()).st_size
        text = os.pread(self._said.fileno(), _TAIL, max(size - _TAIL, 0)).decode(errors="replace")
        return "; ".join(without_node(line) for line in text.splitlines() if line.strip())

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

    def _end(self) -> None:
        """Wait for the process, then insist; a server that was never reached does not end by itself."""
        if not self._handles:
            self._process.kill()
        for insist in (None, self._process.terminate, self._process.kill):
            if insist is not None:
                insist()
            try:
                self.exit_code = self._process.wait(self._grace)
            except subprocess.TimeoutExpired:
                continue
            return


def file_driver(path: Path) -> str:
    """The name of qemu's driver for what ``path`` is."""
    return "host_device" if path.is_block_device() else "file"
