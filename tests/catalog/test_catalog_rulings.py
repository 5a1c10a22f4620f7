"""Rulings as the catalog keeps them: recorded once, audited, ended; and the way back of a copy that was to go."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import audits, database, images, inventories, rulings, standings, tables
from reconciler.planning import actions, desired, expiry, observed

HOUR = dt.timedelta(hours=1)


def author(**fields: Any) -> rulings.Author:
    """Anna, by the hands of a tester."""
    return rulings.Author(**{"by": "anna", "actor": "tester", "now": samples.NOW, "reason": "told so", **fields})


@pytest.fixture(autouse=True)
def two_images(db: database.Database) -> None:
    """A full, and an incremental built on it, both on ``fast`` alone."""
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    images.begin_image(db, samples.draft("img-2", type="Incremental", parent="img-1"))
    samples.commit(db, "img-2", base="img-1")


def leave(db: database.Database, image: str, *, grace: dt.timedelta | None = HOUR, **fields: Any) -> bool:
    """Decide that copy 1 of an image goes."""
    plain: dict[str, Any] = {"now": samples.NOW, "check": lambda *_: None, "actor": "t", "reason": "Fixed 7d passed"}
    return images.mark_expiring(db, image, 1, grace=grace, **{**plain, **fields})


def standing(db: database.Database) -> list[tuple[str, str, str]]:
    """Kind, object and author of what stands."""
    return [(one.kind, one.object, one.by) for one in standings.read(db).rulings]


def events(db: database.Database) -> list[str]:
    """The trail's events."""
    return [one.event for one in audits.entries(db)]


def test_a_ruling_is_recorded_once_and_ends_once(db: database.Database) -> None:
    assert rulings.hold(db, "img-1", author()).changed
    assert not rulings.hold(db, "img-1", author(by="ben", reason="me too")).changed
    assert standing(db) == [("Hold", "img-1", "anna")]
    entry = audits.entries(db)[-1]
    assert (entry.event, entry.actor, entry.object) == ("ImageHeld", "tester", "image/img-1")
    assert (entry.details["by"], entry.details["reason"]) == ("anna", "told so")
    assert rulings.release(db, "img-1", author()).changed
    assert not rulings.release(db, "img-1", author()).changed
    assert standing(db) == []
    assert events(db)[-2:] == ["ImageHeld", "HoldReleased"]


def test_a_copy_in_its_grace_comes_back_with_the_base_it_needs(db: database.Database) -> None:
    assert not leave(db, "img-2") and not leave(db, "img-1")
    assert not leave(db, "img-2", now=samples.NOW + HOUR / 2), "its grace has not passed"
    found = rulings.hold(db, "img-2", author())
    assert found.taken_back == ("img-1/1", "img-2/1")
    assert samples.copies(db, "img-1") == samples.copies(db, "img-2") == {1: "Complete"}
    assert events(db)[-3:] == ["CopyTakenBack", "CopyTakenBack", "ImageHeld"]
    with pytest.raises(errors.NeverViolated, match="taken back"):
        leave(db, "img-2", decided=True, now=samples.NOW + 2 * HOUR)


def test_what_has_begun_never_comes_back(db: database.Database) -> None:
    assert not leave(db, "img-2")
    with pytest.raises(errors.CatalogError, match="can still be taken back"):
        images.mark_expired(db, "img-2", 1, samples.NOW, "t")
    assert leave(db, "img-2", decided=True, now=samples.NOW + HOUR)
    assert events(db)[-2:] == ["CopyExpiring", "CopyDeleting"]
    with pytest.raises(errors.CatalogError, match="has begun"):
        rulings.hold(db, "img-2", author())
    assert standing(db) == [], "nothing is half recorded"
    assert samples.copies(db, "img-2") == {1: "Expiring"}
    assert leave(db, "img-2", decided=True), "a crash in between is gone on with"
    images.mark_expired(db, "img-2", 1, samples.NOW, "t")
    assert samples.copies(db, "img-2") == {1: "Expired"}


def test_a_copy_without_a_grace_goes_at_once(db: database.Database) -> None:
    assert leave(db, "img-2", grace=None)
    with pytest.raises(errors.CatalogError, match="has begun"):
        rulings.hold(db, "img-2", author())


def judged() -> Callable[[observed.Series, observed.Standing], None]:
    """The check of a plan that knew of no ruling."""
    land = samples.operation("land")
    wanted = desired.gather("r", [samples.unit("fast"), samples.lifecycle("gold", land), samples.policy()])
    units = {"fast": observed.Unit(name="fast", state="Online")}

    def check(series: observed.Series, found: observed.Standing) -> None:
        fresh = observed.Observed(units=units, holds=found.holds, rulings=found.rulings)
        expiry.check_delete(wanted, fresh, series, "img-1", 1, samples.later(days=30))

    return check


def test_a_hold_recorded_after_the_plan_stops_the_deletion(db: database.Database) -> None:
    for number in (3, 4, 5, 6):
        samples.image(db, f"img-{number}")
    samples.expire(db, "img-2", 1)
    check = judged()
    rulings.hold(db, "img-1", author())
    with pytest.raises(errors.NeverViolated, match="held by anna"):
        leave(db, "img-1", check=check, grace=None)
    assert samples.copies(db, "img-1") == {1: "Complete"}
    rulings.release(db, "img-1", author())
    assert leave(db, "img-1", check=check, grace=None)


def test_a_hold_recorded_in_the_grace_of_another_copy_stops_its_end(db: database.Database) -> None:
    for number in (3, 4, 5, 6):
        samples.image(db, f"img-{number}")
    samples.expire(db, "img-2", 1)
    check = judged()
    assert not leave(db, "img-1", check=check)
    with db.writing() as connection:
        # As a hold does that comes from a dump: the ruling is there, the copy was not brought back.
        connection.execute(
            tables.RULINGS.insert().values(kind="Hold", object="img-1", by="anna", at=samples.NOW, reason="r")
        )
    with pytest.raises(errors.NeverViolated, match="held by anna"):
        leave(db, "img-1", check=check, decided=True, now=samples.NOW + HOUR)
    assert rulings.hold(db, "img-1", author()).taken_back == ("img-1/1",)


def test_an_order_ends_by_hold_by_undo_and_by_being_carried_out(db: database.Database) -> None:
    assert rulings.order_expiry(db, "img-2", HOUR, author()).changed
    assert standings.read(db).rulings[0].grace == HOUR
    assert rulings.hold(db, "img-2", author()).changed
    assert standing(db) == [("Hold", "img-2", "anna")]
    with pytest.raises(errors.CatalogError, match="is held by anna: told so"):
        rulings.order_expiry(db, "img-2", HOUR, author())
    rulings.release(db, "img-2", author())
    rulings.order_expiry(db, "img-2", HOUR, author())
    leave(db, "img-2")
    assert rulings.take_back_order(db, "img-2", author()).taken_back == ("img-2/1",)
    with pytest.raises(errors.CatalogError, match="nobody ordered"):
        rulings.take_back_order(db, "img-2", author())
    rulings.order_expiry(db, "img-2", None, author())
    rulings.waive(db, "img-2", 1, author())
    samples.expire(db, "img-2", 1)
    assert standing(db) == [], "nothing is left that they could speak of"
    with pytest.raises(errors.CatalogError, match="no copy left"):
        rulings.hold(db, "img-2", author())


def test_a_client_is_retired_once_no_policy_in_force_matches_it(db: database.Database) -> None:
    client = inventories.find_client(db, "oblVM1")
    samples.apply(db, samples.policy())
    with pytest.raises(errors.CatalogError, match="policy obl still matches oblVM1"):
        rulings.retire(db, client, author())
    inventories.see_machines(db, "obl", (), samples.later(hours=1))
    assert rulings.retire(db, client, author()).changed
    assert standing(db) == [("Retire", client.id, "anna")]
    assert rulings.unretire(db, client, author()).changed and not rulings.unretire(db, client, author()).changed


def test_what_is_not_there_cannot_be_ruled_about(db: database.Database) -> None:
    with pytest.raises(errors.NotFound, match="no image img-9"):
        rulings.hold(db, "img-9", author())
    with pytest.raises(errors.NotFound, match="no copy 2"):
        rulings.waive(db, "img-1", 2, author())
    images.begin_image(db, samples.draft("img-3"))
    with pytest.raises(errors.CatalogError, match="still being written"):
        rulings.hold(db, "img-3", author())


# -- legal holds -------------------------------------------------------------------------------------------------------


def legal_hold(**spec: Any) -> Any:
    """A manifest."""
    return samples.legal_hold("case-7", reason="case 7", **spec)


def held(db: database.Database) -> observed.Hold:
    """The hold that stands."""
    (found,) = standings.read(db).holds
    return found


def test_a_legal_hold_is_resolved_where_it_is_put_in_force_and_outlives_its_manifest(db: database.Database) -> None:
    samples.apply(db, legal_hold(clients=["oblVM1"]))
    assert (held(db).clients, held(db).by) == ({samples.CLIENT}, "tester")
    samples.apply(db, changes=(("Orphan", "LegalHold", "case-7"),))
    inventories.see_machines(db, "obl", [samples.machine("oblVM1", name="renamed")], samples.later(hours=1))
    assert held(db).clients == {samples.CLIENT}
    samples.apply(db, legal_hold(clients=["oblVM9"]))
    assert held(db).clients == {samples.CLIENT}, "a narrower one lets nothing go"
    released = {"by": "judge", "at": samples.NOW, "reason": "over"}
    samples.apply(db, legal_hold(clients=["oblVM9"], released=released))
    assert standings.read(db).holds == ()
    told = [event for event in events(db) if event.startswith("LegalHold")]
    assert told == ["LegalHoldApplied", "LegalHoldReleased"]


def test_a_word_that_matched_nothing_is_resolved_once_it_does(db: database.Database) -> None:
    hold = legal_hold(clients=["oblVM2"], policies=["obl"], images=["img-1", "img-9"])
    samples.apply(db, hold)
    assert (held(db).clients, held(db).images) == ({samples.CLIENT}, {"img-1"})
    assert not inventories.settle_holds(db, {"case-7": hold}, samples.NOW, "tester")
    samples.see(db, "oblVM1", "oblVM2")
    assert inventories.settle_holds(db, {"case-7": hold}, samples.NOW, "tester")
    assert held(db).clients == {samples.CLIENT, "diskimages:/srv/guests/oblVM2"}
    assert held(db).words == {"clients/oblVM2", "policies/obl", "images/img-1"}


def test_a_legal_hold_brings_back_what_is_in_its_grace(db: database.Database) -> None:
    leave(db, "img-2")
    samples.apply(db, legal_hold(clients=["oblVM1"], to=samples.NOW))
    assert samples.copies(db, "img-2") == {1: "Expiring"}, "its time is not before the end of the hold"
    samples.apply(db, legal_hold(clients=["oblVM1"]))
    assert samples.copies(db, "img-2") == {1: "Complete"}
    with pytest.raises(errors.CatalogError, match="under LegalHold case-7: case 7"):
        rulings.order_expiry(db, "img-1", None, author())
    with pytest.raises(errors.CatalogError, match="by LegalHold case-7, not by a command"):
        rulings.release(db, "img-1", author())


def test_an_expire_job_does_not_hinder_the_way_back(db: database.Database) -> None:
    leave(db, "img-2")
    samples.enqueue(db, "expire/img-2/1", type=str(actions.Type.EXPIRE), image="img-2", copy=1)
    assert rulings.hold(db, "img-2", author()).taken_back == ("img-2/1",)
