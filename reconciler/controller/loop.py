"""Turning: one pass to its end, or for ever.

The loop is level-triggered: a changed file, a request, a finished job or a time that has come only wake it, and every
turn reads everything again. Watching is a convenience; the tick is the truth.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

from reconciler.base import errors
from reconciler.catalog import requests
from reconciler.controller import outcomes, passes
from reconciler.planning import actions

_log = logging.getLogger(__name__)

#: How often the loop looks at requests, the clock and its own end, in seconds.
TICK = 0.5
#: How often the sources are asked anew, in seconds.
SURVEY = 60.0

Progress = Callable[[], None]


def one_pass(
    controller: passes.Controller, *, until_converged: bool, stop: threading.Event, progress: Progress
) -> actions.Plan:
    """Turn until nothing is due and nothing runs; with ``until_converged`` also wait for windows and retries.

    Work that falls due while the pass runs waits for the next one. Raises ``Cancelled`` if ``stop`` is set.
    """
    controller.reload()
    started = controller.site.clock.now()
    while True:
        plan = controller.turn(until=None if until_converged else started)
        waiting = until_converged and _waits(plan)
        if controller.idle() and not waiting and not _startable(plan, None if until_converged else started):
            controller.answer_requests(plan)
            controller.dump()
            return plan
        _pause(controller, stop, progress)


def _waits(plan: actions.Plan) -> bool:
    return any(action.state is actions.State.WAITING and action.at is not None for action in plan.actions)


def _startable(plan: actions.Plan, until: dt.datetime | None) -> bool:
    return any(
        until is None or action.type is not actions.Type.BACKUP or action.slot is None or action.slot <= until
        for action in plan.in_state(actions.State.DUE)
    )


def _pause(controller: passes.Controller, stop: threading.Event, progress: Progress) -> None:
    controller.engine.wait(TICK)
    progress()
    if stop.is_set():
        raise errors.Cancelled("interrupted")


def for_ever(
    controller: passes.Controller, *, stop: threading.Event, progress: Progress, say: Callable[[str], None]
) -> None:
    """Keep the estate converged until ``stop`` is set."""
    woken = threading.Event()
    watcher = _watch(controller.estate, woken, stop)
    controller.reload()
    surveyed = controller.site.clock.boot()
    revision = ""
    try:
        while not stop.is_set():
            applies = requests.pending(controller.site.db, "Apply")
            if woken.is_set() or applies or controller.site.clock.boot() - surveyed > SURVEY:
                woken.clear()
                controller.reload()
                surveyed = controller.site.clock.boot()
            revision = _turn(controller, applies, revision, say)
            controller.engine.wait(TICK)
            progress()
    finally:
        stop.set()
        if watcher is not None:
            watcher.join(5)


def _turn(
    controller: passes.Controller, applies: tuple[requests.RequestRow, ...], revision: str, say: Callable[[str], None]
) -> str:
    plan = controller.turn()
    for finished in controller.tally.finished:
        told = f": {finished.failure.message}" if finished.failure else ""
        say(f"{finished.state.lower():9} {finished.address}{told}")
    if plan.revision != revision:
        say(f"revision  {plan.revision}")
        for problem in plan.problems:
            say(str(problem))
    if controller.idle() and not plan.changes:
        controller.answer_requests(plan)
        controller.dump()
        document = outcomes.result(plan, controller.tally.finished, controller.tally.configuration)
        for row in applies:
            outcome = {"exitCode": outcomes.exit_code(document, plan), "result": document.to_json()}
            requests.finish(controller.site.db, row.id, outcome, controller.site.clock.now())
    if not applies:
        controller.tally = passes.Tally()
    return plan.revision


def _watch(estate: Path | None, woken: threading.Event, stop: threading.Event) -> threading.Thread | None:
    if estate is None:
        return None

    def follow() -> None:
        try:
            for _ in watchfiles.watch(
                estate, watch_filter=_visible, stop_event=stop, raise_interrupt=False, rust_timeout=500, debounce=200
            ):
                woken.set()
        except OSError as error:
            _log.warning("cannot watch %s (%s); changes are found at the next survey", estate, error)

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    return thread


def _visible(_change: watchfiles.Change, path: str) -> bool:
    # Names that begin with a dot are neither read nor watched, or the state folder would wake the loop itself.
    return not any(part.startswith(".") for part in Path(path).parts) and path.endswith((".yaml", ".yml", ".toml"))
