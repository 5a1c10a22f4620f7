"""One session per vCenter and process: logged in when first needed, renewed when it ended, logged out when idle.

Every call goes through ``Session.read`` or ``Session.act``. A call that found nobody logged in was not executed and is
made again after a login. A call that broke on its way may have been executed: only ``read``, which changes nothing,
repeats it. Thread-safe: jobs share the session of their vCenter.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from pyVmomi import vmodl

from reconciler.api import vcenters
from reconciler.base import errors
from reconciler.sources.vsphere.connections import certificates, credentials, faults, links

#: Pauses before a broken read is repeated, in seconds.
_PAUSES: Final = (0.2, 0.8, 2.0)
#: Logins after which a call that still finds nobody logged in is given up.
_LOGINS: Final = 3
#: For so many seconds a credential that was refused is not tried again: repeated attempts lock accounts.
_REFUSED: Final = 60.0
#: Seconds between two looks for sessions that lie idle, at most.
_LOOK: Final = 5.0
_COOKIE: Final = re.compile(r'vmware_soap_session=("[^";]+"|[^";]+)')
_COMMON: Final = (vmodl.MethodFault, *faults.BROKEN, *faults.STRANGE)

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Refusal:
    """A login that was refused."""

    message: str
    #: Of user and password, which are not kept.
    digest: bytes
    #: On the monotonic clock.
    at: float


class Session:
    """The way to one vCenter."""

    def __init__(self, name: str, spec: vcenters.VCenterSpec) -> None:
        """``name``: of the VCenter. Nothing is connected yet."""
        self.name = name
        self.spec = spec
        self._lock = threading.RLock()
        self._link: links.Link | None = None
        #: Counts logins; those who found nobody logged in say in which life that was.
        self._logins = 0
        self._live = False
        self._refusal: _Refusal | None = None
        self._context: ssl.SSLContext | None = None
        self._thumbprint: str | None = None
        self._used = time.monotonic()
        self._holds = 0

    # -- calls -------------------------------------------------------------------------------------------------------

    def read(self, doing: str, call: Callable[[], _T]) -> _T:
        """What ``call`` returns; it changes nothing, and is repeated where the answer broke. Raises ``SourceError``."""
        for pause in (*_PAUSES, None):
            try:
                return self._called(call)
            except faults.BROKEN as error:
                # Whoever waited for an answer until his patience was over waited long enough.
                if pause is None or isinstance(error, ssl.SSLCertVerificationError | TimeoutError):
                    raise faults.translated(self.spec, error, doing) from error
                time.sleep(pause)
            except _COMMON as error:
                raise faults.translated(self.spec, error, doing) from error
        raise AssertionError("unreachable")

    def act(self, doing: str, call: Callable[[], _T]) -> _T:
        """What ``call`` returns; it is not repeated, because it may have been executed. Raises ``SourceError``."""
        try:
            return self._called(call)
        except _COMMON as error:
            raise faults.translated(self.spec, error, doing) from error

    def _called(self, call: Callable[[], _T]) -> _T:
        self._used = time.monotonic()
        for _ in range(_LOGINS):
            life = self._logged_in()
            try:
                return call()
            except vmodl.MethodFault as error:
                if not faults.is_session(error):
                    raise
            except ssl.SSLCertVerificationError:
                self._doubt()
                raise
            finally:
                self._used = time.monotonic()
            self._lost(life)
        self._logged_in()
        return call()

    @property
    def content(self) -> Any:
        """The roots of the API, a ``vim.ServiceInstanceContent`` (all of whose fields are optional).

        Raises ``SourceError`` where nobody can log in.
        """
        return self._linked().content

    @property
    def life(self) -> int:
        """Counts logins: what belongs to a session, such as a view or a page, is gone when this has changed."""
        return self._logins

    def began(self) -> int:
        """Log in unless somebody did, and say in which ``life`` the session is. Raises ``SourceError``."""
        return self._logged_in()

    def object(self, kind: type[_T], reference: str) -> _T:
        """The managed object with this reference, such as ``vm-57``, which is not asked for. Raises ``SourceError``."""
        found: _T = self._linked().object(kind, reference)
        return found

    # -- beside the API ----------------------------------------------------------------------------------------------

    @property
    def context(self) -> ssl.SSLContext:
        """For other connections to the same server. Raises ``SourceError``."""
        with self._lock:
            if self._context is None:
                self._context = certificates.context(self.spec)
            return self._context

    @property
    def thumbprint(self) -> str:
        """SHA-1 of the server's certificate in pairs. Raises ``SourceError``."""
        trusted = self.context
        with self._lock:
            if self._thumbprint is None:
                self._thumbprint = certificates.thumbprint(self.spec, trusted)
            return self._thumbprint

    def cookie(self) -> str:
        """The header ``Cookie`` under which this session is known to the server's other services."""
        found = _COOKIE.search(self._linked().cookie)
        if found is None:
            raise errors.SourceError(
                f"VCenter {self.name}: the server gave no session cookie", hint="is this the port of its API?"
            )
        # As it was given: not every server takes quotation marks that it did not write.
        return f"vmware_soap_session={found[1].strip()}"

    def login(self) -> credentials.Login:
        """User and password, for a program that logs in by itself. Raises ``SourceError``."""
        return credentials.read(self.name, self.spec.credential_ref)

    def renew(self) -> None:
        """Log in anew if the session ended, because another service no longer knows it. Raises ``SourceError``."""
        doing = f"VCenter {self.name}: session"
        with self._lock:
            try:
                link = self._link
                if self._live and link is not None and not self._patiently(link.alive):
                    self._live = False
            except _COMMON as error:
                raise faults.translated(self.spec, error, doing) from error
            self._logged_in()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """As long as this lasts, the session does not count as idle."""
        with self._lock:
            self._holds += 1
        try:
            yield
        finally:
            with self._lock:
                self._holds -= 1
            self._used = time.monotonic()

    # -- logging in and out ------------------------------------------------------------------------------------------

    def _linked(self) -> links.Link:
        """The link of a session that somebody logged in to."""
        with self._lock:
            self._logged_in()
            if self._link is None:
                raise AssertionError("a session without a link")
            return self._link

    def _logged_in(self) -> int:
        """Log in unless somebody did; in which life of the session that is."""
        with self._lock:
            if not self._live:
                self._log_in()
                _watch()
            return self._logins

    def _log_in(self) -> None:
        doing = f"VCenter {self.name}: login"
        login = self.login()
        digest = hashlib.sha256(f"{login.username}\0{login.password}".encode()).digest()
        refusal = self._refusal
        if refusal is not None and refusal.digest == digest and time.monotonic() - refusal.at < _REFUSED:
            raise faults.LoginRefused(refusal.message, hint="correct the credential; it is tried again in a minute")
        try:
            self._patiently(lambda: self._greet(login))
        except _COMMON as error:
            told = faults.translated(self.spec, error, doing)
            if isinstance(told, faults.LoginRefused):
                self._refusal = _Refusal(message=told.message, digest=digest, at=time.monotonic())
            if isinstance(error, ssl.SSLCertVerificationError):
                self._doubt()
            raise told from error
        self._live, self._refusal, self._thumbprint = True, None, None
        self._logins += 1

    def _greet(self, login: credentials.Login) -> None:
        if self._link is None:
            self._link = links.Link(self.spec, self.context)
        self._link.trust(self.context)
        self._link.login(login.username, login.password)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """What ``call`` returns; it is made again where the wire breaks, without the connections that were open."""
        for pause in (*_PAUSES[:2], None):
            try:
                return call()
            except faults.BROKEN as error:
                if self._link is not None:
                    self._link.drop()
                if pause is None or isinstance(error, ssl.SSLCertVerificationError | TimeoutError):
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _doubt(self) -> None:
        """Read anew whom to trust before the next call: somebody may put the right authority into the file."""
        with self._lock:
            self._context, self._live = None, False

    def _lost(self, life: int) -> None:
        """The session ended at the server; another thread may have renewed it since."""
        with self._lock:
            if self._logins == life:
                self._live = False

    def idle(self) -> float:
        """Seconds since it was last used; 0 while it is held or logged out."""
        with self._lock:
            return 0.0 if self._holds or not self._live else time.monotonic() - self._used

    def logout(self) -> None:
        """End the session at the server, if there is one; the next call logs in again."""
        with self._lock:
            link, live = self._link, self._live
            self._live = False
            if link is not None and live:
                # A server that is gone has forgotten the session, or will.
                with contextlib.suppress(*_COMMON):
                    link.logout()


@dataclasses.dataclass(slots=True)
class _Registry:
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    sessions: dict[str, Session] = dataclasses.field(default_factory=dict)
    watching: bool = False

    def forget(self) -> None:
        """Begin anew: a forked child has none of its parent's sessions, threads and promises to log out."""
        self.lock, self.sessions, self.watching = threading.Lock(), {}, False


_registry: Final = _Registry()
os.register_at_fork(after_in_child=_registry.forget)


def of(vcenter: vcenters.VCenter) -> Session:
    """The session of this process with a vCenter; another one as soon as its manifest says something else."""
    key = f"{vcenter.name} {vcenter.spec.model_dump_json()}"
    with _registry.lock:
        return _registry.sessions.setdefault(key, Session(vcenter.name, vcenter.spec))


def close_all() -> None:
    """Log out everywhere."""
    with _registry.lock:
        sessions = list(_registry.sessions.values())
    for session in sessions:
        session.logout()


def _watch() -> None:
    """Begin to log out what lies idle, and everything when the process ends."""
    with _registry.lock:
        if _registry.watching:
            return
        _registry.watching = True
    atexit.register(close_all)
    threading.Thread(target=_log_out_idle, name="vsphere-idle", daemon=True).start()


def _log_out_idle() -> None:
    sessions: list[Session] = []
    while True:
        shortest = min((session.spec.idle_logout.seconds for session in sessions), default=_LOOK)
        time.sleep(max(0.1, min(_LOOK, shortest / 4)))
        with _registry.lock:
            sessions = list(_registry.sessions.values())
        for session in sessions:
            if session.idle() > session.spec.idle_logout.seconds:
                session.logout()
