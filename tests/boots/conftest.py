"""A real small machine, made once, and what the tests of boots find beside it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).resolve().parents[2] / name) for name in ("hack", "tests/operations")]

import boot_sectors
import tiny_guests

from reconciler.operations import emulators


@pytest.fixture(scope="session", autouse=True)
def _needed() -> None:
    if shutil.which(emulators.PROGRAM) is None:
        pytest.skip("needs the Debian package qemu-system-x86")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk of a machine that starts by itself under BIOS and shows its nonce."""
    if not (tiny_guests.PARTS / "vmlinuz").exists():
        pytest.skip("needs the kernel that hack/setup fetches")
    disk = tmp_path_factory.mktemp("tiny") / "system.img"
    tiny_guests.build(disk, boot_sectors.NONCE)
    return disk
