"""``hack/make-catalog``: what it writes many at a time is what the product writes one by one."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import catalog_samples as samples
import pytest
import sqlalchemy as sa

from reconciler.base import meters, times
from reconciler.catalog import database, images, imports, jobs, tables

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "hack"))

import catalog_rows  # noqa: E402
import make_catalog  # noqa: E402

NOW = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)
SLOT = samples.NOW.replace(microsecond=0)
STEPS = (
    catalog_rows.Step(operation="land", unit="fast", chained=True),
    catalog_rows.Step(operation="dedupe", unit="pool", chained=False),
)


def night(**fields: Any) -> catalog_rows.Night:
    """One backup of oblVM1 and its duplicate."""
    plain: dict[str, Any] = {
        "image": "oblvm1-20261123T210000Z-abcdef", "client": samples.CLIENT, "slug": "oblvm1", "policy": "obl",
        "schedule": "nightly", "lifecycle": "gold", "owed": "", "type": "Full", "parent": None, "revision": "main@sha1:1",
        "slot": catalog_rows.number(SLOT), "frozen": catalog_rows.number(samples.NOW),
        "done": catalog_rows.number(samples.later(seconds=30)), "sequence": 1, "job": 1, "size": 65536, "stored": 65568,
        "digest": "a" * 64, "blake3": "b" * 64, "inode": 17, "remembered": True, "steps": STEPS,
    }  # fmt: skip
    return catalog_rows.Night(**{**plain, **fields})


def written_by_the_product(db: database.Database, one: catalog_rows.Night) -> None:
    """The same backup through the functions that operations call."""
    at = times.to_moment
    for place, step in enumerate(one.steps):
        first, done = place == 0, at(one.done + place * 40_000_000)
        address = f"backup/obl/oblvm1@{SLOT:%Y-%m-%dT%H:%MZ}" if first else f"duplicate/{one.image}/{step.operation}"
        job = jobs.enqueue(
            db, address=address, type="Backup" if first else "Duplicate", attempt=1, worker=catalog_rows.WORKER,
            now=done - dt.timedelta(seconds=6), client_id=one.client, policy=one.policy, unit=step.unit,
            image=None if first else one.image, copy=None if first else place, media_server="local",
            source_unit=None if first else one.steps[place - 1].unit,
        )  # fmt: skip
        jobs.start(db, job, done - dt.timedelta(seconds=3))
        result = images.CopyResult(stored_bytes=one.stored, base=one.parent if step.chained else None)
        if first:
            jobs.annotate(db, job, image=one.image, copy=1)
            images.begin_image(
                db, samples.draft(one.image, time=at(one.frozen), slot=SLOT, disks=(("system.img", one.size),), job=job)
            )
            known = json.dumps({"size": one.size, "inode": one.inode, "bitmap": None}, separators=(",", ":"))
            disk = images.DiskFacts(
                name="system.img", size=one.size, sector=512, digest=f"blake3-1m:{one.digest}", blake3=one.blake3
            )
            images.commit_image(
                db, one.image, state="Complete", changes="FullRead", consistency="Offline", warnings=(), disks=(disk,),
                source_state={"disk:system.img": known}, result=result, now=done, actor="tester",
            )  # fmt: skip
        else:
            number = images.begin_copy(db, one.image, operation=step.operation, unit=step.unit, job=job, now=done)
            images.commit_copy(db, one.image, number, result, done, "tester")
        reading = meters.Reading(
            total=one.size, scanned=one.size, non_zero=one.size, sent=one.size, stored=one.stored, streams=1
        )
        jobs.finish(db, job, state="Succeeded", error=None, reading=reading, wall_seconds=3.0, now=done)


def plain(db: database.Database, table: sa.Table) -> list[tuple[Any, ...]]:
    """Every row as the database keeps it, no column turned into a value of Python."""
    names = [column.name for column in table.columns]
    with db.reading() as connection:
        query = sa.text(f"SELECT {', '.join(names)} FROM {table.name} ORDER BY {', '.join(names[:2])}")
        return [tuple(row) for row in connection.execute(query)]


@pytest.fixture
def two(tmp_path: Path, db: database.Database) -> tuple[database.Database, database.Database]:
    """Two catalogs that know the same client."""
    other = database.open_writing(str(tmp_path / "other" / "catalog.sqlite"))
    for one in (db, other):
        samples.see(one, "oblVM1")
    return db, other


def test_a_bulk_row_is_the_row_that_the_product_writes(two: tuple[database.Database, database.Database]) -> None:
    one_by_one, bulk = two
    written_by_the_product(one_by_one, night())
    with bulk.writing() as connection:
        owed = imports.remember_owed(connection, samples.lifecycle().spec.written())
        made = night(owed=owed)
        catalog_rows.insert(connection, tables.IMAGES, [catalog_rows.image(made)])
        catalog_rows.insert(connection, tables.COPIES, catalog_rows.copies(made))
        catalog_rows.insert(connection, tables.JOBS, catalog_rows.work(made))
        catalog_rows.insert(connection, tables.AUDIT, catalog_rows.trail(made, "tester"))
    for table in (tables.IMAGES, tables.COPIES, tables.JOBS, tables.AUDIT, tables.LIFECYCLE_VERSIONS):
        assert plain(bulk, table) == plain(one_by_one, table), table.name
    bulk.close()


def test_no_row_of_a_made_catalog_is_one_that_the_product_would_not_write(tmp_path: Path) -> None:
    location = str(tmp_path / "state" / "catalog.sqlite")
    make_catalog.make(
        make_catalog.Wish(
            clients=24, images=1000, estate=tmp_path / "estate", state=tmp_path / "state", catalog=location, now=NOW
        )
    )
    db = database.open_reading(location)
    assert db is not None
    seen, copies = 0, 0
    for series in images.series(db):
        newest = None
        for image in series.images:
            seen += 1
            copies += len(image.copies)
            assert (newest is None) == (image.parent is None) or image.type == "Full"
            assert image.type == "Full" or image.parent == newest
            assert image.slot <= image.time <= NOW
            for copy in image.copies:
                assert copy.base == (None if copy.unit == "pool" else image.parent)
            newest = image.id
        assert [one.sequence for one in series.images] == sorted(one.sequence for one in series.images)
        assert [one.time for one in series.images] == sorted(one.time for one in series.images)
    assert (seen, copies) == (1000, 2500)
    with db.reading() as connection:
        kept = connection.execute(
            sa.select(tables.IMAGES.c.id, tables.IMAGES.c.type, tables.IMAGES.c.source_state)
        ).all()
    assert all(kept_state or type == "Incremental" for _, type, kept_state in kept[-24:])
    db.close()


def test_the_same_seed_makes_the_same_images(tmp_path: Path) -> None:
    made = []
    for state in ("one", "two"):
        location = str(tmp_path / state / "catalog.sqlite")
        estate = tmp_path / f"estate-{state}"
        make_catalog.make(
            make_catalog.Wish(clients=4, images=40, estate=estate, state=tmp_path / state, catalog=location, now=NOW)
        )
        db = database.open_reading(location)
        assert db is not None
        made.append([row[0] for row in plain(db, tables.IMAGES)])
        db.close()
    assert made[0] == made[1]
    assert len(made[0]) == 40
