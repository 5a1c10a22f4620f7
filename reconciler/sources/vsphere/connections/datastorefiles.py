"""Files of a datastore over the vCenter's own HTTP service: small ones are fetched, disks of a restore are sent.

``https://vc/folder/PATH?dcPath=DATACENTER&dsName=DATASTORE``, with the cookie of the session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from reconciler.base import errors
from reconciler.sources.vsphere.connections import faults, sessions

#: Seconds that one answer may take; a file that was sent is made durable before it is acknowledged.
_PATIENCE: Final = 300.0
#: Pauses before a file is asked for or sent again, in seconds.
_PAUSES: Final = (0.2, 1.0)
#: Refusals of a file that is sent which may be none the next time: the session ended, the service is busy.
_PASSING: Final = (401, 408, 429, 502, 503, 504)


class Refused(errors.SourceError):
    """The service said no; ``status`` is HTTP's."""

    status: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One file."""

    #: Path of the datacenter, such as ``DC0``.
    datacenter: str
    datastore: str
    #: Path on the datastore.
    path: str

    @property
    def request(self) -> str:
        """What a request asks for."""
        query = urllib.parse.urlencode({"dcPath": self.datacenter, "dsName": self.datastore})
        return f"/folder/{urllib.parse.quote(self.path)}?{query}"

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}"


def fetch(session: sessions.Session, place: Place, most: int, doing: str) -> bytes:
    """A whole small file of at most ``most`` bytes; what may pass is asked again. Raises ``Refused`` or
    ``SourceError``."""
    renewed = False
    for pause in (*_PAUSES, None):
        try:
            return _fetched(session, place, most, doing)
        except Refused as error:
            if error.status == 401 and not renewed:
                renewed = True
                session.renew()
            elif error.status < 500 or pause is None:
                raise
            else:
                time.sleep(pause)
    raise errors.SourceError(f"{doing}: {place}: the service does not know the session, nor a new one")


def _fetched(session: sessions.Session, place: Place, most: int, doing: str) -> bytes:
    with _connection(session, place, doing) as connection:
        connection.request("GET", place.request, headers={"Cookie": session.cookie()})
        answer = connection.getresponse()
        if answer.status != 200:
            raise _refused(place, answer, doing)
        content = answer.read(most + 1)
        if len(content) > most:
            raise errors.SourceError(f"{doing}: {place} has more than the {most} bytes that are taken of it")
        length = answer.getheader("Content-Length")
        if length is not None and int(length) != len(content):
            raise errors.SourceError(f"{doing}: {place} ended after {len(content)} of {length} bytes")
        return content


def send(session: sessions.Session, place: Place, give: Callable[[], Iterable[bytes]], size: int, doing: str) -> None:
    """Make or replace a file by the pieces that ``give`` returns, ``size`` bytes together; where the wire breaks or the
    service is busy, from the first one again. Raises ``Refused`` or ``SourceError``, and whatever ``give`` raises.

    The session is proven before anything is sent: a refusal after a terabyte would be a pity.
    """
    for pause in (*_PAUSES, None):
        session.renew()
        try:
            return _sent(session, place, give(), size, doing)
        except Refused as error:
            if pause is None or error.status not in _PASSING:
                raise
        except errors.SourceError as error:
            broke = isinstance(error.__cause__, faults.BROKEN) and not isinstance(error.__cause__, TimeoutError)
            if pause is None or not broke:
                raise
        time.sleep(pause)
    raise AssertionError("unreachable")


def _sent(session: sessions.Session, place: Place, content: Iterable[bytes], size: int, doing: str) -> None:
    with _connection(session, place, doing) as connection:
        connection.putrequest("PUT", place.request)
        connection.putheader("Cookie", session.cookie())
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        answer = _pour(connection, content)
        answer.read(1 << 16)
        if answer.status not in (200, 201, 204):
            raise _refused(place, answer, doing)


def _pour(connection: http.client.HTTPSConnection, content: Iterable[bytes]) -> http.client.HTTPResponse:
    """Send everything; the answer. A server that refuses may say so, and hang up, before all is sent."""
    for piece in content:
        try:
            connection.send(piece)
        except OSError:
            with contextlib.suppress(OSError, http.client.HTTPException):
                early = connection.getresponse()
                if early.status >= 300:
                    return early
            raise
    return connection.getresponse()


@contextlib.contextmanager
def _connection(session: sessions.Session, place: Place, doing: str) -> Iterator[http.client.HTTPSConnection]:
    spec = session.spec
    connection = http.client.HTTPSConnection(spec.server, spec.port, timeout=_PATIENCE, context=session.context)
    try:
        yield connection
    except errors.HoldfastError:
        raise
    except faults.BROKEN as error:
        raise faults.translated(spec, error, f"{doing}: {place}") from error
    finally:
        connection.close()


def _refused(place: Place, answer: http.client.HTTPResponse, doing: str) -> Refused:
    hints = {
        401: "the user needs Datastore.FileManagement and Datastore.Browse",
        403: "the user needs Datastore.FileManagement and Datastore.Browse",
        404: "there is no such file or folder",
        500: "the file may be locked, or this kind of datastore does not take it",
        507: "free space on the datastore, or choose another one",
    }
    made = Refused(f"{doing}: {place}: HTTP {answer.status} {answer.reason}", hint=hints.get(answer.status))
    made.status = answer.status
    return made
