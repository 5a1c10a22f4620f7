"""``state: Draining``: copies are made anew elsewhere, and go once that is done; nothing of what was promised is lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import planning_samples as samples
import pytest
import worlds

from reconciler.base import errors
from reconciler.planning import actions, desired, expiry, observed, planner

ago, image, copy, operation = samples.ago, samples.image, samples.copy, samples.operation
KEEP_2 = {"type": "Keep", "last": 2}


def estate(
    storage: str = "both",
    *,
    state: str = "Draining",
    retention: Any = samples.FOREVER,
    old: str = "unit",
    new: str = "unit",
) -> desired.Desired:
    """``old`` is emptied; ``both`` is ``old`` and ``new``."""
    make = {"unit": samples.unit, "pool": samples.pool}
    return samples.estate(
        make[old]("old", state=state), make[new]("new"), samples.pool("deep"),
        samples.group("both", "Prioritized", "old", "new"),
        samples.lifecycle("gold", operation("land", storage, None, retention)),
        samples.policy("gold", {"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "7d"}),
    )  # fmt: skip


def plan(wanted: desired.Desired, *images: observed.Image, **fields: Any) -> actions.Plan:
    """The plan with these images in force since long."""
    spec = samples.owed_key(wanted.lifecycles["gold"].spec)
    made = [one._replace(owed=spec) if one.owed == "none" else one for one in images]
    return planner.plan(wanted, samples.seen(wanted, samples.series(*made), **fields), samples.NOW)


def codes(found: actions.Plan, *types: actions.Type) -> dict[str, tuple[str, str]]:
    """State and reason of copies made and deleted, by address."""
    wanted = types or (actions.Type.DUPLICATE, actions.Type.EXPIRE)
    return {
        one.address: (one.state.value, one.reason.code)
        for one in found.actions
        if one.type in wanted and not one.address.startswith("duplicate/gold")
    }


def land(number: int, unit: str, **fields: Any) -> observed.Copy:
    """A copy of the landing operation."""
    return copy(number, "land", unit, **fields)


def test_a_good_copy_is_made_anew_elsewhere_and_goes_once_that_is_done() -> None:
    wanted = estate()
    first = plan(wanted, image(1, ago(hours=1), land(1, "old")))
    assert codes(first) == {"duplicate/img-1/land": ("Due", "Draining")}
    move = samples.by_address(first)["duplicate/img-1/land"]
    assert (move.source_unit, move.copy, move.unit, move.operation) == ("old", 1, "new", "land")
    second = plan(wanted, image(1, ago(hours=1), land(1, "old"), land(2, "new")))
    assert codes(second) == {"expire/img-1/1": ("Due", "Drained")}
    assert second.destruction.items == ()
    words = samples.by_address(second)["expire/img-1/1"].reason.message
    assert words == "expires: unit old is being emptied, and copy 2 on new is good"


@pytest.mark.parametrize("state", ["Damaged", "Lost", "Expiring", "Expired", "Writing"])
def test_the_deleting_transaction_asks_again_for_the_other_copy(state: str) -> None:
    wanted = estate()
    newer = image(2, ago(minutes=1), land(1, "new"))

    def check(other: str) -> None:
        moved = samples.series(image(1, ago(hours=9), land(1, "old"), land(2, "new", state=other)), newer)
        seen = samples.seen(wanted, moved)
        expiry.check_delete(wanted, seen, moved, "img-1", 1, samples.NOW, code="Drained")

    check("Complete")
    with pytest.raises(errors.NeverViolated, match="no other good copy of land"):
        check(state)


def drift(found: actions.Plan) -> list[tuple[str, str]]:
    """What is said of the unit."""
    return [(one.code, one.message) for one in found.drift if one.object == "StorageUnit/old"]


def test_the_plan_says_what_is_left_and_when_the_unit_is_empty() -> None:
    held = plan(estate(), image(1, ago(hours=1), land(1, "old")))
    assert drift(held) == [("Draining", "1 copy still lies on it; the plan says what becomes of each")]
    empty = plan(estate(), image(1, ago(hours=1), land(1, "old", state="Expired"), land(2, "new")))
    assert drift(empty) == [("Drained", "unit old is empty and can be removed")]
    assert drift(plan(estate(state="ReadOnly"), image(1, ago(hours=1), land(1, "old")))) == []


@pytest.mark.parametrize(
    ("copies", "expected"),
    [
        # Not good elsewhere: the old copy stays.
        (
            (land(1, "old"), land(2, "new", state="Damaged")),
            {"duplicate/img-1/land": ("Blocked", "SameUnit"), "expire/img-1/2": ("Due", "Replaced")},
        ),
        (
            (land(1, "old"), land(2, "new", state="Lost")),
            {"duplicate/img-1/land": ("Blocked", "SameUnit"), "expire/img-1/2": ("Due", "Replaced")},
        ),
        ((land(1, "old"), land(2, "new", state="Expired")), {"duplicate/img-1/land": ("Due", "Draining")}),
        # Another operation's copy does not stand in for this one's.
        ((land(1, "old"), copy(2, "dedupe", "deep")), {"duplicate/img-1/land": ("Due", "Draining")}),
        # What is damaged there is made anew from another good copy.
        ((land(1, "old", state="Damaged"), copy(2, "dedupe", "deep")), {"duplicate/img-1/land": ("Due", "Healing")}),
        ((land(1, "old", busy=True), land(2, "new")), {"expire/img-1/1": ("Waiting", "Busy")}),
    ],
)
def test_only_a_good_copy_of_the_same_operation_lets_the_old_one_go(
    copies: tuple[observed.Copy, ...], expected: dict[str, Any]
) -> None:
    assert codes(plan(estate(), image(1, ago(hours=1), *copies))) == expected


def test_without_another_unit_it_is_blocked_with_the_next_step() -> None:
    found = plan(estate("old"), image(1, ago(hours=1), land(1, "old")))
    assert codes(found) == {"duplicate/img-1/land": ("Blocked", "SameUnit")}
    words = samples.by_address(found)["duplicate/img-1/land"].reason.message
    assert words == "old has no unit without a copy of the image: give operation land another unit, and apply that"
    usual = samples.seen(estate()).units
    away = {**usual, "new": dataclasses.replace(usual["new"], state="Offline")}
    offline = plan(estate(), image(1, ago(hours=1), land(1, "old")), units=away)
    assert codes(offline) == {"duplicate/img-1/land": ("Blocked", "UnitOffline")}
    gone = plan(estate(), image(1, ago(hours=1), land(1, "old"), land(2, "new")), units=away)
    assert codes(gone) == {}


def test_the_newest_revision_says_where_copies_move_also_those_still_owed() -> None:
    older = samples.lifecycle(
        "gold", operation("land", "old", None, samples.FOREVER), operation("second", "old", "land", samples.FOREVER)
    ).spec
    wanted = estate("new")
    lifecycle = samples.lifecycle(
        "gold", operation("land", "new", None, samples.FOREVER), operation("second", "deep", "land", samples.FOREVER)
    )
    wanted = samples.estate(*(one for one in wanted.objects() if one.kind != "StorageLifecyclePolicy"), lifecycle)
    found = plan(wanted, image(1, ago(hours=1), land(1, "old"), spec=older), owed={samples.owed_key(older): older})
    made = samples.by_address(found)
    assert {a: made[a].unit for a in made if a.startswith("duplicate/img")} == {
        "duplicate/img-1/land": "new", "duplicate/img-1/second": "deep",
    }  # fmt: skip


def test_what_its_rule_lets_go_is_not_moved_but_what_must_stay_is() -> None:
    week = {"type": "Fixed", "period": "7d"}
    images = [image(1, ago(days=9), land(1, "old")), image(2, ago(hours=1), land(1, "old"))]
    assert codes(plan(estate(retention=week), *images)) == {
        "expire/img-1/1": ("Due", "Fixed"), "duplicate/img-2/land": ("Due", "Draining"),
    }  # fmt: skip
    # The newest image stays whatever its rule says.
    assert codes(plan(estate(retention=week), image(1, ago(days=9), land(1, "old")))) == {
        "expire/img-1/1": ("Waiting", "InUse"), "duplicate/img-1/land": ("Due", "Draining"),
    }  # fmt: skip
    partial = image(3, ago(minutes=5), land(1, "old"), state="Partial")
    assert "duplicate/img-3/land" not in codes(plan(estate(), image(2, ago(hours=1), land(1, "old")), partial))


def test_what_was_promised_moves_with_its_promise() -> None:
    promise = observed.Promise(
        lifecycle="gold", operation="land", retention=estate(retention={"type": "Fixed", "period": "30d"})
        .lifecycles["gold"].spec.operations[0].retention, up_to=1,
    )  # fmt: skip
    wanted = estate(retention={"type": "Fixed", "period": "7d"})
    images = [image(1, ago(days=9), land(1, "old")), image(2, ago(hours=1), land(1, "new"))]
    found = plan(wanted, *images, promises=(promise,))
    assert codes(found) == {
        "expire/img-1/1": ("Blocked", "HeldByBrake"), "duplicate/img-1/land": ("Due", "Draining"),
    }  # fmt: skip
    moved = plan(wanted, image(1, ago(days=9), land(1, "old"), land(2, "new")), images[1], promises=(promise,))
    assert codes(moved) == {"expire/img-1/1": ("Due", "Drained"), "expire/img-1/2": ("Blocked", "HeldByBrake")}


def test_a_chain_moves_in_order_and_leaves_from_its_end() -> None:
    full = image(1, ago(hours=3), land(1, "old"))
    small = image(2, ago(hours=2), land(1, "old", base="img-1"), type="Incremental", parent="img-1")
    found = plan(estate(), full, small)
    assert codes(found) == {
        "duplicate/img-1/land": ("Due", "Draining"), "duplicate/img-2/land": ("Waiting", "AfterBase"),
    }  # fmt: skip
    assert samples.by_address(found)["duplicate/img-2/land"].after == ("duplicate/img-1/land",)
    # Into a pool each stands alone.
    assert set(codes(plan(estate(new="pool"), full, small)).values()) == {("Due", "Draining")}
    half = image(1, ago(hours=3), land(1, "old"), land(2, "new"))
    follows = plan(estate(), half, small)
    assert codes(follows) == {"duplicate/img-2/land": ("Due", "Draining")}
    assert samples.by_address(follows)["duplicate/img-2/land"].parent == "img-1"
    both = small._replace(copies=(land(1, "old", base="img-1"), land(2, "new", base="img-1")))
    assert codes(plan(estate(), half, both)) == {
        "expire/img-1/1": ("Waiting", "AfterDependents"), "expire/img-2/1": ("Due", "Drained"),
    }  # fmt: skip


@pytest.mark.parametrize("old", ["unit", "pool"])
@pytest.mark.parametrize("new", ["unit", "pool"])
@pytest.mark.parametrize("retention", [samples.FOREVER, KEEP_2, {"type": "Fixed", "period": "4d"}])
def test_a_unit_is_emptied_by_the_loop_and_everything_is_kept(old: str, new: str, retention: Any) -> None:
    before = estate(state="Active", old=old, new=new, retention=retention)
    machines = (samples.machine("diskimages:/srv/oblVM1"), samples.machine("diskimages:/srv/oblVM2"))
    world = worlds.World(now=samples.NOW, wanted=before, machines={"gold": machines})
    for _ in range(6):
        world.settle()
        world.pass_by(hours=24)
    world.settle()

    def good() -> dict[str, Any]:
        return {
            one.id: one.time for images in world.images.values() for one in images
            if any(c.state == "Complete" for c in one.copies)
        }  # fmt: skip

    kept = good()
    decided = expiry.decisions(world.wanted, world.observe(), world.now)
    only_bases = {one.image for one in decided if one.reason.code == "Base"}
    objects = list(estate(old=old, new=new, retention=retention).objects())
    world.wanted = samples.estate(*objects, revision="dir@blake3:2")
    world.settle()
    left = [c for images in world.images.values() for i in images for c in i.copies if c.unit == "old"]
    assert left and {copy.state for copy in left} == {"Expired"}
    # What stayed only because others were built on it may go with them.
    assert {id: kept[id] for id in kept if id not in only_bases}.items() <= good().items() <= kept.items()
    assert world.violations() == []
    assert ("Drained", "unit old is empty and can be removed") in drift(world.plan())
    assert world.plan().in_state(actions.State.DUE) == ()
