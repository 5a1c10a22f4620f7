"""One session per vCenter and process: logged in when first needed, renewed when it ended, logged out when idle.

Every call goes through ``Session.read`` or ``Session.act``. A call that found nobody logged in was not executed and is
made again after a login. A call that broke on its way may have been executed: only ``read``, which changes nothing,
repeats it. Thread-safe: jobs share the session of their vCenter.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import http.client
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from pyVim import connect
from pyVmomi import vim, vmodl

from reconciler.api import vcenters
from reconciler.base import errors
from reconciler.sources.vsphere import certificates, credentials, faults

#: Seconds that one answer may take.
PATIENCE: Final = 120.0
#: Pauses before a broken read is repeated, in seconds.
_PAUSES: Final = (0.2, 1.0, 3.0)
_COOKIE: Final = re.compile(r'vmware_soap_session="?([^";]+)')
_COMMON: Final = (vmodl.MethodFault, *faults.BROKEN)

_T = TypeVar("_T")


class Session:
    """The way to one vCenter."""

    def __init__(self, name: str, spec: vcenters.VCenterSpec) -> None:
        """``name``: of the VCenter. Nothing is connected yet."""
        self.name = name
        self.spec = spec
        self._lock = threading.RLock()
        self._instance: vim.ServiceInstance | None = None
        self._content: Any = None
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
                if pause is None or isinstance(error, ssl.SSLError):
                    raise faults.translated(self.spec, error, doing) from error
                time.sleep(pause)
            except vmodl.MethodFault as error:
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
        before = self._logged_in()
        try:
            return call()
        except vmodl.MethodFault as error:
            if not faults.is_session(error):
                raise
        with self._lock:
            # Another thread may have noticed first.
            if self._instance is before:
                self._forget()
        self._logged_in()
        return call()

    @property
    def content(self) -> Any:
        """The roots of the API, a ``vim.ServiceInstanceContent`` (all of whose fields are optional).

        Raises ``SourceError`` where nobody can log in.
        """
        self._logged_in()
        with self._lock:
            if self._content is None:
                raise errors.SourceError(f"VCenter {self.name}: logged out meanwhile")
            return self._content

    def object(self, kind: type[_T], reference: str) -> _T:
        """The managed object with this reference, such as ``vm-57``; nothing is asked for it."""
        instance = self._logged_in()
        return kind(reference, instance._stub)  # type: ignore[call-arg]

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
        instance = self._logged_in()
        found = _COOKIE.search(str(instance._stub.cookie or ""))
        if found is None:
            raise errors.SourceError(f"VCenter {self.name}: the server gave no session cookie")
        return f'vmware_soap_session="{found[1]}"'

    def login(self) -> credentials.Login:
        """User and password, for a program that logs in by itself. Raises ``SourceError``."""
        return credentials.read(self.name, self.spec.credential_ref)

    def renew(self) -> None:
        """Log in anew, because another service no longer knows the session."""
        with self._lock:
            self._forget()
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

    def _logged_in(self) -> vim.ServiceInstance:
        with self._lock:
            if self._instance is None:
                self._instance, self._content = self._connect()
                _watch()
            return self._instance

    def _connect(self) -> tuple[vim.ServiceInstance, Any]:
        doing = f"VCenter {self.name}: login"
        login = self.login()
        try:
            instance = connect.SmartConnect(
                host=self.spec.server,
                port=self.spec.port,
                user=login.username,
                pwd=login.password,
                sslContext=self.context,
                httpConnectionTimeout=PATIENCE,
            )
            # Kept by ``connect`` for callers that have only one.
            connect.SetSi(None)
            return instance, instance.RetrieveContent()
        except _COMMON as error:
            raise faults.translated(self.spec, error, doing) from error

    def _forget(self) -> None:
        self._instance = self._content = None

    def idle(self) -> float:
        """Seconds since it was last used; 0 while it is held or logged out."""
        with self._lock:
            return 0.0 if self._holds or self._instance is None else time.monotonic() - self._used

    def logout(self) -> None:
        """End the session at the server, if there is one; the next call logs in again."""
        with self._lock:
            instance, content = self._instance, self._content
            self._forget()
        if instance is not None and content is not None:
            # A server that is gone has forgotten the session, or will.
            with contextlib.suppress(vmodl.MethodFault, *faults.BROKEN):
                content.sessionManager.Logout()
            with contextlib.suppress(OSError, http.client.HTTPException):
                instance._stub.DropConnections()


@dataclasses.dataclass(slots=True)
class _Registry:
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    sessions: dict[str, Session] = dataclasses.field(default_factory=dict)
    watching: bool = False


_registry: Final = _Registry()


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
    while True:
        time.sleep(5.0)
        with _registry.lock:
            sessions = list(_registry.sessions.values())
        for session in sessions:
            if session.idle() > session.spec.idle_logout.seconds:
                session.logout()
