"""Restores of files into folders that are not empty, not trusted, not root's; that are killed; whose copy is damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import estate_samples
import holdfast_command
import jsonschema
import pytest
from estate_samples import MIB, START, Estate

sys.path.append(str(Path(__file__).parents[1] / "guests"))

import guest_builders as builders

pytestmark = builders.needs_root

BIG = os.urandom(3 * MIB + 777)
#: A word in Latin-1, as a program gets it.
LATIN = os.fsdecode(b"caf\xe9")
#: Moments at the ends of what ext4 and 64 bits of nanoseconds both hold.
FAR = {"t1901": -(2**31) * 10**9, "t2262": 9_223_000_000_123_456_789}


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    """One machine with one small disk, a copy in a Directory and one in a pool."""
    made = estate_samples.build(tmp_path_factory.mktemp("safety") / "estate", duplicate="yes")
    disk = builders.blank(tmp_path_factory.mktemp("disk") / "disk.raw", 16 * MIB)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", disk)
    with builders.mounted(disk, kind="ext4") as root:
        folder = root / "folder"
        folder.mkdir()
        for number in range(5):
            (folder / f"file{number}").write_bytes(bytes([number]) * 5000)
        os.chown(folder / "file1", 4000, 5000)
        (folder / "file1").chmod(0o6755)
        os.link(folder / "file2", folder / "second name")
        (folder / "out").symlink_to("/etc")
        (root / "big").write_bytes(BIG)
        for name in ("closed", "shut"):
            (root / name).mkdir(mode=0o600)
        (root / "closed" / "file").write_bytes(b"of two folders that let nobody in")
        os.link(root / "closed" / "file", root / "shut" / "file")
        (root / "wipe\x1b[2J").write_bytes(b"a name for a terminal")
        (root / LATIN).write_bytes(b"of a time before UTF-8")
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
        os.setxattr(root / "big", "user.note", b"kept")
        for name, moment in FAR.items():
            (root / name).touch()
            os.utime(root / name, ns=(moment, moment))
        os.utime(root / "big", ns=(1_700_000_000_123_456_789, 1_600_000_000_987_654_321))
    made.machine("alpha", content=disk.read_bytes())
    made.apply(clock=START)
    return made


def get(estate: Estate, *words: str | Path, code: int = 0) -> holdfast_command.Any:
    return estate.at(START).json("files", "get", "alpha", *words, code=code)


def test_what_is_there_is_kept_unless_forced(estate: Estate, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file1").write_bytes(b"mine")
    before = estate_samples.tree(tmp_path)
    for words in (("folder",), ("folder/file1", "--paths"), ("/", "big")):
        estate.at(START).run("files", "get", "alpha", *words, "--to", tmp_path, code=4 if words[0] != "/" else 64)
    estate.at(START).run("files", "get", "alpha", "/", "--to", tmp_path, code=4)
    assert estate_samples.tree(tmp_path) == before
    done = get(estate, "folder", "--to", tmp_path, "--force")
    assert (done["state"], done["files"], done["links"]) == ("Restored", 5, 1)
    assert (tmp_path / "folder" / "file1").read_bytes() == b"\1" * 5000
    assert (tmp_path / "folder" / "second name").samefile(tmp_path / "folder" / "file2")
    again = get(estate, "folder", "--to", tmp_path, "--force")
    assert (again["state"], sorted(path.name for path in (tmp_path / "folder").iterdir())) == (
        "Restored",
        [*(f"file{number}" for number in range(5)), "out", "second name"],
    )
    archive = tmp_path / "archive.tar"
    get(estate, "folder", "--tar", archive)
    with tarfile.open(archive) as opened:
        assert opened.getmember("folder/file1").mode == 0o6755 and len(opened.getmembers()) == 8
    estate.at(START).run("files", "get", "alpha", "folder", "--tar", archive, code=4)
    get(estate, "big", "--tar", archive, "--force")
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_storage_unit_is_no_target(estate: Estate, tmp_path: Path) -> None:
    """With --force a file of a guest would take the place of the unit's own."""
    unit = Path(estate.at(START).json("get", "units")["items"][0]["path"])
    before = estate_samples.tree(unit)
    (tmp_path / "link.tar").symlink_to(unit / "unit.json")
    for words in (
        ("--to", unit),
        ("--to", unit / "new"),
        ("--tar", unit / "new.tar"),
        ("--tar", tmp_path / "link.tar"),
    ):
        said = estate.at(START).run("files", "get", "alpha", "folder", "--force", *words, code=64).stderr
        assert "inside the storage unit" in said
    image = estate.at(START).json("get", "images")["items"][0]["id"]
    estate.at(START).run("files", "get", "--unit", unit, image, "folder", "--to", unit, code=64)
    assert estate_samples.tree(unit) == before
    # Whoever has no catalog does not know what to ask for.
    assert image in estate.at(START).run("files", "ls", "--unit", unit, "alpha", code=1).stderr


def test_a_pipe_and_a_device_stay_what_they_are(estate: Estate, tmp_path: Path) -> None:
    pipe, device, archive = tmp_path / "pipe", tmp_path / "device", tmp_path / "archive.tar"
    os.mkfifo(pipe)
    os.mknod(device, 0o20600, os.makedev(1, 3))
    with archive.open("wb") as stream, subprocess.Popen(["timeout", "60", "cat", pipe], stdout=stream) as reader:
        get(estate, "big", "--tar", pipe)
        assert reader.wait() == 0
    with tarfile.open(archive) as opened:
        assert opened.extractfile("big").read() == BIG  # type: ignore[union-attr]
    estate.at(START).run("files", "get", "alpha", "big", "--tar", device, code=4)
    get(estate, "big", "--tar", device, "--force")
    assert pipe.is_fifo() and device.is_char_device()


def test_an_archive_never_takes_the_place_of_a_link_or_of_an_open_file(estate: Estate, tmp_path: Path) -> None:
    real, link, nowhere = tmp_path / "real.tar", tmp_path / "link.tar", tmp_path / "nowhere.tar"
    real.write_bytes(b"old")
    link.symlink_to(real)
    nowhere.symlink_to(tmp_path / "missing")
    estate.at(START).run("files", "get", "alpha", "big", "--tar", nowhere, "--force", code=4)
    get(estate, "big", "--tar", link, "--force")
    assert link.is_symlink() and nowhere.is_symlink() and tarfile.is_tarfile(real)
    shell = 'exec 7>7.tar 9>9.tar; "$0" "$@" /dev/fd/7 && "$0" "$@" /dev/fd/1 >&9'
    command = estate.at(START)
    arguments = ("files", "get", "alpha", "big", "--force", "--state", str(estate.state), "--tar")
    ran = subprocess.run(
        ["bash", "-c", shell, *holdfast_command.PROGRAM, *arguments],
        cwd=tmp_path, env=command.environment(), capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert ran.stdout.startswith("Restored") and "stdout" in ran.stderr
    for name in ("7.tar", "9.tar"):
        with tarfile.open(tmp_path / name) as opened:
            assert opened.extractfile("big").read() == BIG  # type: ignore[union-attr]


def test_times_far_away_are_kept(estate: Estate, tmp_path: Path) -> None:
    get(estate, *FAR, "--to", tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in FAR} == FAR
    items = {item["name"]: item["modified"] for item in estate.at(START).json("files", "ls", "alpha")["items"]}
    assert items["t2262"].startswith("2262-")


def test_no_name_tells_a_terminal_what_to_do(estate: Estate, tmp_path: Path) -> None:
    done = get(estate, "wipe*", "--to", tmp_path)
    assert done["files"] == 1 and (tmp_path / "wipe\x1b[2J").exists()
    for words, code in ((("wipe*", "--to", tmp_path), 4), (("nothing\x1b[2J", "--to", tmp_path), 1)):
        said = estate.at(START).run("files", "get", "alpha", *words, code=code).stderr
        assert r"\x1b[2J" in said and "\x1b" not in said


def test_names_that_are_no_text_are_taken_found_and_shown(estate: Estate, tmp_path: Path) -> None:
    done = get(estate, LATIN, "--tar", tmp_path / LATIN)
    assert tarfile.is_tarfile(tmp_path / LATIN) and done["target"] == rf"{tmp_path}/caf\xe9"
    kept = estate.at(START).json("get", "restores")["items"][-1]
    assert (kept["target"], kept["state"]) == (done["target"], "Verified")
    for pattern in (LATIN, r"caf\xe9", r"/c*\xe9"):
        assert [one["path"] for one in estate.at(START).json("files", "find", pattern)["items"]] == [r"/caf\xe9"]


def test_nothing_is_written_outside_of_the_folder(estate: Estate, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file0").write_bytes(b"untouched")
    before = estate_samples.tree(outside)
    to = tmp_path / "to"
    to.mkdir()
    (to / "folder").symlink_to(outside)
    done = get(estate, "folder", "big", "--to", to, "--force", code=3)
    assert [(one["path"], one["code"]) for one in done["failures"]] == [("/folder", "TargetExists")]
    assert (to / "big").read_bytes() == BIG
    (to / "folder").unlink()
    (to / "folder").mkdir()
    (to / "folder" / "file0").symlink_to(outside / "file0")
    (to / "folder" / "out").mkdir()
    done = get(estate, "folder", "--to", to, "--force", code=3)
    # A link in the place of a file is replaced, a folder never.
    assert [one["path"] for one in done["failures"]] == ["/folder/out"]
    assert not (to / "folder" / "file0").is_symlink()
    assert estate_samples.tree(outside) == before


@pytest.mark.parametrize("words", [(), ("--force",)])
def test_a_kill_leaves_whole_files_alone(estate: Estate, tmp_path: Path, words: tuple[str, ...]) -> None:
    # A job that died at the same moment would be taken for one that goes on.
    crashing = estate.at(f"2026-03-02T13:0{len(words)}:00Z").using(HOLDFAST_CRASH="files.before-name:3")
    died = crashing.run("files", "get", "alpha", "folder", "--to", tmp_path, *words, code=None)
    assert died.returncode == -signal.SIGKILL
    left = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert len([path for path in left if path.name.startswith("file")]) == 2
    assert all(path.stat().st_size == 5000 for path in left if not path.is_symlink())
    assert all(path.name in ("out", "second name") or path.name.startswith("file") for path in left)
    assert get(estate, "folder", "--to", tmp_path, "--force")["state"] == "Restored"


def test_a_damaged_copy_is_left_in_the_middle_of_a_file(estate: Estate, tmp_path: Path) -> None:
    stored = max((estate.folder / "storage" / "fast").rglob("*"), key=lambda path: path.stat().st_size)
    kept = stored.read_bytes()
    at = kept.index(BIG[2 * MIB : 2 * MIB + 64])
    stored.write_bytes(kept[:at] + bytes(64) + kept[at + 64 :])
    try:
        estate.at(START).run("files", "get", "alpha", "big", "--to", tmp_path / "one", "--copy", "1", code=3)
        assert not (tmp_path / "one" / "big").exists()
        done = get(estate, "big", "--to", tmp_path / "both", "--reason", "a test")
    finally:
        stored.write_bytes(kept)
    assert (tmp_path / "both" / "big").read_bytes() == BIG
    assert (tmp_path / "both" / "big").stat().st_mtime_ns == 1_600_000_000_987_654_321
    assert os.getxattr(tmp_path / "both" / "big", "user.note") == b"kept"
    assert done["state"] == "Restored"
    audit = [one for one in estate.get("audit") if one["event"] in ("Restored", "RestoreFailed")]
    assert [(one["event"], one["details"]["paths"]) for one in audit[-2:]] == [
        ("RestoreFailed", ["big"]),
        ("Restored", ["big"]),
    ]
    assert audit[-1]["details"]["reason"] == "a test"
    restores = estate.get("restores")
    assert (restores[-1]["format"], restores[-1]["state"], restores[-2]["state"]) == ("files", "Verified", "Failed")


def test_a_folder_that_cannot_hold_all_is_told_what_it_got(estate: Estate, tmp_path: Path) -> None:
    names = ("what? a *:file", "end.", "CON\\x", "plain", "x" * 255)
    disk = builders.blank(tmp_path / "disk.raw", 8 * MIB)
    builders.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "fast_commit", disk)
    with builders.mounted(disk, kind="ext4") as root:
        for name in names:
            (root / name).write_bytes(name.encode())
        os.link(root / "plain", root / "also: plain")
        builders.run("sync", "-f", root)
        (root / "plain").write_bytes(b"plain")
        builders.run("sync", root / "plain")
        machine = estate.machine("odd", content=disk.read_bytes())
    estate.apply(clock="2026-03-02T14:00:00Z")
    shutil.rmtree(machine)
    target = builders.blank(tmp_path / "target.raw", 24 * MIB)
    builders.run("mkntfs", "-F", "-Q", target)
    with builders.mounted(target, kind="ntfs", options="windows_names") as root:
        done = estate.at("2026-03-02T15:00:00Z").json("files", "get", "odd", "/", "--to", root / "to")
        held = {path.name: path.read_bytes() for path in (root / "to").iterdir() if path.is_file()}
        assert (root / "to" / "plain").stat().st_nlink == 2
    given = {one["path"].removeprefix("/"): one["name"] for one in done["renamed"]}
    assert given == {
        "what? a *:file": "what%3F a %2A%3Afile",
        "end.": "end%2E",
        "CON\\x": "CON%5Cx",
        "also: plain": "also%3A plain",
    }
    assert held == {given.get(name, name): name.encode() for name in names} | {"also%3A plain": b"plain"}
    assert done["state"] == "Restored" and any("written in another way: 4" in note for note in done["notes"])
    assert any("its fast commits are not read" in note for note in done["notes"])


def test_documents_are_what_their_schemas_say(estate: Estate, tmp_path: Path) -> None:
    command = estate.at(START)
    for kind, words in {
        "FileList": ("ls", "alpha", "folder"),
        "FileFindings": ("find", "file*"),
        "FileVersions": ("versions", "alpha", "big"),
        "FileRestoreResult": ("get", "alpha", "folder", "--to", tmp_path),
    }.items():
        document = command.json("files", *words)
        schema = json.loads((holdfast_command.ROOT / "schemas" / "documents" / f"{kind}.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(document)
        assert document["kind"] == kind and set(document) == set(schema["properties"])


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder that everybody may read and write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_who_is_not_root_is_told_what_was_not_kept(estate: Estate, anyones: Path) -> None:
    shutil.copytree(estate.folder / "storage" / "pool", anyones / "pool")
    builders.run("chown", "-R", "65534", anyones / "pool")
    image = estate.get("images", "--client", "alpha")[0]["id"]
    words = ["files", "get", "--unit", "pool", image, "/", "--to", "to"]
    plain = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *holdfast_command.PROGRAM]
    done = subprocess.run([*plain, *words], cwd=anyones, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for said in ("owners were not kept", "device nodes were left out", "bits that run a file as its owner"):
        assert said in done.stdout
    made = (anyones / "to" / "folder" / "file1").stat()
    assert (made.st_uid, made.st_mode & 0o7777) == (65534, 0o755)
    assert not (anyones / "to" / "null").exists()
    assert "further names of a file became files of their own, for its folder lets nobody in: 1" in done.stdout
    assert [path.read_bytes()[:6] for path in (anyones / "to").glob("*/file")] == [b"of two"] * 2
