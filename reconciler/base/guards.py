"""A shell that looks after a child process: when we are gone, also by kill -9, so is the child.

For programs that would go on without us: servers of disks (``sources.nbd.servers``), a started machine
(``operations.emulators``). The kernel's own signal at a parent's death does not serve: it is forgotten where a program
changes its user, and follows the thread that started it rather than the process.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

# Waits at a pipe of which this process holds the other end. When that closes, a process of this number that began at
# this tick is the server still, which has outlived its master.
_SCRIPT: Final = (
    'read -r _; read -r now <"/proc/$1/stat" && set -- "$1" "$2" ${now##*) } && [ "$2" = "${22}" ] && kill -KILL "$1"'
)


def guard(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills this child of ours when we are gone. Once the child has ended, ``communicate()`` ends it.

    Raises ``OSError`` where no shell can be started, or the child is gone already.
    """
    began = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    return subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "sh", str(pid), began],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
