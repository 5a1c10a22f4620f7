"""A client of QEMU's machine protocol (QMP): commands, their answers, and what happened meanwhile.

One JSON value a line, over a socket that QEMU was given when it started. ``emulators`` is the only caller; apart, since
it knows the protocol and nothing of machines. What comes from QEMU may have been shaped by a hostile guest: lines have
a limit, and nothing is taken for granted that was not checked.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

#: Bytes of one line; the longest that we ask for has a few hundred.
_LINE: Final = 1 << 20
#: Events kept until somebody takes them; older ones are let go.
_EVENTS: Final = 256
#: Seconds between checks whether anybody still wants the answer.
_TICK: Final = 0.25


class Refused(Exception):
    """QEMU answered with an error, closed the connection, or said nothing in time; the message says which."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened in the machine."""

    #: Such as ``SHUTDOWN``.
    name: str
    #: As QEMU sent it.
    data: Mapping[str, Any]


class Source(Protocol):
    """What has a descriptor that can be waited at."""

    def fileno(self) -> int:
        """Its number, of any size."""


def wait(sources: Iterable[Source], seconds: float, *, writing: bool = False) -> bool:
    """Whether one of them can be read, or written, or has ended, within ``seconds``."""
    poll = select.poll()
    for source in sources:
        poll.register(source.fileno(), select.POLLOUT if writing else select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Client:
    """One connection, used by one thread. ``close`` is idempotent."""

    def __init__(self, connection: socket.socket, check: Callable[[], None]) -> None:
        """``connection``: our end of a stream; it is closed with the client. ``check`` is called while we wait, and
        ends that by raising.
        """
        self._socket = connection
        self._check = check
        self._socket.setblocking(False)
        self._buffer = bytearray()
        self._events: collections.deque[Event] = collections.deque(maxlen=_EVENTS)
        self._answers: collections.deque[dict[str, Any]] = collections.deque(maxlen=_EVENTS)
        self._ended = False

    def fileno(self) -> int:
        """For ``wait``: there may be an event."""
        return self._socket.fileno()

    def greet(self, patience: float) -> None:
        """Wait for QEMU's greeting and leave its negotiation; it answers nothing else before. Raises ``Refused``."""
        self._wanted("QMP", time.monotonic() + patience)
        self.execute("qmp_capabilities", patience)

    def execute(self, command: str, patience: float, **arguments: Any) -> Any:
        """The answer to a command, waited for ``patience`` seconds at most. Raises ``Refused``."""
        deadline = time.monotonic() + patience
        self._answers.clear()
        self._send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n", deadline)
        return self._wanted("return", deadline)

    def events(self) -> Iterator[Event]:
        """What has happened since the last call, without waiting. A connection that has closed has no more events."""
        with contextlib.suppress(Refused):
            self._read()
        while self._events:
            yield self._events.popleft()

    @property
    def ended(self) -> bool:
        """Whether QEMU has closed the connection."""
        return self._ended

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send(self, data: bytes, deadline: float) -> None:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(deadline, writing=True)
            except OSError as error:
                raise Refused(f"QEMU took no command: {error.strerror or error}") from error

    def _wanted(self, key: str, deadline: float) -> Any:
        while True:
            self._read()
            while self._answers:
                answer = self._answers.popleft()
                if key in answer:
                    return answer[key]
                if "error" in answer:
                    raise Refused(_explained(answer["error"]))
            if self._ended:
                raise Refused("QEMU closed its control connection")
            self._wait(deadline)

    def _wait(self, deadline: float, *, writing: bool = False) -> None:
        while (left := deadline - time.monotonic()) > 0:
            self._check()
            if wait([self], min(left, _TICK), writing=writing):
                return
        raise Refused("QEMU did not answer in time")

    def _read(self) -> None:
        """Take what is there."""
        while not self._ended:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._ended = not data
            self._buffer += data
            *lines, rest = self._buffer.split(b"\n")
            self._buffer = bytearray(rest)
            for line in lines:
                self._take(bytes(line))
            if len(self._buffer) > _LINE:
                self._ended = True
                raise Refused("QEMU sent a line without an end")

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Refused("QEMU sent what is no JSON") from error
        if not isinstance(message, dict):
            raise Refused("QEMU sent what is no message")
        if "event" in message:
            data = message.get("data")
            self._events.append(Event(name=str(message["event"]), data=data if isinstance(data, dict) else {}))
        else:
            self._answers.append(message)


def _explained(error: Any) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
