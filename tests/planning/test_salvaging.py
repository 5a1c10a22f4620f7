"""Where no copy of an image is good, one is made anew of what is whole of them all, and none of them goes before."""

from __future__ import annotations

import datetime as dt
from typing import Any

import planning_samples as samples
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convergence import MACHINES
from test_duplications import DEDUPE, FOREVER, LAND, OFFSITE, codes, duplicates, estate

from reconciler.planning import actions, duplications, observed

ago, image, copy, operation = samples.ago, samples.image, samples.copy, samples.operation
HURT = (copy(state="Damaged"), copy(2, "dedupe", "deep", "Damaged"))
_RULES = (FOREVER, samples.FIXED_7D, {"type": "Fixed", "period": "1d"}, {"type": "Keep", "last": 2})


def test_damaged_copies_are_read_together_once_and_the_rest_follows() -> None:
    found = duplicates(estate(LAND, DEDUPE, OFFSITE), image(1, ago(hours=1), *HURT))
    assert codes(found) == {
        "img-1/land": ("Due", "Salvaging"),
        "img-1/dedupe": ("Waiting", "AfterDuplicate"),
        "img-1/offsite": ("Waiting", "AfterDuplicate"),
    }
    first = found["img-1/land"]
    assert (first.pieces, first.copy, first.unit, first.source_unit) == ((1, 2), None, "fast", "fast")
    assert "copy 1 on fast and copy 2 on deep" in first.reason.message
    assert found["img-1/dedupe"].after == ("duplicate/img-1/land",)
    # One that is Complete and stands on a damaged base is a piece like any other.
    base = image(1, ago(hours=9), *HURT)
    child = image(2, ago(hours=1), copy(base="img-1"), HURT[1], type="Incremental", parent="img-1")
    assert duplicates(estate(LAND, DEDUPE), base, child)["img-2/dedupe"].pieces == (1, 2)


def test_where_only_one_copy_holds_anything_or_another_cannot_be_reached_nothing_is_read() -> None:
    wanted = estate(LAND, DEDUPE)
    alone = duplicates(wanted, image(1, ago(hours=1), HURT[0]))
    assert codes(alone)["img-1/land"] == ("Blocked", "NoGoodCopy")
    assert "copy 1 on fast is the only one that holds anything of it" in alone["img-1/land"].reason.message
    units = dict(samples.seen(wanted).units)
    units["deep"] = observed.Unit(name="deep", state="Offline", standalone=True)
    away = duplicates(wanted, image(1, ago(hours=1), *HURT), units=units)
    assert codes(away)["img-1/land"] == ("Blocked", "NoGoodCopy")
    assert "copy 2 on deep may have what is missing: unit deep is offline" in away["img-1/land"].reason.message


def test_what_is_on_no_copy_is_said_and_tried_again_after_a_week() -> None:
    def attempted(**passed: float) -> dict[str, observed.Attempts]:
        tried = observed.Attempts(
            failed=1, lost=0, last_finished=ago(**passed), last_state="Failed", message="1 MiB of disk a is missing",
            code=duplications.MISSING,
        )  # fmt: skip
        return {"duplicate/img-1/land": tried}

    wanted, hurt = estate(LAND, DEDUPE), image(1, ago(days=20), *HURT)
    found = duplicates(wanted, hurt, attempts=attempted(days=6))
    assert set(codes(found).values()) == {("Blocked", "BlocksMissing")}
    assert "1 MiB of disk a is missing; it is tried again at" in found["img-1/dedupe"].reason.message
    assert codes(duplicates(wanted, hurt, attempts=attempted(days=7)))["img-1/land"] == ("Due", "Salvaging")
    # Once one is good again nobody asks what the others lacked.
    healed = image(1, ago(days=20), copy(), HURT[1])
    assert codes(duplicates(wanted, healed, attempts=attempted(days=1))) == {"img-1/dedupe": ("Due", "Healing")}


def _world(*rules: dict[str, Any]) -> worlds.World:
    land, near, away = rules
    lifecycle = samples.lifecycle(
        "gold", operation("land", "fast", None, land), operation("near", "deep", "land", near),
        operation("away", "far", "land", away),
    )  # fmt: skip
    units = (samples.unit("fast"), samples.pool("deep"), samples.pool("far"))
    policy = samples.policy("gold", {"name": "daily", "type": "Full", "every": "24h"})
    wanted = samples.estate(*units, lifecycle, policy)
    world = worlds.World(now=samples.NOW, wanted=wanted, machines={"gold": MACHINES[:1]})
    world.settle()
    return world


def _hurt(world: worlds.World, number: int) -> None:
    for copy in world.find(f"img-{number}")[2].copies:
        world.damage(f"img-{number}", copy.number, "Damaged")


def test_a_piece_whose_time_is_over_stays_until_it_is_needed_no_more() -> None:
    world = _world(FOREVER, {"type": "Fixed", "period": "3d"}, {"type": "Fixed", "period": "3d"})
    _hurt(world, 1)
    world.units["fast"] = "ReadOnly"
    world.pass_by(days=5)
    world.settle()
    states = {one.operation: one.state for one in world.find("img-1")[2].copies}
    assert set(states.values()) == {"Damaged"}
    world.units["fast"] = "Online"
    world.settle()
    states = {one.operation: one.state for one in world.find("img-1")[2].copies}
    assert states == {"land": "Complete", "near": "Expired", "away": "Expired"}


@settings(max_examples=80)
@given(
    rules=st.tuples(*(st.sampled_from(_RULES) for _ in range(3))),
    life=st.lists(
        st.tuples(
            st.sampled_from((0.1, 2.0, 30.0, 200.0)),
            st.sampled_from(("Succeeded", "Succeeded", "Failed", "Lost", "SourceDamaged", "Running", "Cancelled")),
            st.booleans(),
        ),
        max_size=6,
    ),
)
def test_no_piece_goes_before_a_copy_is_proven_whatever_becomes_of_the_attempts(
    rules: tuple[dict[str, Any], ...], life: list[tuple[float, str, bool]]
) -> None:
    world = _world(*rules)
    for hours, outcome, hurt in life:
        if hurt:
            _hurt(world, len(next(iter(world.images.values()))))
        known = set(world.violations())
        # What goes is judged by the witnesses, as it goes.
        world.turn(lambda one, end=outcome: end if one.type is actions.Type.DUPLICATE else "Succeeded")  # type: ignore[misc]
        assert set(world.violations()) <= known
        world.pass_by(hours=hours)
        world.turn(lambda one, end=outcome: end if one.type is actions.Type.DUPLICATE else "Succeeded")  # type: ignore[misc]
        world.end_jobs(outcome if outcome in ("Failed", "SourceDamaged") else "Succeeded")
    world.now += dt.timedelta(days=8)
    world.settle()
    assert not world.plan().in_state(actions.State.DUE)
    for one in (each for images in world.images.values() for each in images):
        states = [copy.state for copy in one.copies if copy.state in observed.READABLE]
        # One that was damaged before it had any second copy is past help.
        assert "Complete" in states or len(states) < 2, f"{one.id}: {states}"
