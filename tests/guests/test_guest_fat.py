"""FAT and exFAT volumes made by mkfs: what the parser says against what the kernel, or fsck, says."""

from __future__ import annotations

import contextlib
import mmap
import random
import re
import struct
import subprocess
from pathlib import Path

import guest_builders as builders
import guest_trees as trees
import pytest

from reconciler.base import disks, errors
from reconciler.guests import browsing, listings, scanning

pytestmark = builders.needs_root

FLAVOURS = {
    "fat12": (15, ["mkfs.fat", "-F", "12", "-s", "16", "-n", "LABEL"]),
    "fat16": (120, ["mkfs.fat", "-F", "16", "-n", "LABEL"]),
    "fat32": (150, ["mkfs.fat", "-F", "32", "-s", "1", "-n", "LABEL"]),
    "fat32-1k": (150, ["mkfs.fat", "-F", "32", "-s", "2", "-n", "LABEL"]),
    "exfat": (150, ["mkfs.exfat", "-c", "4K", "-L", "LABEL"]),
}


#: What is known of every file of a volume, by its image.
trees_known: dict[Path, dict[str, trees.Seen]] = {}


@contextlib.contextmanager
def entered(image: Path, kind: str, *, write: bool = False):
    """The volume as a folder: exFAT through FUSE, FAT through mtools; not every kernel has these file systems."""
    if kind == "exfat":
        with builders.mounted(image, kind=kind, options="" if write else "ro") as root:
            yield root
    else:
        with builders.copied(image, write=write) as root:
            yield root


@pytest.fixture(scope="module", params=FLAVOURS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    size, command = FLAVOURS[request.param]
    kind = "exfat" if request.param == "exfat" else "vfat"
    image = builders.blank(tmp_path_factory.mktemp("fat") / "volume.raw", size * builders.MIB)
    builders.run(*command, image)
    with entered(image, kind, write=True) as root:
        builders.fill(root, 9, count=30 if size < 20 else 120, links=False)
        (root / "many").mkdir()
        for number in range(150):
            (root / "many" / f"{'Many names ' * (number % 12)}{number}.TXT").write_bytes(b"x" * number)
    if kind == "vfat":
        # Holes, and files that are laid down into them.
        builders.run("mdel", "-i", image, *(f"::/dir{n % 7}/sub{n % 3}/file-{n}.bin" for n in range(3, 30, 4)))
        with builders.copied(image, write=True) as root:
            (root / "late").mkdir()
            for number in range(5):
                (root / "late" / f"Late {number}.data").write_bytes(random.Random(number).randbytes(700_000))
    with entered(image, kind) as root:
        known = builders.known(root)
        trees_known[image] = trees.folder(root)
    return image, known, kind


def test_a_browser_gives_what_the_volume_holds(volume) -> None:
    image, _, _ = volume
    made_up = ("mode", "uid", "gid", "links", "changed", "accessed", "created")
    with builders.opened(image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        found = trees.browsed(browser, 0)
        assert trees.compare(trees_known[image], found, leave=made_up, slack=2_000_000_000) == []
        for number, file in enumerate(listing):
            node = browser.node(0, file.inode)
            assert (node.size, node.kind, node.modified) == (file.size, file.kind, file.modified), file.path
            assert number % 5 or browser.find(0, file.path) == node
        assert browser.volumes == listing.volumes
        with pytest.raises(errors.NotFound):
            browser.find(0, "many/nothing")
        with pytest.raises(errors.NotFound):
            browser.node(0, 1)


def test_every_file_is_listed_with_its_bytes(volume) -> None:
    image, known, _ = volume
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        files = list(listing)
        assert listing.warnings == ()
        assert {file.path for file in files} == set(known)
        for file in files:
            expected = known[file.path]
            assert (file.kind, file.size) == (expected.kind, expected.size)
            if file.kind == "file":
                assert builders.digest(builders.content(disk, file)) == expected.digest, file.path
                assert abs(file.modified - expected.modified) < 2_000_000_000
        assert listing.volumes[0].label == "LABEL"


def test_junk_in_free_space_harms_nobody(volume) -> None:
    image, known, kind = volume
    with builders.opened(image) as disk:
        scan = scanning.scan(disk, want_space=True)
        runs = sum(scan.layout.length)
    (found,) = scan.volumes
    assert (found.clean, found.reason) == (True, "")
    if kind == "vfat":
        told = subprocess.run(["fsck.fat", "-n", "-v", str(image)], capture_output=True, text=True, check=False).stdout
        used, total = map(int, re.search(r"(\d+)/(\d+) clusters", told).groups())  # type: ignore[union-attr]
        assert sum(length for _, length in scan.free) == (total - used) * found.cluster
        assert runs == used * found.cluster
    wiped = builders.wipe(image, scan.free)
    with entered(wiped, kind) as root:
        assert builders.known(root) == known


def test_a_mounted_volume_is_kept_whole_unless_it_is_quiesced(volume) -> None:
    image, _, kind = volume

    def dirty(view: mmap.mmap) -> None:
        extended = 106 if kind == "exfat" else 65 if view[17:19] == b"\0\0" else 37
        view[extended] |= 2 if kind == "exfat" else 1

    with builders.opened(image, change=dirty) as disk:
        assert scanning.scan(disk, want_space=True).free == ()
        assert scanning.scan(disk, want_space=True, quiesced=True).free


def test_a_hostile_volume_never_crashes_or_hangs(volume) -> None:
    chosen = random.Random(17)
    image = volume[0]
    for round_ in range(10):

        def spoil(view: mmap.mmap, round_: int = round_) -> None:
            reach = len(view) if round_ % 2 else builders.MIB
            for _ in range(4 ** (round_ % 6)):
                view[chosen.randrange(11, reach)] = chosen.randrange(256)

        with builders.opened(image, change=spoil) as disk, listings.list_files(disk) as listing:
            scan = scanning.scan(disk, want_space=True)
            for file in listing:
                assert all(place >= 0 and place + length <= disk.size for _, place, length in file.extents)
        assert scan.seconds < 60


def test_exfat_reads_zeros_where_nothing_was_written(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "volume.raw", 24 * builders.MIB)
    builders.run("mkfs.exfat", "-c", "4K", image)
    with builders.mounted(image, kind="exfat") as root:
        (root / "ahead.bin").write_bytes(b"\xff" * 50_000)
    data = bytearray(image.read_bytes())
    at = data.index("ahead.bin".encode("utf-16-le")) // 32 * 32 - 64
    # The stream's entry: how much of it is valid; then the sum over the group.
    struct.pack_into("<Q", data, at + 32 + 8, 9_000)
    total = 0
    for number in range(32 * (data[at + 1] + 1)):
        if number not in (2, 3):
            total = ((total & 1) << 15 | total >> 1) + data[at + number] & 0xFFFF
    struct.pack_into("<H", data, at + 2, total)
    with browsing.browse(disks.MemoryDisk("exfat", bytes(data))) as browser:
        node = browser.find(0, "ahead.bin")
        assert browser.read(node, 0, 1 << 20) == b"\xff" * 9_000 + bytes(41_000)
        assert sum(extent.length for extent in browser.extents(node)) == 9_000


def test_a_volume_that_nobody_named_has_no_name(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "volume.raw", 4 * builders.MIB)
    builders.run("mkfs.fat", "-F", "12", image)
    with builders.opened(image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        assert list(listing) == []
        assert [one.label for one in (*browser.volumes, *listing.volumes)] == ["", ""]
