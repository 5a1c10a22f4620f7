"""Where restored files go, told by a walk that lies: names that lead elsewhere, contents that end, numbers too large."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import stat
import struct
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.base import errors
from reconciler.guests import nodes
from reconciler.operations import filecontents, filenames, foldersinks, tarsinks

sys.path.append(str(Path(__file__).parents[1] / "guests"))

import guest_builders as builders
import guest_features as features
import guest_trees as trees

MIB = 1 << 20


@dataclasses.dataclass
class Content:
    """Bytes that may end early, with holes of zeros."""

    size: int
    spans: list[tuple[int, int]]
    ends: int = 1 << 60

    def extents(self) -> Iterator[tuple[int, int]]:
        return iter(self.spans)

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        for start in range(offset, offset + length, MIB):
            if start >= self.ends:
                raise errors.GuestUnreadable("the rest is gone")
            step = min(MIB, offset + length - start)
            yield start, b"".join(self.at(start, step))

    def at(self, offset: int, length: int) -> Iterator[bytes]:
        data = bytearray(length)
        for start, count in self.spans:
            for place in range(max(start, offset), min(start + count, offset + length), 4096):
                step = min(4096, start + count - place, offset + length - place)
                data[place - offset : place - offset + step] = bytes([place // 4096 % 251 + 1]) * step
        yield bytes(data)


def node(kind: str = "file", inode: int = 5, **more: object) -> nodes.Node:
    format = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}[kind]
    known: dict[str, object] = {
        "volume": 0, "inode": inode, "kind": kind, "format": format, "size": 0, "links": 1, "mode": format | 0o640,
        "uid": 1, "gid": 2, "created": 0, "modified": 1, "changed": 0, "accessed": 0, **more,
    }  # fmt: skip
    return nodes.Node(**known)  # type: ignore[arg-type]


SMALL = Content(10, [(0, 10)])


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc/x", "a/../../b", "nul\0", "..\0"])
def test_no_name_leads_elsewhere(tmp_path: Path, name: str) -> None:
    report = filecontents.Report()
    root = tmp_path / "root"
    archive = io.BytesIO()
    tar = tarsinks.TarSink(archive, report)
    with foldersinks.FolderSink(root, report, force=True) as folder:
        for sink in (folder, tar):
            sink.directory(name, node("directory"), name)
            sink.file(name, node(), SMALL, name)  # type: ignore[arg-type]
            sink.symlink("up", node("symlink", target="../../.."), "up")
            sink.link("other", (name, name), node(), "other")
            sink.leave()
            sink.finish()
    escaped = filenames.plain(name)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == sorted(
        [escaped, f"{escaped}/{escaped}", f"{escaped}/other", f"{escaped}/up"]
    )
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        members = opened.getmembers()
    assert [one.name for one in members] == [escaped, f"{escaped}/{escaped}", f"{escaped}/up", f"{escaped}/other"]
    assert members[-1].linkname == f"{escaped}/{escaped}" and ".." not in f"{escaped}/{escaped}".split("/")


@pytest.mark.parametrize("sizes", [(97, 98, 99, 100, 101), (480, 500, 990, 1000, 4000)])
def test_every_length_of_name_owner_and_moment_is_read_back(sizes: tuple[int, ...]) -> None:
    report, archive = filecontents.Report(), io.BytesIO()
    sink = tarsinks.TarSink(archive, report)
    wanted = []
    for number, length in enumerate(sizes):
        name, moment = "é" * 3 + "n" * (length - 6), (-1) ** number * (10**18 + number * 123_456_789)
        owner = 10 ** (number * 2 + 1)
        key = f"user.{'k' * length}=%{number}"
        one = node(uid=owner, gid=owner + 1, modified=moment, xattrs=((key, bytes(range(256))),))
        sink.file(name, one, Content(number, [(0, number)]), name)  # type: ignore[arg-type]
        wanted.append((name, owner, owner + 1, moment, key))
    sink.finish()
    assert len(archive.getvalue()) % 10_240 == 0
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        for member, (name, uid, gid, moment, key) in zip(opened, wanted, strict=True):
            assert (member.name, member.uid, member.gid, member.mode) == (name, uid, gid, 0o640)
            assert abs(member.mtime * 10**9 - moment) < 1000
            value = member.pax_headers[f"SCHILY.xattr.{key.replace('%', '%25').replace('=', '%3D')}"]
            assert value.encode("utf-8", "surrogateescape") == bytes(range(256))


@pytest.mark.parametrize("spans", [[(0, 9 * MIB)], [(0, 4096), (5 * MIB, 4 * MIB)], [(3 * MIB, 5 * MIB + 100)], []])
def test_a_large_file_that_ends_early_leaves_an_archive_that_can_be_read(spans: list[tuple[int, int]]) -> None:
    report, archive = filecontents.Report(), io.BytesIO()
    sink = tarsinks.TarSink(archive, report)
    whole = Content(9 * MIB, spans)
    sink.file("whole", node(), whole, "whole")  # type: ignore[arg-type]
    held = sum(length for _, length in spans)
    cut = dataclasses.replace(whole, ends=7 * MIB)
    if held > 4 * MIB:
        with pytest.raises(errors.GuestUnreadable, match="zeros behind its first"):
            sink.file("cut", node(), cut, "cut")  # type: ignore[arg-type]
        with pytest.raises(errors.GuestUnreadable, match="is gone"):
            sink.file("none", node(), dataclasses.replace(cut, ends=0), "none")  # type: ignore[arg-type]
    sink.file("after", node(), SMALL, "after")  # type: ignore[arg-type]
    sink.finish()
    expected = b"".join(whole.at(0, whole.size))
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        found = {one.name: opened.extractfile(one).read() for one in opened}  # type: ignore[union-attr]
    assert found["whole"] == expected
    assert list(found) == (["whole", "cut", "after"] if held > 4 * MIB else ["whole", "after"])
    if held > 4 * MIB:
        # What lies in a hole is zeros in both.
        assert found["cut"][: 6 * MIB] == expected[: 6 * MIB] and not any(found["cut"][8 * MIB :])
        assert found["cut"] != expected


def test_a_hole_of_one_block_is_a_hole_in_an_archive() -> None:
    archive, holes = io.BytesIO(), Content(MIB, [(place, 4096) for place in range(4096, MIB, 8192)])
    sink = tarsinks.TarSink(archive, filecontents.Report())
    sink.file("holes", node(), holes, "holes")  # type: ignore[arg-type]
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        assert opened.extractfile("holes").read() == b"".join(holes.at(0, MIB))  # type: ignore[union-attr]
    # Its data, a header, its records and the map; with the holes it would be twice as long.
    assert len(archive.getvalue()) < MIB // 2 + 8192


def test_a_file_that_ends_early_is_not_in_the_folder(tmp_path: Path) -> None:
    report = filecontents.Report()
    with foldersinks.FolderSink(tmp_path, report, force=False) as sink:
        with pytest.raises(errors.GuestUnreadable):
            sink.file("cut", node(), Content(9 * MIB, [(0, 9 * MIB)], ends=MIB), "cut")  # type: ignore[arg-type]
        sink.file("holes", node(), Content(100 * MIB, [(50 * MIB, 4096)]), "holes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["holes"]
    assert (tmp_path / "holes").stat().st_size == 100 * MIB and (tmp_path / "holes").stat().st_blocks < 100
    with (tmp_path / "holes").open("rb") as file:
        os.lseek(file.fileno(), 50 * MIB, os.SEEK_SET)
        assert file.read(4096) == b"".join(Content(100 * MIB, [(50 * MIB, 4096)]).at(50 * MIB, 4096))


def acl(path: Path) -> set[str]:
    return {key for key in os.listxattr(path) if "acl" in key}


def test_a_folder_gives_no_rights_that_the_image_does_not_know(tmp_path: Path) -> None:
    report = filecontents.Report()
    os.setxattr(tmp_path, "system.posix_acl_default", features.LIST)
    with foldersinks.FolderSink(tmp_path, report, force=False) as sink:
        sink.directory("folder", node("directory"), "folder")
        sink.file("within", node(), SMALL, "within")  # type: ignore[arg-type]
        sink.leave()
        sink.file("file", node(mode=stat.S_IFREG | 0o664), SMALL, "file")  # type: ignore[arg-type]
        sink.file("of windows", node(mode=None), SMALL, "of windows")  # type: ignore[arg-type]
    assert not acl(tmp_path / "folder") and not acl(tmp_path / "folder" / "within") and not acl(tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o664
    assert acl(tmp_path / "of windows") == {"system.posix_acl_access"}


@builders.needs_root
def test_a_folder_that_knows_neither_case_nor_links_nor_owners(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "target.raw", 8 * MIB)
    builders.run("mkfs.exfat", image)
    report = filecontents.Report()
    told: list[str] = []
    with builders.mounted(image, kind="exfat") as root:
        for _ in range(2):
            with foldersinks.FolderSink(root, report, force=True) as sink:
                sink.directory("Folder", node("directory"), "Folder")
                sink.leave()
                sink.directory("folder", node("directory"), "folder")
                sink.leave()
                sink.file("Case", node(), SMALL, "Case")  # type: ignore[arg-type]
                sink.file("a:b", node(), SMALL, "a:b")  # type: ignore[arg-type]
                assert not sink.link("other", ("Case",), node(), "other")
                for refused in (
                    lambda: sink.file("case", node(), Content(9, []), "case"),  # type: ignore[arg-type]
                    lambda: sink.special("pipe", dataclasses.replace(node(), format=stat.S_IFIFO), "pipe"),
                    lambda: sink.symlink("link", node("symlink", target="Case"), "link"),
                ):
                    with pytest.raises((errors.TargetExists, OSError)) as raised:
                        refused()
                    told.append(type(raised.value).__name__)
                    assert getattr(raised.value, "errno", None) != errno.EIO
        held = {path.name: path.stat().st_size for path in root.iterdir() if path.is_file()}
    assert held == {"Case": 10, "a%3Ab": 10} and told[0] == told[3] == "TargetExists"
    for word in ("keep owners", "keep rights", "links none", "tell their names apart"):
        assert any(word in note for note in report.notes), (word, report.notes)


@builders.needs_root
def test_a_folder_of_ntfs_holds_what_comes_from_elsewhere_and_says_what_it_only_takes(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "target.raw", 8 * MIB)
    builders.run("mkntfs", "-F", "-Q", image)
    report = filecontents.Report()
    made = 1_000_000_000_123_456_700
    epoch = struct.pack(">4Q", *(builders.NTFS_EPOCH,) * 4)
    files = {
        "of fat": node(mode=None, uid=None, gid=None, created=made, modified=made + 100, flags=("hidden", "readonly")),
        "of linux": node(created=made, modified=made + 200, xattrs=(("system.posix_acl_access", features.LIST),)),
        "of 1970": node(mode=None, modified=0, xattrs=(("system.ntfs_times_be", epoch),)),
        "of 2400": node(modified=(1 << 63) - 1),
    }
    with builders.mounted(image, kind="ntfs") as root:
        with foldersinks.FolderSink(root, report, force=False) as sink:
            for name, one in files.items():
                sink.file(name, one, SMALL, name)  # type: ignore[arg-type]
        for _ in range(3):
            with foldersinks.FolderSink(root, report, force=True) as sink:
                sink.file("x" * 255, node(), SMALL, "x" * 255)  # type: ignore[arg-type]
        # What NTFS-3G does to replace a name of that length would leave another.
        assert {path.name for path in root.iterdir()} == {*files, "x" * 255}
        seen = trees.windows(root, "attrib_be", "times_be")
    tar = tarsinks.TarSink(io.BytesIO(), archived := filecontents.Report())
    for name, one in files.items():
        tar.file(name, one, SMALL, name)  # type: ignore[arg-type]
    assert {note.partition("first ")[2] for note in archived.notes} == {"'of fat'", "'of 2400'"}
    moments = {name: [int.from_bytes(of["times_be"][at : at + 8], "big") for at in (0, 8)] for name, of in seen.items()}
    first = builders.NTFS_EPOCH + made // 100
    assert (moments["of fat"], moments["of linux"]) == ([first, first + 1], [first, first + 2])
    assert (moments["of 1970"][1], seen["of fat"]["attrib_be"][3]) == (builders.NTFS_EPOCH, 0x3)
    said = {note.partition(": ")[0]: note.partition("first ")[2] for note in report.notes}
    assert said["access control lists were not kept (No data available)"] == "'of linux'"
    assert said["times after the year 2262 are not read, and not kept"] == "'of 2400'"
    # A folder of Linux does not take the one for unknown either.
    with foldersinks.FolderSink(tmp_path / "linux", report, force=False) as sink:
        sink.file("of 1970", files["of 1970"], SMALL, "of 1970")  # type: ignore[arg-type]
    assert (tmp_path / "linux" / "of 1970").stat().st_mtime_ns == 0


@builders.needs_root
def test_a_descriptor_is_set_last_for_it_may_shut_out_who_restores() -> None:
    anyones = Path(tempfile.mkdtemp())
    anyones.chmod(0o755)
    image = builders.blank(anyones / "target.raw", 8 * MIB)
    builders.run("mkntfs", "-F", "-Q", image)
    report = filecontents.Report()
    keys = (("times_be", bytes(range(1, 33))), ("attrib_be", b"\0\0\0\3"), ("acl", features.descriptor(7)))
    known = tuple((f"system.ntfs_{key}", value) for key, value in keys)
    one = node(mode=None, uid=None, gid=None, created=1, xattrs=known, streams=(("a", 10), ("b", 10)))
    with builders.mounted(image, kind="ntfs", options="allow_other,permissions,streams_interface=windows") as root:
        os.seteuid(65534)
        try:
            with foldersinks.FolderSink(root / "to", report, force=False) as sink:
                sink.directory("folder", dataclasses.replace(one, kind="directory", streams=()), "folder")
                sink.file("file", one, SMALL, "file")  # type: ignore[arg-type]
                for stream in "ab":
                    sink.stream("file", stream, one, SMALL, "file")  # type: ignore[arg-type]
                sink.leave()
        finally:
            os.seteuid(0)
        seen = trees.windows(root / "to", "times_be", "attrib_be", "acl")
        assert (root / "to" / "folder" / "file:b").read_bytes() == (root / "to" / "folder" / "file").read_bytes()
    shutil.rmtree(anyones)
    assert report.notes == ()
    for path, bits in (("folder", 0x13), ("folder/file", 0x3)):
        of = seen[path]
        assert (of["times_be"][:24], of["attrib_be"][3], of["acl"]) == (known[0][1][:24], bits, known[2][1]), path
