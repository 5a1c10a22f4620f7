"""What `nbdkit_vddk` puts in the place of nbdkit's vddk plugin. nbdkit runs it, nothing imports it.

It takes the same parameters and refuses the same mistakes: at the start what the command line says wrong, at the first
connection what the vCenter says no to (thumbprint, login, machine, snapshot, file). The vCenter then names the local
files that hold the disk, as a stack of a base and deltas, and reads come from these. Under locks, as on ESXi: a file
that is read is not merged, a disk that is written is not opened twice. Writes go through the lab, which notes them as
changed. What it cannot show: VDDK itself, its transports and the speed of any of them.

Faults of the lab with ``"on": "nbdkit"`` strike a connection at its open: ``fault`` refuses it with the message; and
once ``afterBytes`` were read or written, ``truncate`` fails every request, ``reset`` ends the process, ``slow`` waits
``seconds`` with each request and ``hang`` for an hour.
"""

from __future__ import annotations

import builtins
import dataclasses
import errno
import fcntl
import hashlib
import http.client
import itertools
import json
import os
import re
import ssl
import sys
import threading
import time
import traceback
import urllib.parse
from pathlib import Path
from typing import Any
from xml.sax import saxutils

import nbdkit

API_VERSION = 2
SECTOR = 512
#: What VDDK can tell allocated from not.
CHUNK = 128 * SECTOR
REMOTE = ("vm", "server", "user", "password", "cookie", "thumbprint", "port", "nfchostport")
PARAMETERS = {*REMOTE, "file", "libdir", "config", "snapshot", "transports", "compression", "single-link", "unbuffered"}
TRANSPORTS = {"file", "san", "hotadd", "nbdssl", "nbd"}
COMPRESSIONS = {"none", "zlib", "fastlz", "skipz"}
LOGIN = """<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">
<soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>"""

given: dict[str, str] = {}


class Refused(Exception):
    """What nbdkit's plugin or VDDK would say, with the function that would say it."""


def _said(kind: Any, error: BaseException | None = None, *rest: Any) -> list[str]:
    """Say an error as nbdkit does for the real plugin. nbdkit, which runs without a log of its own, asks the module
    traceback how to show it: with the name of this file, which is nothing to those who read what VDDK says."""
    words = [str(error)] if isinstance(error, Refused) else _format(kind, error, *rest)
    print(f"nbdkit: {getattr(_place, 'name', '')}error: {''.join(words)}", file=sys.stderr, flush=True)
    return words


_format, traceback.format_exception = traceback.format_exception, _said  # type: ignore[assignment]
#: Where each thread is: nbdkit names connections that open and the workers that read.
_place = threading.local()
_connections = itertools.count(1)


def thread_model() -> int:
    return nbdkit.THREAD_MODEL_PARALLEL


def config(key: str, value: str) -> None:
    if key not in PARAMETERS:
        raise Refused(f"unknown parameter '{key}'")
    if key == "compression" and value not in COMPRESSIONS:
        raise Refused(f"unknown compression type: {value}")
    given[key] = _password(value) if key == "password" else value


def _password(value: str) -> str:
    """As nbdkit reads one: `+FILE`, `-FD`, or the text itself."""
    if value.startswith("+"):
        return Path(value[1:]).read_text().removesuffix("\n")
    if value.startswith("-") and value != "-":
        descriptor = int(value[1:])
        if descriptor <= 2:
            raise Refused("cannot use password -FD syntax with the standard descriptors")
        with builtins.open(descriptor) as stream:
            return stream.read().removesuffix("\n")
    if value == "-":
        raise Refused("stdin is not a tty, cannot read password interactively")
    return value


def config_complete() -> None:
    if "file" not in given:
        raise Refused("you must supply the file=<FILENAME> parameter after the plugin name on the command line")
    for needed in ("server", "user", "password", "thumbprint", "vm"):
        if needed not in given:
            raise Refused(f"remote connection requested, missing parameter: {needed}")
    unknown = set(given.get("transports", "nbd").split(":")) - TRANSPORTS
    if unknown:
        raise Refused(f"VixDiskLib_ConnectEx: unknown transport mode: {':'.join(sorted(unknown))}")
    libdir = Path(given.get("libdir", "/usr/lib/vmware-vix-disklib"))
    if not any((libdir / "lib64").glob("libvixDiskLib.so.*")):
        # The real one says the dynamic linker's words, then these.
        raise Refused(
            f"libvixDiskLib.so.8: cannot open shared object file: No such file or directory (in {libdir}/lib64)\n"
            "If it lies elsewhere you may need to set libdir=/path/to/vmware-vix-disklib-distrib."
        )


def dump_plugin() -> None:
    print("vddk_default_libdir=/usr/lib/vmware-vix-disklib")
    print("vddk_has_nfchostport=1")
    print("vddk_library_version=8")


@dataclasses.dataclass(kw_only=True)
class Disk:
    """An open disk: `pieces` are (offset, length, number of the file that holds it at the same offset), in order."""

    capacity: int
    files: list[int]
    pieces: list[tuple[int, int, int]]
    writable: bool
    ticket: str
    fault: dict[str, Any]
    rate: int
    served: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    uplink: http.client.HTTPSConnection | None = None

    def within(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """The pieces of a range, cut to it."""
        found = []
        for start, size, number in self.pieces:
            low, high = max(start, offset), min(start + size, offset + length)
            if low < high:
                found.append((low, high - low, number))
        return found


def open(readonly: bool) -> Disk:
    _place.name = f"vddk[{next(_connections)}]: "
    try:
        return _open(readonly)
    except Refused:
        nbdkit.set_error(errno.EIO)
        raise
    except OSError as error:
        nbdkit.set_error(errno.EIO)
        raise Refused(f"VixDiskLib_ConnectEx: Cannot connect to host: {error}") from None


def _open(readonly: bool) -> Disk:
    cookie, owned = given.get("cookie", ""), False
    _check_thumbprint()
    if not cookie:
        cookie, owned = _login(), True
    try:
        layout = _layout(cookie, readonly)
    finally:
        if owned:
            _soap('<Logout xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this></Logout>', cookie)
    fault = layout.get("fault") or {}
    if fault.get("kind") in ("fault", "task", "http503"):
        raise Refused(f"VixDiskLib_Open: {given['file']}: {fault.get('message') or 'Unknown error'}")
    files = []
    for path in layout["files"]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"VixDiskLib_Open: {given['file']}: Failed to lock the file") from None
        files.append(descriptor)
    return Disk(
        capacity=layout["capacity"],
        files=files,
        pieces=[(start, size, number) for start, size, number in layout["pieces"]],
        writable=not readonly,
        ticket=layout["ticket"],
        fault=fault,
        rate=layout.get("bytesPerSecond", 0),
    )


def _connection() -> http.client.HTTPSConnection:
    """The thumbprint is the check, as in VDDK: a certificate is right if it is the one named."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(given["server"], int(given.get("port", "443")), context=context, timeout=60)


def _check_thumbprint() -> None:
    connection = _connection()
    connection.connect()
    certificate = connection.sock.getpeercert(binary_form=True)
    connection.close()
    seen = hashlib.sha1(certificate).hexdigest().upper()
    wanted = re.sub(r"[^0-9A-F]", "", given["thumbprint"].upper())
    if seen != wanted:
        pairs = ":".join(re.findall("..", seen))
        raise Refused(f"VixDiskLib_ConnectEx: SSL exception: the peer's thumbprint {pairs} is not the expected one")


def _soap(body: str, cookie: str = "") -> http.client.HTTPResponse:
    connection = _connection()
    headers = {"Content-Type": "text/xml", "SOAPAction": "urn:vim25/6.5"} | _cookie(cookie)
    connection.request("POST", "/sdk", LOGIN.format(body=body), headers)
    answer = connection.getresponse()
    answer.text = answer.read().decode(errors="replace")  # type: ignore[attr-defined]
    connection.close()
    return answer


def _cookie(value: str) -> dict[str, str]:
    if not value:
        return {}
    return {"Cookie": value if value.startswith("vmware_soap_session=") else f'vmware_soap_session="{value}"'}


def _login() -> str:
    user, password = (saxutils.escape(given[name]) for name in ("user", "password"))
    answer = _soap(
        '<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this>'
        f"<userName>{user}</userName><password>{password}</password></Login>"
    )
    found = re.search(r'vmware_soap_session="?([^";]+)', answer.headers.get("Set-Cookie", ""))
    if answer.status != 200 or not found:
        if "InvalidLogin" in answer.text:  # type: ignore[attr-defined]
            raise Refused("VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password")
        raise Refused(f"VixDiskLib_ConnectEx: Cannot connect to host (HTTP {answer.status})")
    return found[1]


def _layout(cookie: str, readonly: bool) -> dict[str, Any]:
    query = {"vm": given["vm"], "snapshot": given.get("snapshot", ""), "file": given["file"], "readonly": int(readonly)}
    connection = _connection()
    connection.request("GET", "/lab/vddk?" + urllib.parse.urlencode(query), headers=_cookie(cookie))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status == 401:
        raise Refused("VixDiskLib_ConnectEx: The session is not authenticated")
    if answer.status != 200:
        raise Refused(body.decode(errors="replace").strip() or f"VixDiskLib_ConnectEx: HTTP {answer.status}")
    layout: dict[str, Any] = json.loads(body)
    return layout


def close(disk: Disk) -> None:
    for descriptor in disk.files:
        os.close(descriptor)
    if disk.uplink:
        disk.uplink.close()


def get_size(disk: Disk) -> int:
    return disk.capacity


def block_size(_disk: Disk) -> tuple[int, int, int]:
    return (SECTOR, 4096, 0xFFFFFFFF)


def can_write(disk: Disk) -> bool:
    return disk.writable


def can_multi_conn(disk: Disk) -> bool:
    return not disk.writable


def can_extents(_disk: Disk) -> bool:
    return True


def can_flush(_disk: Disk) -> bool:
    return True


def flush(_disk: Disk, _flags: int) -> None:
    """The lab writes through."""


def _aligned(offset: int, length: int) -> None:
    if offset % SECTOR or length % SECTOR:
        nbdkit.set_error(errno.EINVAL)
        raise Refused("request is not aligned to sectors")


def _trouble(disk: Disk, length: int) -> None:
    """The switched-on fault, once so many bytes are served; and the pace of a slow disk."""
    with disk.lock:
        disk.served += length
        due = bool(disk.fault) and disk.served > disk.fault.get("afterBytes", 0)
    kind, seconds = disk.fault.get("kind"), disk.fault.get("seconds", 0)
    if due and kind == "reset":
        print("nbdkit: vddk: the process ends by a fault", file=sys.stderr, flush=True)
        os._exit(9)
    if due and kind == "hang":
        time.sleep(seconds or 3600)
    if due and kind == "slow":
        time.sleep(seconds)
    if due and kind in ("truncate", "expire"):
        nbdkit.set_error(errno.EIO)
        raise Refused(f"VixDiskLib_Read: {disk.fault.get('message') or 'NFC error: the connection was lost'}")
    if disk.rate:
        with disk.lock:
            time.sleep(length / disk.rate)


def pread(disk: Disk, buffer: memoryview, offset: int, _flags: int) -> None:
    _place.name = "vddk.0: "
    _aligned(offset, len(buffer))
    _trouble(disk, len(buffer))
    view, position = memoryview(buffer), 0
    for start, length, number in disk.within(offset, len(buffer)):
        low, high = start - offset, start - offset + length
        view[position:low] = bytes(low - position)
        position = low
        while position < high:
            count = os.preadv(disk.files[number], [view[position:high]], offset + position)
            if count == 0:
                view[position:high] = bytes(high - position)
                break
            position += count
        position = high
    view[position:] = bytes(len(view) - position)


def pwrite(disk: Disk, buffer: memoryview, offset: int, _flags: int) -> None:
    _place.name = "vddk.0: "
    _aligned(offset, len(buffer))
    _trouble(disk, len(buffer))
    with disk.lock:
        if disk.uplink is None:
            disk.uplink = _connection()
        query = urllib.parse.urlencode({"ticket": disk.ticket, "offset": offset})
        disk.uplink.request("POST", "/lab/vddk?" + query, bytes(buffer))
        answer = disk.uplink.getresponse()
        text = answer.read()
    if answer.status != 200:
        nbdkit.set_error(errno.EIO)
        raise Refused(f"VixDiskLib_Write: {text.decode(errors='replace').strip()}")


def extents(disk: Disk, count: int, offset: int, _flags: int) -> list[tuple[int, int, int]]:
    """What is allocated, in chunks: one is a hole only if no file of the stack holds a byte of it."""
    found: list[tuple[int, int, int]] = []
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    first, position = offset // CHUNK * CHUNK, offset
    end = min(disk.capacity, -(-(offset + count) // CHUNK) * CHUNK)
    for low, high in _allocated(disk, first, end):
        if low > position:
            found.append((position, low - position, hole))
        position = max(position, low)
        if high > position:
            found.append((position, high - position, 0))
            position = high
    if position < end:
        found.append((position, end - position, hole))
    return found


def _allocated(disk: Disk, first: int, end: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for start, length, number in disk.within(first, end - first):
        position, stop = start, start + length
        while position < stop:
            try:
                data = os.lseek(disk.files[number], position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            if data >= stop:
                break
            position = min(stop, os.lseek(disk.files[number], data, os.SEEK_HOLE))
            low, high = data // CHUNK * CHUNK, min(disk.capacity, -(-position // CHUNK) * CHUNK)
            if runs and low <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(high, runs[-1][1]))
            else:
                runs.append((low, high))
    return runs
