"""Restore: any image, any copy, any format, and with nothing left but a unit's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
from pathlib import Path

import estate_samples
import pytest
from estate_samples import START, Estate

from reconciler.base import meters, times
from reconciler.catalog import database, jobs, machines, workers
from reconciler.controller import choices
from reconciler.storage import opening
from reconciler.storage.dedupe import pools

RESTORE = """
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {name: again}
spec: {client: alpha, target: {folder: %s}, overwrite: true}
"""


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Estate, dict[str, bytes]]:
    """Two images of one machine of two disks, a day apart, two copies each; and what its system disk held."""
    estate = estate_samples.build(tmp_path_factory.mktemp("aged"), duplicate="yes", type="Incremental, fullEvery: 30d")
    estate.machine("alpha", disks=("system", "data"))
    disk = estate.folder / "machines" / "alpha" / "system.img"
    held = {"first": disk.read_bytes()}
    estate.apply(clock=START)
    with disk.open("r+b") as file:
        file.seek(300_000)
        file.write(b"changed" * 1000)
    held["second"] = disk.read_bytes()
    estate.apply(clock="2026-03-03T12:30:00Z")
    return estate, held


def test_by_image_time_and_copy(aged: tuple[Estate, dict[str, bytes]], tmp_path: Path) -> None:
    estate, held = aged
    first, second = estate.get("images")
    assert (first["type"], second["type"], second["parent"]) == ("Full", "Incremental", first["id"])
    restore = ("restore", "alpha", "--disk", "system.img")
    for number, (arguments, expected, copy) in enumerate(
        [
            ((), "second", 1),
            (("--image", first["id"]), "first", 1),
            (("--as-of", "2026-03-03T00:00:00Z"), "first", 1),
            (("--copy", "2"), "second", 2),
        ]
    ):
        to = tmp_path / str(number)
        document = estate.command.json(*restore, "--to", to, *arguments)
        assert (to / "system.img").read_bytes() == held[expected]
        assert [path.name for path in to.iterdir()] == ["system.img"]
        assert (document["copy"], document["state"]) == (copy, "Verified")
    estate.command.run(*restore, "--to", tmp_path / "none", "--as-of", "2026-03-01T00:00:00Z", code=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("format", "subformat"),
    [("qcow2", None), ("vmdk", None), ("vmdk", "flat"), ("vmdk", "streamOptimized")],
    ids=["qcow2", "vmdk", "flat", "stream"],
)
def test_into_disk_formats(
    aged: tuple[Estate, dict[str, bytes]], tmp_path: Path, format: str, subformat: str | None
) -> None:
    estate, held = aged
    kind = () if subformat is None else ("--subformat", subformat)
    words = ("restore", "alpha", "--disk", "system.img", "--to", tmp_path, "--format", format, *kind)
    document = estate.command.json(*words)
    assert [Path(disk["path"]).name for disk in document["disks"]] == [f"system.{format}"]
    assert document["subformat"] == (subformat or ("sparse" if format == "vmdk" else None))
    subprocess.run(
        ["qemu-img", "convert", "-f", format, "-O", "raw", tmp_path / f"system.{format}", tmp_path / "raw"], check=True
    )
    assert (tmp_path / "raw").read_bytes() == held["second"]


def test_dry_run_writes_nothing_and_force_overwrites(aged: tuple[Estate, dict[str, bytes]], tmp_path: Path) -> None:
    estate, held = aged
    to = tmp_path / "out"
    before = estate_samples.tree(estate.folder)
    planned = estate.command.json("restore", "alpha", "--to", to, "--dry-run")
    assert planned["state"] == "Planned"
    assert [(copy["number"], copy["unit"]) for copy in planned["copies"]] == [(1, "fast"), (2, "pool")]
    assert planned["copies"][0]["reason"].startswith("the first good copy")
    assert planned["neededBytes"] == planned["dataBytes"] == 2 << 20
    assert planned["freeBytes"] > planned["neededBytes"]
    said = estate.command.run("restore", "alpha", "--to", to, "--dry-run").stdout
    assert "from copy 2 on pool: read where the ones before it fail" in said and "2.00 MiB of data" in said
    assert not to.exists()
    assert estate_samples.tree(estate.folder) == before
    to.mkdir()
    (to / "system.img").write_bytes(b"mine")
    estate.command.run("restore", "alpha", "--to", to, code=4)
    assert [path.name for path in to.iterdir()] == ["system.img"]
    made = estate.command.json("restore", "alpha", "--to", to, "--force")["disks"]
    assert all(0 < disk["readBackBytes"] <= disk["sizeBytes"] for disk in made)
    made = estate.command.json("restore", "alpha", "--to", to, "--force", "--read-back")["disks"]
    assert all(disk["readBackBytes"] == disk["sizeBytes"] for disk in made)
    assert (to / "system.img").read_bytes() == held["second"]


def test_a_machine_is_not_written_over_while_it_is_backed_up(aged: tuple[Estate, dict[str, bytes]]) -> None:
    estate, held = aged
    words = ("restore", "alpha", "--to", estate.folder / "machines" / "alpha", "--force")
    with contextlib.closing(database.open_writing(str(estate.state / "catalog.sqlite"))) as db:
        (client,) = machines.clients(db)
        job = jobs.enqueue(
            db, address="backup/daily/alpha@x", type="Backup", attempt=1, worker=workers.this(),
            now=times.parse(START), client_id=client,
        )  # fmt: skip
        said = estate.command.run(*words, code=1).stderr
        assert f"job {job} (backup/daily/alpha@x) is at the machine" in said and f"holdfast cancel {job}" in said
        jobs.finish(
            db, job, state="Cancelled", error=None, reading=meters.Reading(), wall_seconds=1, now=times.parse(START)
        )
    estate.command.run(*words)
    assert (estate.folder / "machines" / "alpha" / "system.img").read_bytes() == held["second"]
    assert [row["address"].endswith("/in-place") for row in estate.get("jobs") if row["type"] == "Restore"][-1:] == [
        True
    ]


def test_one_disk_that_is_in_the_way_leaves_nothing_of_the_others(
    aged: tuple[Estate, dict[str, bytes]], tmp_path: Path
) -> None:
    estate, _ = aged
    (tmp_path / "system.img").write_bytes(b"mine")
    refused = estate.command.run("restore", "alpha", "--to", tmp_path, "--reason", "too soon", code=4)
    assert "--force" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["system.img"]
    entry = estate.get("audit")[-1]
    assert (entry["event"], entry["details"]["code"], entry["details"]["reason"]) == (
        "RestoreFailed", "TargetExists", "too soon",
    )  # fmt: skip
    estate.command.run("restore", "alpha", "--to", tmp_path, "--subformat", "flat", code=64)
    estate.command.run("restore", "alpha", "--to", tmp_path, "--format", "vmdk", "--subformat", "thin", code=64)


def test_from_a_unit_alone_and_adoption_after_the_state_was_lost(
    aged: tuple[Estate, dict[str, bytes]], tmp_path: Path
) -> None:
    estate, held = aged
    known = [image["id"] for image in estate.get("images")]
    alone = tmp_path / "alone"
    for unit in ("fast", "pool"):
        shutil.copytree(estate.folder / "storage" / unit, alone / unit)
        document = estate.command.using(folder=tmp_path).json(
            "restore", "--unit", alone / unit, known[1], "--to", tmp_path / f"from-{unit}"
        )
        assert document["state"] == "Verified"
        assert (tmp_path / f"from-{unit}" / "system.img").read_bytes() == held["second"]

    # A Restore that was made, and whose disk has been at work since.
    target = tmp_path / "work"
    target.mkdir()
    (target / "system.img").write_bytes(b"of today")
    (estate.folder / "again.yaml").write_text(RESTORE % target)
    shutil.rmtree(estate.state)
    late = "2026-03-30T12:00:00Z"
    estate.at(late).run("apply", ".", "--yes", code=None)
    assert estate.get("images") == []  # nothing is written onto what another catalog owns
    for unit in ("fast", "pool"):
        estate.at(late).run("unit", "adopt", unit, code=64)
        said = estate.at(late).json("unit", "adopt", unit, "--yes")["message"]
        assert ("Restore/again overwrites" in said) is (unit == "fast")
    assert [image["id"] for image in estate.get("images")] == known
    # Fixed 7d has long passed, but what was imported expires only after an approval.
    estate.at(late).run("apply", ".", "--yes", code=None)
    copies = [copy for copy in estate.at(late).json("get", "copies")["items"] if copy["image"] in known]
    assert [(copy["unit"], copy["state"]) for copy in copies] == [("fast", "Complete"), ("pool", "Complete")] * 2
    assert (target / "system.img").read_bytes() == b"of today"
    restored = tmp_path / "again"
    estate.at(late).run("restore", "alpha", "--image", known[0], "--to", restored)
    assert (restored / "system.img").read_bytes() == held["first"]


def test_pool_collect_and_check(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "alpha", storage="pool")
    estate.apply()
    assert estate.command.json("pool", "collect", "pool")["details"]["freedBytes"] == 0
    assert estate.command.json("pool", "check", "pool")["done"] is True
    container = max((estate.folder / "storage" / "pool").rglob("*"), key=lambda path: path.stat().st_size)
    with container.open("r+b") as file:
        file.seek(container.stat().st_size // 2)
        file.write(b"damage")
    done = estate.command.run("pool", "check", "pool", "-o", "json", code=1)
    assert done.stdout == ""
    assert "damaged" in done.stderr


def test_an_image_that_was_read_leaves_nothing_behind_in_its_process(
    aged: tuple[Estate, dict[str, bytes]], tmp_path: Path
) -> None:
    estate, _ = aged
    pool = tmp_path / "pool"
    shutil.copytree(estate.folder / "storage" / "pool", pool)
    db = database.open_reading(str(estate.state / "catalog.sqlite"))
    assert db is not None
    choice = choices.choose(db, "alpha", image=None, as_of=None, copy=2, now=times.parse(START))
    db.close()
    choice = dataclasses.replace(choice, copies=(dataclasses.replace(choice.copies[0], path=pool),))
    with (
        contextlib.closing(choice.open(None, pytest.fail)) as stored,
        contextlib.closing(stored.disk("system.img")) as disk,
    ):
        disk.pread(0, 4096)
    # Whoever still held the pool would take another one in its place for it.
    shutil.rmtree(pool)
    pool.mkdir()
    opening.prepare(opening.declared("pool", "DedupePool", str(pool), None, None), "somebody")
    with contextlib.closing(opening.open_folder(pool)) as unit:
        assert isinstance(unit, pools.DedupePool) and unit.stats(meter=meters.Meter()).containers == 0
