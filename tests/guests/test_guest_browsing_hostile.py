"""What a browser makes of children that die, disks that fail, and volumes that lie."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent import futures
from pathlib import Path

import guest_builders as builders
import pytest

from reconciler.base import disks, errors, meters
from reconciler.guests import browsing, listings, scans


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    chosen = random.Random(3)
    tree = folder / "tree"
    (tree / "below" / "deeper").mkdir(parents=True)
    for number in range(300):
        (tree / f"file-{number}").write_bytes(chosen.randbytes(9000))
    (tree / "below" / "deeper" / "lies.bin").write_bytes(chosen.randbytes(200_000))
    path = builders.blank(folder / "ext4", 40 * builders.MIB)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "casefold", "-d", tree, path)
    return path


@pytest.fixture(scope="module")
def data(image: Path) -> bytes:
    return image.read_bytes()


def child() -> int:
    """The one parser that this process has started."""
    found = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    (one,) = [one for one in found if b"reconciler.guests.parsers" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return int(one)


def debugfs(image: Path, *commands: str) -> bytes:
    """A copy of a volume after some commands."""
    copy = image.with_name("changed")
    copy.write_bytes(image.read_bytes())
    for command in commands:
        builders.run("debugfs", "-w", "-R", command, copy)
    return copy.read_bytes()


class Odd(disks.MemoryDisk):
    """A disk that stops or fails while it is told to."""

    seconds = 0.0
    error: Exception | None = None

    def pread(self, offset: int, length: int) -> bytes:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return bytes(super().pread(offset, length))


def test_a_child_that_dies_costs_one_request(data: bytes) -> None:
    with browsing.browse(disks.MemoryDisk("killed", data)) as browser:
        node = browser.find(0, "file-7")
        first = child()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(errors.GuestUnreadable, match="signal 9") as told:
            browser.find(0, "file-8")
        assert told.value.exit_code == 1
        assert browser.find(0, "file-7") == node
        assert len(browser.read(node, 0, 10_000)) == 9000
        assert child() != first


def test_a_listing_goes_on_where_its_child_died(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(1300):
        (tree / f"{number}").touch()
    volume = builders.blank(tmp_path / "many", 16 * builders.MIB)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", "-N", "2000", "-d", tree, volume)
    with browsing.browse(disks.MemoryDisk("many", volume.read_bytes())) as browser:
        entries = browser.children(browser.root(0))
        names = {next(entries)[0] for _ in range(3)}
        os.kill(child(), signal.SIGKILL)
        with pytest.raises(errors.GuestUnreadable):
            browser.root(0)
        names.update(name for name, _ in entries)
        assert names == {*map(str, range(1300)), "lost+found"}


def test_a_child_that_takes_too_long_costs_one_request(data: bytes) -> None:
    disk = Odd("slow", data)
    with browsing.browse(disk, limits=scans.Limits(seconds=1.0)) as browser:
        disk.seconds = 0.6
        start = time.monotonic()
        with pytest.raises(errors.GuestUnreadable, match="longer than 1 seconds"):
            browser.find(0, "below/deeper/lies.bin")
        assert time.monotonic() - start < 5
        disk.seconds = 0.0
        assert browser.find(0, "below/deeper/lies.bin").size == 200_000


def test_a_child_is_replaced_before_its_processor_time_is_used_up(data: bytes) -> None:
    with browsing.browse(disks.MemoryDisk("busy", data), limits=scans.Limits(processor=1)) as browser:
        first, deadline = child(), time.monotonic() + 60
        while child() == first:
            assert time.monotonic() < deadline
            assert len(dict(browser.children(browser.root(0)))) == 302
        assert len(dict(browser.children(browser.root(0)))) == 302


def test_what_reading_raises_is_raised_and_costs_one_request(data: bytes) -> None:
    disk = Odd("failing", data)
    with browsing.browse(disk) as browser:
        disk.error = errors.SourceError("the disk is gone")
        with pytest.raises(errors.SourceError, match="the disk is gone"):
            browser.find(0, "below/deeper/lies.bin")
        disk.error = None
        node = browser.find(0, "below/deeper/lies.bin")
        disk.error = errors.ImageDamaged("a page is damaged")
        with pytest.raises(errors.ImageDamaged):
            browser.read(node, 0, 10)
        disk.error = None
        assert len(browser.read(node, 199_990, 100)) == 10


def test_a_cancelled_job_ends_the_child(data: bytes) -> None:
    meter = meters.Meter()
    with browsing.browse(disks.MemoryDisk("watched", data), meter=meter) as browser:
        node = browser.find(0, "file-1")
        assert len(browser.read(node, 0, 10)) == 10
        meter.cancel()
        for ask in (lambda: browser.read(node, 0, 10), lambda: browser.root(0)):
            with pytest.raises(errors.Cancelled):
                ask()
        with pytest.raises(ValueError, match="not enough values"):
            child()


def test_many_threads_ask_at_once(data: bytes) -> None:
    with browsing.browse(disks.MemoryDisk("shared", data)) as browser:
        start = threading.Barrier(8)

        def work(number: int) -> list[bytes]:
            start.wait()
            found = []
            for count in range(20):
                node = browser.find(0, f"file-{number * 20 + count}")
                found.append(browser.read(node, 0, node.size))
            return found

        with futures.ThreadPoolExecutor(8) as workers:
            together = list(workers.map(work, range(8)))
        for number, several in enumerate(together):
            for count, content in enumerate(several):
                node = browser.find(0, f"file-{number * 20 + count}")
                assert browser.read(node, 0, node.size) == content and len(content) == 9000


def test_a_closed_browser_is_closed(data: bytes) -> None:
    browser = browsing.browse(disks.MemoryDisk("closed", data))
    browser.close()
    browser.close()
    with pytest.raises(ValueError, match="closed"):
        browser.root(0)


def test_a_disk_without_files_says_so() -> None:
    with browsing.browse(disks.MemoryDisk("noise", random.Random(1).randbytes(1 << 20))) as browser:
        assert [volume.filesystem for volume in browser.volumes] == [None]
        with pytest.raises(errors.GuestUnreadable, match="not known"):
            browser.root(0)
        with pytest.raises(errors.NotFound, match="no volume 7"):
            browser.root(7)
    with browsing.browse(disks.MemoryDisk("empty", b"")) as browser:
        assert browser.volumes == ()


def test_folders_that_come_round_are_entered_once(image: Path) -> None:
    changed = debugfs(image, "link below below/deeper/round", "link / below/up")
    with browsing.browse(disks.MemoryDisk("round", changed)) as browser:
        assert browser.find(0, "below/deeper/round/deeper/lies.bin").size == 200_000
        found = [path for path, _ in browser.walk(browser.root(0))]
        assert len(found) == len(set(found)) == 306
        assert {"below/up", "below/deeper/round"} < set(found)


def test_a_file_of_nothing_but_a_size_costs_nothing(image: Path) -> None:
    changed = debugfs(image, f"set_inode_field file-1 size {(1 << 43)}", "set_inode_field file-2 links_count 0")
    with browsing.browse(disks.MemoryDisk("bomb", changed)) as browser:
        node = browser.find(0, "file-1")
        assert node.size == 1 << 43 and "sparse" in node.flags
        assert browser.read(node, (1 << 43) - 5, 100) == bytes(5)
        assert sum(extent.length for extent in browser.extents(node)) < 20_000
        names = dict(browser.children(browser.root(0)))
        assert "file-2" not in names and "file-3" in names
        with pytest.raises(errors.NotFound):
            browser.find(0, "file-2")


def test_what_ext_has_encrypted_is_refused_and_what_it_folds_is_read(image: Path) -> None:
    changed = debugfs(
        image,
        "set_inode_field file-1 flags 0x80800",
        "set_inode_field below/deeper flags 0x80800",
        "set_inode_field below flags 0x40080000",
    )
    with browsing.browse(disks.MemoryDisk("locked", changed)) as browser:
        node, folder = browser.find(0, "file-1"), browser.find(0, "below/deeper")
        assert "encrypted" in node.flags and "fscrypt" in node.problem
        for ask in (
            lambda: browser.read(node, 0, 10),
            lambda: list(browser.extents(node)),
            lambda: list(browser.children(folder)),
            lambda: browser.find(0, "below/deeper/lies.bin"),
        ):
            with pytest.raises(errors.GuestUnreadable, match="fscrypt"):
                ask()
        assert [name for name, _ in browser.children(browser.find(0, "below"))] == ["deeper"]
    # Names that are encrypted tell nobody anything, and may hold any bytes.
    with listings.list_files(disks.MemoryDisk("locked", changed)) as listing:
        found = {file.path: file.flags for file in listing}
    assert found["below/deeper"] == found["file-1"] == ("encrypted",) and "below/deeper/lies.bin" not in found


def test_damaged_files_are_told_and_cost_no_others(image: Path) -> None:
    changed = debugfs(image, "set_inode_field file-1 block[0] 0", "set_inode_field file-2 block[5] 0xffffff")
    with browsing.browse(disks.MemoryDisk("damaged", changed)) as browser:
        for name in ("file-1", "file-2"):
            with pytest.raises(errors.GuestUnreadable):
                browser.read(browser.find(0, name), 0, 10)
        found = dict(browser.children(browser.root(0)))
        assert len(found) == 302
        whole = [node for name, node in found.items() if name > "file-3" and node.kind == "file"]
        assert len(whole) > 60 and all(len(browser.read(node, 0, 1 << 20)) == 9000 for node in whole)
