"""Single files of a disk: everything a browser says of every file against what a mount says."""

from __future__ import annotations

import shutil
from pathlib import Path

import guest_builders as builders
import guest_features as features
import guest_trees as trees
import pytest

from reconciler.base import errors
from reconciler.guests import browsing, listings

pytestmark = builders.needs_root

MAKE = {
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"],
    "ext4-inline": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "512", "-O", "inline_data,ea_inode"],
    "ext3": ["mke2fs", "-q", "-F", "-t", "ext3", "-b", "2048"],
    "ext2": ["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-O", "^dir_index,^filetype", "-r", "1", "-I", "128"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "bigtime=1,reflink=1"],
    "xfs-1k": ["mkfs.xfs", "-q", "-f", "-b", "size=1024", "-n", "size=8192", "-m", "bigtime=0,reflink=1"],
}

#: Bytes of an extended attribute that the file system has room for.
LARGEST = {"ext2": 250, "ext4-inline": 30_000, "xfs": 50_000, "xfs-1k": 50_000}


@pytest.fixture(scope="module", params=MAKE)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    image = builders.blank(tmp_path_factory.mktemp("browsed") / "volume.raw", 340 * builders.MIB)
    builders.run(*MAKE[request.param], image)
    kind = request.param.split("-")[0]
    with builders.mounted(image, kind=kind) as root:
        features.linux(root, kind, largest=LARGEST.get(request.param, 600))
    with builders.mounted(image, kind=kind, options="ro") as root:
        known = trees.folder(root)
    return image, known, kind


def test_every_file_is_as_the_mount_shows_it(volume) -> None:
    image, known, kind = volume
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        found = trees.browsed(browser, 0)
        assert len(found) > 100
        assert trees.compare(known, found, leave=() if kind in ("ext4", "xfs") else ("created",)) == []


def test_paths_numbers_and_listings_lead_to_the_same_file(volume) -> None:
    image, known, _ = volume
    with builders.opened(image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        seen = 0
        for file in listing:
            node = browser.find(file.volume, file.path)
            assert browser.node(file.volume, file.inode) == node
            assert (node.inode, node.kind, node.modified) == (file.inode, file.kind, file.modified)
            assert node.size == file.size or node.kind != "file"
            seen += 1
        assert seen >= len(known)
        assert browser.volumes == listing.volumes
        for path in ("nothing", "dir0/nothing", "dir0/../dir1", "nothing/at/all"):
            with pytest.raises(errors.NotFound):
                browser.find(0, path)


def test_a_folder_is_told_in_the_order_of_its_files(volume) -> None:
    image, _, _ = volume
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        inodes = [node.inode for _, node in browser.children(browser.find(0, "many"))]
        # In the order of their names' digests nearly each would be read from another place.
        assert len(inodes) == 1000 and inodes == sorted(inodes)


def test_pieces_of_a_file_and_its_holes(volume) -> None:
    image, _, _ = volume
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        for path in ("sparse.bin", "dir0/grown-a.bin"):
            node = browser.find(0, path)
            whole = browser.read(node, 0, 1 << 40)
            assert len(whole) == node.size
            for offset, length in ((0, 1), (4095, 2), (4_000_000, 5000), (node.size - 3, 10), (node.size, 5)):
                assert browser.read(node, offset, length) == whole[offset : offset + length]
            data = bytearray(node.size)
            for extent in browser.extents(node):
                assert extent.place is not None
                data[extent.offset : extent.offset + extent.length] = disk.pread(extent.place, extent.length)
            assert bytes(data) == whole
        with pytest.raises(errors.GuestUnreadable):
            browser.read(browser.root(0), 0, 1)
        with pytest.raises(errors.NotFound):
            browser.read(node, 0, 1, "none")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (["-t", "ext4", "-b", "4096"], ""),
        (["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"], "data=journal"),
        (["-t", "ext3", "-b", "4096", "-J", "size=4"], "data=journal"),
    ],
    ids=["ext4", "ext4-data", "ext3-data"],
)
def test_what_a_crash_left_in_a_journal_is_read_as_a_mount_would(tmp_path: Path, make: list[str], options: str) -> None:
    image = builders.blank(tmp_path / "live.raw", 60 * builders.MIB)
    builders.run("mke2fs", "-q", "-F", *make, image)
    kind = make[1]
    with builders.mounted(image, kind=kind, options=options) as root:
        builders.fill(root, 3, count=20)
        builders.run("sync", "-f", root)
        shutil.rmtree(root / "dir3")
        (root / "new").mkdir()
        for number in range(30):
            # The magic number of the journal at the start of a block is written there in another way.
            content = b"\xc0\x3b\x39\x98" * 2000 if number % 2 else b"plain" * 3000
            path = root / "new" / f"file{number}"
            path.write_bytes(content)
            builders.run("sync", path)
            if number % 3 == 0:
                path.unlink()
        builders.run("sync", root / "new", root / "new" / "file29")
        crashed = shutil.copyfile(image, tmp_path / "crashed.raw")
    with builders.opened(crashed) as disk, browsing.browse(disk) as browser:
        assert browser.volumes[0].reason == "its journal needs recovery"
        found = trees.browsed(browser, 0)
        with listings.list_files(disk) as listing:
            assert {file.path for file in listing} == set(found)
        bare = {name for name, _ in browser.children(browser.find(0, "new"))}
    with builders.mounted(crashed, kind=kind, options="noatime") as root:
        known = trees.folder(root)
    assert trees.compare(known, found, leave=("created",) if kind == "ext3" else ()) == []
    assert "file29" in bare and len(known) > 40
