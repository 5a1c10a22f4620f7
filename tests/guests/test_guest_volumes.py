"""Partition tables, logical volumes and swap around real file systems."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

import guest_builders as builders
import guest_trees as trees
import pytest

from reconciler.guests import browsing, listings, scanning

pytestmark = builders.needs_root


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An NTFS and an ext4 volume with files."""
    folder = tmp_path_factory.mktemp("parts")
    ntfs, ext = builders.blank(folder / "ntfs", 40 * builders.MIB), builders.blank(folder / "ext", 40 * builders.MIB)
    builders.run("mkntfs", "-F", "-Q", ntfs)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", ext)
    with builders.mounted(ntfs, kind="ntfs") as root:
        builders.fill(root, 1, count=20)
    with builders.mounted(ext, kind="ext4") as root:
        builders.fill(root, 2, count=20)
    return ntfs, ext


def place(image: Path, *pieces: tuple[int, bytes]) -> None:
    with image.open("r+b") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)


def partitioned(image: Path, script: str) -> None:
    done = subprocess.run(["sfdisk", "-q", str(image)], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("scheme", "script", "starts"),
    [
        ("mbr", "label: dos\nstart=63,size=81920,type=7\nstart=100001,size=81920,type=83\n", (63, 100_001)),
        ("gpt", "label: gpt\nstart=2048,size=81920\nstart=100000,size=81920\n", (2048, 100_000)),
        (
            "mbr",
            "label: dos\nstart=63,size=81920,type=7\nstart=90000,size=150000,type=5\nstart=100000,size=81920,type=83\n",
            (63, 100_000),
        ),
    ],
    ids=["sector 63", "gpt", "extended"],
)
def test_files_are_found_behind_a_table(
    tmp_path: Path, parts: tuple[Path, Path], scheme: str, script: str, starts: tuple[int, int]
) -> None:
    image = builders.blank(tmp_path / "disk.raw", 140 * builders.MIB + 1000)
    partitioned(image, script)
    place(image, *((start * 512, part.read_bytes()) for start, part in zip(starts, parts, strict=True)))
    with builders.opened(image) as disk:
        scan = scanning.scan(disk, want_space=True)
        assert [(one.scheme, one.offset, one.filesystem) for one in scan.volumes] == [
            (scheme, starts[0] * 512, "ntfs"),
            (scheme, starts[1] * 512, "ext"),
        ]
        assert scan.warnings == ()
        alone = []
        for part, start in zip(parts, starts, strict=True):
            with builders.opened(part) as other:
                found = scanning.scan(other, want_space=True)
            alone += [(offset + start * 512, length) for offset, length in found.free]
            assert len(found.layout.file) > 20
        assert list(scan.free) == sorted(alone)
        with listings.list_files(disk) as listing:
            assert {file.volume for file in listing} == {0, 1}


def _lvm(parts: tuple[Path, Path], image: Path) -> None:
    """A physical volume as LVM2 writes it, by hand: here no device mapper would make one."""
    extent, start = 4 * builders.MIB, builders.MIB
    count = 40 * builders.MIB // extent
    names = [uuid.uuid4().hex for _ in range(4)]
    ident = names[0].encode()
    segments = "\n".join(
        f'segment{number} {{ start_extent = {5 * (number - 1)}\nextent_count = 5\ntype = "striped"\nstripe_count = 1\n'
        f'stripes = ["pv0", {at}] }}'
        for number, at in ((1, 12), (2, 0))
    )
    text = (
        f"""vg {{
id = "x"
seqno = 2
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
extent_size = {extent // 512}
physical_volumes {{ pv0 {{ id = "{_dashed(names[0])}"
status = ["ALLOCATABLE"]
pe_start = {start // 512}
pe_count = 30 }}
pv1 {{ id = "another-disk" pe_start = 2048 pe_count = 30 }} }}
logical_volumes {{
data {{ id = "y"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 2
{segments} }}
elsewhere {{ id = "w"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 1
segment1 {{ start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1 stripes = ["pv1", 0] }} }}
whole {{ id = "z"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 1
segment1 {{ start_extent = 0
extent_count = {count}
type = "striped"
stripe_count = 1
stripes = ["pv0", 18] }} }} }} }}
# Generated
contents = "Text Format Volume Group"
version = 1
""".encode()
        + b"\0"
    )
    crc = _crc(text)
    size = 124 * builders.MIB
    label = b"LABELONE" + (1).to_bytes(8, "little") + bytes(4) + (32).to_bytes(4, "little") + b"LVM2 001"
    header = ident + size.to_bytes(8, "little")
    header += start.to_bytes(8, "little") + bytes(8) + bytes(16)
    header += (4096).to_bytes(8, "little") + (start - 4096).to_bytes(8, "little") + bytes(16)
    sector = bytearray((label + header).ljust(512, b"\0"))
    sector[16:20] = _crc(bytes(sector[20:])).to_bytes(4, "little")
    meta = b" LVM2 x[5A%r0N*>" + (1).to_bytes(4, "little") + (4096).to_bytes(8, "little")
    meta += (start - 4096).to_bytes(8, "little")
    meta += (512).to_bytes(8, "little") + len(text).to_bytes(8, "little") + crc.to_bytes(4, "little") + bytes(4)
    area = bytearray(meta.rjust(len(meta) + 4, b"\0").ljust(512, b"\0"))
    area[:4] = _crc(bytes(area[4:])).to_bytes(4, "little")
    ext, other = parts[1].read_bytes(), parts[0].read_bytes()
    half = 5 * extent
    place(
        image,
        (512, bytes(sector)),
        (4096, bytes(area)),
        (4096 + 512, text),
        (start + 12 * extent, ext[:half]),
        (start, ext[half:]),
        (start + 18 * extent, other),
    )


def _dashed(name: str) -> str:
    pieces = [name[:6], *(name[at : at + 4] for at in range(6, 26, 4)), name[26:]]
    return "-".join(pieces)


def _crc(data: bytes) -> int:
    """LVM2's: CRC-32 from its own start value, not inverted at the end."""
    crc = 0xF597A6CF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc


def test_files_are_found_in_logical_volumes(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    image = builders.blank(tmp_path / "disk.raw", 124 * builders.MIB)
    _lvm(parts, image)
    with builders.opened(image) as disk, listings.list_files(disk) as listing:
        files = list(listing)
        assert listing.warnings == ()
        assert {(one.scheme, one.filesystem) for one in listing.volumes} == {("lvm2", "ext"), ("lvm2", "ntfs")}
        for number, volume in enumerate(listing.volumes):
            part = parts[1] if volume.filesystem == "ext" else parts[0]
            own = {file.path: builders.digest(builders.content(disk, file)) for file in files if file.volume == number}
            with builders.opened(part) as other, listings.list_files(other) as alone:
                expected = {file.path: builders.digest(builders.content(other, file)) for file in alone}
            assert own == expected
        with browsing.browse(disk) as browser:
            assert browser.volumes == listing.volumes
            for number, volume in enumerate(browser.volumes):
                part = parts[1] if volume.filesystem == "ext" else parts[0]
                with builders.opened(part) as other, browsing.browse(other) as alone_too:
                    assert trees.compare(trees.browsed(alone_too, 0), trees.browsed(browser, number)) == []


def test_swap_keeps_its_header(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "swap.raw", 20 * builders.MIB)
    image.chmod(0o600)
    builders.run("mkswap", "-L", "pages", image)
    with builders.opened(image) as disk:
        scan = scanning.scan(disk, want_space=True)
    assert (scan.volumes[0].filesystem, scan.volumes[0].label) == ("swap", "pages")
    assert scan.swap == ((4096, 20 * builders.MIB - 4096),)


@pytest.mark.parametrize(
    ("offset", "mark", "told"),
    [
        (0, b"LUKS\xba\xbe\0\2", "it holds an encrypted LUKS volume, which is not read"),
        (0x10040, b"_BHRfS_M", "it holds Btrfs, which is not read"),
        (0x8001, b"CD001", "it holds ISO 9660, as a CD or DVD has it, which is not read"),
        (0x10034, b"ReIsEr2Fs", "it holds ReiserFS, which is not read"),
        (7, b"nothing", "its file system is not known"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(tmp_path: Path, offset: int, mark: bytes, told: str) -> None:
    image = builders.blank(tmp_path / "disk.raw", builders.MIB)
    place(image, (offset, mark))
    with builders.opened(image) as disk:
        looked = scanning.scan(disk)
        assert [(one.filesystem, one.reason) for one in looked.volumes] == [(None, told)]
        named = told.startswith("it holds ")
        assert [code for code, _ in looked.warnings] == ["VolumeNotRead"] * named
        assert mark.startswith(b"ReIs") or listings.plausible(disk) == named


def test_a_gpt_without_a_copy_that_can_be_read_is_told(tmp_path: Path) -> None:
    image = builders.blank(tmp_path / "disk.raw", 4 * builders.MIB)

    def told() -> list[str]:
        with builders.opened(image) as disk:
            return [code for code, _ in scanning.scan(disk).warnings]

    builders.run("sfdisk", "-q", image, input="label: gpt\n")
    assert told() == []
    place(image, (512, b"spoiled"), (4 * builders.MIB - 512, b"spoiled"))
    assert told() == ["PartitionTableDamaged"]


def test_two_volumes_over_each_other_keep_their_free_space(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    image = Path(shutil.copyfile(parts[0], tmp_path / "disk.raw"))
    data = bytearray(image.read_bytes())
    table = b"".join(
        bytes([0, 0, 0, 0, 7, 0, 0, 0]) + start.to_bytes(4, "little") + (70_000).to_bytes(4, "little")
        for start in (2048, 4096)
    )
    inner = bytearray(160 * builders.MIB)
    inner[446 : 446 + len(table)] = table
    inner[510:512] = b"\x55\xaa"
    inner[2048 * 512 : 2048 * 512 + len(data)] = data
    image.write_bytes(inner)
    with builders.opened(image) as disk:
        assert scanning.scan(disk, want_space=True).free == ()
