"""Machines started under QEMU: a real Linux that comes up or does not, and small guests that do one thing."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import boot_sectors
import export_samples
import pytest
import tiny_guests
from boot_samples import label
from boot_sectors import NONCE

from reconciler.base import errors, meters
from reconciler.operations import bootguesses, bootorders, boots, emulators, exports, firmwares


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


def test_a_real_machine_comes_up_from_an_export_of_its_image_and_shows_its_nonce(tiny: Path, tmp_path: Path) -> None:
    """Judged by what is awaited by default, a login prompt."""
    unit = export_samples.Unit.make(tmp_path / "pool", "DedupePool")
    unit.store("img-1", {"system.img": tiny.read_bytes()})
    copies = (exports.Copy(folder=unit.folder),)
    served = exports.Order(image="img-1", copies=copies, disks=("system.img",), writable=True, temporary=tmp_path)
    with exports.serve(served) as export:
        found = boot(export.uri)
    assert found.passed and found.message.startswith("the console showed 'tiny login:' after"), found
    assert found.accelerator == ("kvm" if emulators.kvm_usable() else "tcg")
    assert f"{tiny_guests.READY} {NONCE}\n" in found.console
    assert found.screenshot is not None and size_of_png(found.screenshot) >= (640, 400)
    assert 0 < found.seconds < 120 and found.disk_errors == 0
    assert unit.verify("img-1") == ()
    assert not children()


def test_under_uefi_a_loader_is_found_that_only_the_old_firmware_knew_and_the_agent_answers(tmp_path: Path) -> None:
    """In translation, which is there wherever the tests run; firmware and bus are what the disk itself asks for."""
    disk = tmp_path / "system.img"
    tiny_guests.build(disk, NONCE, firmware="uefi", loader="EFI/debian/grubx64.efi")
    with disk.open("rb") as file:
        order = bootguesses.guess(label(disk), {disk.name: file.read(bootguesses.HEAD)}).order
    assert (order.firmware, order.bus) == ("uefi", "virtio")
    order = dataclasses.replace(order, judge="agent", accelerator="tcg", memory=256, seconds=120, pattern="login")
    found = boots.boot([drive(disk)], order)
    assert found.passed and found.message.startswith("the guest agent answered after"), found
    assert found.accelerator == "tcg"


def test_kvm_runs_the_guest_where_the_machine_offers_it(tmp_path: Path) -> None:
    disk = boot_sectors.disk(tmp_path / "d", b"up\r\n")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        with pytest.raises(errors.EmulatorFailed, match="KVM"):
            boot(disk, pattern="up", accelerator="kvm")
        return
    found = boot(disk, pattern="up", accelerator="kvm")
    assert found.passed and found.accelerator == "kvm"


def test_the_script_for_a_firmwares_shell_lies_on_a_sound_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "script"
    disk.write_bytes(firmwares.script_disk())
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    checked = subprocess.run(["fsck.vfat", "-n", disk], capture_output=True, text=True, env={"PATH": path}, check=False)
    assert checked.returncode == 0 and "1 files" in checked.stdout, checked.stdout
    told = subprocess.run(["mcopy", "-i", disk, "::startup.nsh", "-"], capture_output=True, check=True).stdout
    assert told == firmwares.script() and firmwares.NOTHING.encode() in told


def test_under_uefi_a_disk_without_a_loader_fails_at_the_shell(tmp_path: Path) -> None:
    found = boot(boot_sectors.disk(tmp_path / "d", b"by BIOS alone\r\n"), firmware="uefi")
    assert not found.passed and found.message == "the firmware (uefi) found no disk that it can start", found


def test_a_disk_that_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    where = tmp_path / "socket"
    command = ["nbdkit", "--foreground", f"--unix={where}", "--filter=error", "memory", "1M", "error-pread-rate=100%"]
    server = subprocess.Popen([*command, f"error-file={tmp_path}/broken"], stderr=subprocess.DEVNULL)
    try:
        while not where.exists():
            time.sleep(0.02)
        (tmp_path / "broken").touch()
        found = boot(f"nbd+unix:///?socket={where}")
    finally:
        server.terminate()
        server.wait()
    assert not found.passed and found.disk_errors > 0
    assert found.message.endswith(f"; {found.disk_errors} reads or writes of its disks failed")


def test_a_kernel_without_a_root_fails_at_its_panic(tiny: Path) -> None:
    order = boots.BootOrder(
        kernel=str(tiny_guests.PARTS / "vmlinuz"), append="console=ttyS0 quiet", memory=256, seconds=120
    )
    found = boots.boot([], order)
    assert not found.passed and found.seconds < 110, found
    assert "Kernel panic - not syncing: VFS" in found.message and "Kernel panic" in found.console


def test_what_never_shows_fails_when_the_time_is_over(tmp_path: Path) -> None:
    found = boot(
        boot_sectors.disk(tmp_path / "d", b"ready 1234\r\n"), pattern="ready 1235", seconds=2, accelerator="tcg"
    )
    assert not found.passed and 2 <= found.seconds < 30
    assert found.message.endswith(
        "within 2 s; its console's last line: 'ready 1234'; it ran without KVM, many times slower"
    )


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
    assert not found.passed and found.seconds < 30
    assert 200 < len(found.console) <= boots.KEPT
    assert set(found.console) == {"x", "\n"}
    assert len(found.message) < 300


def test_a_guest_that_does_not_wait_for_its_port_loses_no_letter(tmp_path: Path) -> None:
    found = boot(boot_sectors.disk(tmp_path / "d", b"\r\ndone\r\n", first=boot_sectors.BURST), pattern="done")
    assert found.passed and found.console == "x" * 20_000 + "\ndone\n"


@pytest.mark.parametrize(
    ("shown", "up", "down"),
    [
        (b"Debian GNU/Linux 12 web01 ttyS0\r\n\r\nweb01 login: ", True, False),
        (b"[  \x1b[0;32mOK\x1b[0m  ] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m - Multi-User System.\r\n", True, False),
        (b"[  OK  ] Reached target Graphical Interface.\r\n", True, False),
        (b"Computer is booting, SAC started and initialized.\r\nSAC>", True, False),
        (b"Last login: Mon Nov 23 on tty1\r\n", False, False),
        (b"[  OK  ] Reached target Local File Systems.\r\n", False, False),
        (b"Begin: Mounting root file system ... \r\nALERT! UUID=1 does not exist.\r\n(initramfs) ", False, True),
        (b"[    1.2] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---\r\n", False, True),
        (b"You are in emergency mode. After logging in, type\r\n", False, True),
        (b"Give root password for maintenance\r\n", False, True),
        (b"error: unknown filesystem.\r\nEntering rescue mode...\r\ngrub rescue> ", False, True),
    ],
)  # fmt: skip
def test_what_counts_as_up_and_as_down_by_default(shown: bytes, up: bool, down: bool) -> None:
    text = boots.plain(shown)
    assert (bool(re.search(bootorders.UP, text)), bool(re.search(bootorders.DOWN, text))) == (up, down)


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


def test_a_pattern_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match=r"'\(' is no pattern"):
        boot(tmp_path / "none", pattern="(")


def test_a_start_that_hangs_can_be_cancelled(tmp_path: Path) -> None:
    """A server that takes connections and says nothing."""
    meter = meters.Meter()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        threading.Timer(0.5, meter.cancel).start()
        with pytest.raises(errors.Cancelled):
            boots.boot([drive(f"nbd+unix:///?socket={tmp_path}/mute")], boots.BootOrder(), meter)
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
        "import sys; from reconciler.operations import bootguesses, bootorders, boots, emulators, exports, firmwares\n"
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


def test_help_of_the_processor_that_gives_up_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which(emulators.PROGRAM)
    disk = boot_sectors.disk(tmp_path / "d", b"up again\r\n")
    program = tmp_path / "bin" / emulators.PROGRAM
    program.parent.mkdir()
    peer = Path(__file__).with_name("failing_kvm.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{peer}" "{real}" "{tmp_path}/first" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(errors.EmulatorFailed, match="could not go on"):
        boot(disk, accelerator="kvm")
    (tmp_path / "first").unlink()
    result = boot(disk, pattern="up again")
    assert (result.passed, result.accelerator) == (True, "tcg")
    assert children() == set()
