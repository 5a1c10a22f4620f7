"""What earlier attempts mean for the next one."""

from __future__ import annotations

import datetime as dt

import pytest

from reconciler.planning import observed, retries

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def lost(*, killed: int, stopped: int) -> observed.Attempts:
    count = killed + stopped
    return observed.Attempts(
        failed=count, lost=count, stopped=stopped, last_finished=NOW, last_state="Lost", message="ended"
    )


@pytest.mark.parametrize("stops", [1, 5, 50])
def test_stops_in_order_never_count(stops: int) -> None:
    assert retries.standing(lost(killed=0, stopped=stops), 2, NOW) == retries.READY


def test_an_action_that_kills_its_worker_comes_to_rest() -> None:
    states = [retries.standing(lost(killed=count, stopped=3), 2, NOW).state for count in range(1, 8)]
    assert states == ["Ready"] * 4 + ["Waiting"] * 2 + ["Exhausted"]


@pytest.mark.parametrize(
    ("stops", "failures", "limit", "state"),
    [(1, 0, 2, "Ready"), (2, 0, 2, "Exhausted"), (1, 2, 2, "Ready"), (1, 3, 2, "Exhausted"), (5, 0, None, "Ready")],
)
def test_an_attempt_that_its_window_stopped_is_no_failure_and_a_second_one_ends_the_slot(
    stops: int, failures: int, limit: int | None, state: str
) -> None:
    tried = observed.Attempts(
        failed=stops + failures, lost=0, overran=stops, last_finished=NOW, last_state="Overrun", message="closed"
    )
    assert retries.standing(tried, limit, NOW).state == state


@pytest.mark.parametrize(("ago", "rests"), [(dt.timedelta(hours=1), True), (dt.timedelta(days=-365), False)])
def test_what_was_cancelled_rests_for_a_day_also_where_the_clock_was_set_back_since(
    ago: dt.timedelta, rests: bool
) -> None:
    tried = observed.Attempts(failed=1, lost=0, last_finished=NOW - ago, last_state="Cancelled", message="cancelled")
    assert (retries.resting(tried, NOW) is not None) == rests
