"""The lab of guests that demo, tests and benchmark share: real volumes, and a day of change that lands in place."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import disk_samples as samples
import pytest

MIB = samples.MIB
TOOLS = {"mkntfs": "ntfs-3g", "mke2fs": "e2fsprogs", "sfdisk": "fdisk", "debugfs": "e2fsprogs"}
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"

pytestmark = [samples.needs_qemu] + [
    pytest.mark.skipif(shutil.which(tool, path=PATH) is None, reason=f"needs the Debian package {package}")
    for tool, package in TOOLS.items()
]


@pytest.fixture(scope="module")
def lab() -> ModuleType:
    path = Path(__file__).parents[2] / "hack" / "guests.py"
    spec = importlib.util.spec_from_file_location("guests_lab", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guests_lab"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("lab")
    lab.build(folder, seed=3, machines=["oblVM1", "oblVM2"], size=32 * MIB)
    return folder


def tool(*command: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={"PATH": PATH}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def volumes(folder: Path, scratch: Path) -> tuple[Path, Path]:
    """The NTFS volume and the ext4 disk of a machine, as raw files."""
    ntfs, ext4 = scratch / "ntfs", scratch / "ext4"
    with (folder / "system.img").open("rb") as disk:
        disk.seek(63 * 512)
        ntfs.write_bytes(disk.read())
    samples.qemu("qemu-img", "convert", "-O", "raw", folder / "data.qcow2", ext4)
    return ntfs, ext4


def test_a_machine_has_whole_disks_of_each_kind_and_nothing_else(built: Path, tmp_path: Path) -> None:
    for machine in ("oblVM1", "oblVM2"):
        assert sorted(path.name for path in (built / machine).iterdir()) == ["archive.vmdk", "data.qcow2", "system.img"]
    assert sorted(path.name for path in built.iterdir()) == ["oblVM1", "oblVM2"]
    ntfs, ext4 = volumes(built / "oblVM1", tmp_path)
    assert "was processed successfully" in tool("ntfsfix", "-n", ntfs)
    tool("e2fsck", "-fn", f"{ext4}?offset=1048576")
    assert "start=          63" in tool("sfdisk", "-d", built / "oblVM1" / "system.img")
    assert "label: gpt" in tool("sfdisk", "-d", ext4)


def test_guests_share_files_and_hold_them_elsewhere(built: Path, lab: ModuleType) -> None:
    first, second = (lab.guest_files(machine, "system", 3, 20 * MIB) for machine in ("oblVM1", "oblVM2"))
    shared = set(first) & set(second)
    assert sum(file.size for file in shared) > 12 * MIB
    assert first != second and [file for file in first if file in shared] != [file for file in second if file in shared]
    assert len({file.path for file in first}) == len(first)
    biggest = max(shared, key=lambda file: file.size)
    for machine in ("oblVM1", "oblVM2"):
        assert biggest.content()[:4096] in (built / machine / "system.img").read_bytes()


def test_the_source_reads_the_lab(built: Path) -> None:
    source = samples.source(built)
    for machine in source.inventory().machines:
        reading = source.freeze(machine.id)
        assert (len(reading.disks), reading.missing) == (3, ())
        for disk in reading.disks:
            data = samples.whole(disk)
            assert len(data) - data.count(0) > len(data) // 2
        assert reading.finish().failed == ()
        reading.close()


def test_a_day_of_change_writes_little_and_keeps_bitmaps(built: Path, lab: ModuleType, tmp_path: Path) -> None:
    folder = built / "oblVM2"
    samples.qemu("qemu-img", "bitmap", "--add", "-f", "qcow2", folder / "data.qcow2", "cbt")
    source = samples.source(built, pattern="oblVM2", bitmap="cbt")
    reading = samples.freeze(source)
    before = {disk.name: samples.whole(disk) for disk in reading.disks}
    state = dict(reading.state())
    reading.close()
    changed = lab.change(folder, 5)
    reading = samples.freeze(source)
    after = {disk.name: samples.whole(disk) for disk in reading.disks}
    found = reading.changes("data.qcow2", state)
    reading.close()
    assert all(before[name] != after[name] for name in before)
    assert all(0 < changed[name] < len(before[name]) // 4 for name in before)
    assert found.changed is not None
    rebuilt = bytearray(before["data.qcow2"])
    for offset, length in found.changed:
        rebuilt[offset : offset + length] = after["data.qcow2"][offset : offset + length]
    assert rebuilt == after["data.qcow2"]
    ntfs, ext4 = volumes(folder, tmp_path)
    assert "was processed successfully" in tool("ntfsfix", "-n", ntfs)
    tool("e2fsck", "-fn", f"{ext4}?offset=1048576")
