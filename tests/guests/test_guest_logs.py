"""The log of XFS: volumes caught in use, against what the kernel makes of them, and logs written by hand."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import guest_builders as builders
import guest_logs
import guest_trees as trees
import pytest

from reconciler.guests import browsing, listings
from reconciler.guests.parsers import checksums

pytestmark = builders.needs_root

_START, _COMMIT, _CONTINUE, _WAS_CONTINUED, _END = 1, 2, 4, 8, 16
#: An operation of a log: its flags and its bytes.
Operation = tuple[int, bytes]


@pytest.mark.parametrize(
    ("shape", "options", "seed"),
    [("small log", "logbsize=256k", 4), ("old times", "", 7), ("1k blocks", "logbsize=16k", 5)],
)
def test_a_volume_in_use_is_read_as_a_mount_would(tmp_path: Path, shape: str, options: str, seed: int) -> None:
    image = tmp_path / "live.raw"
    hows = set()
    for copy, how in guest_logs.crashed(image, guest_logs.SHAPES[shape], options, seed, steps=120, size=96):
        assert guest_logs.differences(copy) == [], how
        hows.add(how)
    assert len(hows) > 1


def test_a_torn_end_of_the_log_is_left_out(tmp_path: Path) -> None:
    """A damaged last record: the kernel goes back to the one before, and so does the reader."""
    image = builders.blank(tmp_path / "live.raw", 96 * builders.MIB)
    guest_logs.make(image, "-l", "size=4m", "-m", "reflink=0")
    with builders.mounted(image, kind="xfs") as root:
        for number in range(3):
            (root / f"folder-{number}").mkdir()
            builders.run("sync", "-f", root)
        copy = tmp_path / "torn.raw"
        builders.run("cp", "--sparse=always", image, copy)
    log = guest_logs.ends(copy)
    with copy.open("r+b") as file:
        file.seek(log.place + 512 * (log.head - 1) + 100)
        file.write(b"torn")
    assert guest_logs.differences(copy) == []
    with builders.opened(copy) as disk, browsing.browse(disk) as browser:
        assert {name for name, _ in browser.names(browser.root(0))} == {"folder-0", "folder-1"}


@dataclasses.dataclass(kw_only=True)
class Old:
    """A volume of the fourth version, which no kernel here writes to."""

    image: Path
    identity: bytes
    #: Bytes: where the log lies, and a basic block of it that the next record is written to.
    log: int
    next: int = 2

    def record(self, *operations: Operation, order: int = 1, torn: bool = False, transaction: int = 77) -> None:
        """Write a record behind the others."""
        body = b"".join(
            struct.pack(">IIBBH", transaction, len(data), 0x69, flags, 0) + data for flags, data in operations
        )
        length = -(-len(body) // 512) * 512
        blocks = bytearray(body.ljust(length, b"\0"))
        words = b""
        for at in range(0, length, 512):
            words += blocks[at : at + 4]
            blocks[at : at + 4] = (1).to_bytes(4, "big")
        place = 1 << 32 | self.next
        head = struct.pack(">4IQQ4xII", 0xFEEDBABE, 1, 2, length, place, 1 << 32 | 2, 0, len(operations))
        head += words.ljust(256, b"\0") + struct.pack(">I16sI4x", order, self.identity, 32 << 10)
        summed = checksums.crc32c(head + blocks)
        head = head[:32] + summed.to_bytes(4, "little") + head[36:]
        if torn:
            blocks[-1] ^= 1
        with self.image.open("r+b") as file:
            file.seek(self.log + 512 * self.next)
            file.write(head.ljust(512, b"\0") + blocks)
        self.next += 1 + length // 512

    def inode(self, number: int) -> tuple[int, bytearray]:
        """Where an inode lies, and its bytes."""
        with self.image.open("rb") as file:
            place = number // 16 * 4096 + number % 16 * 256
            file.seek(place)
            return place, bytearray(file.read(256))

    def logged(self, number: int, inode: bytes, fields: int = 1, fork: bytes = b"") -> list[bytes]:
        """The regions of an item that sets an inode."""
        place = self.inode(number)[0]
        form = "HHBBHIIIHHQiIiIiIQQIIHBBIHHI"
        core = struct.pack(f"<{form}", *struct.unpack_from(f">{form}", inode))
        start = place // 8192 * 16
        about = struct.pack(
            "<HHIHHIQ16xqii", 0x123B, 3 if fork else 2, fields, 0, len(fork), 0, number, start, 16, place % 8192
        )
        return [about, core, *((fork,) if fork else ())]


def whole(*items: list[bytes]) -> list[Operation]:
    """The operations of a transaction with some items."""
    header = struct.pack("<4I", 0x5452414E, 40, 77, len(items))
    return [(_START, b""), (0, header), *((0, region) for item in items for region in item), (_COMMIT, b"")]


def changed(place: int, before: bytes, after: bytes) -> list[bytes]:
    """The regions of an item that changes one block of 4096 bytes."""
    grains = [at for at in range(32) if before[128 * at : 128 * at + 128] != after[128 * at : 128 * at + 128]]
    bits = sum(1 << at for at in grains)
    about = struct.pack("<HHHHqII", 0x123C, 1 + len(grains), 0, 8, place // 512, 1, bits)
    return [about, *(after[128 * at : 128 * at + 128] for at in grains)]


def freed(place: int) -> list[bytes]:
    """The region of an item that frees a block."""
    return [struct.pack("<HHHHqII", 0x123C, 1, 2, 8, place // 512, 0, 0)]


@pytest.fixture
def old(tmp_path: Path) -> Old:
    content = tmp_path / "content"
    content.write_bytes(b"content" * 1000)
    lines = ["/none", "0 0", "d--755 0 0", f"plain ---644 0 0 {content}", "folder d--755 0 0"]
    lines += [f"inner-{number:03} ---644 0 0 {content}" for number in range(30)]
    proto = tmp_path / "proto"
    proto.write_text("\n".join([*lines, "$", "$"]) + "\n")
    image = builders.blank(tmp_path / "volume.raw", 64 * builders.MIB)
    guest_logs.make(image, "-m", "crc=0", "-i", "size=256", "-d", "agcount=1", "-p", str(proto))
    with image.open("rb") as file:
        identity = file.read(48)[32:]
    return Old(image=image, identity=identity, log=guest_logs.ends(image).place)


def _seen(old: Old) -> tuple[dict[str, trees.Seen], str, list[str]]:
    """The tree, the state and the warnings; names are the same in the listing."""
    with builders.opened(old.image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        found = trees.browsed(browser, 0)
        assert {file.path for file in listing} == set(found)
        return found, browser.volumes[0].reason, [f"{code}: {message}" for code, message in listing.warnings]


def _numbers(old: Old) -> dict[str, int]:
    with builders.opened(old.image) as disk, browsing.browse(disk) as browser:
        return {path: browser.find(0, path).inode for path in ("", "plain", "folder")}


def test_inodes_and_blocks_of_the_fourth_version(old: Old) -> None:
    numbers = _numbers(old)
    before = _seen(old)
    assert before[1:] == ("", []) and before[0]["plain"].size == 7000
    _, plain = old.inode(numbers["plain"])
    plain[56:64] = (1234).to_bytes(8, "big")
    plain[8:12] = (501).to_bytes(4, "big")
    _, root = old.inode(numbers[""])
    fork = bytes(root[100:]).replace(b"plain", b"crash")
    _, folder = old.inode(numbers["folder"])
    place = int.from_bytes(folder[100:116], "big") >> 21 & (1 << 52) - 1
    with old.image.open("rb") as file:
        file.seek(4096 * place)
        block = file.read(4096)
    renamed = block.replace(b"inner-007", b"newer-007").replace(b"inner-021", b"newer-021")
    begun, *middle, done = whole(
        old.logged(numbers["plain"], plain),
        old.logged(numbers[""], root, 1 | 2, fork),
        changed(4096 * place, block, renamed),
        # What is begun and done within the log needs no reader.
        [struct.pack("<HHIQ", 0x1244, 1, 0, 5)],
        [struct.pack("<HHIQ", 0x1245, 1, 0, 5)],
    )
    # One region is written in two records, and the second transaction is not committed.
    flags, data = middle[2]
    assert not flags and len(data) == 96
    old.record(begun, *middle[:2], (_CONTINUE, data[:60]))
    old.record((_WAS_CONTINUED | _END, data[60:]), *middle[3:], done)
    old.record(*whole(changed(4096 * place, block, renamed.replace(b"newer-007", b"other-007")))[:-1])
    found, reason, warnings = _seen(old)
    assert (reason, warnings) == ("its log needs recovery", [])
    assert (found["crash"].size, found["crash"].uid) == (1234, 501) and "plain" not in found
    names = {path for path in before[0] if path != "plain"} - {"folder/inner-007", "folder/inner-021"}
    assert set(found) == names | {"crash", "folder/newer-007", "folder/newer-021"}
    # A block that was freed later is what became of it, not what the log had for it.
    old.record(*whole(freed(4096 * place)), transaction=78)
    assert set(_seen(old)[0]) == names | {"crash", "folder/inner-007", "folder/inner-021"}


def test_a_log_that_cannot_be_replayed_is_told(old: Old) -> None:
    number = _numbers(old)["plain"]
    before, *_ = _seen(old)
    _, plain = old.inode(number)
    plain[56:64] = (1234).to_bytes(8, "big")
    first = old.next
    for item, order, told in (
        ([struct.pack("<HHI", 0x1260, 1, 0)], 1, "0x1260"),
        ([struct.pack("<HHIQ", 0x1236, 1, 0, 5)], 2, "another byte order"),
        ([b"\x3c\x12\x01\x00"], 1, "a buffer in its log"),
    ):
        old.next = first
        old.record(*whole(old.logged(number, plain), item), order=order)
        found, reason, warnings = _seen(old)
        assert trees.compare(before, found) == []
        assert reason.startswith("its log needs recovery: ") and told in reason
        assert len(warnings) == 1 and warnings[0].startswith("LogNotReplayed: ") and told in warnings[0]
    # An exchange that was begun alone is told, and all else is read.
    old.next = first
    old.record(*whole(old.logged(number, plain), [struct.pack("<HHIQ", 0x1248, 1, 0, 5)]))
    found, reason, warnings = _seen(old)
    assert found["plain"].size == 1234 and reason.endswith("did not end: 1") and len(warnings) == 1
    # A record that does not match its checksum was being written.
    plain[56:64] = (99).to_bytes(8, "big")
    old.record(*whole(old.logged(number, plain)), torn=True)
    assert _seen(old)[0]["plain"].size == 1234


def test_changes_of_a_map_that_were_begun_are_ended(old: Old) -> None:
    """Blocks of one file are shared with another: the crash came when all was said of it and none was done."""
    number = _numbers(old)["plain"]
    _, plain = old.inode(number)
    plain[56:64] = (3 * 4096).to_bytes(8, "big")
    place = int.from_bytes(plain[100:116], "big") >> 21 & (1 << 52) - 1
    with old.image.open("rb") as file:
        file.seek(4096 * place)
        content = file.read(8192)
    cut, put = (
        struct.pack("<HHIQQQQII", 0x1244, 1, 1, 8 + kind, number, place, *rest, kind)
        for *rest, kind in ((0, 1, 2), (2, 1, 1))
    )
    done = struct.pack("<HHIQ", 0x1245, 1, 0, 10)
    old.record(*whole(old.logged(number, plain), [cut], [put]))
    with builders.opened(old.image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        node = browser.find(0, "plain")
        assert browser.volumes[0].reason == "its log needs recovery"
        assert browser.read(node, 0, 1 << 20) == bytes(4096) + content[4096:] + content[:4096]
        (listed,) = (file for file in listing if file.path == "plain")
        assert builders.content(disk, listed) == browser.read(node, 0, 1 << 20)
    # The first of them was done, as the log says next: there is a hole no longer.
    old.record(*whole([done]))
    with builders.opened(old.image) as disk, browsing.browse(disk) as browser:
        assert browser.read(browser.find(0, "plain"), 0, 4096) == content[:4096]


def test_sums_are_those_that_others_work_out() -> None:
    assert checksums.crc32c(b"123456789") == 0xE3069283
    assert checksums.crc32c(b"") == 0
    data = os.urandom(1000)
    assert checksums.crc32c(bytes(32)) == 0x8A9136AA and checksums.crc32c(data) != checksums.crc32c(data[::-1])
