"""What may not go is judged inside the deleting transaction, by the facts as they are then."""

from __future__ import annotations

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import audits, database, fences, images, jobs
from reconciler.planning import observed


@pytest.fixture(autouse=True)
def two_images(db: database.Database) -> None:
    """A full with two copies, and an incremental on it."""
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    samples.duplicate(db, "img-1")
    samples.image(db, "img-2", type="Incremental", parent="img-1")


def busy(db: database.Database) -> set[tuple[str, int]]:
    """The copies that decisions see as busy."""
    return {
        (image.id, copy.number)
        for one in images.series(db)
        for image in one.images
        for copy in image.copies
        if copy.busy
    }


def refuse_busy(image: str, number: int) -> object:
    """A check that refuses to let a busy copy go, as never 3 does."""

    def check(series: observed.Series, _: observed.Standing) -> None:
        copies = {(one.id, copy.number): copy for one in series.images for copy in one.copies}
        if copies[image, number].busy:
            raise errors.NeverViolated(f"copy {number} of {image} is being read")

    return check


def test_a_refused_deletion_changes_nothing(db: database.Database) -> None:
    before = (images.list_copies(db), audits.entries(db), list(images.series(db)))

    def never(series: observed.Series, _: observed.Standing) -> None:
        assert series.client == samples.CLIENT
        raise errors.NeverViolated("the last good copy of the newest image")

    with pytest.raises(errors.NeverViolated, match="last good copy"):
        images.mark_expiring(db, "img-2", 1, now=samples.NOW, check=never, actor="t", reason="r")
    assert (images.list_copies(db), audits.entries(db), list(images.series(db))) == before


def test_the_check_sees_a_job_that_started_after_the_plan(db: database.Database) -> None:
    check = refuse_busy("img-1", 2)
    restore = samples.enqueue(db, "restore/oblvm1@1", type="Restore", image="img-1", copy=2)
    with pytest.raises(errors.NeverViolated, match="being read"):
        images.mark_expiring(db, "img-1", 2, now=samples.NOW, check=check, actor="t", reason="r")  # type: ignore[arg-type]
    assert samples.copies(db, "img-1") == {1: "Complete", 2: "Complete"}
    samples.end(db, restore, "Succeeded")
    images.mark_expiring(db, "img-1", 2, now=samples.NOW, check=check, actor="t", reason="r")  # type: ignore[arg-type]
    assert samples.copies(db, "img-1") == {1: "Complete", 2: "Expiring"}


@pytest.mark.parametrize(
    ("job", "copies"),
    [
        ({"type": "Duplicate", "image": "img-1", "copy": 1, "source_unit": "fast"}, {("img-1", 1)}),
        # Without a good copy it reads all of them.
        ({"type": "Duplicate", "image": "img-1", "source_unit": "pool"}, {("img-1", 1), ("img-1", 2)}),
        ({"type": "Verify", "image": "img-1", "copy": 2}, {("img-1", 2)}),
        ({"type": "Restore", "image": "img-1"}, {("img-1", 1), ("img-1", 2)}),
        # Where the copy that it began with fails it reads any other.
        ({"type": "Restore", "image": "img-1", "copy": 2, "source_unit": "pool"}, {("img-1", 1), ("img-1", 2)}),
        ({"type": "Backup", "parent": "img-2", "unit": "fast"}, {("img-2", 1)}),
        ({"type": "Backup", "parent": "img-1", "unit": "fast"}, {("img-1", 1)}),
        ({"type": "Expire", "image": "img-1", "copy": 2}, set()),
        ({"type": "Reclaim", "unit": "pool"}, set()),
    ],
)
def test_what_a_live_job_reads_or_builds_on_is_busy(
    db: database.Database, job: dict[str, object], copies: set[tuple[str, int]]
) -> None:
    id = samples.enqueue(db, "any/address", **job)
    assert busy(db) == copies
    jobs.start(db, id, samples.NOW)
    assert busy(db) == copies
    jobs.annotate(db, id, unit="fast")
    assert busy(db) == copies
    samples.end(db, id, "Failed")
    assert busy(db) == set()


def test_a_lost_job_keeps_nothing(db: database.Database) -> None:
    samples.enqueue(db, "verify/1", type="Verify", image="img-1", copy=1)
    assert busy(db) == {("img-1", 1)}
    jobs.lose_dead(db, now=samples.NOW, alive=lambda _: False)
    assert busy(db) == set()


def test_nothing_begins_to_read_a_copy_that_is_leaving(db: database.Database) -> None:
    images.mark_expiring(db, "img-1", 2, now=samples.NOW, check=lambda *_: None, actor="t", reason="r")
    with pytest.raises(jobs.CopyLeaving, match="use another copy"):
        samples.enqueue(db, "verify/1", type="Verify", image="img-1", copy=2)
    samples.enqueue(db, "verify/2", type="Verify", image="img-1", copy=1)
    with pytest.raises(jobs.CopyLeaving):
        samples.enqueue(db, "backup/1", parent="img-1", unit="pool")
    samples.enqueue(db, "backup/2", parent="img-1", unit="fast")
    samples.enqueue(db, "expire/1", type="Expire", image="img-1", copy=2)


def test_a_restore_begins_as_long_as_one_copy_stays(db: database.Database) -> None:
    images.mark_expiring(db, "img-1", 2, now=samples.NOW, check=lambda *_: None, actor="t", reason="r")
    samples.enqueue(db, "restore/1", type="Restore", image="img-1", copy=2)
    images.mark_expiring(db, "img-1", 1, now=samples.NOW, check=lambda *_: None, actor="t", reason="r")
    with pytest.raises(jobs.CopyLeaving, match="use another copy"):
        samples.enqueue(db, "restore/2", type="Restore", image="img-1", copy=2)


def test_a_stale_fence_expires_nothing(db: database.Database) -> None:
    with pytest.raises(fences.Superseded):
        images.mark_expiring(db, "img-1", 2, now=samples.NOW, check=lambda *_: None, actor="t", reason="r", fence=7)
    assert samples.copies(db, "img-1") == {1: "Complete", 2: "Complete"}
