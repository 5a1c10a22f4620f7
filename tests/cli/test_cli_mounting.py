"""``holdfast mount``: disks over NBD and files as a folder, as a user meets them, and nothing left at the end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import estate_samples
import pytest
from estate_samples import MIB, START, Estate

#: Hours from any slot.
LATE = "2026-03-20T18:00:00Z"


def _run(*words: object, code: int = 0) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies on the guest's disk."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "etc" / "many").mkdir(parents=True)
    (folder / "etc" / "hostname").write_text("alpha\n")
    (folder / "etc" / "big").write_bytes(os.urandom(3 * MIB + 17))
    (folder / "etc" / "link").symlink_to("hostname")
    os.link(folder / "etc" / "hostname", folder / "same")
    os.link(folder / "etc" / "big", folder / "wipe\x1b[2J")
    os.setxattr(folder / "same", "user.colour", b"blue")
    os.chown(folder / "same", 1234, 2345)
    (folder / "same").chmod(0o4750)
    os.utime(folder / "same", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    (folder / os.fsdecode(b"odd \xe9\xff name")).write_text("odd")
    for number in range(500):
        (folder / "etc" / "many" / f"file {number}").write_text(str(number))
    return folder


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Estate:
    """Two images, a day apart, of a machine with an ext4 and an NTFS disk; a copy in the Directory, one in the pool."""
    found = estate_samples.build(tmp_path_factory.mktemp("estate"), duplicate="yes", type="Incremental, fullEvery: 30d")
    machine = found.machine("alpha", size=0)
    system, data = machine / "system.img", machine / "data.img"
    os.truncate(system, 24 * MIB)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", files, system)
    data.touch()
    os.truncate(data, 8 * MIB)
    _run("mkntfs", "-q", "-F", "-Q", "-L", "Data", data)
    _run("ntfscp", data, files / "etc" / "big", "big")
    found.apply(clock=START)
    with data.open("r+b") as file:
        file.seek(6 * MIB)
        file.write(b"changed" * 1000)
    found.apply(clock="2026-03-03T12:30:00Z")
    return found


@contextlib.contextmanager
def _mounted(
    estate: Estate, *words: str | Path, log: Path | None = None
) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """The document that ``mount`` prints, and its process; interrupted at the end if it still lives."""
    with log.open("w") if log else contextlib.nullcontext(subprocess.DEVNULL) as said:
        process = estate.command.start("mount", *words, "-o", "json", stderr=said)
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], f"mount said {lines}, exit {process.wait()}"
        yield json.loads("".join(lines)), process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_every_copy_and_time_over_nbd(estate: Estate) -> None:
    first, second = estate.get("images")
    machine = estate.folder / "machines" / "alpha"
    with _mounted(estate, "alpha", "--reason", "a look") as (document, process):
        assert (document["kind"], document["client"], document["image"]) == ("MountResult", "alpha", second["id"])
        assert (document["copy"], document["unit"], document["mountPoint"]) == (1, "fast", None)
        assert document["imageTime"] == second["time"]
        assert {disk["name"]: (disk["sizeBytes"], disk["writable"]) for disk in document["disks"]} == {
            "system.img": (24 * MIB, False),
            "data.img": (8 * MIB, False),
        }
        for disk in document["disks"]:
            _run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk["uri"], machine / disk["name"])
        (job,) = estate.get("jobs", "--job-state", "Running")
        assert (job["type"], job["image"], job["copy"], job["sourceUnit"]) == ("Mount", second["id"], 1, "fast")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    (job,) = [one for one in estate.get("jobs") if one["type"] == "Mount"]
    assert job["state"] == "Succeeded"
    (entry,) = [one for one in estate.get("audit") if one["event"] == "Mounted"]
    assert (entry["object"], entry["details"]["reason"]) == (second["id"], "a look")
    words = ("alpha", "--as-of", "2026-03-03T00:00:00Z", "--copy", "2", "--disk", "data.img", "--port", "0")
    with _mounted(estate, *words) as (document, _):
        assert (document["image"], document["copy"], document["unit"]) == (first["id"], 2, "pool")
        (disk,) = document["disks"]
        assert disk["uri"].startswith("nbd://127.0.0.1:")
        assert "mismatch at offset" in _run(
            "qemu-img", "compare", "-f", "raw", "-F", "raw", disk["uri"], machine / "data.img", code=1
        )


def test_what_is_mounted_does_not_expire_and_is_read_from_any_copy(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha", duplicate="yes")
    estate.apply(clock=START)
    estate.apply(clock="2026-03-03T12:30:00Z")
    first = min(estate.get("images"), key=lambda one: str(one["time"]))["id"]

    def state() -> str:
        estate.apply(clock=LATE, code=None)
        (found,) = [one for one in estate.get("copies") if (one["image"], one["number"]) == (first, 1)]
        return str(found["state"])

    with _mounted(estate, "alpha", "--image", first, "--copy", "1") as (document, process):
        assert state() == "Complete"
        assert _run("nbdinfo", "--size", document["disks"][0]["uri"]).strip() == str(MIB)
        # A killed one keeps nothing, and leaves nothing.
        process.kill()
        process.wait()
        socket = Path(document["disks"][0]["uri"].partition("?socket=")[2])
        estate_samples.until(lambda: not socket.parent.exists(), seconds=10, what="the end of nbdkit")
    assert state() == "Expired"
    assert [one["state"] for one in estate.get("jobs") if one["type"] == "Mount"] == ["Lost"]

    # What the copy read first has lost, the next one gives; the catalog knows from then on.
    (second,) = {one["image"] for one in estate.get("copies") if (one["unit"], one["state"]) == ("fast", "Complete")}
    (data,) = (estate.folder / "storage" / "fast").glob(f"*/{second}/*.raw")
    with data.open("r+b") as file:
        file.write(b"damage")
    with _mounted(estate, "alpha", "--image", second) as (document, _):
        disk = estate.folder / "machines" / "alpha" / "system.img"
        _run("qemu-img", "compare", "-f", "raw", "-F", "raw", document["disks"][0]["uri"], disk)
    copies = {one["number"]: one["state"] for one in estate.get("copies") if one["image"] == second}
    assert copies == {1: "Damaged", 2: "Complete"}


def test_a_mount_can_be_cancelled(estate: Estate) -> None:
    with _mounted(estate, "alpha") as (_, process):
        (job,) = estate.get("jobs", "--job-state", "Running")
        estate.command.run("cancel", job["id"])
        assert process.wait(30) == 130


def test_writable_disks_leave_the_image_as_it_was(estate: Estate, tmp_path: Path) -> None:
    before = estate_samples.tree(estate.folder / "storage" / "fast")
    system = estate.folder / "machines" / "alpha" / "system.img"
    socket = tmp_path / "nbd"
    words = ("alpha", "--disk", "system.img", "--writable", "--socket", socket)
    with _mounted(estate, *words) as (document, _):
        (disk,) = document["disks"]
        assert (disk["writable"], disk["uri"]) == (True, f"nbd+unix:///system.img?socket={socket}")
        _run("qemu-io", "-f", "raw", "-c", "write -P 9 3M 1M", "-c", "flush", disk["uri"])
        _run("qemu-io", "-f", "raw", "-c", "read -P 9 3M 1M", disk["uri"])
        assert "mismatch at offset" in _run(
            "qemu-img", "compare", "-f", "raw", "-F", "raw", disk["uri"], system, code=1
        )
    assert not socket.exists()
    assert estate_samples.tree(estate.folder / "storage" / "fast") == before
    with _mounted(estate, "alpha", "--writable") as (document, _):
        # Each disk has a server of its own: what is written to one must not appear on the other.
        uris = {disk["name"]: disk["uri"] for disk in document["disks"]}
        assert len({uri.partition("?")[2] for uri in uris.values()}) == 2
        _run("qemu-img", "compare", "-f", "raw", "-F", "raw", uris["system.img"], system)


def test_words_that_contradict_each_other(estate: Estate, tmp_path: Path) -> None:
    run = estate.command.run
    run("mount", "alpha", "--socket", tmp_path / "s", "--port", "10809", code=64)
    run("mount", "alpha", "--writable", "--socket", tmp_path / "s", code=64)
    run("mount", "--unit", estate.folder / "storage" / "pool", "x", "--copy", "1", code=64)
    run("mount", "alpha", "--disk", "other.img", code=1)
    run("mount", "nobody", code=1)
    (tmp_path / "full" / "of").mkdir(parents=True)
    assert "not empty" in run("mount", "alpha", "--at", tmp_path / "full", code=4).stderr


def _same(ours: Path, theirs: Path) -> None:
    """Every name, byte, owner, mode, time, link and attribute below two folders."""
    names = {path.relative_to(theirs) for path in theirs.rglob("*")}
    assert len(names) > 500
    assert {path.relative_to(ours) for path in ours.rglob("*")} == names
    inodes: dict[int, set[int]] = {}
    for name in names:
        found, wanted = (ours / name).lstat(), (theirs / name).lstat()
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(found, field) == getattr(wanted, field), (name, field)
        inodes.setdefault(wanted.st_ino, set()).add(found.st_ino)
        if (theirs / name).is_symlink():
            assert (ours / name).readlink() == (theirs / name).readlink()
        elif (theirs / name).is_file():
            assert found.st_nlink == wanted.st_nlink
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
            for key in os.listxattr(theirs / name):
                assert os.getxattr(ours / name, key) == os.getxattr(theirs / name, key)
    assert all(len(found) == 1 for found in inodes.values())


def test_disks_and_files_as_a_folder(estate: Estate, tmp_path: Path) -> None:
    at, machine = tmp_path / "é, Ω", estate.folder / "machines" / "alpha"
    for copy in ("1", "2"):
        with _mounted(estate, "alpha", "--copy", copy, "--at", at) as (document, _):
            assert document["mountPoint"] == str(at)
            assert _names(at / "disks") == ["data.img", "system.img"]
            for name in ("data.img", "system.img"):
                _run("cmp", at / "disks" / name, machine / name)
                _run("qemu-img", "compare", "-f", "raw", "-F", "raw", at / "disks" / name, machine / name)
            assert (_names(at / "files" / "system.img"), _names(at / "files" / "data.img")) == (["root"], ["Data"])
            root = at / "files" / "system.img" / "root"
            content = subprocess.run(["ntfscat", machine / "data.img", "big"], capture_output=True, check=True).stdout
            big = at / "files" / "data.img" / "Data" / "big"
            assert big.read_bytes() == content
            # As NTFS-3G does: not listed, and told to who asks.
            assert os.listxattr(big) == [] and os.getxattr(big, "system.ntfs_acl")[:2] == b"\1\0"
            # Several readers at once, of files and of disks.
            paths = [root / "etc" / "many" / f"file {number}" for number in range(0, 500, 5)]
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                texts = pool.map(Path.read_text, paths)
                whole = list(pool.map(Path.read_bytes, [at / "disks" / "data.img"] * 4))
                assert [int(text) for text in texts] == list(range(0, 500, 5))
            assert set(whole) == {(machine / "data.img").read_bytes()}
            with pytest.raises(OSError, match="Read-only file system"):
                (root / "new").touch()
            with pytest.raises(FileNotFoundError):
                (root / "nothing").read_bytes()
            assert (at / "files" / "system.img" / "v0" / "same").stat().st_ino == (root / "same").stat().st_ino
            loop = tmp_path / "loop"
            loop.mkdir(exist_ok=True)
            _run("mount", "-t", "ext4", "-o", "ro,noload,loop", at / "disks" / "system.img", loop)
            try:
                _same(root, loop)
            finally:
                _run("umount", loop)
        assert not at.exists()
        assert str(at) not in _mounts()


def test_a_damaged_file_is_an_error_with_a_name(estate: Estate, files: Path, tmp_path: Path) -> None:
    alone = tmp_path / "fast"
    _run("cp", "-a", estate.folder / "storage" / "fast", alone)
    image = min(estate.get("images"), key=lambda one: str(one["time"]))["id"]
    (data,) = alone.glob(f"*/{image}/*system.img.raw")
    place = data.read_bytes().find((files / "etc" / "big").read_bytes()[2 * MIB : 2 * MIB + 64])
    with data.open("r+b") as file:
        file.seek(place)
        file.write(b"damage")
    log = tmp_path / "log"
    with _mounted(estate, "--unit", alone, image, "--at", tmp_path / "at", log=log) as (document, _):
        root = tmp_path / "at" / "files" / "system.img" / "root"
        with pytest.raises(OSError, match="Input/output error"):
            (root / "etc" / "big").read_bytes()
        with pytest.raises(OSError, match="Input/output error"):
            (root / "wipe\x1b[2J").read_bytes()
        assert (root / "etc" / "hostname").read_text() == "alpha\n"
        (uri,) = [disk["uri"] for disk in document["disks"] if disk["name"] == "system.img"]
        done = subprocess.run(["nbdcopy", uri, "null:"], capture_output=True, check=False)
        assert done.returncode != 0
    said = log.read_text()
    assert f"/files/system.img/root/etc/big: image {image}, disk system.img: block at offset" in said
    assert r"root/wipe\x1b[2J: image" in said and "\x1b" not in said


def test_nothing_hangs_after_a_kill(estate: Estate, tmp_path: Path) -> None:
    at = tmp_path / "at"
    for attempt in (1, 2, 3):
        with _mounted(estate, "alpha", "--at", at) as (_, process):
            held = os.open(at / "disks" / "system.img", os.O_RDONLY)
            assert len(os.pread(held, 4096, 0)) == 4096
            process.kill()
            process.wait()
            with pytest.raises(OSError, match="not connected"):
                os.pread(held, 4096, 16 * MIB)
            with contextlib.suppress(OSError):
                os.close(held)
            try:
                estate_samples.until(lambda: str(at) not in _mounts(), seconds=8, what="the unmounting")
                break
            except AssertionError:
                # fusermount3 looks once, perhaps in the moment before the kernel has cut the connection.
                _run("fusermount3", "-u", "-z", at)
                if attempt == 3:
                    raise
    # Its helper killed too: the mount stays, and is told of.
    with _mounted(estate, "alpha", "--at", at) as (_, process):
        children = Path("/proc").glob("[0-9]*/cmdline")
        helpers = [
            int(one.parent.name)
            for one in children
            if _words(one)[:1] == [b"fusermount3"] and os.fsencode(at) in _words(one)
        ]
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        time.sleep(0.5)
        try:
            assert str(at) in _mounts()
            said = estate.command.run("mount", "alpha", "--at", at, code=1, timeout=30).stderr
            assert f"fusermount3 -uz {at}" in said
        finally:
            _run("fusermount3", "-uz", at)


def _words(cmdline: Path) -> list[bytes]:
    try:
        return cmdline.read_bytes().split(b"\0")
    except OSError:
        return []


def test_without_fuse_the_package_is_named(estate: Estate, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("nbdkit", "sh"):
        (tools / name).symlink_to(
            next(Path(folder) / name for folder in ("/usr/bin", "/bin") if (Path(folder) / name).exists())
        )
    command = estate.command.using(PATH=str(tools))
    said = command.run("mount", "alpha", "--at", tmp_path / "at", code=1).stderr
    assert "install the Debian package fuse3" in said
    assert not (tmp_path / "at").exists()
