"""Drills keep their period where images are kept for less: what the last one found is known beyond its image."""

from __future__ import annotations

import datetime as dt
from typing import Any

import hypothesis
import planning_samples as samples
import pytest
from hypothesis import strategies as st

from reconciler.planning import actions, alarms, conditions, desired, histories, nevers, observed, planner

NOW, ago = samples.NOW, samples.ago


def estate(verify: dict[str, Any] | None, *more: Any) -> desired.Desired:
    """One operation onto ``fast``, with a ``verify``."""
    operation = samples.operation("land", "fast", **({"verify": verify} if verify else {}))
    return samples.estate(samples.unit("fast"), samples.lifecycle("gold", operation), samples.policy(), *more)


def series(*numbers: int, state: str = "Complete", now: dt.datetime = NOW) -> observed.Series:
    """Images that are ``10 - number`` days old."""
    made = {number: now - dt.timedelta(days=10 - number) for number in numbers}
    return samples.series(*(samples.image(n, at, samples.copy(created_at=at, state=state)) for n, at in made.items()))


def trial(image: str, at: dt.datetime, state: str = "Passed", kind: str = "Boot", operation: str = "land") -> Any:
    found = observed.Verification(image=image, copy=1, kind=kind, state=state, at=at, message="so it was")
    return observed.Trial(operation=operation, found=found)


def seen(wanted: desired.Desired, images: observed.Series, *trials: Any, **more: Any) -> observed.Observed:
    return samples.seen(wanted, images, trials={(images.client, images.policy): trials}, **more)


def drills(wanted: desired.Desired, images: observed.Series, *trials: Any, now: dt.datetime = NOW) -> dict[str, str]:
    plan = planner.plan(wanted, seen(wanted, images, *trials), now)
    return {str(one.image): one.state.value for one in plan.actions if one.type is actions.Type.VERIFY}


def recoverable(wanted: desired.Desired, images: observed.Series, *trials: Any) -> conditions.Condition:
    found = conditions.conditions(wanted, seen(wanted, images, *trials), images, NOW)
    return next(one for one in found if one.type == "Recoverable")


@pytest.mark.parametrize(
    ("trials", "found"),
    [
        ((), {"img-9": "Due"}),
        ((trial("img-1", ago(days=2)),), {}),
        ((trial("img-1", ago(days=13, hours=1)),), {"img-9": "Planned"}),
        ((trial("img-1", ago(days=14)),), {"img-9": "Due"}),
        # A failed one whose image is gone: whatever is left is tried at once.
        ((trial("img-1", ago(days=2), "Failed"),), {"img-9": "Due"}),
        ((trial("img-12", ago(hours=2), "Failed"),), {"img-9": "Due"}),
        ((trial("img-1", ago(days=2), "Failed"), trial("img-2", ago(days=1), operation="other")), {"img-9": "Due"}),
        # Not what is asked for.
        ((trial("img-1", ago(days=2), kind="Files"),), {"img-9": "Due"}),
        ((trial("img-1", ago(days=2), operation="dedupe"),), {"img-9": "Due"}),
        ((trial("img-1", NOW + dt.timedelta(days=100)),), {"img-9": "Due"}),
    ],
)
def test_a_drill_is_due_a_period_after_the_last_whose_image_is_gone(trials: Any, found: dict[str, str]) -> None:
    assert drills(estate({"boot": "14d"}), series(8, 9), *trials) == found


def test_a_failed_image_that_is_there_without_a_copy_is_gone_too() -> None:
    left = samples.series(*series(8).images, *series(9, state="Expired").images)
    assert drills(estate({"boot": "14d"}), left, trial("img-9", ago(hours=2), "Failed")) == {"img-8": "Due"}


def promised(**spec: Any) -> desired.Desired:
    """A ServiceLevel asks, and no operation does."""
    level = samples.make("ServiceLevel", "erp", {"selector": {"matchLabels": {"tier": "gold"}}, **spec})
    made = samples.policy("gold")
    labelled = made.model_copy(update={"metadata": made.metadata.model_copy(update={"labels": {"tier": "gold"}})})
    lifecycle = samples.lifecycle("gold", samples.operation("land", "fast"))
    return samples.estate(samples.unit("fast"), lifecycle, labelled, level)


def test_a_service_level_remembers_a_trial_of_any_operation() -> None:
    wanted = promised(verified={"boot": "14d"})
    old = trial("img-1", ago(days=2), operation="an operation that is no more")
    assert drills(wanted, series(9), old) == {}
    assert drills(wanted, series(9)) == {"img-9": "Due"}
    found = recoverable(wanted, series(9), old)
    assert (found.status, found.reason) == ("True", "Verified") and "img-1, which has expired since" in found.message
    late = recoverable(wanted, series(9), trial("img-1", ago(days=16)))
    assert late.reason == "VerificationOverdue" and "ServiceLevel/erp asks for every 14d" in late.message


@hypothesis.given(kept=st.integers(1, 6), period=st.integers(2, 9), days=st.integers(1, 40))
def test_drills_come_once_a_period_however_short_images_are_kept(kept: int, period: int, days: int) -> None:
    wanted = estate({"boot": f"{period}d"})
    trials: tuple[Any, ...] = ()
    made = []
    for day in range(days):
        now = NOW + dt.timedelta(days=day)
        images = series(*range(11 - kept, 11), now=now)
        images = samples.series(*(one._replace(id=f"img-{one.sequence + day}") for one in images.images))
        if "Due" in drills(wanted, images, *trials, now=now).values():
            made.append(day)
            trials = (trial(f"gone-{day}", now),)
    assert made == list(range(0, days, period))


@pytest.mark.parametrize(
    ("trials", "images", "status", "reason", "words"),
    [
        ((), (9,), "Unknown", "NotVerified", "was never verified"),
        ((trial("img-1", ago(days=2)),), (9,), "True", "Verified", "of img-1, which has expired since"),
        ((trial("img-1", ago(days=16)),), (9,), "False", "VerificationOverdue", "of img-1, which has expired since"),
        ((trial("img-1", ago(days=2), "Failed"),), (9,), "False", "VerificationFailed", "it has expired since"),
        ((trial("img-1", ago(days=2)),), (), "Unknown", "NotVerified", "no image of the series can be read"),
    ],
)
def test_recoverable_says_what_was_proven_and_that_it_is_gone(
    trials: Any, images: tuple[int, ...], status: str, reason: str, words: str
) -> None:
    found = recoverable(estate({"boot": "14d"}), series(*images), *trials)
    assert (found.status, found.reason) == (status, reason) and words in found.message


def test_of_an_operation_that_has_no_copy_left_what_was_found_of_any_counts() -> None:
    old, new = trial("img-9", ago(days=20)).found, trial("img-9", ago(days=2)).found._replace(copy=2)
    for state, reason in (("Expired", "Verified"), ("Complete", "VerificationOverdue")):
        copies = (samples.copy(state=state), samples.copy(2, "dedupe", "deep"))
        images = samples.series(samples.image(9, ago(days=30), *copies))
        wanted = estate({"boot": "14d"})
        known = seen(wanted, images, verifications={"img-9": (old, new)})
        found = next(one for one in conditions.conditions(wanted, known, images, NOW) if one.type == "Recoverable")
        assert found.reason == reason


def test_a_content_proven_of_a_copy_that_is_gone_counts_for_the_condition_alone() -> None:
    wanted = estate({"content": "1d"})
    old = trial("img-1", ago(days=9), kind="Content")
    assert (
        recoverable(wanted, samples.series(samples.image(9, NOW, samples.copy(created_at=NOW))), old).status == "True"
    )
    assert drills(wanted, series(9), old) == {"img-9": "Due"}


def test_a_failure_is_told_beyond_its_image_while_another_drill_is_to_come() -> None:
    failed = trial("img-1", ago(days=2), "Failed")

    def told(verify: dict[str, Any] | None, *images: int) -> list[str]:
        wanted = estate(verify)
        plan = planner.plan(wanted, seen(wanted, series(*images), failed), NOW)
        return [one.message for one in plan.drift if one.code == "VerificationFailed"]

    assert [one.endswith("so it was; it has expired since") for one in told({"boot": "14d"}, 9)] == [True]
    assert told({"files": "14d"}, 9) == told(None, 9) == told({"boot": "14d"}) == []
    assert recoverable(estate(None), series(9), failed).message == "no image of the series has been verified"


@pytest.mark.parametrize(
    ("images", "results", "kept"),
    [
        # img-9 was made after a drill failed, and its own is still to come.
        ((6, 8, 9), {8: "Failed"}, {"img-6", "img-9"}),
        ((6, 7, 8, 9), {7: "Failed", 8: "Failed"}, {"img-6", "img-9"}),
        ((6, 8, 9), {8: "Failed", 9: "Passed"}, {"img-9"}),
        ((6, 8, 9), {6: "Passed"}, {"img-9"}),
        # Its period is over: what comes now is tried before it goes.
        ((-4, 8, 9), {-4: "Passed"}, {"img--4", "img-9"}),
        ((-4, 8, 9), {-4: "Passed", 9: "Passed"}, {"img-9"}),
        # Of an image that is gone: what is younger than its drill was not tried.
        ((6, 9), {7: "Gone"}, {"img-6", "img-9"}),
    ],
)
def test_the_image_from_before_a_failure_stays_until_a_later_one_passes(
    images: tuple[int, ...], results: dict[int, str], kept: set[str]
) -> None:
    wanted = estate({"boot": "14d"})
    when = {number: ago(days=10 - number, hours=-1) for number in results}
    here = {n: trial(f"img-{n}", when[n], state).found for n, state in results.items() if state != "Gone"}
    gone = [trial(f"img-{n}", when[n], "Failed") for n, state in results.items() if state == "Gone"]
    known = seen(wanted, series(*images), *gone, verifications={one.image: (one,) for one in here.values()})
    found = nevers.protected(nevers.Rules(wanted, known, NOW), histories.History(series(*images), NOW))
    assert set(found) == kept


def test_an_image_that_came_back_has_failed_as_before() -> None:
    wanted = estate(None)
    state = seen(wanted, series(8, 9), trial("img-9", ago(days=1), "Failed"))
    history = histories.History(series(8, 9), NOW)

    def bad(state: observed.Observed) -> list[str]:
        rules = nevers.Rules(wanted, state, NOW)
        return [one for one in ("img-8", "img-9") if rules.failure(history, one) is not None]

    assert bad(state) == ["img-9"]
    again = observed.Verification(image="img-9", copy=2, kind="Boot", state="Passed", at=NOW, message="it did")
    state = seen(wanted, series(8, 9), trial("img-9", ago(days=1), "Failed"), verifications={"img-9": (again,)})
    assert not bad(state)


@pytest.mark.parametrize(
    ("kind", "trials", "numbers", "words"),
    [
        # An image is one day old, or nine; the promise is in force for a hundred days.
        ("boot", (), (1, 9), "Boot was never proven and is promised every 14d"),
        ("boot", (), (10,), None),
        ("boot", (), (), None),
        ("boot", (trial("img-9", ago(days=15)),), (9,), None),
        ("boot", (trial("img-9", ago(days=16)),), (9,), "Boot was last proven 2026-11-"),
        ("boot", (trial("img-1", ago(days=16)), trial("img-9", ago(days=1), "Failed")), (1, 9), "it failed 2026-11-"),
        ("boot", (trial("img-1", ago(days=3)), trial("img-9", ago(days=1), "Failed")), (1, 9), None),
        ("content", (), (1, 9), None),
        ("content", (), (1, 9, -6), "Content was last proven 2026-11-"),
    ],
)
def test_a_promise_is_missed_by_the_age_of_the_last_success(
    kind: str, trials: Any, numbers: tuple[int, ...], words: str | None
) -> None:
    wanted, images = promised(verified={kind: "14d"}), series(*sorted(numbers))
    by_image = {one.found.image: (one.found,) for one in trials}
    state = samples.seen(wanted, images, verifications=by_image)
    plan = planner.plan(wanted, state, NOW)
    missed = [one.message for one in plan.drift if one.code == "ServiceLevelMissed"]
    told = [one.key for one in alarms.alarms(plan, wanted, state) if one.key.startswith("ServiceLevelMissed")]
    if words is None:
        assert not missed and not told
    else:
        assert words in missed[0] and told == ["ServiceLevelMissed/erp/gold/oblvm1"]
        (protected,) = [one for one in conditions.conditions(wanted, state, images, NOW) if one.type == "Protected"]
        assert protected.reason in ("Recent", "Overdue")


def test_a_promise_that_is_young_is_not_missed_and_one_of_copies_and_proofs_is_told_once() -> None:
    wanted = promised(verified={"boot": "14d", "files": "2d"}, copies=2)
    for since, many in ((ago(days=4), 2), (ago(days=40), 3)):
        plan = planner.plan(wanted, samples.seen(wanted, series(8, 9), since=since), NOW)
        (missed,) = [one.message for one in plan.drift if one.code == "ServiceLevelMissed"]
        assert missed.startswith("gold/oblvm1: the image of") and len(missed.split("; ")) == many
