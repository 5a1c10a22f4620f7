"""The wire to one vCenter: which version of the API it speaks, and the adapter that carries calls; nobody is logged in.

One adapter lives as long as its session, over every login: managed objects keep the adapter that they came from, so
that what was asked for before a renewal can be asked again after it. Only a login teaches it a cookie. A vCenter
gives one to strangers as well, and a late answer to an ended session would take the new one away.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from typing import Any, Final
from xml.etree import ElementTree as ET

from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from reconciler.api import vcenters
from reconciler.base import errors

#: Seconds that one answer may take.
PATIENCE: Final = 120.0
#: Seconds for the farewell: a process that ends waits no longer.
_FAREWELL: Final = 10.0
#: Idle connections are closed after this many seconds, before the server does it under a call.
_IDLE: Final = 20
_MOST_BYTES: Final = 1 << 20


class _Adapter(SoapAdapter.SoapStubAdapter):
    """Takes cookies from the thread that logs in, from no other."""

    _kept = ""
    _pupil: int | None = None

    @property
    def cookie(self) -> str:
        return self._kept

    @cookie.setter
    def cookie(self, value: str) -> None:
        if self._pupil == threading.get_ident():
            self._kept = value


class Link:
    """The adapter and the roots of one vCenter's API."""

    def __init__(self, spec: vcenters.VCenterSpec, trusted: ssl.SSLContext) -> None:
        """Ask for the version. Raises ``SourceError``, ``OSError`` or ``http.client.HTTPException``."""
        self._adapter = _Adapter(
            host=spec.server,
            port=spec.port,
            version=_version(spec, trusted),
            sslContext=trusted,
            httpConnectionTimeout=PATIENCE,
            connectionPoolTimeout=_IDLE,
            poolSize=16,
        )
        #: A ``vim.ServiceInstanceContent``; typed loosely, because all of its fields are optional.
        self.content: Any = self.object(vim.ServiceInstance, "ServiceInstance").RetrieveContent()

    def object(self, kind: Any, reference: str) -> Any:
        """The managed object with this reference."""
        return kind(reference, self._adapter)

    def login(self, username: str, password: str) -> None:
        """Begin a session, which every later call belongs to. Raises what pyVmomi raises."""
        adapter = self._adapter
        adapter._pupil = threading.get_ident()
        try:
            adapter.cookie = ""
            self.content.sessionManager.Login(username, password, None)
        finally:
            adapter._pupil = None

    def logout(self) -> None:
        """End the session, on a connection of its own. Raises what pyVmomi raises."""
        adapter = self._adapter
        adapter.DropConnections()
        adapter.schemeArgs["timeout"] = _FAREWELL
        try:
            self.content.sessionManager.Logout()
        finally:
            adapter.schemeArgs["timeout"] = PATIENCE
            adapter.DropConnections()

    def trust(self, trusted: ssl.SSLContext) -> None:
        """Verify every later connection with this context."""
        arguments = self._adapter.schemeArgs
        if arguments["context"] is not trusted:
            arguments["context"] = trusted
            self._adapter.DropConnections()

    def drop(self) -> None:
        """Close the connections that wait for their next call: a server that came back knows none of them."""
        self._adapter.DropConnections()

    def alive(self) -> bool:
        """Whether the server knows the session still. Raises what pyVmomi raises."""
        manager = self.content.sessionManager
        kinds = vmodl.query.PropertyCollector
        wanted = kinds.FilterSpec(
            objectSet=[kinds.ObjectSpec(obj=manager)],
            propSet=[kinds.PropertySpec(type=type(manager), pathSet=["currentSession"])],
        )
        try:
            found = self.content.propertyCollector.RetrievePropertiesEx([wanted], kinds.RetrieveOptions())
        except vim.fault.NotAuthenticated:
            return False
        return found is not None and any(item.propSet for item in found.objects or ())

    @property
    def cookie(self) -> str:
        """What the server's login gave, as it said it."""
        return self._adapter.cookie


def _version(spec: vcenters.VCenterSpec, trusted: ssl.SSLContext) -> str:
    """The newest version of the API that both sides know, in pyVmomi's words."""
    where = f"{spec.server}:{spec.port}"
    connection = http.client.HTTPSConnection(spec.server, spec.port, timeout=PATIENCE, context=trusted)
    try:
        connection.request("GET", "/sdk/vimServiceVersions.xml")
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES)
    finally:
        connection.close()
    if answer.status >= 500:
        raise http.client.HTTPException(f"{answer.status} {answer.reason}")
    offered = _offered(text) if answer.status == 200 else frozenset()
    for version in VmomiSupport.GetServiceVersions("vim25"):
        if VmomiSupport.versionIdMap[version] in offered:
            return str(version)
    raise errors.SourceError(
        f"{where}: no vSphere API that this version speaks (HTTP {answer.status}, {len(offered)} versions offered)",
        hint="check server and port",
    )


def _offered(text: bytes) -> frozenset[str]:
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return frozenset()
    return frozenset(
        (found.text or "").strip() for space in root.findall("namespace") for found in space.iter("version")
    )
