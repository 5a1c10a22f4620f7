"""Copies that are damaged, gone or unreachable while they are read: the next one goes on at the same place."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from fault_estates import MIB, Estate

from reconciler.base import errors, times
from reconciler.operations import failovers
from reconciler.storage import opening, units


def newest(estate: Estate) -> str:
    """The newest image of vm1; a copy of it lies on each unit."""
    found = max((one for one in estate.items("images") if one["client"] == "vm1"), key=lambda one: int(one["sequence"]))
    assert found["copies"] == [1, 2]
    return str(found["id"])


def stored_file(estate: Estate, image: str) -> Path:
    """The file of vm1's system disk in the Directory unit that holds its first block."""
    (folder,) = estate.paths["fast"].glob(f"vm1/{image}")
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"spoilt")


def source(number: int, unit: str, path: Path, image: str) -> failovers.Source:
    def stored() -> units.StoredImage:
        with contextlib.closing(opening.open_folder(path)) as opened:
            return opened.open(image)

    return failovers.Source(number=number, unit=unit, path=path, open=stored)


def sources(estate: Estate, image: str) -> list[failovers.Source]:
    return [source(number, *place, image) for number, place in enumerate(estate.paths.items(), start=1)]


def states(estate: Estate, image: str) -> dict[int, str]:
    return {one["number"]: one["state"] for one in estate.items("copies") if one["image"] == image}


def test_a_damaged_copy_is_left_on_the_way_recorded_and_told(grown: Estate, tmp_path: Path) -> None:
    image = newest(grown)
    assert grown.ask("restore", "vm1", "--image", image, "--to", tmp_path / "planned", "--dry-run")["copy"] == 1
    spoil(stored_file(grown, image), MIB + 10)
    refused = grown.command.run("restore", "vm1", "--image", image, "--copy", "1", "--to", tmp_path / "one", code=1)
    assert "damaged" in refused.stderr
    assert not (tmp_path / "one" / "system.img").exists()
    with sqlite3.connect(grown.folder / ".holdfast" / "catalog.sqlite") as catalog:  # as if nobody had seen it yet
        catalog.execute("update copies set state = 'Complete' where state = 'Damaged'")
    document = grown.ask_process("restore", "vm1", "--image", image, "--to", tmp_path / "all", "--reason", "drill")
    assert (document["state"], document["copy"]) == ("Verified", 1)
    assert any("copy 1 on fast cannot be read" in note for note in document["notes"])
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "all").iterdir()}
    (time,) = [times.parse(one["time"]) for one in grown.items("images") if one["id"] == image]
    assert found == {
        "system.img": grown.contents_at(time)["vm1"]["system.img"],
        "data.img": grown.contents_at(time)["vm1"]["data.raw"],
    }
    assert states(grown, image) == {1: "Damaged", 2: "Complete"}
    job = max(grown.items("jobs"), key=lambda one: str(one["id"]))
    assert "copy 1 on fast" in grown.say("logs", job["id"])[1]
    audited = {one["event"]: one for one in grown.items("audit") if one["object"] == image}
    assert audited["Restored"]["details"]["reason"] == "drill"
    assert audited["RestoreFailed"]["details"]["code"] == "ImageDamaged"


@pytest.mark.parametrize("gone", ["fast", "pool"])
def test_a_unit_that_goes_while_it_is_read_is_no_damage(grown: Estate, gone: str) -> None:
    image, told = newest(grown), list[failovers.Failure]()
    order = sorted(sources(grown, image), key=lambda one: one.unit != gone)
    with contextlib.closing(failovers.FailoverImage(image, order, told.append)) as stored:
        disk = stored.disk("system.img")
        beginning = bytes(disk.pread(0, 4096))
        # What is open stays readable, so the copy is asked for a disk that nobody opened yet.
        shutil.rmtree(grown.paths[gone])
        other = bytes(stored.disk("data.raw").pread(0, 4096))
        assert (beginning, other) == (bytes(disk.pread(0, 4096)), other)
    assert [(one.source.unit, one.finding) for one in told] == [(gone, None)]


def test_blocks_that_are_good_in_different_copies_make_a_whole_disk(grown: Estate) -> None:
    image, told = newest(grown), list[failovers.Failure]()
    order = sources(grown, image)
    with contextlib.closing(failovers.FailoverImage(image, order, told.append)) as stored:
        expected = bytes(stored.disk("system.img").pread(0, 3 * MIB))
    spoil(stored_file(grown, image), MIB + 10)
    copied = grown.root / "second"
    shutil.copytree(grown.paths["fast"], copied)
    spoil(copied / stored_file(grown, image).relative_to(grown.paths["fast"]), 10)
    with stored_file(grown, image).open("r+b") as file:
        file.seek(MIB + 10)
        file.write(expected[MIB + 10 : MIB + 16])
    spoil(stored_file(grown, image), 2 * MIB + 10)
    order[1] = source(2, "second", copied, image)
    with contextlib.closing(failovers.FailoverImage(image, order, told.append)) as stored:
        disk = stored.disk("system.img")
        found = b"".join(bytes(disk.pread(offset, MIB)) for offset in (2 * MIB, 0, MIB))
        assert found == expected[2 * MIB :] + expected[:MIB] + expected[MIB : 2 * MIB]
    assert {(one.source.unit, one.finding) for one in told} == {("fast", "Damaged"), ("second", "Damaged")}


def test_no_copy_that_has_the_block_is_the_error_of_the_preferred_one(grown: Estate) -> None:
    image, told = newest(grown), list[failovers.Failure]()
    spoil(stored_file(grown, image), 10)
    only = sources(grown, image)[:1]
    with contextlib.closing(failovers.FailoverImage(image, only, told.append)) as stored:
        with pytest.raises(errors.ImageDamaged, match="offset 0 is damaged"):
            stored.disk("system.img").pread(0, MIB)
        with pytest.raises(errors.NotFound):
            stored.disk("nothing.img")
    assert [one.finding for one in told] == ["Damaged"]
