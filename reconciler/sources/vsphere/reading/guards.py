"""Reads that can be called off: a transport may hang for as long as it likes, whoever waits for it is let go.

Each read is done by a thread of its own kind, a lane, and waited for here. ``Guard.stop`` hands a reason to everybody
who waits, and to everybody who comes later. A lane whose read never ends is left behind; it keeps no process alive.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from reconciler.base import disks, extents

#: Seconds that closing a disk whose reads hang may take.
_PATIENCE: Final = 10.0

_Answer = queue.SimpleQueue[Any]
_T = TypeVar("_T")


class Guard:
    """The stop that all disks of one reading share. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[_Answer] = set()
        self._reason: BaseException | None = None

    @property
    def reason(self) -> BaseException | None:
        """Why it was stopped, None as long as it was not."""
        return self._reason

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if self._reason is not None:
            raise _again(self._reason)

    def stop(self, reason: BaseException) -> None:
        """Let everybody go; the first reason stands."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
            waiting = list(self._waiting)
        for answer in waiting:
            answer.put(_again(self._reason))

    def enter(self, answer: _Answer) -> None:
        """Somebody waits for ``answer`` from now on. Raises the reason."""
        with self._lock:
            if self._reason is None:
                self._waiting.add(answer)
                return
        self.check()

    def leave(self, answer: _Answer) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._waiting.discard(answer)


def _again(reason: BaseException) -> BaseException:
    """A reason that several threads raise, each with a traceback of its own."""
    fresh = type(reason).__new__(type(reason))
    fresh.__dict__.update(reason.__dict__)
    fresh.args = reason.args
    fresh.__cause__ = reason
    return fresh


class _Lane:
    """One thread that asks a disk."""

    def __init__(self, name: str) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], _Answer] | None] = queue.SimpleQueue()
        self.busy = False
        threading.Thread(target=self._run, name=f"lane-{name}", daemon=True).start()

    def ask(self, question: Callable[[], Any], answer: _Answer) -> None:
        self.busy = True
        self._asked.put((question, answer))

    def end(self) -> None:
        self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            question, answer = asked
            try:
                found = question()
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                found = error
            self.busy = False
            answer.put(found)


class GuardedDisk(disks.Closing):
    """A Disk whose reads end when its guard is stopped. Thread-safe."""

    def __init__(self, disk: disks.Disk, guard: Guard) -> None:
        self.name = disk.name
        self.size = disk.size
        self.sector = disk.sector
        self._disk = disk
        self._guard = guard
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._idle: list[_Lane] = []
        self._closed = False

    def extents(self) -> extents.Extents:
        """What the disk beneath knows. Raises as ``pread`` does."""
        return self._asked(self._disk.extents)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """The bytes. Raises the guard's reason as soon as there is one."""
        return self._asked(lambda: self._disk.pread(offset, length))

    def _asked(self, question: Callable[[], _T]) -> _T:
        answer: _Answer = queue.SimpleQueue()
        self._guard.enter(answer)
        try:
            lane = self._lane()
            lane.ask(question, answer)
            found = answer.get()
        finally:
            self._guard.leave(answer)
        self._done(lane)
        if isinstance(found, BaseException):
            raise found
        return cast(_T, found)

    def _lane(self) -> _Lane:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.name} is closed")
            if self._idle:
                return self._idle.pop()
            lane = _Lane(self.name)
            self._lanes.append(lane)
            return lane

    def _done(self, lane: _Lane) -> None:
        with self._lock:
            # One that still reads was let down; it must not be given more to do.
            if not lane.busy:
                self._idle.append(lane)

    def close(self) -> None:
        """Close the disk beneath; where its reads hang, as far as it lets itself be closed. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            lanes, hung = self._lanes, any(lane.busy for lane in self._lanes)
        for lane in lanes:
            lane.end()
        if not hung:
            self._disk.close()
            return
        closing = threading.Thread(target=self._disk.close, name=f"close-{self.name}", daemon=True)
        closing.start()
        closing.join(_PATIENCE)
        if closing.is_alive():
            raise TimeoutError(f"{self.name}: its reader does not let go")
