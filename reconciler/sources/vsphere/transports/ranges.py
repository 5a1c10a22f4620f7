"""Ranges of files over the vCenter's HTTP service: a few kept connections, answers believed only when whole.

What may pass (a 5xx, a reset, a body that ends early, silence) is repeated a few times; a session that ended is renewed
once; everything else is said at once, with the server's words.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import faults, sessions

#: Seconds of silence before a request is given up.
PATIENCE: Final = 120.0
#: Pauses before a request is repeated, in seconds.
PAUSES: Final = (0.1, 0.5, 2.0, 5.0)
_AGAIN: Final = (408, 429)
_TAGS: Final = re.compile(r"(?is)<(style|script|head)\b.*?</\1>|<[^>]*>")
_HINTS: Final = {
    401: "the user needs Datastore.Browse and Datastore.FileManagement",
    403: "the user needs Datastore.Browse and Datastore.FileManagement",
    404: "the snapshot was removed, or the disk moved; the next attempt asks anew",
}

_T = TypeVar("_T")


class Refused(errors.SourceError):
    """The service said no; ``status`` is HTTP's, 0 where no answer came."""

    status: int = 0


class _Passing(Exception):
    """An answer that may be better next time."""

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.words = words
        self.status = status


class _LoggedOut(Exception):
    """The service does not know the session."""


def words(answer: http.client.HTTPResponse) -> str:
    """Status and what the body says, in one line."""
    body = ""
    with contextlib.suppress(*faults.BROKEN):
        body = " ".join(_TAGS.sub(" ", answer.read(8192).decode(errors="replace")).split())[:300]
    status = f"HTTP {answer.status} {answer.reason}".strip()
    return f"{status}: {body}" if body and body != answer.reason else status


class Ranges:
    """The way to the files of one disk. Thread-safe; ``close`` is idempotent."""

    def __init__(
        self,
        session: sessions.Session,
        meter: meters.Meter,
        doing: str,
        *,
        connections: int = 2,
        patience: float = PATIENCE,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        """``doing`` begins messages; ``patience``: seconds of silence before a request is given up; ``pauses``: before
        it is repeated, in seconds."""
        self._pauses = tuple(pauses)
        self._session = session
        self._meter = meter
        self._doing = doing
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._free: queue.LifoQueue[http.client.HTTPSConnection] = queue.LifoQueue()
        self._all = [
            http.client.HTTPSConnection(
                session.spec.server, session.spec.port, timeout=patience, context=session.context
            )
            for _ in range(connections)
        ]
        for connection in self._all:
            self._free.put(connection)

    def small(self, request: str, most: int) -> bytes:
        """A whole file of at most ``most`` bytes. Raises ``SourceError``."""

        def take(answer: http.client.HTTPResponse) -> bytes:
            if answer.status != 200:
                raise self._refused(answer)
            content = answer.read(most + 1)
            if len(content) > most:
                raise errors.SourceError(f"{self._doing}: {request} has more than {most} bytes")
            announced = answer.getheader("Content-Length")
            if answer.read(1) or (announced is not None and announced != str(len(content))):
                raise _Passing(f"the answer ended after {len(content)} of {announced} bytes", answer.status)
            return content

        return self._answered(request, {}, take)

    def size(self, request: str) -> int:
        """Bytes of a file, as the answer to a range of it tells. Raises ``SourceError``."""

        def take(answer: http.client.HTTPResponse) -> int:
            shown = self._range(answer)
            found = re.fullmatch(r"bytes 0-0/(\d{1,18})", shown)
            if found is None:
                raise errors.SourceError(f"{self._doing}: bytes 0-0 were asked for, and came: {shown}")
            if len(answer.read(2)) != 1:
                raise _Passing("the answer ended after 0 of 1 bytes", answer.status)
            return int(found[1])

        return self._answered(request, {"Range": "bytes=0-0"}, take)

    def read(self, request: str, offset: int, view: memoryview, total: int) -> None:
        """Fill ``view`` with the bytes at ``offset`` of a file of ``total`` bytes. Raises ``SourceError``."""
        last = offset + len(view) - 1

        def take(answer: http.client.HTTPResponse) -> None:
            shown = self._range(answer)
            if shown != f"bytes {offset}-{last}/{total}":
                raise errors.SourceError(
                    f"{self._doing}: bytes {offset}-{last}/{total} were asked for, and came: {shown}",
                    hint="the file changed its size, or something between here and the vCenter answers for it",
                )
            filled = 0
            while filled < len(view):
                count = answer.readinto(view[filled:])
                if not count:
                    raise _Passing(f"the answer ended after {filled} of {len(view)} bytes", answer.status)
                filled += count
            if answer.read(1):
                raise _Passing("the answer is longer than announced", answer.status)

        self._answered(request, {"Range": f"bytes={offset}-{last}"}, take)

    def _range(self, answer: http.client.HTTPResponse) -> str:
        if answer.status == 200:
            raise errors.SourceError(
                f"{self._doing}: the service sends whole files only", hint="name another transport for this vCenter"
            )
        if answer.status != 206:
            raise self._refused(answer)
        coded = answer.getheader("Content-Encoding", "identity")
        if coded != "identity":
            raise errors.SourceError(f"{self._doing}: the answer is coded as {coded}, which was not asked for")
        return answer.getheader("Content-Range", "no range")

    def _refused(self, answer: http.client.HTTPResponse) -> Refused:
        made = Refused(f"{self._doing}: {words(answer)}", hint=_HINTS.get(answer.status))
        made.status = answer.status
        return made

    # -- one request -------------------------------------------------------------------------------------------------

    def _answered(self, request: str, headers: Mapping[str, str], take: Callable[[http.client.HTTPResponse], _T]) -> _T:
        pauses = iter(self._pauses)
        renewed = False
        while True:
            self._meter.check()
            cookie = self._session.cookie()
            try:
                return self._once(request, {"Cookie": cookie, **headers}, take)
            except _LoggedOut as error:
                if renewed:
                    raise Refused(f"{self._doing}: {error}, also after a new login", hint=_HINTS[401]) from error
                renewed = True
                self._renew(cookie)
            except (_Passing, *faults.BROKEN) as error:
                pause = next(pauses, None)
                if pause is None or isinstance(error, ssl.SSLCertVerificationError) or self._closed.is_set():
                    raise self._given_up(error) from error
                self._pause(pause)

    def _once(self, request: str, headers: Mapping[str, str], take: Callable[[http.client.HTTPResponse], _T]) -> _T:
        connection = self._borrow()
        whole = False
        try:
            connection.request("GET", request, headers=dict(headers))
            answer = connection.getresponse()
            if answer.status == 401:
                raise _LoggedOut(words(answer))
            if answer.status >= 500 or answer.status in _AGAIN:
                raise _Passing(words(answer), answer.status)
            taken = take(answer)
            whole = answer.isclosed()
            return taken
        finally:
            # What was not read to its end would be taken for the next answer; a closed one connects anew.
            if not whole or self._closed.is_set():
                connection.close()
            self._free.put(connection)

    def _borrow(self) -> http.client.HTTPSConnection:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=0.5)
        raise errors.SourceError(f"{self._doing}: the disk is closed")

    def _renew(self, cookie: str) -> None:
        """Another thread may have noticed first."""
        with self._lock:
            if self._session.cookie() == cookie:
                self._session.renew()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._closed.wait(min(left, 0.2)):
            self._meter.check()

    def _given_up(self, error: Exception) -> errors.HoldfastError:
        if isinstance(error, _Passing):
            made = Refused(
                f"{self._doing}: {error.words}; asked {len(self._pauses) + 1} times",
                hint="check that the vCenter is well",
            )
            made.status = error.status
            return made
        if isinstance(error, TimeoutError):
            return errors.SourceError(
                f"{self._doing}: {self._session.spec.server}:{self._session.spec.port} did not answer in time; "
                f"asked {len(self._pauses) + 1} times",
                hint="check that the vCenter is well",
            )
        return faults.translated(self._session.spec, error, self._doing)

    def close(self) -> None:
        """Hang up; what is being read ends with an error."""
        self._closed.set()
        for connection in self._all:
            plain = connection.sock
            if plain is not None:
                # Past the TLS layer, whose own way is not for two threads at once.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(plain, socket.SHUT_RDWR)
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait().close()


@contextlib.contextmanager
def opened(ranges: Ranges) -> Iterator[Ranges]:
    """``ranges``, closed if the block fails."""
    try:
        yield ranges
    except BaseException:
        ranges.close()
        raise
