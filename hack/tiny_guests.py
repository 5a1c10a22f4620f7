#!/usr/bin/env python3
"""Builds a real small Linux machine on one disk that starts by itself: what drills are tested and shown with.

Debian's cloud kernel, an initramfs with its drivers for disks, busybox, and on ext4 a root with ``/sbin/init`` and
``/nonce``. Once up, its first serial port shows ``holdfast-guest ready NONCE`` and a login prompt; QEMU's guest agent
answers. For BIOS the disk has an MBR and syslinux, for UEFI a GPT and systemd-boot. Takes a second, no root, no
network.

Standard library only; needs the Debian packages busybox-static, syslinux, mtools, dosfstools, e2fsprogs and fdisk, and
what ``hack/setup`` unpacks into ``.cache/tiny-guest``: kernel, drivers, agent, and the loader for UEFI.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import guests

PARTS = Path(__file__).resolve().parents[1] / ".cache" / "tiny-guest"
READY = "holdfast-guest ready"
MIB = 1 << 20
SECTOR = 512
BOOT_MIB, ROOT_MIB = 26, 22
#: Bytes of the whole disk: a MiB in front, the two partitions, a MiB behind for the second GPT.
SIZE = (1 + BOOT_MIB + ROOT_MIB + 1) * MIB
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_console", "ata_piix", "vmw_pvscsi", "sd_mod")
_APPEND = "console=tty0 console=ttyS0 quiet panic=0 random.trust_cpu=on"
_FIRST = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t sysfs sysfs /sys
for driver in $(/bin/busybox cat /drivers/order); do /bin/busybox insmod "/drivers/$driver"; done
for turn in $(/bin/busybox seq 50); do
  disk=$(/bin/busybox findfs LABEL=tiny-root 2>/dev/null) && break
  /bin/busybox usleep 50000
done
/bin/busybox mount -t ext4 "$disk" /root
/bin/busybox umount /sys
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox hostname tiny
[ -x /usr/sbin/qemu-ga ] && /usr/sbin/qemu-ga -d -m virtio-serial -p /dev/vport*p1 -t /run -f /run/qemu-ga.pid
echo "{READY} $(/bin/busybox cat /nonce)" >/dev/ttyS0
while :; do /bin/busybox getty -L 115200 ttyS0 vt100; done
"""
Firmware = Literal["bios", "uefi"]


def build(
    disk: Path,
    nonce: str,
    *,
    firmware: Firmware = "bios",
    init: str | None = INIT,
    loader: str = "EFI/BOOT/BOOTX64.EFI",
) -> None:
    """A raw disk of ``SIZE`` bytes, mostly holes.

    ``init``: what ``/sbin/init`` holds, None for a root without one; ``loader``: where UEFI's lies.
    """
    if not (PARTS / "vmlinuz").exists():
        raise SystemExit(f"{PARTS} holds no kernel; run hack/setup")
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix=".tiny-") as name:
        work = Path(name)
        with disk.open("wb") as file:
            file.truncate(SIZE)
        _partition(disk, firmware)
        initrd = work / "initrd"
        initrd.write_bytes(initramfs())
        _fill_boot(disk, initrd, firmware, loader, work)
        _fill_root(disk, nonce, init, work / "root")


def _partition(disk: Path, firmware: Firmware) -> None:
    label, kind = ("gpt", "uefi") if firmware == "uefi" else ("dos", "6, bootable")
    boot, root = BOOT_MIB * MIB // SECTOR, ROOT_MIB * MIB // SECTOR
    guests.run(
        "sfdisk", "-q", disk,
        given=f"label: {label}\nstart=2048, size={boot}, type={kind}\nstart={2048 + boot}, size={root}, type=linux\n",
    )  # fmt: skip


def _fill_boot(disk: Path, initrd: Path, firmware: Firmware, loader: str, work: Path) -> None:
    guests.run("mkfs.vfat", "-F", "16", "-n", "BOOT", "--offset", "2048", disk, str(BOOT_MIB * 1024))
    volume = f"{disk}@@{MIB}"
    guests.run("mcopy", "-i", volume, PARTS / "vmlinuz", initrd, "::")
    text = work / "text"
    if firmware == "bios":
        text.write_text(f"DEFAULT tiny\nLABEL tiny\nKERNEL vmlinuz\nINITRD initrd\nAPPEND {_APPEND}\n")
        guests.run("mcopy", "-i", volume, text, "::syslinux.cfg")
        guests.run("syslinux", "--install", "--offset", str(MIB), disk)
        with disk.open("r+b") as file:
            file.write(Path("/usr/lib/SYSLINUX/mbr.bin").read_bytes())
        return
    guests.run("mmd", "-i", volume, "::EFI", f"::{Path(loader).parent}", "::loader", "::loader/entries")
    guests.run("mcopy", "-i", volume, PARTS / "systemd-bootx64.efi", f"::{loader}")
    text.write_text(f"title tiny\nlinux /vmlinuz\ninitrd /initrd\noptions {_APPEND}\n")
    guests.run("mcopy", "-i", volume, text, "::loader/entries/tiny.conf")


def _fill_root(disk: Path, nonce: str, init: str | None, tree: Path) -> None:
    for folder in ("bin", "sbin", "dev", "proc", "sys", "run", "usr/sbin", "lib64", "etc"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(busybox(), tree / "bin" / "busybox")
    (tree / "nonce").write_text(f"{nonce}\n")
    if init is not None:
        (tree / "sbin" / "init").write_text(init)
        (tree / "sbin" / "init").chmod(0o755)
    agent = PARTS / "qemu-ga"
    if agent.exists():
        shutil.copy(agent, tree / "usr" / "sbin")
        for library in _libraries(agent):
            target = tree / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    guests.run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "tiny-root", "-d", tree,
        "-E", f"offset={(1 + BOOT_MIB) * MIB},root_owner=0:0,lazy_itable_init=0,nodiscard",
        disk, str(ROOT_MIB * MIB // 4096),
    )  # fmt: skip


def busybox() -> Path:
    """The statically linked one; another would not run alone."""
    path = Path(shutil.which("busybox") or "/bin/busybox")
    if not path.exists() or b"/ld-linux" in path.read_bytes()[:4096]:
        raise SystemExit("busybox is missing or needs libraries; install busybox-static")
    return path


def _libraries(program: Path) -> Iterator[Path]:
    for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines():
        if found := re.search(r"(/\S+) \(0x", line):
            yield Path(found[1])


def _drivers() -> list[Path]:
    """The drivers and what they depend on, in the order in which the kernel takes them."""
    known = {path.stem.replace("-", "_"): path for path in (PARTS / "modules").glob("*.ko")}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in found or name not in known:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", known[name].read_bytes())
        for other in depends[1].decode().split(",") if depends else ():
            add(other.replace("-", "_"))
        found[name] = known[name]

    for name in _DRIVERS:
        add(name)
    return list(found.values())


def initramfs() -> bytes:
    """Busybox, the drivers and a first program that mounts the root and goes on there; a cpio archive."""
    drivers = _drivers()
    entries: list[tuple[str, int, bytes]] = [
        (folder, 0o040755, b"") for folder in ("bin", "dev", "sys", "root", "drivers")
    ]
    entries.append(("bin/busybox", 0o100755, busybox().read_bytes()))
    entries.append(("init", 0o100755, _FIRST.encode()))
    entries.append(("drivers/order", 0o100644, "\n".join(path.name for path in drivers).encode()))
    entries += [(f"drivers/{path.name}", 0o100644, path.read_bytes()) for path in drivers]
    return cpio(entries)


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Names, modes and contents as an archive in the format newc, as the kernel unpacks it."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path, help="the raw disk to make; replaced where it exists")
    parser.add_argument("nonce", help="what the guest shows once it is up")
    parser.add_argument("--firmware", choices=("bios", "uefi"), default="bios")
    chosen = parser.parse_args()
    build(chosen.disk, chosen.nonce, firmware=chosen.firmware)


if __name__ == "__main__":
    main()
