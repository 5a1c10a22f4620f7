"""What people rule: held images keep a good copy whatever happens, orders go through the brake, waivers end debts."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.base import errors
from reconciler.planning import (
    actions,
    desired,
    expiry,
    explanations,
    histories,
    holds,
    observed,
    planner,
    promises,
    rulings,
)

NOW = samples.NOW
DAILY = {"name": "daily", "type": "Full", "every": "24h"}
WEEK = {"type": "Fixed", "period": "7d"}
REASON = "case 4711"


def ruling(kind: str, object: str, **fields: Any) -> observed.Ruling:
    """A ruling of two days ago."""
    return observed.Ruling(kind=kind, object=object, by="anna", at=samples.ago(days=2), reason="told so", **fields)


def legal_hold(name: str = "case-4711", **spec: Any) -> Any:
    """A LegalHold manifest; of the one client by name unless told otherwise."""
    return samples.make("LegalHold", name, {"reason": REASON, **(spec or {"clients": ["oblVM1"]})})


def recorded(**fields: Any) -> observed.Hold:
    """A hold as the catalog has it."""
    plain: dict[str, Any] = {
        "name": "case-4711", "clients": frozenset({samples.CLIENT}), "images": frozenset(), "since": None, "until": None,
        "reason": REASON, "words": frozenset({"clients/oblVM1"}), "by": "root@vm", "at": samples.ago(days=30),
    }  # fmt: skip
    return observed.Hold(**{**plain, **fields})


def estate(*more: Any, retention: dict[str, Any] | None = None, **unit: Any) -> desired.Desired:
    """Daily fulls onto a pool, kept a week."""
    return samples.estate(
        samples.pool("deep", **unit),
        samples.lifecycle("gold", samples.operation("land", "deep", retention=retention or WEEK)),
        samples.policy("gold", DAILY),
        *more,
    )


def days(wanted: desired.Desired, *ages: int, **fields: Any) -> observed.Series:
    """Full images so many days old, one copy each."""
    spec = wanted.lifecycles["gold"].spec
    return samples.series(
        *(
            samples.image(number, samples.ago(days=age), samples.copy(unit="deep", **fields), spec=spec)
            for number, age in enumerate(sorted(ages, reverse=True), 1)
        )
    )


def expiries(wanted: desired.Desired, seen: observed.Observed) -> dict[str, tuple[str, str]]:
    """State and code of each expiry of a plan, by image and number."""
    return {
        address.removeprefix("expire/"): said
        for address, said in samples.states(planner.plan(wanted, seen, NOW)).items()
        if address.startswith("expire/")
    }


def decided(wanted: desired.Desired, seen: observed.Observed) -> dict[str, actions.CopyDecision]:
    """What is decided about each copy."""
    return {f"{one.image}/{one.copy}": one for one in expiry.decisions(wanted, seen, NOW)}


# -- legal holds -------------------------------------------------------------------------------------------------------


def test_a_hold_counts_before_it_is_in_force_and_after_its_manifest_is_gone() -> None:
    wanted = estate()
    series = days(wanted, 30, 20, 1)
    assert expiries(wanted, samples.seen(wanted, series)) == {
        "img-1/1": ("Due", "Fixed"), "img-2/1": ("Due", "Fixed"),
    }  # fmt: skip
    kept = {"img-1/1": ("Blocked", "LegalHold"), "img-2/1": ("Blocked", "LegalHold")}
    with_hold = estate(legal_hold())
    before = dataclasses.replace(samples.seen(wanted, series))
    assert expiries(with_hold, before) == kept, "a plan reckons with what it would put in force"
    assert expiries(wanted, samples.seen(wanted, series, holds=(recorded(),))) == kept
    released = estate(legal_hold(clients=["oblVM1"], released={"by": "judge", "at": NOW, "reason": "settled"}))
    assert expiries(released, samples.seen(released, series, holds=(recorded(),)))["img-1/1"] == ("Due", "Fixed")


def test_a_hold_covers_its_time_alone_and_images_to_come() -> None:
    hold = recorded(since=samples.ago(days=25), until=samples.ago(days=15))
    wanted = estate()
    seen = samples.seen(wanted, days(wanted, 30, 25, 20, 15, 1), holds=(hold,))
    assert {place: code for place, (_, code) in expiries(wanted, seen).items()} == {
        "img-1/1": "Fixed", "img-2/1": "LegalHold", "img-3/1": "LegalHold", "img-4/1": "Fixed",
    }  # fmt: skip


def test_of_two_copies_the_one_that_stays_longest_is_kept() -> None:
    wanted = samples.small(land={"type": "Fixed", "period": "9d"})
    wanted = samples.estate(
        samples.unit("fast"), samples.pool("deep"),
        samples.lifecycle(
            "gold", samples.operation("land", "fast", retention=WEEK),
            samples.operation("dedupe", "deep", "land", {"type": "Fixed", "period": "14d"}),
        ),
        samples.policy("gold", DAILY),
    )  # fmt: skip
    spec = wanted.lifecycles["gold"].spec
    both = (samples.copy(), samples.copy(2, "dedupe", "deep"))
    images = [samples.image(n, samples.ago(days=age), *both, spec=spec) for n, age in enumerate((30, 10, 1), 1)]
    seen = samples.seen(wanted, samples.series(*images), holds=(recorded(),))
    assert expiries(wanted, seen) == {
        "img-1/1": ("Due", "Fixed"), "img-1/2": ("Blocked", "LegalHold"), "img-2/1": ("Due", "Fixed"),
    }  # fmt: skip


def test_of_several_good_copies_each_says_its_rule_and_the_hold() -> None:
    wanted = three_units()
    seen = samples.seen(wanted, lived(wanted, [(3, ["Complete", "Complete"])]), holds=(recorded(),))
    for one in decided(wanted, seen).values():
        assert one.reason.code == "Fixed" and one.expires_at == samples.ago(days=-4)
        assert one.reason.message.endswith("; its image is under LegalHold case-4711: case 4711")


def test_what_a_hold_meant_stays_held_when_its_words_mean_less() -> None:
    facts = holds.Facts(
        clients={"a": ("vm-a", "vm-a"), "b": ("vm-b", "vm-b")}, owners={"gold": frozenset({"c"})},
        images=frozenset({"img-1"}),
    )  # fmt: skip
    first = holds.resolve(legal_hold(clients=["vm-?"], images=["img-1", "img-9"]), None, facts)
    assert (first.clients, first.images) == ({"a", "b"}, {"img-1"})
    assert first.words == {"clients/vm-?", "images/img-1"}
    renamed = holds.Facts(clients={"a": ("other", "vm-x")}, owners={"gold": frozenset({"c"})}, images=frozenset())
    narrower = holds.resolve(legal_hold(clients=["vm-b"], to=samples.ago(days=9)), first, renamed)
    assert (narrower.clients, narrower.until) == ({"a", "b"}, None)
    wider = holds.resolve(legal_hold(clients=["vm-?"], policies=["gold"]), narrower, renamed)
    assert wider.clients == {"a", "b", "c"}


def test_a_window_grows_and_never_shrinks() -> None:
    facts = holds.Facts(clients={"a": ("vm", "vm")}, owners={}, images=frozenset())
    first = holds.resolve(
        legal_hold(clients=["vm"], **{"from": samples.ago(days=9), "to": samples.ago(days=5)}), None, facts
    )
    later = holds.resolve(
        legal_hold(clients=["vm"], **{"from": samples.ago(days=7), "to": samples.ago(days=3)}), first, facts
    )
    assert (later.since, later.until) == (samples.ago(days=9), samples.ago(days=3))
    assert holds.resolve(legal_hold(clients=["vm"]), later, facts).since is None


def test_a_word_that_matches_nothing_is_a_problem_and_the_rest_holds() -> None:
    wanted = estate(legal_hold(clients=["oblVM1", "oblVM7"], policies=["silver"], images=["img-7"]))
    plan = planner.plan(wanted, samples.seen(wanted, days(wanted, 30, 1)), NOW)
    assert [one.code for one in plan.problems] == [holds.UNMATCHED] * 3
    assert [word for one in plan.problems for word in one.message.split() if word.startswith(("obl", "sil", "img"))] == [
        "oblVM7", "img-7", "silver",
    ]  # fmt: skip
    assert samples.states(plan)["expire/img-1/1"] == ("Blocked", "LegalHold")


def test_a_policy_and_an_image_are_held_by_name() -> None:
    wanted = estate(legal_hold(policies=["gold"]))
    assert expiries(wanted, samples.seen(wanted, days(wanted, 30, 1)))["img-1/1"] == ("Blocked", "LegalHold")
    wanted = estate(legal_hold(images=["img-2"]))
    found = expiries(wanted, samples.seen(wanted, days(wanted, 30, 20, 1)))
    assert found == {"img-1/1": ("Due", "Fixed"), "img-2/1": ("Blocked", "LegalHold")}


def test_a_hold_is_told_with_who_when_and_why() -> None:
    wanted = estate()
    seen = samples.seen(wanted, days(wanted, 30, 1), holds=(recorded(),))
    (told,) = [one for one in planner.plan(wanted, seen, NOW).drift if one.code == "Held"]
    assert told.object == "LegalHold/case-4711"
    assert told.message.startswith(
        "images of oblvm1 held by root@vm since 2026-10-24T21:00Z: case 4711; its manifest is"
    )
    (decision,) = [one for place, one in decided(wanted, seen).items() if place == "img-2/1"]
    assert (decision.reason.code, decision.reason.message) == (
        "LegalHold",
        "kept: under LegalHold case-4711: case 4711",
    )
    assert decision.expires_at is None, "what is held leaves at no date"


# -- what a property says ----------------------------------------------------------------------------------------------

copies = st.lists(st.sampled_from(["Complete", "Damaged", "Lost", "Expiring", "Expired"]), min_size=1, max_size=3)
lives = st.lists(st.tuples(st.integers(0, 40), copies), min_size=1, max_size=7, unique_by=lambda one: one[0])


@settings(max_examples=150, deadline=None)
@given(
    life=lives,
    held=st.sets(st.integers(1, 7)),
    wrong=st.sets(st.integers(1, 7)),
    retired=st.booleans(),
    legal=st.booleans(),
    approved=st.booleans(),
)
def test_no_held_image_loses_its_last_good_copy(
    life: list[tuple[int, list[str]]],
    held: set[int],
    wrong: set[int],
    retired: bool,
    legal: bool,
    approved: bool,
) -> None:
    wanted = three_units()
    series = lived(wanted, life)
    said = [ruling("Hold", f"img-{one}") for one in sorted(held)]
    said += [ruling("Expire", f"img-{one}") for one in sorted(wrong)]
    said += [ruling("Retire", samples.CLIENT)] if retired else []
    window = recorded(since=samples.ago(days=20)) if legal else None
    seen = samples.seen(
        wanted, series, machines=() if retired else (samples.machine(),),
        clients={samples.CLIENT: samples.client()}, rulings=tuple(said), holds=(window,) if window else (),
        releases=tuple(releases(said)) if approved else (),
    )  # fmt: skip
    going = {
        place for place, (state, code) in expiries(wanted, seen).items() if state == "Due" and code != "Interrupted"
    }
    for image in series.images:
        good = [copy for copy in image.copies if copy.state == "Complete"]
        left = [copy for copy in good if f"{image.id}/{copy.number}" not in going]
        under = image.id in {f"img-{one}" for one in held} or (legal and image.time >= samples.ago(days=20))
        if good and under:
            assert left, f"{image.id} is held, and {sorted(going)} go"
    # The same is refused where it would be done, whatever the plan thought.
    strict = dataclasses.replace(seen, holds=(recorded(),))
    for image in series.images:
        good = [copy.number for copy in image.copies if copy.state == "Complete"]
        if len(good) == 1:
            with pytest.raises(errors.NeverViolated):
                expiry.check_delete(wanted, strict, series, image.id, good[0], NOW)


@settings(max_examples=100, deadline=None)
@given(life=lives, held=st.sets(st.integers(1, 7)))
def test_what_is_released_follows_its_rule_as_if_it_had_never_been_held(
    life: list[tuple[int, list[str]]], held: set[int]
) -> None:
    wanted = three_units()
    series = lived(wanted, life)
    released = three_units(legal_hold(clients=["*"], released={"by": "judge", "at": NOW, "reason": "over"}))
    seen = samples.seen(released, series, holds=(recorded(),))
    plain = samples.seen(wanted, series)
    assert expiries(released, seen) == expiries(wanted, plain)
    kept = samples.seen(wanted, series, rulings=tuple(ruling("Hold", f"img-{one}") for one in sorted(held)))
    differing = {place for place, said in expiries(wanted, plain).items() if expiries(wanted, kept).get(place) != said}
    assert {place.partition("/")[0] for place in differing} <= {f"img-{one}" for one in held}, "a hold keeps others"


def three_units(*more: Any) -> desired.Desired:
    """One operation that may land on any of three pools, so that an image can have several copies of it."""
    return samples.estate(
        samples.pool("one"), samples.pool("two"), samples.pool("three"),
        samples.group("all", "Prioritized", "one", "two", "three"),
        samples.lifecycle("gold", samples.operation("land", "all", retention=WEEK)),
        samples.policy("gold", DAILY), *more,
    )  # fmt: skip


def lived(wanted: desired.Desired, life: list[tuple[int, list[str]]]) -> observed.Series:
    """Images so many days old with copies in these states."""
    spec = wanted.lifecycles["gold"].spec
    return samples.series(
        *(
            samples.image(
                number, samples.ago(days=age),
                *(
                    samples.copy(index, unit=unit, state=state)
                    for index, (unit, state) in enumerate(zip(("one", "two", "three"), states, strict=False), 1)
                ),
                spec=spec,
            )
            for number, (age, states) in enumerate(sorted(life, reverse=True), 1)
        )
    )  # fmt: skip


def releases(said: list[observed.Ruling]) -> list[observed.Release]:
    """What an approval of every order records."""
    return [
        observed.Release(
            lifecycle="gold", operation="land", before=rulings.named(one), client=samples.CLIENT, up_to=1 << 40,
            digest="blake3:0", by="ben",
        )
        for one in said
        if one.kind == "Expire"
    ]  # fmt: skip


# -- orders ------------------------------------------------------------------------------------------------------------


def test_an_order_waits_for_its_approval_and_then_goes_by_its_grace() -> None:
    wanted = estate()
    order = ruling("Expire", "img-2", grace=dt.timedelta(hours=24))
    seen = samples.seen(wanted, days(wanted, 3, 2, 1), rulings=(order,))
    plan = planner.plan(wanted, seen, NOW)
    assert samples.states(plan)["expire/img-2/1"] == ("Blocked", "HeldByBrake")
    assert [(one.image, one.expires_before) for one in plan.destruction.items] == [("img-2", samples.ago(days=-5))]
    approval = observed.Approval(
        digest=str(plan.destruction.digest), copies=1, by="ben", until=NOW + dt.timedelta(days=1), reason="yes"
    )
    plan = planner.plan(wanted, dataclasses.replace(seen, approvals=(approval,)), NOW)
    assert samples.states(plan)["expire/img-2/1"] == ("Due", "ExpireOrdered")
    assert samples.by_address(plan)["expire/img-2/1"].grace == dt.timedelta(hours=24)
    assert [one.before for one in plan.releases] == [rulings.named(order)]
    again = dataclasses.replace(order, at=NOW)
    seen = dataclasses.replace(seen, rulings=(again,), releases=plan.releases)
    assert expiries(wanted, seen)["img-2/1"] == ("Blocked", "HeldByBrake"), "a later order is another one"


def test_a_wrong_image_protects_nobody_and_the_only_one_protects_itself() -> None:
    wanted = estate()
    order = ruling("Expire", "img-2")
    seen = samples.seen(wanted, days(wanted, 30, 1), rulings=(order,), releases=tuple(releases([order])))
    assert expiries(wanted, seen) == {"img-1/1": ("Blocked", "NewestImage"), "img-2/1": ("Due", "ExpireOrdered")}
    only = ruling("Expire", "img-1")
    seen = samples.seen(wanted, days(wanted, 1), rulings=(only,), releases=tuple(releases([only])))
    assert expiries(wanted, seen) == {"img-1/1": ("Blocked", "NewestImage")}


def test_a_wrong_image_is_copied_no_further() -> None:
    wanted = samples.small()
    spec = wanted.lifecycles["gold"].spec
    images = [samples.image(n, samples.ago(days=3 - n), samples.copy(), spec=spec) for n in (1, 2)]
    seen = samples.seen(wanted, samples.series(*images), rulings=(ruling("Expire", "img-1"),))
    made = [one for one in samples.states(planner.plan(wanted, seen, NOW)) if one.startswith("duplicate/img")]
    assert made == ["duplicate/img-2/dedupe"]


def test_a_wrong_base_stays_and_says_so() -> None:
    wanted = samples.estate(
        samples.unit("fast"), samples.lifecycle("gold", samples.operation("land", "fast")), samples.policy("gold")
    )
    spec = wanted.lifecycles["gold"].spec
    full = samples.image(1, samples.ago(days=2), samples.copy(), spec=spec)
    child = samples.image(
        2, samples.ago(days=1), samples.copy(base="img-1"), type="Incremental", spec=spec, parent="img-1"
    )
    order = ruling("Expire", "img-1")
    seen = samples.seen(wanted, samples.series(full, child), rulings=(order,), releases=tuple(releases([order])))
    assert expiries(wanted, seen) == {"img-1/1": ("Blocked", "Base")}


def test_nothing_is_built_on_a_wrong_image() -> None:
    wanted = samples.small()
    spec = wanted.lifecycles["gold"].spec
    copies = (samples.copy(), samples.copy(2, "dedupe", "deep"))
    images = [samples.image(n, samples.ago(days=3 - n), *copies, spec=spec) for n in (1, 2)]
    for said, parent in (((), "img-2"), ((ruling("Expire", "img-2"),), "img-1")):
        seen = samples.seen(wanted, samples.series(*images), rulings=said)
        (backup,) = [one for one in planner.plan(wanted, seen, NOW).actions if one.type is actions.Type.BACKUP][:1]
        assert (backup.backup_type, backup.parent) == ("Incremental", parent)


def test_an_order_that_was_taken_back_is_refused_where_it_would_be_done() -> None:
    wanted = estate()
    order = ruling("Expire", "img-1")
    series = days(wanted, 3, 1)
    seen = samples.seen(wanted, series, rulings=(order,))
    expiry.check_delete(wanted, seen, series, "img-1", 1, NOW, code="ExpireOrdered")
    with pytest.raises(errors.NeverViolated, match="taken back"):
        expiry.check_delete(
            wanted, dataclasses.replace(seen, rulings=()), series, "img-1", 1, NOW, code="ExpireOrdered"
        )


# -- grace -------------------------------------------------------------------------------------------------------------


def test_a_grace_is_waited_for_and_then_every_never_is_asked_again() -> None:
    wanted = estate(grace="24h")
    first = planner.plan(wanted, samples.seen(wanted, days(wanted, 30, 1)), NOW)
    assert samples.by_address(first)["expire/img-1/1"].grace == dt.timedelta(hours=24)
    assert not [one for one in first.actions if one.type is actions.Type.RECLAIM], "nothing is freed before its grace"

    def going(until: dt.datetime | None, newest: str = "Complete", **fields: Any) -> tuple[str, str]:
        old, new = days(wanted, 30, 1).images
        old = old._replace(copies=(old.copies[0]._replace(state="Expiring", until=until),))
        new = new._replace(copies=(new.copies[0]._replace(state=newest),))
        return expiries(wanted, samples.seen(wanted, samples.series(old, new), **fields))["img-1/1"]

    later, passed = NOW + dt.timedelta(hours=1), samples.ago(hours=1)
    assert going(later) == ("Waiting", "Grace")
    assert going(passed) == ("Due", "GraceOver")
    assert going(passed, "Lost") == ("Blocked", "NewestImage"), "it is the last that can be read"
    assert going(passed, holds=(recorded(),)) == ("Blocked", "LegalHold")
    assert going(passed, clock_jump="the clock jumped") == ("Blocked", "ClockJump")
    assert going(None, "Lost") == ("Due", "Interrupted"), "what has begun cannot be taken back"


def test_a_base_may_be_decided_with_what_is_built_on_it_and_goes_after_it() -> None:
    wanted = samples.estate(
        samples.unit("fast", grace="24h"), samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.policy("gold", DAILY),
    )  # fmt: skip
    spec = wanted.lifecycles["gold"].spec

    def said(base: observed.Copy, built: observed.Copy) -> dict[str, tuple[str, str]]:
        images = (
            samples.image(1, samples.ago(days=30), base, spec=spec),
            samples.image(2, samples.ago(days=29), built, type="Incremental", spec=spec, parent="img-1"),
            samples.image(3, samples.ago(days=1), samples.copy(), spec=spec),
        )
        return expiries(wanted, samples.seen(wanted, samples.series(*images)))

    leaving = {"state": "Expiring", "until": NOW + dt.timedelta(hours=1)}
    whole, built = samples.copy(), samples.copy(base="img-1")
    assert said(whole, built) == {"img-1/1": ("Waiting", "AfterDependents"), "img-2/1": ("Due", "Fixed")}
    assert said(whole, built._replace(**leaving)) == {"img-1/1": ("Due", "Fixed"), "img-2/1": ("Waiting", "Grace")}
    over = {"state": "Expiring", "until": samples.ago(hours=1)}
    assert said(whole._replace(**over), built._replace(**over)) == {
        "img-1/1": ("Waiting", "AfterDependents"), "img-2/1": ("Due", "GraceOver"),
    }  # fmt: skip


# -- retired clients and waived copies ---------------------------------------------------------------------------------


def test_a_retired_client_leaves_to_the_last_copy_unless_it_came_back() -> None:
    wanted = estate()
    series = days(wanted, 30, 20)
    known = {samples.CLIENT: samples.client()}
    gone = samples.seen(wanted, series, machines=(), clients=known)
    assert {code for _, code in expiries(wanted, gone).values()} == {"NewestImage"}
    told = {(one.code, one.object) for one in planner.plan(wanted, gone, NOW).drift}
    assert ("UnprotectedClient", "Client/oblvm1") in told
    retired = dataclasses.replace(gone, rulings=(ruling("Retire", samples.CLIENT),))
    assert set(expiries(wanted, retired).values()) == {("Due", "Fixed")}
    drift = planner.plan(wanted, retired, NOW).drift
    assert {(one.code, one.object) for one in drift} >= {("Retired", "Client/oblvm1")}
    assert ("UnprotectedClient", "Client/oblvm1") not in {(one.code, one.object) for one in drift}
    back = samples.seen(wanted, series, rulings=(ruling("Retire", samples.CLIENT),))
    assert {code for _, code in expiries(wanted, back).values()} == {"NewestImage"}
    assert any("gold matches it again" in one.message for one in planner.plan(wanted, back, NOW).drift)


def tree() -> desired.Desired:
    """Land, copy to the pool, copy from there to a third place; nothing is made there by itself."""
    return samples.estate(
        samples.unit("fast"), samples.pool("deep"), samples.pool("far"),
        samples.lifecycle(
            "gold", samples.operation("land", "fast", retention=WEEK),
            samples.operation("dedupe", "deep", "land", {"type": "Forever"}),
            samples.operation("away", "far", "dedupe", {"type": "Forever"}),
        ),
        samples.policy("gold", DAILY),
    )  # fmt: skip


def debts(wanted: desired.Desired, *all_copies: observed.Copy, waived: tuple[str, ...]) -> tuple[list[str], Any]:
    """The duplications of an old image that are planned, and what is said of its first copy."""
    spec = wanted.lifecycles["gold"].spec
    newest = tuple(
        samples.copy(n, o, u) for n, o, u in ((1, "land", "fast"), (2, "dedupe", "deep"), (3, "away", "far"))
    )
    images = (
        samples.image(1, samples.ago(days=30), *all_copies, spec=spec),
        samples.image(2, samples.ago(days=1), *newest, spec=spec),
    )
    seen = samples.seen(wanted, samples.series(*images), rulings=tuple(ruling("Waive", one) for one in waived))
    states = samples.states(planner.plan(wanted, seen, NOW))
    made = sorted(one.removeprefix("duplicate/") for one in states if one.startswith("duplicate/img-1"))
    return made, states.get("expire/img-1/1")


def test_a_waived_copy_makes_no_child_and_no_grandchild_and_leaves() -> None:
    wanted = tree()
    land = samples.copy()
    assert debts(wanted, land, waived=()) == (["img-1/away", "img-1/dedupe"], ("Waiting", "OwesCopy"))
    assert debts(wanted, land, waived=("img-1/1",)) == ([], ("Due", "Fixed"))
    deep = samples.copy(2, "dedupe", "deep")
    assert debts(wanted, land, deep, waived=("img-1/2",)) == ([], ("Due", "Fixed"))
    gone = samples.copy(state="Expired")
    assert debts(wanted, gone, deep, waived=("img-1/1",)) == (["img-1/away"], None), "another copy's debt stands"


def test_another_copy_of_the_same_operation_still_owes() -> None:
    wanted = tree()
    twice = (samples.copy(), samples.copy(2, "land", "far"))
    made, _ = debts(wanted, *twice, waived=("img-1/1",))
    assert "img-1/dedupe" in made
    assert debts(wanted, *twice, waived=("img-1/1", "img-1/2"))[0] == []


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("img-1/2", ("img-1", 2)),
        ("img-1:2", ("img-1", 2)),
        ("img-1#2", ("img-1", 2)),
        ("img-1", None),
        ("img-1/x", None),
        ("/2", None),
    ],
)
def test_a_copy_is_named_by_image_and_number(text: str, copy: tuple[str, int] | None) -> None:
    assert rulings.copy_of(text) == copy


# -- in words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "release"),
    [
        ({"holds": (recorded(),)}, "LegalHold", "released: {by, at, reason} in the manifest of LegalHold case-4711"),
        ({"rulings": (ruling("Hold", "img-1"),)}, "Held", "holdfast hold img-1 --release"),
        ({"rulings": (ruling("Expire", "img-3"),)}, "HeldByBrake", "an approval, or holdfast expire img-3 --undo"),
    ],
)
def test_what_would_end_it_is_said_and_is_true(fields: dict[str, Any], code: str, release: str) -> None:
    wanted = estate()
    series = days(wanted, 30, 2, 1, 0)
    seen = samples.seen(wanted, series, **fields)
    image = "img-3" if code == "HeldByBrake" else "img-1"
    (said,) = explanations.image(wanted, seen, series, image, NOW)
    assert (said.code, said.release, said.at) == (code, release, None)
    without = dataclasses.replace(seen, holds=(), rulings=())
    (then,) = explanations.image(wanted, without, series, image, NOW)
    assert then.code == "Fixed" and (then.state == "Due") == (image == "img-1")


def test_a_grace_is_explained_by_when_it_ends() -> None:
    wanted = estate()
    old, new = days(wanted, 30, 1).images
    until = NOW + dt.timedelta(hours=3)
    old = old._replace(copies=(old.copies[0]._replace(state="Expiring", until=until),))
    series = samples.series(old, new)
    seen = samples.seen(wanted, series)
    (said,) = explanations.image(wanted, seen, series, "img-1", NOW)
    assert (said.code, said.at) == ("Grace", until)
    assert said.release == "it leaves then; until then holdfast hold img-1 brings it back"
    judge = expiry.Judge(wanted, seen, until)
    (then,) = [one for one in judge.verdicts(histories.History(series, until)) if one.image.id == "img-1"]
    assert (then.state, then.code) == ("Due", "GraceOver")


def test_no_ruling_is_mistaken_for_a_promise() -> None:
    assert rulings.named(ruling("Expire", "img-1")) != promises.NONE


def test_an_order_takes_no_never_away_before_it_is_approved() -> None:
    """A copy that its own rule lets go, and that only what it owes, or its being the newest, keeps."""
    wanted = samples.small(land={"type": "Fixed", "period": "1d"})
    spec = wanted.lifecycles["gold"].spec
    series = samples.series(
        samples.image(1, samples.ago(days=9), samples.copy(1), spec=spec),
        samples.image(2, samples.ago(days=8), samples.copy(1), samples.copy(2, "dedupe", "deep"), spec=spec),
        samples.image(3, samples.ago(days=7), samples.copy(1), samples.copy(2, "dedupe", "deep"), spec=spec),
    )
    orders = (ruling("Expire", "img-1"),)
    said = expiries(wanted, samples.seen(wanted, series, rulings=orders))
    assert said["img-1/1"] == ("Blocked", "HeldByBrake"), "it owes dedupe until the order is approved"
    lone = samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast", retention={"type": "Fixed", "period": "1d"})),
        samples.policy("gold", DAILY),
    )
    spec = lone.lifecycles["gold"].spec
    series = samples.series(
        *(samples.image(number, samples.ago(days=9 - number), samples.copy(1), spec=spec) for number in (1, 2, 3, 4, 5))
    )
    said = expiries(lone, samples.seen(lone, series, rulings=(ruling("Expire", "img-5"),)))
    assert said["img-5/1"] == ("Blocked", "HeldByBrake"), "it is the newest until the order is approved"


def test_what_is_held_is_no_part_of_what_a_shorter_rule_would_destroy() -> None:
    before = samples.small(land={"type": "Fixed", "period": "30d"})
    after = samples.small(land={"type": "Fixed", "period": "5d"})
    spec = before.lifecycles["gold"].spec
    found = [
        samples.image(
            n, samples.NOW - dt.timedelta(days=20 - n), samples.copy(), samples.copy(2, "dedupe", "deep"), spec=spec
        )
        for n in range(1, 20)
    ]
    alone = found[2]._replace(copies=found[2].copies[:1])
    found[2] = alone._replace(copies=(*alone.copies, samples.copy(2, "dedupe", "deep", "Expired")))
    held = observed.Ruling(kind="Hold", object="img-3", by="me", at=samples.NOW, reason="case 7")
    for ruled, copies in (((), 15), ((held,), 14)):
        seen = samples.seen(before, samples.series(*found), rulings=ruled)
        plan = planner.plan(after, seen, samples.NOW)
        assert len(plan.destruction.items) == copies
        assert ("img-3" in {item.image for item in plan.destruction.items}) is not bool(ruled)


def test_a_wrong_image_pushes_no_good_one_out() -> None:
    keep = {"type": "Keep", "daily": 2}
    wanted = samples.small(land=keep)
    spec = wanted.lifecycles["gold"].spec
    found = [
        samples.image(
            n,
            samples.NOW - dt.timedelta(days=4 - n, hours=1),
            samples.copy(),
            samples.copy(2, "dedupe", "deep"),
            spec=spec,
        )
        for n in range(1, 4)
    ]
    wrong = observed.Ruling(kind="Expire", object="img-3", by="me", at=samples.NOW, reason="encrypted by a virus")
    for ruled, goes in (((), True), ((wrong,), False)):
        seen = samples.seen(wanted, samples.series(*found), rulings=ruled)
        plan = planner.plan(wanted, seen, samples.NOW)
        due = {action.image for action in plan.actions if action.type.value == "Expire" and action.state.value == "Due"}
        assert ("img-1" in due) is goes
