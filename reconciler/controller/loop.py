"""Turning: one pass to its end, or for ever.

The loop is level-triggered: a changed file, a request, a finished job or a time that has come only wake it, and every
turn reads everything again. Watching is a convenience; looking again now and then is the truth.
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
from reconciler.operations import filelessons
from reconciler.planning import actions

_log = logging.getLogger(__name__)

#: How often the loop looks at requests, the clock and its own end, in seconds.
TICK = 0.1
#: How often everything is planned anew although nothing woke the loop, and the sources asked anew.
RESYNC = dt.timedelta(seconds=60)
#: How long alarms wait for the end of a pass that has much to do.
LISTEN = dt.timedelta(minutes=15)

Progress = Callable[[], None]
Say = Callable[[str], None]


def one_pass(
    controller: passes.Controller, *, until_converged: bool, stop: threading.Event, progress: Progress
) -> actions.Plan:
    """Turn until nothing is due and nothing runs; with ``until_converged`` also wait for windows and retries.

    Work that falls due while the pass runs waits for the next one. Raises ``Cancelled`` if ``stop`` is set.
    """
    controller.reload()
    until: dt.datetime | None = None
    while True:
        # Asked before the turn: a plan made beside a running job says nothing about what that job made due.
        idle = controller.idle()
        plan = controller.turn(until=until)
        waiting = until_converged and _waits(plan)
        if idle and not waiting and not controller.started:
            controller.answer_requests(plan)
            controller.answer_reloads(requests.pending(controller.site.db, "Reload"))
            controller.tell(plan)
            controller.dump()
            return plan
        if until is None and not until_converged:
            # The first turn put the configuration in force; what was due then is the pass.
            until = controller.site.clock.now()
        if idle or not controller.idle():
            _rest(controller, plan, stop, progress)
        # Else the last job ended while the turn looked, which may have heard of it: nothing would end the rest.


def _waits(plan: actions.Plan) -> bool:
    return any(action.state is actions.State.WAITING and action.at is not None for action in plan.actions)


def _rest(controller: passes.Controller, plan: actions.Plan, stop: threading.Event, progress: Progress) -> None:
    """Sleep until a job has finished or a time has come."""
    while True:
        finished = controller.engine.wait(TICK)
        controller.stop_overruns()
        progress()
        if stop.is_set():
            raise errors.Cancelled("interrupted")
        if finished or _come(controller, plan):
            return


def _come(controller: passes.Controller, plan: actions.Plan) -> bool:
    """Whether a time that the plan waits for has come, or the clock went back behind the plan."""
    now = controller.site.clock.now()
    next_event = plan.next_event
    return now < plan.now or now > plan.now + RESYNC or (next_event is not None and now >= next_event)


def for_ever(controller: passes.Controller, *, stop: threading.Event, progress: Progress, say: Say) -> None:
    """Keep the estate converged until ``stop`` is set."""
    woken = threading.Event()
    watcher = _watch(controller.estate, woken, stop)
    keeper = _Keeper(controller, woken, say)
    try:
        while not stop.is_set():
            keeper.turn()
            while not stop.is_set() and not keeper.needed():
                progress()
    finally:
        stop.set()
        keeper.close()
        if watcher is not None:
            watcher.join(5)


class _Keeper:
    """What the endless loop remembers between its turns."""

    def __init__(self, controller: passes.Controller, woken: threading.Event, say: Say) -> None:
        self._controller = controller
        self._woken = woken
        self._say = say
        self._plan: actions.Plan | None = None
        #: Whether the tree and the sources are to be read again; not for a job that has finished.
        self._stale = True
        self._revision: str | None = None
        self._told: frozenset[str] = frozenset()
        self._taken: frozenset[str] = frozenset()
        #: When alarms were told last, or the loop began.
        self._listened = controller.site.clock.now()
        self._files = filelessons.Keeper(controller.site)

    def needed(self) -> bool:
        """Wait a tick; whether there is a reason to turn again."""
        finished = self._controller.engine.wait(TICK)
        self._controller.stop_overruns()
        self._files.turn(_log.info)
        self._stale = (
            self._plan is None
            or self._woken.is_set()
            or _come(self._controller, self._plan)
            or any(row.id not in self._taken for row in requests.pending(self._controller.site.db))
        )
        return finished or self._stale

    def close(self) -> None:
        """End what goes on beside the loop."""
        self._files.close()

    def turn(self) -> None:
        """Read again what may have changed, turn once, tell what happened, answer who asked."""
        controller = self._controller
        self._woken.clear()
        if self._stale:
            controller.reload()
        asked = requests.pending(controller.site.db)
        self._taken = frozenset(row.id for row in asked)
        idle = controller.idle()
        plan = self._plan = controller.turn()
        controller.answer_reloads(asked)
        self._tell(plan)
        done = idle and not controller.started
        # What a pass is about to put right is no alarm, unless putting it right takes long.
        if done or not self._listened <= plan.now < self._listened + LISTEN:
            controller.tell(plan)
            self._listened = plan.now
        if done:
            controller.answer_requests(plan)
            controller.dump()
            document = outcomes.result(plan, controller.tally.finished, controller.tally.configuration)
            for row in asked:
                if row.kind == "Apply":
                    answer = {"exitCode": outcomes.exit_code(document, plan), "result": document.to_json()}
                    requests.finish(controller.site.db, row.id, answer, controller.site.clock.now())
            controller.tally = passes.Tally()

    def _tell(self, plan: actions.Plan) -> None:
        if plan.revision != self._revision:
            self._say(f"revision {plan.revision}")
            self._revision = plan.revision
        problems = frozenset(str(problem) for problem in plan.problems)
        for problem in sorted(problems - self._told):
            self._say(problem)
        self._told = problems
        for finished in self._controller.tally.untold():
            failure = f": {finished.failure.message}" if finished.failure else ""
            self._say(f"{finished.state.lower():9} {finished.address}{failure}")


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
            _log.warning("cannot watch %s (%s); changes are found at the next look", estate, error)

    def _visible(_change: watchfiles.Change, path: str) -> bool:
        # Names that begin with a dot are neither read nor watched, or the state folder would wake the loop itself.
        inside = Path(path).relative_to(estate) if Path(path).is_relative_to(estate) else Path(path)
        return not any(part.startswith(".") for part in inside.parts) and path.endswith((".yaml", ".yml", ".toml"))

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    return thread
