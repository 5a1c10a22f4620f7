"""A dump made at work, brought up to date with what units hold; and the pages on which a backup of the catalog lies."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import (
    approvals,
    audits,
    contents,
    database,
    dumps,
    histories,
    images,
    imports,
    inventories,
    jobs,
    leases,
    pages,
    rebuilds,
    requests,
    tables,
)
from reconciler.planning import observed, promises

LATER = samples.later(days=2)


def held(id: str, sequence: int, **fields: Any) -> rebuilds.Held:
    """What a label on a unit says of an image."""
    draft = samples.draft(id)
    image = imports.ImportedImage(
        id=id, client_id=draft.client_id, client_name="oblVM1", client_slug="oblvm1", source=draft.client_id,
        policy=draft.policy, schedule=draft.schedule, lifecycle=draft.lifecycle, operation="land", copy=1, type="Full",
        state="Complete", time=draft.time, sequence=sequence, slot=draft.slot, revision=draft.revision, parent=None,
        changes="FullRead", consistency="Offline", owed=draft.owed, source_state={"a.img": "then"},
        disks=(samples.facts("a.img", 4096),),
    )  # fmt: skip
    return rebuilds.Held(image=dataclasses.replace(image, **fields), stored_bytes=77, base=None)


def unit(name: str | None, *found: rebuilds.Held, id: str = "", unreadable: tuple[str, ...] = ()) -> rebuilds.Unit:
    """A unit that holds these."""
    return rebuilds.Unit(
        id=id or f"u-{name}", name=name, type="Directory", path=f"/srv/{name}", images=iter(found),
        unreadable=lambda: unreadable,
    )  # fmt: skip


def order(db: database.Database | None, *units: rebuilds.Unit, **fields: Any) -> rebuilds.Order:
    """A rebuild from a dump of a catalog, or from labels alone."""
    lines = dumps.lines(dumps.dump(db)) if db is not None else None
    known: dict[str, Any] = {"catalog": db.id if db is not None else "c-1", "mark": dumps.mark(db) if db else 0}
    return rebuilds.Order(units=units, details={"reason": "lost"}, **{**known, "lines": lines, **fields})


@pytest.fixture
def at_work(db: database.Database) -> database.Database:
    """A catalog in the middle of everything."""
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"))
    samples.see(db, "oblVM1")
    for name in ("fast", "pool"):
        known = inventories.KnownUnit(name=name, id=f"u-{name}", type="Directory", path=f"/srv/{name}")
        inventories.learn_unit(db, known, samples.NOW, "tester")
    for number in range(1, 6):
        samples.image(db, f"img-{number}")
        samples.duplicate(db, f"img-{number}")
    samples.expire(db, "img-1", 1)
    allowed: dict[str, Any] = {"now": samples.NOW, "check": lambda *_: None, "actor": "tester", "reason": "old"}
    images.mark_expiring(db, "img-2", 1, **allowed)
    images.mark_expiring(db, "img-2", 2, grace=samples.later(days=9) - samples.NOW, **allowed)
    images.mark_state(db, "img-3", 1, "Lost", samples.NOW, "tester", "gone")
    images.mark_state(db, "img-3", 2, "Damaged", samples.NOW, "tester", "rotten")
    images.begin_copy(db, "img-3", operation="dedupe", unit="pool", job="j-000002", now=samples.NOW)
    images.begin_copy(db, "img-5", operation="third", unit="fast", job="j-000002", now=samples.NOW)
    images.begin_image(db, samples.draft("img-6"))
    images.begin_image(db, samples.draft("img-7"))
    samples.enqueue(db, "backup/obl/oblvm1")
    requests.add(db, "Backup", {"policy": "obl", "client": "oblvm1"}, samples.NOW, "me")
    same = {"lifecycle": "gold", "operation": "land", "client": samples.CLIENT, "up_to": 9, "digest": "d", "by": "ann"}
    given = observed.Approval(digest="d", copies=3, by="ann", until=samples.later(days=9), reason="r")
    approvals.record(db, given, samples.NOW, "tester")
    approvals.record(db, dataclasses.replace(given, digest="e"), samples.NOW, "tester")
    released = [
        observed.Release(before=promises.NONE, **same),
        observed.Release(before='{"order":"img-4"}', **same),
        observed.Release(before='{"type":"Forever"}', **{**same, "digest": "e"}),
    ]
    approvals.release(db, released, samples.NOW, "tester")
    return db


@pytest.fixture
def target(places: Callable[[], str]) -> Iterator[database.Database]:
    """An empty catalog."""
    opened = database.open_writing(places())
    yield opened
    opened.close()


def states(db: database.Database, id: str) -> dict[int, str]:
    """State of each copy of an image, those in their making too."""
    with db.reading() as connection:
        chosen = tables.COPIES.select().where(tables.COPIES.c.image_id == id)
        return {row.number: row.state for row in connection.execute(chosen)}


@samples.on_sqlite
def test_a_dump_at_work_is_brought_up_to_date(at_work: database.Database, target: database.Database) -> None:
    fast = unit("fast", held("img-3", 3), held("img-4", 4), held("img-6", 6), held("img-9", 9, client_name="new name"))
    tally = rebuilds.rebuild(target, order(at_work, fast), LATER, "me")
    assert target.id == at_work.id and tally.units == ["fast"]
    assert states(target, "img-1") == {1: "Expired", 2: "Complete"}
    # Deleted by the time; and one on a unit that is not there, which must not go without an approval.
    assert states(target, "img-2") == {1: "Expired", 2: "Complete"}
    # Found again; and what was to heal a damaged one is that one still.
    assert states(target, "img-3") == {1: "Complete", 2: "Damaged"}
    assert states(target, "img-4") == {1: "Complete", 2: "Complete"}
    # Not there any more; a further copy of it was never finished.
    assert states(target, "img-5") == {1: "Lost", 2: "Complete"}
    # Committed by its unit, and one that never was.
    assert states(target, "img-6") == {1: "Complete"} and states(target, "img-7") == {}
    assert states(target, "img-9") == {1: "Complete"}
    assert (tally.images_taken, tally.copies_taken, tally.lost) == (2, 3, 1)
    assert tally.unreachable == {"pool": 5}

    every = {row.id: row for row in images.list_images(target)}
    assert every.keys() == {f"img-{n}" for n in (1, 2, 3, 4, 5, 6, 9)} and every["img-6"].state == "Complete"
    assert {one.imported for one in images.list_copies(target) if one.state != "Expired"} == {True}
    assert inventories.clients(target)[samples.CLIENT].name == "new name"
    assert [one.state for one in jobs.list_jobs(target)] == ["Lost"] and tally.jobs_lost == 1
    assert requests.pending(target) == () and tally.requests_dropped == 1
    (left,) = approvals.releases(target)
    assert left.before == '{"type":"Forever"}'
    assert [one.digest for one in approvals.approvals(target)] == ["e"]
    assert samples.image(target, "img-new") > 1000, "numbers of images nobody knows of are passed over"
    line = next(one for one in audits.entries(target) if one.event == "CatalogRebuilt")
    assert line.number == dumps.mark(at_work) + 1 and (line.actor, line.details["reason"]) == ("me", "lost")
    assert samples.enqueue(target, "next") == "j-000002"
    assert len(list(histories.series(target))) == 1


@samples.on_sqlite
def test_a_trail_goes_on_after_every_dump_that_was_seen(at_work: database.Database, target: database.Database) -> None:
    rebuilds.rebuild(target, order(at_work, mark=5000), LATER, "me")
    assert audits.entries(target)[-1].number == 5001
    samples.see(target, "oblVM2")
    assert audits.entries(target)[-1].number == 5002


@samples.on_sqlite
def test_labels_that_cannot_be_read_are_no_loss(at_work: database.Database, target: database.Database) -> None:
    tally = rebuilds.rebuild(target, order(at_work, unit("fast", unreadable=("img-4",))), LATER, "me")
    assert states(target, "img-4")[1] == "Damaged" and (tally.damaged, tally.lost) == (1, 1)


def test_labels_alone(target: database.Database) -> None:
    first = held("img-1", 5, time=samples.later(days=-3), client_name="old name")
    tally = rebuilds.rebuild(target, order(None, unit("fast", held("img-2", 7), first)), LATER, "me")
    assert target.id == "c-1" and (tally.images_taken, tally.copies_taken) == (2, 2)
    (client,) = inventories.clients(target).values()
    assert (client.name, client.slug, client.first_seen) == ("oblVM1", "oblvm1", samples.later(days=-3))
    assert {row.id: row.sequence for row in images.list_images(target)} == {"img-1": 5, "img-2": 7}
    # Slots that were missed while there was no catalog still count.
    samples.apply(target, samples.policy(), samples.lifecycle(), samples.unit("fast"), now=LATER)
    assert inventories.anchors(target) == {("obl", "nightly"): samples.NOW.replace(microsecond=0)}


@samples.on_sqlite
def test_nothing_is_overwritten_and_names_must_fit(at_work: database.Database, target: database.Database) -> None:
    with pytest.raises(errors.TargetExists, match="7 images"):
        rebuilds.rebuild(at_work, order(at_work), LATER, "me")
    with pytest.raises(errors.NotFound, match="nobody knows its name"):
        rebuilds.rebuild(target, order(None, unit(None, id="u-x")), LATER, "me")
    with pytest.raises(errors.UsageError, match="knew pool as unit u-pool"):
        rebuilds.rebuild(target, order(at_work, unit("pool", id="u-other")), LATER, "me")
    head, *rest = dumps.lines(dumps.dump(at_work))
    with pytest.raises(contents.Damaged, match="no foot"):
        rebuilds.rebuild(target, order(at_work, lines=iter([head, *rest[:-1]])), LATER, "me")
    for turned in (7, {"table": "images", "columms": []}, {"table": ["images"]}, {"table": "images", "columns": 7}):
        with pytest.raises(contents.Damaged):
            rebuilds.rebuild(target, order(at_work, lines=iter([head, turned, ["img-1"], {"rows": 1}])), LATER, "me")
    with pytest.raises(contents.Damaged, match="says too little"):
        contents.head({**head, "at": 9 * 10**18})
    rebuilds.require_empty(target)
    rebuilds.rebuild(target, order(None), LATER, "me")
    with pytest.raises(errors.TargetExists, match="a history of its own"):
        rebuilds.require_empty(target)


@samples.on_sqlite
def test_nothing_is_made_beside_a_controller_that_lives(
    at_work: database.Database, target: database.Database, tmp_path: Path
) -> None:
    lease = leases.acquire(tmp_path / "state", at_work, samples.NOW, "me", "/srv/estate")
    with pytest.raises(errors.LeaseHeld, match=f"lives: pid {os.getpid()} on .*keeps /srv/estate"):
        rebuilds.rebuild(target, order(at_work), LATER, "me")
    rebuilds.require_empty(target)
    with at_work.writing() as connection:
        connection.execute(tables.LEASES.update().values(worker="other:7:then:1"))
    far = rebuilds.rebuild(target, order(at_work), LATER, "me").led
    assert far is not None and (far.host, far.pid) == ("other", 7)
    lease.release()


# -- pages ---------------------------------------------------------------------------------------------------------------


def laid_out(db: database.Database) -> bytes:
    """The disk that a backup of a catalog would be."""
    file = io.BytesIO()
    places = pages.write(db, file)
    disk = bytearray(pages.disk_size(places))
    for place in places:
        disk[place.disk : place.disk + place.length] = file.getvalue()[place.file : place.file + place.length]
        assert place.disk % pages.PAGE == 0
    return bytes(disk)


def cut(disk: bytes, size: int) -> list[bytes]:
    """The blocks of a disk."""
    return [disk[start : start + size] for start in range(0, len(disk), size)]


@samples.on_sqlite
def test_pages_bring_the_catalog_back(at_work: database.Database, target: database.Database) -> None:
    with at_work.writing() as connection:
        connection.execute(tables.FACTS.insert().values(key="long", value="x" * 3 * pages.PAGE))
    disk = laid_out(at_work)
    for size in (1000, 1 << 20, len(disk)):
        lines = list(pages.lines(cut(disk, size)))
    assert disk.startswith(pages.MAGIC) and contents.head(next(contents.parsed(lines))).catalog == at_work.id
    with target.writing() as connection:
        contents.load(connection, contents.parsed(lines))
    target.forget_id()
    assert laid_out(target) == disk
    with pytest.raises(contents.Damaged, match="within a line"):
        list(pages.lines([disk[:500]]))


def test_a_day_changes_few_pages(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    base = {"actor": "tester", "event": "Tested", "details": {"words": "x" * 200}}
    with db.writing() as connection:
        for number in range(1, 9000):
            audits.record(connection, now=samples.NOW, object=f"thing/{number}", **base)
    before = laid_out(db)
    with db.writing() as connection:
        for number in range(20):
            audits.record(connection, now=samples.NOW, object=f"new/{number}", **base)
    samples.see(db, "oblVM2")
    after = laid_out(db)
    assert len(after) == len(before)
    for size in (pages.PAGE, 1 << 20):
        blocks = [pair for pair in zip(cut(before, size), cut(after, size), strict=True) if any(pair[0])]
        assert len(blocks) >= 4 and sum(old != new for old, new in blocks) <= 4
