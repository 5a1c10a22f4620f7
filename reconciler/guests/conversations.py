"""One child process that parses one disk: started, answered, watched and ended here.

The parsers are C code on hostile input, so they run in a process of their own with limits on memory and processor time,
without rights, files or a network they need. It knows the disk only through this conversation: it asks for ranges and
gets their bytes, so that every kind of Disk can be parsed. ``scanning`` and ``listings`` take what it reports; what is
in a frame they check through ``receipts``, the frame itself and every range asked for are checked here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from reconciler.base import disks, errors, extents, meters
from reconciler.guests import scans, wires

#: Seconds between looks at the clock and at the meter while the child is silent.
_TICK = 0.25
#: Bytes of the child's last words that are quoted.
_WORDS = 300
#: Ranges that a command line has room for.
_RANGES = 2_000
#: Sectors a disk may have; anything else is taken as 512.
_SECTORS = (512, 1024, 2048, 4096)


class Failed(Exception):
    """The child died, broke the rules or ran out of its limits; the message says which."""


class Conversation:
    """A child, from its start to its end. A context manager; leaving it ends the child."""

    def __init__(
        self,
        disk: disks.Disk,
        *,
        limits: scans.Limits,
        meter: meters.Meter | None,
        runs: bool = False,
        space: bool = False,
        files: bool = False,
        quiesced: bool = False,
        serve: bool = False,
        within: extents.Extents | None = None,
    ) -> None:
        """``within``: the runs of files that changed elsewhere alone are not wanted; None where all are.

        ``serve``: the child goes on behind its first ``END`` and answers what ``ask`` asks.
        """
        self._disk = disk
        self._limits = limits
        self._meter = meter
        self._served = 0
        self._deadline = time.monotonic() + limits.seconds
        options = {
            "size": disk.size,
            "sector": disk.sector if disk.sector in _SECTORS else 512,
            "limits": dataclasses.asdict(limits),
            "runs": runs,
            "space": space,
            "files": files,
            "quiesced": quiesced,
            "serve": serve,
            "within": None if within is None else _coarse(within),
        }
        self._socket, theirs = socket.socketpair()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed with the conversation
        command = [sys.executable, "-I", "-m", "reconciler.guests.parsers", str(theirs.fileno()), json.dumps(options)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={},
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            self._words.close()
            raise
        finally:
            theirs.close()
        self._socket.settimeout(_TICK)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, whatever it is doing. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._words.close()

    @property
    def process(self) -> int:
        """The child's process id."""
        return self._process.pid

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of every frame up to ``END``; reads are answered on the way and not handed out.

        Time that the caller spends on a frame does not count against the child. Raises ``Failed``, ``Cancelled``, and
        what ``pread`` raises.
        """
        while True:
            self._check()
            kind, length, value = wires.HEADER.unpack(self._receive(wires.HEADER.size))
            if kind == wires.READ:
                self._answer(value, length)
                continue
            if length > wires.MOST:
                raise Failed(f"its reader sent a frame of {length} bytes")
            payload = self._receive(length)
            if kind == wires.END:
                return
            start = time.monotonic()
            yield kind, payload
            self._deadline += time.monotonic() - start

    def ask(self, *request: object) -> Iterator[tuple[int, bytes]]:
        """The frames that answer a request, up to their ``END``; limits of time and reading count for each request.

        An answer that is not taken to its end leaves a conversation that is of no use any more. Raises as ``frames``.
        """
        self._deadline = time.monotonic() + self._limits.seconds
        self._served = 0
        self._send(wires.pack_json(wires.REQUEST, list(request)))
        return self.frames()

    def _answer(self, offset: int, length: int) -> None:
        if not 0 < length <= wires.MOST_READ or offset < 0 or offset + length > self._disk.size:
            raise Failed(f"its reader asked for {length} bytes at {offset}")
        self._served += length
        if self._served > self._limits.read:
            raise Failed(f"its reader read more than {self._limits.read} bytes")
        data = self._disk.pread(offset, length)
        if len(data) != length:
            raise errors.SourceError(f"disk {self._disk.name}: {len(data)} of {length} bytes at {offset} were read")
        self._send(data)

    def _send(self, data: disks.Buffer) -> None:
        view = memoryview(data)
        while view:
            try:
                sent = self._socket.send(view)
            except TimeoutError:
                self._check()
            except OSError as error:
                raise Failed(self._end()) from error
            else:
                view = view[sent:]

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                count = self._socket.recv_into(view)
            except TimeoutError:
                self._check()
                continue
            except OSError as error:
                raise Failed(self._end()) from error
            if not count:
                raise Failed(self._end())
            view = view[count:]
        return bytes(data)

    def _check(self) -> None:
        if self._meter is not None:
            self._meter.check()
        if time.monotonic() > self._deadline:
            raise Failed(f"its reader took longer than {self._limits.seconds:.10g} seconds")

    def _end(self) -> str:
        """Why the child is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.returncode
        if code is None:
            return "its reader closed the conversation"
        if code == -signal.SIGXCPU:
            return f"its reader used more than {self._limits.processor} seconds of processor time"
        if code < 0:
            return f"its reader was ended by signal {-code} ({signal.strsignal(-code)})"
        size = self._words.seek(0, 2)
        self._words.seek(max(size - _WORDS, 0))
        lines = self._words.read(_WORDS).decode("ascii", "replace").split("\n")
        words = next((line for line in reversed(lines) if line.strip()), "no last words")
        return f"its reader ended with code {code}: {''.join(c if c.isprintable() else '?' for c in words)}"


def _coarse(ranges: extents.Extents) -> extents.Extents:
    """Ranges that hold all of ``ranges``, few enough for a command line."""
    gap = 1 << 16
    while len(ranges) > _RANGES:
        wide = extents.normalise((offset, length + gap) for offset, length in ranges)
        ranges = tuple((offset, length - gap) for offset, length in wide)
        gap *= 2
    return ranges
