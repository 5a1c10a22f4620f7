"""What each retention rule keeps, and the sentence that says so."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import planning_samples as samples
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.api import lifecycles
from reconciler.planning import retention

RULE: pydantic.TypeAdapter[lifecycles.Retention] = pydantic.TypeAdapter(lifecycles.Retention)


def candidates(*times: str, full: tuple[int, ...] = ()) -> list[retention.Candidate]:
    """One candidate per time, numbered from 1; ``full`` are the numbers of full images, all if empty."""
    return [
        retention.Candidate(str(number), samples.at(text), number, not full or number in full)
        for number, text in enumerate(times, 1)
    ]


def messages(rule: dict[str, Any], all_candidates: list[retention.Candidate]) -> dict[str, str]:
    """The sentences by id."""
    decided = retention.keep(RULE.validate_python(rule), all_candidates, samples.NOW)
    return {id: decision.message for id, decision in decided.items()}


def kept(rule: dict[str, Any], all_candidates: list[retention.Candidate]) -> list[int]:
    """Numbers of the kept ones."""
    decided = retention.keep(RULE.validate_python(rule), all_candidates, samples.NOW)
    return sorted(int(id) for id, decision in decided.items() if decision.keeps)


@pytest.mark.parametrize(
    ("rule", "fields", "keeps", "message"),
    [
        ({"type": "Fixed", "period": "7d"}, {}, True, "kept: Fixed 7d until 2026-11-29T22:00Z"),
        ({"type": "Fixed", "period": "1d"}, {}, False, "expires: Fixed 1d passed 2026-11-23T22:00Z"),
        ({"type": "Fixed", "period": "23h"}, {}, False, "expires: Fixed 23h passed 2026-11-23T21:00Z"),
        (
            {"type": "Fixed", "period": "1h"}, {"children": 2, "unpaid": ("b", "c")}, True,
            "kept: Fixed 1h passed 2026-11-22T23:00Z, still owes b, c",
        ),
        ({"type": "Fixed", "period": "1000y"}, {}, True, "kept: Fixed 1000y until 3026-11-22T22:00Z"),
        ({"type": "ExpireAfterCopy"}, {}, True, "kept: ExpireAfterCopy, and no copy is made of it"),
        ({"type": "ExpireAfterCopy"}, {"children": 1, "unpaid": ("b",)}, True, "kept: ExpireAfterCopy, still owes b"),
        (
            {"type": "ExpireAfterCopy"}, {"children": 1, "chained": True}, True,
            "kept: ExpireAfterCopy, the next incremental needs it",
        ),
        ({"type": "ExpireAfterCopy"}, {"children": 1}, False, "expires: ExpireAfterCopy, every copy owed is made"),
        ({"type": "CapacityManaged"}, {}, True, "kept: CapacityManaged, until its unit is too full"),
        ({"type": "Forever"}, {}, True, "kept: Forever"),
    ],
)  # fmt: skip
def test_rules_that_judge_one_copy(rule: dict[str, Any], fields: dict[str, Any], keeps: bool, message: str) -> None:
    one = retention.Candidate("1", samples.at("2026-11-22T22:00Z"), 1, **fields)
    now = samples.at("2026-11-23T22:00Z")
    decision = retention.keep(RULE.validate_python(rule), [one], now)["1"]
    assert (decision.keeps, decision.message, decision.code) == (keeps, message, rule["type"])


DAYS = candidates("2026-11-20T21:00Z", "2026-11-21T09:00Z", "2026-11-21T21:00Z", "2026-11-23T21:00Z")


def test_each_kept_image_says_by_which_rule_and_the_others_which_rules_kept_others() -> None:
    found = messages({"type": "Keep", "daily": 3, "last": 1}, DAYS)
    assert found == {
        "4": "kept: last 1 of 1, daily 1 of 3 (2026-11-23)",
        "3": "kept: daily 2 of 3 (2026-11-21)",
        "2": "expires: Keep last 1, daily 3 keeps others",
        "1": "kept: daily 3 of 3 (2026-11-20)",
    }


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        ({"hourly": 1}, "kept: hourly 1 of 1 (2026-11-23T21)"),
        ({"weekly": 2}, "kept: weekly 1 of 2 (2026-W48)"),
        ({"monthly": 2}, "kept: monthly 1 of 2 (2026-11)"),
        ({"quarterly": 2}, "kept: quarterly 1 of 2 (2026-Q4)"),
        ({"yearly": 2}, "kept: yearly 1 of 2 (2026)"),
        ({"within": "7d"}, "kept: within 7d"),
        ({"withinDaily": "7d"}, "kept: withinDaily 7d (2026-11-23)"),
    ],
)
def test_buckets_are_named(rule: dict[str, Any], label: str) -> None:
    assert messages({"type": "Keep", **rule}, DAYS)["4"] == label


def test_quarters_and_iso_weeks_at_the_turn_of_a_year() -> None:
    turn = candidates(
        "2026-09-30T23:00Z", "2026-10-01T00:00Z", "2026-12-31T12:00Z", "2027-01-03T12:00Z", "2027-01-04T12:00Z"
    )
    assert kept({"type": "Keep", "quarterly": 9}, turn) == [1, 3, 5]
    # 31 December 2026 to 3 January 2027 are one ISO week, 2026-W53.
    assert messages({"type": "Keep", "weekly": 9}, turn)["4"] == "kept: weekly 2 of 9 (2026-W53)"


def test_days_begin_in_the_declared_zone() -> None:
    # 23:30Z on Friday is Saturday in Berlin.
    late = candidates("2026-11-20T12:00Z", "2026-11-20T23:30Z", "2026-11-21T12:00Z")
    assert kept({"type": "Keep", "daily": 9}, late) == [2, 3]
    assert kept({"type": "Keep", "daily": 9, "timeZone": "Europe/Berlin"}, late) == [1, 3]


def test_within_counts_from_the_newest_and_keeps_what_is_strictly_newer() -> None:
    month = candidates("2026-03-02T00:00Z", "2026-03-02T00:00:01Z", "2026-04-30T00:00Z")
    # 30 April - 2mo = 30 February = 2 March.
    assert kept({"type": "Keep", "within": "2mo"}, month) == [2, 3]
    assert kept({"type": "Keep", "within": "10000d"}, month) == [1, 2, 3]
    assert kept({"type": "Keep", "within": "900y"}, month) == [1, 2, 3]


def test_months_within_are_local_dates_across_a_change_of_the_clocks() -> None:
    # Noon in Berlin on 1 April is 10:00Z, a month earlier 11:00Z.
    spring = candidates("2026-03-01T10:30Z", "2026-03-01T11:30Z", "2026-04-01T10:00Z")
    assert kept({"type": "Keep", "within": "1mo", "timeZone": "Europe/Berlin"}, spring) == [2, 3]
    assert kept({"type": "Keep", "within": "1mo"}, spring) == [1, 2, 3]


def test_keep_oldest_keeps_the_oldest_while_counts_are_left() -> None:
    assert kept({"type": "Keep", "monthly": 3}, DAYS) == [4]
    assert kept({"type": "Keep", "monthly": 3, "keepOldest": True}, DAYS) == [1, 4]
    assert messages({"type": "Keep", "monthly": 3, "keepOldest": True}, DAYS)["1"] == "kept: oldest monthly 2 of 3"
    assert kept({"type": "Keep", "monthly": 1, "keepOldest": True}, DAYS) == [4]


def test_prefer_full_takes_the_newest_full_of_a_bucket() -> None:
    week = candidates("2026-11-21T09:00Z", "2026-11-21T15:00Z", "2026-11-21T21:00Z", "2026-11-22T21:00Z", full=(1, 2))
    assert kept({"type": "Keep", "daily": 2}, week) == [3, 4]
    assert kept({"type": "Keep", "daily": 2, "prefer": "Full"}, week) == [2, 4]
    assert kept({"type": "Keep", "weekly": 1, "prefer": "Full"}, week) == [2]


# -- properties --------------------------------------------------------------------------------------------------------

_COUNTS = st.one_of(st.none(), st.integers(1, 6))
_PERIODS = st.one_of(st.none(), st.sampled_from(("1h", "36h", "3d", "2w", "1mo", "1y")))
RULES = st.fixed_dictionaries(
    dict.fromkeys(("last", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly"), _COUNTS)
    | dict.fromkeys(("within", "withinDaily", "withinMonthly"), _PERIODS)
    | {
        "keepOldest": st.booleans(),
        "prefer": st.sampled_from(("Newest", "Full")),
        "timeZone": st.sampled_from(("UTC", "Europe/Berlin", "Pacific/Apia")),
        "type": st.just("Keep"),
    }
)
TIMES = st.lists(st.tuples(st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2026, 11, 1)), st.booleans()), max_size=30)


def made(times: list[tuple[dt.datetime, bool]]) -> list[retention.Candidate]:
    """Candidates in order of time."""
    return [
        retention.Candidate(str(number), moment.replace(tzinfo=dt.UTC), number, full)
        for number, (moment, full) in enumerate(sorted(times), 1)
    ]


@settings(max_examples=200)
@given(rule=RULES, times=TIMES, seed=st.integers(0, 99))
def test_what_is_kept_stays_kept_once_the_others_are_gone_in_any_order(
    rule: dict[str, Any], times: list[tuple[dt.datetime, bool]], seed: int
) -> None:
    everything = made(times)
    first = kept(rule, everything)
    survivors = [one for one in everything if one.sequence in first]
    random.Random(seed).shuffle(survivors)
    assert kept(rule, survivors) == first
    gone = [one for one in everything if one.sequence not in first]
    assert kept(rule, survivors + gone[: len(gone) // 2]) == first


@settings(max_examples=200)
@given(rule=RULES, times=TIMES, name=st.sampled_from(("last", "daily", "monthly", "yearly")))
def test_a_larger_count_never_keeps_less(
    rule: dict[str, Any], times: list[tuple[dt.datetime, bool]], name: str
) -> None:
    # The oldest is kept only while counts are left, so that rule alone may let it go.
    rule = {**rule, "keepOldest": False}
    more = {**rule, name: (rule[name] or 0) + 2}
    assert set(kept(rule, made(times))) <= set(kept(more, made(times)))


@settings(max_examples=100)
@given(rule=RULES, times=TIMES)
def test_the_newest_is_kept_by_every_rule_that_says_anything(
    rule: dict[str, Any], times: list[tuple[dt.datetime, bool]]
) -> None:
    rule = {**rule, "prefer": "Newest"}
    says = any(rule[name] for name in rule if name not in ("type", "prefer", "timeZone", "keepOldest"))
    if times and says:
        assert max(one.sequence for one in made(times)) in kept(rule, made(times))
