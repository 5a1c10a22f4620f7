"""A catalog tells whether anybody has committed anything: a plan made before that no longer stands."""

from __future__ import annotations

import catalog_samples as samples

from reconciler.catalog import database, images, inventories


def test_every_commit_is_told_whoever_made_it(db: database.Database, location: str) -> None:
    seen = [db.changes()]
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"))
    seen.append(db.changes())
    samples.see(db, "oblVM1")
    seen.append(db.changes())
    other = database.open_writing(location)
    samples.image(other, "img-1")
    other.close()
    seen.append(db.changes())
    assert len(set(map(str, seen))) == len(seen)


def test_reading_changes_nothing(db: database.Database) -> None:
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"))
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    before = db.changes()
    assert list(images.series(db)) and inventories.applied(db) and inventories.clients(db)
    assert db.changes() == before


def test_what_was_undone_is_no_news_or_harmless(db: database.Database) -> None:
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"))
    samples.see(db, "oblVM1")
    images.begin_image(db, samples.draft("img-1"))
    before = db.changes()
    images.discard_writing(db, "img-1", 1)
    assert db.changes() != before
