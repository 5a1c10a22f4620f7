"""Files with everything a file system can say of a file: put into a mounted volume, for trees to be compared."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import stat
import struct
from pathlib import Path

import guest_builders as builders

#: Names that are legal on Linux and awkward everywhere else.
ODD = (
    b"x" * 255,
    b"trailing dots...",
    b"trailing space ",
    b" ",
    b"tab\tand\nline",
    b"\x01\x02\x7f control",
    "emoji \U0001f984 and é".encode(),
    "e\u0301 decomposed".encode(),
    b"not \xff\xfe utf-8",
    b"quote\"'`$;*?[]{}\\",
    b"-rf",
    b"Case",
    b"case",
    b"...",
)
_VERSION, _NONE = 2, 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
#: Of the flags that ``chattr`` sets.
_GET, _SET, _IMMUTABLE, _APPEND = 0x80086601, 0x40086602, 0x10, 0x20
_PUNCH_HOLE, _KEEP_SIZE = 2, 1


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as the kernel takes it: (tag, permissions, user or group)."""
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


LIST = acl(
    (_USER_OBJ, 6, _NONE),
    (_USER, 4, 1001),
    (_USER, 7, 70_000),
    (_GROUP_OBJ, 4, _NONE),
    (_GROUP, 5, 100_003),
    (_MASK, 7, _NONE),
    (_OTHER, 0, _NONE),
)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def odd_names(root: Path) -> None:
    """Files and a folder with odd names."""
    folder = root / "odd"
    folder.mkdir()
    for number, name in enumerate(ODD):
        (folder / os.fsdecode(name)).write_bytes(name * number)
    (folder / os.fsdecode(b"folder \xfe" * 9)).mkdir()


def special_files(root: Path) -> None:
    """Devices, pipes, sockets, and links of every length that is kept in another way."""
    folder = root / "special"
    folder.mkdir()
    os.mkfifo(folder / "pipe", 0o640)
    for number, (major, minor) in enumerate(((1, 3), (8, 300), (300, 70_000))):
        os.mknod(folder / f"block{number}", stat.S_IFBLK | 0o660, os.makedev(major, minor))
        os.mknod(folder / f"character{number}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    for length in (1, 15, 59, 60, 61, 155, 156, 400, 1000):
        (folder / f"link{length}").symlink_to("t" * min(length, 255) + "/" + "u" * max(length - 256, 0))
    (folder / "absolute").symlink_to("/nowhere/at all/é")


def owners_and_times(root: Path) -> None:
    """Owners beyond 16 bits, all bits of the mode, and moments far apart."""
    folder = root / "owned"
    folder.mkdir(mode=0o3775)
    moments = (
        0,
        1,
        1_999_999_999,
        10**18 + 123_456_789,
        -(10**17),
        4_000_000_000 * 10**9 + 5,
        2_147_483_647 * 10**9 + 3,
    )
    for number, moment in enumerate(moments):
        path = folder / f"file{number}"
        path.write_bytes(b"x" * number)
        os.chown(path, 65_535 + number, 100_000 * number)
        path.chmod((0o4755, 0o2711, 0o1600, 0o000, 0o777, 0o644, 0o6700)[number])
        os.utime(path, ns=(moment, moment + 7))
    os.chown(folder, 123_456, 654_321)
    folder.chmod(0o3775)


def attributes(root: Path, largest: int) -> None:
    """Extended attributes, small and many and large, access control lists, capabilities."""
    folder = root / "attributes"
    folder.mkdir()
    os.setxattr(folder, "system.posix_acl_default", LIST)
    for number in range(12):
        path = folder / f"file{number}"
        path.write_bytes(b"y" * 10 * number)
        for count in range(number % 7):
            os.setxattr(path, f"user.{'n' * 9 * count}{number}", bytes([count]) * (count * 11))
        if number % 3 == 0:
            os.setxattr(path, "system.posix_acl_access", LIST)
            os.setxattr(path, "trusted.é", b"")
        if number % 4 == 1:
            os.setxattr(path, "security.capability", CAPABILITY)
    large = folder / "large"
    large.write_bytes(b"z")
    os.setxattr(large, "user.large", random.Random(1).randbytes(largest))
    for number in range(9):
        os.setxattr(large, f"user.more{number}", b"m" * (number * largest // 60))


def flagged(root: Path) -> None:
    """Files that ``chattr`` has marked."""
    for name, bits in (("immutable", _IMMUTABLE), ("append", _APPEND)):
        path = root / name
        path.write_bytes(b"kept")
        with path.open("rb") as file:
            held = struct.unpack("I", fcntl.ioctl(file, _GET, bytes(8))[:4])[0]
            fcntl.ioctl(file, _SET, struct.pack("Q", held | bits))


def many_names(root: Path, count: int = 1500) -> None:
    """A folder that grew large and lost every third file, so that its blocks have gaps."""
    folder = root / "many"
    folder.mkdir()
    for number in range(count):
        (folder / f"{'n' * (number % 90)}-{number}").write_bytes(b"x" * (number % 200))
    for number in range(0, count, 3):
        (folder / f"{'n' * (number % 90)}-{number}").unlink()


def laid_out(root: Path, *, ahead: bool) -> None:
    """Files in many pieces, with holes, and ``ahead`` of what was written."""
    chosen = random.Random(5)
    with (root / "torn.bin").open("wb") as torn:
        for number in range(700):
            torn.seek(number * 20_000)
            torn.write(chosen.randbytes(3000))
    with (root / "end.bin").open("wb") as end:
        end.write(b"begin")
        end.truncate(5_000_000)
    if not ahead:
        return
    builders.run("fallocate", "-l", "3M", root / "ahead.bin")
    builders.run("fallocate", "-n", "-o", "1M", "-l", "1M", root / "end.bin")
    with (root / "ahead.bin").open("r+b") as file:
        file.write(b"written" * 1000)
        file.seek(2_000_000)
        file.write(b"more" * 1000)
    whole = root / "punched.bin"
    whole.write_bytes(chosen.randbytes(1_000_000))
    builders.run("fallocate", "-p", "-o", "100000", "-l", "500000", whole)


def linux(root: Path, kind: str, *, largest: int) -> None:
    """Everything, on ext or XFS; ``largest``: bytes of an extended attribute."""
    builders.fill(root, 7, count=60)
    odd_names(root)
    special_files(root)
    owners_and_times(root)
    attributes(root, largest)
    flagged(root)
    many_names(root)
    laid_out(root, ahead=kind in ("ext4", "xfs"))
    if kind == "xfs":
        builders.run("cp", "--reflink=always", root / "torn.bin", root / "shared.bin")
        with (root / "shared.bin").open("r+b") as file:
            file.write(b"own" * 3000)


def reparse(path: Path, tag: int, data: bytes) -> None:
    """Make a reparse point of a file or folder on NTFS."""
    os.setxattr(path, "system.ntfs_reparse_data", struct.pack("<IHH", tag, len(data), 0) + data)


def _windows_link(shown: str, real: str, flags: int | None) -> bytes:
    one, other = real.encode("utf-16-le"), shown.encode("utf-16-le")
    head = struct.pack("<HHHH", 0, len(one), len(one) + 2, len(other))
    return head + (struct.pack("<I", flags) if flags is not None else b"") + one + b"\0\0" + other + b"\0\0"


#: What Windows makes of a file beside a file: path, tag, data, and where it leads or why it cannot be read.
REPARSED = (
    ("junction", 0xA0000003, _windows_link("C:\\Users\\é", "\\??\\C:\\Users\\é", None), "C:\\Users\\é"),
    ("absolute", 0xA000000C, _windows_link("D:\\data", "\\??\\D:\\data", 0), "D:\\data"),
    ("relative", 0xA000000C, _windows_link("..\\x\\y z", "..\\x\\y z", 1), "../x/y z"),
    ("linux", 0xA000001D, b"\x02\0\0\0" + "/usr/bin/é".encode(), "/usr/bin/é"),
    ("overlay", 0x80000017, struct.pack("<IIII", 1, 2, 1, 0), "CompactOS"),
    ("deduplicated", 0x80000013, bytes(40), "deduplicated"),
    ("unknown", 0x80001234, b"abc", "0x80001234"),
)


def ntfs(root: Path, cluster: int) -> dict[str, list[str]]:
    """Everything, on NTFS; the names of the streams by path."""
    builders.fill(root, 7, count=60)
    chosen = random.Random(9)
    folder = root / "odd"
    folder.mkdir()
    names = [name for name in ODD if b"\xff" not in name]
    names += [("長" * 255).encode(), ("\U0001f984" * 127 + "z").encode(), b"lone \xed\xa0\x80 half", b"\xed\xb0\x80"]
    for number, name in enumerate(names):
        (folder / os.fsdecode(name)).write_bytes(name * number)
    special_files(root)
    many_names(root, 900)
    laid_out(root, ahead=False)
    for name in ("hard", "harder"):
        (root / name).write_bytes(name.encode() * 100)
    # So many names that the file's attributes need records of their own.
    for number in range(60):
        os.link(root / "hard", folder / f"{'a name of the file ' * 8}{number}")
    streams = {"hard": ["Zone.Identifier", "größer"], "dir0": ["of a folder"], "dir0/grown-a.bin": ["large", "small"]}
    for path, several in streams.items():
        for number, name in enumerate(several):
            (root / path).with_name(f"{(root / path).name}:{name}").write_bytes(chosen.randbytes(90_000 * number + 20))
    links = [f"odd/{'a name of the file ' * 8}{number}" for number in range(60)]
    streams.update(dict.fromkeys(links, streams["hard"]), **{"dir1/linked.bin": streams["dir0/grown-a.bin"]})
    if cluster <= 4096:
        packed(root / "packed")
    for number, (name, tag, data, _) in enumerate(REPARSED):
        path = root / "reparsed" / name
        path.parent.mkdir(exist_ok=True)
        if name == "junction":
            path.mkdir()
        else:
            path.write_bytes(b"" if data[:1] not in (b"\x01", b"a", b"\0") or number < 4 else b"data of it" * 9)
        reparse(path, tag, data)
    windows(root / "windows")
    return streams


def windows(folder: Path) -> None:
    """Files and folders with security descriptors, DOS attributes and times of their own, as Windows sets them."""
    folder.mkdir()
    for number, bits in enumerate((0x1, 0x2, 0x4 | 0x20, 0x7, 0x20, 0x80, 0x2000, 0x100, 0x21) * 9):
        path = folder / f"{number:x}"
        path.write_bytes(b"not empty, for that would be a pipe") if number % 4 else path.mkdir()
        os.setxattr(path, "system.ntfs_acl", descriptor(number))
        moments = (130_000_000_000_000_001 + number, 117_000_000_000_000_003, 131_500_000_000_000_007)
        os.setxattr(path, "system.ntfs_times_be", struct.pack(">QQQ", *moments))
        os.setxattr(path, "system.ntfs_attrib_be", struct.pack(">I", bits))


def descriptor(number: int) -> bytes:
    """A security descriptor of a file whose owner has some right to it, and nobody else all of them."""
    who = [_identity(5, 21, 7, 8, 9, 1000 + one) for one in range(number % 5 + 2)]
    listed = _entries(*(struct.pack("<BBHI", one % 2, 3, 8 + len(sid), 0x1301BF) + sid for one, sid in enumerate(who)))
    audited = _entries(struct.pack("<BBHI", 2, 0xC0, 20, 0x1F01FF) + _identity(1, 0)) if number % 3 else b""
    parts = (who[0], _identity(5, 21, 7, 8, 9, 5000 + number), audited, listed)
    starts = [20 + sum(map(len, parts[:one])) if part else 0 for one, part in enumerate(parts)]
    head = struct.pack("<BBHIIII", 1, 0, 0x8414 if audited else 0x9404, *starts)
    return head + b"".join(parts)


def _identity(authority: int, *numbers: int) -> bytes:
    return struct.pack(">BBHI", 1, len(numbers), 0, authority) + struct.pack(f"<{len(numbers)}I", *numbers)


def _entries(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<BBHHH", 2, 0, 8 + len(body), len(entries), 0) + body


def packed(folder: Path) -> None:
    """Files that NTFS compresses: well, hardly, in part, with holes, and written again in places."""
    chosen = random.Random(11)
    folder.mkdir()
    os.setxattr(folder, "system.ntfs_attrib_be", b"\x00\x00\x08\x00")
    text = b"".join(b"line %d of a text that repeats itself\n" % (number % 300) for number in range(30_000))
    mixed = b"".join(bytes([chosen.randrange(4)]) * chosen.randrange(1, 60) for _ in range(9_000))
    noise = chosen.randbytes(300_000)
    for name, data in {
        "text": text,
        "mixed": mixed,
        "noise": noise,
        "both": text[:100_000] + noise[:100_000] + bytes(200_000) + text[:5] + mixed,
        "zeros": bytes(1_000_000),
        "small": b"little",
        "one": text[:65_536],
    }.items():
        (folder / name).write_bytes(data)
    with (folder / "holed").open("wb") as file:
        for offset in (0, 300_000, 900_001):
            file.seek(offset)
            file.write(text[:70_000])
