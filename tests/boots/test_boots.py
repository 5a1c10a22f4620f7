"""Machines started under QEMU: a real Linux that comes up or does not, and small guests that do one thing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boot_sectors
import pytest
import tiny_guests
from conftest import NONCE

from reconciler.base import errors, meters
from reconciler.operations import boots, emulators


def drive(where: Path | str, **more: Any) -> boots.Drive:
    return boots.Drive(name="system", where=str(where), **more)


def boot(where: Path | str, **order: Any) -> boots.BootResult:
    return boots.boot([drive(where)], boots.BootOrder(**{"seconds": 120, "memory": 256, **order}))


def children() -> set[int]:
    """Processes of QEMU's that belong to this one."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "qemu"], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()}


def size_of_png(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, each of its parts proven by its checksum and all of its pixels unpacked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed, shape = 8, b"", b""
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, content = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", data, position + 8 + length)[0] == zlib.crc32(kind + content)
        packed += content if kind == b"IDAT" else b""
        shape = content if kind == b"IHDR" else shape
        position += 12 + length
    width, height = struct.unpack_from(">II", shape)
    assert len(zlib.decompress(packed)) == height * (3 * width + 1)
    return width, height


@contextlib.contextmanager
def exported(disk: Path) -> Iterator[str]:
    """The disk over NBD from a server that keeps what is written to itself."""
    where = disk.with_suffix(".socket")
    command = ["qemu-nbd", "--snapshot", "--format=raw", "--shared=2", "--persistent", f"--socket={where}", str(disk)]
    server = subprocess.Popen(command)
    try:
        while not where.exists():
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={where}"
    finally:
        server.terminate()
        server.wait()


def test_a_real_machine_comes_up_from_an_export_and_shows_its_nonce(tiny: Path) -> None:
    before = hashlib.sha256(tiny.read_bytes()).digest()
    with exported(tiny) as where:
        found = boot(where, pattern=f"(?m)^{tiny_guests.READY} {NONCE}$")
    assert found.passed, found
    assert found.accelerator == ("kvm" if emulators.kvm_usable() else "tcg")
    assert f"{tiny_guests.READY} {NONCE}\n" in found.console and NONCE in found.message
    assert found.screenshot is not None and size_of_png(found.screenshot) >= (640, 400)
    assert 0 < found.seconds < 120
    assert hashlib.sha256(tiny.read_bytes()).digest() == before
    assert not children()


def test_its_guest_agent_answers_and_its_login_prompt_is_what_is_awaited_by_default(tiny: Path) -> None:
    """Both in translation, which is there wherever the tests run."""
    found = boot(tiny, judge="agent", accelerator="tcg", pattern="never shown")
    assert found.passed and "guest agent" in found.message, found
    assert found.accelerator == "tcg"


def test_a_kernel_without_a_root_fails_at_its_panic(tiny: Path) -> None:
    order = boots.BootOrder(
        kernel=str(tiny_guests.PARTS / "vmlinuz"), append="console=ttyS0 quiet", memory=256, seconds=120
    )
    found = boots.boot([], order)
    assert not found.passed and found.seconds < 110, found
    assert "Kernel panic - not syncing: VFS" in found.message and "Kernel panic" in found.console


def test_what_never_shows_fails_when_the_time_is_over(tmp_path: Path) -> None:
    found = boot(boot_sectors.disk(tmp_path / "d", b"ready 1234\r\n"), pattern="ready 1235", seconds=2)
    assert not found.passed and 2 <= found.seconds < 10
    assert found.message.endswith("within 2 s; its console's last line: 'ready 1234'")


@pytest.mark.parametrize(
    ("then", "why"), [(boot_sectors.CRASH, "reset itself"), (boot_sectors.OFF, "switched itself off")]
)
def test_a_guest_that_stops_fails_at_once(tmp_path: Path, then: bytes, why: str) -> None:
    found = boot(boot_sectors.disk(tmp_path / "d", b"here I am\r\n", then))
    assert not found.passed and found.seconds < 60
    assert why in found.message and found.console == "here I am\n"
    assert found.screenshot is not None


def test_a_disk_without_a_boot_sector_fails_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "d"
    empty.write_bytes(bytes(1 << 20))
    found = boot(empty)
    assert not found.passed and found.message == "the firmware (bios) found no disk that it can start"


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide", "nvme", "pvscsi", "lsisas"])
def test_every_bus_starts_a_disk_and_changes_nothing_of_it(tmp_path: Path, bus: str) -> None:
    disk = boot_sectors.disk(tmp_path / "d", b"written\r\n", first=boot_sectors.WRITE)
    before = disk.read_bytes()
    assert boot(disk, bus=bus, pattern="written").passed
    assert disk.read_bytes() == before


def test_many_disks_find_a_place_and_the_first_one_starts(tmp_path: Path) -> None:
    first = boot_sectors.disk(tmp_path / "first", b"first\r\n")
    rest = [boot_sectors.disk(tmp_path / f"{number}", b"other\r\n") for number in range(7)]
    found = boots.boot([drive(one) for one in (first, *rest)], boots.BootOrder(bus="ide", pattern="first|other"))
    assert found.passed and found.console == "first\n"


def test_a_flood_on_the_console_stays_small(tmp_path: Path) -> None:
    disk = boot_sectors.disk(tmp_path / "d", b"\x1b[2J\x07" + b"x" * 200 + b"\r\n", boot_sectors.AGAIN)
    found = boot(disk, pattern="never", seconds=3)
    assert not found.passed and found.seconds < 10
    assert 2_000 < len(found.console) <= boots.KEPT
    assert set(found.console) == {"x", "\n"}
    assert len(found.message) < 300


def test_of_a_console_the_end_is_kept_and_no_match_is_torn() -> None:
    console = boots.Console()
    for number in range(20):
        console.add(b"%04d" % number + b"." * 10_000)
    assert len(console.text()) == boots.KEPT and console.text().endswith("0019" + "." * 10_000)
    assert console.fresh() == console.text()
    console.add(b"\x1b[0;1;39mlo")
    assert console.fresh().endswith("...lo")
    console.add(b"gin\x1b[0m: \x1b]0;title\x07\r\n\xe2\x80\xae\xff")
    assert console.fresh().endswith("...login: \n\N{REPLACEMENT CHARACTER}") and console.fresh() == ""


def test_a_drive_that_cannot_be_opened_is_not_the_guests_fault(tmp_path: Path) -> None:
    with pytest.raises(errors.EmulatorFailed, match=r"^system: Could not open .*No such file"):
        boot(tmp_path / "none")
    with pytest.raises(errors.EmulatorFailed, match=r"^system: Failed to connect"):
        boot(f"nbd+unix:///x?socket={tmp_path}/none")
    assert not children()


def test_a_cancelled_boot_ends_the_machine(tmp_path: Path) -> None:
    meter = meters.Meter()
    threading.Timer(1.0, meter.cancel).start()
    disk = boot_sectors.disk(tmp_path / "d")
    with pytest.raises(errors.Cancelled):
        boots.boot([drive(disk)], boots.BootOrder(), meter)
    assert not children()


def test_a_killed_starter_leaves_no_machine(tmp_path: Path) -> None:
    disk = boot_sectors.disk(tmp_path / "d", b"up\r\n")
    code = (
        "import sys; from reconciler.operations import boots, emulators\n"
        "machine = emulators.Emulator([boots.Drive(name='d', where=sys.argv[1])], boots.BootOrder())\n"
        "print(machine.pid, flush=True); sys.stdin.read()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdin is not None and starter.stdout is not None
    pid = int(starter.stdout.readline())
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status
    if os.geteuid() == 0:
        assert "CapEff:\t0000000000000000" in status and "Uid:\t0" not in status
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    starter.stdin.close()
    starter.stdout.close()
