"""Which copies images owe, which is made next, from where and onto what."""

from __future__ import annotations

import dataclasses
from typing import Any

import planning_samples as samples
import pytest

from reconciler.planning import actions, desired, observed, planner

ago, image, copy, operation = samples.ago, samples.image, samples.copy, samples.operation
FULLS = {"name": "daily", "type": "Full", "every": "24h"}
FOREVER = samples.FOREVER


def estate(*operations: dict[str, Any], objects: tuple[Any, ...] = ()) -> desired.Desired:
    """A lifecycle of these operations over four units and a group of two of them."""
    return samples.estate(
        samples.unit("fast"), samples.unit("slow"), samples.pool("deep"), samples.pool("far"),
        samples.group("both", "Prioritized", "far", "deep"), samples.lifecycle("gold", *operations),
        samples.policy("gold", FULLS, {"name": "small", "type": "Incremental", "every": "12h"}), *objects,
    )  # fmt: skip


LAND = operation("land", "fast", None, FOREVER)
DEDUPE = operation("dedupe", "deep", "land", FOREVER)
OFFSITE = operation("offsite", "far", "dedupe", FOREVER)


def duplicates(wanted: desired.Desired, *images: observed.Image, **seen: Any) -> dict[str, actions.Action]:
    """The Duplicate actions of existing images, by ``image/operation``; ``wanted`` also made the images."""
    spec = samples.owed_key(wanted.lifecycles["gold"].spec)
    made = [one._replace(owed=spec) if one.owed == "none" else one for one in images]
    plan = planner.plan(wanted, samples.seen(wanted, samples.series(*made), **seen), samples.NOW)
    prefix = "duplicate/img-"
    return {a.removeprefix("duplicate/"): x for a, x in samples.by_address(plan).items() if a.startswith(prefix)}


def codes(found: dict[str, actions.Action]) -> dict[str, tuple[str, str]]:
    """State and reason by address."""
    return {address: (one.state.value, one.reason.code) for address, one in found.items()}


def test_a_tree_is_paid_parents_first() -> None:
    found = duplicates(estate(LAND, DEDUPE, OFFSITE), image(1, ago(hours=1)))
    assert codes(found) == {
        "img-1/dedupe": ("Due", "CopyOwed"),
        "img-1/offsite": ("Waiting", "AfterDuplicate"),
    }
    assert found["img-1/offsite"].after == ("duplicate/img-1/dedupe",)
    first = found["img-1/dedupe"]
    assert (first.source_unit, first.copy, first.unit, first.bytes) == ("fast", 1, "deep", 1000)
    paid = duplicates(estate(LAND, DEDUPE, OFFSITE), image(1, ago(hours=1), copy(), copy(2, "dedupe", "deep")))
    assert codes(paid) == {"img-1/offsite": ("Due", "CopyOwed")}
    assert paid["img-1/offsite"].source_unit == "deep"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("Complete", {}),
        ("Expiring", {}),
        ("Expired", {}),
        ("Writing", {"img-1/dedupe": ("Due", "CopyOwed")}),
        ("Damaged", {"img-1/dedupe": ("Due", "Healing")}),
        ("Lost", {"img-1/dedupe": ("Due", "Healing")}),
    ],
)
def test_a_debt_is_opened_again_by_loss_and_damage_not_by_expiry(state: str, expected: dict[str, Any]) -> None:
    found = duplicates(estate(LAND, DEDUPE), image(1, ago(hours=1), copy(), copy(2, "dedupe", "deep", state)))
    assert codes(found) == expected


def test_a_damaged_landing_copy_is_healed_from_another_good_one() -> None:
    broken = image(1, ago(hours=1), copy(state="Damaged"), copy(2, "dedupe", "deep"))
    found = duplicates(estate(LAND, DEDUPE), broken)
    assert codes(found) == {"img-1/land": ("Due", "Healing")}
    assert (found["img-1/land"].source_unit, found["img-1/land"].unit) == ("deep", "fast")
    # Nothing is copied to be thrown away.
    short = operation("land", "fast", None, {"type": "Fixed", "period": "1h"})
    assert codes(duplicates(estate(short, DEDUPE), broken)) == {}


def test_a_base_is_healed_for_those_that_need_it_even_if_its_own_time_is_over() -> None:
    short = operation("land", "fast", None, {"type": "Fixed", "period": "1h"})
    full = image(1, ago(days=1), copy(state="Lost"), copy(2, "dedupe", "deep"))
    small = image(2, ago(minutes=9), copy(base="img-1"), copy(2, "dedupe", "deep"), type="Incremental", parent="img-1")
    assert codes(duplicates(estate(short, DEDUPE), full, small)) == {"img-1/land": ("Due", "Healing")}


def test_reading_takes_the_parents_copy_or_any_other_good_one() -> None:
    wanted = estate(LAND, DEDUPE, OFFSITE)
    broken = image(1, ago(hours=1), copy(), copy(2, "dedupe", "deep", "Expired"), copy(3, "offsite", "far", "Lost"))
    assert duplicates(wanted, broken)["img-1/offsite"].source_unit == "fast"
    nothing = image(1, ago(hours=1), copy(state="Lost"))
    assert set(codes(duplicates(wanted, nothing)).values()) == {
        ("Blocked", "NoGoodCopy"),
        ("Waiting", "AfterDuplicate"),
    }


def test_partial_images_owe_nothing() -> None:
    assert duplicates(estate(LAND, DEDUPE), image(1, ago(hours=1), state="Partial")) == {}


def test_the_revision_that_made_an_image_fixes_what_it_is_owed() -> None:
    older = samples.lifecycle("gold", LAND, DEDUPE).spec
    new = estate(LAND, operation("dedupe", "far", "land", FOREVER), operation("third", "far", "land", FOREVER))
    made = image(1, ago(hours=1), spec=older)
    owed = {samples.owed_key(older): older}
    found = duplicates(new, made, owed=owed)
    assert {address: one.unit for address, one in found.items()} == {"img-1/dedupe": "deep"}
    backfill = estate(LAND, DEDUPE, operation("third", "far", "land", FOREVER, existing="Backfill"))
    assert set(duplicates(backfill, made, owed=owed)) == {"img-1/dedupe", "img-1/third"}


def test_backfill_copies_only_what_its_own_rule_would_keep() -> None:
    older = samples.lifecycle("gold", LAND).spec
    owed = {samples.owed_key(older): older}
    images = [image(n, ago(days=9 - n), spec=older) for n in range(1, 9)]
    for rule, kept in (
        ({"type": "Fixed", "period": "4d"}, {6, 7, 8}),
        ({"type": "Keep", "last": 2}, {7, 8}),
        ({"type": "Forever"}, set(range(1, 9))),
    ):
        wanted = estate(LAND, operation("third", "far", "land", rule, existing="Backfill"))
        assert set(duplicates(wanted, *images, owed=owed)) == {f"img-{n}/third" for n in kept}


def test_renamed_operations_and_units_are_no_new_debts() -> None:
    older = samples.lifecycle("gold", LAND, DEDUPE).spec
    wanted = samples.estate(
        samples.unit("fast"), samples.pool("deeper", previousNames=["deep"]),
        samples.lifecycle("gold", LAND, operation("pool", "deeper", "land", FOREVER, previousNames=["dedupe"])),
        samples.policy("gold", FULLS),
    )  # fmt: skip
    owed = {samples.owed_key(older): older}
    paid = image(1, ago(hours=2), copy(), copy(2, "dedupe", "deep"), spec=older)
    unpaid = image(2, ago(hours=1), spec=older)
    found = duplicates(wanted, paid, unpaid, owed=owed)
    assert {address: one.unit for address, one in found.items()} == {"img-2/pool": "deeper"}


def test_a_schedule_filter_owes_the_copy_to_its_schedules_alone() -> None:
    wanted = estate(LAND, {**DEDUPE, "schedules": ["daily"]}, OFFSITE)
    found = duplicates(wanted, image(1, ago(hours=2)), image(2, ago(hours=1), schedule="small"))
    assert set(found) == {"img-1/dedupe", "img-1/offsite"}


def test_a_window_holds_a_duplication() -> None:
    wanted = estate(LAND, {**DEDUPE, "window": "noon"}, objects=(samples.window("noon", "12:00", "1h"),))
    found = duplicates(wanted, image(1, ago(hours=1)))["img-1/dedupe"]
    assert (found.state, found.reason.code, found.at) == (
        actions.State.WAITING, "OutsideWindow", samples.at("2026-11-24T12:00Z"),
    )  # fmt: skip


def unit(name: str, **fields: Any) -> observed.Unit:
    """A unit as it is seen."""
    return observed.Unit(**{"name": name, "state": "Online", "standalone": True, **fields})


@pytest.mark.parametrize(
    ("name", "seen", "code"),
    [
        ("deep", unit("deep", state="Offline"), "UnitOffline"),
        ("deep", unit("deep", state="ReadOnly"), "UnitReadOnly"),
        ("deep", unit("deep", total_bytes=100, free_bytes=1), "UnitFull"),
        ("fast", unit("fast", state="Offline"), "UnitOffline"),
    ],
)
def test_units_that_cannot_take_or_give_block(name: str, seen: observed.Unit, code: str) -> None:
    wanted = estate(LAND, DEDUPE)
    usual = samples.seen(wanted).units
    found = duplicates(wanted, image(1, ago(hours=1)), units={**usual, name: seen})
    assert codes(found) == {"img-1/dedupe": ("Blocked", code)}


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"state": "ReadOnly"}, "UnitReadOnly"),
        ({"state": "Draining"}, "UnitDraining"),
        ({"maxConcurrentJobs": 0}, "UnitDisabled"),
    ],
)
def test_units_that_take_nothing_new_block(spec: dict[str, Any], code: str) -> None:
    wanted = samples.estate(
        samples.unit("fast"), samples.pool("deep", **spec), samples.lifecycle("gold", LAND, DEDUPE),
        samples.policy("gold", FULLS),
    )  # fmt: skip
    assert codes(duplicates(wanted, image(1, ago(hours=1)))) == {"img-1/dedupe": ("Blocked", code)}


def test_a_media_server_must_reach_both_ends() -> None:
    server = samples.make("MediaServer", "ms1", {"storageUnits": ["fast"]})
    other = samples.make("MediaServer", "ms2", {"storageUnits": ["deep"]})
    blocked = duplicates(estate(LAND, DEDUPE, objects=(server, other)), image(1, ago(hours=1)))
    assert codes(blocked) == {"img-1/dedupe": ("Blocked", "NoMediaServer")}
    both = samples.make("MediaServer", "ms3", {"storageUnits": ["fast", "deep"]})
    assert codes(duplicates(estate(LAND, DEDUPE, objects=(server, both)), image(1, ago(hours=1)))) == {
        "img-1/dedupe": ("Due", "CopyOwed")
    }


def test_a_copy_never_goes_onto_a_unit_that_holds_the_image() -> None:
    wanted = estate(operation("land", "far", None, FOREVER), operation("second", "both", "land", FOREVER))
    found = duplicates(wanted, image(1, ago(hours=1), copy(1, "land", "far")))["img-1/second"]
    assert found.candidates == ("deep",)
    same = estate(operation("land", "far", None, FOREVER), operation("second", "far", "land", FOREVER))
    assert codes(duplicates(same, image(1, ago(hours=1), copy(1, "land", "far")))) == {
        "img-1/second": ("Blocked", "SameUnit")
    }


def test_a_chain_goes_on_where_it_is() -> None:
    wanted = samples.estate(
        samples.pool("deep"), samples.unit("a"), samples.unit("b"), samples.group("dirs", "LoadBalance", "a", "b"),
        samples.lifecycle("gold", operation("land", "deep", None, FOREVER), operation("off", "dirs", "land", FOREVER)),
        samples.policy("gold", FULLS),
    )  # fmt: skip
    full = image(1, ago(hours=2), copy(1, "land", "deep"), copy(2, "off", "b"))
    small = image(2, ago(hours=1), copy(1, "land", "deep"), type="Incremental", parent="img-1")
    found = duplicates(wanted, full, small)["img-2/off"]
    assert (found.candidates, found.parent) == (("b",), "img-1")


def attempt(state: str, **fields: Any) -> observed.Attempts:
    """One or more attempts, the last two minutes ago."""
    return observed.Attempts(
        **{"failed": 1, "lost": 0, "last_finished": ago(minutes=2), "last_state": state, "message": "no", **fields}
    )


@pytest.mark.parametrize(
    ("tried", "expected", "at"),
    [
        (attempt("Failed"), ("Due", "CopyOwed"), ago(hours=1)),
        (attempt("Failed", failed=2), ("Waiting", "Retry"), ago(minutes=-3)),
        (attempt("Failed", failed=40), ("Waiting", "Retry"), ago(minutes=-58)),
        (attempt("Lost", lost=1), ("Due", "CopyOwed"), ago(hours=1)),
        (attempt("Cancelled"), ("Waiting", "Cancelled"), ago(minutes=2 - 12 * 60)),
    ],
)
def test_a_debt_does_not_lapse_however_often_it_failed(tried: observed.Attempts, expected: Any, at: Any) -> None:
    found = duplicates(estate(LAND, DEDUPE), image(1, ago(hours=1)), attempts={"duplicate/img-1/dedupe": tried})
    assert codes(found) == {"img-1/dedupe": expected}
    assert found["img-1/dedupe"].at == at


def test_a_copy_that_the_plan_reads_does_not_expire_meanwhile() -> None:
    wanted = estate(operation("land", "fast", None, {"type": "Fixed", "period": "1d"}), DEDUPE, OFFSITE)
    spec = wanted.lifecycles["gold"].spec
    old = image(1, ago(days=3), copy(), copy(2, "dedupe", "deep"), copy(3, "offsite", "far", "Lost"), spec=spec)
    fresh = image(2, ago(hours=1), copy(), copy(2, "dedupe", "deep"), copy(3, "offsite", "far"), spec=spec)
    state = samples.seen(wanted, samples.series(old, fresh))
    deep = dataclasses.replace(state.units["deep"], state="Offline")
    found = samples.by_address(
        planner.plan(wanted, dataclasses.replace(state, units={**state.units, "deep": deep}), samples.NOW)
    )
    assert found["duplicate/img-1/offsite"].source_unit == "fast"
    held = found["expire/img-1/1"]
    assert (held.state.value, held.reason.code, held.after) == ("Waiting", "InUse", ("duplicate/img-1/offsite",))


def deep(*, offsite: dict[str, Any] | None = None, **third: Any) -> desired.Desired:
    """Four copies in a row: land, dedupe in the night, offsite of fulls alone, vault."""
    return samples.estate(
        samples.unit("fast"), samples.pool("deep"), samples.pool("far"), samples.pool("vault"),
        samples.window("night", "20:00", "10h"), samples.window("noon", "12:00", "1h"),
        samples.lifecycle(
            "gold", operation("land", "fast", None, FOREVER),
            operation("dedupe", "deep", "land", FOREVER, window="night"),
            operation("offsite", "far", "dedupe", FOREVER, **(offsite or {"schedules": ["daily"]})),
            operation("vault", "vault", "offsite", FOREVER, window="noon", **third),
        ),
        samples.policy("gold", FULLS, {"name": "small", "type": "Incremental", "every": "12h"}),
    )  # fmt: skip


def test_a_tree_of_four_is_made_step_by_step_each_in_its_window() -> None:
    """21:00: the night is open, noon is not; what a filter leaves out takes its children with it."""
    made = [copy()]
    for expected in (
        {
            "dedupe": ("Due", "CopyOwed"),
            "offsite": ("Waiting", "AfterDuplicate"),
            "vault": ("Waiting", "AfterDuplicate"),
        },
        {"offsite": ("Due", "CopyOwed"), "vault": ("Waiting", "AfterDuplicate")},
        {"vault": ("Waiting", "OutsideWindow")},
        {},
    ):
        found = duplicates(deep(), image(1, ago(hours=1), *made))
        assert codes(found) == {f"img-1/{name}": state for name, state in expected.items()}
        step = len(made)
        if step < 4:
            one = found[f"img-1/{('dedupe', 'offsite', 'vault')[step - 1]}"]
            assert one.source_unit == ("fast", "deep", "far")[step - 1]
            made.append(copy(step + 1, str(one.operation), str(one.unit)))
    assert set(duplicates(deep(), image(1, ago(hours=1), schedule="small"))) == {"img-1/dedupe"}


def test_backfill_at_the_end_of_a_tree_reads_the_nearest_copy_that_can_be_read() -> None:
    older = samples.lifecycle("gold", LAND, {**DEDUPE, "window": "night"}, OFFSITE).spec
    owed = {samples.owed_key(older): older}
    wanted = deep(offsite={}, existing="Backfill")
    made = image(1, ago(hours=1), copy(), copy(2, "dedupe", "deep"), copy(3, "offsite", "far"), spec=older)
    found = duplicates(wanted, made, owed=owed)
    assert {address: (one.state.value, one.source_unit) for address, one in found.items()} == {
        "img-1/vault": ("Waiting", "far")
    }
    usual = samples.seen(wanted).units

    def source(*offline: str) -> tuple[str, str | None]:
        units = {**usual, **{name: dataclasses.replace(usual[name], state="Offline") for name in offline}}
        one = duplicates(wanted, made, owed=owed, units=units)["img-1/vault"]
        return one.reason.code, one.source_unit

    assert source("far") == ("OutsideWindow", "fast")
    assert source("far", "fast") == ("OutsideWindow", "deep")
    assert source("far", "fast", "deep")[0] == "UnitOffline"
    lost = made._replace(copies=(copy(state="Lost"), copy(2, "dedupe", "deep"), copy(3, "offsite", "far", "Damaged")))
    assert duplicates(wanted, lost, owed=owed)["img-1/vault"].source_unit == "deep"


def test_a_copy_prefers_a_unit_that_does_not_fail_together_with_the_others() -> None:
    def chosen(*objects: Any, copies: tuple[observed.Copy, ...] = (copy(),), **fields: Any) -> tuple[str, ...]:
        wanted = samples.estate(
            *objects, samples.group("g", "Prioritized", "near", "far"),
            samples.lifecycle("gold", LAND, operation("second", "g", "land", FOREVER)), samples.policy("gold", FULLS),
        )  # fmt: skip
        usual = samples.seen(wanted).units
        off = {name: dataclasses.replace(usual[name], state="Offline") for name in fields.get("offline", ())}
        return duplicates(wanted, image(1, ago(hours=1), *copies), units={**usual, **off})["img-1/second"].candidates

    def in_rack(name: str, rack: str | None) -> Any:
        return samples.pool(name, **({"failureDomain": rack} if rack else {}))

    fast = samples.unit("fast", failureDomain="one")
    assert chosen(fast, in_rack("near", "one"), in_rack("far", "two")) == ("far",)
    # Any of them where all fail together, or where the better one is away; the group's order where none does.
    assert chosen(fast, in_rack("near", "one"), in_rack("far", "one")) == ("near", "far")
    assert chosen(fast, in_rack("near", "one"), in_rack("far", "two"), offline=("far",)) == ("near",)
    assert chosen(fast, in_rack("near", None), in_rack("far", None)) == ("near", "far")
    # A copy that is made anew does not count against its own place.
    again = (copy(), copy(2, "second", "far", "Damaged"))
    assert chosen(fast, in_rack("near", "one"), in_rack("far", "two"), copies=again) == ("far",)


def test_on_a_chain_unit_a_base_goes_before_what_builds_on_it() -> None:
    wanted = samples.estate(
        samples.pool("deep"), samples.unit("a"), samples.policy("gold", FULLS),
        samples.lifecycle("gold", operation("land", "deep", None, FOREVER), operation("off", "a", "land", FOREVER)),
    )  # fmt: skip
    full = image(1, ago(hours=2), copy(1, "land", "deep"))
    small = image(2, ago(hours=1), copy(1, "land", "deep"), type="Incremental", parent="img-1")
    found = duplicates(wanted, full, small)
    assert codes(found) == {"img-1/off": ("Due", "CopyOwed"), "img-2/off": ("Waiting", "AfterBase")}
    assert found["img-2/off"].after == ("duplicate/img-1/off",)
    # A base that cannot be copied does not hold it up: it is written as a whole.
    broken = full._replace(copies=(copy(1, "land", "deep", "Damaged"),))
    assert codes(duplicates(wanted, broken, small))["img-2/off"] == ("Due", "CopyOwed")
