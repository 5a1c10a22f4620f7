"""A plan stands while nothing has changed, and not a moment longer: seen from the controller's own seat."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import estate_samples
import pytest
from moved_clocks import MovedClock

from reconciler.base import times
from reconciler.catalog import database, requests
from reconciler.cli import seats, settings
from reconciler.controller import passes


@pytest.fixture
def estate(tmp_path: Path) -> estate_samples.Estate:
    """A converged estate of two machines."""
    made = estate_samples.build(tmp_path / "estate", "alpha", "beta", duplicate="yes")
    made.apply(clock=estate_samples.START)
    return made


@contextlib.contextmanager
def seat(estate: estate_samples.Estate) -> Iterator[tuple[passes.Controller, MovedClock]]:
    """The controller of an estate a minute after its first pass, after two turns."""
    chosen = settings.of_estate(estate.folder, state=None, catalog=None)
    clock = MovedClock(times.parse(estate_samples.START) + dt.timedelta(minutes=1))
    with (
        contextlib.closing(database.open_writing(chosen.catalog)) as db,
        seats.controlling(chosen, db, clock) as controller,
    ):
        for _ in range(2):
            controller.reload()
            controller.turn()
        yield controller, clock


def stands(controller: passes.Controller) -> bool:
    """Whether a further turn goes by the plan of the last one."""
    before = controller.turn().actions
    controller.reload()
    return controller.turn().actions is before


def test_a_turn_with_nothing_new_goes_by_the_last_plan(estate: estate_samples.Estate) -> None:
    with seat(estate) as (controller, clock):
        assert stands(controller)
        clock.moment += dt.timedelta(minutes=4)
        plan = controller.turn()
        assert plan.now == clock.moment
        assert stands(controller)


def test_it_is_what_planning_again_would_say(estate: estate_samples.Estate) -> None:
    with seat(estate) as (controller, clock):
        controller.turn()
        clock.moment += dt.timedelta(minutes=3)
        standing, _, _ = controller.plan()
        again, _, _ = controller.plan(horizon=standing.horizon - standing.now)
        assert standing == again


@pytest.mark.parametrize(
    "news", ["a manifest", "a machine", "a unit that is away", "a request", "a slot", "ten minutes"]
)
def test_news_makes_a_new_plan(estate: estate_samples.Estate, news: str) -> None:
    with seat(estate) as (controller, clock):
        before = controller.turn().actions
        if news == "a manifest":
            (estate.folder / "more.yaml").write_text(estate_samples.STORAGE.replace("fast", "other") % {"level": 1})
            for old, new in (("name: pool", "name: deep"), ("storage/pool", "storage/deep")):
                text = (estate.folder / "more.yaml").read_text()
                (estate.folder / "more.yaml").write_text(text.replace(old, new))
        elif news == "a machine":
            estate.machine("gamma")
        elif news == "a unit that is away":
            (estate.folder / "storage" / "fast").rename(estate.folder / "storage" / "away")
        elif news == "a request":
            payload = {"policy": "machines", "client": "nobody"}
            requests.add(controller.site.db, "Backup", payload, clock.moment, "tester")
        elif news == "a slot":
            clock.moment += dt.timedelta(days=1)
        else:
            clock.moment += dt.timedelta(minutes=10)
        controller.reload()
        assert controller.plan()[0].actions is not before


def test_a_request_that_came_after_the_plan_is_left_to_the_next_one(estate: estate_samples.Estate) -> None:
    with seat(estate) as (controller, clock):
        plan = controller.turn()
        (client, *_) = (one["id"] for one in estate.get("clients"))
        asked = {"policy": "nightly", "client": client}
        request = requests.add(controller.site.db, "Backup", asked, clock.now(), "tester")
        controller.answer_requests(plan)
        assert [row.id for row in requests.pending(controller.site.db, "Backup")] == [request]
        assert request in {one for action in controller.turn().actions for one in (action.request, *action.requests)}
