"""Which file system a volume holds, and the module that reads it.

``recognise`` looks at magic numbers and at the few fields that tell a file system from a boot sector that merely looks
like one; ``parse`` hands the volume to the module of that kind.
"""

from __future__ import annotations

from collections.abc import Callable

from reconciler.guests import scans
from reconciler.guests.parsers import (
    exfat,
    exfat_nodes,
    ext,
    ext_nodes,
    fat,
    fat_nodes,
    ntfs,
    ntfs_nodes,
    outputs,
    served,
    stretches,
    swaps,
    xfs,
    xfs_nodes,
)

_POWERS = frozenset(1 << bit for bit in range(5, 17))

_PARSERS: dict[str, Callable[[stretches.Stretch, outputs.Output], outputs.Facts]] = {
    "exfat": exfat.parse,
    "ext": ext.parse,
    "fat": fat.parse,
    "ntfs": ntfs.parse,
    "swap": swaps.parse,
    "xfs": xfs.parse,
}

_SERVERS: dict[str, Callable[[stretches.Stretch, scans.Limits], served.FileSystem]] = {
    "exfat": exfat_nodes.Files,
    "ext": ext_nodes.Files,
    "fat": fat_nodes.Files,
    "ntfs": ntfs_nodes.Files,
    "xfs": xfs_nodes.Files,
}


#: What is known by name alone: the name, where on the volume it shows, and how.
_FOREIGN = (
    ("an encrypted LUKS volume", 0, (b"LUKS\xba\xbe",)),
    ("an encrypted BitLocker volume", 3, (b"-FVE-FS-",)),
    ("Btrfs", 0x10040, (b"_BHRfS_M",)),
    ("ReiserFS", 0x10034, (b"ReIsErFs", b"ReIsEr2Fs", b"ReIsEr3Fs")),
    ("F2FS", 0x400, (b"\x10\x20\xf5\xf2",)),
    ("JFS", 0x8000, (b"JFS1",)),
    ("ReFS", 3, (b"ReFS\0",)),
    ("APFS", 32, (b"NXSB",)),
    ("HFS+", 1024, (b"H+\0\x04", b"HX\0\x05")),
    ("a part of a Linux software RAID", 4096, (b"\xfc\x4e\x2b\xa9",)),
    ("SquashFS", 0, (b"hsqs",)),
    ("cramfs", 0, (b"\x45\x3d\xcd\x28",)),
    ("EROFS", 0x400, (b"\xe2\xe1\xf5\xe0",)),
    ("a part of a ZFS pool", 0x4000, (b"\1\1\0\0\0\0\0\0\0\0\0\1",)),
    ("VMFS", 0x100000, (b"\x0d\xd0\x01\xc0",)),
    ("ISO 9660, as a CD or DVD has it", 0x8001, (b"CD001",)),
    ("UDF", 0x8001, (b"BEA01",)),
)


def foreign(stretch: stretches.Stretch) -> str:
    """What a volume holds that nothing here reads, by its mark; empty where that is not known."""
    for name, offset, marks in _FOREIGN:
        if stretch.read(offset, max(map(len, marks))).startswith(marks):
            return name
    return ""


def unread(stretch: stretches.Stretch) -> str:
    """Why a volume that nothing here reads is not read."""
    name = foreign(stretch)
    return f"it holds {name}, which is not read" if name else "its file system is not known"


def recognise(stretch: stretches.Stretch) -> str | None:
    """``ntfs``, ``exfat``, ``fat``, ``xfs``, ``ext`` or ``swap``; None where nothing is known."""
    boot = stretch.read(0, 512)
    if len(boot) < 512:
        return None
    sector = int.from_bytes(boot[11:13], "little")
    kind: str | None = None
    if boot[3:11] == b"NTFS    " and sector in _POWERS:
        kind = "ntfs"
    elif boot[3:11] == b"EXFAT   " and not any(boot[11:64]):
        kind = "exfat"
    elif boot[:4] == b"XFSB":
        kind = "xfs"
    elif _ext(stretch.read(1024, 1024)):
        kind = "ext"
    elif swaps.page(stretch):
        kind = "swap"
    elif _fat(boot, sector):
        kind = "fat"
    return kind


def _ext(superblock: bytes) -> bool:
    """Whether a block of 1 KiB is an ext superblock of blocks up to 64 KiB."""
    return superblock[56:58] == b"\x53\xef" and int.from_bytes(superblock[24:28], "little") <= 6


def _fat(boot: bytes, sector: int) -> bool:
    """Whether a boot sector describes a FAT volume: not every one has the name of its kind in it."""
    tables, entries = boot[16], int.from_bytes(boot[17:19], "little")
    small, large = int.from_bytes(boot[22:24], "little"), int.from_bytes(boot[36:40], "little")
    return (
        boot[510:512] == b"\x55\xaa"
        and sector in (512, 1024, 2048, 4096)
        and boot[13] in (1, 2, 4, 8, 16, 32, 64, 128)
        and int.from_bytes(boot[14:16], "little") > 0
        and tables in (1, 2)
        and (boot[21] == 0xF0 or boot[21] >= 0xF8)
        and (bool(small and entries) or bool(not small and large and not entries))
    )


def parse(kind: str, stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts | None:
    """Read the volume and hand over its finds; None where no parser reads this kind.

    Raises anything at all where the volume is damaged; what was handed over is void then.
    """
    parser = _PARSERS.get(kind)
    return parser(stretch, output) if parser else None


def serve(
    kind: str, stretch: stretches.Stretch, limits: scans.Limits
) -> tuple[served.FileSystem | None, outputs.Facts | None]:
    """The volume opened for single files, None where it holds none, and what it says of itself.

    Raises anything at all where the volume is damaged.
    """
    if kind == "swap":
        return None, swaps.facts(stretch)
    server = _SERVERS.get(kind)
    if server is None:
        return None, None
    opened = server(stretch, limits)
    return opened, opened.facts()
