"""Two revisions over one catalog: which copies leave earlier or later, and whose protection changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import estates
import planning_samples as samples
import pytest
import test_convergence
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import (
    comparisonfile,
    comparisons,
    configuration,
    desired,
    expiry,
    observed,
    planner,
    standpoints,
)
from reconciler.reports import changes, markup


def compare(
    before: desired.Desired, after: desired.Desired, seen: observed.Observed, now: Any = samples.NOW, **options: Any
) -> comparisons.Comparison:
    """Both with what every policy's source shows now."""
    one, other = (
        standpoints.Revision(manifests=manifests, effective=effective, inventories=seen.inventories)
        for manifests, effective in comparisons.revisions(before, after, seen.applied, now)
    )
    return comparisons.compare(one, other, seen, now, **options)


def land(rule: dict[str, Any], *more: Any, revision: str = "dir@blake3:1", **policy: Any) -> desired.Desired:
    """Daily fulls straight into a pool, under one rule."""
    return samples.estate(
        samples.pool("deep"),
        samples.lifecycle("gold", samples.operation("land", "deep", retention=rule)),
        samples.policy("gold", {"name": "daily", "type": "Full", "every": "24h"}, **policy),
        *more,
        revision=revision,
    )


def days(count: int, wanted: desired.Desired) -> observed.Series:
    """A full a day, ``img-1`` the oldest; the newest is an hour old."""
    spec = wanted.lifecycles["gold"].spec
    return samples.series(
        *(
            samples.image(number, samples.ago(days=count - number, hours=1), samples.copy(unit="deep"), spec=spec)
            for number in range(1, count + 1)
        )
    )


MONTH, WEEK, FOREVER = {"type": "Fixed", "period": "30d"}, {"type": "Fixed", "period": "7d"}, {"type": "Forever"}
KEEP3, KEEP9 = {"type": "Keep", "daily": 3}, {"type": "Keep", "daily": 9}


@pytest.mark.parametrize(
    ("before", "after", "earlier", "later", "undated", "leaving"),
    [
        (MONTH, WEEK, 20, 0, 0, 13),
        (WEEK, MONTH, 0, 20, 0, 0),
        (FOREVER, WEEK, 20, 0, 0, 13),
        (WEEK, FOREVER, 0, 20, 0, 0),
        (KEEP9, KEEP3, 6, 0, 0, 6),
        (KEEP3, KEEP9, 0, 6, 0, 0),
        (KEEP3, FOREVER, 0, 20, 0, 0),
        (FOREVER, KEEP3, 20, 0, 0, 17),
        # Three are kept by both, and nobody can say yet when Keep lets them go.
        (MONTH, KEEP3, 17, 0, 3, 17),
    ],
)
def test_every_copy_is_held_against_itself_under_the_other_rule(
    before: Any, after: Any, earlier: int, later: int, undated: int, leaving: int
) -> None:
    old, new = land(before), land(after, revision="dir@blake3:2")
    found = compare(old, new, samples.seen(old, days(20, old)))
    (group,) = found.groups
    assert (group.policy, group.lifecycle, group.operation) == ("gold", "gold", "land")
    assert (group.earlier, group.later, group.undated, group.leaving) == (earlier, later, undated, leaving)
    assert sum(one.copies for one in found.freed.values()) == leaving
    assert len(found.freed["deep"].images if leaving else []) == leaving


def test_what_is_in_force_is_no_promise_between_two_other_revisions() -> None:
    in_force, old, new = land(FOREVER), land(MONTH, revision="a"), land(WEEK, revision="b")
    found = compare(old, new, samples.seen(in_force, days(20, in_force)))
    assert (found.groups[0].earlier, found.groups[0].leaving) == (20, 13)
    assert (found.before, found.after, found.in_force) == ("a", "b", "dir@blake3:1")


def test_a_promise_that_the_catalog_recorded_holds_under_both() -> None:
    old, new = land(MONTH), land(WEEK, revision="b")
    kept = observed.Promise(
        lifecycle="gold", operation="land", retention=old.lifecycles["gold"].spec.operations[0].retention, up_to=10
    )
    found = compare(old, new, samples.seen(old, days(20, old), promises=(kept,)))
    ends = {one.image: (one.before.at, one.after.at, one.after.leaves) for one in found.moved}
    # Up to img-10 the promise stands, so nothing moves; those after it go a week after they were made.
    assert sorted(int(image[4:]) for image in ends) == list(range(11, 21))
    assert ends["img-13"][2] and not ends["img-20"][2]


@pytest.mark.parametrize("words", [{"clients": ["oblVM1"]}, {"policies": ["gold"]}])
def test_a_legal_hold_keeps_what_would_leave(words: dict[str, Any]) -> None:
    old = land(WEEK)
    spec = {**words, "reason": "case 4711"}
    new = samples.estate(*old.objects(), samples.make("LegalHold", "case-4711", spec), revision="b")
    found = compare(old, new, samples.seen(old, days(20, old)))
    assert found.problems == ()
    assert (found.groups[0].earlier, found.groups[0].later) == (0, 13)
    assert {one.copies for one in found.kept.values()} == {13}
    (point,) = found.clients
    assert (point.before, point.after) == (samples.ago(days=6, hours=1), samples.ago(days=19, hours=1))


def test_the_oldest_restore_point_moves_with_what_may_leave() -> None:
    old, new = land(MONTH), land(WEEK, revision="b")
    found = compare(old, new, samples.seen(old, days(20, old)))
    (point,) = found.clients
    assert point.client == "oblvm1"
    assert (point.before, point.after) == (samples.ago(days=19, hours=1), samples.ago(days=6, hours=1))


def test_a_policy_that_appears_goes_or_moves_changes_protection() -> None:
    old = land(MONTH)
    slower = samples.policy("gold", {"name": "daily", "type": "Full", "every": "48h"})
    changed = samples.estate(*(item for item in old.objects() if item.kind != "BackupPolicy"), slower, revision="b")
    seen = samples.seen(old, days(3, old))
    (moved,) = compare(old, changed, seen).protection
    assert (moved.change, moved.policies_before, moved.policies_after) == ("Change", ("gold",), ("gold",))
    assert (moved.next_before, moved.next_after) == (samples.ago(hours=-23), samples.ago(hours=-47))
    assert moved.objective_before is not None and moved.objective_after is not None
    assert moved.objective_after == 2 * moved.objective_before
    without = samples.estate(*(item for item in old.objects() if item.kind != "BackupPolicy"), revision="c")
    (lost,) = compare(old, without, seen).protection
    assert (lost.change, lost.policies_after, lost.next_after, lost.objective_after) == ("Lose", (), None, None)
    (gained,) = compare(without, old, seen).protection
    assert (gained.change, gained.policies_before, gained.policies_after) == ("Gain", (), ("gold",))


def test_a_problem_of_the_later_revision_alone_is_new() -> None:
    old = land(MONTH)
    broken = land(MONTH, samples.policy("silver", lifecycle="nowhere"), revision="b")
    seen = samples.seen(broken, days(3, old))
    assert [one.code for one in compare(old, broken, seen).problems] == ["HF491"]
    assert compare(broken, broken, seen).problems == ()
    assert compare(broken, old, seen).problems == ()


def test_a_revision_in_which_most_is_gone_changes_nothing_and_says_so() -> None:
    old = land(MONTH)
    empty = samples.estate(revision="b")
    found = compare(old, empty, samples.seen(old, days(3, old)))
    assert [one.code for one in found.problems] == [configuration.GONE]
    assert found.configuration == () and found.protection == () and found.moved == ()


def test_a_renamed_policy_and_unit_are_the_same_ones() -> None:
    old = land(MONTH)
    new = samples.estate(
        samples.pool("depth", previousNames=["deep"], path="/srv/deep"),
        samples.lifecycle("gold", samples.operation("land", "depth", retention=MONTH)),
        samples.policy("golden", {"name": "daily", "type": "Full", "every": "24h"}, previousNames=["gold"]),
        revision="b",
    )
    seen = samples.seen(old, days(5, old))
    seen = dataclasses.replace(
        seen,
        inventories={**seen.inventories, "golden": seen.inventories["gold"]},
        units={**seen.units, "depth": dataclasses.replace(seen.units["deep"], name="depth")},
    )
    found = compare(old, new, seen)
    assert not found.groups and not found.clients and not found.moved
    # And over a catalog that already uses the new names.
    later = samples.seen(new, dataclasses.replace(days(5, old), policy="golden"))
    images = tuple(
        image._replace(copies=tuple(copy._replace(unit="depth") for copy in image.copies))
        for image in next(iter(later.series)).images
    )
    later = dataclasses.replace(
        later,
        series=(samples.series(*images, policy="golden"),),
        inventories={**later.inventories, "gold": later.inventories["golden"]},
        units={**later.units, "deep": dataclasses.replace(later.units["depth"], name="deep")},
    )
    assert not compare(old, new, later).moved
    short = samples.estate(
        *(item for item in new.objects() if item.kind != "StorageLifecyclePolicy"),
        samples.lifecycle("gold", samples.operation("land", "depth", retention={"type": "Fixed", "period": "2d"})),
        revision="c",
    )
    assert {one.policy for one in compare(old, short, later).moved} == {"golden"}


def test_more_copies_than_are_listed_are_counted() -> None:
    old, new = land(MONTH), land(WEEK, revision="b")
    found = compare(old, new, samples.seen(old, days(20, old)), listed=5)
    assert (len(found.moved), found.unlisted, found.groups[0].earlier) == (5, 15, 20)
    page = changes.text(comparisonfile.document(found, {}, {}), verbose=True)
    assert "… and 15 more copies, counted above" in page
    comment = changes.markdown(comparisonfile.document(found, {}, {}))
    assert "Copies that expire earlier or later (20)" in comment and "… and 15 more" in comment


# -- properties --------------------------------------------------------------------------------------------------------

LIVES = st.lists(estates.STEPS, max_size=5)


def lived(wanted: desired.Desired, life: list[tuple[str, Any]]) -> worlds.World:
    """A world with some past."""
    world = test_convergence.new_world(wanted)
    world.settle()
    for word, value in life:
        world.settle(test_convergence.step(world, word, value))
    world.pass_by(hours=40)
    return world


def moves(found: comparisons.Comparison) -> dict[tuple[str, int], str]:
    return {(one.image, one.copy): one.change for one in found.moved}


@settings(max_examples=60, deadline=None)
@given(wanted=estates.estates(), other=estates.estates(), life=LIVES)
def test_a_revision_does_not_differ_from_itself_and_the_way_back_undoes_the_way_there(
    wanted: desired.Desired, other: desired.Desired, life: list[tuple[str, Any]]
) -> None:
    world = lived(wanted, life)
    seen, here = world.observe(), world.wanted
    same = compare(here, here, seen, world.now)
    assert not same.changes, same
    there, back = compare(here, other, seen, world.now), compare(other, here, seen, world.now)
    if any(one.code == configuration.GONE for one in (*there.problems, *back.problems)):
        return
    mirror = {"Earlier": "Later", "Later": "Earlier", "Undated": "Undated"}
    assert moves(back) == {key: mirror[change] for key, change in moves(there).items()}
    assert {(p.client, p.after, p.before) for p in there.clients} == {
        (p.client, p.before, p.after) for p in back.clients
    }
    assert {unit: one.copies for unit, one in there.freed.items()} == {
        unit: one.copies for unit, one in back.kept.items()
    }


@settings(max_examples=60, deadline=None)
@given(wanted=estates.estates(), other=estates.estates(), life=LIVES)
def test_series_that_are_passed_over_would_not_have_differed(
    wanted: desired.Desired, other: desired.Desired, life: list[tuple[str, Any]]
) -> None:
    world = lived(wanted, life)
    seen = world.observe()
    kinds = ("BackupPolicy", "StorageLifecyclePolicy", "StorageUnit")
    for kind in kinds:
        mixed = samples.estate(
            *(item for item in world.wanted.objects() if item.kind != kind),
            *(item for item in other.objects() if item.kind == kind),
            revision="dir@blake3:mixed",
        )
        quick = compare(world.wanted, mixed, seen, world.now)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparisons._Differences, "about", lambda *_: True)
            patch.setattr(comparisons._Differences, "machines", lambda _: {one.id for one in test_convergence.MACHINES})
            whole = compare(world.wanted, mixed, seen, world.now)
        assert quick == whole


@settings(max_examples=60, deadline=None)
@given(wanted=estates.estates(), other=estates.lifecycles(), life=LIVES)
def test_what_may_leave_now_is_what_the_plan_holds_back_or_expires(
    wanted: desired.Desired, other: Any, life: list[tuple[str, Any]]
) -> None:
    world = lived(wanted, life)
    seen = world.observe()
    after = samples.estate(
        *(item for item in world.wanted.objects() if item.kind != "StorageLifecyclePolicy"), other, revision="b"
    )
    found = compare(world.wanted, after, seen, world.now)
    plan = planner.plan(after, seen, world.now)
    told = {(item.image, item.copy) for item in plan.destruction.items}
    told |= {(str(one.image), int(one.copy or 0)) for one in plan.actions if one.type.value == "Expire"}
    leaving = {(one.image, one.copy) for one in found.moved if one.after.leaves}
    assert leaving <= told
    # And it is decided as everywhere else.
    (_, (_, side)) = comparisons.revisions(world.wanted, after, seen.applied, world.now)
    ruled = dataclasses.replace(seen, applied=standpoints.as_applied(side, seen.applied, world.now))
    decided = {(one.image, one.copy): one for one in expiry.decisions(side, ruled, world.now)}
    for one in found.moved:
        assert decided[one.image, one.copy].reason.code == one.after.code


@settings(max_examples=30, deadline=None)
@given(wanted=estates.estates(), other=estates.estates(), life=LIVES, most=st.integers(2_100, 6_000))
def test_every_comparison_can_be_shown(
    wanted: desired.Desired, other: desired.Desired, life: list[tuple[str, Any]], most: int
) -> None:
    world = lived(wanted, life)
    found = compare(world.wanted, other, world.observe(), world.now)
    measured = {unit: (one.stored_bytes, False) for unit, one in found.freed.items()}
    document = comparisonfile.document(found, measured, {})
    assert document.changes is found.changes
    text = changes.text(document, verbose=False)
    assert text.startswith("From dir@blake3:") and ("No difference" in text) is not found.changes
    comment = changes.markdown(document, most)
    assert comment.startswith(markup.MARKER) and len(comment.encode()) <= most
