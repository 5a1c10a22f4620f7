"""The vCenter that tests, the demo, the benchmark and the soak run against: hack/vsphere-lab, held from Python.

``with Lab.start(folder, machines=[...]) as lab`` builds the peer if its sources changed, starts it on an estate, and
gives both sides of it: the address a product is pointed at, and the control interface by which a test writes as the
guest, freezes nothing, breaks calls and kills the vCenter. What the peer holds lies in ``folder`` and survives a crash.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / ".lab"
#: Seconds until a peer that does not answer counts as failed.
PATIENCE = 60
#: Where a configuration names no others.
USERNAME, PASSWORD = "administrator@vsphere.local", "lab password: 1"


class LabError(Exception):
    """The lab refused, or does not start; the text is the peer's own."""


def build() -> Path:
    """The peer's program, built first if its sources changed; safe from several processes at once."""
    made = subprocess.run([ROOT / "hack" / "vsphere-lab", "build"], capture_output=True, text=True, check=False)
    if made.returncode:
        raise LabError(made.stderr)
    return LAB / "vsphere-lab"


@dataclasses.dataclass(kw_only=True)
class Lab:
    """A running peer. Names of machines and labels of disks are those of its configuration."""

    folder: Path
    username: str
    password: str
    host: str = "127.0.0.1"
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    #: Connections to the control interface.
    _idle: list[http.client.HTTPSConnection] = dataclasses.field(default_factory=list, init=False, repr=False)

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        folder: Path,
        *,
        machines: Sequence[Mapping[str, Any]] = (),
        datacenters: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> Iterator[Lab]:
        """A peer on a new estate in ``folder``; further settings are those of the configuration (``taskMillis=5``)."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"machines": list(machines), **settings}
        if datacenters:
            config["datacenters"] = list(datacenters)
        config.setdefault("username", USERNAME)
        config.setdefault("password", PASSWORD)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        lab = cls(folder=folder, username=config["username"], password=config["password"])
        build()
        lab.restart()
        try:
            yield lab
        finally:
            lab.stop()

    @classmethod
    @contextlib.contextmanager
    def resume(cls, folder: Path) -> Iterator[Lab]:
        """A peer on the folder of an earlier one."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lab = cls(folder=folder, username=config.get("username", USERNAME), password=config.get("password", PASSWORD))
        build()
        lab.restart()
        try:
            yield lab
        finally:
            lab.stop()

    # The peer as a program

    def restart(self) -> None:
        """Start the peer on what lies in its folder, at the port it had."""
        self._hang_up()
        was = self.folder / "port"
        port = was.read_text() if was.exists() else "0"
        was.unlink(missing_ok=True)
        command = [LAB / "vsphere-lab", self.folder, port, LAB / "tls" / "server.pem", LAB / "tls" / "server.key"]
        with self.log.open("ab") as log:
            environment = {**os.environ, "VSPHERE_LAB_ENDS_WITH_PARENT": "1"}
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + PATIENCE
        while not was.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise LabError(f"the peer does not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)
        self.port = int(was.read_text())

    def crash(self) -> None:
        """kill -9 of the peer; nothing is closed or said good-bye to."""
        assert self.process is not None
        self._hang_up()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """End the peer; its folder stays."""
        self._hang_up()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE)

    # What a product is told

    @property
    def log(self) -> Path:
        """What the peer wrote to its standard output and error."""
        return self.folder / "log"

    @property
    def ca_file(self) -> Path:
        """The authority that signed the peer's certificate."""
        return LAB / "tls" / "ca.pem"

    @property
    def other_ca_file(self) -> Path:
        """An authority that did not."""
        return LAB / "tls" / "other-ca.pem"

    def _certificate(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert((LAB / "tls" / "server.pem").read_text(encoding="ascii"))

    @property
    def thumbprint_sha1(self) -> str:
        """SHA-1 of the certificate as vSphere writes it, "AA:BB:..."."""
        return hashlib.sha1(self._certificate()).digest().hex(":").upper()

    @property
    def thumbprint_sha256(self) -> str:
        """SHA-256 of the certificate, "AA:BB:..."."""
        return hashlib.sha256(self._certificate()).digest().hex(":").upper()

    @property
    def nbdkit(self) -> Path:
        """A program that takes the command line of nbdkit with its vddk plugin."""
        return ROOT / "hack" / "vsphere_lab" / "nbdkit_vddk"

    @property
    def libdir(self) -> Path:
        """A folder that passes for VDDK's: its library is there, and empty."""
        library = self.folder / "vddk" / "lib64" / "libvixDiskLib.so.8"
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
        return library.parent.parent

    def environment(self) -> dict[str, str]:
        """The variables that the manifest of ``vcenter_yaml`` takes its credentials from."""
        return {"HOLDFAST_LAB_USERNAME": self.username, "HOLDFAST_LAB_PASSWORD": self.password}

    def vcenter_yaml(self, transports: Sequence[str] = ("datastore",), **extra: Any) -> str:
        """A VCenter manifest named ``lab`` that fits; ``extra`` goes into its spec."""
        spec = {
            "server": self.host,
            "port": self.port,
            "tls": {"caFile": str(self.ca_file)},
            "credentialRef": {"env": "HOLDFAST_LAB"},
            "transports": list(transports),
            "vddk": {"nbdkit": str(self.nbdkit), "libdir": str(self.libdir)},
            **extra,
        }
        document = {"apiVersion": "holdfast/v1alpha1", "kind": "VCenter", "metadata": {"name": "lab"}, "spec": spec}
        return json.dumps(document, indent=2) + "\n"  # JSON is YAML

    # The control interface

    def _ask(self, method: str, path: str, body: bytes | None = None, **query: Any) -> bytes:
        secret = base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")
        given = {key: value for key, value in query.items() if value is not None}
        target = path + ("?" + urllib.parse.urlencode(given) if given else "")
        connection = self._connection()
        try:
            connection.request(method, target, body, {"Authorization": f"Basic {secret}"})
            answer = connection.getresponse()
            content = answer.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        if answer.status != 200:
            raise LabError(f"{method} {target}: {answer.status} {content.decode(errors='replace').strip()}")
        return content

    def _connection(self) -> http.client.HTTPSConnection:
        """One that nobody uses, or another one: greeting the peer costs more than most answers."""
        try:
            return self._idle.pop()
        except IndexError:
            return http.client.HTTPSConnection(self.host, self.port, context=self._trust, timeout=PATIENCE)

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _hang_up(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _tell(self, path: str, value: Mapping[str, Any]) -> Any:
        return json.loads(self._ask("POST", path, json.dumps(value).encode()) or b"null")

    def write(self, vm: str, disk: str | int, offset: int, data: bytes) -> None:
        """What the guest writes: into the delta when a snapshot is open. ``disk`` is a label, a key or a slot."""
        self._ask("POST", "/lab/write", data, vm=vm, disk=disk, offset=offset)

    def read(self, vm: str, disk: str | int, offset: int, length: int | None = None) -> bytes:
        """What the guest would read now."""
        return self._ask("GET", "/lab/read", vm=vm, disk=disk, offset=offset, length=length)

    def content(self, vm: str, disk: str | int) -> bytes:
        """The whole live content of a disk."""
        return self.read(vm, disk, 0)

    def frozen(self, vm: str, disk: str | int, snapshot: str) -> bytes:
        """The whole content of a disk as a snapshot (its reference or name) froze it."""
        return self._ask("GET", "/lab/read", vm=vm, disk=disk, offset=0, snapshot=snapshot)

    def state(self) -> dict[str, Any]:
        """Machines with their snapshots and disks, leases, sessions, counts of calls, and the last events."""
        found: dict[str, Any] = json.loads(self._ask("GET", "/lab/state"))
        return found

    def machine(self, vm: str) -> dict[str, Any]:
        """One machine of ``state``."""
        for one in self.state()["machines"]:
            if vm in (one["name"], one["moref"]):
                return dict(one)
        raise LabError(f"there is no machine {vm!r}")

    def fault(self, **rule: Any) -> int:
        """Let calls go wrong: ``on``, ``kind``, and what ``hack/vsphere_lab/faults.go`` lists."""
        return int(self._tell("/lab/faults", rule)["id"])

    def clear_faults(self) -> None:
        """Let all calls go right again."""
        self._ask("DELETE", "/lab/faults")

    def mode(self, **modes: Any) -> None:
        """Change how the peer answers: ``starIsWholeDisk``, ``areasPerAnswer``, ``sessionSeconds`` and the like."""
        self._tell("/lab/modes", modes)

    def act(self, vm: str, what: str, **arguments: Any) -> Any:
        """What happens in the estate: ``rename``, ``move``, ``power``, ``revert`` and the like."""
        return self._tell("/lab/act", {"vm": vm, "what": what, **arguments})


def available() -> str:
    """Why the lab cannot run here, "" if it can."""
    if not Path("/usr/share/gocode/src/github.com/vmware/govmomi").is_dir():
        return "golang-github-vmware-govmomi-dev is not installed"
    if not any(os.access(Path(folder) / "go", os.X_OK) for folder in os.get_exec_path()):
        return "golang-go is not installed"
    return ""
