"""What an approval lets go: exactly the copies of the destructive part that it names, and nothing beside them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import actions, configuration, desired, expiry, foresights, observed, planner, promises

ago, image, copy = samples.ago, samples.image, samples.copy
FULLS = {"name": "daily", "type": "Full", "every": "24h"}
LATER = samples.NOW + dt.timedelta(days=1)
MONTH = {"type": "Fixed", "period": "30d"}


def wanted(land: dict[str, Any], *more: Any) -> desired.Desired:
    """Daily fulls that land on ``fast``."""
    return samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast", retention=land)),
        samples.policy("gold", FULLS),
        *more,
    )


def days(count: int, newest: dt.timedelta = dt.timedelta(hours=1), **fields: Any) -> list[observed.Image]:
    """Daily images, ``img-1`` the oldest."""
    return [image(n, samples.NOW - newest - dt.timedelta(days=count - n), copy(**fields)) for n in range(1, count + 1)]


def approval(digest: str | None, copies: int = 3, until: dt.datetime = LATER, by: str = "ann") -> observed.Approval:
    """Consent by command."""
    assert digest is not None
    return observed.Approval(digest=digest, copies=copies, by=by, until=until, reason="change 1234")


def manifest(digest: str | None, copies: int = 3, until: str = "2026-12-01T00:00:00Z") -> Any:
    """Consent by manifest."""
    spec = {"destruction": digest, "copies": copies, "by": "ann", "until": until, "reason": "change 1234"}
    return samples.make("Approval", "shorten", spec)


def shortened(*images: observed.Image, **more: Any) -> tuple[desired.Desired, observed.Observed]:
    """Manifests that shorten what is in force from 30d to 7d."""
    old, new = wanted(MONTH), wanted(samples.FIXED_7D)
    return new, samples.seen(old, samples.series(*(images or days(10))), **more)


def gone(plan: actions.Plan) -> set[str]:
    """Addresses of the expiries that are due."""
    return {one.address for one in plan.actions if one.type is actions.Type.EXPIRE and one.state is actions.State.DUE}


def codes(plan: actions.Plan) -> dict[str, str]:
    """Object by code of the drift about approvals."""
    return {one.code: one.object for one in plan.drift if one.code.startswith("Approval")}


THREE = {"expire/img-1/1", "expire/img-2/1", "expire/img-3/1"}


def test_an_approved_part_goes_and_says_who_approved_it() -> None:
    new, state = shortened()
    before = planner.plan(new, state, samples.NOW)
    assert gone(before) == set() and not before.destruction.approved and before.releases == ()
    (question,) = before.questions
    assert (question.what, question.copies, question.approved) == ("Destruction", 3, False)
    plan = planner.plan(new, dataclasses.replace(state, approvals=(approval(before.destruction.digest),)), samples.NOW)
    assert gone(plan) == THREE
    reason = samples.by_address(plan)["expire/img-1/1"].reason
    assert reason.code == "Approved" and "approved by ann" in reason.message
    assert plan.destruction.approved and plan.destruction.items == before.destruction.items
    assert plan.destruction.digest == before.destruction.digest
    (release,) = plan.releases
    assert (release.client, release.up_to, release.by) == (samples.CLIENT, 3, "ann")
    assert codes(plan) == {}


def test_recorded_releases_let_the_same_copies_go_without_the_approval() -> None:
    new, state = shortened()
    digest = planner.plan(new, state, samples.NOW).destruction.digest
    plan = planner.plan(new, dataclasses.replace(state, approvals=(approval(digest),)), samples.NOW)
    recorded = dataclasses.replace(state, releases=plan.releases)
    later = planner.plan(new, recorded, samples.NOW)
    assert gone(later) == THREE and later.destruction == actions.Destruction() and later.releases == ()
    # The transaction that deletes agrees.
    (series,) = recorded.series
    expiry.check_delete(new, recorded, series, "img-1", 1, samples.NOW)


def test_an_approval_in_the_same_revision_as_the_shortened_rule_takes_effect_with_it() -> None:
    new, state = shortened()
    digest = planner.plan(new, state, samples.NOW).destruction.digest
    both = wanted(samples.FIXED_7D, manifest(digest))
    plan = planner.plan(both, state, samples.NOW)
    assert gone(plan) == THREE and plan.configuration
    # In force, with the promise recorded as the catalog does it, the same part is found under the same digest.
    promises = configuration.promises(both, state.applied, 10)
    in_force = samples.seen(both, *state.series, promises=promises)
    again = planner.plan(both, in_force, samples.NOW)
    assert again.destruction == plan.destruction and again.releases == plan.releases
    orphaned = desired.gather("r", new.objects(), orphaned=[both.approvals["shorten"]])
    assert gone(planner.plan(orphaned, dataclasses.replace(in_force, applied={}), samples.NOW)) == set()


def test_later_images_keep_their_promise_and_do_not_change_the_digest() -> None:
    new, state = shortened()
    digest = planner.plan(new, state, samples.NOW).destruction.digest
    more = [*days(10), image(11, ago(minutes=30))]
    grown = dataclasses.replace(state, series=(samples.series(*more),))
    assert planner.plan(new, grown, samples.NOW).destruction.digest == digest
    # A day later the fourth image would go too: the approval still lets the first three go, and the fourth is held.
    late = samples.NOW + dt.timedelta(hours=23)
    plan = planner.plan(new, dataclasses.replace(grown, approvals=(approval(digest),)), late)
    assert gone(plan) == THREE
    assert [item.image for item in plan.destruction.items] == ["img-4"] and not plan.destruction.approved
    assert plan.destruction.digest != digest


def test_an_approval_still_matches_after_older_images_of_another_rule_have_crossed_theirs() -> None:
    """Two operations are shortened; a day later one more copy of each would go, one of them older than the newest
    image that was counted."""
    before, after = (
        samples.estate(
            samples.unit("fast"), samples.unit("far"),
            samples.lifecycle(
                "gold",
                samples.operation("land", "fast", None, {"type": "Fixed", "period": land}),
                samples.operation("off", "far", "land", {"type": "Fixed", "period": off}),
            ),
            samples.policy("gold", FULLS),
        )
        for land, off in (("90d", "90d"), ("2d", "7d"))
    )  # fmt: skip
    spec = before.lifecycles["gold"].spec
    images = [one._replace(copies=(copy(), copy(2, "off", "far")), owed=samples.owed_key(spec)) for one in days(10)]
    state = samples.seen(before, samples.series(*images))
    part = planner.plan(after, state, samples.NOW).destruction
    given_one = approval(part.digest, len(part.items))
    late = samples.NOW + dt.timedelta(hours=23)
    plan = planner.plan(after, dataclasses.replace(state, approvals=(given_one,)), late)
    assert gone(plan) == {f"expire/{item.image}/{item.copy}" for item in part.items}
    assert {(item.image, item.copy) for item in plan.destruction.items} == {("img-9", 1), ("img-4", 2)}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"copies": 2}, "ApprovalTooSmall"),
        ({"until": samples.NOW}, "ApprovalExpired"),
        ({"digest": "blake3:" + "0" * 64}, "ApprovalUnused"),
    ],
)
def test_an_approval_that_does_not_match_lets_nothing_go_and_is_shown(change: dict[str, Any], code: str) -> None:
    new, state = shortened()
    digest = planner.plan(new, state, samples.NOW).destruction.digest
    given_one = approval(**{"digest": digest, **change})
    plan = planner.plan(new, dataclasses.replace(state, approvals=(given_one,)), samples.NOW)
    assert gone(plan) == set() and not plan.destruction.approved and plan.releases == ()
    assert codes(plan) == {code: f"Approval/{given_one.digest}"}
    written = manifest(
        given_one.digest, given_one.copies, "2026-11-23T21:00:00Z" if "until" in change else "2027-01-01T00:00:00Z"
    )
    assert codes(planner.plan(wanted(samples.FIXED_7D, written), state, samples.NOW)) == {code: "Approval/shorten"}


def test_while_a_clock_jump_is_unexplained_no_approval_is_made_use_of() -> None:
    new, state = shortened()
    digest = planner.plan(new, state, samples.NOW).destruction.digest
    jumped = dataclasses.replace(state, approvals=(approval(digest),), clock_jump="the clock jumped")
    plan = planner.plan(new, jumped, samples.NOW)
    assert plan.releases == () and not plan.destruction.approved


def test_one_approval_ends_the_waiting_of_all_copies_that_came_back() -> None:
    estate = wanted(samples.FIXED_7D)
    back = days(10, imported=True)
    state = samples.seen(estate, samples.series(*back[:-1], image(10, ago(hours=1))))
    digest = planner.plan(estate, state, samples.NOW).destruction.digest
    plan = planner.plan(estate, dataclasses.replace(state, approvals=(approval(digest),)), samples.NOW)
    assert gone(plan) == THREE
    # The next day the fourth goes by its rule alone.
    recorded = dataclasses.replace(state, releases=plan.releases)
    late = planner.plan(estate, recorded, samples.NOW + dt.timedelta(hours=23))
    assert "expire/img-4/1" in gone(late) and late.destruction.items == ()


def test_it_ends_the_waiting_of_other_machines_and_operations_too() -> None:
    estate = wanted(samples.FIXED_7D)
    late = [image(20 + n, ago(days=7, hours=-2 - n), copy(imported=True)) for n in range(2)]
    state = samples.seen(
        estate,
        samples.series(*days(10, imported=True)[:1], image(11, ago(hours=1))),
        samples.series(*late, image(30, ago(hours=1)), client="diskimages:/srv/other"),
    )
    digest = planner.plan(estate, state, samples.NOW).destruction.digest
    plan = planner.plan(estate, dataclasses.replace(state, approvals=(approval(digest, 1),)), samples.NOW)
    assert gone(plan) == {"expire/img-1/1"}
    (ended,) = plan.releases
    assert (ended.client, ended.operation, ended.before) == (promises.ANY, promises.ANY, promises.NONE)
    later = samples.NOW + dt.timedelta(hours=5)
    assert not {"expire/img-20/1", "expire/img-21/1"} & gone(planner.plan(estate, state, later))
    found = planner.plan(estate, dataclasses.replace(state, releases=plan.releases), later)
    assert {"expire/img-20/1", "expire/img-21/1"} <= gone(found) and found.destruction.items == ()


def test_what_a_never_forbids_stays_although_it_was_approved() -> None:
    new, state = shortened(*days(2, newest=dt.timedelta(days=20)))
    digest = planner.plan(new, state, samples.NOW).destruction.digest
    plan = planner.plan(new, dataclasses.replace(state, approvals=(approval(digest),)), samples.NOW)
    assert gone(plan) == set()
    assert samples.states(plan)["expire/img-2/1"] == ("Blocked", "NewestImage")


# -- omission ----------------------------------------------------------------------------------------------------------


def small(count: int, *more: Any) -> desired.Desired:
    """``count`` units."""
    return samples.estate(*(samples.unit(f"u{n}") for n in range(count)), *more)


@pytest.mark.parametrize("left", [0, 3])
def test_an_approval_of_what_is_gone_releases_the_change(left: int) -> None:
    before, after = small(7), small(left)
    state = samples.seen(before, machines=())
    plan = planner.plan(after, state, samples.NOW)
    (problem,), (question,) = plan.problems, plan.questions
    assert problem.code == "HF490" and problem.hint is not None and question.digest in problem.hint
    assert question.what == "Configuration" and not question.approved
    for tree, rows in (
        (small(left, manifest(question.digest, 0)), ()),
        (after, (approval(question.digest, 0),)),
    ):
        found = planner.plan(tree, dataclasses.replace(state, approvals=rows), samples.NOW)
        assert found.problems == ()
        assert [one.change for one in found.configuration].count("Orphan") == 7 - left
    late = approval(question.digest, 0, until=samples.NOW)
    held = planner.plan(after, dataclasses.replace(state, approvals=(late,)), samples.NOW)
    assert [one.code for one in held.problems] == ["HF490"] and "ApprovalExpired" in codes(held)


def test_more_gone_than_was_approved_is_guarded_again() -> None:
    state = samples.seen(small(9), machines=())
    (question,) = planner.plan(small(5), state, samples.NOW).questions
    plan = planner.plan(small(4), dataclasses.replace(state, approvals=(approval(question.digest),)), samples.NOW)
    assert [one.code for one in plan.problems] == ["HF490"]


def test_approvals_that_go_are_no_omission() -> None:
    written = [samples.make("Approval", f"a{n}", manifest("blake3:" + "0" * 64).spec.written()) for n in range(3)]
    before = samples.estate(samples.unit("u0"), *written)
    assert configuration.guard(small(1), samples.seen(before, machines=()).applied) is None


def test_an_approved_selection_raises_no_alarm_for_the_same_clients() -> None:
    estate = wanted(samples.FIXED_7D)
    machines = [samples.machine(f"diskimages:/srv/vm{n}") for n in range(6)]
    all_series = [samples.series(image(n, ago(hours=1)), client=one.id) for n, one in enumerate(machines, 1)]
    inventories = {"gold": observed.Inventory(machines=tuple(machines[:3]), seen=samples.NOW)}
    state = samples.seen(estate, *all_series, inventories=inventories)
    plan = planner.plan(estate, state, samples.NOW)
    (alarm,), (question,) = [one for one in plan.drift if one.code == "SelectionShrunk"], plan.questions
    assert question.digest in alarm.message
    approved = dataclasses.replace(state, approvals=(approval(question.digest, 0, until=samples.NOW),))
    plan = planner.plan(estate, approved, samples.NOW)
    assert not [one for one in plan.drift if one.code in ("SelectionShrunk", "ApprovalExpired")]
    fewer = {"gold": observed.Inventory(machines=tuple(machines[:2]), seen=samples.NOW)}
    plan = planner.plan(estate, dataclasses.replace(approved, inventories=fewer), samples.NOW)
    assert [one for one in plan.drift if one.code == "SelectionShrunk"]


# -- properties --------------------------------------------------------------------------------------------------------

RULES = st.sampled_from(
    (
        {"type": "Fixed", "period": "2d"}, {"type": "Fixed", "period": "6d"}, {"type": "Fixed", "period": "40d"},
        {"type": "Keep", "last": 2}, {"type": "Keep", "daily": 6}, {"type": "Keep", "daily": 3, "weekly": 4},
        {"type": "Forever"},
    )
)  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> tuple[desired.Desired, observed.Observed]:
    """A retention that becomes another one over the images of two clients, some of them imported."""
    old, new = draw(RULES), draw(RULES)
    count, sequence = draw(st.integers(1, 12)), 0
    all_series: dict[str, list[observed.Image]] = {}
    for day in range(count, 0, -1):
        for client in ("diskimages:/srv/a", "diskimages:/srv/b"):
            sequence += 1
            if draw(st.integers(0, 5)):
                made = copy(imported=draw(st.integers(0, 9)) == 0)
                all_series.setdefault(client, []).append(image(sequence, ago(days=day, hours=-1), made))
    series = [samples.series(*images, client=client) for client, images in all_series.items()]
    earlier = [wanted(one) for one in draw(st.lists(RULES, max_size=2))]
    promises = tuple(
        observed.Promise(
            lifecycle="gold", operation="land", retention=one.lifecycles["gold"].spec.operations[0].retention,
            up_to=draw(st.integers(1, 24)),
        )
        for one in earlier
    )  # fmt: skip
    return wanted(new), samples.seen(wanted(old), *series, promises=promises)


@settings(max_examples=200)
@given(change=changes(), spare=st.integers(-2, 2))
def test_the_approved_part_and_nothing_else_goes(change: tuple[Any, Any], spare: int) -> None:
    new, state = change
    before = planner.plan(new, state, samples.NOW)
    if before.destruction.digest is None:
        return
    allowed = max(0, len(before.destruction.items) + spare)
    given_one = approval(before.destruction.digest, allowed)
    plan = planner.plan(new, dataclasses.replace(state, approvals=(given_one,)), samples.NOW)
    held = {f"expire/{item.image}/{item.copy}" for item in before.destruction.items}
    if spare < 0:
        assert gone(plan) == gone(before) and not plan.destruction.approved and plan.releases == ()
        return
    assert gone(before) <= gone(plan) <= gone(before) | held
    # What does not go of it is kept by a never, not by what was approved.
    left = held - gone(plan)
    reasons = {samples.by_address(plan)[one].reason.code for one in left if one in samples.by_address(plan)}
    assert reasons <= {"NewestImage"}
    assert plan.destruction.approved
    # Recorded, they say the same without any approval.
    later = planner.plan(new, dataclasses.replace(state, releases=plan.releases), samples.NOW)
    assert gone(later) == gone(plan)


@settings(max_examples=100)
@given(change=changes(), hours=st.integers(0, 20))
def test_a_digest_stays_while_images_are_added_and_changes_with_the_causes(change: tuple[Any, Any], hours: int) -> None:
    new, state = change
    before = planner.plan(new, state, samples.NOW).destruction
    grown = tuple(
        dataclasses.replace(one, images=(*one.images, image(900 + n, ago(minutes=5 + hours), copy())))
        for n, one in enumerate(state.series)
    )
    added = dataclasses.replace(state, series=grown)
    plan = planner.plan(new, added, samples.NOW)
    if [item.image for item in plan.destruction.items] == [item.image for item in before.items]:
        assert plan.destruction.digest == before.digest
    other = wanted({"type": "Fixed", "period": "1h"})
    found = planner.plan(other, state, samples.NOW).destruction
    assert found.digest is None or found.digest != before.digest


# -- foresight ---------------------------------------------------------------------------------------------------------


def test_the_end_of_a_promise_of_keep_is_when_the_next_slots_would_push_the_copy_out() -> None:
    old, new = wanted({"type": "Keep", "daily": 10}), wanted({"type": "Keep", "last": 3})
    state = samples.seen(old, samples.series(*days(10)))
    plan = planner.plan(new, state, samples.NOW)
    assert {item.expires_before for item in plan.destruction.items} == {None}
    found = foresights.dated(plan, new, state).destruction
    assert dataclasses.replace(found, items=()) == dataclasses.replace(plan.destruction, items=())
    # Daily images of 20:00; the next ones push out one each, the oldest first.
    slots = [samples.NOW - dt.timedelta(hours=1) + dt.timedelta(days=n) for n in range(1, 8)]
    assert [(item.image, item.expires_before) for item in found.items] == [
        (f"img-{n}", slots[n - 1]) for n in range(1, 8)
    ]


def test_without_coming_slots_or_with_a_promise_for_ever_there_is_no_date() -> None:
    for rule in ({"type": "Keep", "yearly": 20}, {"type": "Forever"}):
        old, new = wanted(rule), wanted({"type": "Fixed", "period": "1d"})
        state = samples.seen(old, samples.series(*days(3)))
        plan = planner.plan(new, state, samples.NOW)
        assert foresights.dated(plan, new, state) == plan
