"""Which copies leave, which must not, and why: retention, brakes, the six nevers."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest

from reconciler.base import errors
from reconciler.planning import actions, desired, expiry, observed, planner

ago, image, copy = samples.ago, samples.image, samples.copy
FULLS = {"name": "daily", "type": "Full", "every": "24h"}


def wanted(land: dict[str, Any] | None = None, **spec: Any) -> desired.Desired:
    """Daily fulls that land on ``fast`` and are owed nothing else."""
    return samples.estate(
        samples.unit("fast", **spec),
        samples.lifecycle("gold", samples.operation("land", "fast", retention=land or samples.FIXED_7D)),
        samples.policy("gold", FULLS),
    )


def decisions(
    estate: desired.Desired, *images: observed.Image, now: dt.datetime = samples.NOW, **seen: Any
) -> dict[tuple[str, int], actions.CopyDecision]:
    """What is decided about every copy."""
    state = samples.seen(estate, samples.series(*images), **seen)
    return {(one.image, one.copy): one for one in expiry.decisions(estate, state, now)}


def expiries(estate: desired.Desired, *images: observed.Image, **seen: Any) -> dict[str, tuple[str, str]]:
    """State and code of the Expire actions by address."""
    plan = planner.plan(estate, samples.seen(estate, samples.series(*images), **seen), samples.NOW)
    return {address: found for address, found in samples.states(plan).items() if address.startswith("expire/")}


def days(count: int, *, start: int = 0, **fields: Any) -> list[observed.Image]:
    """Daily images, the newest one ``start`` days and an hour old."""
    ages = range(count + start - 1, start - 1, -1)
    return [image(number, ago(days=age, hours=1), **fields) for number, age in enumerate(ages, 1)]


def test_fixed_lets_go_when_the_period_has_passed_and_says_when_it_will() -> None:
    found = decisions(wanted(), *days(9))
    assert found["img-1", 1].reason.message == "expires: Fixed 7d passed 2026-11-22T20:00Z"
    assert found["img-3", 1].reason.message == "kept: Fixed 7d until 2026-11-24T20:00Z"
    assert found["img-3", 1].expires_at == samples.at("2026-11-24T20:00Z")
    assert expiries(wanted(), *days(9)) == {
        "expire/img-1/1": ("Due", "Fixed"),
        "expire/img-2/1": ("Due", "Fixed"),
        "expire/img-3/1": ("Planned", "Fixed"),
    }


def test_never_1_the_last_good_copy_of_the_newest_image_stays() -> None:
    lonely = image(1, ago(days=1))
    assert expiries(wanted({"type": "Fixed", "period": "1h"}), lonely) == {"expire/img-1/1": ("Blocked", "NewestImage")}


def test_never_1_three_images_stay_while_the_newest_is_older_than_the_objective() -> None:
    # The objective is twice a day.
    fresh, stale = days(5, start=1), days(5, start=3)
    hour = wanted({"type": "Fixed", "period": "1h"})
    assert [a for a, s in expiries(hour, *fresh).items() if s[0] == "Due"] == [
        f"expire/img-{n}/1" for n in (1, 2, 3, 4)
    ]
    assert [a for a, s in expiries(hour, *stale).items() if s[0] == "Due"] == ["expire/img-1/1", "expire/img-2/1"]


def test_never_1_counts_what_can_be_read_not_what_is_listed() -> None:
    hour = wanted({"type": "Fixed", "period": "1h"})
    newest = image(2, ago(hours=2), copy(state="Damaged"))
    assert expiries(hour, image(1, ago(hours=30)), newest) == {
        "expire/img-1/1": ("Blocked", "NewestImage"),
        "expire/img-2/1": ("Blocked", "NewestImage"),
    }


def test_never_1_keeps_the_reachable_one_of_two_last_copies() -> None:
    two = samples.estate(
        samples.unit("fast"), samples.unit("far"),
        samples.lifecycle(
            "gold",
            samples.operation("land", "fast", None, {"type": "Fixed", "period": "1h"}),
            samples.operation("off", "far", "land", {"type": "Fixed", "period": "1h"}),
        ),
        samples.policy("gold", FULLS),
    )  # fmt: skip
    newest = image(1, ago(hours=2), copy(), copy(2, "off", "far"), spec=two.lifecycles["gold"].spec)
    state = samples.seen(two, samples.series(newest))
    far = observed.Unit(name="far", state="Offline")
    offline = dataclasses.replace(state, units={**state.units, "far": far})
    assert samples.states(planner.plan(two, state, samples.NOW))["expire/img-1/1"] == ("Due", "Fixed")
    found = samples.states(planner.plan(two, offline, samples.NOW))
    assert found["expire/img-1/1"] == ("Blocked", "NewestImage")
    assert found["expire/img-1/2"] == ("Blocked", "UnitOffline")


def test_never_2_a_copy_that_owes_a_child_waits_for_it() -> None:
    estate = samples.small(land={"type": "Fixed", "period": "1d"})
    spec = estate.lifecycles["gold"].spec
    old, new = image(1, ago(days=3), spec=spec), image(2, ago(hours=1), spec=spec)
    plan = planner.plan(estate, samples.seen(estate, samples.series(old, new)), samples.NOW)
    waiting = samples.by_address(plan)["expire/img-1/1"]
    assert (waiting.state, waiting.reason.code) == (actions.State.WAITING, "OwesCopy")
    assert waiting.after == ("duplicate/img-1/dedupe",)
    assert "Fixed 1d passed 2026-11-21T21:00Z, still owes dedupe" in waiting.reason.message


@pytest.mark.parametrize("state", ["Complete", "Expiring", "Expired"])
def test_a_child_that_came_and_went_is_paid(state: str) -> None:
    estate = samples.small(land={"type": "Fixed", "period": "1d"})
    spec = estate.lifecycles["gold"].spec
    old = image(1, ago(days=3), copy(), copy(2, "dedupe", "deep", state), spec=spec)
    new = image(2, ago(hours=1), copy(), copy(2, "dedupe", "deep"), spec=spec)
    found = expiries(estate, old, new)
    assert found["expire/img-1/1"] == ("Due", "Fixed")


def test_never_3_a_copy_in_use_waits() -> None:
    busy = image(1, ago(days=9), copy(busy=True))
    assert expiries(wanted(), busy, image(2, ago(hours=1))) == {"expire/img-1/1": ("Waiting", "Busy")}


def test_never_4_a_lock_holds_until_it_ends() -> None:
    estate = wanted(immutability={"period": "30d"})
    locked = image(1, ago(days=9), copy(created_at=ago(days=9)))
    plan = planner.plan(estate, samples.seen(estate, samples.series(locked, image(2, ago(hours=1)))), samples.NOW)
    waiting = samples.by_address(plan)["expire/img-1/1"]
    assert (waiting.state, waiting.reason.code, waiting.at) == (actions.State.WAITING, "Immutable", ago(days=-21))


def chain(*ages: float, bases: bool = True) -> list[observed.Image]:
    """A full and its incrementals on one Directory, by their age in days; then a new full."""
    images = [image(1, ago(days=ages[0]))]
    for number, age in enumerate(ages[1:], 2):
        base = f"img-{number - 1}"
        images.append(image(number, ago(days=age), copy(base=base if bases else None), type="Incremental", parent=base))
    return [*images, image(len(ages) + 1, ago(hours=1))]


def test_never_6_a_base_stays_as_long_as_a_kept_copy_needs_it() -> None:
    found = decisions(wanted(), *chain(10, 9, 5))
    assert found["img-1", 1].reason.message == "kept: base of img-2"
    assert found["img-2", 1].reason.message == "kept: base of img-3"
    assert found["img-3", 1].reason.code == "Fixed"
    assert expiries(wanted(), *chain(10, 9, 5)) == {}
    # Its tail may go alone.
    assert expiries(wanted({"type": "Keep", "last": 3}), *chain(10, 9, 8)) == {}
    tail = [*chain(10, 9, 8)[:3], image(4, ago(days=2)), image(5, ago(days=1)), image(6, ago(hours=1))]
    assert expiries(wanted({"type": "Keep", "last": 3}), *tail)["expire/img-3/1"] == ("Due", "Keep")


def test_a_useless_chain_leaves_from_its_end() -> None:
    plan = planner.plan(wanted(), samples.seen(wanted(), samples.series(*chain(10, 9, 8))), samples.NOW)
    found = samples.by_address(plan)
    assert samples.states(plan)["expire/img-3/1"] == ("Due", "Fixed")
    assert (found["expire/img-2/1"].state, found["expire/img-2/1"].after) == (
        actions.State.WAITING,
        ("expire/img-3/1",),
    )
    assert found["expire/img-1/1"].after == ("expire/img-2/1",)


def test_partial_images_leave_a_week_after_the_next_complete_one() -> None:
    partial = image(1, ago(days=20), state="Partial")
    assert decisions(wanted(), partial)["img-1", 1].reason.message == (
        "kept: Partial, and no complete image has followed yet"
    )
    soon = expiries(wanted({"type": "Forever"}), partial, image(2, ago(days=6, hours=12)))
    assert soon == {"expire/img-1/1": ("Planned", "Partial")}
    assert expiries(wanted(), partial, image(2, ago(days=7)), image(3, ago(hours=1)))["expire/img-1/1"] == (
        "Due",
        "Partial",
    )


def test_images_of_a_wrong_clock_are_kept_and_push_nothing_out() -> None:
    estate = wanted({"type": "Keep", "last": 2})
    ahead = image(3, ago(days=-400))
    found = decisions(estate, image(1, ago(days=2)), image(2, ago(days=1)), ahead, image(4, ago(hours=1)))
    assert [found[f"img-{n}", 1].reason.code for n in (1, 2, 3, 4)] == ["Keep", "Keep", "DoubtfulTime", "Keep"]
    assert found["img-1", 1].reason.message == "expires: Keep last 2 keeps others"
    # The time that contradicts the others' order is the doubtful one, whichever way it is wrong.
    back = image(3, ago(days=300))
    found = decisions(estate, image(1, ago(days=2)), image(2, ago(days=1)), back, image(4, ago(hours=1)))
    assert found["img-3", 1].reason.code == "DoubtfulTime"


def test_an_interrupted_deletion_goes_on_at_once() -> None:
    half = image(1, ago(days=1), copy(state="Expiring"))
    assert expiries(wanted(), half, image(2, ago(hours=1))) == {"expire/img-1/1": ("Due", "Interrupted")}


def test_a_clock_jump_holds_expiry() -> None:
    found = expiries(wanted(), *days(9), clock_jump="the clock jumped")
    assert found["expire/img-1/1"] == ("Blocked", "ClockJump")


@pytest.mark.parametrize("state", ["Damaged", "Lost"])
def test_a_broken_copy_goes_once_another_one_of_its_operation_is_good(state: str) -> None:
    estate = samples.estate(
        samples.unit("a"), samples.unit("b"), samples.group("fast", "Prioritized", "a", "b"),
        samples.lifecycle("gold", samples.operation("land", "fast", None, {"type": "Fixed", "period": "9d"})),
        samples.policy("gold", FULLS),
    )  # fmt: skip
    healed = image(1, ago(days=1), copy(1, "land", "a", state), copy(2, "land", "b"))
    assert expiries(estate, healed)["expire/img-1/1"] == ("Due", "Replaced")
    alone = image(1, ago(days=1), copy(1, "land", "a", state))
    assert "expire/img-1/1" not in expiries(estate, alone)


def test_a_policy_that_nobody_knows_keeps_what_it_kept() -> None:
    estate = wanted()
    orphaned = dataclasses.replace(
        samples.seen(estate, samples.series(*days(9), policy="gone")), applied={}, in_force=None
    )
    found = {(one.image, one.copy): one.reason.code for one in expiry.decisions(estate, orphaned, samples.NOW)}
    assert found["img-1", 1] == "Fixed"
    unknown = samples.series(*(one._replace(lifecycle="gone") for one in days(9)))
    assert {one.reason.code for one in expiry.decisions(estate, samples.seen(estate, unknown), samples.NOW)} == {
        "NoRule"
    }


# -- brakes ------------------------------------------------------------------------------------------------------------


def braked(before: dict[str, Any], after: dict[str, Any], **more: Any) -> tuple[desired.Desired, observed.Observed]:
    """A revision in force under which images were promised ``before``, and the manifests that say ``after``."""
    old, new = wanted(before), wanted(after)
    state = samples.seen(old, samples.series(*days(10)), **more)
    return new, state


def test_what_would_go_before_its_promise_waits_and_is_listed() -> None:
    new, state = braked({"type": "Fixed", "period": "30d"}, samples.FIXED_7D)
    plan = planner.plan(new, state, samples.NOW)
    held = samples.by_address(plan)["expire/img-1/1"]
    assert (held.state, held.reason.code) == (actions.State.BLOCKED, "HeldByBrake")
    assert held.reason.message == "kept: Fixed 30d was promised until 2026-12-14T20:00Z"
    assert [item.image for item in plan.destruction.items] == ["img-1", "img-2", "img-3"]
    first = plan.destruction.items[0]
    assert (first.expires_before, first.expires_after) == (ago(days=-21, hours=1), ago(days=2, hours=1))
    (oldest,) = plan.destruction.clients
    assert (oldest.client, oldest.before, oldest.after) == ("oblvm1", ago(days=9, hours=1), ago(days=6, hours=1))
    assert not any(a.type is actions.Type.EXPIRE and a.state is actions.State.DUE for a in plan.actions)


def test_natural_expiry_flows_without_asking_and_lengthening_is_no_destruction() -> None:
    for before, after in ((samples.FIXED_7D, {"type": "Fixed", "period": "30d"}), (samples.FIXED_7D, samples.FIXED_7D)):
        plan = planner.plan(*braked(before, after), samples.NOW)
        assert plan.destruction == actions.Destruction()
    new, state = braked({"type": "Fixed", "period": "9d"}, samples.FIXED_7D)
    found = samples.states(planner.plan(new, state, samples.NOW))
    assert found["expire/img-1/1"] == ("Due", "Fixed")
    assert found["expire/img-2/1"] == ("Blocked", "HeldByBrake")


@pytest.mark.parametrize("before", [{"type": "ExpireAfterCopy"}, {"type": "CapacityManaged"}])
def test_rules_that_promise_nothing_hold_nothing(before: dict[str, Any]) -> None:
    assert planner.plan(*braked(before, samples.FIXED_7D), samples.NOW).destruction.items == ()


def test_a_promise_covers_the_images_made_under_it_and_no_later_ones() -> None:
    (land,) = wanted(samples.FOREVER).lifecycles["gold"].spec.operations
    promise = observed.Promise(lifecycle="gold", operation="land", retention=land.retention, up_to=2)
    estate = wanted()
    state = samples.seen(estate, samples.series(*days(10)), promises=(promise,))
    found = samples.states(planner.plan(estate, state, samples.NOW))
    assert [found[f"expire/img-{n}/1"] for n in (1, 2, 3)] == [
        ("Blocked", "HeldByBrake"), ("Blocked", "HeldByBrake"), ("Due", "Fixed"),
    ]  # fmt: skip


def test_a_copy_leaves_when_the_longest_of_rule_and_promises_ends() -> None:
    new, state = braked({"type": "Fixed", "period": "30d"}, samples.FIXED_7D)
    found = {(one.image, one.copy): one for one in expiry.decisions(new, state, samples.NOW)}["img-10", 1]
    assert found.expires_at == ago(days=-30, hours=1)
    assert found.reason.message == (
        "kept: Fixed 7d until 2026-11-30T20:00Z; Fixed 30d was promised until 2026-12-23T20:00Z"
    )
    new, state = braked(samples.FOREVER, samples.FIXED_7D)
    found = {(one.image, one.copy): one for one in expiry.decisions(new, state, samples.NOW)}["img-10", 1]
    assert found.expires_at is None and found.reason.message.endswith("; Forever was promised")


def test_under_keep_a_promise_ends_as_the_old_rule_would_have_ended_it() -> None:
    new, state = braked({"type": "Keep", "last": 6}, {"type": "Keep", "last": 3})
    found = samples.states(planner.plan(new, state, samples.NOW))
    codes = [found.get(f"expire/img-{n}/1", ("Kept", ""))[:2] for n in range(1, 11)]
    assert codes == [("Due", "Keep")] * 4 + [("Blocked", "HeldByBrake")] * 3 + [("Kept", "")] * 3


def test_the_digest_covers_the_causes_and_stays_while_copies_flow_out() -> None:
    new, state = braked({"type": "Fixed", "period": "204h"}, samples.FIXED_7D)
    first = planner.plan(new, state, samples.NOW).destruction
    later = planner.plan(new, state, samples.NOW + dt.timedelta(hours=12)).destruction
    assert [item.image for item in first.items] == ["img-2", "img-3"]
    assert [item.image for item in later.items] == ["img-3"]
    assert first.digest == later.digest and first.digest is not None
    other, _ = braked({"type": "Fixed", "period": "204h"}, {"type": "Fixed", "period": "5d"})
    assert planner.plan(other, state, samples.NOW).destruction.digest != first.digest


def test_copies_that_came_back_with_a_unit_wait_for_an_approval() -> None:
    imported = image(1, ago(days=20), copy(imported=True))
    estate = wanted()
    plan = planner.plan(estate, samples.seen(estate, samples.series(imported, image(2, ago(hours=1)))), samples.NOW)
    assert samples.states(plan)["expire/img-1/1"] == ("Blocked", "RebuiltCatalog")
    assert [item.image for item in plan.destruction.items] == ["img-1"]


@pytest.mark.parametrize("why", ["Partial", "Damaged"])
def test_what_no_retention_keeps_waits_too_if_it_came_back(why: str) -> None:
    estate = wanted({"type": "Fixed", "period": "30d"})
    for imported in (False, True):
        old = image(1, ago(days=20), copy(imported=imported), state="Partial")
        if why == "Damaged":
            old = image(1, ago(days=11), copy(state="Damaged", imported=imported), copy(2))
        state = samples.seen(estate, samples.series(old, image(2, ago(days=10)), image(3, ago(hours=1))))
        plan = planner.plan(estate, state, samples.NOW)
        expected = ("Blocked", "RebuiltCatalog") if imported else ("Due", "Partial" if why == "Partial" else "Replaced")
        assert samples.states(plan)["expire/img-1/1"] == expected


# -- inside the deleting transaction -----------------------------------------------------------------------------------


def test_the_deleting_transaction_refuses_what_a_never_forbids() -> None:
    estate = wanted()
    images = days(9)
    state = samples.seen(estate, samples.series(*images))
    expiry.check_delete(estate, state, samples.series(*images), "img-1", 1, samples.NOW)
    pinned = [images[0]._replace(copies=(copy(busy=True),)), *images[1:]]
    with pytest.raises(errors.NeverViolated, match=r"copy 1 of image img-1 on fast must stay: a running job"):
        expiry.check_delete(estate, state, samples.series(*pinned), "img-1", 1, samples.NOW)
    with pytest.raises(errors.NeverViolated, match="newest complete image"):
        expiry.check_delete(estate, state, samples.series(*images), "img-9", 1, samples.NOW)
    with pytest.raises(errors.NeverViolated, match="is not in the catalog"):
        expiry.check_delete(estate, state, samples.series(*images), "img-99", 1, samples.NOW)
    based = [*images, image(10, ago(minutes=1), copy(base="img-1"), type="Incremental", parent="img-1")]
    with pytest.raises(errors.NeverViolated, match="base of img-10"):
        expiry.check_delete(estate, state, samples.series(*based), "img-1", 1, samples.NOW)
    half = [images[0]._replace(copies=(copy(state="Expiring"),)), *images[1:]]
    expiry.check_delete(estate, state, samples.series(*half), "img-1", 1, samples.NOW)
