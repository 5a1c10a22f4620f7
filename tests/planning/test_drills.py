"""When copies are proven again: as often as a lifecycle or a ServiceLevel asks, and what a failure means for the rest."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import hypothesis
import planning_samples as samples
import pytest
from hypothesis import strategies as st

from reconciler.api import servicelevels
from reconciler.planning import actions, conditions, desired, dispatch, expiry, nevers, observed, planner

NOW, ago = samples.NOW, samples.ago


def estate(land: dict[str, Any] | None = None, dedupe: dict[str, Any] | None = None, *more: Any) -> desired.Desired:
    """``gold`` with a ``verify`` on either operation."""
    return samples.estate(
        samples.unit("fast"),
        samples.pool("deep"),
        samples.lifecycle(
            "gold",
            samples.operation("land", "fast", **({"verify": land} if land else {})),
            samples.operation("dedupe", "deep", "land", samples.FOREVER, **({"verify": dedupe} if dedupe else {})),
        ),
        samples.policy("gold"),
        *more,
    )


def level(**spec: Any) -> Any:
    """A ServiceLevel over policies with the label ``tier: gold``."""
    return samples.make("ServiceLevel", "erp", {"selector": {"matchLabels": {"tier": "gold"}}, **spec})


def labelled() -> Any:
    """The policy ``gold`` with that label."""
    made = samples.policy("gold")
    return made.model_copy(update={"metadata": made.metadata.model_copy(update={"labels": {"tier": "gold"}})})


def both(at: dt.datetime, **fields: Any) -> tuple[observed.Copy, observed.Copy]:
    """A copy on each unit, made then."""
    return samples.copy(created_at=at, **fields), samples.copy(2, "dedupe", "deep", created_at=at)


def images() -> observed.Series:
    """Three daily images."""
    return samples.series(*(samples.image(n, ago(days=3 - n), *both(ago(days=3 - n))) for n in (1, 2, 3)))


def result(image: str, copy: int, kind: str, at: dt.datetime, state: str = "Passed") -> observed.Verification:
    return observed.Verification(image=image, copy=copy, kind=kind, state=state, at=at, message="so it is")


def verify(wanted: desired.Desired, *found: observed.Verification, series: observed.Series | None = None, **more: Any):
    """The Verify actions of a plan, by address."""
    by_image: dict[str, tuple[observed.Verification, ...]] = {}
    for one in found:
        by_image[one.image] = (*by_image.get(one.image, ()), one)
    seen = samples.seen(wanted, series or images(), verifications=by_image, **more)
    plan = planner.plan(wanted, seen, NOW)
    return {one.address: one for one in plan.actions if one.type is actions.Type.VERIFY}


def test_nothing_is_verified_that_nobody_asked_for() -> None:
    assert verify(estate()) == {}


@pytest.mark.parametrize("kind", ["files", "boot"])
def test_a_drill_takes_the_newest_copy_of_its_operation_at_once(kind: str) -> None:
    found = verify(estate(dedupe={kind: "14d"}))
    assert list(found) == [f"verify/img-3/2/{kind}"]
    one = found[f"verify/img-3/2/{kind}"]
    assert (one.state, one.source_unit, one.unit, one.copy) == (actions.State.DUE, "deep", None, 2)
    assert one.reason.code == f"Verify{kind.capitalize()}" and "operation dedupe asks" in one.reason.message


@pytest.mark.parametrize(
    ("age", "state"), [(dt.timedelta(days=14), "Due"), (dt.timedelta(days=13, hours=1), "Planned")]
)
def test_the_next_drill_comes_a_period_after_the_last(age: dt.timedelta, state: str) -> None:
    found = verify(estate(dedupe={"boot": "14d"}), result("img-1", 2, "Boot", NOW - age))
    assert [one.state.value for one in found.values()] == [state]
    assert not verify(estate(dedupe={"boot": "14d"}), result("img-1", 2, "Boot", ago(days=3)))


def test_a_catalog_has_its_digests_proven_and_neither_volumes_nor_a_machine() -> None:
    asked = {"content": "1d", "files": "14d", "boot": "30d"}
    wanted = estate(None, asked)
    wanted = dataclasses.replace(wanted, policies={"gold": samples.policy(source={"catalog": {}})})
    assert {one.rpartition("/")[2] for one in verify(wanted)} == {"content"}


def test_a_drill_of_another_operation_does_not_count() -> None:
    assert list(verify(estate(dedupe={"boot": "14d"}), result("img-3", 1, "Boot", ago(days=1)))) == [
        "verify/img-3/2/boot"
    ]


def test_after_a_failure_the_next_image_is_tried_at_once_and_the_same_one_is_not() -> None:
    wanted = estate(dedupe={"boot": "14d"})
    assert list(verify(wanted, result("img-2", 2, "Boot", ago(days=1), "Failed"))) == ["verify/img-3/2/boot"]
    assert not verify(wanted, result("img-3", 2, "Boot", ago(days=1), "Failed"))


@pytest.mark.parametrize("minutes", [0, 10])
def test_a_clock_that_was_set_back_after_a_failure_has_the_next_image_tried_once(minutes: int) -> None:
    wanted = estate(dedupe={"boot": "14d"})
    failed = result("img-2", 2, "Boot", NOW + dt.timedelta(minutes=minutes), "Failed")
    assert list(verify(wanted, failed)) == ["verify/img-3/2/boot"]
    assert not verify(wanted, failed, result("img-3", 2, "Boot", NOW))
    assert list(verify(wanted, failed, result("img-3", 1, "Boot", NOW))) == ["verify/img-3/2/boot"]


def test_content_is_due_for_each_copy_a_period_after_it_was_made_or_proven() -> None:
    found = verify(estate(land={"content": "2d"}), result("img-1", 1, "Content", ago(days=1, hours=1)))
    assert {address: one.state.value for address, one in found.items()} == {
        "verify/img-1/1/content": "Planned",
        "verify/img-2/1/content": "Planned",
    }
    found = verify(estate(land={"content": "1d"}))
    assert sorted(one.image or "" for one in found.values() if one.state is actions.State.DUE) == ["img-1", "img-2"]


@pytest.mark.parametrize("kind", ["content", "boot"])
def test_what_a_clock_that_was_a_year_ahead_duplicated_is_proven_without_waiting_for_it(kind: str) -> None:
    ahead = samples.series(samples.image(1, ago(days=1), *both(ago(days=-365))))
    found = verify(estate(dedupe={kind: "7d"}), series=ahead)
    assert [one.state.value for one in found.values()] == ["Due"]
    assert not verify(estate(dedupe={kind: "7d"}), result("img-1", 2, kind.capitalize(), NOW), series=ahead)


def test_a_copy_that_leaves_now_is_not_proven_before() -> None:
    old = samples.series(
        samples.image(1, ago(days=9), *both(ago(days=9))), samples.image(2, ago(hours=1), *both(ago(hours=1)))
    )
    found = verify(estate(land={"content": "1d"}, dedupe={"content": "1d"}), series=old)
    assert [address for address, one in found.items() if one.state is actions.State.DUE] == ["verify/img-1/2/content"]


@pytest.mark.parametrize(("state", "code"), [("Offline", "UnitOffline"), ("Online", "VerifyBoot")])
def test_a_copy_that_cannot_be_read_now_is_blocked(state: str, code: str) -> None:
    wanted = estate(dedupe={"boot": "14d"})
    units = samples.seen(wanted).units
    units = {**units, "deep": observed.Unit(name="deep", state=state, standalone=True, total_bytes=10, free_bytes=5)}
    (one,) = verify(wanted, units=units).values()
    assert one.reason.code == code


def test_a_service_level_asks_for_any_copy_and_takes_the_fast_one() -> None:
    wanted = samples.estate(
        samples.unit("fast"), samples.pool("deep"), labelled(), level(verified={"files": "7d"}),
        samples.lifecycle("gold", samples.operation("land", "fast"), samples.operation("dedupe", "deep", "land")),
    )  # fmt: skip
    assert isinstance(wanted.service_levels["erp"], servicelevels.ServiceLevel)
    assert list(verify(wanted)) == ["verify/img-3/1/files"]
    assert not verify(wanted, result("img-2", 2, "Files", ago(days=2)))


def test_two_that_ask_for_the_same_proof_get_it_once() -> None:
    wanted = estate({"files": "30d"}, None, level(verified={"files": "7d"}))
    wanted = desired.gather("dir@blake3:1", [*wanted.objects(), labelled()])
    (one,) = verify(wanted, result("img-1", 1, "Files", ago(days=7))).values()
    assert one.state is actions.State.DUE and "ServiceLevel/erp" in one.reason.message


def test_a_machine_bears_one_drill_or_backup_and_only_one_machine_is_started() -> None:
    wanted = estate(dedupe={"boot": "14d", "files": "14d"})
    seen = samples.seen(wanted, images())
    plan = planner.plan(wanted, seen, NOW)
    due = [one for one in plan.actions if one.type is actions.Type.VERIFY]
    assert len(due) == 2
    assert len(dispatch.choose(due, (), wanted, seen, NOW)) == 1
    backup = observed.Job(id="j-1", address="backup/x", type="Backup", state="Running", client=samples.CLIENT)
    assert not dispatch.choose(due, (backup,), wanted, seen, NOW)
    other = observed.Job(
        id="j-2", address="verify/img-9/1/boot", type="Verify", state="Running", client="diskimages:/x"
    )
    chosen = dispatch.choose(due, (other,), wanted, seen, NOW)
    assert [one.action.proof for one in chosen] == ["Files"]


def test_verifications_leave_half_of_a_unit_to_backups_and_all_get_their_turn() -> None:
    wanted = estate({"content": "1d"})
    many = samples.series(*(samples.image(n, ago(days=30 - n), *both(ago(days=30 - n))) for n in range(22, 29)))
    wanted = dataclasses.replace(wanted, units={**wanted.units, "fast": samples.unit("fast", maxConcurrentJobs=4)})
    due = list(verify(wanted, series=many).values())
    seen = samples.seen(wanted, many)
    first = dispatch.choose(due, (), wanted, seen, NOW)
    assert len(due) > 4 and len(first) == 2
    # The one that has waited the longest comes first: none waits for ever.
    oldest = sorted(due, key=lambda one: one.at or NOW)
    assert [one.action.address for one in first] == [one.address for one in oldest[:2]]


# -- what a failure means ----------------------------------------------------------------------------------------------


def recoverable(wanted: desired.Desired, *found: observed.Verification) -> conditions.Condition:
    by_image = {one.image: tuple(o for o in found if o.image == one.image) for one in found}
    seen = samples.seen(wanted, images(), verifications=by_image)
    return next(one for one in conditions.conditions(wanted, seen, images(), NOW) if one.type == "Recoverable")


@pytest.mark.parametrize(
    ("found", "status", "reason"),
    [
        ((), "Unknown", "NotVerified"),
        ((result("img-3", 2, "Boot", ago(days=1)),), "True", "Verified"),
        ((result("img-3", 2, "Boot", ago(days=1), "Failed"),), "False", "VerificationFailed"),
        ((result("img-1", 2, "Boot", ago(days=16)),), "False", "VerificationOverdue"),
        ((result("img-1", 2, "Boot", ago(days=14, hours=12)),), "True", "Verified"),
        (
            (result("img-1", 2, "Boot", ago(days=2), "Failed"), result("img-3", 2, "Boot", ago(days=1))),
            "True",
            "Verified",
        ),
    ],
)
def test_recoverable_goes_by_the_last_verification(found: Any, status: str, reason: str) -> None:
    condition = recoverable(estate(dedupe={"boot": "14d"}), *found)
    assert (condition.status, condition.reason) == (status, reason)


def test_contents_that_were_just_written_do_not_hide_what_drills_proved() -> None:
    both = estate(dedupe={"content": "20d", "boot": "14d"})
    assert recoverable(both).reason == "NotVerified"
    assert recoverable(both, result("img-3", 2, "Boot", ago(days=1))).reason == "Verified"
    assert recoverable(estate(dedupe={"content": "20d"})).reason == "NotVerified"


def test_an_image_that_failed_is_not_the_last_good_one() -> None:
    wanted = estate(None, None)
    series = images()
    seen = samples.seen(wanted, series, verifications={"img-3": (result("img-3", 2, "Boot", ago(hours=1), "Failed"),)})
    protected = nevers.protected(nevers.Rules(wanted, seen, NOW), planner.histories.History(series, NOW))
    assert set(protected) == {"img-3", "img-2"}
    plan = planner.plan(wanted, seen, NOW)
    (drift,) = [one for one in plan.drift if one.code == "VerificationFailed"]
    assert drift.object == "Client/oblvm1" and "img-3" in drift.message


@hypothesis.given(failed=st.sets(st.integers(1, 6)), passed=st.sets(st.integers(1, 6)), days=st.integers(0, 40))
def test_the_newest_image_that_did_not_fail_always_stays(failed: set[int], passed: set[int], days: int) -> None:
    wanted = estate()
    series = samples.series(*(samples.image(n, ago(days=days + 6 - n), samples.copy()) for n in range(1, 7)))
    found = {f"img-{n}": (result(f"img-{n}", 1, "Boot", ago(days=1), "Failed"),) for n in failed}
    found |= {f"img-{n}": (result(f"img-{n}", 1, "Boot", NOW, "Passed"),) for n in passed}
    seen = samples.seen(wanted, series, verifications=found)
    judge = expiry.Judge(wanted, seen, NOW)
    due = {one.image.id for one in judge.verdicts(planner.histories.History(series, NOW)) if one.state == "Due"}
    sound = [f"img-{n}" for n in range(6, 0, -1) if n not in failed - passed]
    assert "img-6" not in due
    assert not sound or sound[0] not in due


# -- service levels ----------------------------------------------------------------------------------------------------


def promised(**spec: Any) -> desired.Desired:
    return desired.gather("dir@blake3:1", [*estate(None, None, level(**spec)).objects(), labelled()])


def test_a_promised_rpo_is_the_objective() -> None:
    rules = nevers.Rules(promised(rpo="26h"), samples.seen(promised(rpo="26h")), NOW)
    assert rules.objective("gold") == dt.timedelta(hours=26)
    assert nevers.Rules(estate(), samples.seen(estate()), NOW).objective("gold") == dt.timedelta(hours=48)


def test_nothing_is_promised_of_a_machine_that_was_retired() -> None:
    wanted, old = promised(copies=2), ago(days=2)
    series = samples.series(samples.image(1, old, *both(old)[:1]))
    for rulings, codes in (
        ((), ["ServiceLevelMissed"]),
        ((observed.Ruling(kind="Retire", object=samples.CLIENT, by="ann", at=NOW, reason="gone"),), []),
    ):
        seen = samples.seen(wanted, series, rulings=rulings, inventories={})
        drift = [one.code for one in planner.plan(wanted, seen, NOW).drift]
        assert [one for one in drift if one == "ServiceLevelMissed"] == codes


@pytest.mark.parametrize(
    ("spec", "copies", "code"),
    [
        ({"copies": 2}, 1, "TooFewCopies"),
        ({"copies": 2}, 2, None),
        ({"failureDomains": 2}, 1, "TooFewDomains"),
        ({"failureDomains": 2}, 2, None),
        ({"copies": 2, "copyWithin": "72h"}, 1, None),
    ],
)
def test_copies_are_judged_once_they_had_their_time(spec: dict[str, Any], copies: int, code: str | None) -> None:
    wanted = promised(**spec)
    old, new = ago(days=2), ago(hours=2)
    series = samples.series(samples.image(1, old, *both(old)[:copies]), samples.image(2, new, samples.copy()))
    seen = samples.seen(wanted, series)
    drift = [one for one in planner.plan(wanted, seen, NOW).drift if one.code == "ServiceLevelMissed"]
    condition = next(one for one in conditions.conditions(wanted, seen, series, NOW) if one.type == "Protected")
    assert (len(drift), condition.reason) == ((1, code) if code else (0, "Recent"))


# -- what a result is about, and when it was ---------------------------------------------------------------------------


def test_a_content_that_proved_false_is_about_its_copy_until_that_one_is_made_anew() -> None:
    wanted, bad = estate(land={"content": "1d"}), result("img-2", 1, "Content", ago(hours=2), "Failed")
    later = result("img-1", 1, "Content", ago(hours=1))
    damaged = samples.series(
        *(
            image._replace(copies=(image.copies[0]._replace(state="Damaged"), image.copies[1]))
            if image.id == "img-2"
            else image
            for image in images().images
        )
    )
    anew = samples.series(
        *(
            image._replace(copies=(image.copies[0]._replace(created_at=ago(hours=1)), image.copies[1]))
            for image in images().images
        )
    )
    found = {"img-2": (bad,), "img-1": (later,)}
    for series, reason, drift in ((damaged, "VerificationFailed", 1), (anew, "Verified", 0)):
        seen = samples.seen(wanted, series, verifications=found)
        told = {one.type: one for one in conditions.conditions(wanted, seen, series, NOW)}
        assert told["Recoverable"].reason == reason
        plan = planner.plan(wanted, seen, NOW)
        assert len([one for one in plan.drift if one.code == "VerificationFailed"]) == drift
        # The other copy is what it was: the image is still one to count on.
        history, rules = planner.histories.History(series, NOW), nevers.Rules(wanted, seen, NOW)
        assert not any(rules.failure(history, image.id) for image in series.images)
    assert verify(wanted, bad, later, series=anew)["verify/img-2/1/content"].state is not actions.State.DUE


def test_the_content_that_was_proven_the_longest_time_ago_counts() -> None:
    wanted = estate(dedupe={"content": "1d"})
    found = (result("img-3", 2, "Content", ago(hours=1)),)
    condition = recoverable(wanted, *found)
    assert (condition.status, condition.reason) == ("True", "Verified")
    old = samples.series(*(samples.image(n, ago(days=9 - n), *both(ago(days=9 - n))) for n in (1, 2)))
    seen = samples.seen(wanted, old, verifications={"img-2": (result("img-2", 2, "Content", ago(hours=1)),)})
    told = next(one for one in conditions.conditions(wanted, seen, old, NOW) if one.type == "Recoverable")
    assert told.reason == "VerificationOverdue"


@pytest.mark.parametrize("kind", ["content", "files", "boot"])
def test_results_from_a_clock_that_was_set_back_hold_nothing_up(kind: str) -> None:
    wanted = estate(dedupe={kind: "1d"})
    ahead = NOW + dt.timedelta(days=1000)
    found = verify(wanted, *(result(f"img-{n}", 2, kind.capitalize(), ahead) for n in (1, 2, 3)))
    assert [one.state for one in found.values()].count(actions.State.DUE) >= 1
    again = (result("img-3", 2, kind.capitalize(), NOW), result("img-1", 2, kind.capitalize(), ahead))
    if kind != "content":
        assert [one.state.value for one in verify(wanted, *again).values()] == ["Planned"]


def test_an_image_that_was_declared_wrong_is_not_tried_while_there_is_another() -> None:
    wanted = estate(dedupe={"boot": "14d"})

    def ruled(*names: str) -> list[str]:
        orders = tuple(observed.Ruling(kind="Expire", object=one, by="ann", at=NOW, reason="wrong") for one in names)
        return list(verify(wanted, rulings=orders))

    assert ruled("img-3") == ["verify/img-2/2/boot"]
    assert ruled("img-1", "img-2", "img-3") == ["verify/img-3/2/boot"]
