"""NTFS volumes made and filled by ntfs-3g: what the parser says against what a mount says."""

from __future__ import annotations

import mmap
import os
import random
import re

import guest_builders as builders
import pytest

from reconciler.guests import listings, scanning

pytestmark = builders.needs_root

#: Of ``system.ntfs_attrib_be``: compressed.
_COMPRESSED = b"\x00\x00\x08\x00"


@pytest.fixture(scope="module", params=[4096, 512, 65536], ids=["4k", "512", "64k"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    image = builders.blank(tmp_path_factory.mktemp("ntfs") / "volume.raw", 160 * builders.MIB + 512)
    builders.run("mkntfs", "-F", "-Q", "-c", str(request.param), "-L", "Fässer", image)
    with builders.mounted(image, kind="ntfs", options="streams_interface=windows,compression") as root:
        builders.fill(root, request.param)
        chosen = random.Random(5)
        for length in (40, 70_000):
            (root / "dir0" / f"grown-a.bin:stream{length}").write_bytes(chosen.randbytes(length))
        if request.param <= 4096:
            packed = root / "packed"
            packed.mkdir()
            os.setxattr(packed, "system.ntfs_attrib_be", _COMPRESSED)
            (packed / "text.txt").write_bytes(b"the same line again and again\n" * 20_000)
        # So many fragments that the runs need records of their own.
        with (root / "torn.bin").open("wb") as torn, (root / "other.bin").open("wb") as other:
            for _ in range(900):
                for file in (torn, other):
                    file.write(chosen.randbytes(4096 if request.param < 65536 else 20_000))
                    file.flush()
                    os.fsync(file.fileno())
        (root / "other.bin").unlink()
        (root / "PageFile.sys").write_bytes(chosen.randbytes(3 * builders.MIB))
        (root / "dir2" / "pagefile.sys").write_bytes(chosen.randbytes(builders.MIB))
    with builders.mounted(image, kind="ntfs") as root:
        known = builders.known(root)
        streams = {
            length: builders.digest((root / "dir0" / f"grown-a.bin:stream{length}").read_bytes())
            for length in (40, 70_000)
        }
    return image, known, streams


def test_every_file_is_listed_with_its_bytes(volume) -> None:
    image, known, streams = volume
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        files = list(listing)
        assert listing.warnings == ()
        assert {file.path for file in files} == set(known)
        checked = 0
        for file in files:
            expected = known[file.path]
            if file.stream:
                assert builders.digest(builders.content(disk, file)) == streams[file.size] or file.resident
                continue
            assert file.kind == expected.kind, file
            if file.kind == "file":
                assert (file.size, file.links) == (expected.size, expected.links), file
                assert abs(file.modified - expected.modified) < 100, file
            if file.kind == "file" and not file.resident and "compressed" not in file.flags:
                assert builders.digest(builders.content(disk, file)) == expected.digest, file.path
                checked += 1
        assert checked > 60
        assert {(file.path, file.size) for file in files if file.stream} == {
            (path, size) for path in ("dir0/grown-a.bin", "dir1/linked.bin") for size in (40, 70_000)
        }
        linked = {file.inode for file in files if file.path in ("dir0/grown-a.bin", "dir1/linked.bin")}
        assert len(linked) == 1
        assert listing.volumes[0].label == "Fässer"
        assert any("sparse" in file.flags for file in files if file.path == "sparse.bin")


def test_the_layout_holds_every_cluster_of_every_listed_file(volume) -> None:
    image, _, _ = volume
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        scan = scanning.scan(disk)
        runs = zip(scan.layout.file_offset, scan.layout.disk_offset, scan.layout.length, strict=True)
        laid = {(offset, place): length for offset, place, length in runs}
        for file in listing:
            for offset, place, length in file.extents:
                assert laid[offset, place] >= length, file.path
        assert list(scan.layout.file) == sorted(scan.layout.file)
        assert scan.layout == scanning.scan(disk).layout


def test_junk_in_free_space_harms_nobody(volume) -> None:
    image, known, _ = volume
    with builders.opened(image) as disk:
        scan = scanning.scan(disk, want_space=True)
    (found,) = scan.volumes
    assert (found.filesystem, found.clean, found.reason) == ("ntfs", True, "")
    told = builders.run("ntfsinfo", "-m", image)
    free = int(re.search(r"Free Clusters:\s+(\d+)", told)[1])  # type: ignore[index]
    assert sum(length for _, length in scan.free) // found.cluster in (free, free - 1, free - 2)
    wiped = builders.wipe(image, scan.free)
    with builders.mounted(wiped, kind="ntfs") as root:
        assert builders.known(root) == known


def test_only_the_page_file_of_the_root_is_one(volume) -> None:
    image, _, _ = volume
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        scan = scanning.scan(disk, want_space=True)
        (file,) = [file for file in listing if file.path == "PageFile.sys"]
        assert sorted(scan.page_files) and sum(length for _, length in scan.page_files) == sum(
            length for _, _, length in file.extents
        )


def test_a_volume_that_is_marked_dirty_is_kept_whole(volume) -> None:
    def dirty(data: mmap.mmap) -> None:
        cluster = int.from_bytes(data[11:13], "little") * (data[13] if data[13] < 0x81 else 1 << 256 - data[13])
        table = int.from_bytes(data[48:56], "little") * cluster
        size = -data[64] % 256
        record = table + 3 * (1 << size if data[64] > 127 else data[64] * cluster)
        at = data.find(b"\x70\x00\x00\x00", record)
        data[at + 24 + 10] |= 1

    for quiesced in (False, True):
        with builders.opened(volume[0], change=dirty) as disk:
            scan = scanning.scan(disk, want_space=True, quiesced=quiesced)
        assert scan.free == ()
        assert "dirty" in scan.volumes[0].reason


def test_a_damaged_record_costs_its_file_and_the_belief_in_the_bitmap(volume) -> None:
    def damage(data: mmap.mmap) -> None:
        name = "file-19.bin".encode("utf-16-le")
        at = data.find(name)
        while True:
            record = data.rfind(b"FILE", 0, at)
            if at - record < 1024:
                break
            at = data.find(name, at + 1)
        data[record + 510] ^= 0xFF

    with builders.opened(volume[0], change=damage) as disk, listings.list_files(disk) as listing:
        files = {file.path for file in listing}
        scan = scanning.scan(disk, want_space=True)
    missing = set(volume[1]) - files
    assert missing and all(path.endswith("file-19.bin") for path in missing)
    assert scan.free == () and "cannot be read" in scan.volumes[0].reason
    assert scan.warnings and scan.warnings[0][0] == "FileSkipped"


def test_a_hostile_table_never_crashes_or_hangs(volume) -> None:
    chosen = random.Random(11)
    image, _known, _ = volume
    with image.open("rb") as file:
        data = file.read(512)
    table = (
        int.from_bytes(data[48:56], "little") * int.from_bytes(data[11:13], "little") * data[13]
        if data[13] < 129
        else 0
    )
    places = list(range(table, table + 300 * 1024)) if table else list(range(512))
    for round_ in range(12):

        def flip(bytes_: mmap.mmap, count: int = 3 ** (round_ % 7)) -> None:
            for at in chosen.sample(places, count):
                bytes_[at] = chosen.randrange(256)

        with builders.opened(image, change=flip) as disk, listings.list_files(disk) as listing:
            scan = scanning.scan(disk, want_space=True)
            for file in listing:
                assert all(place >= 0 and place + length <= disk.size for _, place, length in file.extents)
            assert all(at >= 0 and at + length <= disk.size for at, length in scan.free)
        assert scan.seconds < 60
