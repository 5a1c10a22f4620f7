"""Damage is told apart, is said with the next step, and blocks no restore that can succeed: real bytes, real commands."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import estate_samples
import pytest
import rot
from estate_samples import MIB, Estate

from reconciler.base import meters


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Estate, bytes, str, Path]:
    """An estate with a copy of one image on each unit, its disk, the image, and the same again to be put back."""
    folder = tmp_path_factory.mktemp("damage")
    estate, disk, image = rot.build(folder / "estate")
    shutil.copytree(estate.folder, folder / "kept")
    return estate, disk, image, folder / "kept"


@pytest.fixture
def built(kept: tuple[Estate, bytes, str, Path]) -> Iterator[tuple[Estate, bytes, str]]:
    """The estate as it was at first."""
    estate, disk, image, copied = kept
    yield estate, disk, image
    shutil.rmtree(estate.folder)
    shutil.copytree(copied, estate.folder)


def test_two_copies_that_are_damaged_in_different_places_make_one_whole_image(
    built: tuple[Estate, bytes, str], tmp_path: Path
) -> None:
    estate, disk, image = built
    # Within one stretch of a restore, and beyond.
    for place in (2 * MIB + 100, 5 * MIB + 100):
        rot.spoil_file(estate, image, "*.raw", place)
    rot.spoil_pool_block(estate, image, 3 * MIB + MIB // 2)
    estate.command.run("pool", "scrub", "pool", code=3)
    estate.command.run("restore", "alpha", "--copy", "1", "--to", tmp_path / "one", code=1)
    assert rot.states(estate) == {"fast": "Damaged", "pool": "Damaged"}
    planned = estate.command.json("restore", "alpha", "--to", tmp_path / "both", "--dry-run")
    assert [one["number"] for one in planned["copies"]] == [1, 2]
    assert "no good copy is left" in planned["copies"][0]["reason"]
    restored = estate.command.json("restore", "alpha", "--to", tmp_path / "both")
    assert (tmp_path / "both" / rot.DISK).read_bytes() == disk
    assert sum("is known to be damaged" in note for note in restored["notes"]) == 2
    got = estate.command.json("files", "get", "alpha", "/docs", "--to", tmp_path / "files")
    assert (got["files"], got["failed"]) == (8, 0)
    alone = estate.command.run("restore", "alpha", "--copy", "2", "--to", tmp_path / "two", code=1)
    assert f"damaged at offset {3 * MIB}" in alone.stderr and "without --copy all are tried" in alone.stderr
    assert "copy 1 on fast (Damaged)" in estate.command.run("explain", "image", image).stdout
    assert not (tmp_path / "two" / rot.DISK).exists()
    # A list of digests that is lost on one copy is the other one's too.
    rot.spoil_file(estate, image, "*.digests", 40)
    estate.command.run("restore", "alpha", "--to", tmp_path / "again")
    assert (tmp_path / "again" / rot.DISK).read_bytes() == disk
    # The manifests may ask for it as well as a command.
    manifest = f"""
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {{name: rescue}}
spec: {{client: alpha, target: {{folder: {tmp_path}/tree}}}}
"""
    (estate.folder / "restore.yaml").write_text(manifest)
    estate.apply(code=None)
    assert (tmp_path / "tree" / rot.DISK).read_bytes() == disk


def spoil_both(estate: Estate, image: str, place: int) -> None:
    """Damage one block on both copies, and another one on the Directory unit alone."""
    rot.spoil_file(estate, image, "*.raw", place)
    rot.spoil_pool_block(estate, image, place)
    rot.spoil_file(estate, image, "*.raw", (2 if place // MIB != 2 else 5) * MIB + 100)
    estate.command.run("pool", "scrub", "pool", code=3)


def test_what_no_copy_has_becomes_zeros_for_whoever_asks_and_is_told_by_range_and_file(
    built: tuple[Estate, bytes, str], tmp_path: Path
) -> None:
    estate, disk, image = built
    content = (estate.folder.parent / "alpha-tree" / "docs" / "file-3.bin").read_bytes()
    block = (disk.index(content) + len(content) // 2) // MIB * MIB
    spoil_both(estate, image, disk.index(content) + len(content) // 2)
    estate.command.run("restore", "alpha", "--to", tmp_path / "plain", code=1)
    assert not list((tmp_path / "plain").iterdir())
    expected = disk[:block] + bytes(MIB) + disk[block + MIB :]
    for words, where in ((("alpha",), "both"), (("alpha", "--format", "qcow2"), "packed")):
        said = estate.command.json("restore", *words, "--salvage", "--to", tmp_path / where, code=3)
        (one,) = said["disks"]
        assert (said["state"], said["missingBytes"], one["verified"]) == ("Partial", MIB, False)
        assert one["missing"] == [{"offset": block, "length": MIB}]
        lacking = {found["path"]: found["missingBytes"] for found in said["missingFiles"]}
        assert 0 < lacking["/docs/file-3.bin"] <= len(content) and "/docs/file-7.bin" not in lacking
    assert (tmp_path / "both" / rot.DISK).read_bytes() == expected
    (job, *_) = (one for one in estate.get("jobs") if one["state"] == "Partial")
    assert job["error"]["code"] == "BlocksMissing" and f"{MIB} bytes of disk {rot.DISK}" in job["error"]["message"]
    told = [one for one in estate.get("audit") if one["event"] == "Salvaged"]
    assert len(told) == 2 and "/docs/file-3.bin" in told[0]["details"]["missingFiles"]
    # Files that are whole go on.
    got = estate.command.json("files", "get", "alpha", "/docs", "--to", tmp_path / "files", code=3)
    assert got["failed"] == len(lacking) and got["files"] == 8 - len(lacking)
    assert not (tmp_path / "files" / "docs" / "file-3.bin").exists()
    # One copy alone lacks more; a manifest asks as a command does, once.
    folder = rot.folder_of(estate, image).parents[1]
    alone = estate.command.json("restore", "--unit", folder, image, "--salvage", "--to", tmp_path / "alone", code=3)
    assert alone["missingBytes"] == 2 * MIB
    # What lies on a unit that is away is not missing, nor is it to be made up by zeros.
    away = folder.rename(folder.with_name("away"))
    for words, hint in (((), "bring that unit back"), (("--salvage",), "bring it back")):
        assert hint in estate.command.run("restore", "alpha", *words, "--to", tmp_path / "none", code=1).stderr
    assert not list((tmp_path / "none").iterdir())
    away.rename(folder)
    manifest = f"""
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {{name: rescue}}
spec: {{client: alpha, salvage: true, target: {{folder: {tmp_path}/tree}}}}
"""
    (estate.folder / "restore.yaml").write_text(manifest)
    estate.apply(code=3)
    assert (tmp_path / "tree" / rot.DISK).read_bytes() == expected
    planned = estate.command.json("plan", estate.folder)
    assert not [one for one in planned["actions"] if one["type"] == "Restore"]


def known_to_be_damaged(estate: Estate, folder: Path) -> None:
    """Somebody reads each copy alone."""
    for number in ("1", "2"):
        estate.command.run("restore", "alpha", "--copy", number, "--to", folder / number, code=1)
    assert rot.states(estate) == {"fast": "Damaged", "pool": "Damaged"}


def test_copies_that_are_damaged_in_different_places_make_each_other_whole_and_what_none_has_is_told(
    built: tuple[Estate, bytes, str], tmp_path: Path
) -> None:
    estate, disk, image = built
    rot.spoil_file(estate, image, "*.raw", 2 * MIB + 100)
    rot.spoil_pool_block(estate, image, 3 * MIB + MIB // 2)
    known_to_be_damaged(estate, tmp_path)
    planned = {one["address"]: one for one in estate.command.json("plan", estate.folder)["actions"]}
    land, dedupe = (planned[f"duplicate/{image}/{name}"] for name in ("land", "dedupe"))
    assert (land["state"], land["reason"]["code"], land["copy"]) == ("Due", "Salvaging", None)
    assert (dedupe["state"], dedupe["after"]) == ("Waiting", [land["address"]])
    told = estate.command.run("explain", "image", image).stdout
    assert "copy of land on fast: no copy is good" in told and "copy of dedupe on pool" in told
    # Killed where the new one is proven and has no name yet, and where it has its name and nobody heard of it.
    for point in ("directory.before-rename", "directory.after-rename"):
        estate.command.crashing(point).run("apply", estate.folder, "--yes", code=-signal.SIGKILL)
        estate.command.run("restore", "alpha", "--to", tmp_path / point)
        assert (tmp_path / point / rot.DISK).read_bytes() == disk
    estate.apply()
    assert rot.states(estate) == {"fast": "Complete", "pool": "Complete"}
    assert damage(estate, "fast", image) == damage(estate, "pool", image) == []
    assert [path.name for path in rot.folder_of(estate, image).parent.iterdir()] == [image]

    # The other way round, with one block that is on neither.
    spoil_both(estate, image, 3 * MIB + MIB // 2)
    known_to_be_damaged(estate, tmp_path)
    estate.apply(code=3)
    assert rot.states(estate) == {"fast": "Damaged", "pool": "Damaged"}
    failed = next(one for one in estate.get("jobs") if one["state"] == "Failed" and one["type"] == "Duplicate")
    assert failed["error"]["code"] == "BlocksMissing"
    planned = {one["address"]: one for one in estate.command.json("plan", estate.folder)["actions"]}
    said = planned[land["address"]]
    assert (said["state"], said["reason"]["code"]) == ("Blocked", "BlocksMissing")
    assert f"{MIB} bytes of disk {rot.DISK} in 1 range, the first at {3 * MIB}" in said["reason"]["message"]
    assert "restore --salvage" in said["reason"]["message"]


def test_a_folder_that_is_read_from_disks_says_which_copy_could_not_be(built: tuple[Estate, bytes, str]) -> None:
    estate, _, image = built
    # Where the file system begins; whoever does not know the files meets it once the copy is open.
    rot.spoil_file(estate, image, "*.raw", 1100)
    shutil.rmtree(estate.state / "cache")
    listed = estate.command.json("files", "ls", "alpha", "/docs")
    assert listed["source"] == "Image" and len(listed["items"]) == 8
    assert any("copy 1 on fast cannot be read" in note for note in listed["notes"])


def test_a_reader_that_is_killed_leaves_no_index_of_its_pool(built: tuple[Estate, bytes, str], tmp_path: Path) -> None:
    estate, _, image = built
    for name in ("old", "young", "used"):
        (tmp_path / f"holdfast-index-{name}").mkdir()
        (tmp_path / f"holdfast-index-{name}" / "users").touch()
    for name in ("old", "used"):
        os.utime(tmp_path / f"holdfast-index-{name}", (0, 0))
    killed = estate.command.crashing("restore.reading").using(TMPDIR=str(tmp_path))
    with (tmp_path / "holdfast-index-used" / "users").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        pool = estate.folder / "storage" / "pool"
        killed.run("restore", "--unit", pool, image, "--to", tmp_path / "out", code=-signal.SIGKILL)
    # What an earlier one left while it was made goes as well, unless somebody uses it or may still be making it.
    assert {path.name for path in tmp_path.iterdir() if path.name != "out"} == {
        "holdfast-index-young", "holdfast-index-used",
    }  # fmt: skip


def damage(estate: Estate, unit: str, image: str) -> list[str]:
    """The parts of an image on a unit that prove false."""
    with estate_samples.unit_of(estate, unit) as opened:
        return [one.part for one in opened.verify(image, meter=meters.Meter())]


def test_an_index_that_rots_alone_is_no_damaged_copy_and_is_made_anew(
    built: tuple[Estate, bytes, str], tmp_path: Path
) -> None:
    estate, _, image = built
    # From the other copy; a page, then the list of the pages in both its places, which stops collections.
    for listing in (False, True):
        rot.spoil_pool_index(estate, image, listing=listing)
        said = estate.command.json("pool", "scrub", "pool", code=3)
        assert (said["damagedCopies"], said["indexedCopies"]) == ([], [f"{image}/2"])
        assert said["ranges"][0]["attachment"] is True
        assert damage(estate, "pool", image) == []
        estate.command.run("pool", "collect", "pool")
    # From the disks, where no other copy has it whole; no scrub has found the false segment yet.
    rot.spoil_pool_index(estate, image)
    rot.spoil_file(estate, image, "attachment-files.zst", 30)
    shutil.rmtree(estate.state / "cache")
    found = estate.command.run("files", "find", "file-3.bin")
    assert "file-3.bin" not in found.stdout and f"the files of {image} cannot be searched" in found.stderr
    again = estate.command.json("files", "find", "file-3.bin")
    assert again["notSearched"] == [image]
    assert "cannot be searched" not in estate.command.run("files", "find", "file-3.bin").stderr
    assert estate.command.json("files", "ls", "alpha", "/docs")["source"] == "Image"
    assert len(estate.command.json("files", "ls", "alpha", "/docs")["items"]) == 8
    said = estate.command.json("pool", "scrub", "pool", code=3)
    assert said["indexedCopies"] == [f"{image}/2"]
    assert [one["path"] for one in estate.command.json("files", "find", "file-3.bin")["items"]] == ["/docs/file-3.bin"]
    assert estate.command.json("files", "ls", "alpha", "/docs")["source"] == "Index"
    assert damage(estate, "fast", image) == ["attachment files"]
    # A proof of the content does the same on a unit that nobody scrubs.
    proving = (
        (estate.folder / "lifecycle.yaml")
        .read_text()
        .replace("storage: fast,", "storage: fast, verify: {content: 1d},")
    )
    (estate.folder / "lifecycle.yaml").write_text(proving)
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=25)).strftime("%Y-%m-%dT%H:%M:%SZ")
    estate.apply(clock=later)
    (job,) = (one for one in estate.get("jobs") if one["type"] == "Verify" and one["image"] == image)
    assert "its index of files was damaged and made anew" in estate.command.run("logs", job["id"]).stdout
    assert damage(estate, "fast", image) == []
    assert {one["state"] for one in estate.get("copies")} == {"Complete"}
    assert {one["details"]["from"] for one in estate.get("audit") if one["event"] == "IndexMade"} == {
        "fast", "its disks", "pool",
    }  # fmt: skip


def test_a_copy_of_an_image_whose_index_is_rotten_has_an_index_and_a_newer_image_that_is_passed_over_is_named(
    tmp_path: Path,
) -> None:
    estate = estate_samples.build(tmp_path / "estate", duplicate="yes", retention="{type: Forever}")
    disk = rot.guest(estate, files=4)
    pool = estate.folder / "storage" / "pool"
    pool.rename(estate.folder / "away")
    estate.apply(code=None)
    (first,) = (one["id"] for one in estate.get("images"))
    rot.spoil_file(estate, first, "attachment-files.pages", 5)
    (estate.folder / "away").rename(pool)
    estate.apply()
    assert rot.states(estate) == {"fast": "Complete", "pool": "Complete"}
    assert damage(estate, "pool", first) == []
    with estate_samples.unit_of(estate, "pool") as unit, contextlib.closing(unit.open(first)) as stored:
        assert stored.attachments() == ("files",)

    with (estate.folder / "machines" / "alpha" / rot.DISK).open("r+b") as changed:
        changed.write(b"changed" * 10)
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=25)).strftime("%Y-%m-%dT%H:%M:%SZ")
    estate.apply(clock=later)
    (second,) = (one["id"] for one in estate.get("images") if one["id"] != first)
    rot.spoil_file(estate, second, "*.raw", 10)
    rot.spoil_pool_block(estate, second, 10)
    estate.command.run("restore", "alpha", "--to", tmp_path / "none", code=1)
    restored = estate.command.json("restore", "alpha", "--to", tmp_path / "older")
    assert restored["image"] == first and (tmp_path / "older" / rot.DISK).read_bytes() == disk
    assert f"image {second}" in restored["notes"][0] and f"--image {second}" in restored["notes"][0]
    assert len(estate.command.json("files", "ls", "alpha", "/docs")["items"]) == 4
    estate.command.run("restore", "alpha", "--image", second, "--to", tmp_path / "newer", code=1)
