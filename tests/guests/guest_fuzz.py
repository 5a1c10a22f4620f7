"""Damaged volumes: real ones as seeds, random damage where file systems keep their records, and what must still hold."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import guest_builders as builders
import guest_logs

from reconciler.base import disks, errors
from reconciler.guests import browsing, listings, nodes, scanning

_VALUES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01")
#: Seconds that no damage may cost: the seeds take a fraction of one.
_LONGEST = 60.0
#: Files of a damaged volume that are looked at one by one.
_FILES = 30


def seeds(folder: Path) -> dict[str, bytes]:
    """Small real volumes with files, one of every file system that this machine can fill."""
    made: dict[str, bytes] = {}
    for kind, size, command in (
        ("ntfs", 24, ["mkntfs", "-F", "-Q"]),
        ("ext4", 24, ["mke2fs", "-q", "-F", "-t", "ext4"]),
        ("ext2", 16, ["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024"]),
        ("xfs", 48, []),
        ("exfat", 24, ["mkfs.exfat", "-c", "4K"]),
    ):
        image = builders.blank(folder / kind, size * builders.MIB)
        if kind == "xfs":
            guest_logs.make(image)
        else:
            builders.run(*command, image)
        with builders.mounted(image, kind=kind) as root:
            builders.fill(root, 5, count=40, links=kind != "exfat")
            if kind in ("ext4", "xfs"):
                builders.run("sync", root / "dir0" / "grown-a.bin")
                made["journal" if kind == "ext4" else "log"] = guest_logs.without_sums(image.read_bytes())
        made[kind] = image.read_bytes()
    image = builders.blank(folder / "fat", 40 * builders.MIB)
    builders.run("mkfs.fat", "-F", "32", "-s", "1", image)
    with builders.copied(image, write=True) as root:
        builders.fill(root, 5, count=40, links=False)
    made["fat"] = image.read_bytes()
    return made


def _records(data: bytes) -> list[int]:
    """Sectors that look like records: neither empty nor noise."""
    return [at for at in range(0, len(data), 512) if data[at : at + 512].count(0) > 64 and any(data[at : at + 512])]


def damage(data: bytes, sectors: list[int], chosen: random.Random) -> bytes:
    """A damaged copy of a volume."""
    broken = bytearray(data)
    for _ in range(2 ** chosen.randrange(10)):
        at = chosen.choice(sectors)
        match chosen.randrange(5):
            case 0:
                broken[at + chosen.randrange(512)] ^= 1 << chosen.randrange(8)
            case 1:
                length = chosen.choice((1, 2, 4, 8))
                start = at + chosen.randrange(0, 512, length)
                broken[start : start + length] = chosen.choice(_VALUES) * length
            case 2:
                broken[at : at + 512] = data[(other := chosen.choice(sectors)) : other + 512]
            case 3:
                start = at + chosen.randrange(0, 500, 4)
                broken[start : start + 4] = chosen.randbytes(4)
            case _:
                broken[at : at + 512] = bytes(512)
    if not chosen.randrange(8):
        del broken[chosen.randrange(len(broken)) :]
    return bytes(broken[: len(broken) // 512 * 512])


def check(data: bytes) -> None:
    """Look into a volume in all ways. Raises ``AssertionError`` where a promise is broken."""
    disk = disks.MemoryDisk("fuzzed", data)
    scan = scanning.scan(disk, want_space=True)
    assert scan.seconds < _LONGEST, f"{scan.seconds:.0f} s"
    lost = [message for code, message in scan.warnings if code == "GuestUnreadable"]
    assert not lost, lost
    claimed = bytearray(disk.size // 512 + 1)
    for start, length in zip(scan.layout.disk_offset, scan.layout.length, strict=True):
        assert start >= 0 < length and start + length <= disk.size
        claimed[start // 512 : -(-(start + length) // 512)] = b"\x01" * (-(-(start + length) // 512) - start // 512)
    for start, length in scan.free:
        assert start >= 0 < length and start + length <= disk.size
        assert not any(claimed[-(-start // 512) : (start + length) // 512]), f"free and claimed at {start}"
    with listings.list_files(disk) as listing:
        for file in listing:
            assert all(place >= 0 < size and place + size <= disk.size for _, place, size in file.extents)
        assert not [message for code, message in listing.warnings if code == "GuestUnreadable"]
    browse(disk)


def browse(disk: disks.Disk) -> None:
    """Look at files of every volume, their bytes and pieces. Raises ``AssertionError`` where a promise is broken."""
    with browsing.browse(disk) as browser:
        for volume in range(len(browser.volumes)):
            seen: set[int] = set()
            waiting: list[nodes.Node] = []
            with told():
                waiting = [browser.root(volume)]
            while waiting and len(seen) < _FILES:
                node = waiting.pop()
                if node.inode in seen:
                    continue
                seen.add(node.inode)
                for stream, size in (("", node.size), *node.streams):
                    with told():
                        _read(browser, node, stream, size)
                if node.kind == "directory":
                    with told():
                        for name, child in itertools.islice(browser.children(node), _FILES):
                            assert name and "/" not in name
                            waiting.append(child)
                    with told():
                        assert all(name and number >= 0 for name, number in browser.names(node))
                with told():
                    assert browser.node(volume, node.inode).kind == node.kind


def _read(browser: browsing.Browser, node: nodes.Node, stream: str, size: int) -> None:
    offsets = {0, max(size - 100, 0), size // 2, size, 1 << 50}
    for offset in offsets:
        length = len(browser.read(node, offset, 70_000, stream))
        assert length == max(min(70_000, size - offset), 0), (node, stream, offset, length)
    end = 0
    for extent in itertools.islice(browser.extents(node, stream), 10_000):
        assert end <= extent.offset and extent.length > 0 and extent.offset + extent.length <= size
        end = extent.offset + extent.length


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What cannot be read is told in two ways alone, and never because the child died."""
    start = time.monotonic()
    try:
        yield
    except (errors.GuestUnreadable, errors.NotFound) as error:
        assert "its reader" not in str(error), error
    assert time.monotonic() - start < _LONGEST


def rounds(made: dict[str, bytes], first: int, count: int) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """``count`` damaged volumes by number, the same for the same numbers: kind, number and how to make it."""
    places = {kind: _records(data) for kind, data in made.items()}
    for number in range(first, first + count):
        kind = sorted(made)[number % len(made)]

        def make(kind: str = kind, number: int = number) -> bytes:
            return damage(made[kind], places[kind], random.Random(number))

        yield kind, number, make


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/fuzz-guests")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="number of the first round")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        made = seeds(Path(folder))
        for kind, number, make in rounds(made, options.seed, options.rounds):
            try:
                check(make())
            except AssertionError as error:
                failed += 1
                sys.stdout.write(f"{kind}, --seed {number} --rounds 1: {error}\n")
    sys.stdout.write(f"{options.rounds} rounds, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
