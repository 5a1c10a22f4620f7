"""What a mounted image shows by path, without a mount."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from reconciler.base import disks, errors
from reconciler.operations.mounts import trees

MIB = 1 << 20
SETTING = trees.Setting(time=1_700_000_000_000_000_000, uid=7, gid=8)


def _ext(folder: Path, *options: str) -> bytes:
    """A small ext4 volume with one file."""
    source, image = folder / "source", folder / "image"
    source.mkdir(exist_ok=True)
    (source / "here").write_text("a file")
    image.write_bytes(bytes(2 * MIB))
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, "-d", source, image], check=True)
    return image.read_bytes()


def test_paths_names_and_what_is_not_there(tmp_path: Path) -> None:
    chosen = [
        disks.MemoryDisk("a/b.qcow2", _ext(tmp_path)),
        disks.MemoryDisk("labelled.img", _ext(tmp_path, "-L", "root")),
        disks.MemoryDisk("slash.img", _ext(tmp_path, "-L", "a/b")),
        disks.MemoryDisk("empty.img", bytes(MIB)),
    ]
    with contextlib.closing(trees.Tree(chosen, SETTING)) as tree:
        assert {name for name, _ in tree.list(b"/")} == {b"disks", b"files"}
        assert {name for name, _ in tree.list(b"/disks")} == {b"a%2Fb.img", b"labelled.img", b"slash.img", b"empty.img"}
        for disk, volumes in (
            ("a%2Fb.qcow2", {b"v0"}),
            ("labelled.img", {b"root"}),
            ("slash.img", {b"v0"}),
            ("empty.img", set()),
        ):
            assert {name for name, _ in tree.list(f"/files/{disk}".encode())} == volumes
        found = tree.look(b"/files/labelled.img/root/here")
        assert bytes(found.read(2, 100)) == b"file"
        assert tree.look(b"/files/labelled.img/v0/here").stat() == found.stat()
        raw = tree.look(b"/disks/labelled.img")
        assert bytes(raw.read(2 * MIB - 4, 100)) == _ext(tmp_path, "-L", "root")[-4:]
        assert (bytes(raw.read(2 * MIB, 1)), raw.stat()["st_size"], raw.stat()["st_uid"]) == (b"", 2 * MIB, 7)
        for path in (
            b"/nothing",
            b"/disks/x",
            b"/files/labelled.img/other",
            b"/files/labelled.img/root/not",
            b"/files/empty.img/v0",
        ):
            with pytest.raises(FileNotFoundError):
                tree.look(path)
        for path in (b"/disks/labelled.img/x", b"/files/labelled.img/root/here/x"):
            with pytest.raises(NotADirectoryError):
                tree.look(path)
        with pytest.raises(IsADirectoryError):
            tree.look(b"/files/labelled.img/root").read(0, 1)


def test_what_a_folder_listed_is_not_looked_for_again_however_much_it_is(tmp_path: Path) -> None:
    root = b"/files/d.img/v0"
    with contextlib.closing(trees.Tree([disks.MemoryDisk("d.img", _ext(tmp_path))], SETTING, kept=1)) as tree:
        listed = list(tree.list(root))
        assert len(listed) > 1
        assert all(tree.look(root + b"/" + name) is item for name, item in listed)


def test_a_volume_that_does_not_open_is_there_and_says_why(tmp_path: Path) -> None:
    whole = _ext(tmp_path, "-L", "root", "-O", "^metadata_csum")
    described = subprocess.run(["dumpe2fs", tmp_path / "image"], capture_output=True, text=True, check=True).stdout
    block = int(next(line for line in described.splitlines() if line.startswith("Block size")).split()[-1])
    table = int(
        next(line for line in described.splitlines() if "Inode table at" in line)
        .split("Inode table at ")[1]
        .split("-")[0]
    )
    broken = bytearray(whole)
    broken[table * block + 256 : table * block + 512] = bytes(256)
    with contextlib.closing(trees.Tree([disks.MemoryDisk("d.img", bytes(broken))], SETTING)) as tree:
        assert [name for name, _ in tree.list(b"/files/d.img")] == [b"root"]
        for ask in (lambda: list(tree.list(b"/files/d.img/root")), lambda: tree.look(b"/files/d.img/root/here")):
            with pytest.raises(errors.GuestUnreadable, match="inode 2 is not in use"):
                ask()
        assert bytes(tree.look(b"/disks/d.img").read(0, len(broken))) == broken
