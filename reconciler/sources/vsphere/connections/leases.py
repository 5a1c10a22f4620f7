"""Leases: the time-limited right to send or fetch whole disks of one machine over HTTP, from the vCenter or its hosts.

A lease that is not told of progress in time ends by itself, so a thread does that as long as it is open. Every way out
ends it: ``complete`` where all went well, else ``abort``, upon which an import takes its machine with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from reconciler.api import vcenters
from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import certificates, faults, properties, sessions

#: Seconds that a lease may take to become ready, and that one answer over HTTP may take.
_READY: Final = 300.0
PATIENCE: Final = 300.0
#: Seconds between two words on progress, at most; a quarter of what the lease allows where that is less.
_PULSE: Final = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Url:
    """One file of a lease."""

    #: Such as ``/name/ParaVirtualSCSIController0:0``.
    key: str
    address: str
    #: Of the certificate of the host that it leads to, as the vCenter knows it; empty where it does not say.
    thumbprint: str
    disk: bool
    #: Bytes of it, about; 0 where nobody knows.
    size: int


class Ended(errors.SourceError):
    """A lease ended by itself; another one may be had."""


class Lease:
    """One open lease; a context manager that aborts it unless ``complete`` was called."""

    def __init__(self, session: sessions.Session, lease: Any, doing: str, meter: meters.Meter) -> None:
        """Wait until ``lease``, a ``vim.HttpNfcLease`` just made, is ready. Raises ``SourceError`` or ``Cancelled``."""
        self._session, self._lease, self._doing = session, lease, doing
        self._over = threading.Event()
        self._percent = 0
        self._broken: errors.HoldfastError | None = None
        self._ended = False
        self._keeper: threading.Thread | None = None
        try:
            info = self._ready(meter)
            #: The machine that is exported or made.
            self.machine: Any = info.entity
            self.urls = tuple(self._url(one) for one in info.deviceUrl or ())
            pulse = min(_PULSE, float(info.leaseTimeout or 300) / 4)
            self._keeper = threading.Thread(target=self._keep, args=(pulse,), name="lease", daemon=True)
            self._keeper.start()
        except BaseException:
            self.abort()
            raise

    def _ready(self, meter: meters.Meter) -> Any:
        deadline, pause = time.monotonic() + _READY, 0.05
        while True:
            meter.check()
            shown = properties.of(self._session, self._lease, ("state", "error"), self._doing)
            state = str(shown.get("state") or "initializing")
            if state == "ready":
                return properties.of(self._session, self._lease, ("info",), self._doing)["info"]
            if state != "initializing":
                self._ended = True
                error = shown.get("error")
                if error is not None:
                    raise faults.translated(self._session.spec, error, self._doing)
                raise errors.SourceError(f"{self._doing}: the lease is {state} before it began")
            if time.monotonic() > deadline:
                raise errors.SourceError(f"{self._doing}: the lease was not ready within {_READY:.0f} s")
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)

    def _url(self, one: Any) -> Url:
        # A star stands for the server that was asked.
        spec = self._session.spec
        shown = f"[{spec.server}]" if ":" in spec.server else spec.server
        address = str(one.url).replace("://*/", f"://{shown}:{spec.port}/")
        return Url(
            key=str(one.importKey or one.key or ""),
            address=address,
            thumbprint=str(one.sslThumbprint or ""),
            disk=bool(one.disk),
            size=max(0, int(getattr(one, "fileSize", None) or 0)),
        )

    # -- keeping it --------------------------------------------------------------------------------------------------

    def progress(self, share: float) -> None:
        """How much is done, 0 to 1. Raises what broke the lease, if something did."""
        self._percent = max(self._percent, min(99, int(share * 100)))
        if self._broken is not None:
            raise self._broken

    def _keep(self, pulse: float) -> None:
        while not self._over.wait(pulse):
            try:
                self._session.act(self._doing, lambda: self._lease.HttpNfcLeaseProgress(self._percent))
            except errors.HoldfastError as error:
                # The next word of the one who transfers learns of it; a moment's break is not the lease's end.
                if isinstance(error, faults.VSphereFault):
                    self._broken = error
                    return

    def complete(self) -> None:
        """Everything was transferred. Raises ``SourceError``."""
        self._still()
        try:
            self._session.act(f"{self._doing}: completing", self._lease.HttpNfcLeaseComplete)
        except faults.VSphereFault:
            raise
        except errors.SourceError:
            # The answer was lost: the lease itself says what became of it.
            if str(properties.of(self._session, self._lease, ("state",), self._doing).get("state")) != "done":
                raise
        self._ended = True

    def abort(self) -> None:
        """End it without a result. Idempotent; one that cannot be told runs out by itself."""
        self._still()
        if not self._ended:
            self._ended = True
            with contextlib.suppress(errors.SourceError):
                self._session.act(f"{self._doing}: aborting", self._lease.HttpNfcLeaseAbort)

    def _still(self) -> None:
        self._over.set()
        if self._keeper is not None:
            self._keeper.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    # -- transferring ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(self, url: Url, patience: float = PATIENCE) -> Iterator[tuple[http.client.HTTPSConnection, str]]:
        """A connection to where a file is, and the request's path. What breaks on it becomes a ``SourceError``;
        ``patience``: seconds of silence that count as a break."""
        parts = urllib.parse.urlsplit(url.address)
        host, port = parts.hostname or self._session.spec.server, parts.port or 443
        connection = http.client.HTTPSConnection(host, port, timeout=patience, context=self._trust(host, port, url))
        try:
            yield connection, parts.path + (f"?{parts.query}" if parts.query else "")
        except errors.HoldfastError:
            raise
        except faults.BROKEN as error:
            raise self.why() or _broken(f"{self._doing}: {host}:{port}", error) from error
        finally:
            connection.close()

    def why(self) -> errors.HoldfastError | None:
        """What the lease itself says of its end, if it ended."""
        with contextlib.suppress(errors.SourceError):
            error = properties.of(self._session, self._lease, ("error",), self._doing).get("error")
            if error is not None:
                told = faults.translated(self._session.spec, error, self._doing)
                return Ended(told.message, hint=told.hint)
        return self._broken

    def _trust(self, host: str, port: int, url: Url) -> ssl.SSLContext:
        spec = self._session.spec
        if (host, port) == (spec.server, spec.port) or not url.thumbprint:
            return self._session.context
        # A host's own certificate need not be signed by anybody: the vCenter, which is trusted, vouches for it.
        tls = vcenters.Tls(thumbprint=url.thumbprint)
        return certificates.context(spec.model_copy(update={"server": host, "port": port, "tls": tls}))


def upload(
    lease: Lease, url: Url, pour: Callable[[Callable[[bytes], None]], None], meter: meters.Meter, doing: str
) -> None:
    """Send a disk of unknown packed length. ``pour`` hands its pieces to the function it is given.

    Raises ``SourceError``, and what ``pour`` raises.
    """
    with lease.connection(url) as (connection, path):
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/x-vnd.vmware-streamVmdk")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()

        def send(piece: bytes) -> None:
            meter.check()
            if piece:
                try:
                    connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                except OSError as error:
                    raise _answered(connection, doing) or error from error

        pour(send)
        connection.send(b"0\r\n\r\n")
        answer = connection.getresponse()
        said = answer.read(1 << 12)
        if answer.status not in (200, 201, 204):
            raise refused(answer.status, answer.reason, said, doing)


def _answered(connection: http.client.HTTPSConnection, doing: str) -> errors.SourceError | None:
    """What a server said before it hung up, if it said something."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        answer = connection.getresponse()
        if answer.status >= 300:
            return refused(answer.status, answer.reason, answer.read(1 << 12), doing)
    return None


def refused(status: int, reason: str, said: bytes, doing: str) -> errors.SourceError:
    """What an answer of a host means."""
    words = said.decode(errors="replace").strip().splitlines()
    return errors.SourceError(
        f"{doing}: HTTP {status} {reason}{': ' + words[0][:200] if words else ''}", hint="the host's own log says more"
    )


def _broken(doing: str, error: BaseException) -> errors.SourceError:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, socket.gaierror):
        return errors.SourceError(f"{doing}: {said}", hint="leases lead to ESX hosts: their names must be known here")
    return errors.SourceError(f"{doing}: the transfer broke: {said}", hint="check that the host is well")
