"""An image is invisible until committed; its copies move in one order; every step may be repeated."""

from __future__ import annotations

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import audits, database, images, inventories, listings, readings
from reconciler.planning import observed


@pytest.fixture(autouse=True)
def machines(db: database.Database) -> None:
    """Two known clients."""
    samples.see(db, "oblVM1", "oblVM2")


def test_an_image_is_invisible_until_committed(db: database.Database) -> None:
    sequence = images.begin_image(db, samples.draft("img-1"))
    assert sequence == 1
    assert list(images.series(db)) == []
    assert images.list_images(db) == ()
    assert samples.copies(db, "img-1") == {1: "Writing"}
    assert images.newest_time(db) is None
    assert images.writing_copies(db) == (
        images.WritingCopy(image_id="img-1", number=1, unit="fast", job="j-000001", operation="land", is_first=True),
    )
    samples.commit(db, "img-1")
    assert images.writing_copies(db) == ()
    assert [row.id for row in images.list_images(db)] == ["img-1"]
    assert images.newest_time(db) == samples.NOW


def test_a_committed_image_reads_back_as_decisions_see_it(db: database.Database) -> None:
    samples.image(db, "img-1")
    samples.duplicate(db, "img-1")
    owed = next(iter(inventories.owed(db)))
    copy = observed.Copy(
        number=1, operation="land", unit="fast", state="Complete", created_at=samples.later(minutes=1),
        stored_bytes=1000, base=None,
    )  # fmt: skip
    second = copy._replace(
        number=2, operation="dedupe", unit="pool", created_at=samples.later(minutes=2), stored_bytes=500
    )
    image = observed.Image(
        id="img-1", schedule="nightly", type="Full", state="Complete", time=samples.NOW, sequence=1,
        slot=samples.NOW.replace(microsecond=0), lifecycle="gold", owed=owed, parent=None, size_bytes=12288,
        copies=(copy, second), disks=("a.img", "b.img"),
    )  # fmt: skip
    expected = observed.Series(client=samples.CLIENT, policy="obl", images=(image,))
    walk = images.series(db)
    assert list(walk) == [expected]
    assert list(walk) == [expected], "it may be walked again"
    assert images.one_series(db, samples.CLIENT, "obl") == expected
    assert images.one_series(db, samples.CLIENT, "other").images == ()
    assert inventories.owed(db)[owed] == samples.lifecycle().spec


def test_an_image_reads_back_as_users_list_it(db: database.Database) -> None:
    images.begin_image(db, samples.draft("img-1", parent="img-0", type="Incremental"))
    warning = {"code": "FileChanged", "message": "a.img moved"}
    samples.commit(db, "img-1", state="Partial", changes="Known", consistency="Live", warnings=(warning,), base="img-0")
    samples.duplicate(db, "img-1")
    (row,) = images.list_images(db)
    assert row == images.ImageRow(
        id="img-1", client="oblvm1", client_id=samples.CLIENT, policy="obl", schedule="nightly", lifecycle="gold",
        type="Incremental", state="Partial", time=samples.NOW, slot=samples.NOW.replace(microsecond=0), sequence=1,
        revision="main@sha1:1", parent="img-0", changes="Known", consistency="Live", size_bytes=12288,
        disks=(samples.facts("a.img", 4096), samples.facts("b.img", 8192)), warnings=(warning,), copies=(1, 2),
    )  # fmt: skip
    first, second = images.list_copies(db)
    assert (first.image, first.number, first.client, first.unit, first.state) == (
        "img-1",
        1,
        "oblvm1",
        "fast",
        "Complete",
    )
    assert (first.stored_bytes, first.base, first.policy, first.operation) == (1000, "img-0", "obl", "land")
    assert (second.number, second.unit, second.operation) == (2, "pool", "dedupe")
    assert images.list_copies(db, unit="pool") == (second,)
    assert images.list_copies(db, client_id="somebody") == ()
    assert images.list_images(db, image_id="img-2") == images.list_images(db, policy="other") == ()
    assert readings.recorded(db, "img-1") == {"a.img": {"mtime": "1"}}


def test_a_partial_image_holds_the_disks_that_were_written(db: database.Database) -> None:
    images.begin_image(db, samples.draft("img-1"))
    samples.commit(db, "img-1", state="Partial", disks=(samples.facts("b.img", 8192),))
    (image,) = images.one_series(db, samples.CLIENT, "obl").images
    assert (image.state, image.disks, image.size_bytes) == ("Partial", ("b.img",), 8192)


def test_sequence_numbers_grow_and_are_never_given_twice(db: database.Database) -> None:
    assert samples.image(db, "img-1") == 1
    assert images.begin_image(db, samples.draft("img-2")) == 2
    images.discard_writing(db, "img-2", 1)
    assert samples.image(db, "img-3") == 3


def test_series_come_by_client_and_policy_and_their_images_by_sequence(db: database.Database) -> None:
    second = samples.machine("oblVM2").id
    for number, (client, policy) in enumerate([(second, "b"), (samples.CLIENT, "b"), (second, "a"), (second, "b")]):
        samples.image(db, f"img-{9 - number}", client_id=client, policy=policy)
    found = [(one.client, one.policy, [image.id for image in one.images]) for one in images.series(db)]
    assert found == [
        (samples.CLIENT, "b", ["img-8"]),
        (second, "a", ["img-7"]),
        (second, "b", ["img-9", "img-6"]),
    ]


def test_commits_may_be_repeated(db: database.Database) -> None:
    samples.image(db, "img-1")
    number = samples.duplicate(db, "img-1")
    before = list(images.series(db)), audits.entries(db)
    samples.commit(db, "img-1", state="Partial", disks=())
    images.commit_copy(db, "img-1", number, images.CopyResult(stored_bytes=9, base="x"), samples.NOW, "again")
    assert (list(images.series(db)), audits.entries(db)) == before


def test_an_image_needs_a_new_id_and_a_known_client(db: database.Database) -> None:
    samples.image(db, "img-1")
    with pytest.raises(errors.CatalogError, match="img-1 exists"):
        images.begin_image(db, samples.draft("img-1"))
    with pytest.raises(errors.NotFound, match="no client nobody"):
        images.begin_image(db, samples.draft("img-2", client_id="nobody"))
    for call in (
        lambda: samples.commit(db, "img-9"),
        lambda: readings.recorded(db, "img-9"),
        lambda: images.mark_expired(db, "img-9", 1, samples.NOW, "x"),
    ):
        with pytest.raises(errors.NotFound, match="img-9"):
            call()


def test_a_given_up_first_copy_takes_its_image_along(db: database.Database) -> None:
    images.begin_image(db, samples.draft("img-1"))
    for _ in range(2):
        images.discard_writing(db, "img-1", 1)
        assert images.list_copies(db) == ()
    samples.image(db, "img-1")
    images.discard_writing(db, "img-1", 1)
    assert samples.copies(db, "img-1") == {1: "Complete"}, "a committed copy is not given up"


def test_a_given_up_duplicate_leaves_the_image(db: database.Database) -> None:
    samples.image(db, "img-1")
    assert images.begin_copy(db, "img-1", operation="dedupe", unit="pool", job="j-000002", now=samples.NOW) == 2
    assert [one.is_first for one in images.writing_copies(db)] == [False]
    images.discard_writing(db, "img-1", 2)
    assert samples.copies(db, "img-1") == {1: "Complete"}


@pytest.mark.parametrize("state", ["Writing", "Lost", "Damaged"])
def test_a_copy_that_failed_is_written_again_under_its_number(db: database.Database, state: str) -> None:
    samples.image(db, "img-1")
    images.begin_copy(db, "img-1", operation="dedupe", unit="pool", job="j-000002", now=samples.NOW)
    if state != "Writing":
        images.commit_copy(db, "img-1", 2, images.CopyResult(stored_bytes=5, base=None), samples.NOW, "tester")
        assert images.mark_state(db, "img-1", 2, state, samples.NOW, "tester", "gone")
    again = images.begin_copy(db, "img-1", operation="dedupe", unit="pool", job="j-000009", now=samples.NOW)
    assert again == 2
    assert images.writing_copies(db)[0].job == "j-000009"
    images.commit_copy(db, "img-1", 2, images.CopyResult(stored_bytes=6, base=None), samples.later(hours=1), "tester")
    row = images.list_copies(db, unit="pool")[0]
    assert (row.state, row.stored_bytes, row.created_at) == ("Complete", 6, samples.later(hours=1))


@pytest.mark.parametrize("state", ["Lost", "Damaged"])
def test_a_healing_that_is_given_up_leaves_the_copy_as_it_was(db: database.Database, state: str) -> None:
    samples.image(db, "img-1")
    samples.duplicate(db, "img-1")
    images.mark_state(db, "img-1", 1, state, samples.NOW, "tester", "bad")
    for _ in range(2):
        assert images.begin_copy(db, "img-1", operation="land", unit="fast", job="j-000009", now=samples.NOW) == 1
        assert samples.copies(db, "img-1") == {1: "Writing", 2: "Complete"}
    for _ in range(2):
        images.discard_writing(db, "img-1", 1)
        assert samples.copies(db, "img-1") == {1: state, 2: "Complete"}
    images.begin_copy(db, "img-1", operation="land", unit="fast", job="j-000009", now=samples.NOW)
    images.commit_copy(db, "img-1", 1, images.CopyResult(stored_bytes=5, base=None), samples.NOW, "tester")
    assert images.mark_state(db, "img-1", 1, "Lost", samples.NOW, "tester", "gone")
    images.discard_writing(db, "img-1", 1)
    assert samples.copies(db, "img-1") == {1: "Lost", 2: "Complete"}


def test_a_copy_elsewhere_or_beside_a_good_one_gets_its_own_number(db: database.Database) -> None:
    samples.image(db, "img-1")
    assert samples.duplicate(db, "img-1") == 2
    assert samples.duplicate(db, "img-1") == 3
    assert samples.duplicate(db, "img-1", unit="other") == 4
    images.begin_image(db, samples.draft("img-2"))
    with pytest.raises(errors.CatalogError, match="still being written"):
        samples.duplicate(db, "img-2")


def test_what_a_unit_is_found_to_hold_is_recorded_once(db: database.Database) -> None:
    samples.image(db, "img-1")
    count = len(audits.entries(db))
    assert images.mark_state(db, "img-1", 1, "Lost", samples.NOW, "tester", "fast lacks it")
    assert not images.mark_state(db, "img-1", 1, "Lost", samples.NOW, "tester", "fast lacks it")
    assert images.mark_state(db, "img-1", 1, "Complete", samples.NOW, "tester", "found again")
    assert [entry.event for entry in audits.entries(db)[count:]] == ["CopyLost", "CopyComplete"]
    images.begin_copy(db, "img-1", operation="dedupe", unit="pool", job="j", now=samples.NOW)
    assert not images.mark_state(db, "img-1", 2, "Lost", samples.NOW, "tester", "not there yet")
    assert samples.copies(db, "img-1") == {1: "Complete", 2: "Writing"}
    with pytest.raises(ValueError, match="Expired"):
        images.mark_state(db, "img-1", 1, "Expired", samples.NOW, "tester", "")


def test_a_copy_leaves_in_two_steps(db: database.Database) -> None:
    samples.image(db, "img-1")
    samples.duplicate(db, "img-1")
    with pytest.raises(errors.CatalogError, match="nobody decided"):
        images.mark_expired(db, "img-1", 2, samples.NOW, "tester")
    seen: list[observed.Series] = []
    images.mark_expiring(
        db,
        "img-1",
        2,
        now=samples.NOW,
        check=lambda found, _: seen.append(found),
        actor="tester",
        reason="Fixed 7d passed",
    )
    images.mark_expiring(
        db, "img-1", 2, now=samples.NOW, check=lambda found, _: seen.append(found), actor="tester", reason="again"
    )
    assert len(seen) == 1
    assert [copy.state for copy in seen[0].images[0].copies] == ["Complete", "Complete"]
    assert samples.copies(db, "img-1") == {1: "Complete", 2: "Expiring"}
    for _ in range(2):
        images.mark_expired(db, "img-1", 2, samples.NOW, "tester")
    assert samples.copies(db, "img-1") == {1: "Complete", 2: "Expired"}
    seen_now = images.one_series(db, samples.CLIENT, "obl").images[0].copies
    assert [copy.state for copy in seen_now] == ["Complete", "Expired"], "what was paid once is not owed again"
    assert images.list_images(db)[0].copies == (1,)
    assert images.list_copies(db)[1].message == "Fixed 7d passed"
    assert [entry.event for entry in audits.entries(db)[-2:]] == ["CopyExpiring", "CopyExpired"]


def test_a_copy_that_is_being_written_cannot_expire(db: database.Database) -> None:
    images.begin_image(db, samples.draft("img-1"))
    with pytest.raises(errors.CatalogError, match="being written"):
        images.mark_expiring(db, "img-1", 1, now=samples.NOW, check=lambda *_: None, actor="t", reason="r")


def test_images_without_copies_leave_the_decisions_but_the_newest_of_each_schedule_stays(db: database.Database) -> None:
    for number in range(1, 4):
        samples.image(db, f"full-{number}")
    samples.image(db, "inc-1", type="Incremental", schedule="hourly")
    for id in ("full-1", "full-3", "inc-1"):
        samples.expire(db, id, 1)
    seen = images.one_series(db, samples.CLIENT, "obl").images
    assert [(image.id, [copy.state for copy in image.copies]) for image in seen] == [
        ("full-2", ["Complete"]),
        ("full-3", ["Expired"]),
        ("inc-1", ["Expired"]),
    ]
    samples.image(db, "full-4")
    seen = images.one_series(db, samples.CLIENT, "obl").images
    assert [image.id for image in seen] == ["full-2", "inc-1", "full-4"]
    assert [row.id for row in images.list_images(db)] == ["full-2", "full-4"]
    assert len(images.list_images(db, expired=True)) == 5
    assert samples.copies(db, "full-1") == {1: "Expired"}


def _found(id: str, **fields: object) -> images.ImportedImage:
    plain = {
        "id": id, "client_id": "elsewhere:1", "client_name": "Web Server", "client_slug": "oblvm1", "source": "far",
        "policy": "obl", "schedule": "nightly", "lifecycle": "gold", "operation": "land", "copy": 1, "type": "Full",
        "state": "Complete", "time": samples.later(days=-9), "sequence": 40, "slot": samples.later(days=-9),
        "revision": "main@sha1:0", "parent": None, "changes": "FullRead", "consistency": "Offline",
        "owed": samples.lifecycle().spec.written(), "disks": (samples.facts("a.img", 4096),),
    }  # fmt: skip
    return images.ImportedImage(**{**plain, **fields})  # type: ignore[arg-type]


def test_an_adopted_image_keeps_time_sequence_and_slug_where_it_is_free(db: database.Database) -> None:
    def adopt(found: images.ImportedImage, unit: str = "old", base: str | None = None) -> bool:
        return images.import_image(db, found, unit, 77, base, now=samples.NOW, actor="tester")

    assert adopt(_found("img-a"))
    assert not adopt(_found("img-a"))
    assert adopt(_found("img-a", operation="dedupe"), "old-pool"), "the same number on another unit"
    assert adopt(_found("img-b", client_id="elsewhere:2", client_slug="dbserver", sequence=41), base="img-a")
    assert {one.id: one.slug for one in inventories.clients(db).values() if one.id.startswith("elsewhere")} == {
        "elsewhere:1": "oblvm1-2",
        "elsewhere:2": "dbserver",
    }
    (image,) = images.one_series(db, "elsewhere:1", "obl").images
    assert (image.time, image.sequence, image.disks) == (samples.later(days=-9), 40, ("a.img",))
    assert [(copy.number, copy.unit, copy.imported) for copy in image.copies] == [
        (1, "old", True),
        (2, "old-pool", True),
    ]
    assert samples.image(db, "img-c") == 42, "new images come after adopted ones"


def test_an_adopted_image_of_a_known_series_keeps_the_order_strict(db: database.Database) -> None:
    samples.image(db, "img-1")
    found = _found("img-a", client_id=samples.CLIENT, sequence=1)
    assert images.import_image(db, found, "old", 77, None, now=samples.NOW, actor="tester")
    sequences = [image.sequence for image in images.one_series(db, samples.CLIENT, "obl").images]
    assert sequences == [1, 2]
    assert inventories.clients(db)[samples.CLIENT].slug == "oblvm1"


def test_a_lost_copy_is_found_again_by_adoption(db: database.Database) -> None:
    found = _found("img-a")
    assert images.import_image(db, found, "old", 77, None, now=samples.NOW, actor="tester")
    images.mark_state(db, "img-a", 1, "Lost", samples.NOW, "tester", "away")
    assert images.import_image(db, found, "old", 77, None, now=samples.NOW, actor="tester")
    assert samples.copies(db, "img-a") == {1: "Complete"}


def test_an_expired_image_that_is_adopted_again_is_seen_again(db: database.Database) -> None:
    samples.image(db, "img-1")
    samples.image(db, "img-2")
    samples.expire(db, "img-1", 1)
    assert [image.id for image in images.one_series(db, samples.CLIENT, "obl").images] == ["img-2"]
    found = _found("img-1", client_id=samples.CLIENT, sequence=1)
    assert images.import_image(db, found, "old", 77, None, now=samples.NOW, actor="tester")
    assert [image.id for image in images.one_series(db, samples.CLIENT, "obl").images] == ["img-1", "img-2"]
    assert samples.copies(db, "img-1") == {1: "Expired", 2: "Complete"}


def test_copies_that_can_be_read_say_where_an_image_is(db: database.Database) -> None:
    for number in (1, 2, 3):
        samples.image(db, f"img-{number}")
    images.begin_image(db, samples.draft("img-4"))
    samples.duplicate(db, "img-1")
    samples.expire(db, "img-2", 1)
    images.mark_state(db, "img-1", 1, "Damaged", now=samples.NOW, actor="test", message="a scrub said so")
    first, third = listings.whereabouts(db)
    assert (first.image, first.client_id, first.sequence) == ("img-1", samples.CLIENT, 1)
    assert first.units == ("pool", "fast")  # the damaged one may hold what is wanted
    assert (third.image, third.units) == ("img-3", ("fast",))
    assert listings.whereabouts(db, "img-3") == (third,)
    assert listings.whereabouts(db, "img-2") == listings.whereabouts(db, "img-4") == ()
    assert (first.time, first.time.tzinfo is not None) == (samples.NOW, True)
