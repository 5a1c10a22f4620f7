"""A dump fills a fresh catalog with everything the lost one knew; a unit keeps the newest two, each of them whole."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import catalog_samples as samples
import pytest
import sqlalchemy as sa
import zstandard

from reconciler.base import errors, files
from reconciler.catalog import audits, database, dumps, images, inventories, jobs, leases, migrations, requests, tables


@pytest.fixture
def full(db: database.Database, state_folder: Path) -> database.Database:
    """A catalog with something in every table."""
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"))
    samples.see(db, "oblVM1", "Österreich")
    for number in range(3):
        samples.image(db, f"img-{number}")
        samples.duplicate(db, f"img-{number}")
    images.begin_image(db, samples.draft("img-9"))
    samples.expire(db, "img-0", 1)
    samples.apply(db, samples.policy(), samples.lifecycle("gold", samples.operation("land")), samples.unit("fast"))
    unit = inventories.KnownUnit(name="fast", id="u-1", type="Directory", path="/srv/fast")
    inventories.learn_unit(db, unit, samples.NOW, "tester")
    failed = samples.enqueue(db, "backup/1", image="img-1", copy=1)
    jobs.log(db, failed, "a line that stays behind", samples.NOW)
    samples.end(db, failed, "Failed")
    samples.enqueue(db, "restore/1", type="Restore", image="img-1", copy=2)
    requests.add(db, "Backup", {"policy": "obl"}, samples.NOW, "me")
    leases.acquire(state_folder, db, samples.NOW, "me", "/srv/estate").release()
    decide(db)
    return db


def decide(db: database.Database) -> None:
    """Rows of what people decided."""
    ruled = {"by": "me", "at": samples.NOW, "reason": "case 7"}
    with db.writing() as connection:
        connection.execute(
            tables.HOLDS.insert().values(
                name="case-7", clients=["diskimages:/srv/oblVM1"], images=[], since=None, until=None, reason="case 7",
                at=samples.NOW, words=["clients/oblVM1"], by="tester", released=None,
            )
        )  # fmt: skip
        connection.execute(tables.RULINGS.insert().values(kind="Hold", object="img-1", **ruled))
        connection.execute(
            tables.APPROVALS.insert().values(digest="blake3:0", copies=3, until=samples.later(days=1), **ruled)
        )
        connection.execute(
            tables.RELEASES.insert().values(
                lifecycle="gold", operation="land", before="null", client_id="diskimages:/srv/oblVM1", up_to=3,
                digest="blake3:0", by="ann", at=samples.NOW,
            )
        )  # fmt: skip
        connection.execute(
            tables.ALARMS.insert().values(
                key="Overdue/obl/oblvm1", severity="Critical", title="late", message="Next: look", since=samples.NOW,
                told_at=samples.NOW, over_at=None, ears={"json#1": {"toldAt": 1, "failures": 0, "triedAt": None}},
            )
        )  # fmt: skip
        connection.execute(
            tables.SNAPSHOTS.insert().values(
                id="7f", vcenter="lab", client_id="vsphere:1", machine="vm1", place="vm-1", job="j-000001",
                reference=None, readers=["host:1:boot.1:-"], since=samples.NOW,
            )
        )  # fmt: skip

        connection.execute(
            tables.VERIFICATIONS.insert().values(
                image_id="img-1", copy_number=1, kind="Boot", state="Passed", at=samples.NOW, message="it came up",
                details={"seconds": 4.5}, job="j-000001",
            )
        )  # fmt: skip
        connection.execute(
            tables.TRIALS.insert().values(
                image_id="img-0", copy_number=1, kind="Boot", client_id=samples.CLIENT, state="Failed", at=samples.NOW,
                message="no prompt", details={"seconds": 4.5}, job="j-000001",
            )
        )  # fmt: skip
        connection.execute(
            tables.RESTORES.insert().values(
                name="drill", digest="blake3:0", state="Verified", client_id="diskimages:/srv/oblVM1", image="img-1",
                copy_number=2, unit="pool", target="/srv/r", format="raw", by="me", reason="case 7", job=None,
                started_at=samples.NOW, finished_at=samples.NOW, message="", disks=[],
            )
        )  # fmt: skip


def contents(db: database.Database) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table but job logs."""
    with db.reading() as connection:
        return {
            name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for name, table in tables.METADATA.tables.items()
            if name != "job_lines"
        }


def test_a_dump_loads_into_a_fresh_catalog_equal_to_the_lost_one(
    full: database.Database, tmp_path: Path, places: Callable[[], str]
) -> None:
    before = contents(full)
    assert all(before.values()), "something in every table"
    data = dumps.dump(full)
    again = database.open_writing(places())
    assert again.id != full.id
    assert dumps.load_dump(again, data) == sum(len(rows) for rows in before.values())
    assert contents(again) == before
    assert again.id == full.id, "the units' owner is back"
    assert list(images.series(again)) == list(images.series(full))
    assert inventories.applied(again) == inventories.applied(full)
    assert dumps.dump(again) == data
    assert samples.image(again, "img-new") == 5, "numbers go on"
    assert samples.enqueue(again, "next") == "j-000003"
    assert jobs.logs(again, "j-000001") == ()
    with pytest.raises(errors.CatalogError, match="append-only"), again.writing() as connection:
        connection.execute(tables.AUDIT.delete())
    again.close()


def test_a_dump_is_one_moment(full: database.Database) -> None:
    assert dumps.dump(full) == dumps.dump(full)


def test_a_catalog_in_use_is_not_overwritten(full: database.Database) -> None:
    before = contents(full)
    with pytest.raises(errors.CatalogError, match="in use"):
        dumps.load_dump(full, dumps.dump(full))
    assert contents(full) == before


def test_a_damaged_dump_fills_nothing(full: database.Database, places: Callable[[], str]) -> None:
    data = dumps.dump(full)
    lines = zstandard.ZstdDecompressor().stream_reader(data).readall().splitlines(keepends=True)
    pack = zstandard.ZstdCompressor().compress
    spoiled = {
        "cut": data[: len(data) // 2],
        "flipped": data[:200] + bytes([data[200] ^ 0x55]) + data[201:],
        "empty": b"",
        "text": b"hello",
        "headless": pack(b"".join(lines[1:])),
        "footless": pack(b"".join(lines[:-1])),
        "short": pack(b"".join(lines[:-2] + lines[-1:])),
        "foreign": pack(lines[0] + b'{"table":"theirs","columns":[]}\n' + lines[-1]),
        "more": pack(b"".join(lines) + b"[]\n"),
    }
    again = database.open_writing(places())
    id, empty = again.id, contents(again)
    for damage, spoilt in spoiled.items():
        with pytest.raises(errors.CatalogError, match="another unit's"):
            dumps.load_dump(again, spoilt)
        again.forget_id()
        assert (again.id, contents(again)) == (id, empty), damage
    assert not contents(again)["images"]
    again.close()


def test_a_dump_of_a_newer_version_is_refused(
    full: database.Database, tmp_path: Path, places: Callable[[], str]
) -> None:
    plain = zstandard.ZstdDecompressor().stream_reader(dumps.dump(full)).readall()
    again = database.open_writing(places())
    schema = f'"schema":"{migrations.HEAD}"'.encode()
    for old, new in ((b'"formatVersion":1', b'"formatVersion":2'), (schema, b'"schema":"9999"')):
        with pytest.raises(errors.FormatTooNew):
            dumps.load_dump(again, zstandard.ZstdCompressor().compress(plain.replace(old, new, 1)))
    again.close()


def test_a_unit_keeps_the_newest_two(tmp_path: Path) -> None:
    for number in range(1, 5):
        dumps.write_dump(tmp_path, b"dump %d" % number)
    assert [path.read_bytes() for path in dumps.list_dumps(tmp_path)] == [b"dump 3", b"dump 4"]
    assert sorted(path.name for path in (tmp_path / "catalog").iterdir()) == [
        "dump-00000003.jsonl.zst",
        "dump-00000004.jsonl.zst",
    ]
    assert dumps.list_dumps(tmp_path / "empty") == ()


def test_a_crash_while_a_dump_is_written_costs_nothing(full: database.Database, tmp_path: Path) -> None:
    data = dumps.dump(full)
    dumps.write_dump(tmp_path, data)
    location = full.location
    full.close()
    process = samples.child("dump", location, str(tmp_path), HOLDFAST_TEST="1", HOLDFAST_CRASH="dump.written")
    assert samples.finish(process) == -signal.SIGKILL
    (kept,) = dumps.list_dumps(tmp_path)
    assert kept.read_bytes() == data
    left = [path.name for path in (tmp_path / "catalog").iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)]
    assert len(left) == 1
    dumps.write_dump(tmp_path, data)
    assert len(list((tmp_path / "catalog").iterdir())) == 2, "what the crash left is gone"


def test_an_image_being_written_beside_the_dumps_is_none_of_them(full: database.Database, tmp_path: Path) -> None:
    """A Directory keeps the images of a machine named ``catalog``, such as the catalog itself, in the same folder."""
    image = tmp_path / "catalog" / f"{files.TEMPORARY_PREFIX}catalog-20260301T120000Z-abcdef-01234567"
    image.mkdir(parents=True)
    dumps.write_dump(tmp_path, dumps.dump(full))
    assert dumps.is_current(tmp_path, full.id, dumps.mark(full))
    assert image.is_dir()


def test_a_dump_is_current_until_something_changes(full: database.Database, tmp_path: Path) -> None:
    assert not dumps.is_current(tmp_path, full.id, dumps.mark(full)), "a unit without a dump is behind"
    dumps.write_dump(tmp_path, dumps.dump(full))
    samples.see(full, "oblVM1", "Österreich")
    inventories.see_machines(full, "obl", [samples.machine("oblVM1")], samples.later(hours=1))
    running = jobs.live(full)[0].id
    jobs.start(full, running, samples.NOW)
    assert dumps.is_current(tmp_path, full.id, dumps.mark(full))
    assert not dumps.is_current(tmp_path, "another catalog", dumps.mark(full))
    for change in (
        lambda: samples.image(full, "img-10"),
        lambda: samples.duplicate(full, "img-10"),
        lambda: images.mark_state(full, "img-10", 1, "Lost", samples.NOW, "t", "m"),
        lambda: samples.expire(full, "img-10", 2),
        lambda: samples.apply(full, samples.policy(priority=7)),
        lambda: samples.see(full, "new machine"),
    ):
        change()
        assert not dumps.is_current(tmp_path, full.id, dumps.mark(full))
        dumps.write_dump(tmp_path, dumps.dump(full))
        assert dumps.is_current(tmp_path, full.id, dumps.mark(full))
    assert audits.entries(full, limit=1)[0].number == dumps.mark(full)
