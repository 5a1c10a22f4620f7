"""A backup of real file systems has an index of their files that says what a mount says, and costs what changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import estate_samples
import pytest
from estate_samples import MIB, START, Estate

from reconciler.base import meters
from reconciler.catalog import database, listings
from reconciler.catalog.fileindexes import answers, caches, indexes
from reconciler.operations import fileindexing, filelessons
from reconciler.storage import opening, units

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
NEXT = "2026-03-03T12:30:00Z"
LATER = "2026-03-04T12:40:00Z"
#: Path and stream: kind, size, modified (ns), links, inode.
Said = dict[tuple[str, str], tuple[str, int, int, int, int]]


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def mounted(raw: Path) -> Iterator[Path]:
    where = raw.with_suffix(".mnt")
    where.mkdir(exist_ok=True)
    if b"NTFS" in raw.read_bytes()[:16]:
        run("ntfs-3g", "-o", "streams_interface=windows", raw, where)
    else:
        run("mount", "-o", "loop", raw, where)
    try:
        yield where
    finally:
        run("sync", "-f", where)
        run("umount", where)
        while subprocess.run(["fuser", "-s", str(raw)], check=False, capture_output=True).returncode == 0:
            pass


def fill(root: Path, *, streams: bool) -> None:
    for number in range(60):
        folder = root / f"Ordner {number % 5}" / f"sub{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}.{'log' if number % 2 else 'txt'}").write_bytes(bytes(number * 700))
    (root / "Ordner 0" / "Grüße 日本.txt").write_bytes(b"x" * 5000)
    (root / "empty").mkdir()
    os.link(root / "Ordner 0" / "Grüße 日本.txt", root / "linked.txt")
    (root / "symbolic").symlink_to("linked.txt")
    if streams:
        Path(f"{root}/linked.txt:Zone.Identifier").write_bytes(b"[ZoneTransfer]")


def said(root: Path, *, streams: bool) -> Said:
    """What the mount says of every path."""
    found: Said = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = Path(folder) / name
            about, where = path.lstat(), str(path.relative_to(root))
            kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}[
                stat.S_IFMT(about.st_mode)
            ]
            # What a folder or a link weighs is the business of each file system's driver.
            size, links = (about.st_size, about.st_nlink) if kind == "file" else (0, 0)
            found[where, ""] = (kind, size, about.st_mtime_ns, links, about.st_ino)
            if streams and about.st_nlink == 2 and kind == "file":
                found[where, "Zone.Identifier"] = ("file", 14, about.st_mtime_ns, 2, about.st_ino)
    return found


def told(cache: caches.FileCache, image: str, disk: str) -> Said:
    """What the index says of every path."""
    found: Said = {}
    for version in cache.search(answers.Query(text="*", images=[image], streams=True)):
        row = version.entry
        if row.disk == disk:
            size, links = (row.size, row.links) if row.kind == "file" else (0, 0)
            found[row.path, row.stream] = (row.kind, size, row.modified, links, row.inode)
    return found


def index(unit: units.StorageUnit, image: str) -> tuple[indexes.Index, dict[bytes, int]]:
    """The index of an image, read whole, and its pages' sizes by digest."""
    with contextlib.closing(unit.open(image)) as stored:
        found = fileindexing.index_of(stored)
        assert found is not None
        list(found)
        return found, {page.digest: page.size for page in stored.attachment("files").pages}


def caught_up(estate: Estate, cache: caches.FileCache) -> filelessons.Caught:
    """Bring a cache up to date from the catalog and the units alone."""
    db = database.open_writing(str(estate.state / "catalog.sqlite"))
    opened = opening.OpenUnits(owner=db.id, cache=estate.state / "cache")
    opened.declare(
        {
            name: opening.Declared(name=name, type=kind, path=estate.folder / "storage" / name)
            for name, kind in (("fast", "Directory"), ("pool", "DedupePool"))
        }
    )
    with contextlib.closing(db), contextlib.closing(opened):
        return filelessons.catch_up(db, opened, cache, meter=meters.Meter())


@needs_root
@pytest.mark.parametrize("storage", ["fast", "pool"])
def test_the_index_is_what_a_mount_says_and_an_incremental_stores_what_changed(tmp_path: Path, storage: str) -> None:
    estate = estate_samples.build(tmp_path / "estate", storage=storage, type="Incremental", every="24h, fullEvery: 30d")
    machine = estate.machine("alpha", size=MIB)
    estate.machine("beta", size=MIB)
    disks = {"ntfs": machine / "ntfs.img", "ext": machine / "ext.img"}
    for path in disks.values():
        with path.open("wb") as file:
            file.truncate(24 * MIB)
    run("mkntfs", "-F", "-Q", "-L", "System", disks["ntfs"])
    run("mke2fs", "-q", "-F", "-t", "ext4", disks["ext"])
    states: dict[str, Said] = {}
    for name, path in disks.items():
        with mounted(path) as root:
            fill(root, streams=name == "ntfs")
            states[path.name] = said(root, streams=name == "ntfs")
    estate.apply(clock=START)
    before = {name: dict(state) for name, state in states.items()}
    with mounted(disks["ntfs"]) as root:
        (root / "Ordner 1" / "sub1" / "file-1.log").write_bytes(b"longer than before" * 100)
        (root / "Ordner 2").rename(root / "moved")
        (root / "symbolic").unlink()
        states["ntfs.img"] = said(root, streams=True)
    estate.apply(clock=NEXT)
    first, second = [one["id"] for one in estate.get("images") if one["client"] == "alpha"]
    cache = caches.FileCache(estate.state / "cache")
    for disk in ("ntfs.img", "ext.img"):
        assert told(cache, first, disk) == before[disk]
        assert told(cache, second, disk) == states[disk]
    history = cache.versions(cache.learned()[0].image.client, "ntfs.img", 0, "Ordner 1/sub1/file-1.log")
    assert [(one.entry.size, one.images) for one in history] == [(700, (first,)), (1800, (second,))]
    with estate_samples.unit_of(estate, storage) as unit:
        old, held = index(unit, first)
        new, pages = index(unit, second)
        assert {disk.name: [volume.filesystem for volume in disk.volumes] for disk in new.head.disks} == {
            "ext.img": ["ext"], "ntfs.img": ["ntfs"], "system.img": [],
        }  # fmt: skip
        fresh = sum(size for digest, size in pages.items() if digest not in held)
        assert new.layers[0] == old.layers[0]
        assert fresh < sum(held.values()) / 2
        other = next(one["id"] for one in estate.get("images") if one["client"] == "beta")
        with contextlib.closing(unit.open(other)) as stored:
            assert stored.attachments() == ()
    learned = {one.image.id: one.head is not None for one in cache.learned()}
    assert learned == {one["id"]: one["client"] == "alpha" for one in estate.get("images")}

    # All of it comes from the units again; and what is gone is forgotten.
    anew = caches.FileCache(tmp_path / "anew")
    assert caught_up(estate, anew) == filelessons.Caught(learned=4, forgotten=0, failed=())
    assert told(anew, second, "ntfs.img") == states["ntfs.img"]
    assert {one.image for one in anew.learned()} == {one.image for one in cache.learned()}
    assert caught_up(estate, anew) == filelessons.Caught(learned=0, forgotten=0, failed=())


def test_without_an_index_nothing_is_kept_and_a_crash_before_the_lesson_is_made_good(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", retention="{type: Fixed, period: 60h}")
    raw = estate.machine("alpha") / "ext.img"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.txt").write_text("a")
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, raw, "8M")
    done = estate.command.at(START).crashing("backup.recorded").run("apply", ".", "--yes", code=None)
    assert done.returncode == -9
    cache = caches.FileCache(estate.state / "cache")
    assert cache.learned() == ()
    assert caught_up(estate, cache).learned == 1
    (one,) = cache.learned()
    assert cache.entry(one.image.id, "ext.img", 0, "a.txt").size == 1

    path = estate.folder / "policy.yaml"
    estate_samples.replace(path, path.read_text().replace("lifecycle: gold", "lifecycle: gold\n  index: false"))
    estate.apply(clock=NEXT)
    assert [entry.head is not None for entry in cache.learned()] == [True, False]

    # An image whose time has come goes, and with it what it alone held.
    estate.apply(clock=LATER)
    estate.apply(clock="2026-03-05T12:50:00Z")
    left = {image["id"] for image in estate.get("images")}
    assert one.image.id not in left
    assert {entry.image.id for entry in cache.learned()} == left
    with contextlib.closing(database.open_writing(str(estate.state / "catalog.sqlite"))) as db:
        assert {row.image for row in listings.whereabouts(db)} == left

    # The state folder goes, and the cache with it: the units give both back.
    known = {(entry.image, entry.head is not None) for entry in cache.learned()}
    shutil.rmtree(estate.state)
    estate.command.at("2026-03-05T13:00:00Z").run("catalog", "rebuild", "--from", "fast", "pool")
    again = caches.FileCache(estate.state / "cache")
    assert again.learned() == () and not caught_up(estate, again).failed
    assert {(entry.image, entry.head is not None) for entry in again.learned()} == known


def test_a_guest_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    """A volume that says it is NTFS and whose table of files is noise."""
    estate = estate_samples.build(tmp_path / "estate")
    raw = estate.machine("alpha") / "broken.img"
    with raw.open("wb") as file:
        file.truncate(8 * MIB)
    run("mkntfs", "-F", "-Q", raw)
    data = bytearray(raw.read_bytes())
    table = int.from_bytes(data[48:56], "little") * data[13] * 512
    data[table : table + 65536] = os.urandom(65536)
    raw.write_bytes(data)
    estate.apply(clock=START)
    (image,) = estate.get("images")
    assert image["state"] == "Complete"
    (warning,) = image["warnings"]
    assert warning["code"] == "FilesPartlyIndexed"
    assert "broken.img" in warning["message"]
