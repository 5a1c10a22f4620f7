"""One timed command: wall and CPU seconds, peak memory of its processes, bytes read from the device.

The benchmarks time every tool through ``timed``, so that all are measured alike: caches dropped first where root, on
the same two cores, and with what was written on the device before the clock stops. Memory is what the command and all
its children hold for themselves (RssAnon), sampled; CPU and device reads come from the kernel's own accounts.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: Seconds between two looks at a command's memory.
INTERVAL = 0.05
#: Whether a command begins with nothing in the host's memory; a run that judges no speed spares the host that.
cold = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a command came to."""

    #: Seconds.
    wall: float
    user: float
    system: float
    #: Peak anonymous memory of all its processes together, in bytes.
    memory: int
    #: Bytes that the device was asked for.
    read: int


def say(message: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def two_cores() -> None:
    """Bind this process, and what it starts, to two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def drop_caches() -> None:
    """Make the next command read from the device, as far as this user may."""
    if not cold:
        return
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def timed(
    name: str,
    command: Sequence[str | Path],
    *,
    onto: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Reading:
    """Run a command that must succeed; the clock stops when the file system of ``onto`` is synced."""
    drop_caches()
    words = list(map(str, command))
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env={**os.environ, **(env or {})}
        )
        peak = _Peak(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        subprocess.run(["sync", "-f", onto], check=True)
        wall = time.monotonic() - started
        memory = peak.stop()
        if process.returncode:
            output.seek(0)
            raise SystemExit(
                f"bench: {name} failed with {process.returncode}: {' '.join(words)}\n{output.read()[-4000:]}"
            )
    found = Reading(wall=wall, user=used.ru_utime, system=used.ru_stime, memory=memory, read=used.ru_inblock * 512)
    say(f"{name}: {wall:.1f} s, user {found.user:.1f} s, system {found.system:.1f} s, {memory >> 20} MiB")
    return found


class _Peak:
    """The greatest anonymous memory of a process and its descendants, looked at in the background."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most, self._ended = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._most = max(self._most, sum(map(_anonymous, _family(self._pid))))

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._most


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found.extend(map(int, path.read_text().split()))
            except OSError:
                continue  # it ended between the two looks
    return found


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # it ended between the two looks
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))


def median(readings: Sequence[Reading]) -> Reading:
    """Field by field."""
    fields = {one.name: [getattr(found, one.name) for found in readings] for one in dataclasses.fields(Reading)}
    return Reading(**{name: statistics.median(values) for name, values in fields.items()})


def rate(work: Callable[[], int], repeat: int = 3) -> float:
    """Bytes a second of ``work``, which returns the bytes it did: the median of ``repeat``."""
    found = []
    for _ in range(repeat):
        drop_caches()
        started = time.monotonic()
        done = work()
        found.append(done / (time.monotonic() - started))
    return statistics.median(found)


def folder_bytes(folder: Path, without: str = "") -> int:
    """Bytes of all files below, but for one folder."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and (not without or path.relative_to(folder).parts[0] != without)
    )


def pause() -> None:
    """A moment."""
    time.sleep(INTERVAL)
