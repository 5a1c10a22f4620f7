"""Single files out of images: whole trees beside what the kernel or ntfs-3g shows of the same disks, entry by entry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import estate_samples
import pytest
from estate_samples import MIB, START

sys.path.append(str(Path(__file__).parents[1] / "guests"))

import guest_builders as builders
import guest_features as features
import guest_trees as trees

pytestmark = builders.needs_root

LATER = "2026-03-03T12:30:00Z"
#: What no restore sets, and what reading a tree changes.
FREE = ("changed", "created", "accessed")
#: What a mount by ntfs-3g makes up.
MADE_UP = ("mode", "uid", "gid", "xattrs")
#: Files of NTFS that only Windows can read.
UNREADABLE = {"overlay": "CompactOS", "deduplicated": "deduplicated", "unknown": "0x80001234"}


class Guests:
    """An estate with two machines, its disks as they were at two times, and what mounts show of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.estate = estate_samples.build(
            folder / "estate", duplicate="yes", type="Incremental, fullEvery: 30d", retention="{type: Forever}"
        )
        self.disks = {
            "lin/system.img": self._disk(
                "lin", "system", 340, "ext4", ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"]
            ),
            "lin/data.img": self._disk("lin", "data", 330, "xfs", ["mkfs.xfs", "-q", "-f", "-L", "data"]),
            "win/system.img": self._disk("win", "system", 120, "ntfs", ["mkntfs", "-F", "-Q", "-L", "Fässer"]),
        }
        self.known: dict[tuple[str, str], dict[str, trees.Seen]] = {}
        self.images: dict[tuple[str, str], str] = {}
        with self._written("lin/system.img") as root:
            features.linux(root, "ext4", largest=600)
        with self._written("lin/data.img") as root:
            (root / "folder").mkdir()
            features.odd_names(root / "folder")
            features.owners_and_times(root)
            features.attributes(root, 600)
        with self._written("win/system.img") as root:
            self.streams = features.ntfs(root, 4096)
        self._keep("first", START)
        with self._written("lin/system.img") as root:
            (root / "dir0" / "sub0" / "file-0.bin").write_bytes(b"another one" * 50_000)
            (root / "dir1" / "linked.bin").unlink()
            (root / "new").symlink_to("/etc/passwd")
        with self._written("win/system.img") as root:
            (root / "dir0" / "sub0" / "new.txt").write_bytes(b"new" * 70_000)
            shutil.rmtree(root / "many")
        self._keep("second", LATER)

    def _disk(self, machine: str, name: str, size: int, kind: str, make: list[str]) -> tuple[Path, str]:
        folder = self.estate.folder / "machines" / machine
        folder.mkdir(exist_ok=True)
        path = builders.blank(folder / f"{name}.img", size * MIB)
        builders.run(*make, path)
        return path, kind

    def _written(self, which: str) -> Any:
        path, kind = self.disks[which]
        # A mount beside the disk would be one more machine.
        options = "streams_interface=windows,compression" if kind == "ntfs" else ""
        return mounted(path, kind, self.folder / "mnt", options)

    def _keep(self, when: str, clock: str) -> None:
        for which, (path, kind) in self.disks.items():
            with mounted(
                path, kind, self.folder / "mnt", "ro,streams_interface=windows" if kind == "ntfs" else "ro"
            ) as root:
                self.known[which, when] = trees.folder(root)
        self.estate.apply(clock=clock)
        for image in self.estate.at(clock).json("get", "images")["items"]:
            self.images.setdefault((image["client"], when), image["id"])
            if image["id"] != self.images.get((image["client"], "first")):
                self.images[image["client"], when] = image["id"]

    def get(self, client: str, path: str, *more: str | Path, code: int = 0) -> Any:
        """``files get``; its document."""
        return self.estate.at(LATER).json("files", "get", client, path, *more, code=code)

    def lost(self, client: str, which: str, when: str, root: Path, without: Collection[str] = ()) -> list[str]:
        """How a restored tree differs."""
        kind = self.disks[which][1]
        leave = (*FREE, *MADE_UP) if kind == "ntfs" else FREE
        return trees.compare(self.known[which, when], trees.folder(root), leave=leave, slack=100, without=without)


class mounted:  # noqa: N801  used like the function of the same name
    """A disk mounted somewhere else than beside it."""

    def __init__(self, path: Path, kind: str, where: Path, options: str) -> None:
        self._link = where.with_suffix(".raw")
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(path)
        self._mount = builders.mounted(self._link, kind=kind, options=options)

    def __enter__(self) -> Path:
        return self._mount.__enter__()

    def __exit__(self, *told: Any) -> None:
        self._mount.__exit__(*told)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    yield Guests(tmp_path_factory.mktemp("guests"))


def untarred(guests: Guests, client: str, path: str, to: Path, *more: str) -> str:
    """``files get --tar -`` unpacked by GNU tar without what it says that only NTFS holds; what Holdfast said."""
    to.mkdir()
    command = guests.estate.at(LATER)
    with command.start("files", "get", client, path, "--tar", "-", *more) as process:
        tar = [
            "tar",
            "-C",
            to,
            "--xattrs",
            "--xattrs-include=*",
            "--xattrs-exclude=system.ntfs_*",
            "--numeric-owner",
            "--warning=no-timestamp",
            "-xpf",
            "-",
        ]
        done = subprocess.run(tar, stdin=process.stdout, check=False, capture_output=True, text=True)
        said = process.stderr.read() if process.stderr else ""
    assert (done.returncode, done.stderr) == (0, ""), said
    return said


def windows(guests: Guests, when: str) -> tuple[set[str], set[str]]:
    """Paths of the tree that a folder of Linux has otherwise: names it cannot hold, and what only Windows reads."""
    known = guests.known["win/system.img", when]
    long = {path for path in known if len(os.fsencode(path.rpartition("/")[2])) > 255}
    return long, {path for path in known if path.startswith("reparsed/")}


def test_a_linux_machine_as_a_folder_and_as_an_archive(guests: Guests, tmp_path: Path) -> None:
    done = guests.get("lin", "/system.img/v0", "--to", tmp_path / "second")
    assert (done["state"], done["failed"], done["copy"]) == ("Restored", 0, 1)
    assert guests.lost("lin", "lin/system.img", "second", tmp_path / "second" / "system.img" / "v0") == []
    assert {note.partition(":")[0] for note in done["notes"]} == {
        f"files are not {flag} again; chattr sets that" for flag in ("immutable", "append")
    }
    old = guests.images["lin", "first"]
    untarred(guests, "lin", "/", tmp_path / "tar", "--image", old, "--copy", "2")
    root = tmp_path / "tar" / "system.img" / "v0"
    assert guests.lost("lin", "lin/system.img", "first", root, without={"special/socket"}) == []
    assert guests.lost("lin", "lin/data.img", "first", tmp_path / "tar" / "data") == []
    assert (root / "sparse.bin").stat().st_blocks * 512 < MIB
    assert (tmp_path / "second" / "system.img" / "v0" / "end.bin").stat().st_blocks * 512 < MIB


def test_a_windows_machine_as_a_folder_and_as_an_archive(guests: Guests, tmp_path: Path) -> None:
    done = guests.get("win", "/", "--to", tmp_path / "to", "--copy", "2", code=3)
    long, reparsed = windows(guests, "second")
    assert (done["state"], done["copy"], len(long)) == ("Partial", 2, 2)
    failed = {one["path"].removeprefix("/reparsed/"): one["message"] for one in done["failures"]}
    assert failed.keys() == UNREADABLE.keys() and all(UNREADABLE[name] in failed[name] for name in failed)
    beside = {f"{path}:{name}" for path, names in guests.streams.items() for name in names}
    made = {str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*")}
    given = {f"odd/{one['name']}" for one in done["renamed"]}
    assert len(given) == 2 and given < made
    extra = {path for path in beside if path in made} | given
    assert guests.lost("win", "win/system.img", "second", tmp_path / "to", long | reparsed | extra) == []
    for one in done["renamed"]:
        path = one["path"].removeprefix("/")
        assert (
            trees.folder(tmp_path / "to")[f"odd/{one['name']}"].digest
            == guests.known["win/system.img", "second"][path].digest
        )
    # Each of the files has its streams once, under the first of its names.
    assert done["streams"] == 5 == len([path for path in made if ":" in path])
    for name, size in (("hard:Zone.Identifier", 20), ("hard:größer", 90_020), ("dir0:of a folder", 20)):
        found = list((tmp_path / "to").rglob(f"*:{name.partition(':')[2]}"))
        assert [path.stat().st_size for path in found] == [size]
    old = guests.images["win", "first"]
    # GNU tar cannot make the names that are too long either.
    untarred(guests, "win", "/many", tmp_path / "many", "--image", old, "--copy", "1")
    untarred(guests, "win", "/packed", tmp_path / "packed", "--image", old)
    for name in ("many", "packed"):
        known = {
            path: one for path, one in guests.known["win/system.img", "first"].items() if path.split("/")[0] == name
        }
        assert len(known) > 7
        assert trees.compare(known, trees.folder(tmp_path / name), leave=(*FREE, *MADE_UP), slack=100) == []


def test_what_windows_keeps_of_files_goes_to_ntfs_again(guests: Guests, tmp_path: Path) -> None:
    names = (
        "windows",
        "reparsed/junction",
        "reparsed/relative",
        "reparsed/linux",
        "hard",
        "dir0/grown-a.bin",
        "special",
    )
    settable = 0x1 | 0x2 | 0x4 | 0x20 | 0x100 | 0x2000
    seen = []
    path, kind = guests.disks["win/system.img"]
    target = builders.blank(tmp_path / "target.raw", 24 * MIB)
    builders.run("mkntfs", "-F", "-Q", target)
    with mounted(target, kind, tmp_path / "to", "streams_interface=windows") as root:
        done = guests.get("win", "/windows", *(f"/{name}" for name in names[1:]), "--paths", "--to", root)
    assert (done["state"], done["streams"], done["notes"]) == ("Restored", 4, [])
    for image in (path, target):
        with mounted(image, kind, tmp_path / "seen", "ro") as root:
            kept = trees.windows(root, "acl", "attrib_be", "times_be", "reparse_data")
            known = trees.folder(root)
        for of in kept.values():
            of["attrib_be"] = bytes([0, 0, *((settable & int.from_bytes(of["attrib_be"], "big")).to_bytes(2, "big"))])
            of["times_be"] = of["times_be"][:16]
        wanted = [path for path in kept if any(path == name or path.startswith(f"{name}/") for name in names)]
        seen.append({path: (kept[path], known[path].format, known[path].xattrs) for path in wanted})
    assert seen[0] == seen[1] and len(seen[0]) > 90
    done = guests.get("win", "/windows", "--to", tmp_path / "linux")
    said = {note.partition(": ")[0]: int(note.partition(": ")[2].partition(",")[0]) for note in done["notes"]}
    assert said == {
        **dict.fromkeys(
            (
                "owners and access control lists of Windows were not kept, which only NTFS by NTFS-3G holds",
                "times of creation were not kept, which only NTFS by NTFS-3G holds",
            ),
            82,
        ),
        "the Windows attribute readonly was not kept": 27,
        "the Windows attribute hidden was not kept": 18,
        "the Windows attribute system was not kept": 18,
    }


def test_folders_are_listed_from_the_index_with_no_unit_there(guests: Guests, tmp_path: Path) -> None:
    command = guests.estate.at(LATER)
    browsed = command.json(
        "files",
        "ls",
        "--unit",
        guests.estate.folder / "storage" / "pool",
        guests.images["lin", "second"],
        "/data/folder/odd",
    )
    away = [guests.estate.folder / "storage", guests.estate.folder / "away"]
    away[0].rename(away[1])
    try:
        listed = command.json("files", "ls", "lin", "/data/folder/odd")
        volumes = command.json("files", "ls", "lin")
        windows = command.json("files", "ls", "win", "C:\\Dir0\\SUB0")
        text = command.using(COLUMNS="80").run("files", "ls", "win", "dir0", "-l").stdout
        history = command.json("files", "versions", "lin", "dir0/sub0/file-0.bin")
        gone = command.json("files", "versions", "win", "MANY")
        command.run("files", "get", "lin", "/new", "--to", tmp_path / "none", code=1)
    finally:
        away[1].rename(away[0])
    assert (listed["source"], browsed["source"]) == ("Index", "Image")
    assert len(listed["items"]) == len(features.ODD) + 1
    same = ("name", "path", "type", "modified", "created", "changed", "links", "inode", "streams")
    assert [[one[key] for key in same] for one in listed["items"]] == [
        [one[key] for key in same] for one in browsed["items"]
    ]
    assert [one["path"] for one in volumes["volumes"]] == ["/data", "/system.img/v0"]
    assert volumes["path"] is None and volumes["items"] == []
    assert "new.txt" in [one["name"] for one in windows["items"]]
    assert "sub0/" in text and all(len(line) <= 80 for line in text.splitlines())
    first, second = guests.images["lin", "first"], guests.images["lin", "second"]
    known = [guests.known["lin/system.img", when]["dir0/sub0/file-0.bin"].size for when in ("first", "second")]
    assert [(one["sizeBytes"], one["images"], one["good"]) for one in history["versions"]] == [
        (known[0], [first], True),
        (known[1], [second], True),
    ]
    assert [one["lastImage"] for one in gone["versions"]] == [guests.images["win", "first"]]


def test_files_are_found_over_clients_and_times(guests: Guests) -> None:
    command = guests.estate.at(LATER)
    found = command.json("files", "find", "file-0.bin")
    assert [(one["client"], one["path"], one["versions"], len(one["images"])) for one in found["items"]] == [
        ("lin", "/system.img/v0/dir0/sub0/file-0.bin", 2, 2),
        ("win", "/dir0/sub0/file-0.bin", 1, 2),
    ]
    assert (found["truncated"], found["notSearched"]) == (False, [])
    clients = ("--client", "win", "--type", "d", "--contains", "-i")
    assert [one["path"] for one in command.json("files", "find", "MANY", *clients)["items"]] == ["/many"]
    assert command.json("files", "find", "many", "--client", "win", "--since", "2026-03-03")["items"] == []
    assert len(command.json("files", "find", "**/many/*", "--limit", "5", "--until", "2026-03-03")["items"]) == 5
    assert [
        one["stream"] for one in command.json("files", "find", "hard", "--streams", "--client", "win")["items"]
    ] == [
        None,
        "Zone.Identifier",
        "größer",
    ]
    shutil.rmtree(guests.estate.state / "cache")
    again = command.run("files", "find", "file-0.bin", "-o", "json")
    assert json.loads(again.stdout) == found and "indexes of 4 images" in again.stderr


def test_paths_that_may_mean_several_files_or_none(guests: Guests, tmp_path: Path) -> None:
    command = guests.estate.at(LATER)
    said = command.run("files", "ls", "lin", "/owned", code=64).stderr
    assert "/data.img/v0/owned" in said and "/system.img/v0/owned" in said
    assert "its volumes are /data, /system.img/v0" in command.run("files", "ls", "lin", "/none", code=1).stderr
    command.run("files", "ls", "lin", "/data/../x", code=64)
    command.run("files", "get", "lin", "/data/owned", "/system.img/v0/owned", "--to", tmp_path / "out", code=64)
    done = command.json(
        "files",
        "get",
        "lin",
        "/data/owned/file[1-3]",
        "/system.img/v0/**/file-0.bin",
        "--paths",
        "--to",
        tmp_path / "out",
    )
    assert (done["files"], done["failed"]) == (4, 0)
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("file*")) == [
        *(f"data/owned/file{number}" for number in (1, 2, 3)),
        "system.img/v0/dir0/sub0/file-0.bin",
    ]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_from_a_unit_alone(guests: Guests, tmp_path: Path) -> None:
    unit = guests.estate.folder / "storage" / "pool"
    command = guests.estate.command.using(folder=tmp_path)
    done = command.json(
        "files", "get", "--unit", unit, guests.images["win", "second"], "dir0\\sub0\\new.txt", "--to", "out"
    )
    assert (done["state"], (tmp_path / "out" / "new.txt").read_bytes()) == ("Restored", b"new" * 70_000)
