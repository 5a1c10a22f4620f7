"""Disks of stored images over NBD, read by the programs that people use, and nothing left when the server ends."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import export_samples as samples
import pytest

from reconciler.base import errors
from reconciler.operations import exports
from reconciler.sources.nbd import bindings

SIZE = 9 * samples.MIB + 4096


@pytest.fixture(params=samples.TYPES)
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> samples.Unit:
    return samples.Unit.make(tmp_path / "unit", request.param)


def _order(unit: samples.Unit, image: str = "img-1", **words: object) -> exports.Order:
    return exports.Order(image=image, copies=(exports.Copy(folder=unit.folder),), **words)  # type: ignore[arg-type]


def _run(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def _gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_every_disk_by_name_holes_and_all(unit: samples.Unit, tmp_path: Path) -> None:
    first = {"system.img": samples.content(SIZE, 1), "data disk.img": samples.content(3 * samples.MIB, 2)}
    unit.store("img-1", first)
    changed = bytearray(first["system.img"])
    changed[5 * samples.MIB : 5 * samples.MIB + 5000] = b"x" * 5000
    unit.store("img-2", {**first, "system.img": bytes(changed)}, parent="img-1")
    for image, system in (("img-1", first["system.img"]), ("img-2", bytes(changed))):
        for name, data in {**first, "system.img": system}.items():
            (tmp_path / name).write_bytes(data)
        with exports.serve(_order(unit, image)) as export:
            assert list(export.uris) == list(first)
            assert export.uri == export.uris["system.img"]
            for name, uri in export.uris.items():
                _run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, tmp_path / name)
            listed = json.loads(_run("nbdinfo", "--json", "--list", export.uri))
            assert {one["export-name"]: one["export-size"] for one in listed["exports"]} == export.sizes
            assert all(one["can_multi_conn"] and one["is_read_only"] for one in listed["exports"])
            mapped = json.loads(_run("qemu-img", "map", "--output=json", "-f", "raw", export.uri))
            holes = [(one["start"], one["length"]) for one in mapped if one["zero"]]
            expected = (
                [(3 * samples.MIB, 3 * samples.MIB)] if image == "img-1" else [(3 * samples.MIB, 2 * samples.MIB)]
            )
            assert holes == expected
            _run("nbdcopy", export.uri, tmp_path / "copied")
            assert (tmp_path / "copied").read_bytes() == system
        assert not export.alive
        assert export.socket is not None
        assert not export.socket.parent.exists()


def test_what_clients_write_is_theirs_alone(unit: samples.Unit, tmp_path: Path) -> None:
    data = samples.content(SIZE, 1)
    unit.store("img-1", {"system.img": data})
    before = {path: path.read_bytes() for path in unit.folder.rglob("*") if path.is_file()}
    socket = tmp_path / "nbd.socket"
    order = _order(unit, disks=("system.img",), writable=True, socket=socket, temporary=tmp_path)
    with exports.serve(order) as export:
        assert export.uri == f"nbd+unix:///system.img?socket={socket}"
        with pytest.raises(errors.TargetExists):
            exports.serve(order)
        _run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -P 9 4M 512", "-c", "flush", export.uri)
        _run("qemu-io", "-f", "raw", "-c", "read -P 7 1M 64k", "-c", "read -P 9 4M 512", export.uri)
        _run("nbdcopy", export.uri, tmp_path / "written")
    expected = bytearray(data)
    expected[samples.MIB : samples.MIB + 65536] = b"\x07" * 65536
    expected[4 * samples.MIB : 4 * samples.MIB + 512] = b"\x09" * 512
    assert (tmp_path / "written").read_bytes() == expected
    assert {path.name for path in tmp_path.iterdir()} == {"unit", "written"}
    assert unit.verify("img-1") == ()
    assert {path: path.read_bytes() for path in unit.folder.rglob("*") if path.is_file()} == before


def test_damage_is_an_error_and_never_wrong_bytes(unit: samples.Unit, tmp_path: Path) -> None:
    data = samples.content(SIZE, 1)
    unit.store("img-1", {"system.img": data})
    unit.damage()
    (wound,) = unit.verify("img-1")
    troubles: list[exports.Trouble] = []
    failed: list[int] = []
    with exports.serve(_order(unit), told=troubles.append) as export:
        nbd = bindings.libnbd()
        client = nbd.NBD()
        client.connect_uri(export.uri)
        for offset in range(0, SIZE - 4096, 64 << 10):
            try:
                assert client.pread(4096, offset) == data[offset : offset + 4096]
            except nbd.Error as error:
                assert error.errno == "EIO"
                assert wound.offset <= offset < wound.offset + wound.length
                failed.append(offset)
        client.shutdown()
        assert export.alive
    assert [(type(one.error), one.copy) for one in troubles] == [(errors.ImageDamaged, None)] * len(troubles)
    assert failed
    assert "image img-1, disk system.img: " in troubles[0].error.message


def test_what_one_copy_lost_the_next_one_gives(tmp_path: Path) -> None:
    data = samples.content(SIZE, 1)
    (tmp_path / "system.img").write_bytes(data)
    units = [samples.Unit.make(tmp_path / kind, kind) for kind in samples.TYPES]
    for one in units:
        one.store("img-1", {"system.img": data})
    units[0].damage()
    troubles: list[exports.Trouble] = []
    copies = tuple(exports.Copy(folder=one.folder) for one in units)
    with exports.serve(exports.Order(image="img-1", copies=copies), told=troubles.append) as export:
        _run("qemu-img", "compare", "-f", "raw", "-F", "raw", export.uri, tmp_path / "system.img")
    assert [(type(one.error), one.copy) for one in troubles] == [(errors.ImageDamaged, 0)]


def test_clients_that_leave_in_the_middle_disturb_nobody(tmp_path: Path) -> None:
    unit = samples.Unit.make(tmp_path / "unit", "Directory")
    unit.store("img-1", {"system.img": samples.content(SIZE, 1)})
    with exports.serve(_order(unit)) as export:
        for _ in range(40):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(export.socket))
                client.recv(18, socket.MSG_WAITALL)
                client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))  # no padding; the first export
                client.recv(10, socket.MSG_WAITALL)
                for number in range(16):
                    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, number, 0, 4 * samples.MIB))
                client.recv(1)
        assert samples.content(SIZE, 1) == _copied(export.uri)
        assert export.alive


def _copied(uri: str) -> bytes:
    return subprocess.run(["nbdcopy", uri, "-"], stdout=subprocess.PIPE, check=True, timeout=60).stdout


def test_over_tcp_at_a_free_port(unit: samples.Unit) -> None:
    unit.store("img-1", {"system.img": samples.content(SIZE, 1)})
    with exports.serve(_order(unit, address="127.0.0.1")) as export:
        parts = urllib.parse.urlsplit(export.uri)
        assert (parts.scheme, parts.hostname, parts.path) == ("nbd", "127.0.0.1", "/system.img")
        assert export.socket is None
        assert _run("nbdinfo", "--size", export.uri).strip() == str(SIZE)
        with pytest.raises(errors.TargetError, match="cannot be listened at"):
            exports.serve(_order(unit, address="127.0.0.1", port=parts.port))


def test_what_is_not_there_is_told_as_everywhere(
    unit: samples.Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit.store("img-1", {"system.img": samples.content(SIZE, 1)})
    # Others serve at the same time, and their folders are no leftovers.
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(own))
    with pytest.raises(errors.NotFound, match=r"has no disk other\.img"):
        exports.serve(_order(unit, disks=("other.img",)))
    with pytest.raises(errors.ImageMissing):
        exports.serve(_order(unit, "img-2"))
    assert list(own.iterdir()) == []


_STARTER = """
import sys, time
from pathlib import Path
from reconciler.operations import exports
from reconciler.sources.nbd import bindings
copy = exports.Copy(folder=Path(sys.argv[1]))
export = exports.serve(exports.Order(image="img-1", copies=(copy,), disks=("system.img",), writable=True))
print(export.pid, export.socket, export.uri, flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_starter_that_is_killed(tmp_path: Path) -> None:
    unit = samples.Unit.make(tmp_path / "unit", "DedupePool")
    unit.store("img-1", {"system.img": samples.content(SIZE, 1)})
    with subprocess.Popen([sys.executable, "-c", _STARTER, unit.folder], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid, socket, uri = starter.stdout.readline().split()
        client = subprocess.Popen(["nbdsh", "-u", uri, "-c", "import time; time.sleep(600)"])
        starter.send_signal(signal.SIGKILL)
    try:
        assert _gone(int(pid))
        assert not Path(socket).parent.exists()
    finally:
        client.kill()
        client.wait()


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = samples.Unit.make(tmp_path / "unit", "Directory")
    unit.store("img-1", {"system.img": samples.content(SIZE, 1)})
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(errors.SourceError, match="Debian packages nbdkit and nbdkit-plugin-python"):
        exports.serve(_order(unit))
    # As where the plugin's package is not installed: nbdkit finds no plugin of that name.
    (tools / "nbdkit").write_text("#!/bin/sh\nexit 1\n")
    (tools / "nbdkit").chmod(0o755)
    with pytest.raises(errors.SourceError, match=r"plugin for Python.*nbdkit-plugin-python"):
        exports.serve(_order(unit))
    (tools / "nbdkit").write_text('#!/bin/sh\n[ "$2" != --dump-plugin ] || echo python_version=3.99.1\nexit 0\n')
    with pytest.raises(errors.SourceError, match=r"embeds Python 3\.99"):
        exports.serve(_order(unit))
