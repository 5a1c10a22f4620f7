"""A restore that was killed is begun again: it goes on with what lies there, and what comes out is equal."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_estates import MIB
from holdfast_command import Command

from reconciler.base import disks, meters, times
from reconciler.storage import opening, units

SIZE = 40 * MIB + 512
FORMATS = (("raw", None), ("qcow2", None), ("vmdk", "sparse"), ("vmdk", "flat"), ("vmdk", "streamOptimized"))
DISK = "system.img"


def content() -> bytes:
    """Noise with holes: blocks of zeros, and zeros within blocks."""
    noise = random.Random(5)
    data = bytearray(noise.randbytes(SIZE))
    data[9 * MIB : 21 * MIB] = bytes(12 * MIB)
    data[30 * MIB + 70_000 : 30 * MIB + 700_000] = bytes(630_000)
    return bytes(data)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A Directory unit with one image, its id, and the SHA-256 of its disk."""
    root = tmp_path_factory.mktemp("unit")
    declared = opening.declared("unit", "Directory", str(root), None, None)
    opening.prepare(declared, "owner")
    data = content()
    with contextlib.closing(opening.open_unit(declared, owner="owner")) as unit:
        label = units.ImageLabel(
            id="image-1", client_id="c", client_name="vm", client_slug="vm", source="test:vm", policy="p",
            schedule="s", lifecycle="l", operation="land", copy=1, type="Full", state="Complete",
            time=times.parse("2026-11-20T20:00:00Z"), sequence=1, slot=times.parse("2026-11-20T20:00:00Z"),
            revision="dir@test", parent=None, changes="FullRead", consistency="Offline",
        )  # fmt: skip
        writer = unit.begin(label, [DISK])
        writer.write(disks.MemoryDisk(DISK, data), meter=meters.Meter())
        writer.commit(label)
    return root, "image-1", hashlib.sha256(data).hexdigest()


def words(held: tuple[Path, str, str], to: Path, format: str, subformat: str | None) -> list[str | Path]:
    kind: list[str | Path] = [] if subformat is None else ["--subformat", subformat]
    return ["restore", "--unit", held[0], held[1], "--to", to, "--format", format, *kind]


def digest(path: Path, format: str, scratch: Path) -> str:
    """SHA-256 of the disk that a file holds, by qemu-img where it is an image."""
    if format != "raw":
        subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", path, scratch], check=True)
        path = scratch
    return hashlib.sha256(path.read_bytes()[:SIZE]).hexdigest()


def finish(command: Command, held: tuple[Path, str, str], to: Path, format: str, subformat: str | None) -> Any:
    """Run it to its end; nothing but the disk is there, and it is right."""
    document = command.json(*words(held, to, format, subformat))
    suffix = {"raw": "img"}.get(format, format)
    names = {f"system.{suffix}", *({"system-flat.vmdk"} if subformat == "flat" else ())}
    assert {path.name for path in to.iterdir()} == names
    path = to / f"system.{suffix}"
    assert digest(path, format, to.parent / "scratch") == held[2]
    if format != "raw" and subformat != "flat":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)
    return document


@pytest.mark.parametrize(("format", "subformat"), FORMATS, ids=["raw", "qcow2", "sparse", "flat", "stream"])
def test_a_killed_restore_goes_on_where_it_was(
    held: tuple[Path, str, str], tmp_path: Path, format: str, subformat: str | None
) -> None:
    command, to = Command(folder=tmp_path), tmp_path / "to"
    point = "restore.before-rename" if subformat == "streamOptimized" else "restore.reading:6"
    killed = command.crashing(point).run(*words(held, to, format, subformat), code=None)
    assert killed.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".tmp-") for path in to.iterdir()), "a disk has its name before it was proven"
    document = finish(command, held, to, format, subformat)
    if subformat == "streamOptimized":
        assert document["resumedBytes"] == 0 and "end to end" in document["notes"][0]
    else:
        # 20 MiB of data were in their place; what qemu had not yet noted in its tables is written again.
        assert document["resumedBytes"] >= 16 * MIB
        assert document["disks"][0]["writtenBytes"] <= SIZE - document["resumedBytes"]


def test_tables_are_reckoned_by_the_size_of_the_disk(held: tuple[Path, str, str], tmp_path: Path) -> None:
    for kind, tables in ((("vmdk", "flat"), 0), (("qcow2", None), (512 << 10) + SIZE // 4096)):
        found = Command(folder=tmp_path).json(*words(held, tmp_path, *kind), "--dry-run")
        assert found["neededBytes"] == found["dataBytes"] + tables


def test_a_flat_vmdk_is_named_extent_first(held: tuple[Path, str, str], tmp_path: Path) -> None:
    command, to = Command(folder=tmp_path), tmp_path / "to"
    killed = command.crashing("restore.extent-named").run(*words(held, to, "vmdk", "flat"), code=None)
    assert killed.returncode == -signal.SIGKILL
    assert not (to / "system.vmdk").exists()
    assert (to / "system-flat.vmdk").exists()
    assert finish(command, held, to, "vmdk", "flat")["resumedBytes"] == 28 * MIB + 512
    assert "exists" in command.run(*words(held, to, "vmdk", "flat"), code=4).stderr


def test_kills_at_random_moments_and_what_was_spoilt_meanwhile(held: tuple[Path, str, str], tmp_path: Path) -> None:
    """Whatever lies in the temporary file, also bytes of no disk at all: the outcome is the image's disk."""
    dice, command, to = random.Random(3), Command(folder=tmp_path), tmp_path / "to"
    for number in range(3):
        process = command.start(*words(held, to, "raw", None))
        deadline = time.monotonic() + 30
        while not (to.exists() and any(to.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(dice.random() ** 2 * 0.3)
        process.kill()
        process.communicate()
        left = list(to.iterdir())
        if process.returncode == 0 or not left[0].name.startswith(".tmp-"):
            shutil.rmtree(to)
            continue
        with left[0].open("r+b") as file:
            for _ in range(3):
                file.seek(dice.randrange(SIZE - 5000))
                file.write(b"spoilt" * 500)
            if number % 2:
                file.seek(12 * MIB)
                file.write(b"where zeros belong")
    finish(command, held, to, "raw", None)


def test_what_is_left_of_another_image_or_format_is_swept(held: tuple[Path, str, str], tmp_path: Path) -> None:
    command, to = Command(folder=tmp_path), tmp_path / "to"
    killed = command.crashing("restore.reading:3").run(*words(held, to, "vmdk", "sparse"), code=None)
    assert killed.returncode == -signal.SIGKILL
    assert finish(command, held, to, "vmdk", "flat")["resumedBytes"] == 0


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 48 MiB over a file full of something else."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"old " * (12 * MIB))
    done = subprocess.run(["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True)
    yield Path(done.stdout.strip())
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def test_a_block_device_takes_a_disk_with_its_zeros(held: tuple[Path, str, str], tmp_path: Path, device: Path) -> None:
    command = Command(folder=tmp_path)
    order = ["restore", "--unit", held[0], held[1], "--to", device, "--disk", DISK]
    assert "--force" in command.run(*order, code=4).stderr
    assert device.read_bytes()[:4] == b"old "
    command.run(*order, "--force", "--format", "qcow2", code=64)
    planned = command.json(*order, "--force", "--dry-run")
    assert (planned["neededBytes"], planned["freeBytes"]) == (SIZE, 48 * MIB)
    killed = command.crashing("restore.reading:5").run(*order, "--force", code=None)
    assert killed.returncode == -signal.SIGKILL
    document = command.json(*order, "--force")
    assert document["resumedBytes"] >= 8 * MIB
    assert any("larger than the disk" in note for note in document["notes"])
    data = device.read_bytes()
    assert hashlib.sha256(data[:SIZE]).hexdigest() == held[2]
    assert data[SIZE : SIZE + 400] == b"old " * 100, "what lies behind the disk was touched"


def test_a_device_that_is_used_or_too_small_is_refused(
    held: tuple[Path, str, str], tmp_path: Path, device: Path
) -> None:
    command = Command(folder=tmp_path)
    order: list[str | Path] = ["restore", "--unit", held[0], held[1], "--disk", DISK, "--force"]
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", device, tmp_path / "mounted"], check=True)
    try:
        assert "in use" in command.run(*order, "--to", device, code=1).stderr
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)
    small = tmp_path / "small"
    small.write_bytes(bytes(4 * MIB))
    done = subprocess.run(["losetup", "--find", "--show", small], check=True, capture_output=True, text=True)
    try:
        assert "are missing" in command.run(*order, "--to", done.stdout.strip(), code=1).stderr
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)
    # A device over a file of the unit that is read.
    inside = held[0] / "inside"
    inside.write_bytes(bytes(48 * MIB))
    done = subprocess.run(["losetup", "--find", "--show", inside], check=True, capture_output=True, text=True)
    try:
        assert "lies on it" in command.run(*order, "--to", done.stdout.strip(), code=1).stderr
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)
        inside.unlink()


def test_a_disk_that_cannot_fit_fails_at_once(held: tuple[Path, str, str], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", small], check=True)
    try:
        command = Command(folder=tmp_path)
        said = command.run(*words(held, small / "to", "raw", None), code=1).stderr
        assert "are missing" in said and str(SIZE - 12 * MIB - 10 * MIB) in said
        command.run(*words(held, small / "to", "raw", None), "--dry-run", code=1)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
