"""A shell that looks after a child process: when we are gone, also by kill -9, so is the child.

For programs that would go on without us: servers of disks (``sources.nbd.servers``), a started machine
(``operations.emulators``). The kernel's own signal at a parent's death does not serve: it is forgotten where a program
changes its user, and follows the thread that started it rather than the process.

A child is begun as a shell that waits at ``GATE`` until ``admit`` has somebody look after it: were we killed in
between, it would find its standard input closed, and end.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Final

# Waits at a pipe of which this process holds the other end. When that closes, a process of this number that began at
# this tick is the server still, which has outlived its master.
_SCRIPT: Final = (
    'read -r _; read -r now <"/proc/$1/stat" && set -- "$1" "$2" ${now##*) } && [ "$2" = "${22}" ] && kill -KILL "$1"'
)

#: The first words of a child's shell, whose standard input is a pipe from us.
GATE: Final = "read -r _ || exit 1; "


def admit(child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Let a child that waits at its gate begin; a shell that kills it when we are gone. Once the child has ended,
    ``communicate()`` ends that.

    Raises ``OSError`` where no shell can be started, or the child is gone already.
    """
    if child.stdin is None:
        raise ValueError("a child that waits at its gate has a pipe to its standard input")
    with contextlib.ExitStack() as failing:
        with child.stdin as gate:
            guard = _guard(child.pid)
            failing.callback(guard.communicate)
            gate.write(b"\n")
        failing.pop_all()
    return guard


def _guard(pid: int) -> subprocess.Popen[bytes]:
    began = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    return subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "sh", str(pid), began],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
