"""The child that parses: what ends it, what that costs, and what is told."""

from __future__ import annotations

import os
import time
from pathlib import Path

import guest_builders as builders
import pytest

from reconciler.base import disks, errors, meters
from reconciler.guests import listings, scanning


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("guest")
    tree = folder / "tree"
    tree.mkdir()
    for number in range(300):
        (tree / f"file-{number}").write_bytes(os.urandom(9000))
    image = builders.blank(folder / "ext4", 24 * builders.MIB)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image)
    return image.read_bytes()


def children() -> set[str]:
    """Parsers that this process has started; servers that other tests left running for the session are none."""
    found = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    return {id for id in found if b"reconciler.guests.parsers" in Path(f"/proc/{id}/cmdline").read_bytes()}


def test_a_child_that_takes_too_long_is_ended(data: bytes) -> None:
    class Slow(disks.MemoryDisk):
        def pread(self, offset: int, length: int) -> bytes:
            time.sleep(0.4)
            return bytes(super().pread(offset, length))

    start = time.monotonic()
    scan = scanning.scan(Slow("slow", data), limits=scanning.Limits(seconds=1.0))
    assert time.monotonic() - start < 5
    assert [code for code, _ in scan.warnings] == ["GuestUnreadable"]
    assert len(scan.layout.file) == 0 and scan.free == ()
    assert not children()


@pytest.mark.parametrize(
    "limits",
    [
        scanning.Limits(runs=20),
        scanning.Limits(bitmap=16),
        scanning.Limits(read=4096),
    ],
    ids=["runs", "bitmap", "read"],
)
def test_a_guest_beyond_a_limit_is_cut_by_offset(data: bytes, limits: scanning.Limits) -> None:
    scan = scanning.scan(disks.MemoryDisk("large", data), limits=limits, want_space=True)
    assert scan.warnings and len(scan.layout.file) == 0 and scan.free == ()
    assert not children()


def test_more_files_than_may_be_listed_end_the_listing(data: bytes) -> None:
    with listings.list_files(disks.MemoryDisk("large", data), limits=scanning.Limits(files=50)) as listing:
        assert len(list(listing)) <= 50
        assert listing.warnings


def test_what_reading_raises_is_raised(data: bytes) -> None:
    class Failing(disks.MemoryDisk):
        def pread(self, offset: int, length: int) -> bytes:
            if offset > 128 << 10:
                raise errors.SourceError("the disk is gone")
            return bytes(super().pread(offset, length))

    with pytest.raises(errors.SourceError, match="the disk is gone"):
        scanning.scan(Failing("failing", data))
    assert not children()


def test_a_cancelled_job_ends_the_child(data: bytes) -> None:
    def stop() -> None:
        raise errors.Cancelled("stopped")

    class Watched(meters.Meter):
        def check(self) -> None:
            stop()

    with pytest.raises(errors.Cancelled):
        scanning.scan(disks.MemoryDisk("watched", data), meter=Watched())
    assert not children()


def test_a_listing_that_is_left_early_ends_its_child(data: bytes) -> None:
    with listings.list_files(disks.MemoryDisk("left", data)) as listing:
        next(listing)
    # It may have been done by then, with all of it on its way.
    assert not children()
