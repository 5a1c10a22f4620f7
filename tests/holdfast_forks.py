"""Processes of ``holdfast`` without the half second that Python spends on loading it.

A server loads every command once and then forks: the child gets its own folder, environment, arguments, standard files
and exit code, runs the command's entry point and ends as any Python process does. ``holdfast_command`` uses it for
commands that run to their end; whatever is about starting, signals and death starts the installed script. One server
to a test process; it ends with it.

Run as a program this file is the server. A request is one message: JSON, and four descriptors (where to tell how it
ended, stdin, stdout, stderr).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Bytes a request may take, and a pipe's capacity: longer texts are for a real process.
LONGEST, PIPE = 150_000, 60_000
#: Bytes of each number that is told: a process, then its exit code.
WORD = 32
#: What Python and the command line read when they start.
AT_START = ("PYTHON", "LANG", "LC_", "LD_", "_HOLDFAST_COMPLETE")


def fits(variables: Mapping[str, str], text: str | None) -> bool:
    """Whether a fork would behave as a process that was started with these additional variables and this stdin."""
    return not any(name.startswith(AT_START) for name in variables) and len(text or "") < PIPE


def run(
    program: str,
    arguments: Sequence[str],
    *,
    folder: Any,
    environment: Mapping[str, str],
    text: str | None,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` with ``capture_output`` gives; raises ``TimeoutExpired`` like it."""
    order = json.dumps([[program, *arguments], str(folder), dict(environment)]).encode()
    assert len(order) < LONGEST
    ours, theirs = socket.socketpair()
    stdin, stdout, stderr = (os.pipe() for _ in range(3))
    _server().send(order, [theirs.fileno(), stdin[0], stdout[1], stderr[1]])
    theirs.close()
    for descriptor in (stdin[0], stdout[1], stderr[1]):
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
        os.write(stdin[1], (text or "").encode())
    os.close(stdin[1])
    with ours, open(stdout[0], "rb") as out, open(stderr[0], "rb") as err:
        pid = int(ours.recv(WORD))
        said = _listen([out, err], time.monotonic() + timeout)
        if said is None:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired([program, *arguments], timeout)
        code = int(ours.recv(WORD))
    return subprocess.CompletedProcess([program, *arguments], code, *said)


def _listen(files: Sequence[Any], deadline: float) -> list[str] | None:
    """All that is said until every writer has gone; None once it is too late."""
    said: dict[Any, list[bytes]] = {file: [] for file in files}
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                said[key.fileobj].append(data)
                if not data:
                    selector.unregister(key.fileobj)
    return [b"".join(parts).decode() for parts in said.values()]


class _Server:
    """The server of this process."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
            )
        atexit.register(self._close)

    def send(self, order: bytes, descriptors: Sequence[int]) -> None:
        """Have a process begin."""
        with self._lock:
            socket.send_fds(self._control, [order], descriptors)

    def _close(self) -> None:
        self._control.close()
        self._process.wait(10)


_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        return _started(os.getpid())


@functools.cache
def _started(pid: int) -> _Server:
    # A fork of this process has another server, of its own.
    return _Server()


# -- the server --------------------------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> list[str]:
    """Fork for every order and tell how each child ended; returns, with its arguments, in the children."""
    listeners: dict[int, int] = {}
    awake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([control, awake], [], [])
        if awake in ready:
            os.read(awake, 1 << 16)
            for pid in tuple(listeners):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _tell(listeners[pid], os.waitstatus_to_exitcode(status))
                    os.close(listeners.pop(pid))
        if control not in ready:
            continue
        order, descriptors, _, _ = socket.recv_fds(control, LONGEST, 4)
        if not order:
            os._exit(0)
        listener, *files = descriptors
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (control.detach(), awake, alarm, listener, *listeners.values()):
                os.close(descriptor)
            return _become(order, files)
        listeners[pid] = listener
        _tell(listener, pid)
        for descriptor in files:
            os.close(descriptor)


def _tell(listener: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(listener, str(number).encode().ljust(WORD))


def _become(order: bytes, files: Sequence[int]) -> list[str]:
    """Take what an order gives: files, folder, environment; its arguments."""
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    arguments, folder, environment = json.loads(order)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    # The one module that reads its variables when it is loaded.
    importlib.reload(crashes)
    return list(arguments)


def _end(end: SystemExit) -> None:
    """Do what Python does at its end, but leave the memory as it is: to take all apart copies every page of it."""
    if not isinstance(end.code, int | None):
        raise end
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code or 0)


if __name__ == "__main__":
    from reconciler.base import crashes
    from reconciler.cli import commands, main

    grouped = [command for group in commands.GROUPS.values() for command in group.values()]
    alone = [command for name, command in commands.COMMANDS.items() if name not in commands.GROUPS]
    for name in sorted({command.module for command in (*alone, *grouped)}):
        commands.load(name)
    # What the first apply of an estate loads.
    for name in ("alembic.command", "alembic.config"):
        importlib.import_module(name)
    # What is loaded stays: a child that looked through it for garbage would copy every page.
    gc.collect()
    gc.freeze()
    # A thread would not be there in the child.
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        main.main()
    except SystemExit as end:
        _end(end)
