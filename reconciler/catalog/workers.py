"""Which process works on a job, and whether it still lives.

A worker is the text ``host:pid:start:token``; ``start`` holds the boot of the machine and the start time of the process
within it, because process ids come around again. On its own host a dead process is known at once, even after
``kill -9``; elsewhere only its silence tells, which ``jobs.lose_dead`` judges by the heartbeat.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path


def this() -> str:
    """A new name for this process as a worker; every call has a token of its own."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start(os.getpid())}:{secrets.token_hex(4)}"


def of(process: int) -> str:
    """Another process of this host, named so that ``alive`` can tell it from a later one with its number."""
    return f"{socket.gethostname()}:{process}:{_start(process)}:-"


def local(worker: str) -> bool:
    """Whether the worker runs, or ran, on this host."""
    return worker.rsplit(":", 3)[0] == socket.gethostname()


def alive(worker: str) -> bool:
    """Whether the worker's process exists on this host; False for a text that names no process of this host."""
    parts = worker.rsplit(":", 3)
    return len(parts) == 4 and local(worker) and parts[1].isdigit() and _start(int(parts[1])) == parts[2]


def host(worker: str) -> str:
    """The host's name in a worker's text."""
    return worker.rsplit(":", 3)[0]


def pid(worker: str) -> int:
    """The process id in a worker's text, 0 where there is none."""
    part = worker.rsplit(":", 3)[1:2]
    return int(part[0]) if part and part[0].isdigit() else 0


def _start(process: int) -> str:
    """Boot and start time of a process, empty if it does not exist or has ended and waits for its parent."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The second field is the program's name in brackets, which may hold spaces and brackets itself.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{boot[:8]}.{fields[19]}"
