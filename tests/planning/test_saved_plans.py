"""The file of a saved plan: whole or refused, without secrets, and with the facts that tell what moved."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from typing import Any

import plan_schema
import planning_samples as samples
import pytest
import test_documents
import worlds
from hypothesis import given
from hypothesis import strategies as st

from reconciler.api.documents import saved
from reconciler.base import errors
from reconciler.planning import configuration, observed, planfile, planner, savedplans

PLACES = {"estate": "/srv/estate", "state": "/srv/estate/.holdfast", "catalog": "/srv/estate/.holdfast/catalog.sqlite"}


def written(world: worlds.World, **places: str) -> str:
    """The file of the plan for now."""
    plan = world.plan()
    facts = savedplans.facts(plan, effective(world), world.observe())
    return savedplans.save(planfile.document(plan), facts, **{**PLACES, **places})


def effective(world: worlds.World) -> Any:
    return configuration.effective(world.wanted, world.applied)


def moved(world: worlds.World, before: saved.SavedPlan) -> list[str]:
    """The facts that moved since, and then what that changes in the plan."""
    plan = planner.plan(world.wanted, world.observe(), before.now)
    facts = savedplans.facts(plan, effective(world), world.observe(), also=before.facts)
    return [*savedplans.moved(before.facts, facts), *planfile.compare(before, planfile.document(plan))]


def test_it_is_read_back_as_it_was_and_is_valid() -> None:
    world = test_documents.fresh_world()
    text = written(world)
    body = savedplans.read(text, world.now)
    assert planfile.document(world.plan()).to_json().items() <= body.to_json().items()
    assert (body.estate, body.state, body.catalog) == tuple(PLACES.values())
    assert body.expires_at == world.now + dt.timedelta(days=7)
    assert [(one.client, one.policy, one.images) for one in body.facts.series] == [
        ("x-a", "gold", 3),
        ("x-b", "gold", 3),
    ]
    assert {one.name for one in body.facts.units} == {"fast"}
    plan_schema.require_valid(json.loads(text))
    assert moved(world, body) == []


@given(place=st.integers(0, 10_000), byte=st.integers(32, 126))
def test_an_edited_file_is_refused_whatever_was_edited(place: int, byte: int) -> None:
    text = written(test_documents.fresh_world())
    place %= len(text)
    edited = text[:place] + chr(byte) + text[place + 1 :]
    now = samples.NOW + dt.timedelta(days=3)
    try:
        same = json.loads(edited) == json.loads(text)
    except ValueError:
        same = False
    if same:
        savedplans.read(edited, now)
        return
    with pytest.raises((errors.StalePlan, errors.UsageError, errors.FormatTooNew)):
        savedplans.read(edited, now)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "ImageList"}, errors.UsageError),
        ({"formatVersion": "2.0"}, errors.FormatTooNew),
        ({"formatVersion": "1.1"}, errors.FormatTooNew),
        ({"formatVersion": "new"}, errors.UsageError),
        ({"revision": "dir@blake3:forged"}, errors.StalePlan),
        ({"estate": "/srv/other"}, errors.StalePlan),
        ({"expiresAt": "2099-01-01T00:00:00Z"}, errors.StalePlan),
        ({"seal": None}, errors.StalePlan),
    ],
)
def test_what_is_no_plan_of_this_version_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    world = test_documents.fresh_world()
    with pytest.raises(error):
        savedplans.read(json.dumps({**json.loads(written(world)), **change}), world.now)
    with pytest.raises(errors.UsageError):
        savedplans.read("nothing of the kind", world.now)
    # What -o json printed is a plan too, but nobody saved it: where would it be applied?
    with pytest.raises(errors.StalePlan, match="edited"):
        savedplans.read(json.dumps(planfile.document(world.plan()).to_json()), world.now)


def test_it_can_be_applied_for_a_week() -> None:
    world = test_documents.fresh_world()
    text = written(world)
    savedplans.read(text, world.now + dt.timedelta(days=7))
    with pytest.raises(errors.StalePlan, match="could be applied until 2026-12-03T21:00Z"):
        savedplans.read(text, world.now + dt.timedelta(days=7, seconds=1))


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("postgresql://anna:hunter2@db.example.test/holdfast", "postgresql://anna@db.example.test/holdfast"),
        ("postgresql+psycopg://anna:hun:ter2@db/holdfast", "postgresql+psycopg://anna@db/holdfast"),
        ("postgresql://db/holdfast?user=anna&password=hunter2&x=1", "postgresql://db/holdfast?user=anna&password=&x=1"),
        ("postgresql://db/holdfast?sslpassword=hunter2", "postgresql://db/holdfast?sslpassword="),
        ("postgresql://anna@db/holdfast", "postgresql://anna@db/holdfast"),
        ("/srv/state/a:b@c.sqlite", "/srv/state/a:b@c.sqlite"),
    ],
)
def test_no_password_of_the_catalog_stands_in_the_file(location: str, shown: str) -> None:
    text = written(test_documents.fresh_world(), catalog=location)
    assert "hunter2" not in text and "ter2" not in text
    assert json.loads(text)["catalog"] == shown


def test_what_was_due_and_was_done_moves_facts_and_makes_nothing_stale() -> None:
    world = test_documents.fresh_world()
    before = savedplans.read(written(world), world.now)
    world.settle()
    plan = planner.plan(world.wanted, world.observe(), before.now)
    assert planfile.compare(before, planfile.document(plan)) == ()
    facts = savedplans.facts(plan, effective(world), world.observe(), also=before.facts)
    assert list(savedplans.moved(before.facts, facts)) == [
        "series gold/x-a has a new image img-7",
        "series gold/x-b has a new image img-8",
    ]


def ruling(world: worlds.World) -> observed.Ruling:
    return observed.Ruling(kind="Hold", object="img-1", by="anna", at=world.now, reason="case 4711")


def test_staleness_names_what_moved() -> None:
    world = test_documents.fresh_world()
    before = savedplans.read(written(world), world.now)
    world.units["fast"] = "Offline"
    assert moved(world, before)[0] == "unit fast is offline now"
    world.units["fast"] = "Online"
    world.damage("img-5", 1, "Damaged")
    assert "copies of series gold/x-a have changed" in moved(world, before)
    world.wanted = dataclasses.replace(samples.small(land=samples.FIXED_7D, priority=9), revision="dir@blake3:2")
    assert "BackupPolicy/gold: Update is new" in moved(world, before)
    seen = dataclasses.replace(world.observe(), rulings=(ruling(world),))
    facts = savedplans.facts(world.plan(), effective(world), seen, also=before.facts)
    assert "holds or rulings were made or ended" in list(savedplans.moved(before.facts, facts))
    world.turn()
    assert moved(world, before)[0] == "another configuration is in force"


def test_facts_are_of_what_is_due_or_destroyed_alone() -> None:
    world = test_documents.fresh_world()
    world.settle()
    body = savedplans.read(written(world), world.now)
    assert body.facts.series == () and body.facts.units == ()
    world.wanted = dataclasses.replace(samples.small(land={"type": "Fixed", "period": "1d"}), revision="dir@blake3:2")
    body = savedplans.read(written(world), world.now)
    assert {one.client for one in body.facts.series} == {"x-a", "x-b"}
    assert {one.name for one in body.facts.units} == {item.unit for item in body.destruction.items} == {"fast"}


def test_what_time_alone_brought_is_told_and_makes_nothing_stale() -> None:
    world = test_documents.fresh_world()
    world.settle()
    before = savedplans.read(written(world), world.now)
    assert list(savedplans.since(before, world.now)) == []
    later = world.now + dt.timedelta(hours=25)
    (fell,) = savedplans.since(before, later)
    assert fell.startswith("fell due since the plan was made") and "backup/gold/x-a@2026-11-27T21:00Z" in fell
    world.wanted = dataclasses.replace(samples.small(land={"type": "Fixed", "period": "1d"}), revision="dir@blake3:2")
    held = savedplans.read(written(world), world.now)
    ends = [item.expires_before for item in held.destruction.items if item.expires_before is not None]
    assert ends
    told = list(savedplans.since(held, max(ends)))
    assert told[-1].startswith(f"of its destructive part {len(ends)} copies have had their promise kept")
