"""A restored disk is whole under its name, or not there at all."""

from __future__ import annotations

import concurrent.futures
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import disks, errors, meters
from reconciler.sources import targets

MIB = samples.MIB
FORMATS = ["raw", pytest.param("qcow2", marks=samples.needs_qemu), pytest.param("vmdk", marks=samples.needs_qemu)]


def fill(target: targets.Target, data: bytes, step: int = MIB) -> None:
    for offset in range(0, len(data), step):
        target.pwrite(offset, data[offset : offset + step])


def content_of(format: str, path: Path, size: int) -> bytes:
    disk = targets.read_back(format, path, size)
    try:
        return samples.whole(disk)
    finally:
        disk.close()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [1, 65536, 5 * MIB, 3 * MIB + 777])
def test_what_was_written_is_read_back(tmp_path: Path, format: str, size: int) -> None:
    data = samples.content(size) if size > 1 else b"x"
    path = tmp_path / f"a{targets.SUFFIXES[format]}"
    target = targets.open_target(format, path, size)
    assert target.path == path and not path.exists()
    fill(target, data, step=300_001)
    target.flush()
    proof = target.read_back()
    assert proof.size == size
    assert samples.whole(proof) == data
    proof.close()
    assert not path.exists()
    target.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert content_of(format, path, size) == data
    target.abort()
    assert path.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_qemu_reads_what_was_written(tmp_path: Path, format: str) -> None:
    data = samples.content(4 * MIB + 512)
    path = tmp_path / "a"
    target = targets.open_target(format, path, len(data))
    fill(target, data)
    target.finish()
    if format == "raw":
        assert path.read_bytes() == data
    else:
        samples.qemu("qemu-img", "check", "-f", format, path)
        samples.qemu("qemu-img", "convert", "-f", format, "-O", "raw", path, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_take_no_space(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    target = targets.open_target(format, path, 64 * MIB)
    for offset in range(0, 64 * MIB, MIB):
        target.pwrite(offset, memoryview(bytes(MIB)) if offset != 9 * MIB else random.Random(1).randbytes(MIB))
    target.finish()
    assert path.stat().st_blocks * 512 < 3 * MIB
    if format == "raw":
        assert path.stat().st_size == 64 * MIB


@pytest.mark.parametrize("format", FORMATS)
def test_threads_write_one_target_at_once(tmp_path: Path, format: str) -> None:
    data = random.Random(2).randbytes(8 * MIB + 100)
    target = targets.open_target(format, tmp_path / "a", len(data))
    steps = list(range(0, len(data), 100_000))
    random.Random(1).shuffle(steps)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda offset: target.pwrite(offset, data[offset : offset + 100_000]), steps))
    target.finish()
    assert content_of(format, tmp_path / "a", len(data)) == data


@pytest.mark.parametrize("format", FORMATS)
def test_what_exists_is_not_overwritten_without_force(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    with pytest.raises(errors.TargetExists, match="--force"):
        targets.open_target(format, path, MIB)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    target = targets.open_target(format, path, MIB, force=True)
    target.pwrite(0, b"x" * 512)
    assert path.read_bytes() == b"precious"
    target.finish()
    assert content_of(format, path, MIB) == b"x" * 512 + bytes(MIB - 512)


@pytest.mark.parametrize("format", FORMATS)
def test_a_name_taken_meanwhile_is_not_overwritten_either(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    target = targets.open_target(format, path, MIB)
    target.pwrite(0, b"x" * 512)
    path.write_bytes(b"precious")
    with pytest.raises(errors.TargetExists):
        target.finish()
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"precious"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_aborted_target_leaves_nothing(tmp_path: Path, format: str) -> None:
    target = targets.open_target(format, tmp_path / "a", MIB)
    target.pwrite(0, b"x" * 512)
    target.abort()
    target.abort()
    assert list(tmp_path.iterdir()) == []
    assert samples.children() == set()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.TargetError, match="gone"):
        targets.open_target("raw", tmp_path / "gone" / "a.img", MIB)


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A file system with 4 MiB of space."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs (mount, root) cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_device_is_told_and_nothing_stays(small_device: Path, format: str) -> None:
    target = targets.open_target(format, small_device / "a", 16 * MIB)
    with pytest.raises(errors.TargetError, match=r"small/a: no space left"):
        fill(target, random.Random(1).randbytes(16 * MIB))
        target.finish()
    target.abort()
    assert list(small_device.iterdir()) == []


@samples.needs_qemu
def test_a_flat_vmdk_is_two_files_or_none(tmp_path: Path) -> None:
    data = samples.content(3 * MIB + 5)
    path, extent = tmp_path / "a.vmdk", tmp_path / "a-flat.vmdk"

    def made(*, force: bool) -> targets.Target:
        return targets.open_target("vmdk", path, len(data), subformat="flat", force=force, identity="this disk")

    target = made(force=False)
    fill(target, data)
    assert not path.exists() and not extent.exists()
    target.finish()
    assert {one.name for one in tmp_path.iterdir()} == {path.name, extent.name}
    assert extent.stat().st_size == 3 * MIB + 512
    samples.qemu("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data + bytes(507)
    (tmp_path / "out").unlink()
    path.unlink()
    with pytest.raises(errors.TargetExists, match="a-flat"):
        made(force=False)
    replaced = made(force=True)
    replaced.pwrite(0, b"x" * 512)
    replaced.finish()
    assert content_of("vmdk", path, MIB) == b"x" * 512 + bytes(MIB - 512)
    made(force=True).abort()
    assert {one.name for one in tmp_path.iterdir()} == {path.name, extent.name}


@samples.needs_qemu
def test_a_stream_takes_the_whole_disk(tmp_path: Path) -> None:
    data = samples.content(5 * MIB + 512)
    path = tmp_path / "a.vmdk"
    target = targets.open_target("vmdk", path, len(data), subformat="streamOptimized")
    assert isinstance(target, targets.Filled)
    sent = target.fill(disks.MemoryDisk("a", data), meters.Meter())
    target.flush()
    proof = target.read_back()
    assert samples.whole(proof) == data
    proof.close()
    target.finish()
    assert path.stat().st_size == sent
    samples.qemu("qemu-img", "check", "-f", "vmdk", path)
    samples.qemu("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


def test_what_a_dead_attempt_left_is_told_and_can_be_mended(tmp_path: Path) -> None:
    data = samples.content(4 * MIB)
    first = targets.open_target("raw", tmp_path / "a", len(data), identity="this disk")
    first.pwrite(0, data[: 2 * MIB])
    assert first.held() == ()
    (left,) = list(tmp_path.iterdir())
    os.link(left, tmp_path / "kept")  # as a kill would leave it: its lock goes with its process, its name stays
    first.abort()
    (tmp_path / "kept").rename(left)
    again = targets.open_target("raw", tmp_path / "a", len(data), identity="this disk")
    assert sum(length for _, length in again.held()) > MIB // 2
    assert bytes(again.pread(0, MIB)) == data[:MIB]
    again.zero(0, MIB)
    again.pwrite(MIB, bytes(MIB), over=True)
    again.finish()
    assert content_of("raw", tmp_path / "a", 4 * MIB) == bytes(4 * MIB)
    other = targets.open_target("raw", tmp_path / "b", MIB, identity="this disk")
    assert other.held() == ()
    other.abort()


@samples.needs_qemu
def test_the_server_of_a_dead_attempt_is_waited_for(tmp_path: Path) -> None:
    first = targets.open_target("qcow2", tmp_path / "a", 4 * MIB, identity="this disk")
    first.pwrite(0, samples.content(MIB))
    (left,) = list(tmp_path.iterdir())
    os.link(left, tmp_path / "kept")  # as a kill would leave it
    first.abort()
    (tmp_path / "kept").rename(left)
    # It closes the image while the next attempt begins.
    busy = subprocess.Popen(["qemu-nbd", "-f", "qcow2", "-k", tmp_path / "socket", left])
    while not (tmp_path / "socket").exists():
        time.sleep(0.02)
    timer = threading.Timer(0.5, busy.terminate)
    timer.start()
    again = targets.open_target("qcow2", tmp_path / "a", 4 * MIB, identity="this disk")
    timer.join()
    busy.wait()
    assert again.held(), "it goes on with what is there"
    again.abort()


def child(format: str, path: Path, crash: str = "", *words: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("target_child.py")
    environment = {**os.environ, "HOLDFAST_TEST": "1", "HOLDFAST_CRASH": crash, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, script, format, path, str(4 * MIB + 5), *words], env=environment)


def servers_of(folder: Path) -> list[str]:
    """Command lines of qemu-nbd that work on a file in ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:
            continue
        if words.startswith(b"qemu-nbd") and os.fsencode(folder) in words:
            found.append(words.decode())
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("point", ["restore.reading:3", "restore.before-rename"])
def test_kill_leaves_only_temporaries_that_a_rerun_replaces(tmp_path: Path, format: str, point: str) -> None:
    path = tmp_path / "a.img"
    assert child(format, path, point).wait() == -9
    assert [entry.name.startswith(".tmp-a.img-") for entry in tmp_path.iterdir()] == [True]
    for _ in range(250):
        if not servers_of(tmp_path):
            break
        time.sleep(0.02)
    assert servers_of(tmp_path) == []
    assert child(format, path).wait() == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.img"]
    rng = random.Random(1)
    expected = b"".join(rng.randbytes(n) for n in (MIB, MIB, MIB, MIB, 5))
    assert content_of(format, path, 4 * MIB + 5) == expected


def test_a_restore_under_way_is_not_swept_by_another(tmp_path: Path) -> None:
    first = targets.open_target("raw", tmp_path / "a", MIB)
    second = targets.open_target("raw", tmp_path / "a", MIB)
    first.pwrite(0, b"first")
    first.finish()
    with pytest.raises(errors.TargetExists):
        second.finish()
    assert content_of("raw", tmp_path / "a", 5) == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_the_longest_names_and_temporaries_of_other_names_are_fine(tmp_path: Path) -> None:
    longest = "ä" * 125 + ".img"
    for name in (longest, "a", "a-b"):
        (tmp_path / f".tmp-{name[:20]}-left").write_bytes(b"not ours")
        target = targets.open_target("raw", tmp_path / name, 10)
        target.pwrite(0, b"x")
        target.finish()
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(("name", "subformat"), [("a.img", None), ("a.vmdk", "flat"), ("ä" * 127 + ".img", None)])
def test_a_name_that_no_file_can_get_is_known_before_anything_is_written(
    tmp_path: Path, name: str, subformat: str | None
) -> None:
    for folder in ("a.img", "a-flat.vmdk"):
        (tmp_path / folder).mkdir()
    with pytest.raises(errors.TargetError, match=r"is a folder|too long"):
        targets.open_target("vmdk" if subformat else "raw", tmp_path / name, 10, subformat=subformat, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.img", "a-flat.vmdk"}


def test_a_flat_vmdk_has_a_name_that_its_descriptor_can_say() -> None:
    names = ['a"b\n.img', "a%22b%0A.img"]
    found = targets.restored_names(names, "vmdk", "flat")
    assert found == {names[0]: "a%22b%0A.img~0.vmdk", names[1]: "a%22b%0A.img.vmdk"}
    assert targets.restored_names(names[:1], "vmdk") == {names[0]: 'a"b\n.vmdk'}


@pytest.mark.parametrize(
    ("names", "format", "expected"),
    [
        (["system.img", "data.qcow2"], "raw", ["system.img", "data.img"]),
        (["a.b.c"], "vmdk", ["a.b.vmdk"]),
        (["oblVM1-flat.vmdk", "Hard disk 1"], "qcow2", ["oblVM1-flat.qcow2", "Hard disk 1.qcow2"]),
        (["a.img", "a.qcow2", "b.img"], "raw", ["a.img.img", "a.qcow2.img", "b.img"]),
        (["a.img", "a.qcow2", "a.img.raw"], "raw", ["a.img.img", "a.qcow2.img", "a.img.raw.img"]),
        (["A.img", "a.raw"], "raw", ["A.img.img", "a.raw.img"]),
        (["../../etc/passwd.img", "/etc/shadow", ".hidden.img"], "raw", None),
    ],
)
def test_restored_names_follow_the_rule_and_stay_apart(
    names: list[str], format: str, expected: list[str] | None
) -> None:
    found = targets.restored_names(names, format)
    assert list(found) == names
    if expected is not None:
        assert list(found.values()) == expected
    assert len({name.casefold() for name in found.values()}) == len(names)
    assert all("/" not in name and not name.startswith(".") for name in found.values())
