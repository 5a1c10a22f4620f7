"""What ``explain`` says is what the planner decides: now, and at the time that the sentence names."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import actions, desired, expiry, explanations, histories, observed, planner

NOW = samples.NOW
DAILY = {"name": "daily", "type": "Full", "every": "24h"}
MOMENT = dt.timedelta(microseconds=1)


def estate(retention: dict[str, Any], schedule: dict[str, Any] | None = None) -> desired.Desired:
    return samples.estate(
        samples.pool("deep"),
        samples.lifecycle("gold", samples.operation("land", "deep", retention=retention)),
        samples.policy("gold", schedule or DAILY),
    )


def series(wanted: desired.Desired, days: list[int]) -> observed.Series:
    """Full images so many days old, oldest first."""
    spec = wanted.lifecycles["gold"].spec
    return samples.series(
        *(
            samples.image(number, samples.ago(days=age), samples.copy(unit="deep"), spec=spec)
            for number, age in enumerate(sorted(days, reverse=True), 1)
        )
    )


def verdict(wanted: desired.Desired, seen: observed.Observed, at: dt.datetime, image: str) -> expiry.Verdict:
    """What the judge says of an image's one copy at some time."""
    (found,) = seen.series
    judge = expiry.Judge(wanted, seen, at)
    said = judge.verdicts(histories.History(found, at), everything=True)
    return next(one for one in said if one.image.id == image)


def sentence(wanted: desired.Desired, seen: observed.Observed, image: str) -> explanations.Sentence:
    (found,) = seen.series
    (said,) = explanations.image(wanted, seen, found, image, NOW)
    return said


ages = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True)


@settings(max_examples=60, deadline=None)
@given(days=ages, period=st.integers(1, 40))
def test_a_fixed_period_is_explained_as_it_will_be_judged(days: list[int], period: int) -> None:
    wanted = estate({"type": "Fixed", "period": f"{period}d"})
    seen = samples.seen(wanted, series(wanted, days))
    for image in seen.series[0].images:
        said, now = sentence(wanted, seen, image.id), verdict(wanted, seen, NOW, image.id)
        assert (said.state, said.code, said.message) == (now.state, now.code, now.message)
        if said.state != "Kept" or said.at is None:
            continue
        assert verdict(wanted, seen, said.at - MOMENT, image.id).state == "Kept"
        then = verdict(wanted, seen, said.at, image.id)
        assert (then.state in ("Due", "Waiting")) == (said.release == "it leaves then")
        assert then.state != "Kept" or said.release.startswith("it stays then too")


rules = st.dictionaries(
    st.sampled_from(["last", "daily", "weekly", "monthly"]), st.integers(1, 5), min_size=1, max_size=3
)


@settings(max_examples=60, deadline=None)
@given(days=ages, rule=rules)
def test_keep_is_explained_by_the_images_that_the_next_slots_bring(days: list[int], rule: dict[str, int]) -> None:
    wanted = estate({"type": "Keep", **rule})
    before = samples.seen(wanted, series(wanted, days))
    newest = before.series[0].images[-1]
    for image in before.series[0].images:
        said = sentence(wanted, before, image.id)
        if said.code != "Keep" or said.state != "Kept":
            continue
        assert said.at is not None and said.at > NOW
        slots = []
        slot = newest.slot + dt.timedelta(days=1)
        while slot <= said.at:
            if slot > NOW:
                slots.append(slot)
            slot += dt.timedelta(days=1)
        assert slots[-1] == said.at, "it leaves at a slot"
        for brought, keeps in ((slots[:-1], True), (slots, False)):
            spec = wanted.lifecycles["gold"].spec
            more = [
                samples.image(100 + number, at, samples.copy(unit="deep", created_at=at), spec=spec)
                for number, at in enumerate(brought)
            ]
            then = samples.series(*before.series[0].images, *more)
            seen = dataclasses.replace(before, series=(then,))
            found = verdict(wanted, seen, said.at, image.id)
            assert (found.state == "Kept" and found.code == "Keep") == keeps


def test_what_only_newer_images_release_says_so() -> None:
    wanted = estate({"type": "Fixed", "period": "7d"})
    seen = samples.seen(wanted, series(wanted, [20]))
    said = sentence(wanted, seen, "img-1")
    assert (said.state, said.code) == ("Blocked", "NewestImage")
    assert said.release == "a newer complete image of the series"


def test_forever_and_an_image_that_is_gone() -> None:
    wanted = estate({"type": "Forever"})
    found = series(wanted, [3])
    gone = found.images[0]._replace(
        id="img-0", sequence=0, time=samples.ago(days=9), copies=(samples.copy(unit="deep", state="Expired"),)
    )
    seen = samples.seen(wanted, samples.series(gone, *found.images))
    assert sentence(wanted, seen, "img-0").state == "Expired"
    assert sentence(wanted, seen, "img-1").release == "another retention in the lifecycle"


@pytest.mark.parametrize(
    ("spec", "state"), [({}, "Due"), ({"suspend": {"reason": "move", "until": "2026-12-24T00:00:00Z"}}, "Waiting")]
)
def test_a_client_is_explained_by_the_plan(spec: dict[str, Any], state: str) -> None:
    wanted = samples.small(**spec)
    observed_ = samples.seen(wanted)
    plan = planner.plan(wanted, observed_, NOW)
    said = explanations.client(wanted, observed_, plan, "oblvm1", (), NOW)
    backups = [one for one in said if one.about.startswith("backup/")]
    expected = [
        (one.state.value, one.reason.code, one.reason.message)
        for one in plan.actions
        if one.type is actions.Type.BACKUP and one.client == "oblvm1"
    ]
    assert [(one.state, one.code, one.message) for one in backups] == expected
    assert state in {one.state for one in backups}


def test_a_policy_names_the_next_slot_of_each_schedule() -> None:
    wanted = estate({"type": "Forever"}, {"name": "night", "type": "Full", "cron": "0 22 * * *"})
    seen = samples.seen(wanted, series(wanted, [1]))
    said = explanations.policy(wanted, seen, planner.plan(wanted, seen, NOW), "gold", NOW)
    (night,) = [one for one in said if one.about == "schedule night"]
    assert night.at == samples.at("2026-11-23T22:00Z")


def test_a_unit_says_what_it_refuses() -> None:
    wanted = samples.estate(samples.pool("deep", maxConcurrentJobs=0))
    seen = samples.seen(wanted)
    said = explanations.unit(wanted, seen, planner.plan(wanted, seen, NOW), "deep")
    assert {(one.about, one.code) for one in said} == {
        ("new copies", "UnitDisabled"),
        ("reading", "UnitDisabled"),
        ("deleting", "UnitDisabled"),
    }
