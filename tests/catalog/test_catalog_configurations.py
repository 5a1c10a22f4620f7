"""A revision is in force whole; its history tells since when slots count and what images were promised."""

from __future__ import annotations

from typing import Any

import catalog_samples as samples
import pytest

from reconciler.api import lifecycles, policies
from reconciler.base import errors
from reconciler.catalog import audits, database, inventories, tables

NIGHTLY = samples.schedule("nightly")


def keep(**counts: int) -> dict[str, Any]:
    """A Keep rule as users write it."""
    return {"type": "Keep", **counts}


def fixed(period: str) -> dict[str, Any]:
    """A Fixed rule as users write it."""
    return {"type": "Fixed", "period": period}


def gold(land: dict[str, Any], **fields: Any) -> Any:
    """A lifecycle whose Backup operation has this retention."""
    return samples.lifecycle("gold", samples.operation("land", retention=land, **fields))


def test_nothing_is_in_force_before_the_first_revision(db: database.Database) -> None:
    assert inventories.in_force(db) is None
    assert inventories.applied(db) == {}
    assert inventories.anchors(db) == {}
    assert inventories.promises(db) == ()


def test_what_is_applied_reads_back_as_the_same_objects(db: database.Database) -> None:
    rich = samples.policy(
        "rich",
        samples.schedule("weekly", timeZone="Europe/Berlin", window="off-peak"),
        {"name": "often", "type": "Incremental", "every": "1h", "fullEvery": "7d", "startingDeadline": "30m"},
        suspend={"reason": "move", "until": "2026-12-01T00:00:00Z"},
        hooks={"before": ["/bin/freeze"], "timeout": "90s"},
    )
    window = policies.BackupWindow.model_validate(
        {
            "metadata": {"name": "off-peak", "labels": {"a": "b"}},
            "spec": {"allow": [{"days": ["Mon"], "start": "20:00", "duration": "10h"}]},
        }
    )
    life = samples.lifecycle("gold", samples.operation("land", retention=keep(daily=14, yearly=3)))
    objects = (samples.unit("fast", segmentSize="128KiB", immutability={"period": "3d"}), rich, window, life)
    samples.apply(db, *objects)
    found = inventories.applied(db)
    assert {key: item.object for key, item in found.items()} == {item.key: item for item in objects}
    assert all(item.since == samples.NOW and not item.orphaned for item in found.values())
    assert inventories.in_force(db) == "main@sha1:1"


def test_an_object_that_did_not_change_keeps_its_date(db: database.Database) -> None:
    samples.apply(db, samples.policy(), samples.unit("fast"))
    samples.apply(
        db, samples.policy(priority=5), samples.unit("fast"), revision="main@sha1:2", now=samples.later(hours=1)
    )
    found = inventories.applied(db)
    assert found["StorageUnit", "fast"].since == samples.NOW
    assert found["BackupPolicy", "obl"].since == samples.later(hours=1)
    assert inventories.in_force(db) == "main@sha1:2"


def test_omission_is_not_deletion(db: database.Database) -> None:
    samples.apply(db, samples.policy(), samples.unit("fast"))
    samples.apply(db, samples.unit("fast"), now=samples.later(hours=1))
    assert not inventories.applied(db)["BackupPolicy", "obl"].orphaned, "nobody decided to orphan it"
    samples.apply(db, samples.unit("fast"), changes=(("Orphan", "BackupPolicy", "obl"),), now=samples.later(hours=2))
    orphan = inventories.applied(db)["BackupPolicy", "obl"]
    assert (orphan.orphaned, orphan.since, orphan.object) == (True, samples.NOW, samples.policy())
    samples.apply(
        db,
        samples.policy(),
        samples.unit("fast"),
        changes=(("Adopt", "BackupPolicy", "obl"),),
        now=samples.later(hours=3),
    )
    assert inventories.applied(db)["BackupPolicy", "obl"] == orphan.__class__(
        object=samples.policy(), since=samples.NOW
    )
    assert inventories.anchors(db) == {("obl", "nightly"): samples.NOW}, "what fell due meanwhile is still due"


def test_a_revision_is_in_force_whole_or_not_at_all(db: database.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.apply(db, samples.policy())

    def full(*_args: Any, **_fields: Any) -> None:
        raise errors.CatalogError("no space")

    monkeypatch.setattr(audits, "record", full)
    with pytest.raises(errors.CatalogError, match="no space"):
        samples.apply(db, samples.policy(priority=9), samples.unit("new"), revision="main@sha1:2")
    assert inventories.in_force(db) == "main@sha1:1"
    assert set(inventories.applied(db)) == {("BackupPolicy", "obl")}
    assert inventories.applied(db)["BackupPolicy", "obl"].object == samples.policy()


def test_every_change_leaves_a_line(db: database.Database) -> None:
    samples.apply(db, samples.policy(), changes=(("Create", "BackupPolicy", "obl"),))
    told = [(entry.event, entry.object, entry.actor) for entry in audits.entries(db)]
    assert told == [
        ("RevisionInForce", "main@sha1:1", "tester"),
        ("ConfigurationCreate", "BackupPolicy/obl", "tester"),
    ]


def test_slots_count_from_when_a_schedule_was_first_applied_with_its_timing(db: database.Database) -> None:
    hourly = {"name": "hourly", "type": "Incremental", "every": "1h"}

    def anchors_after(hours: int, *schedules: dict[str, Any], **spec: Any) -> dict[str, int]:
        samples.apply(db, samples.policy("obl", *schedules, **spec), now=samples.later(hours=hours))
        found = inventories.anchors(db)
        return {name: round((at - samples.NOW).total_seconds() / 3600) for (_, name), at in found.items()}

    assert anchors_after(0, NIGHTLY) == {"nightly": 0}
    assert anchors_after(1, NIGHTLY, hourly) == {"nightly": 0, "hourly": 1}
    assert anchors_after(2, NIGHTLY, hourly, priority=3) == {"nightly": 0, "hourly": 1}
    assert anchors_after(3, {**NIGHTLY, "type": "Cumulative", "catchUp": "None"}, hourly) == {"nightly": 0, "hourly": 1}
    assert anchors_after(4, {**NIGHTLY, "timeZone": "Europe/Berlin"}, hourly) == {"nightly": 4, "hourly": 1}
    assert anchors_after(5, NIGHTLY, {**hourly, "every": "2h"}) == {"nightly": 5, "hourly": 5}
    assert anchors_after(6, NIGHTLY) == {"nightly": 5}
    assert anchors_after(7, NIGHTLY, hourly) == {"nightly": 5, "hourly": 7}
    assert anchors_after(8, {**NIGHTLY, "cron": "0 22 * * *"}) == {"nightly": 8}


def test_a_retention_that_changes_stays_promised_to_the_images_there_are(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    samples.apply(db, gold(fixed("30d")))
    samples.apply(db, gold(fixed("20d")))
    assert inventories.promises(db) == (), "no image was promised anything"
    first = samples.image(db, "img-1")
    samples.apply(db, gold(fixed("7d"), verify={"content": "7d"}))
    (promise,) = inventories.promises(db)
    assert (promise.lifecycle, promise.operation, promise.up_to) == ("gold", "land", first)
    assert promise.retention == lifecycles.Fixed.model_validate(fixed("20d"))
    samples.apply(db, gold(fixed("7d")))
    assert len(inventories.promises(db)) == 1


def test_equal_promises_are_kept_once_up_to_the_newest(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    samples.apply(db, gold(fixed("30d")))
    numbers = []
    for number, period in enumerate(["7d", "30d", "7d"]):
        numbers.append(samples.image(db, f"img-{number}"))
        samples.apply(db, gold(fixed(period)))
    found = {str(one.retention.period): one.up_to for one in inventories.promises(db)}  # type: ignore[union-attr]
    assert found == {"30d": numbers[2], "7d": numbers[1]}


def test_the_retention_of_an_operation_that_disappears_stays_promised(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    samples.apply(db, samples.lifecycle())
    newest = samples.image(db, "img-1")
    samples.apply(db, gold(fixed("7d")))
    (promise,) = inventories.promises(db)
    assert (promise.operation, promise.up_to) == ("dedupe", newest)


def test_an_image_that_is_being_written_is_promised_what_it_began_under(db: database.Database) -> None:
    from reconciler.catalog import images

    samples.see(db, "oblVM1")
    samples.apply(db, gold(fixed("30d")))
    begun = images.begin_image(db, samples.draft("img-1"))
    samples.apply(db, gold(fixed("7d")))
    assert [one.up_to for one in inventories.promises(db)] == [begun]


def test_an_object_this_version_cannot_read_is_named(db: database.Database) -> None:
    samples.apply(db, samples.policy())

    def spoil(**values: Any) -> None:
        with db.writing() as connection:
            connection.execute(tables.OBJECTS.update().values(**values))

    spoil(document={"kind": "BackupPolicy", "metadata": {"name": "obl"}, "spec": {"future": 1}})
    with pytest.raises(errors.CatalogError, match="BackupPolicy/obl"):
        inventories.applied(db)
    spoil(kind="Teleport")
    with pytest.raises(errors.FormatTooNew, match="Teleport/obl"):
        inventories.applied(db)
