"""``previousNames``: what has a new name keeps its images, its slots, its promises and its debts."""

from __future__ import annotations

from typing import Any

import catalog_samples as samples
import pytest

from reconciler.catalog import database, images, inventories


@pytest.fixture(autouse=True)
def history(db: database.Database) -> None:
    """One image with two copies under the first names."""
    samples.see(db, "oblVM1")
    samples.apply(db, samples.policy(), samples.lifecycle(), samples.unit("fast"), samples.unit("pool"))
    inventories.learn_unit(
        db, inventories.KnownUnit(name="fast", id="u-1", type="Directory", path="/srv/fast"), samples.NOW, "t"
    )
    samples.image(db, "img-1")
    samples.duplicate(db, "img-1")


def later(db: database.Database, *objects: Any, **fields: Any) -> None:
    """Apply a day later."""
    samples.apply(db, *objects, revision="main@sha1:2", now=samples.later(days=1), **fields)


def the_image(db: database.Database) -> Any:
    """The one image there is, with the names of its series and of what it is owed."""
    (series,) = images.series(db)
    (image,) = series.images
    spec = inventories.owed(db)[image.owed]
    return series.policy, image, {one.name: (one.source, one.storage, one.schedules) for one in spec.operations}


def test_a_policy_takes_its_history_along(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    job = samples.enqueue(db, "backup/obl/x", policy="obl")
    later(db, samples.policy("erp", previousNames=["obl"]), changes=(("Create", "BackupPolicy", "erp"),))
    assert the_image(db)[0] == "erp"
    assert set(inventories.applied(db)) >= {("BackupPolicy", "erp")}
    assert ("BackupPolicy", "obl") not in inventories.applied(db), "not an orphan: it lives on under its new name"
    assert inventories.anchors(db) == {("erp", "nightly"): samples.NOW}
    assert set(inventories.inventories(db)) == {"erp"}
    from reconciler.catalog import jobs

    assert jobs.get(db, job).policy == "erp"


def test_an_orphan_change_of_the_old_name_does_no_harm(db: database.Database) -> None:
    changes = (("Orphan", "BackupPolicy", "obl"), ("Create", "BackupPolicy", "erp"))
    later(db, samples.policy("erp", previousNames=["obl"]), changes=changes)
    assert the_image(db)[0] == "erp"
    assert ("BackupPolicy", "obl") not in inventories.applied(db)


def test_a_backup_that_ran_while_its_policy_was_renamed_comes_along_at_the_next_apply(db: database.Database) -> None:
    later(db, samples.policy("erp", previousNames=["obl"]))
    samples.image(db, "img-2")
    assert {series.policy for series in images.series(db)} == {"erp", "obl"}
    later(db, samples.policy("erp", previousNames=["obl"]))
    (series,) = images.series(db)
    assert (series.policy, [image.id for image in series.images]) == ("erp", ["img-1", "img-2"])


def test_a_new_object_may_take_an_old_name(db: database.Database) -> None:
    later(db, samples.policy("erp", previousNames=["obl"]))
    later(db, samples.policy("erp", previousNames=["obl"]), samples.policy("obl"))
    samples.image(db, "img-2")
    later(db, samples.policy("erp", previousNames=["obl"]), samples.policy("obl"))
    assert {series.policy: [image.id for image in series.images] for series in images.series(db)} == {
        "erp": ["img-1"],
        "obl": ["img-2"],
    }


def test_a_schedule_keeps_its_slots_and_its_filter(db: database.Database) -> None:
    filtered = samples.lifecycle("gold", samples.operation("land", schedules=["nightly", "x"]))
    samples.image(db, "img-2", owed=filtered.spec.written())
    renamed = samples.schedule("daily", previousNames=["nightly"])
    later(db, samples.policy("obl", renamed))
    assert inventories.anchors(db) == {("obl", "daily"): samples.NOW}
    found = images.one_series(db, samples.CLIENT, "obl").images
    assert [image.schedule for image in found] == ["daily", "daily"]
    assert inventories.owed(db)[found[1].owed].operations[0].schedules == ("daily", "x")


def test_a_schedule_renamed_with_a_new_timing_counts_anew(db: database.Database) -> None:
    later(db, samples.policy("obl", samples.schedule("daily", previousNames=["nightly"], cron="0 3 * * *")))
    assert inventories.anchors(db) == {("obl", "daily"): samples.later(days=1)}


def test_an_operation_is_not_owed_again_under_its_new_name(db: database.Database) -> None:
    fixed = {"type": "Fixed", "period": "1d"}
    land = samples.operation("first", previousNames=["land"], retention=fixed)
    second = samples.operation(
        "second", previousNames=["dedupe"], type="Duplication", source="first", storage="pool", retention=fixed
    )
    other = samples.lifecycle("silver")
    samples.image(db, "img-2", lifecycle="silver", policy="other")
    later(db, samples.lifecycle("gold", land, second), other)
    series = {one.policy: one.images[0] for one in images.series(db)}
    assert [copy.operation for copy in series["obl"].copies] == ["first", "second"]
    assert [copy.operation for copy in series["other"].copies] == ["land"]
    owed = inventories.owed(db)
    assert [(one.name, one.source) for one in owed[series["obl"].owed].operations] == [
        ("first", None),
        ("second", "first"),
    ]
    assert [one.name for one in owed[series["other"].owed].operations] == ["land", "dedupe"]
    assert [(one.operation, str(one.retention.period)) for one in inventories.promises(db)] == [  # type: ignore[union-attr]
        ("first", "7d"),
        ("second", "7d"),
    ]


def test_promises_made_under_an_operations_old_name_come_along(db: database.Database) -> None:
    def gold(name: str, period: str, **fields: Any) -> Any:
        return samples.lifecycle(
            "gold", samples.operation(name, retention={"type": "Fixed", "period": period}, **fields)
        )

    later(db, gold("land", "5d"))
    later(db, gold("first", "5d", previousNames=["land"]))
    assert {(one.operation, str(one.retention.period)) for one in inventories.promises(db)} == {  # type: ignore[union-attr]
        ("first", "7d"),
        ("dedupe", "7d"),
    }


def test_a_unit_keeps_its_identity_and_its_copies(db: database.Database) -> None:
    job = samples.enqueue(db, "duplicate/x", type="Duplicate", image="img-1", unit="pool", source_unit="fast")
    later(db, samples.unit("quick", previousNames=["fast"]), samples.unit("pool"))
    assert {name: unit.id for name, unit in inventories.known_units(db).items()} == {"quick": "u-1"}
    _, image, owed = the_image(db)
    assert [copy.unit for copy in image.copies] == ["quick", "pool"]
    assert image.copies[0].busy, "the running duplication still holds it"
    assert owed["dedupe"] == ("land", "pool", None)
    from reconciler.catalog import jobs

    assert jobs.get(db, job).source_unit == "quick"


def test_a_unit_that_lifecycles_name_is_renamed_in_what_images_are_owed(db: database.Database) -> None:
    later(db, samples.unit("deep", previousNames=["pool"]))
    _, image, owed = the_image(db)
    assert owed == {"land": (None, "fast", None), "dedupe": ("land", "deep", None)}
    assert len(inventories.owed(db)) == 1, "the spec under the old name is no longer kept"
    samples.image(db, "img-2")
    assert images.one_series(db, samples.CLIENT, "obl").images[1].owed != image.owed


def test_renaming_twice_is_renaming_once(db: database.Database) -> None:
    objects = (samples.policy("erp", previousNames=["obl"]), samples.unit("quick", previousNames=["fast"]))
    later(db, *objects)
    before = (list(images.series(db)), inventories.applied(db), inventories.anchors(db), inventories.known_units(db))
    later(db, *objects)
    assert (
        list(images.series(db)), inventories.applied(db), inventories.anchors(db), inventories.known_units(db)
    ) == before  # fmt: skip
