"""Servers behind one connection: their words reach the user, they never outlive us, and one that hangs is cut off."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler.sources.nbd import requests, servers

pytestmark = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs the Debian package nbdkit")

MIB = 1 << 20
MEMORY = ["nbdkit", "-r", "-s", "memory", "8M"]
HANGING = ["nbdkit", "-r", "-s", "--filter=delay", "memory", "8M", "rdelay=3600"]


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends in time; one that nobody has waited for yet counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def guards(pid: int) -> list[int]:
    """Shells that watch over a server."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if words[:2] == [b"/bin/sh", b"-c"] and words[4:5] == [str(pid).encode()]:
                found.append(int(entry.name))
    return found


def test_a_single_connection_is_read_and_the_server_ends_with_it() -> None:
    server = servers.NbdServer(MEMORY, single=True)
    (guard,) = guards(server.pid)
    with server.connection() as handle:
        assert handle.get_size() == 8 * MIB
        assert requests.read(handle, 511, 1026, block=512, size=8 * MIB, largest=1024) == bytes(1026)
        areas = requests.areas(handle, "base:allocation", 8 * MIB, lambda flags: not flags & requests.READS_AS_ZERO)
        assert areas == ()
    server.close()
    server.close()
    assert server.exit_code == 0
    assert gone(server.pid) and gone(guard)


def test_a_server_that_hangs_is_cut_off_and_nobody_waits_ten_minutes() -> None:
    server = servers.NbdServer(HANGING, single=True, patience=0.5, grace=0.5)
    began = time.monotonic()
    with pytest.raises(servers.ServerFailed, match="nbdkit did not answer for 0 s"), server.connection() as handle:
        handle.pread(512, 0)
    server.close()
    assert time.monotonic() - began < 5
    assert gone(server.pid)


def test_closing_while_a_read_hangs_takes_no_longer_than_grace() -> None:
    server = servers.NbdServer(HANGING, single=True, grace=0.5)
    (guard,) = guards(server.pid)

    def read() -> None:
        with pytest.raises(servers.ServerFailed), server.connection() as handle:
            handle.pread(512, 0)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        time.sleep(0.2)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 4
        reading.result(1)
    assert gone(server.pid) and gone(guard)


CHILD = """
import sys, threading
from reconciler.sources.nbd import servers
server = servers.NbdServer(sys.argv[1:], single="-s" in sys.argv)
def read():
    with server.connection() as handle:
        handle.pread(512, 0)
threading.Thread(target=read).start()
print(server.pid, flush=True)
threading.Event().wait(60)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("command", [MEMORY, HANGING])
def test_a_server_dies_with_us_even_if_it_hangs(command: list[str], kind: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, *command], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    server = int(child.stdout.readline())
    until = time.monotonic() + 5
    while not (watching := guards(server)) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(watching) == 1
    time.sleep(0.2)
    os.kill(child.pid, kind)
    child.wait()
    child.stdout.close()
    assert gone(server) and gone(watching[0])


UNGUARDED = """
import os, signal, subprocess
from reconciler.base import guards
child = subprocess.Popen(["/bin/sh", "-c", guards.GATE + "exec sleep 600"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_does_not_begin_where_nobody_looks_after_it_yet() -> None:
    killed = subprocess.run([sys.executable, "-c", UNGUARDED], stdout=subprocess.PIPE, check=False, timeout=20)
    assert killed.returncode == -signal.SIGKILL and gone(int(killed.stdout))


def test_the_servers_last_words_are_the_error() -> None:
    command = ["sh", "-c", "echo 'nbdkit: error: locked by another' >&2; exit 1"]
    with pytest.raises(servers.ServerFailed, match="error: locked by another") as caught:
        servers.NbdServer(command, single=True)
    assert "sh" not in caught.value.message
    with pytest.raises(servers.ServerFailed, match="no-such-program"):
        servers.NbdServer(["no-such-program"], single=True)


def test_a_lent_descriptor_is_the_servers_alone() -> None:
    read, write = os.pipe()
    os.write(write, b"said in private")
    os.close(write)
    script = f"cat <&{read} >&2" if read < 10 else f"cat /dev/fd/{read} >&2"
    with pytest.raises(servers.ServerFailed, match="said in private"):
        servers.NbdServer(["sh", "-c", script], single=True, lend=[read])
    os.close(read)
