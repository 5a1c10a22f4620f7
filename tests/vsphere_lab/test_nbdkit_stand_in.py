"""The stand-in for nbdkit with the vddk plugin: nbdkit's command line, VDDK's refusals, the lab's frozen disks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim

from reconciler.sources.nbd import bindings

nbd = bindings.libnbd()
pytestmark = [
    clients.needs_lab,
    pytest.mark.skipif(
        not list(Path("/usr/lib").glob("*/nbdkit/plugins/nbdkit-python-plugin.so")),
        reason="nbdkit-plugin-python is not installed",
    ),
]

MIB = 1 << 20
MACHINES = [
    {
        "name": "web",
        "disks": [
            {"label": "Hard disk 1", "sizeBytes": 24 * MIB + 1536},
            {"label": "Hard disk 2", "sizeBytes": 2 * MIB, "kind": "sparse"},
        ],
    },
    {"name": "off", "powerState": "poweredOff", "changeTracking": True, "disks": [{"sizeBytes": 4 * MIB}]},
]


@dataclasses.dataclass(kw_only=True)
class Nbdkit:
    """The command line, from parameters that a test may change."""

    lab: Lab
    folder: Path
    parameters: dict[str, str]
    options: list[str]

    def command(self, **changes: str | None) -> list[str]:
        given = {key: value for key, value in (self.parameters | changes).items() if value is not None}
        return [str(self.lab.nbdkit), *self.options, "vddk", *(f"{key}={value}" for key, value in given.items())]

    def handle(self, **changes: str | None) -> Any:
        """A connection by socket activation, the server's standard error in a file."""
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        command = self.command(**changes)
        wrapped = ["sh", "-c", f'exec "$@" 2>>{self.folder}/stderr', "sh", *command]
        handle.connect_systemd_socket_activation(wrapped)
        return handle

    def refused(self, **changes: str | None) -> str:
        """What standard error says of a connection that fails."""
        with pytest.raises(nbd.Error):
            self.handle(**changes)
        return (self.folder / "stderr").read_text()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start(tmp_path_factory.mktemp("lab"), machines=MACHINES, taskMillis=5) as lab:
        yield lab


@pytest.fixture
def instance(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance
    lab.clear_faults()


@pytest.fixture
def web(instance: Any) -> Iterator[Any]:
    machine = clients.find(instance, vim.VirtualMachine, "web")
    yield machine
    clients.done(machine.RemoveAllSnapshots_Task())


def on(lab: Lab, folder: Path, machine: str, snapshot: str | None, disk: int = 0) -> Nbdkit:
    password = folder / "password"
    password.write_text(lab.password + "\n")
    state = lab.machine(machine)
    disks = (
        state["disks"]
        if snapshot is None
        else next(one["disks"] for one in state["snapshots"] if one["moref"] == snapshot)
    )
    parameters = {
        "libdir": str(lab.libdir),
        "server": lab.host,
        "port": str(lab.port),
        "user": lab.username,
        "password": f"+{password}",
        "thumbprint": lab.thumbprint_sha1,
        "vm": f"moref={state['moref']}",
        "transports": "san:hotadd:nbdssl:nbd",
        "file": disks[disk]["file"],
    }
    if snapshot is not None:
        parameters["snapshot"] = snapshot
    options = ["--exit-with-parent"] if snapshot is None else ["-r", "--exit-with-parent"]
    return Nbdkit(lab=lab, folder=folder, parameters=parameters, options=options)


def read_all(handle: Any) -> bytes:
    size = handle.get_size()
    return b"".join(handle.pread(min(MIB, size - at), at) for at in range(0, size, MIB))


def extents(handle: Any) -> list[tuple[int, int]]:
    """Runs that are no holes: (offset, length)."""
    found: list[tuple[int, int]] = []
    at, size = 0, handle.get_size()

    def note(_context: str, start: int, entries: list[int], _error: Any) -> int:
        nonlocal at
        at = start
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if not flags & 2:
                found.append((at, length))
            at += length
        return 0

    while at < size:
        handle.block_status(size - at, at, note)
    return found


def test_a_snapshot_is_read_as_it_was_frozen(lab: Lab, web: Any, tmp_path: Path) -> None:
    rng = random.Random(1)
    lab.write("web", "Hard disk 1", 3 * MIB, rng.randbytes(100_000))
    lab.write("web", "Hard disk 1", 24 * MIB, rng.randbytes(1536))
    lab.write("web", "Hard disk 2", 70_000, rng.randbytes(200_000))
    snapshot = clients.snapshot(web, "first")._moId
    frozen = [lab.content("web", f"Hard disk {n}") for n in (1, 2)]
    lab.write("web", "Hard disk 1", 3 * MIB, b"later" * 1000)
    lab.write("web", "Hard disk 2", 0, b"later" * 1000)
    for disk, content in enumerate(frozen):
        handle = on(lab, tmp_path, "web", snapshot, disk).handle()
        assert handle.is_read_only()
        assert read_all(handle) == content
        held = extents(handle)
        covered = bytearray(len(content))
        for at, length in held:
            covered[at : at + length] = content[at : at + length]
        assert bytes(covered) == content, "a hole held data"
        assert sum(length for _, length in held) < len(content) // 3
        handle.shutdown()


def test_a_snapshot_on_a_snapshot_is_read_through_its_chain(lab: Lab, web: Any, tmp_path: Path) -> None:
    rng = random.Random(2)
    states = []
    for number in range(3):
        lab.write("web", "Hard disk 1", (5 + number) * MIB - 100, rng.randbytes(MIB + 200))
        snapshot = clients.snapshot(web, f"number {number}")._moId
        states.append((snapshot, lab.content("web", "Hard disk 1")))
    lab.write("web", "Hard disk 1", 0, rng.randbytes(9 * MIB))
    for snapshot, content in states:
        handle = on(lab, tmp_path, "web", snapshot).handle()
        assert read_all(handle) == content
        handle.shutdown()


def test_one_connection_over_standard_input_and_output(lab: Lab, web: Any, tmp_path: Path) -> None:
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    nbdkit.options = ["-r", "-s"]
    handle = nbd.NBD()
    handle.connect_command(nbdkit.command())
    assert read_all(handle) == lab.content("web", "Hard disk 1")
    handle.shutdown()


def test_an_open_session_is_as_good_as_a_password(lab: Lab, instance: Any, web: Any, tmp_path: Path) -> None:
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    cookie = instance._stub.cookie.split(";")[0]
    before = lab.state()["calls"].get("Login", 0)
    nbdkit.handle(cookie=cookie, password="unused").shutdown()
    nbdkit.handle(cookie=cookie.split("=")[1].strip('"'), password="unused").shutdown()
    assert lab.state()["calls"].get("Login", 0) == before
    assert "The session is not authenticated" in nbdkit.refused(cookie="none", password="unused")


def test_the_password_comes_by_file_by_descriptor_or_as_it_is(lab: Lab, web: Any, tmp_path: Path) -> None:
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    before = lab.state()["sessions"]
    nbdkit.handle().shutdown()
    nbdkit.handle(password=lab.password).shutdown()
    reader, writer = os.pipe()
    os.write(writer, lab.password.encode() + b"\n")
    os.close(writer)
    nbdkit.options = ["-r", "-U", "-", "--run", "nbdinfo --size $uri"]
    made = subprocess.run(
        nbdkit.command(password=f"-{reader}"), pass_fds=[reader], capture_output=True, text=True, timeout=60, check=True
    )
    os.close(reader)
    assert int(made.stdout) == 24 * MIB + 1536
    assert lab.state()["sessions"] == before, "the stand-in leaves no session behind"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"password": "wrong"},
            "VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password",
        ),
        ({"thumbprint": "00:11:22"}, "is not the expected one"),
        ({"vm": "moref=vm-9999"}, "VixDiskLib_ConnectEx: The virtual machine cannot be found"),
        ({"snapshot": "snapshot-9999"}, "VixDiskLib_ConnectEx: The snapshot does not exist"),
        ({"file": "[ds1] web/other.vmdk"}, "VixDiskLib_Open: [ds1] web/other.vmdk: A file was not found"),
        ({"snapshot": None}, "A file was not found"),
        ({"port": "1"}, "Connection refused"),
        ({"libdir": "/nowhere"}, "libvixDiskLib.so.8: cannot open shared object file"),
        ({"unknown": "x"}, "unknown parameter 'unknown'"),
        ({"compression": "best"}, "unknown compression type: best"),
        ({"transports": "carrier:nbd"}, "unknown transport mode: carrier"),
        ({"file": None}, "you must supply the file=<FILENAME> parameter"),
        ({"thumbprint": None}, "remote connection requested, missing parameter: thumbprint"),
        ({"vm": None}, "remote connection requested, missing parameter: vm"),
        ({"user": None}, "remote connection requested, missing parameter: user"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_refused_in_vddks_words(
    lab: Lab, web: Any, tmp_path: Path, changes: dict[str, str | None], says: str
) -> None:
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    said = nbdkit.refused(**changes)
    assert says in said
    assert all(re.match(r"nbdkit: (vddk\[\d\]: )?error: |If it lies elsewhere", line) for line in said.splitlines()), (
        said
    )


def test_a_running_machines_own_disk_is_locked(lab: Lab, web: Any, tmp_path: Path) -> None:
    assert "Failed to lock the file" in on(lab, tmp_path, "web", None).refused()


def test_a_snapshot_is_not_written(lab: Lab, web: Any, tmp_path: Path) -> None:
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    nbdkit.options = []
    assert "You do not have access rights to this file" in nbdkit.refused()


def test_a_snapshot_that_is_read_cannot_be_merged(lab: Lab, web: Any, tmp_path: Path) -> None:
    snapshot = clients.snapshot(web, "first")
    frozen = lab.content("web", "Hard disk 1")
    handle = on(lab, tmp_path, "web", snapshot._moId).handle()
    lab.write("web", "Hard disk 1", 0, b"later" * 1000)
    with pytest.raises(vim.fault.FileFault) as refused:
        clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert "Failed to lock the file" in refused.value.file
    assert read_all(handle) == frozen
    assert lab.machine("web")["consolidationNeeded"]
    live = lab.content("web", "Hard disk 1")
    handle.shutdown()
    del handle
    deadline = time.monotonic() + 30
    while lab.machine("web")["consolidationNeeded"]:
        assert time.monotonic() < deadline
        with contextlib.suppress(vim.fault.FileFault):  # until the reader's process is gone
            clients.done(web.ConsolidateVMDisks_Task())
    assert lab.machine("web")["disks"][0]["file"] == "[ds1] web/web.vmdk"
    assert lab.content("web", "Hard disk 1") == live != frozen


def test_the_disk_of_a_machine_that_is_off_is_written_and_tracked(lab: Lab, instance: Any, tmp_path: Path) -> None:
    off = clients.find(instance, vim.VirtualMachine, "off")
    first = clients.snapshot(off, "first")
    change = first.config.hardware.device
    (identity,) = [one.backing.changeId for one in change if isinstance(one, vim.vm.device.VirtualDisk)]
    clients.done(first.RemoveSnapshot_Task(removeChildren=False))
    content = random.Random(4).randbytes(MIB)
    nbdkit = on(lab, tmp_path, "off", None)
    handle = nbdkit.handle()
    assert not handle.is_read_only()
    handle.pwrite(content, 2 * MIB)
    assert handle.pread(MIB, 2 * MIB) == content
    assert "Failed to lock the file" in nbdkit.refused(), "somebody else writes"
    with pytest.raises(nbd.Error):
        handle.pwrite(b"x" * 100, 0)
    handle.flush()
    handle.shutdown()
    assert lab.read("off", "Hard disk 1", 2 * MIB, MIB) == content
    second = clients.snapshot(off, "second")
    (disk,) = [one for one in second.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    changed = off.QueryChangedDiskAreas(second, disk.key, 0, identity).changedArea
    assert [(one.start, one.length) for one in changed] == [(2 * MIB, MIB)]
    clients.done(second.RemoveSnapshot_Task(removeChildren=False))


def test_filters_and_other_plugins_are_nbdkits_own(lab: Lab, web: Any, tmp_path: Path) -> None:
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    nbdkit.options += ["-v", "-D", "vddk.stats=1", "--filter=cacheextents", "--filter=retry"]
    nbdkit.handle(retries="1").shutdown()
    assert "nbdkit: debug: " in (tmp_path / "stderr").read_text()
    memory = [str(lab.nbdkit), "-U", "-", "memory", "1M", "--run", "nbdinfo --size $uri"]
    assert subprocess.run(memory, capture_output=True, text=True, timeout=60, check=True).stdout == "1048576\n"
    dumped = subprocess.run(
        [lab.nbdkit, "vddk", "--dump-plugin"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "vddk_library_version=8" in dumped.stdout


def test_faults_strike_at_the_open_and_while_reading(lab: Lab, web: Any, tmp_path: Path) -> None:
    lab.write("web", "Hard disk 1", 0, b"x" * (2 * MIB))
    nbdkit = on(lab, tmp_path, "web", clients.snapshot(web, "first")._moId)
    lab.fault(on="nbdkit", vm="web", kind="fault", message="NFC_SESSION_ERROR")
    assert "VixDiskLib_Open: [ds1] web/web.vmdk: NFC_SESSION_ERROR" in nbdkit.refused()
    for kind in ("reset", "truncate"):
        lab.fault(on="nbdkit", vm="web", kind=kind, afterBytes=MIB)
        handle = nbdkit.handle()
        assert handle.pread(MIB, 0) == b"x" * MIB
        with pytest.raises(nbd.Error):
            handle.pread(MIB, MIB)
        if kind == "truncate":
            handle.shutdown()
            said = (tmp_path / "stderr").read_text()
            assert "nbdkit: vddk.0: error: VixDiskLib_Read: NFC error: the connection was lost\n" in said
    lab.fault(on="nbdkit", vm="web", kind="hang", seconds=0.3)
    handle = nbdkit.handle()
    assert handle.pread(512, 0) == b"x" * 512
    handle.shutdown()
