"""Disks through a program that takes nbdkit-vddk's command line: what it is told, what it may know, and how it ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transport_samples as samples
from transport_samples import MIB, SIZE, Lab, Snapshot

from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import credentials, sessions
from reconciler.sources.vsphere.transports import ports, vddk

pytestmark = [samples.needs_peer, samples.needs_nbdkit]

VDDK = vddk.Vddk(patience=20, grace=5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One peer for all tests."""
    large = {"name": "large", "disks": [{"sizeBytes": 1 << 30}]}
    with samples.peer(tmp_path_factory.mktemp("lab"), [large]) as lab:
        yield lab


@pytest.fixture
def frozen(lab: Lab, taken: Snapshot) -> Iterator[ports.Frozen]:
    """The first disk, a peer without faults afterwards, and no process left."""
    taken.readers.clear()
    yield taken.frozen["Hard disk 1"]
    lab.clear_faults()
    assert [pid for pid in taken.readers if alive(pid)] == []


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children() -> set[int]:
    """Processes that we started."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text():
                found.add(int(entry.name))
    return found


def program(folder: Path, script: str) -> str:
    """A program that stands before the real one."""
    path = folder / "nbdkit"
    path.write_text("#!/bin/bash\n" + script)
    path.chmod(0o755)
    return str(path)


def through(lab: Lab, frozen: ports.Frozen, **changes: Any) -> ports.Frozen:
    """The same disk by a session whose vddk settings are others."""
    settings = {"nbdkit": str(lab.nbdkit), "libdir": str(lab.libdir), **changes}
    return dataclasses.replace(
        frozen, session=samples.session(lab, vddk={key: value for key, value in settings.items() if value is not None})
    )


def test_what_the_snapshot_froze_is_read_while_the_guest_writes(lab: Lab, session: sessions.Session) -> None:
    with samples.snapshot(session) as taken:
        for seed, frozen in enumerate(taken.frozen.values(), 1):
            assert VDDK.refuses(frozen) is None
            with VDDK.open(frozen) as disk:
                assert (disk.name, disk.size, disk.sector) == (frozen.disk.label, SIZE, 512)
                right = samples.content(seed=seed)
                lab.write("web 1", frozen.disk.label, 1024, b"m" * 512)
                assert samples.whole(disk, 300_001) == right
                assert samples.by_extents(disk) == right
                assert sum(length for _, length in disk.extents()) < SIZE // 2
                lab.write("web 1", frozen.disk.label, 1024, right[1024:1536])


def test_a_snapshot_above_another_is_read_as_the_chain_it_is(
    lab: Lab, session: sessions.Session, taken: Snapshot
) -> None:
    lab.write("web 1", "Hard disk 1", 5 * MIB, b"between the two" * 1000)
    right = bytearray(samples.content())
    right[5 * MIB : 5 * MIB + 15000] = b"between the two" * 1000
    with samples.snapshot(session) as second:
        frozen = second.frozen["Hard disk 1"]
        assert frozen.disk.parent is not None
        lab.write("web 1", "Hard disk 1", 5 * MIB, bytes(20000))
        with VDDK.open(frozen) as disk:
            assert samples.whole(disk) == bytes(right)
            assert samples.by_extents(disk) == bytes(right)
    with VDDK.open(taken.frozen["Hard disk 1"]) as disk:
        assert samples.whole(disk) == samples.content()


def test_any_reads_of_several_threads_are_right(frozen: ports.Frozen) -> None:
    right = samples.content()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            offset = rng.randrange(SIZE)
            length = min(rng.choice((0, 1, 511, 4096, 200_000, 5 * MIB)), SIZE - offset)
            assert bytes(disk.pread(offset, length)) == right[offset : offset + length]

    with VDDK.open(frozen) as disk:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))
        for offset, length in ((0, SIZE + 1), (SIZE, 1), (-1, 2)):
            with pytest.raises(ValueError, match="beyond"):
                disk.pread(offset, length)


def test_the_command_line_is_that_of_the_plugin(lab: Lab, frozen: ports.Frozen, tmp_path: Path) -> None:
    recorder = program(
        tmp_path, f'printf "%s\\n" "$@" >{tmp_path}/given; env >{tmp_path}/env; exec {lab.nbdkit} "$@"\n'
    )
    other = through(lab, frozen, nbdkit=recorder, transports=["hotadd", "nbdssl"], compression="fastlz")
    os.environ["SOME_TOKEN"] = "t0k3n"
    try:
        VDDK.open(other).close()
    finally:
        del os.environ["SOME_TOKEN"]
    given = (tmp_path / "given").read_text().splitlines()
    password = next(word for word in given if word.startswith("password="))
    assert given == [
        "-r", "-s", "vddk", f"libdir={lab.libdir}", f"server={lab.host}", f"port={lab.port}", f"user={lab.username}", password,
        f"thumbprint={lab.thumbprint_sha1}", f"vm=moref={frozen.reference}", f"snapshot={frozen.snapshot}",
        "transports=hotadd:nbdssl", "compression=fastlz", "file=[ds1] web 1/web 1.vmdk",
    ]  # fmt: skip
    assert password.removeprefix("password=-").isdigit() and int(password.removeprefix("password=-")) > 2
    environment = (tmp_path / "env").read_text()
    assert lab.password not in environment and "t0k3n" not in environment and "PATH=" in environment
    default = through(lab, frozen, nbdkit=recorder, libdir=None)
    with pytest.raises(errors.SourceError, match="libvixDiskLib") as caught:
        VDDK.open(default)
    assert "libdir" in (caught.value.hint or "")
    given = (tmp_path / "given").read_text().splitlines()
    assert not [word for word in given if word.startswith(("libdir", "compression"))]
    assert "transports=san:hotadd:nbdssl:nbd" in given


def test_no_process_shows_the_password(lab: Lab, frozen: ports.Frozen, taken: Snapshot) -> None:
    before = children()
    with VDDK.open(frozen) as disk:
        disk.pread(0, 512)
        (server,) = taken.readers
        assert "nbdkit" in Path(f"/proc/{server}/comm").read_text()
        family = children() - before
        assert len(family) == 2 and server in family, "the server and its guard"
        for pid in family:
            for name in ("cmdline", "environ"):
                shown = Path(f"/proc/{pid}/{name}").read_bytes()
                assert lab.password.encode() not in shown
    assert children() == before


def test_the_reader_is_noted_before_it_asks(lab: Lab, frozen: ports.Frozen) -> None:
    before = lab.state()["calls"]["Login"]
    seen: list[tuple[int, int]] = []

    def note(pid: int) -> None:
        time.sleep(0.2)
        seen.append((pid, lab.state()["calls"]["Login"]))

    VDDK.open(dataclasses.replace(frozen, read_by=note)).close()
    ((pid, logins),) = seen
    assert logins == before and not alive(pid)

    def refuse(pid: int) -> None:
        seen.append((pid, 0))
        raise errors.CatalogError("the note cannot be written")

    with pytest.raises(errors.CatalogError):
        VDDK.open(dataclasses.replace(frozen, read_by=refuse))
    assert not alive(seen[-1][0])


def test_a_physical_raw_device_and_a_missing_program_are_refused(lab: Lab, frozen: ports.Frozen) -> None:
    assert "physical" in (VDDK.refuses(samples.with_disk(frozen, kind="RawPhysical")) or "")
    for kind in ("Sparse", "SeSparse", "RawVirtual", "Flat"):
        assert VDDK.refuses(samples.with_disk(frozen, kind=kind)) is None
    other = through(lab, frozen, nbdkit="/nowhere/nbdkit")
    assert "/nowhere/nbdkit is not found" in (VDDK.refuses(other) or "")
    with pytest.raises(errors.SourceError, match="VM web 1: Hard disk 1: /nowhere/nbdkit is not found"):
        VDDK.open(other)


ACTIVATED = """
echo "$*" >>{folder}/calls
[[ " $* " == *" -s "* ]] && {{ {refusal}; }}
[[ "$LISTEN_FDS:$LISTEN_PID" == "1:$$" ]] || {{ echo 'no socket' >&2; exit 1; }}
exec {real} "$@"
"""
REFUSALS = {
    "usage": "echo 'usage: nbdkit [-r] vddk key=value' >&2; exit 2",
    "option": "echo \"nbdkit: unrecognized option '-s'\" >&2; exit 1",
    "script": "echo 'Traceback (most recent call last):' >&2; echo 'ValueError: need more than 1 value' >&2; exit 1",
    "port": "echo 'nbdkit: socket error: Address already in use' >&2; exit 1",
    "background": "(echo $BASHPID >{folder}/left; exec sleep 300) <&- >&- 2>&- & sleep 0.2; exit 0",
    "silence": "exit 0",
    "noise": "echo 'nbdkit: ready'; exit 0",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_program_without_a_single_connection_is_served_by_socket_activation(
    lab: Lab, frozen: ports.Frozen, taken: Snapshot, tmp_path: Path, refusal: str
) -> None:
    words = REFUSALS[refusal].format(folder=tmp_path)
    script = ACTIVATED.format(folder=tmp_path, refusal=words, real=lab.nbdkit)
    other = through(lab, frozen, nbdkit=program(tmp_path, script))
    before = children()
    for _ in range(2):
        began = time.monotonic()
        with VDDK.open(other) as disk:
            assert samples.by_extents(disk) == samples.content()
            assert samples.whole(disk) == samples.content()
            server = taken.readers[-1]
            assert alive(server) and len(children() - before) == 2, "the server and its guard"
        assert not alive(server) and children() == before
        assert time.monotonic() - began < 5, "nobody waited for it to end by itself"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [" -s " in call for call in calls] == [True, False, False], "it is not asked again"
    if refusal == "background":
        # Whoever inherits it may leave it a zombie.
        status = Path(f"/proc/{int((tmp_path / 'left').read_text())}/status")
        assert not status.exists() or "zombie" in status.read_text(), "what it left behind is gone"


def test_a_refusal_is_never_asked_again(lab: Lab, frozen: ports.Frozen, tmp_path: Path) -> None:
    refusal = "echo 'nbdkit: vddk[1]: error: the login was refused' >&2; exit 1"
    script = ACTIVATED.format(folder=tmp_path, refusal=refusal, real=lab.nbdkit)
    other = through(lab, frozen, nbdkit=program(tmp_path, script))
    with pytest.raises(errors.SourceError, match="the login was refused"):
        VDDK.open(other)
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_neither_way_is_the_first_ways_fault(lab: Lab, frozen: ports.Frozen, tmp_path: Path) -> None:
    script = "[[ \" $* \" == *\" -s \"* ]] && echo 'usage: with a socket' >&2 || echo 'usage: without' >&2; exit 2\n"
    other = through(lab, frozen, nbdkit=program(tmp_path, script))
    with pytest.raises(errors.SourceError, match="usage: with a socket"):
        VDDK.open(other)


WRONG = 'exec {real} "${{@/thumbprint=*/thumbprint=00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33}}"\n'


@pytest.mark.parametrize(
    ("script", "words", "hint"),
    [
        (WRONG, "thumbprint", "renewed meanwhile"),
        ('exec {real} "${{@/snapshot=*/snapshot=snapshot-99999}}"\n', "snapshot does not exist", "new snapshot"),
        ('exec {real} "${{@/vm=*/vm=moref=vm-99999}}"\n', "machine cannot be found", "new snapshot"),
        ('exec {real} "${{@/file=*/file=[ds1] x/y.vmdk}}"\n', "VixDiskLib_Open", ""),
        ('exec {real} "${{@/server=*/server=127.0.0.2}}"\n', "opening: nbdkit: ", ""),
        ('exec nbdkit "$@"\n', "vddk", "vddk plugin"),
        ("echo 'nbdkit: vddk[1]: error: host is not licensed for this' >&2; exit 1\n", "not licensed", "license"),
        ("echo 'nbdkit: vddk[1]: error: [NFC ERROR] NfcFssrvrProcessErrorMsg: received NFC error 5 from server: Failed to "
         "allocate the requested 2097176 bytes' >&2; exit 1\n", "Failed to allocate", "perHost"),
        ("exec {real} -r -s memory 9M\n", "serves 9437184 bytes, the disk has 9439744", "resized"),
        ("exec /bin/true\n", "opening", ""),
    ],
    ids=["thumbprint", "snapshot", "machine", "file", "server", "plugin", "license", "buffers", "size", "silent"],
)  # fmt: skip
def test_what_cannot_be_opened_is_said_in_the_librarys_words(
    lab: Lab, frozen: ports.Frozen, tmp_path: Path, script: str, words: str, hint: str
) -> None:
    other = through(lab, frozen, nbdkit=program(tmp_path, script.format(real=lab.nbdkit)))
    with pytest.raises(errors.SourceError, match=words) as caught:
        VDDK.open(other)
    assert caught.value.message.startswith("VM web 1: Hard disk 1: ")
    assert hint in (caught.value.hint or "")
    assert lab.password not in str(caught.value)


def test_a_wrong_password_is_refused(lab: Lab, frozen: ports.Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_LAB_PASSWORD", "-wrong +one")
    with pytest.raises(errors.SourceError, match="incorrect user name or password") as caught:
        VDDK.open(frozen)
    assert "-wrong" not in str(caught.value)
    monkeypatch.delenv("HOLDFAST_LAB_PASSWORD")
    with pytest.raises(credentials.NoCredential):
        VDDK.open(frozen)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "reset", "afterBytes": MIB}, "the process ends by a fault"),
        ({"kind": "truncate", "message": "NFC error: locked"}, "NFC error: locked"),
        ({"kind": "hang"}, "did not answer for 3 s"),
    ],
    ids=["dies", "fails", "hangs"],
)
def test_a_server_that_breaks_while_it_is_read_is_an_error(
    lab: Lab, frozen: ports.Frozen, fault: dict[str, Any], words: str
) -> None:
    lab.fault(on="nbdkit", count=0, **fault)
    # A stand-in that opens slowly on a busy host would count as hung.
    way = vddk.Vddk(patience=3.0, grace=1.0) if fault["kind"] == "hang" else VDDK
    with way.open(frozen) as disk:
        with pytest.raises(errors.SourceError, match=words) as caught:
            samples.whole(disk)
        assert caught.value.retryable
        assert caught.value.message.startswith("VM web 1: Hard disk 1: [ds1] web 1/web 1.vmdk: reading ")
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_an_open_that_is_refused_is_said(lab: Lab, frozen: ports.Frozen) -> None:
    lab.fault(on="nbdkit", kind="fault", message="One of the parameters was invalid")
    with pytest.raises(errors.SourceError, match="One of the parameters was invalid"):
        VDDK.open(frozen)
    with VDDK.open(frozen) as disk:
        assert samples.whole(disk) == samples.content()


@pytest.mark.parametrize("option", ["--filter=noextents", "--no-sr"])
def test_without_allocation_the_whole_disk_is_read(lab: Lab, frozen: ports.Frozen, tmp_path: Path, option: str) -> None:
    other = through(lab, frozen, nbdkit=program(tmp_path, f'exec {lab.nbdkit} {option} "$@"\n'))
    with VDDK.open(other) as disk:
        assert disk.extents() == ((0, SIZE),)
        assert samples.by_extents(disk) == samples.content()


def test_work_that_was_asked_to_stop_stops(frozen: ports.Frozen) -> None:
    meter = meters.Meter()
    with VDDK.open(dataclasses.replace(frozen, meter=meter)) as disk:
        meter.cancel()
        with pytest.raises(errors.Cancelled):
            disk.pread(0, 512)


CHILD = """
import dataclasses, json, sys
sys.path.insert(0, "tests/vsphere")
import transport_samples as samples
from reconciler.api import vcenters
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.transports import vddk
import resource
vcenter = vcenters.VCenter.model_validate(json.loads(sys.argv[1]))
session = sessions.Session(vcenter.name, vcenter.spec)
with samples.snapshot(session, sys.argv[2]) as taken:
    frozen = next(iter(taken.frozen.values()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if len(sys.argv) > 4:
        spec = session.spec.model_copy(update={"vddk": session.spec.vddk.model_copy(update={"nbdkit": sys.argv[4]})})
        frozen = dataclasses.replace(frozen, session=sessions.Session("other", spec))
    with vddk.Vddk().open(frozen) as disk:
        print(*taken.readers, flush=True)
        if sys.argv[3] == "wait":
            sys.stdin.read()
        for offset in range(0, min(disk.size, 384 << 20), 1 << 20):
            disk.pread(offset, 1 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
session.logout()
"""


def child(lab: Lab, machine: str, what: str, *nbdkit: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, lab.vcenter_yaml(), machine, what, *nbdkit]
    return subprocess.Popen(command, cwd=samples.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_memory_does_not_grow_with_the_disk(lab: Lab) -> None:
    with child(lab, "large", "read") as reading:
        out, _ = reading.communicate(timeout=60)
    assert reading.returncode == 0
    assert int(out.splitlines()[-1]) < 40 * 1024, "KiB more than before the disk was opened"


@pytest.mark.parametrize("way", ["single", "activation"])
def test_the_server_does_not_outlive_a_kill(tmp_path: Path, way: str) -> None:
    with samples.peer(tmp_path / "lab") as lab:
        script = ACTIVATED.format(folder=tmp_path, refusal=REFUSALS["usage"], real=lab.nbdkit)
        nbdkit = [program(tmp_path, script)] if way == "activation" else []
        with child(lab, "web 1", "wait", *nbdkit) as reading:
            assert reading.stdout is not None
            server = int(reading.stdout.readline().split()[-1])
            assert alive(server)
            reading.send_signal(signal.SIGKILL)
            reading.wait()
            deadline = time.monotonic() + 5
            while alive(server) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not alive(server)
