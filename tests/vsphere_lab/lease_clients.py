"""A client of the lab's leases, as a backup program has it: pyvmomi for the calls, plain HTTPS for the bodies."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim import connect
from pyVmomi import vim, vmodl

sys.path.append(str(Path(__file__).resolve().parents[2] / "hack"))

from vsphere_labs import Lab, available

PATIENCE = 30
#: For modules of tests that start the lab.
needs_lab = pytest.mark.skipif(bool(available()), reason=available())


def trust(lab: Lab) -> ssl.SSLContext:
    """Trust in the lab's authority and no other."""
    return ssl.create_default_context(cafile=str(lab.ca_file))


@contextlib.contextmanager
def session(lab: Lab) -> Iterator[Any]:
    """A login; yields the service instance."""
    instance = connect.SmartConnect(
        host=lab.host, port=lab.port, user=lab.username, pwd=lab.password, sslContext=trust(lab)
    )
    try:
        yield instance
    finally:
        with contextlib.suppress(vmodl.RuntimeFault, OSError):
            connect.Disconnect(instance)


def find(instance: Any, kind: Any, name: str) -> Any:
    """The object of that kind and name."""
    content = instance.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        return next(one for one in view.view if one.name == name)
    finally:
        view.Destroy()


def done(task: Any) -> Any:
    """The result of a task; its fault is raised."""
    deadline = time.monotonic() + PATIENCE
    while task.info.state not in ("success", "error"):
        assert time.monotonic() < deadline, f"{task.info.name} does not end"
        time.sleep(0.01)
    if task.info.state == "error":
        raise task.info.error
    return task.info.result


def snapshot(machine: Any, name: str) -> Any:
    """A new snapshot of a machine."""
    return done(machine.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=False))


def wait(lease: Any, *states: str) -> str:
    """The state of a lease once it is one of these ("ready" if none is named)."""
    deadline = time.monotonic() + PATIENCE
    while (state := str(lease.state)) not in (states or ("ready",)):
        assert time.monotonic() < deadline, f"the lease stays {state}"
        time.sleep(0.01)
    return state


def connection(lab: Lab) -> http.client.HTTPSConnection:
    """A connection without any login: the ticket in the URL is all a lease asks for."""
    return http.client.HTTPSConnection(lab.host, lab.port, context=trust(lab), timeout=PATIENCE)


def target(url: str) -> str:
    """The path of a lease's URL, whose host ``*`` stands for the one that gave the lease."""
    parts = urllib.parse.urlsplit(url)
    assert (parts.scheme, parts.netloc) == ("https", "*")
    return parts.path


def fetch(lab: Lab, url: str, to: Path) -> int:
    """The status of a GET, whose body goes to a file."""
    with contextlib.closing(connection(lab)) as link:
        link.request("GET", target(url))
        answer = link.getresponse()
        to.write_bytes(answer.read())
        return answer.status


def send(lab: Lab, url: str, body: bytes, method: str = "PUT") -> tuple[int, str]:
    """The status and text of a PUT or POST."""
    with contextlib.closing(connection(lab)) as link:
        link.request(method, target(url), body, {"Content-Type": "application/x-vnd.vmware-streamVmdk"})
        answer = link.getresponse()
        return answer.status, answer.read().decode()


def raw(stream: Path) -> bytes:
    """The disk in a stream-optimized VMDK, by qemu-img, which checks it first."""
    subprocess.run(["qemu-img", "check", "-q", "-f", "vmdk", stream], check=True)
    flat = stream.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-q", "-f", "vmdk", "-O", "raw", stream, flat], check=True)
    return flat.read_bytes()


def packed(content: bytes, folder: Path, subformat: str = "streamOptimized") -> bytes:
    """A disk as a VMDK of one file, by qemu-img."""
    flat, made = folder / "content.raw", folder / f"{subformat}.vmdk"
    flat.write_bytes(content)
    options = ["-O", "vmdk", "-o", f"subformat={subformat}"]
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", *options, flat, made], check=True)
    return made.read_bytes()


__all__ = [
    "Lab",
    "connection",
    "done",
    "fetch",
    "find",
    "needs_lab",
    "packed",
    "raw",
    "send",
    "session",
    "snapshot",
    "target",
    "trust",
    "vim",
    "vmodl",
    "wait",
]
