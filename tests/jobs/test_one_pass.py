"""A pass ends with its last job, also where that ends between the look at the jobs and the turn that hears of it."""

from __future__ import annotations

import threading
import types
from typing import Any, cast

import pytest

from reconciler.base import clocks
from reconciler.catalog import database
from reconciler.controller import loop, passes
from reconciler.planning import actions


class Controller:
    """One whose only job ends within its first turn, which hears of it; nothing wakes whoever rests afterwards."""

    def __init__(self, db: database.Database) -> None:
        self.site = types.SimpleNamespace(db=db, clock=clocks.SystemClock())
        self.engine = self
        self.started = self.turns = 0

    def idle(self) -> bool:
        return self.turns > 0

    def turn(self, **_: Any) -> actions.Plan:
        self.turns += 1
        now = self.site.clock.now()
        return actions.Plan(now=now, horizon=now, revision="", in_force=None)

    def wait(self, timeout: float) -> bool:
        pytest.fail(f"rests {timeout} s although no job runs")

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def test_a_job_that_ends_within_a_turn_is_not_waited_for(db: database.Database) -> None:
    controller = Controller(db)
    loop.one_pass(
        cast("passes.Controller", controller), until_converged=False, stop=threading.Event(), progress=lambda: None
    )
    assert controller.turns == 2
