"""When a pool is read again: within ``scrub.every``, slice by slice, and never where it cannot be."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest

from reconciler.planning import actions, observed, planner

NOW, ago = samples.NOW, samples.ago


def scrub(seen: dict[str, Any], spec: dict[str, Any] | None = None, **more: Any) -> actions.Action | None:
    """The scrub of pool ``deep`` in a plan, if there is one."""
    wanted = samples.estate(
        samples.unit("fast"),
        samples.pool("deep", **(spec or {})),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.policy("gold"),
    )
    found = samples.seen(wanted, **more)
    units = {**found.units, "deep": dataclasses.replace(found.units["deep"], **seen)}
    plan = planner.plan(wanted, dataclasses.replace(found, units=units), NOW)
    assert not any(one.type is actions.Type.VERIFY and one.unit != "deep" for one in plan.actions)
    return samples.by_address(plan).get("scrub/deep")


@pytest.mark.parametrize(
    ("seen", "spec", "state", "code"),
    [
        ({"proven": ago(days=31)}, {}, "Due", "ScrubDue"),
        ({"proven": ago(days=30)}, {}, "Due", "ScrubDue"),
        ({"proven": ago(days=-365)}, {}, "Due", "ScrubDue"),
        ({"proven": ago(days=29, hours=12)}, {}, "Planned", "ScrubDue"),
        ({"proven": ago(days=8)}, {"scrub": {"every": "7d"}}, "Due", "ScrubDue"),
        ({"proven": ago(hours=1), "proving": True}, {}, "Due", "ScrubUnfinished"),
        ({"proven": ago(minutes=59), "proving": True}, {}, "Planned", "ScrubUnfinished"),
        ({"proven": ago(days=31), "state": "ReadOnly"}, {}, "Blocked", "UnitReadOnly"),
        ({"proven": ago(days=31)}, {"maxConcurrentJobs": 0}, "Blocked", "UnitDisabled"),
    ],
)
def test_a_scrub_is_due_by_its_last_one(seen: dict[str, Any], spec: dict[str, Any], state: str, code: str) -> None:
    action = scrub(seen, spec)
    assert action is not None
    assert (action.state.value, action.reason.code, action.type) == (state, code, actions.Type.VERIFY)


@pytest.mark.parametrize("seen", [{"proven": ago(days=28)}, {"proven": None}])
def test_what_is_not_due_is_not_in_the_plan(seen: dict[str, Any]) -> None:
    assert scrub(seen) is None


def test_the_time_it_falls_due_is_said() -> None:
    action = scrub({"proven": ago(days=29, hours=12)})
    assert action is not None
    assert action.at == NOW + dt.timedelta(hours=12)
    assert "every 30d" in action.reason.message


def test_a_scrub_that_failed_waits_and_one_that_runs_is_said_to() -> None:
    failed = observed.Attempts(failed=1, lost=0, stopped=0, last_state="Failed", last_finished=NOW, message="no")
    waiting = scrub({"proven": ago(days=31)}, attempts={"scrub/deep": failed})
    assert waiting is not None
    assert (waiting.state.value, waiting.attempt) == ("Waiting", 2)
