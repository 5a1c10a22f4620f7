"""UEFI firmware for a started machine: where it is installed, and how it finds a loader that only the old machine knew.

A machine's firmware remembers the path of its loader, ``\\EFI\\debian\\shimx64.efi`` say, in memory that no disk holds.
Without it a firmware tries ``\\EFI\\BOOT\\BOOTX64.EFI``, which Windows and most distributions install as well; Debian
does not. So the firmware's shell, which comes last, gets a script: it tries the paths that loaders have and, if there
is none, says so and switches the machine off. Called by ``emulators``; the paths of files are the only I/O.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from reconciler.base import errors
from reconciler.operations import bootorders

#: Code and variables of the firmware, where distributions put them.
_PLACES: Final = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
)
#: What disks hang on that it may have no driver for: distributions leave out those of VMware's controllers.
UNSEEN: Final[frozenset[bootorders.Bus]] = frozenset(("pvscsi", "lsisas"))
#: What the script shows where it finds nothing.
NOTHING: Final = "holdfast: no loader on any disk"
#: What the shell shows while it waits 5 seconds for a key, that it goes on at once for any but one, and such a one.
WAITING: Final = "to skip startup.nsh or any other key to continue"
KEY: Final = "ret"
#: Below ``\\EFI``. Those that check signatures first: they start the others.
_LOADERS: Final = (
    *(f"{name}\\shimx64.efi" for name in ("debian", "ubuntu", "redhat", "centos", "rocky", "almalinux", "fedora")),
    *("oracle\\shimx64.efi", "opensuse\\shim.efi", "sles\\shim.efi", "Microsoft\\Boot\\bootmgfw.efi"),
    *(f"{name}\\grubx64.efi" for name in ("debian", "ubuntu", "redhat", "centos", "arch", "GRUB", "opensuse", "sles")),
    "systemd\\systemd-bootx64.efi",
)
_SECTOR: Final = 512
_SECTORS: Final = 64


def may_miss(firmware: bootorders.Firmware, bus: bootorders.Bus) -> bool:
    """Whether a firmware may find no disk on a bus, as it has no driver for it."""
    return firmware == "uefi" and bus in UNSEEN


def installed() -> tuple[Path, Path]:
    """Paths of the firmware's code and of its variables as they are at first. Raises ``EmulatorFailed``."""
    for code, variables in _PLACES:
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    raise errors.EmulatorFailed("this machine has no UEFI firmware for guests", hint="install the package ovmf")


def script() -> bytes:
    """What the firmware's shell does."""
    loaders = " ".join(f"EFI\\{one}" for one in _LOADERS)
    lines = (
        "@echo -off",
        "for %d in 0 1 2 3 4 5 6 7 8 9",
        "  if exist fs%d:\\EFI then",
        f"    for %p in {loaders}",
        "      if exist fs%d:\\%p then",
        "        fs%d:\\%p",
        "      endif",
        "    endfor",
        "  endif",
        "endfor",
        f"echo {NOTHING}",
        "reset -s",
    )
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def script_disk() -> bytes:
    """A disk of 32 KiB with the script, as FAT: the only file system that every firmware reads."""
    text = script()
    clusters = -(-len(text) // _SECTOR)
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        *(b"\xeb\x3c\x90", b"HOLDFAST", _SECTOR, 1, 1, 1, 16, _SECTORS, 0xF8, 1, 32, 2, 0, 0),
        *(0x80, 0, 0x29, 0x484F4C44, b"NO NAME    ", b"FAT12   "),
    )
    # Each entry names the next cluster, in 12 bits; the first two are the medium and the end.
    chain = [0xFF8, 0xFFF, *range(3, clusters + 2), 0xFFF]
    packed = sum(entry << (12 * number) for number, entry in enumerate(chain))
    table = packed.to_bytes(len(chain) * 3 // 2 + 1, "little")
    entry = struct.pack("<11sB14xHI", b"STARTUP NSH", 0x01, 2, len(text))
    sectors = (boot.ljust(510, b"\0") + b"\x55\xaa", table, entry)
    return (b"".join(one.ljust(_SECTOR, b"\0") for one in sectors) + text).ljust(_SECTORS * _SECTOR, b"\0")
