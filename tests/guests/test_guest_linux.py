"""ext and XFS volumes made by mkfs and filled by the kernel: what the parser says against what a mount says."""

from __future__ import annotations

import mmap
import random
import re
import shutil
from pathlib import Path

import guest_builders as builders
import guest_trees as trees
import pytest

from reconciler.guests import browsing, listings, scanning

pytestmark = builders.needs_root

FLAVOURS = {
    "ext4": ["-t", "ext4"],
    "ext4-1k": ["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum,uninit_bg"],
    "ext4-bigalloc": ["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
    "ext4-inline": ["-t", "ext4", "-I", "512", "-O", "inline_data,meta_bg,^resize_inode"],
    "ext4-sparse2": ["-t", "ext4", "-O", "sparse_super2,mmp"],
    "ext3": ["-t", "ext3", "-b", "2048"],
    "xfs": ["-m", "bigtime=1,reflink=1"],
    "xfs-1k": ["-b", "size=1024", "-n", "size=8192"],
    "ext2": ["-t", "ext2", "-b", "1024", "-O", "^dir_index,^filetype", "-r", "1", "-I", "128"],
}


@pytest.fixture(scope="module", params=FLAVOURS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    image = builders.blank(tmp_path_factory.mktemp("ext") / "volume.raw", 340 * builders.MIB)
    kind = request.param.split("-")[0]
    make = ["mkfs.xfs", "-q", "-f"] if kind == "xfs" else ["mke2fs", "-q", "-F"]
    builders.run(*make, "-L", "data", *FLAVOURS[request.param], image)
    with builders.mounted(image, kind=kind) as root:
        builders.fill(root, 7)
        chosen = random.Random(5)
        many = root / "many"
        many.mkdir()
        for number in range(1500):
            (many / f"{'n' * (number % 90)}-{number}").write_bytes(b"x" * (number % 200))
        with (root / "torn.bin").open("wb") as torn:
            for number in range(1200):
                torn.seek(number * 20_000)
                torn.write(chosen.randbytes(3000))
        if kind in ("ext4", "xfs"):
            builders.run("fallocate", "-l", "3M", root / "ahead.bin")
            with (root / "ahead.bin").open("r+b") as file:
                file.write(b"written" * 1000)
    with builders.mounted(image, kind=kind, options="ro") as root:
        known = {path: one for path, one in builders.known(root).items() if path != "lost+found"}
    return image, known, kind


def test_every_file_is_listed_with_its_bytes(volume) -> None:
    image, known, kind = volume
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        files = [file for file in listing if file.path != "lost+found"]
        assert listing.warnings == ()
        assert {file.path for file in files} == set(known)
        for file in files:
            expected = known[file.path]
            assert file.kind == expected.kind, file
            if file.kind == "file":
                assert (file.size, file.links) == (expected.size, expected.links), file
                if not file.resident:
                    assert builders.digest(builders.content(disk, file)) == expected.digest, file.path
            slack = 0 if kind in ("ext4", "xfs") else 1_000_000_000
            assert abs(file.modified - expected.modified) <= slack, file
        (found,) = listing.volumes
        assert (found.filesystem, found.label, found.clean) == (kind[:3], "data", True)


def test_the_layout_holds_every_cluster_of_every_listed_file(volume) -> None:
    image, _, _ = volume
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        scan = scanning.scan(disk)
        runs = zip(scan.layout.file_offset, scan.layout.disk_offset, scan.layout.length, strict=True)
        laid = {(offset, place): length for offset, place, length in runs}
        for file in listing:
            for offset, place, length in file.extents:
                assert laid[offset, place] >= length, file.path
        assert scan.warnings == ()


def test_junk_in_free_space_harms_nobody(volume) -> None:
    image, known, kind = volume
    with builders.opened(image) as disk:
        scan = scanning.scan(disk, want_space=True)
    (found,) = scan.volumes
    assert (found.clean, found.reason) == (True, "")
    if kind == "xfs":
        # The tool counts the blocks that every group holds in reserve for its trees, too.
        free = int(re.search(r"total free blocks (\d+)", builders.run("xfs_db", "-r", "-c", "freesp -s", image))[1])  # type: ignore[index]
        assert 0 <= free - sum(length for _, length in scan.free) // found.cluster <= 9 * 12
    else:
        told = builders.run("dumpe2fs", "-h", image)
        block, free = (int(re.search(rf"{what}:\s+(\d+)", told)[1]) for what in ("Block size", "Free blocks"))  # type: ignore[index]
        assert 0 <= free * block - sum(length for _, length in scan.free) < 64 * found.cluster + 65_536
    wiped = builders.wipe(image, scan.free)
    builders.run(*(("xfs_repair", "-n") if kind == "xfs" else ("e2fsck", "-f", "-n")), wiped)
    with builders.mounted(wiped, kind=kind, options="ro") as root:
        assert {path: one for path, one in builders.known(root).items() if path != "lost+found"} == known


def test_xfs_without_checksums_as_mkfs_fills_it(tmp_path: Path) -> None:
    """Kernels have begun to refuse this version; machines that run it are still out there."""
    tree = tmp_path / "tree"
    chosen = random.Random(3)
    lines = ["/none", "0 0", "d--755 0 0", f"short l--777 0 0 one/{'s' * 30}", f"long l--777 0 0 two/{'l' * 900}"]
    for folder in ("one", "two"):
        (tree / folder).mkdir(parents=True)
        lines.append(f"{folder} d--755 0 0")
        for number in range(300):
            path = tree / folder / f"file-{number}-{'n' * (number % 60)}"
            path.write_bytes(chosen.randbytes(chosen.randrange(40_000)))
            lines.append(f"{path.name} ---644 0 0 {path}")
        lines.append("$")
    proto = tmp_path / "proto"
    proto.write_text("\n".join([*lines, "$"]) + "\n")
    image = builders.blank(tmp_path / "volume.raw", 340 * builders.MIB)
    builders.run("mkfs.xfs", "-q", "-m", "crc=0", "-n", "size=16384", "-p", proto, image)
    (tree / "short").symlink_to(f"one/{'s' * 30}")
    (tree / "long").symlink_to(f"two/{'l' * 900}")
    known = builders.known(tree)
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        unset = ("mode", "modified", "changed", "accessed", "created")
        assert trees.compare(trees.folder(tree), trees.browsed(browser, 0), leave=unset) == []
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        found = {file.path: file for file in listing}
        assert listing.warnings == () and set(found) == set(known)
        for path, file in found.items():
            if file.kind == "file":
                assert builders.digest(builders.content(disk, file)) == known[path].digest
        scan = scanning.scan(disk, want_space=True)
    assert scan.free and scan.volumes[0].clean
    builders.run("xfs_repair", "-n", builders.wipe(image, scan.free))
    sets = [part for number in range(1, 121) for part in ("-c", f"attr_set -v {3 * number} number{number}")]
    first, second = (f"path /one/{name}" for name in sorted(path.name for path in (tree / "one").iterdir())[:2])
    large = ("-c", "attr_set -v 20 short", "-c", "attr_set -r -v 10 root", "-c", "attr_set -v 9000 large")
    builders.run("xfs_db", "-x", "-c", first, *large, "-c", second, *sets, image)
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        one, other = (browser.find(0, path.removeprefix("path /")) for path in (first, second))
        lengths = {"trusted.root": 10, "user.short": 20, "user.large": 9000}
        assert dict(one.xattrs) == {name: b"v" * length for name, length in lengths.items()}
        assert dict(other.xattrs) == {f"user.number{number}": b"v" * 3 * number for number in range(1, 121)}


@pytest.mark.parametrize("quiesced", [False, True])
def test_xfs_is_believed_while_frozen_and_not_while_mounted(tmp_path: Path, quiesced: bool) -> None:
    image = builders.blank(tmp_path / "live.raw", 340 * builders.MIB)
    builders.run("mkfs.xfs", "-q", image)
    with builders.mounted(image, kind="xfs") as root:
        builders.fill(root, 3, count=10)
        builders.run("sync", "-f", root)
        live = shutil.copyfile(image, tmp_path / "copy.raw")
        builders.run("fsfreeze", "-f", root)
        frozen = shutil.copyfile(image, tmp_path / "frozen.raw")
        builders.run("fsfreeze", "-u", root)
    with builders.opened(live) as disk:
        scan = scanning.scan(disk, want_space=True)
    assert (scan.free, scan.volumes[0].reason) == ((), "its log needs recovery")
    with builders.opened(frozen) as disk:
        assert bool(scanning.scan(disk, want_space=True, quiesced=quiesced).free) == quiesced


@pytest.mark.parametrize("quiesced", [False, True])
def test_a_mounted_ext_volume_is_kept_whole(tmp_path: Path, quiesced: bool) -> None:
    image = builders.blank(tmp_path / "live.raw", 40 * builders.MIB)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", image)
    with builders.mounted(image, kind="ext4") as root:
        builders.fill(root, 3, count=10)
        builders.run("sync", "-f", root)
        live = shutil.copyfile(image, tmp_path / "copy.raw")
        builders.run("fsfreeze", "-f", root)
        frozen = shutil.copyfile(image, tmp_path / "frozen.raw")
        builders.run("fsfreeze", "-u", root)
    with builders.opened(live) as disk:
        scan = scanning.scan(disk, want_space=True, quiesced=quiesced)
    assert scan.free == ()
    assert scan.volumes[0].reason == "its journal needs recovery"
    assert len(scan.layout.file) > 10
    with builders.opened(frozen) as disk:
        assert scanning.scan(disk, want_space=True, quiesced=quiesced).free


def test_a_bitmap_that_lies_costs_no_file(volume) -> None:
    """A used block called free: the group's count disagrees; and even a believed one gives no file's block away."""
    image, _, _ = volume
    with builders.opened(image) as disk:
        scan = scanning.scan(disk, want_space=True)
        used = sorted(zip(scan.layout.disk_offset, scan.layout.length, strict=True))
        free = scan.free
    for (start, length), (place, size) in ((a, b) for a in free for b in used[:: max(len(used) // 50, 1)]):
        assert place + size <= start or place >= start + length


def test_a_hostile_volume_never_crashes_or_hangs(volume) -> None:
    chosen = random.Random(13)
    image, _, _ = volume
    for round_ in range(10):

        def spoil(view: mmap.mmap, round_: int = round_) -> None:
            reach = len(view) if round_ % 2 else 2 * builders.MIB
            for _ in range(4 ** (round_ % 6)):
                view[chosen.randrange(1024, reach)] = chosen.randrange(256)

        with builders.opened(image, change=spoil) as disk, listings.list_files(disk) as listing:
            scan = scanning.scan(disk, want_space=True)
            for file in listing:
                assert all(place >= 0 and place + length <= disk.size for _, place, length in file.extents)
        assert scan.seconds < 60
