"""``schemas/plan-v1.json``: whatever a plan holds, it is what the schema says, and nothing less is."""

from __future__ import annotations

import copy
import json
from typing import Any

import estates
import plan_schema
import pytest
import test_convergence
import test_documents
import test_plan_text
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import desired, planfile


@settings(max_examples=60, deadline=None)
@given(wanted=estates.estates(), life=st.lists(estates.STEPS, max_size=5), hours=st.sampled_from((0, 7, 40, 300)))
def test_plans_of_random_estates_are_valid(wanted: desired.Desired, life: list[tuple[str, Any]], hours: int) -> None:
    world = test_convergence.new_world(wanted)
    for word, value in life:
        world.settle(test_convergence.step(world, word, value))
        plan_schema.require_valid(json.loads(json.dumps(planfile.document(world.plan()).to_json())))
    world.pass_by(hours=hours)
    plan_schema.require_valid(planfile.document(world.plan()).to_json())


@pytest.mark.parametrize("name", test_plan_text.PAGES)
def test_plans_with_problems_drift_and_destruction_are_valid(name: str) -> None:
    plan_schema.require_valid(test_plan_text.PAGES[name]().to_json())


def test_what_is_missing_or_of_another_format_is_not_valid() -> None:
    whole = planfile.document(test_documents.rich()).to_json()
    plan_schema.require_valid({**whole, "addedByALaterMinorVersion": 1, "formatVersion": "1.7"})
    for key in whole:
        less = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(AssertionError):
            plan_schema.require_valid(less)
    for change in ({"formatVersion": "2.0"}, {"kind": "Plans"}, {"now": None}, {"actions": 3}):
        with pytest.raises(AssertionError):
            plan_schema.require_valid({**whole, **change})
    for key in whole["actions"][0]:
        less = copy.deepcopy(whole)
        del less["actions"][0][key]
        with pytest.raises(AssertionError):
            plan_schema.require_valid(less)
