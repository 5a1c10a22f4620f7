"""What a machine that is started for a drill is made of, and what counts as having come up. Plain values.

``bootguesses`` makes an order for an image, ``boots`` carries it out, ``emulators`` turns it into a machine of QEMU's.
Apart from all three, which share these shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

#: What disks hang on. ``scsi`` is virtio's; ``lsisas`` and ``pvscsi`` are what VMware's guests have drivers for.
Bus = Literal["virtio", "scsi", "sata", "ide", "nvme", "pvscsi", "lsisas"]
Firmware = Literal["bios", "uefi"]
#: ``serial``: the pattern on the first serial port; ``agent``: QEMU's guest agent answers; ``either``: either of them.
Judge = Literal["serial", "agent", "either"]
#: ``auto``: KVM where this machine's processor and kernel have it, else QEMU's own translation, ten times slower.
Accelerator = Literal["auto", "kvm", "tcg"]

#: A login prompt; systemd's targets of a machine in use; the prompt of Windows' emergency management services.
UP: Final = r"(?m)\blogin: ?$|Reached target .*(?i:multi-user|graphical)|^SAC>"
#: What ends the wait at once: a kernel's last words, an initramfs or a rescue shell that waits for somebody.
DOWN: Final = (
    r"(?m)Kernel panic - not syncing|Unable to mount root fs|^\(initramfs\)|^grub rescue>"
    r"|You are in (?:emergency|rescue) mode|(?:Give|Enter) root password for maintenance|^dracut:.*#|^panic: "
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drive:
    """One disk of the machine. The first one of an order is what it starts from."""

    name: str
    #: ``nbd+unix:///NAME?socket=PATH``, ``nbd://HOST:PORT/NAME``, or the path of a file. What the guest writes goes to
    #: the NBD server, which answers for keeping it off the image; of a file nothing is changed.
    where: str
    #: As QEMU names it: ``raw``, ``qcow2``, ``vmdk``, ...
    format: str = "raw"
    #: Bytes of a logical sector: 512 or 4096.
    sector: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BootOrder:
    """How to start the machine, and how to judge it."""

    firmware: Firmware = "bios"
    bus: Bus = "virtio"
    #: MiB.
    memory: int = 1024
    processors: int = 1
    #: Seconds from the start until it counts as not having come up.
    seconds: float = 300.0
    judge: Judge = "serial"
    #: Searched for in what the serial port shows, without control characters; lines end with a newline.
    pattern: str = UP
    #: Searched for likewise; what it finds fails the machine at once. Empty: nothing does.
    failure: str = DOWN
    accelerator: Accelerator = "auto"
    #: Path of a kernel to start instead of what lies on the first disk, with its initramfs and command line.
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
