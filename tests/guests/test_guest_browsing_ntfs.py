"""Single files of NTFS: everything a browser says of every file against what a mount by ntfs-3g says."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import guest_builders as builders
import guest_features as features
import guest_trees as trees
import pytest

from reconciler.base import errors
from reconciler.guests import browsing, listings, nodes

pytestmark = builders.needs_root

#: What a mount by ntfs-3g makes up.
MADE_UP = ("mode", "uid", "gid", "xattrs")


def _born(path: Path) -> int:
    try:
        value = os.getxattr(path, "system.ntfs_crtime", follow_symlinks=False)
    except OSError:
        return 0
    return (int(struct.unpack("<Q", value)[0]) - builders.NTFS_EPOCH) * 100


@pytest.fixture(scope="module", params=[4096, 1024, 65536], ids=["4k", "1k", "64k"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    image = builders.blank(tmp_path_factory.mktemp("ntfs") / "volume.raw", 160 * builders.MIB)
    builders.run("mkntfs", "-F", "-Q", "-c", str(request.param), "-L", "Fässer", image)
    with builders.mounted(image, kind="ntfs", options="streams_interface=windows,compression") as root:
        streams = features.ntfs(root, request.param)
    with builders.mounted(image, kind="ntfs", options="ro,streams_interface=windows") as root:
        known = trees.folder(root, streams=streams, born=_born)
        kept = trees.windows(root, "acl", "attrib_be", "times_be", "crtime_be", "reparse_data", "ea")
    return image, known, kept


def test_every_file_is_as_the_mount_shows_it(volume) -> None:
    image, known, _ = volume
    special = [path for path in known if path.startswith("reparsed/")]
    links = [path for path in known if known[path].target is not None]
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        assert browser.volumes[0].label == "Fässer" and browser.volumes[0].reason == ""
        found = trees.browsed(browser, 0, whole=False)
        assert len(found) > 800
        assert trees.compare(known, found, leave=MADE_UP, slack=100, without=special + links) == []
        # Its mount cannot say when a link was made.
        assert trees.compare(known, found, leave=(*MADE_UP, "created"), slack=100, without=special) == []


def test_descriptors_attributes_and_links_of_windows_are_those_of_the_mount(volume) -> None:
    image, _, kept = volume
    found: dict[str, dict[str, bytes]] = {}
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        waiting = [("", browser.root(0))]
        while waiting:
            above, directory = waiting.pop()
            for name, node in browser.children(directory):
                of = {key.removeprefix("system.ntfs_"): value for key, value in node.xattrs if "ntfs" in key}
                found[f"{above}{name}"] = of
                if node.kind == "directory":
                    waiting.append((f"{above}{name}/", node))
    for path in found:
        # Where its content is kept elsewhere, the mark of that is of no use to who has the content.
        if "reparse_data" not in found[path]:
            kept[path].pop("reparse_data", None)
    assert found == kept and len({of["acl"] for of in found.values()}) > 81
    assert {path for path in found if "reparse_data" in found[path]} == {
        f"reparsed/{name}" for name in ("junction", "absolute", "relative", "linux")
    }


def test_what_windows_makes_of_files_is_told_or_refused(volume) -> None:
    image, _, _ = volume
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        for name, _, _, told in features.REPARSED:
            node = browser.find(0, f"reparsed/{name}")
            if node.kind == "symlink":
                assert node.target == told
                continue
            assert told in node.problem
            with pytest.raises(errors.GuestUnreadable, match=told):
                browser.read(node, 0, 10)
        assert {name for name, node in browser.children(browser.find(0, "reparsed")) if node.kind == "symlink"} == {
            "junction",
            "absolute",
            "relative",
            "linux",
        }


def test_paths_numbers_and_listings_lead_to_the_same_file(volume) -> None:
    image, known, _ = volume
    with builders.opened(image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        seen = 0
        for number, file in enumerate(listing):
            node = browser.node(file.volume, file.inode)
            assert (node.inode, node.modified, node.links) == (file.inode, file.modified, file.links)
            if file.stream:
                assert dict(node.streams)[file.stream] == file.size
                continue
            assert node.kind == file.kind, file.path
            assert node.size == file.size or node.kind != "file"
            assert number % 7 or browser.find(file.volume, file.path) == node
            seen += 1
        assert seen == len(known)
        for path in ("$MFT", "$Extend", "$Extend/$Quota", "nothing", "many/nothing", "DIR0", "hard/below"):
            with pytest.raises(errors.HoldfastError):
                browser.find(0, path)
        for inode in (0, 6, 11, 1 << 40):
            with pytest.raises(errors.NotFound):
                browser.node(0, inode)


def test_pieces_of_packed_files(volume) -> None:
    image, known, _ = volume
    if "packed/text" not in known:
        assert image.stat().st_size
        return
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        node = browser.find(0, "packed/holed")
        assert "compressed" in node.flags
        whole = browser.read(node, 0, node.size)
        for offset, length in ((0, 1), (65_530, 20), (299_990, 40), (899_999, 3), (node.size - 1, 5)):
            assert browser.read(node, offset, length) == whole[offset : offset + length]
        held = list(browser.extents(node))
        assert all(extent.place is None for extent in held) and sum(extent.length for extent in held) < node.size
        for before, after in itertools.pairwise(held):
            assert not any(whole[before.offset + before.length : after.offset])


def _extended(**values: bytes) -> bytes:
    """Extended attributes as OS/2 and the Linux subsystem lay them out."""
    found = b""
    for name, value in values.items():
        one = struct.pack("<BBH", 0, len(name), len(value)) + name.encode() + b"\0" + value
        size = -(-(len(one) + 4) // 4) * 4
        found += (struct.pack("<I", size) + one).ljust(size, b"\0")
    return found


def test_owners_and_special_files_of_the_linux_subsystem(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "volume.raw", 20 * builders.MIB)
    builders.run("mkntfs", "-F", "-Q", image)
    numbers = {"$LXUID": 1000, "$LXGID": 100_001, "$LXMOD": 0o100751}
    with builders.mounted(image, kind="ntfs", options="special_files=wsl") as root:
        (root / "file").touch()
        values = {key: struct.pack("<I", value) for key, value in numbers.items()}
        os.setxattr(root / "file", "system.ntfs_ea", _extended(**values))
        features.special_files(root)
        known = trees.folder(root)
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        file = browser.find(0, "file")
        assert (file.uid, file.gid, file.mode) == (1000, 100_001, 0o100751)
        leave = (*MADE_UP, "created", "accessed", "changed")
        assert trees.compare(known, trees.browsed(browser, 0), leave=leave, slack=100) == []


def _record(data: bytearray, node: nodes.Node, cluster: int = 4096) -> int:
    """Where the record of a file lies; the table of a small volume lies in a row."""
    return int.from_bytes(data[48:56], "little") * cluster + node.inode * 1024


def _data(data: bytearray, at: int) -> int:
    """Where the attribute of its content starts."""
    place = at + int.from_bytes(data[at + 20 : at + 22], "little")
    while data[place] != 0x80:
        place += int.from_bytes(data[place + 4 : place + 8], "little")
    return place


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = builders.blank(tmp_path_factory.mktemp("small") / "volume.raw", 40 * builders.MIB)
    builders.run("mkntfs", "-F", "-Q", "-c", "4096", image)
    with builders.mounted(image, kind="ntfs") as root:
        (root / "file").write_bytes(b"data" * 10_000)
        (root / "folder").mkdir()
        for number in range(200):
            (root / "folder" / f"{'name ' * 20}{number}").write_bytes(b"%d" % number)
    return image


def _changed(image: Path, name: str, change: Callable[[bytearray, nodes.Node], None], path: str) -> Path:
    copy = shutil.copyfile(image, image.with_name(name))
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        node = browser.find(0, path)
    data = bytearray(copy.read_bytes())
    change(data, node)
    copy.write_bytes(data)
    return copy


def test_what_was_never_written_reads_as_zeros(small: Path) -> None:
    def cut(data: bytearray, node: nodes.Node) -> None:
        struct.pack_into("<Q", data, _data(data, _record(data, node)) + 56, 5001)

    image = _changed(small, "cut.raw", cut, "file")
    with builders.mounted(image, kind="ntfs", options="ro") as root:
        expected = (root / "file").read_bytes()
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        node = browser.find(0, "file")
        assert browser.read(node, 0, 1 << 20) == expected
        assert len(expected) == 40_000 and not any(expected[5001:])


def test_what_windows_has_encrypted_is_refused(small: Path) -> None:
    def encrypt(data: bytearray, node: nodes.Node) -> None:
        data[_data(data, _record(data, node)) + 13] |= 0x40

    image = _changed(small, "encrypted.raw", encrypt, "file")
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        node = browser.find(0, "file")
        assert "encrypted" in node.flags
        with pytest.raises(errors.GuestUnreadable, match="EFS"):
            browser.read(node, 0, 10)


def test_a_content_without_its_end_is_refused(small: Path) -> None:
    def cut(data: bytearray, node: nodes.Node) -> None:
        struct.pack_into("<QQQ", data, _data(data, _record(data, node)) + 40, 1 << 30, 1 << 30, 1 << 30)

    image = _changed(small, "short.raw", cut, "file")
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        node = browser.find(0, "file")
        with pytest.raises(errors.GuestUnreadable, match="the end of its content is missing"):
            browser.read(node, 0, 10)


def test_a_size_beyond_all_costs_no_neighbour(small: Path) -> None:
    def grow(data: bytearray, node: nodes.Node) -> None:
        at = _data(data, _record(data, node))
        struct.pack_into("<QQQ", data, at + 40, *(3 * [(1 << 64) - 1]))

    image = _changed(small, "beyond.raw", grow, "file")
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        found = dict(browser.children(browser.root(0)))
        assert set(found) == {"file", "folder"} == {name for name, _ in browser.names(browser.root(0))}
        with pytest.raises(errors.GuestUnreadable):
            browser.read(found["file"], 0, 10)
        assert len(dict(browser.children(found["folder"]))) == 200


def test_a_folder_whose_index_is_damaged_is_read_from_the_table(small: Path) -> None:
    def damage(data: bytearray, node: nodes.Node) -> None:
        at = data.index(b"INDX")
        while at >= 0:
            if b"n\0a\0m\0e\0" in data[at : at + 4096]:
                data[at + 510] ^= 0xFF
                break
            at = data.index(b"INDX", at + 1)

    image = _changed(small, "index.raw", damage, "folder")
    with builders.opened(small) as disk, browsing.browse(disk) as browser:
        expected = dict(browser.children(browser.find(0, "folder")))
    with builders.opened(image) as disk, browsing.browse(disk) as browser:
        folder = browser.find(0, "folder")
        assert dict(browser.children(folder)) == expected and len(expected) == 200
        name = f"{'name ' * 20}77"
        assert browser.read(browser.find(0, f"folder/{name}"), 0, 100) == b"77"
        with pytest.raises(errors.NotFound):
            browser.find(0, "folder/none")
