"""What proofs found goes with what it is about, but for the last of a series: in the catalog, its dumps and upgrades."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import catalog_samples as samples
import pytest
import sqlalchemy as sa
import zstandard
from test_catalog_rebuilds import held, order, unit

from reconciler.base import errors
from reconciler.catalog import database, dumps, migrations, rebuilds, tables, verifications
from reconciler.planning import observed

SERIES = (samples.CLIENT, "obl")


def prove(
    db: database.Database,
    image: str,
    kind: str = "Boot",
    state: str = "Passed",
    at: dt.datetime = samples.NOW,
    copy: int = 1,
) -> None:
    found = observed.Verification(image=image, copy=copy, kind=kind, state=state, at=at, message="so it is")
    verifications.record(db, found, details={"volumes": 2}, job="j-000001", actor="tester")


def remembered(db: database.Database) -> dict[tuple[str, str], str]:
    """Operation and kind of each trial of the series, and its image."""
    trials = verifications.trials(db).get(SERIES, ())
    assert len({(one.operation, one.found.kind) for one in trials}) == len(trials)
    return {(one.operation, one.found.kind): one.found.image for one in trials}


def images(db: database.Database, count: int) -> None:
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"), samples.unit("pool"))
    samples.see(db, "oblVM1")
    for number in range(1, count + 1):
        samples.image(db, f"img-{number}", time=samples.later(hours=number - 9))


def test_what_a_job_finds_after_its_end_is_not_kept(db: database.Database) -> None:
    """Another host took it for dead, and proved the copy itself."""
    images(db, 1)
    job = samples.enqueue(db, "verify/img-1/1/boot")
    prove(db, "img-1", at=samples.later(hours=-1))
    samples.end(db, job, "Lost")
    late = observed.Verification(image="img-1", copy=1, kind="Boot", state="Failed", at=samples.NOW, message="too late")
    assert not verifications.record(db, late, details={}, job=job, actor="tester")
    (found,) = verifications.list_verifications(db)
    assert found.state == "Passed"


def test_the_last_result_of_a_series_outlives_its_image(db: database.Database) -> None:
    images(db, 3)
    prove(db, "img-1", at=samples.later(hours=-3))
    prove(db, "img-1", "Files", "Failed", at=samples.later(hours=-3))
    prove(db, "img-2", at=samples.later(hours=-2))
    samples.expire(db, "img-1", 1)
    assert remembered(db) == {("land", "Boot"): "img-1", ("land", "Files"): "img-1"}
    # What a later one is known of tells nobody anything.
    assert [(one.image, one.kind, one.expired) for one in verifications.list_verifications(db)] == [
        ("img-1", "Files", True), ("img-2", "Boot", False),
    ]  # fmt: skip
    samples.expire(db, "img-2", 1)
    assert remembered(db) == {("land", "Boot"): "img-2", ("land", "Files"): "img-1"}
    assert verifications.verifications(db) == {}
    (row, _) = sorted(verifications.list_verifications(db, client_id=samples.CLIENT), key=lambda one: one.kind)
    assert (row.state, row.message, row.job, row.policy, row.expired) == ("Passed", "so it is", "j-000001", "obl", True)
    assert dict(row.details) == {"volumes": 2} and row.at == samples.later(hours=-2)
    assert not verifications.list_verifications(db, client_id="somebody else")


def test_an_older_result_takes_no_later_ones_place_and_a_clock_that_was_ahead_does(db: database.Database) -> None:
    images(db, 4)
    for number, hours in ((1, -5), (2, -2), (3, -4), (4, 500)):
        prove(db, f"img-{number}", at=samples.later(hours=hours))
    found = []
    for number in (4, 1, 2, 3):
        samples.expire(db, f"img-{number}", 1)
        found.append(remembered(db)["land", "Boot"])
    assert found == ["img-4", "img-1", "img-2", "img-2"]


def test_drills_tell_of_the_image_and_contents_of_the_copy(db: database.Database) -> None:
    images(db, 1)
    samples.duplicate(db, "img-1")
    prove(db, "img-1", "Boot", "Failed")
    prove(db, "img-1", "Content")
    prove(db, "img-1", "Content", copy=2)
    samples.expire(db, "img-1", 1)
    # Another copy is left, and what failed is what that holds too.
    assert {(one.copy, one.kind) for one in verifications.verifications(db)["img-1"]} == {(1, "Boot"), (2, "Content")}
    assert remembered(db) == {("land", "Content"): "img-1"}
    assert [(one.copy, one.kind, one.expired) for one in verifications.list_verifications(db) if one.kind == "Boot"] == [
        (1, "Boot", True)
    ]  # fmt: skip
    samples.expire(db, "img-1", 2)
    assert remembered(db) == {
        ("land", "Boot"): "img-1", ("land", "Content"): "img-1", ("dedupe", "Content"): "img-1",
    }  # fmt: skip


def test_a_content_that_proved_false_goes_with_its_copy(db: database.Database) -> None:
    images(db, 1)
    prove(db, "img-1", "Content", "Failed")
    samples.expire(db, "img-1", 1)
    assert (remembered(db), verifications.list_verifications(db)) == ({}, ())


def test_names_that_change_take_trials_along(db: database.Database) -> None:
    images(db, 1)
    prove(db, "img-1")
    samples.expire(db, "img-1", 1)
    samples.apply(
        db,
        samples.policy("new", previousNames=["obl"]),
        samples.lifecycle("gold", samples.operation("first", previousNames=["land"])),
        revision="main@sha1:2",
    )
    (found,) = verifications.trials(db).items()
    assert (found[0], found[1][0].operation) == ((samples.CLIENT, "new"), "first")


def test_a_rebuild_has_what_the_dump_has(db: database.Database, places: Callable[[], str]) -> None:
    images(db, 3)
    prove(db, "img-1", at=samples.later(hours=-3))
    prove(db, "img-2", at=samples.later(hours=-2))
    samples.expire(db, "img-1", 1)
    # Half way: the unit has deleted it, and the dump does not say so yet.
    with db.writing() as connection:
        copy = tables.COPIES
        connection.execute(copy.update().where(copy.c.image_id == "img-2").values(state="Expiring"))
    again = database.open_writing(places())
    fast = unit("fast", held("img-3", 3))
    rebuilds.rebuild(again, order(db, fast), samples.later(days=2), "tester")
    assert remembered(again) == {("land", "Boot"): "img-2"}
    again.close()
    bare = database.open_writing(places())
    rebuilds.rebuild(bare, order(None, unit("fast", held("img-3", 3))), samples.later(days=2), "tester")
    assert verifications.trials(bare) == {}
    bare.close()
    loaded = database.open_writing(places())
    dumps.load_dump(loaded, dumps.dump(db))
    assert verifications.trials(loaded) == verifications.trials(db)
    loaded.close()


def test_a_catalog_of_the_schema_before_keeps_what_was_proven(
    places: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    location = places()
    with monkeypatch.context() as older:
        older.setattr(migrations, "REVISIONS", migrations.REVISIONS[: migrations.REVISIONS.index("0005") + 1])
        older.setattr(migrations, "HEAD", "0005")
        first = database.open_writing(location)
        images(first, 2)
        prove(first, "img-1", "Files")
        with first.reading() as connection:
            assert "trials" not in sa.inspect(connection).get_table_names()
        first.close()
    with pytest.raises(errors.CatalogError, match="holdfast apply migrates it"):
        database.open_reading(location)
    again = database.open_writing(location)
    assert [(one.image, one.kind, one.expired) for one in verifications.list_verifications(again)] == [
        ("img-1", "Files", False)
    ]
    assert remembered(again) == {}
    now = zstandard.ZstdDecompressor().stream_reader(dumps.dump(again)).read().splitlines(keepends=True)
    samples.expire(again, "img-1", 1)
    assert remembered(again) == {("land", "Files"): "img-1"}
    again.close()
    # So does a dump of that version, which has no such table.
    then = b"".join(line for line in now if not line.startswith(b'{"table":"trials"'))
    schemas = (b'"schema":"%s"' % migrations.HEAD.encode(), b'"schema":"0005"')
    assert then.count(schemas[0]) == 1 and len(then) < sum(map(len, now))
    other = database.open_writing(places())
    dumps.load_dump(other, zstandard.ZstdCompressor().compress(then.replace(*schemas)))
    assert set(verifications.verifications(other)) == {"img-1"} and remembered(other) == {}
    other.close()
