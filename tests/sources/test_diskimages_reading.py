"""Every format yields exactly the bytes of its virtual disk, and a damaged file is found before it is believed."""

from __future__ import annotations

import concurrent.futures
import os
import random
import signal
import threading
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import disks, errors, extents
from reconciler.sources.diskimages import converted, formats, raw
from reconciler.sources.nbd import qemu, servers

MIB = samples.MIB
KINDS = [
    ("qcow2", "qcow2", ""),
    ("qcow2", "qcow2", "cluster_size=4096,compat=0.10"),
    ("vmdk", "vmdk", ""),
    ("vmdk", "vmdk", "subformat=streamOptimized"),
    ("vmdk", "vmdk", "subformat=monolithicFlat"),
    ("vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vhdx", "vhdx", ""),
]


@pytest.mark.parametrize("size", [1, 511, 65536, 3 * MIB + 12345])
def test_a_raw_disk_of_any_size_is_read_exactly(machine: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    samples.write_raw(machine / "a.img", data)
    reading = samples.freeze(samples.source(machine.parent))
    (disk,) = reading.disks
    assert isinstance(disk, disks.Disk)
    assert (disk.name, disk.size) == ("a.img", size)
    assert samples.whole(disk) == data
    with pytest.raises(ValueError, match="beyond"):
        disk.pread(size - 1, 2)
    reading.close()


def test_holes_of_a_raw_disk_are_no_extents(machine: Path) -> None:
    path = machine / "a.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(10 * MIB)
        file.write(b"x" * MIB)
    with raw.RawDisk("a.img", path) as disk:
        assert disk.extents() == ((10 * MIB, MIB),)
    with path.open("r+b") as file:
        file.truncate(0)
        file.truncate(MIB)
    with raw.RawDisk("a.img", path) as disk:
        assert disk.extents() == ()


@samples.needs_qemu
@pytest.mark.parametrize("size", [5 * MIB, 3 * MIB + 512 * 7])
@pytest.mark.parametrize(("suffix", "format", "options"), KINDS)
def test_an_image_file_yields_its_virtual_disk(
    machine: Path, suffix: str, format: str, options: str, size: int
) -> None:
    data = samples.content(size)
    samples.write_image(machine / f"a.{suffix}", data, format, options)
    reading = samples.freeze(samples.source(machine.parent))
    assert reading.missing == ()
    (disk,) = reading.disks
    assert disk.size == size
    assert samples.whole(disk) == data
    assert samples.whole(disk, step=10_007) == data
    assert disk.extents() == extents.normalise(disk.extents())
    if format != "vhdx":
        assert extents.total(disk.extents()) < size
    assert reading.finish().failed == ()
    reading.close()


@samples.needs_qemu
def test_threads_read_one_disk_at_once(machine: Path) -> None:
    data = samples.content(8 * MIB)
    samples.write_image(machine / "a.qcow2", data, "qcow2")
    reading = samples.freeze(samples.source(machine.parent))
    disk = reading.disks[0]
    rng = random.Random(3)
    places = [(offset, rng.randrange(1, MIB)) for offset in (rng.randrange(7 * MIB) for _ in range(200))]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda place: bytes(disk.pread(*place)), places)
        assert all(piece == data[o : o + n] for piece, (o, n) in zip(found, places, strict=True))
    reading.close()


@samples.needs_qemu
@pytest.mark.parametrize("cut", [512, 70_000, 2 * MIB])
@pytest.mark.parametrize(("suffix", "format", "options"), [KINDS[0], KINDS[2], *KINDS[4:]])
def test_a_truncated_file_is_missing_from_the_reading_and_says_why(
    machine: Path, suffix: str, format: str, options: str, cut: int
) -> None:
    data = random.Random(5).randbytes(8 * MIB)
    samples.write_image(machine / f"a.{suffix}", data, format, options)
    samples.write_raw(machine / "b.img", b"sound")
    victim = max(machine.glob("a*"), key=lambda path: path.stat().st_size)
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size - cut)
    reading = samples.freeze(samples.source(machine.parent))
    assert [disk.name for disk in reading.disks] == ["b.img"]
    (missing,) = reading.missing
    assert missing.code == "UnreadableDisk"
    assert "truncated" in missing.message and f"a.{suffix}" in missing.message
    reading.close()


@samples.needs_qemu
@pytest.mark.parametrize("cut", [512, 3000, 5000, 70_000])
def test_a_truncated_file_never_yields_other_bytes(machine: Path, cut: int) -> None:
    """Whatever lay at the end, data or metadata with room to spare: refused, or right."""
    data = random.Random(5).randbytes(8 * MIB)
    path = samples.write_image(machine / "a.qcow2", data, "qcow2", "cluster_size=4096,compat=0.10")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    reading = samples.freeze(samples.source(machine.parent))
    assert reading.missing or samples.whole(reading.disks[0]) == data
    assert reading.missing or cut < 4096
    reading.close()


@samples.needs_qemu
def test_a_truncated_compressed_vmdk_fails_when_it_is_opened_or_read(machine: Path) -> None:
    path = samples.write_image(machine / "a.vmdk", samples.content(8 * MIB), "vmdk", "subformat=streamOptimized")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    reading = samples.freeze(samples.source(machine.parent))
    if not reading.missing:
        with pytest.raises(errors.SourceError):
            samples.whole(reading.disks[0])
    reading.close()


@pytest.mark.parametrize("name", ["a.qcow2", "a.vmdk", "a.vhdx"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"QFI\xfa" + bytes(5000)])
def test_a_container_by_name_without_its_content_is_unreadable(machine: Path, name: str, content: bytes) -> None:
    (machine / name).write_bytes(content)
    (machine / "b.img").write_bytes(b"sound")
    reading = samples.freeze(samples.source(machine.parent))
    assert [disk.name for disk in reading.disks] == ["b.img"]
    assert [found.code for found in reading.missing] == ["UnreadableDisk"]
    assert name in reading.missing[0].message
    reading.close()


@samples.needs_qemu
@pytest.mark.parametrize("magic", [b"QFI\xfb", b"KDMV", b"vhdxfile"])
def test_a_header_followed_by_garbage_is_unreadable(machine: Path, magic: bytes) -> None:
    suffix = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx"}[magic]
    (machine / f"a.{suffix}").write_bytes(magic + random.Random(1).randbytes(100_000))
    reading = samples.freeze(samples.source(machine.parent))
    assert reading.disks == ()
    assert [found.code for found in reading.missing] == ["UnreadableDisk"]
    reading.close()


@samples.needs_qemu
def test_a_server_that_is_killed_fails_the_read_and_leaves_nothing(machine: Path) -> None:
    samples.write_image(machine / "a.qcow2", samples.content(4 * MIB), "qcow2")
    image = formats.identify(machine / "a.qcow2", machine)
    assert image.node is not None
    disk = converted.ConvertedDisk("a.qcow2", image.node)
    assert disk.server_pid in samples.children()
    os.kill(disk.server_pid, signal.SIGKILL)
    with pytest.raises(errors.SourceError, match=r"a\.qcow2"):
        for _ in range(10):
            disk.pread(0, 4096)
    disk.close()
    disk.close()


@samples.needs_qemu
def test_a_server_that_hangs_is_cut_off(machine: Path) -> None:
    samples.write_image(machine / "a.qcow2", samples.content(4 * MIB), "qcow2")
    image = formats.identify(machine / "a.qcow2", machine)
    assert image.node is not None
    disk = converted.ConvertedDisk("a.qcow2", image.node, patience=0.5)
    os.kill(disk.server_pid, signal.SIGSTOP)
    with pytest.raises(errors.SourceError, match="did not answer"):
        disk.pread(0, 4096)
    disk.close()


@samples.needs_qemu
def test_closing_while_others_read_ends_them_with_an_error(machine: Path) -> None:
    samples.write_image(machine / "a.qcow2", random.Random(1).randbytes(4 * MIB), "qcow2")
    image = formats.identify(machine / "a.qcow2", machine)
    assert image.node is not None
    disk = converted.ConvertedDisk("a.qcow2", image.node, connections=2)
    ended: list[BaseException] = []
    started = threading.Barrier(4)

    def read_on() -> None:
        started.wait()
        try:
            while True:
                disk.pread(0, 65536)
        except errors.SourceError as error:
            ended.append(error)

    threads = [threading.Thread(target=read_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    disk.close()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 3


@samples.needs_qemu
def test_a_server_that_cannot_open_its_file_says_the_reason(tmp_path: Path) -> None:
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / "gone.qcow2")}}
    with pytest.raises(servers.ServerFailed, match="No such file or directory"):
        qemu.serve(node, ["--read-only"])


@samples.needs_qemu
def test_temporary_files_may_lie_deeper_than_an_address_is_long(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    data = samples.content(MIB)
    samples.write_image(machine / "a.qcow2", data, "qcow2")
    reading = samples.freeze(samples.source(machine.parent))
    assert samples.whole(reading.disks[0]) == data
    assert list(deep.iterdir()) == []
    reading.close()
