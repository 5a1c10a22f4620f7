"""A disk that moved while it was read is never called consistent."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import errors
from reconciler.sources import hooks

MIB = samples.MIB


@pytest.fixture
def disk(machine: Path) -> Path:
    return samples.write_raw(machine / "a.img", random.Random(1).randbytes(2 * MIB))


@pytest.fixture
def writer(disk: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the disk open for writing and writes nothing."""
    script = "import sys; f = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    yield process
    process.communicate()


def test_a_machine_that_stands_still_is_offline_and_whole(machine: Path, disk: Path) -> None:
    with disk.open("rb"):
        reading = samples.freeze(samples.source(machine.parent))
        samples.whole(reading.disks[0])
        verdict = reading.finish()
    assert (verdict.failed, verdict.consistency, verdict.warnings) == ((), "Offline", ())
    reading.close()
    reading.close()


def _write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"changed")


def _write_and_hide(path: Path) -> None:
    """As a writer does that restores the time of modification: only the inode's own time tells."""
    before = path.stat()
    _write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 512)


def _replace(path: Path) -> None:
    samples.copied(path, "new").replace(path)


@pytest.mark.parametrize(
    ("move", "code", "tolerable"),
    [
        (_write, "DiskChanged", True),
        (_write_and_hide, "DiskChanged", True),
        (_grow, "DiskResized", False),
        (_replace, "DiskVanished", False),
        (Path.unlink, "DiskVanished", False),
    ],
)
def test_a_disk_that_moves_fails_unless_live_is_allowed_for_it(
    machine: Path, disk: Path, move: Callable[[Path], None], code: str, tolerable: bool
) -> None:
    for allow_live in (False, True):
        content = disk.read_bytes()
        reading = samples.freeze(samples.source(machine.parent, allow_live=allow_live))
        move(disk)
        verdict = reading.finish()
        reading.close()
        found = verdict.warnings if allow_live and tolerable else verdict.failed
        assert [item.code for item in found] == [code]
        assert "a.img" in found[0].message
        assert bool(verdict.failed) == (not (allow_live and tolerable))
        assert verdict.consistency == ("Live" if tolerable else "Offline")
        disk.write_bytes(content)


def test_a_write_within_the_same_clock_tick_as_the_freeze_is_seen(machine: Path, disk: Path) -> None:
    for _ in range(10):
        _write(disk)
        reading = samples.freeze(samples.source(machine.parent))
        _write(disk)
        assert [found.code for found in reading.finish().failed] == ["DiskChanged"]
        reading.close()


def test_a_disk_that_shrinks_raises_while_it_is_read(machine: Path, disk: Path) -> None:
    reading = samples.freeze(samples.source(machine.parent))
    os.truncate(disk, MIB)
    assert len(reading.disks[0].pread(0, MIB)) == MIB
    with pytest.raises(errors.SourceChanged, match=r"a\.img: ends at"):
        reading.disks[0].pread(MIB - 10, 20)
    reading.close()


def test_a_vanished_disk_yields_the_bytes_it_had(machine: Path, disk: Path) -> None:
    content = disk.read_bytes()
    reading = samples.freeze(samples.source(machine.parent))
    disk.unlink()
    assert samples.whole(reading.disks[0]) == content
    assert [found.code for found in reading.finish().failed] == ["DiskVanished"]
    reading.close()


def test_a_process_with_the_disk_open_for_writing_is_named(
    machine: Path, disk: Path, writer: subprocess.Popen[str]
) -> None:
    reading = samples.freeze(samples.source(machine.parent))
    verdict = reading.finish()
    reading.close()
    assert [found.code for found in verdict.failed] == ["OpenForWriting"]
    assert f"process {writer.pid}" in verdict.failed[0].message
    assert verdict.consistency == "Live"
    reading = samples.freeze(samples.source(machine.parent, allow_live=True))
    verdict = reading.finish()
    reading.close()
    assert verdict.failed == ()
    assert (verdict.consistency, verdict.warnings[0].code) == ("Live", "OpenForWriting")


def test_a_writer_that_left_during_the_reading_is_remembered(
    machine: Path, disk: Path, writer: subprocess.Popen[str]
) -> None:
    reading = samples.freeze(samples.source(machine.parent))
    writer.communicate()
    assert [found.code for found in reading.finish().failed] == ["OpenForWriting"]
    reading.close()


def test_a_writer_that_came_during_the_reading_is_found(machine: Path, disk: Path) -> None:
    reading = samples.freeze(samples.source(machine.parent))
    with disk.open("r+b"):
        assert [found.code for found in reading.finish().failed] == ["OpenForWriting"]
    reading.close()


def test_hooks_make_a_snapshot_of_what_stands_still(machine: Path, disk: Path) -> None:
    reading = samples.freeze(samples.source(machine.parent, commands=hooks.Hooks(before=("true",))))
    assert reading.finish().consistency == "Snapshot"
    reading.close()
    reading = samples.freeze(samples.source(machine.parent, commands=hooks.Hooks(before=("true",))))
    _write(disk)
    verdict = reading.finish()
    assert (verdict.consistency, bool(verdict.failed)) == ("Live", True)
    reading.close()


@samples.needs_qemu
def test_a_qcow2_that_a_machine_runs_on_is_read_and_judged(machine: Path) -> None:
    data = samples.content(2 * MIB)
    path = samples.write_image(machine / "b.qcow2", data, "qcow2")
    running = subprocess.Popen(["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            time.sleep(0.02)
            if any(link.is_symlink() and link.readlink() == path for link in Path(f"/proc/{running.pid}/fd").iterdir()):
                break
        reading = samples.freeze(samples.source(machine.parent))
        assert samples.whole(reading.disks[0]) == data
        verdict = reading.finish()
        reading.close()
    finally:
        running.communicate()
    assert [found.code for found in verdict.failed] == ["OpenForWriting"]
    assert "qemu-io" in verdict.failed[0].message


def test_a_loop_device_over_the_disk_counts_as_a_writer(machine: Path, disk: Path) -> None:
    made = subprocess.run(["losetup", "--find", "--show", disk], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("loop devices (util-linux, root) cannot be made here")
    try:
        reading = samples.freeze(samples.source(machine.parent))
        verdict = reading.finish()
        reading.close()
        assert [found.code for found in verdict.failed] == ["OpenForWriting"]
        assert "loop device" in verdict.failed[0].message
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_block_device_is_read_whole_through_a_link(machine: Path, tmp_path: Path) -> None:
    content = samples.content(3 * MIB)
    backing = samples.write_raw(tmp_path / "backing", content)
    made = subprocess.run(["losetup", "-r", "--find", "--show", backing], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("loop devices (util-linux, root) cannot be made here")
    try:
        (machine / "device.img").symlink_to(made.stdout.strip())
        reading = samples.freeze(samples.source(machine.parent))
        (disk,) = reading.disks
        assert disk.size == len(content)
        assert samples.whole(disk) == content
        assert reading.finish().failed == ()
        reading.close()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
