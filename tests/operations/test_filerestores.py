"""What is walked in an image to restore it, where that is a damaged one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from reconciler.base import disks, meters
from reconciler.guests import browsing, listings
from reconciler.operations import filecontents, fileplaces, filerestores, foldersinks


class Browsers:
    """The browser of one disk, under any name."""

    def __init__(self, browser: browsing.Browser) -> None:
        self.of = lambda _: browser


def test_folders_that_lead_back_are_restored_once(tmp_path: Path) -> None:
    image, script = tmp_path / "image", tmp_path / "script"
    image.write_bytes(bytes(1 << 20))
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", image], check=True)
    script.write_text(f"mkdir d\nwrite {script} d/file\nlink d d/one\nlink d d/two\nlink / root\n")
    subprocess.run(["debugfs", "-w", "-f", script, image], check=True, capture_output=True)
    report, target = filecontents.Report(), tmp_path / "target"
    with browsing.browse(disks.MemoryDisk("a.img", image.read_bytes())) as browser:
        found: Any = Browsers(browser)
        volume = fileplaces.Volume("a.img", 0, "ext", "", 1 << 20, "a.img/v0")
        chosen = filerestores.picks([volume], [fileplaces.Place(volume, "")], paths=False)
        sink = foldersinks.FolderSink(target, report, force=False)
        filerestores.restore(found, chosen, sink, report, meters.Meter())
    made = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert made == {"d", "d/file", "lost+found"}
    assert sorted((one.path, one.code) for one in report.failures) == [
        (path, "SameFolder") for path in ("/d/one", "/d/two", "/root")
    ]


def test_names_that_no_file_can_bear_are_counted_and_told(tmp_path: Path) -> None:
    image, script = tmp_path / "image", tmp_path / "script"
    image.write_bytes(bytes(1 << 20))
    names = ("d/aXb", "d/nZl", "d/QQ", "d/kept")
    script.write_text("mkdir d\nmkdir eXe\n" + "".join(f"write {script} {name}\n" for name in names))
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum", image], check=True)
    subprocess.run(["debugfs", "-w", "-f", script, image], check=True, capture_output=True)
    data = image.read_bytes()
    for name, other in ((b"aXb", b"a/b"), (b"nZl", b"n\0l"), (b"\x02\x01QQ", b"\x02\x01.."), (b"eXe", b"e/e")):
        data = data.replace(name, other)
    report, target = filecontents.Report(), tmp_path / "target"
    with browsing.browse(disks.MemoryDisk("a.img", data)) as browser:
        found: Any = Browsers(browser)
        volume = fileplaces.Volume("a.img", 0, "ext", "", 1 << 20, "a.img/v0")
        chosen = filerestores.picks([volume], [fileplaces.Place(volume, "")], paths=False)
        sink = foldersinks.FolderSink(target, report, force=False)
        filerestores.restore(found, chosen, sink, report, meters.Meter())
    assert {str(path.relative_to(target)) for path in target.rglob("*")} == {"d", "d/kept", "lost+found"}
    told = {one.path: one.message.partition(" cannot")[0] for one in report.failures}
    assert told == {"/": "of what lies in it, 1", "/d": "of what lies in it, 3"}
    with listings.list_files(disks.MemoryDisk("a.img", data)) as listing:
        assert {file.path for file in listing} == {"d", "d/kept", "lost+found"}
        assert [code for code, _ in listing.warnings] == ["NameSkipped"] * 4
