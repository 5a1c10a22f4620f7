"""What a policy says about the inside of a guest: changes that a bitmap knows, free space and swap that are left out."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import estate_samples
import pytest
from estate_samples import MIB, START, Estate

from reconciler.base import disks
from reconciler.guests import scanning, scans

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
BLOCK = 4096
#: What lies in free space: bytes that no file of these tests holds.
JUNK = b"\xdb" * BLOCK


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def track(estate: Estate) -> None:
    """Let the policy believe the bitmap ``changes`` of each disk, and take incrementals."""
    path = estate.folder / "policy.yaml"
    text = path.read_text().replace("{path: machines,", "{changedBlocks: {bitmap: changes}, path: machines,")
    estate_samples.replace(path, text.replace("type: Full, every: 24h", "type: Incremental, every: 24h, fullEvery: 7d"))


class Guest:
    """One qcow2 disk with a bitmap, and the raw file it is to hold; ``settle`` writes what differs."""

    def __init__(self, folder: Path, raw: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.disk, self.raw = folder / "system.qcow2", raw
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.disk)
        run("qemu-img", "bitmap", "--add", self.disk, "changes")
        self.before = raw.read_bytes()

    def settle(self) -> None:
        """Carry changes of the raw file over, as a running guest would write them."""
        now = self.raw.read_bytes()
        step = 64 << 10
        writes = [at for at in range(0, len(now), step) if now[at : at + step] != self.before[at : at + step]]
        piece = self.raw.with_name("piece")
        for at in writes:
            piece.write_bytes(now[at : at + step])
            run("qemu-io", "-f", "qcow2", "-c", f"write -q -s {piece} {at} {len(now[at : at + step])}", self.disk)
        self.before = now


def restored(estate: Estate, to: Path, clock: str) -> bytes:
    estate.at(clock).run("restore", "alpha", "--to", to)
    return (to / "system.img").read_bytes() if (to / "system.img").exists() else next(to.rglob("*.raw")).read_bytes()


def test_an_incremental_reads_what_the_bitmap_names_and_no_more(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate")
    track(estate)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    guest = Guest(estate.folder / "machines" / "alpha", raw)
    estate.apply(clock=START)
    with raw.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(JUNK)
    guest.settle()
    estate.apply(clock="2026-03-03T12:30:00Z")
    full, incremental = estate.get("images")
    assert (full["changes"], incremental["type"], incremental["changes"]) == ("FullRead", "Incremental", "Known")
    (copy,) = [one for one in estate.get("copies") if one["image"] == incremental["id"]]
    assert copy["storedBytes"] < 2 * MIB
    assert restored(estate, tmp_path / "out", "2026-03-03T13:00:00Z") == raw.read_bytes()


@contextlib.contextmanager
def mounted(raw: Path, *, driver: str = "") -> Iterator[Path]:
    where = raw.with_suffix(".mnt")
    where.mkdir(exist_ok=True)
    run(*((driver, raw, where) if driver else ("mount", "-o", "loop", raw, where)))
    try:
        yield where
    finally:
        run("umount", where)


def leave_out(estate: Estate, text: str) -> None:
    """Add a line to the policy's spec."""
    path = estate.folder / "policy.yaml"
    estate_samples.replace(path, path.read_text() + f"  {text}\n")


def scan(data: bytes) -> scans.Scan:
    return scanning.scan(disks.MemoryDisk("raw", data), want_space=True)


def zeroed(data: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    expected = bytearray(data)
    for offset, length in ranges:
        expected[offset : offset + length] = bytes(length)
    return bytes(expected)


def ext4_guest(raw: Path) -> bytes:
    """An ext4 volume with one file, and junk wherever it is free."""
    with raw.open("wb") as file:
        file.truncate(48 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,nodiscard", raw)
    with mounted(raw) as root:
        (root / "kept.bin").write_bytes(os.urandom(3 * MIB))
    data = bytearray(raw.read_bytes())
    for offset, length in scan(bytes(data)).free:
        data[offset : offset + length] = (JUNK * (length // BLOCK + 1))[:length]
    raw.write_bytes(data)
    return bytes(data)


@needs_root
@pytest.mark.parametrize("storage", ["fast", "pool"])
def test_free_space_reads_as_zeros_where_a_policy_says_so(tmp_path: Path, storage: str) -> None:
    estate = estate_samples.build(tmp_path / "estate", storage=storage)
    data = ext4_guest(tmp_path / "raw")
    estate.machine("alpha", content=data)
    estate.apply(clock=START)
    assert restored(estate, tmp_path / "whole", "2026-03-02T13:00:00Z") == data
    leave_out(estate, "freeSpace: Skip")
    estate.apply(clock="2026-03-03T12:30:00Z")
    found = restored(estate, tmp_path / "lean", "2026-03-03T13:00:00Z")
    assert found == zeroed(data, scan(data).free)
    assert JUNK not in found
    (tmp_path / "again").write_bytes(found)
    run("e2fsck", "-f", "-n", tmp_path / "again")


@needs_root
def test_a_copy_is_what_its_image_is(tmp_path: Path) -> None:
    """Free space is decided once: the duplicate has the same bytes as the copy it was made from."""
    estate = estate_samples.build(tmp_path / "estate", duplicate="yes")
    data = ext4_guest(tmp_path / "raw")
    estate.machine("alpha", content=data)
    leave_out(estate, "freeSpace: Skip")
    estate.apply(clock=START)
    fast, pool = sorted(estate.get("copies"), key=lambda one: one["unit"])
    assert (fast["unit"], pool["unit"]) == ("fast", "pool")
    expected = zeroed(data, scan(data).free)
    assert restored(estate, tmp_path / "one", "2026-03-02T13:00:00Z") == expected
    moved = estate.folder / "storage" / "fast"
    moved.rename(moved.with_name("away"))
    assert restored(estate, tmp_path / "two", "2026-03-02T13:00:00Z") == expected


@needs_root
def test_clusters_that_were_hidden_are_read_once_they_are_in_use(tmp_path: Path) -> None:
    """A file laid over free clusters without writing them: no bitmap names them, and the image needs them."""
    estate = estate_samples.build(tmp_path / "estate", storage="pool")
    track(estate)
    leave_out(estate, "freeSpace: Skip")
    raw = tmp_path / "raw"
    ext4_guest(raw)
    guest = Guest(estate.folder / "machines" / "alpha", raw)
    estate.apply(clock=START)
    with mounted(raw) as root:
        run("fallocate", "-l", "5M", root / "laid-out.bin")
        (root / "new.bin").write_bytes(os.urandom(MIB))
    guest.settle()
    estate.apply(clock="2026-03-03T12:30:00Z")
    image = estate.get("images")[-1]
    assert (image["type"], image["changes"]) == ("Incremental", "Known")
    now = raw.read_bytes()
    found = restored(estate, tmp_path / "out", "2026-03-03T13:00:00Z")
    assert found == zeroed(now, scan(now).free)
    assert found.count(JUNK) >= 5 * MIB // BLOCK


@needs_root
def test_a_volume_in_use_is_kept_whole_and_the_image_says_so(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", storage="pool")
    data = bytearray(ext4_guest(tmp_path / "raw"))
    # The feature "needs recovery", as a mounted volume has it; checksums of the superblock are not what decides.
    data[1024 + 0x60] |= 4
    estate.machine("alpha", content=bytes(data))
    leave_out(estate, "freeSpace: Skip")
    estate.apply(clock=START)
    assert restored(estate, tmp_path / "out", "2026-03-02T13:00:00Z") == bytes(data)
    (image,) = estate.get("images")
    told = estate.at(START).json("describe", "image", image["id"])
    assert "VolumeKeptWhole" in str(told) and "needs recovery" in str(told)


@needs_root
def test_page_files_and_swap_are_left_out(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", storage="pool")
    windows, swap = tmp_path / "windows", tmp_path / "swap"
    for path in (windows, swap):
        with path.open("wb") as file:
            file.truncate(24 * MIB)
        path.chmod(0o600)
    run("mkntfs", "-F", "-Q", windows)
    with mounted(windows, driver="ntfs-3g") as root:
        (root / "pagefile.sys").write_bytes(JUNK * (4 * MIB // BLOCK))
        (root / "kept.bin").write_bytes(os.urandom(MIB))
    run("mkswap", swap)
    content = bytearray(swap.read_bytes())
    content[BLOCK : 8 * MIB] = JUNK * (8 * MIB // BLOCK - 1)
    swap.write_bytes(content)
    folder = estate.folder / "machines" / "alpha"
    folder.mkdir()
    for path in (windows, swap):
        (folder / f"{path.name}.img").write_bytes(path.read_bytes())
    leave_out(estate, "exclude: [PageFile, SwapVolume]")
    estate.apply(clock=START)
    estate.at("2026-03-02T13:00:00Z").run("restore", "alpha", "--to", tmp_path / "out")
    for path in (windows, swap):
        data = path.read_bytes()
        found = scan(data)
        left_out = (*found.page_files, *found.swap)
        assert left_out
        assert (tmp_path / "out" / f"{path.name}.img").read_bytes() == zeroed(data, left_out)
